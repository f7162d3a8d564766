//! Registries with a password, secrets of builds and tasks, and the SSH agent.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use acrtask_tests::{
    Outcome, TestEnvironment, new_run_id,
    project::{RegistryClient, create_folder, write_file},
};

/// Registry with a password, as the environment describes it.
struct AuthRegistry {
    host: String,
    user: String,
    password: String,
}

impl AuthRegistry {
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

    /// Pushes an image with a unique name that a task can use as its base. Returns the name.
    fn push_base(&self, environment: &TestEnvironment) -> String {
        let name = format!("{}/guarded/base:{}", self.host, new_run_id());
        let files = create_folder(&[("Dockerfile", &format!("FROM {}\n", environment.busybox()))]);
        let credential = format!("{}={}:env:THE_PASSWORD", self.host, self.user);
        let args = ["build", "-t", &name, "--credential", &credential, "."];
        let variables = [("THE_PASSWORD", self.password.as_str())];
        let outcome = environment
            .start_with(files.path(), &args, &variables, "")
            .wait();
        assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
        name
    }

    /// Returns a task that needs the registry to pull a base, to run an image and to push.
    fn create_task(&self, base: &str) -> tempfile::TempDir {
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
        create_folder(&[("acr-task.yaml", &task), ("Dockerfile", &dockerfile)])
    }

    async fn assert_pushed(&self, outcome: &Outcome) {
        assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
        let manifest = self
            .client()
            .fetch_manifest(&format!("guarded/app:{}", outcome.run))
            .await;
        let (digest, _) = manifest.expect("the image is in the registry");
        let built = &outcome.events_named("image_built")[0];
        assert_eq!(built["digest"], digest.as_str(), "{}", outcome.transcript());
        assert!(
            !outcome.transcript().contains(&self.password),
            "{}",
            outcome.transcript()
        );
    }
}

#[tokio::test]
async fn registry_login_is_read_from_a_flag() {
    let (Some(environment), Some(registry)) = (TestEnvironment::find(), AuthRegistry::find())
    else {
        return;
    };
    let files = registry.create_task(&registry.push_base(&environment));
    let empty = tempfile::tempdir().unwrap();
    let config = empty.path().to_str().unwrap();
    let credential = format!("{}={}:env:THE_PASSWORD", registry.host, registry.user);
    let args = ["run", "-o", "json", "--credential", &credential];
    let variables = [
        ("THE_PASSWORD", registry.password.as_str()),
        ("DOCKER_CONFIG", config),
    ];
    let outcome = environment
        .start_with(files.path(), &args, &variables, "")
        .wait();
    registry.assert_pushed(&outcome).await;
}

#[tokio::test]
async fn registry_login_is_read_from_dockers_configuration() {
    let (Some(environment), Some(registry)) = (TestEnvironment::find(), AuthRegistry::find())
    else {
        return;
    };
    let files = registry.create_task(&registry.push_base(&environment));
    let login = format!("{}:{}", registry.user, registry.password);
    let output = Command::new("sh")
        .args(["-c", "printf %s \"$LOGIN\" | base64 -w0"])
        .env("LOGIN", login)
        .output()
        .unwrap();
    let auth = String::from_utf8(output.stdout).unwrap();
    let mut auths = serde_json::Map::new();
    auths.insert(registry.host.clone(), serde_json::json!({ "auth": auth }));
    let config = create_folder(&[]);
    let text = serde_json::json!({ "auths": auths }).to_string();
    write_file(config.path(), "config.json", &text);
    let variables = [("DOCKER_CONFIG", config.path().to_str().unwrap())];
    let args = ["run", "-o", "json"];
    let outcome = environment
        .start_with(files.path(), &args, &variables, "")
        .wait();
    registry.assert_pushed(&outcome).await;
}

