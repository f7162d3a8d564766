//! Files and repositories fetched by builds: a digest alone gives no access, and no task affects
//! the fetches of another.

use std::{
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use acrtask_tests::{
    Outcome, TestEnvironment,
    git_server::{HttpGit, Repositories},
    new_run_id,
    project::create_folder,
    service::TestServer,
};
use sha2::Digest as _;

use crate::stored_task::{run_task, store_task};

/// Server that serves a file to requests with a signature and refuses all others.
struct SignedFile {
    port: u16,
    content: String,
    served: Arc<AtomicU32>,
}

impl SignedFile {
    fn start(content: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = Arc::new(AtomicU32::new(0));
        let (counted, body) = (served.clone(), content.clone());
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
            served,
        }
    }

    fn url(&self, query: &str) -> String {
        format!("http://127.0.0.1:{}/f.txt{query}", self.port)
    }

    fn digest(&self) -> String {
        format!("sha256:{:x}", sha2::Sha256::digest(&self.content))
    }
}

/// Runs a stored task whose Dockerfile adds `source` and prints it. The run may fail.
fn run_add(
    environment: &TestEnvironment,
    server: &TestServer,
    task: &str,
    source: &str,
) -> Outcome {
    store_task(environment, server, task, "build: .", None);
    // The step prints the content reversed, so that it cannot be an echo of the line.
    let dockerfile = format!(
        "FROM {}\nADD {source} /added\nRUN echo {} && find /added -type f -exec rev {{}} +\n",
        environment.busybox(),
        new_run_id()
    );
    let files = create_folder(&[("Dockerfile", &dockerfile)]);
    let args = ["task", "run", task, "--context", ".", "-o", "json"];
    server.start_client(files.path(), &args).wait()
}

fn reverse(text: &str) -> String {
    text.chars().rev().collect()
}

#[test]
fn checksum_alone_gives_no_access_to_a_file() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &["--allow-private-addresses"]);
    let file = SignedFile::start(format!("file-{}", new_run_id()));
    let content = reverse(&file.content);
    let checked = format!("--checksum={} ", file.digest());

    let signed = format!("{checked}{}", file.url("?sig=good"));
    let victim = run_add(&environment, &server, "prod/file", &signed);
    assert_eq!(victim.code, Some(0), "{}", victim.transcript());
    assert!(victim.stdout.contains(&content), "{}", victim.transcript());
    let served = file.served.load(Ordering::SeqCst);
    assert!(served >= 1, "{}", victim.transcript());

    // A digest gives no permission, whatever the URL.
    for (task, query) in [("team/bare", ""), ("team/wrong", "?sig=bad")] {
        let source = format!("{checked}{}", file.url(query));
        let attacker = run_add(&environment, &server, task, &source);
        assert_ne!(attacker.code, Some(0), "{}", attacker.transcript());
        assert!(
            !attacker.stdout.contains(&content),
            "{}",
            attacker.transcript()
        );
        assert!(
            attacker.stdout.contains("ADD --checksum: cannot download"),
            "{}",
            attacker.transcript()
        );
        assert!(
            !attacker.stdout.contains("sig=bad: "),
            "{}",
            attacker.transcript()
        );
    }

    // For a wrong checksum, the error contains both digests.
    let other = format!(
        "--checksum=sha256:{} {}",
        "0".repeat(64),
        file.url("?sig=good")
    );
    let mistaken = run_add(&environment, &server, "team/mistaken", &other);
    assert_ne!(mistaken.code, Some(0), "{}", mistaken.transcript());
    let message = format!("has the digest {}", file.digest());
    assert!(
        mistaken.stdout.contains(&message),
        "{}",
        mistaken.transcript()
    );

    // Without a checksum, the builder requests the file from the host.
    let plain = run_add(&environment, &server, "team/plain", &file.url(""));
    assert_ne!(plain.code, Some(0), "{}", plain.transcript());
}

#[test]
fn builder_of_a_runner_fetches_no_git_repository() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &["--allow-private-addresses"]);
    let repositories = Repositories::default();
    repositories.create("repo");
    let mark = format!("source-{}", new_run_id());
    let dockerfile = format!(
        "FROM {}\nCOPY mark /mark\nRUN echo {} && rev /mark\n",
        environment.busybox(),
        new_run_id()
    );
    let commit = repositories.commit("repo", &[("mark", &mark), ("Dockerfile", &dockerfile)]);
    let git = HttpGit::start(&repositories.root(), None);

    for (number, reference) in ["main", &commit].into_iter().enumerate() {
        let requested = git.requests().len();
        let source = format!("{}#{reference}", git.url("repo"));
        let task = format!("team/add{number}");
        let refused = run_add(&environment, &server, &task, &source);
        assert_ne!(refused.code, Some(0), "{}", refused.transcript());
        assert!(
            refused.stdout.contains("--build-context src="),
            "{}",
            refused.transcript()
        );
        assert_eq!(git.requests().len(), requested, "{}", refused.transcript());
    }

    // The runner itself fetches contexts and named contexts, each from its own URL.
    let line = format!("build: {}#{commit}", git.url("repo"));
    store_task(&environment, &server, "prod/context", &line, None);
    let context = run_task(&server, "prod/context", &[("unused", "")]);
    assert!(
        context.stdout.contains(&reverse(&mark)),
        "{}",
        context.transcript()
    );
    let vertexes = context.events_named("vertex");
    let names = vertexes.iter().filter_map(|event| event["name"].as_str());
    let from_git: Vec<&str> = names.filter(|name| name.contains("git")).collect();
    assert!(from_git.is_empty(), "{from_git:?}");

    let line = format!("build: --build-context src={}#{commit} .", git.url("repo"));
    store_task(&environment, &server, "prod/named", &line, None);
    let dockerfile = format!(
        "FROM {}\nCOPY --from=src mark /mark\nRUN echo {} && rev /mark\n",
        environment.busybox(),
        new_run_id()
    );
    let named = run_task(&server, "prod/named", &[("Dockerfile", &dockerfile)]);
    assert!(
        named.stdout.contains(&reverse(&mark)),
        "{}",
        named.transcript()
    );
}

#[test]
fn recorded_base_is_the_image_of_the_named_context() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &[]);
    // A private image of another task, a host that would receive a request, and a short name.
    for (task, name) in [
        (
            "team/private",
            format!("{}/private/app:1", environment.registry),
        ),
        ("team/host", "127.0.0.1:1/scan/x:1".to_owned()),
        ("team/short", "base".to_owned()),
    ] {
        let line = format!(
            "build: --build-context {name}=docker-image://{} .",
            environment.busybox()
        );
        store_task(&environment, &server, task, &line, None);
        let outcome = run_task(&server, task, &[("Dockerfile", &format!("FROM {name}\n"))]);
        let used = outcome.events_named("base_used");
        let names: Vec<&str> = used
            .iter()
            .filter_map(|base| base["name"].as_str())
            .collect();
        assert_eq!(names, [environment.busybox()], "{}", outcome.transcript());
        assert_eq!(used[0]["role"], "runtime", "{}", outcome.transcript());
    }
}
