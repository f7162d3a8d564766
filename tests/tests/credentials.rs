//! Registries with a password, secrets of builds and tasks, the SSH agent.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use acrtask_tests::{
    Outcome, World, new_run_id,
    project::{RegistryClient, folder, write},
};

/// A registry that wants a password, from the environment.
struct Guarded {
    host: String,
    user: String,
    password: String,
}

impl Guarded {
    #[expect(clippy::print_stderr, reason = "the test's own output")]
    fn find() -> Option<Self> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let found = (|| {
            Some(Self {
                host: variable("ACRTASK_TEST_AUTH_REGISTRY")?,
                user: variable("ACRTASK_TEST_AUTH_USER")?,
                password: variable("ACRTASK_TEST_AUTH_PASSWORD")?,
            })
        })();
        if found.is_none() {
            eprintln!("skipped: ACRTASK_TEST_AUTH_REGISTRY names no registry with a password");
        }
        found
    }

    fn client(&self) -> RegistryClient {
        RegistryClient::new(&self.host, Some((&self.user, &self.password)))
    }

    /// Puts an image there that nothing else has, for a task to stand on; its name.
    fn base(&self, world: &World) -> String {
        let name = format!("{}/guarded/base:{}", self.host, new_run_id());
        let files = folder(&[("Dockerfile", &format!("FROM {}\n", world.busybox()))]);
        let credential = format!("{}={}:env:THE_PASSWORD", self.host, self.user);
        let args = ["build", "-t", &name, "--credential", &credential, "."];
        let variables = [("THE_PASSWORD", self.password.as_str())];
        let outcome = world.start_with(files.path(), &args, &variables, "").wait();
        assert_eq!(outcome.code, Some(0), "{}", outcome.all());
        name
    }

    /// A task that needs the registry to pull a base, to run an image, and to push.
    fn task(&self, base: &str) -> tempfile::TempDir {
        let host = &self.host;
        let task = format!(
            "version: v1.1.0
steps:
  - {{id: image, build: --pull -t {host}/guarded/app:$ID .}}
  - {{id: base, cmd: {base} echo pulled, pull: true, when: ['-']}}
  - {{id: test, cmd: {host}/guarded/app:$ID cat /made, when: [image, base]}}
  - {{id: out, push: [{host}/guarded/app:$ID]}}
"
        );
        let dockerfile = format!("FROM {base}\nRUN echo made > /made\n");
        folder(&[("acr-task.yaml", &task), ("Dockerfile", &dockerfile)])
    }

    async fn assert_pushed(&self, outcome: &Outcome) {
        assert_eq!(outcome.code, Some(0), "{}", outcome.all());
        let there = self
            .client()
            .manifest(&format!("guarded/app:{}", outcome.run))
            .await;
        let (digest, _) = there.expect("the image is in the registry");
        let built = &outcome.events_named("image_built")[0];
        assert_eq!(built["digest"], digest.as_str(), "{}", outcome.all());
        assert!(!outcome.all().contains(&self.password), "{}", outcome.all());
    }
}

#[tokio::test]
async fn a_registry_with_a_password_by_flag() {
    let (Some(world), Some(guarded)) = (World::find(), Guarded::find()) else {
        return;
    };
    let files = guarded.task(&guarded.base(&world));
    let empty = tempfile::tempdir().unwrap();
    let config = empty.path().to_str().unwrap();
    let credential = format!("{}={}:env:THE_PASSWORD", guarded.host, guarded.user);
    let args = ["run", "-o", "json", "--credential", &credential];
    let variables = [
        ("THE_PASSWORD", guarded.password.as_str()),
        ("DOCKER_CONFIG", config),
    ];
    let outcome = world.start_with(files.path(), &args, &variables, "").wait();
    guarded.assert_pushed(&outcome).await;
}

