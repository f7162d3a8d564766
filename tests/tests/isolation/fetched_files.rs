//! Files and repositories that builds fetch: none is found by a digest alone, and none is decided by another task.

use std::{
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use acrtask_tests::{
    Outcome, World,
    git_server::{HttpGit, Repositories},
    new_run_id,
    project::folder,
    service::Server,
};
use sha2::Digest as _;

use crate::stored::{run_task, store_task};

/// A server that gives a file to requests with a signature, and refuses the others.
struct SignedFile {
    port: u16,
    content: String,
    given: Arc<AtomicU32>,
}

impl SignedFile {
    fn start(content: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let given = Arc::new(AtomicU32::new(0));
        let (counted, body) = (given.clone(), content.clone());
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                use std::io::{Read as _, Write as _};
                let mut head = [0; 4096];
                let length = stream.read(&mut head).unwrap_or_default();
                let head = String::from_utf8_lossy(&head[..length]);
                let (status, body) = match head.contains("sig=good") {
                    true => ("200 OK", body.as_str()),
                    false => ("403 Forbidden", ""),
                };
                counted.fetch_add(u32::from(!body.is_empty()), Ordering::SeqCst);
                let length = body.len();
                let answer = format!(
                    "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                );
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        Self {
            port,
            content,
            given,
        }
    }

    fn url(&self, query: &str) -> String {
        format!("http://127.0.0.1:{}/f.txt{query}", self.port)
    }

    fn digest(&self) -> String {
        format!("sha256:{:x}", sha2::Sha256::digest(&self.content))
    }
}

/// Runs a stored task whose Dockerfile adds `source` and prints it. It may fail.
fn add(world: &World, server: &Server, task: &str, source: &str) -> Outcome {
    store_task(world, server, task, "build: .", None);
    // The output of a step is shown in reverse, so that it cannot be an echo of the line.
    let dockerfile = format!(
        "FROM {}\nADD {source} /added\nRUN echo {} && find /added -type f -exec rev {{}} +\n",
        world.busybox(),
        new_run_id()
    );
    let files = folder(&[("Dockerfile", &dockerfile)]);
    let args = ["task", "run", task, "--context", ".", "-o", "json"];
    server.client(files.path(), &args).wait()
}

fn reversed(text: &str) -> String {
    text.chars().rev().collect()
}

#[test]
fn a_file_is_not_had_for_its_checksum() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &["--allow-private-addresses"]);
    let file = SignedFile::start(format!("file-{}", new_run_id()));
    let content = reversed(&file.content);
    let checked = format!("--checksum={} ", file.digest());

    let signed = format!("{checked}{}", file.url("?sig=good"));
    let victim = add(&world, &server, "prod/file", &signed);
    assert_eq!(victim.code, Some(0), "{}", victim.all());
    assert!(victim.stdout.contains(&content), "{}", victim.all());
    let given = file.given.load(Ordering::SeqCst);
    assert!(given >= 1, "{}", victim.all());

    // A digest does not give permission, whatever the URL.
    for (task, query) in [("team/bare", ""), ("team/wrong", "?sig=bad")] {
        let source = format!("{checked}{}", file.url(query));
        let attacker = add(&world, &server, task, &source);
        assert_ne!(attacker.code, Some(0), "{}", attacker.all());
        assert!(!attacker.stdout.contains(&content), "{}", attacker.all());
        assert!(
            attacker.stdout.contains("ADD --checksum: cannot download"),
            "{}",
            attacker.all()
        );
        assert!(!attacker.stdout.contains("sig=bad: "), "{}", attacker.all());
    }

    // A Dockerfile with another digest than the file gets both in the message.
    let other = format!(
        "--checksum=sha256:{} {}",
        "0".repeat(64),
        file.url("?sig=good")
    );
    let mistaken = add(&world, &server, "team/mistaken", &other);
    assert_ne!(mistaken.code, Some(0), "{}", mistaken.all());
    let message = format!("has the digest {}", file.digest());
    assert!(mistaken.stdout.contains(&message), "{}", mistaken.all());

    // Without a checksum, the builder asks the host itself.
    let plain = add(&world, &server, "team/plain", &file.url(""));
    assert_ne!(plain.code, Some(0), "{}", plain.all());
}

#[test]
fn a_builder_of_a_runner_fetches_no_git_repository() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &["--allow-private-addresses"]);
    let repositories = Repositories::default();
    repositories.create("repo");
    let mark = format!("source-{}", new_run_id());
    let dockerfile = format!(
        "FROM {}\nCOPY mark /mark\nRUN echo {} && rev /mark\n",
        world.busybox(),
        new_run_id()
    );
    let commit = repositories.commit("repo", &[("mark", &mark), ("Dockerfile", &dockerfile)]);
    let git = HttpGit::start(&repositories.root(), None);

    for (number, reference) in ["main", &commit].into_iter().enumerate() {
        let asked = git.requests().len();
        let source = format!("{}#{reference}", git.url("repo"));
        let task = format!("team/add{number}");
        let refused = add(&world, &server, &task, &source);
        assert_ne!(refused.code, Some(0), "{}", refused.all());
        assert!(
            refused.stdout.contains("--build-context src="),
            "{}",
            refused.all()
        );
        assert_eq!(git.requests().len(), asked, "{}", refused.all());
    }

    // The runner itself fetches contexts and named contexts, each time from their own URL.
    let line = format!("build: {}#{commit}", git.url("repo"));
    store_task(&world, &server, "prod/context", &line, None);
    let context = run_task(&server, "prod/context", &[("unused", "")]);
    assert!(
        context.stdout.contains(&reversed(&mark)),
        "{}",
        context.all()
    );
    let vertexes = context.events_named("vertex");
    let names = vertexes.iter().filter_map(|event| event["name"].as_str());
    let from_git: Vec<&str> = names.filter(|name| name.contains("git")).collect();
    assert!(from_git.is_empty(), "{from_git:?}");

    let line = format!("build: --build-context src={}#{commit} .", git.url("repo"));
    store_task(&world, &server, "prod/named", &line, None);
    let dockerfile = format!(
        "FROM {}\nCOPY --from=src mark /mark\nRUN echo {} && rev /mark\n",
        world.busybox(),
        new_run_id()
    );
    let named = run_task(&server, "prod/named", &[("Dockerfile", &dockerfile)]);
    assert!(named.stdout.contains(&reversed(&mark)), "{}", named.all());
}

#[test]
fn the_base_of_a_build_is_the_image_that_a_context_names() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &[]);
    // A private image of another task, a host that is to be asked, and a name for a layout.
    for (task, name) in [
        ("team/private", format!("{}/private/app:1", world.registry)),
        ("team/host", "127.0.0.1:1/scan/x:1".to_owned()),
        ("team/short", "base".to_owned()),
    ] {
        let line = format!(
            "build: --build-context {name}=docker-image://{} .",
            world.busybox()
        );
        store_task(&world, &server, task, &line, None);
        let outcome = run_task(&server, task, &[("Dockerfile", &format!("FROM {name}\n"))]);
        let used = outcome.events_named("base_used");
        let names: Vec<&str> = used
            .iter()
            .filter_map(|base| base["name"].as_str())
            .collect();
        assert_eq!(names, [world.busybox()], "{}", outcome.all());
        assert_eq!(used[0]["role"], "runtime", "{}", outcome.all());
    }
}