#[test]
fn wrong_or_missing_password_is_reported_but_not_shown() {
    let (Some(environment), Some(registry)) = (TestEnvironment::find(), AuthRegistry::find())
    else {
        return;
    };
    let dockerfile = format!("FROM {}\n", environment.busybox());
    let task = format!(
        "version: v1.1.0\nsteps:\n  - {{id: image, build: -t {0}/guarded/no:$ID .}}\n  \
         - {{id: out, push: [{0}/guarded/no:$ID]}}\n",
        registry.host
    );
    let files = create_folder(&[("acr-task.yaml", &task), ("Dockerfile", &dockerfile)]);
    let base = registry.push_base(&environment);
    let pull = format!("version: v1.1.0\nsteps: [{{id: base, cmd: {base} true, pull: true}}]\n");
    let pull = create_folder(&[("acr-task.yaml", &pull)]);
    let from = "version: v1.1.0\nsteps: [{id: image, build: --pull .}]\n";
    let from_base = format!("FROM {base}\n");
    let from = create_folder(&[("acr-task.yaml", from), ("Dockerfile", &from_base)]);
    let empty = tempfile::tempdir().unwrap();
    let config = empty.path().to_str().unwrap();
    let wrong = format!("{}={}:env:THE_PASSWORD", registry.host, registry.user);
    let variables = [("THE_PASSWORD", "wrong-horse"), ("DOCKER_CONFIG", config)];
    let with: &[&str] = &["run", "-o", "json", "--credential", &wrong];
    for args in [with, &["run", "-o", "json"]] {
        for (files, step) in [(&files, "out"), (&pull, "base"), (&from, "image")] {
            let outcome = environment
                .start_with(files.path(), args, &variables, "")
                .wait();
            assert_eq!(outcome.code, Some(1), "{}", outcome.transcript());
            assert_eq!(
                outcome.step_state(step),
                "failed",
                "{}",
                outcome.transcript()
            );
            assert!(
                outcome.stderr.contains(&registry.host),
                "{}",
                outcome.transcript()
            );
            let help = format!("acrtask credential set {}", registry.host);
            assert!(
                outcome.transcript().contains(&help),
                "{}",
                outcome.transcript()
            );
            assert!(
                !outcome.transcript().contains("wrong-horse"),
                "{}",
                outcome.transcript()
            );
            assert!(
                !outcome.transcript().contains("attempt 1 of 3"),
                "tried again: {}",
                outcome.transcript()
            );
        }
    }
    // On the command line, where every process can read it, a password is refused.
    let open = format!("{}={}:{}", registry.host, registry.user, registry.password);
    let outcome = environment.run_acrtask(files.path(), &["run", "--credential", &open]);
    assert_eq!(outcome.code, Some(2), "{}", outcome.transcript());
    assert!(
        !outcome.transcript().contains(&registry.password),
        "{}",
        outcome.transcript()
    );
}

#[test]
fn secrets_of_a_task_file_are_passed_and_masked() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
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
        environment.busybox(),
        // Never from the cache, because the test needs the output of the build.
        new_run_id()
    );
    let files = create_folder(&[
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
    let outcome = environment
        .start_with(files.path(), &args, &variables, "")
        .wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    let all = outcome.transcript();
    assert!(all.contains("build *** *** 14"), "{all}");
    assert!(all.contains("of the task *** ***"), "{all}");
    assert!(!all.contains("hidden-by"), "{all}");
}

/// SSH agent with one key. It ends with its handle.
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

/// Copies the `ssh-add` of this machine with all its libraries into `folder`.
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
fn build_reaches_the_ssh_agent() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let agent = Agent::start();
    let task = "version: v1.1.0\nsteps: [{id: image, build: --ssh default -t app .}]\n";
    let dockerfile = format!(
        "FROM {}\nCOPY agent /agent\nENV ADD='/agent/ld-linux-x86-64.so.2 --library-path /agent /agent/ssh-add'\n\
         RUN --mount=type=ssh : {}; $ADD -l\nRUN ! $ADD -l\n",
        environment.busybox(),
        new_run_id()
    );
    let files = create_folder(&[("acr-task.yaml", task), ("Dockerfile", &dockerfile)]);
    copy_ssh_add(&files.path().join("agent"));
    let args = ["run", "-o", "json"];
    let socket = agent.socket();
    let outcome = environment
        .start_with(files.path(), &args, &[("SSH_AUTH_SOCK", &socket)], "")
        .wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    assert!(
        outcome.stdout.contains("key-of-the-test"),
        "{}",
        outcome.transcript()
    );
    // Without an agent, the run fails before the build begins.
    let outcome = environment
        .start_with(files.path(), &args, &[("SSH_AUTH_SOCK", "")], "")
        .wait();
    assert_eq!(outcome.code, Some(1), "{}", outcome.transcript());
    assert!(
        outcome.stderr.contains("SSH_AUTH_SOCK"),
        "{}",
        outcome.transcript()
    );
}