#[tokio::test]
async fn a_registry_with_a_password_by_dockers_configuration() {
    let (Some(world), Some(guarded)) = (World::find(), Guarded::find()) else {
        return;
    };
    let files = guarded.task(&guarded.base(&world));
    let login = format!("{}:{}", guarded.user, guarded.password);
    let output = Command::new("sh")
        .args(["-c", "printf %s \"$LOGIN\" | base64 -w0"])
        .env("LOGIN", login)
        .output()
        .unwrap();
    let auth = String::from_utf8(output.stdout).unwrap();
    let mut auths = serde_json::Map::new();
    auths.insert(guarded.host.clone(), serde_json::json!({ "auth": auth }));
    let config = folder(&[]);
    let text = serde_json::json!({ "auths": auths }).to_string();
    write(config.path(), "config.json", &text);
    let variables = [("DOCKER_CONFIG", config.path().to_str().unwrap())];
    let args = ["run", "-o", "json"];
    let outcome = world.start_with(files.path(), &args, &variables, "").wait();
    guarded.assert_pushed(&outcome).await;
}

#[test]
fn a_wrong_or_missing_password_is_said_and_never_shown() {
    let (Some(world), Some(guarded)) = (World::find(), Guarded::find()) else {
        return;
    };
    let dockerfile = format!("FROM {}\n", world.busybox());
    let task = format!(
        "version: v1.1.0\nsteps:\n  - {{id: image, build: -t {0}/guarded/no:$ID .}}\n  \
         - {{id: out, push: [{0}/guarded/no:$ID]}}\n",
        guarded.host
    );
    let files = folder(&[("acr-task.yaml", &task), ("Dockerfile", &dockerfile)]);
    let base = guarded.base(&world);
    let pull = format!("version: v1.1.0\nsteps: [{{id: base, cmd: {base} true, pull: true}}]\n");
    let pull = folder(&[("acr-task.yaml", &pull)]);
    let from = "version: v1.1.0\nsteps: [{id: image, build: --pull .}]\n";
    let from_base = format!("FROM {base}\n");
    let from = folder(&[("acr-task.yaml", from), ("Dockerfile", &from_base)]);
    let empty = tempfile::tempdir().unwrap();
    let config = empty.path().to_str().unwrap();
    let wrong = format!("{}={}:env:THE_PASSWORD", guarded.host, guarded.user);
    let variables = [("THE_PASSWORD", "wrong-horse"), ("DOCKER_CONFIG", config)];
    let with: &[&str] = &["run", "-o", "json", "--credential", &wrong];
    for args in [with, &["run", "-o", "json"]] {
        for (files, step) in [(&files, "out"), (&pull, "base"), (&from, "image")] {
            let outcome = world.start_with(files.path(), args, &variables, "").wait();
            assert_eq!(outcome.code, Some(1), "{}", outcome.all());
            assert_eq!(outcome.state(step), "failed", "{}", outcome.all());
            assert!(outcome.stderr.contains(&guarded.host), "{}", outcome.all());
            let help = format!("acrtask credential set {}", guarded.host);
            assert!(outcome.all().contains(&help), "{}", outcome.all());
            assert!(!outcome.all().contains("wrong-horse"), "{}", outcome.all());
            assert!(
                !outcome.all().contains("attempt 1 of 3"),
                "tried again: {}",
                outcome.all()
            );
        }
    }
    // On the command line, where every process can read it, a password is refused.
    let open = format!("{}={}:{}", guarded.host, guarded.user, guarded.password);
    let outcome = world.acrtask(files.path(), &["run", "--credential", &open]);
    assert_eq!(outcome.code, Some(2), "{}", outcome.all());
    assert!(
        !outcome.all().contains(&guarded.password),
        "{}",
        outcome.all()
    );
}

#[test]
fn the_secrets_of_a_task_file() {
    let Some(world) = World::find() else { return };
    let task = "version: v1.1.0
secrets:
  - {id: token, env: THE_TOKEN}
steps:
  - id: image
    build: --build-arg TOKEN={{.Secrets.token}} --secret id=key -t $Registry/secrets/app:$ID .
  - id: show
    cmd: $Registry/base/busybox:1.36 sh -c 'echo of the task {{.Secrets.token}} {{.Values.more}}'
";
    let dockerfile = format!(
        "FROM {}\nARG TOKEN\nRUN --mount=type=secret,id=key : {}; echo build $TOKEN $(cat /run/secrets/key) $(wc -c < /run/secrets/key)\n",
        world.busybox(),
        // Never from the cache: its output is wanted.
        new_run_id()
    );
    let files = folder(&[
        ("acr-task.yaml", task),
        ("Dockerfile", &dockerfile),
        (".dockerignore", "*"),
        ("key.txt", "hidden-by-file"),
    ]);
    let args = [
        "run",
        "-o",
        "json",
        "--set-secret",
        "more",
        "--secret-file",
        "key=key.txt",
    ];
    let variables = [("THE_TOKEN", "hidden-by-env"), ("more", "hidden-by-flag")];
    let outcome = world.start_with(files.path(), &args, &variables, "").wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    let all = outcome.all();
    assert!(all.contains("build *** *** 14"), "{all}");
    assert!(all.contains("of the task *** ***"), "{all}");
    assert!(!all.contains("hidden-by"), "{all}");
}

/// An SSH agent with one key, ended with this value.
struct Agent {
    child: Child,
    folder: tempfile::TempDir,
}

impl Agent {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent");
        let child = Command::new("ssh-agent")
            .args(["-D", "-a"])
            .arg(&socket)
            .stdout(Stdio::null())
            .spawn()
            .expect("these tests need ssh-agent");
        let agent = Self { child, folder };
        let begun = Instant::now();
        while !socket.exists() {
            assert!(begun.elapsed() < Duration::from_secs(20), "no agent");
            std::thread::sleep(Duration::from_millis(10));
        }
        let key = agent.folder.path().join("key");
        let made = Command::new("ssh-keygen")
            .args([
                "-q",
                "-t",
                "ed25519",
                "-N",
                "",
                "-C",
                "key-of-the-test",
                "-f",
            ])
            .arg(&key)
            .status();
        assert!(made.unwrap().success());
        let added = Command::new("ssh-add")
            .arg("-q")
            .arg(&key)
            .env("SSH_AUTH_SOCK", &socket)
            .status();
        assert!(added.unwrap().success());
        agent
    }

    fn socket(&self) -> String {
        self.folder
            .path()
            .join("agent")
            .to_str()
            .unwrap()
            .to_owned()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Copies this machine's `ssh-add` with every library that it needs into `folder`.
fn copy_ssh_add(folder: &Path) {
    let which = Command::new("sh")
        .args(["-c", "command -v ssh-add"])
        .output();
    let program = String::from_utf8(which.unwrap().stdout).unwrap();
    let program = program.trim();
    let needs = Command::new("ldd").arg(program).output().unwrap();
    let needs = String::from_utf8(needs.stdout).unwrap();
    let libraries = needs
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    for path in libraries.chain([program]) {
        let name = Path::new(path).file_name().unwrap();
        std::fs::create_dir_all(folder).unwrap();
        std::fs::copy(path, folder.join(name)).unwrap();
    }
}

#[test]
fn a_build_reaches_the_ssh_agent() {
    let Some(world) = World::find() else { return };
    let agent = Agent::start();
    let task = "version: v1.1.0\nsteps: [{id: image, build: --ssh default -t app .}]\n";
    let dockerfile = format!(
        "FROM {}\nCOPY agent /agent\nENV ADD='/agent/ld-linux-x86-64.so.2 --library-path /agent /agent/ssh-add'\n\
         RUN --mount=type=ssh : {}; $ADD -l\nRUN ! $ADD -l\n",
        world.busybox(),
        new_run_id()
    );
    let files = folder(&[("acr-task.yaml", task), ("Dockerfile", &dockerfile)]);
    copy_ssh_add(&files.path().join("agent"));
    let args = ["run", "-o", "json"];
    let socket = agent.socket();
    let outcome = world
        .start_with(files.path(), &args, &[("SSH_AUTH_SOCK", &socket)], "")
        .wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    assert!(
        outcome.stdout.contains("key-of-the-test"),
        "{}",
        outcome.all()
    );
    // Without an agent it is said before the build begins.
    let outcome = world
        .start_with(files.path(), &args, &[("SSH_AUTH_SOCK", "")], "")
        .wait();
    assert_eq!(outcome.code, Some(1), "{}", outcome.all());
    assert!(
        outcome.stderr.contains("SSH_AUTH_SOCK"),
        "{}",
        outcome.all()
    );
}
