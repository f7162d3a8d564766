//! Secrets passed in every way that the product offers, then searched for everywhere it writes.
//!
//! Each way has its own marked value. The search covers the value unchanged, reversed, each half of
//! it, base 64 at each alignment, hexadecimal, percent-encoded and as JSON.
//!
//! Two places may contain a value, because the author of a task chose them: the container that
//! received it, and the process of the client.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use acrtask_tests::{
    TestEnvironment,
    engine::list_remains,
    forge::deliver,
    git_server::{HttpGit, Repositories, SshGit},
    new_run_id,
    project::create_folder,
    service::TestServer,
};
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use serde_json::{Value, json};
use wiremock::{Mock, MockServer, ResponseTemplate, matchers::any};

#[path = "../common/mod.rs"]
mod common;
mod marks;
mod processes;
mod pushed;

use common::create_postgres_database;
use marks::{Canary, search_all};
use processes::Processes;

/// Lists every file below `folder`. Compressed archives are not unpacked.
fn list_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => waiting.push(entry.path()),
                Ok(kind) if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
    }
    files
}

#[tokio::test]
async fn secrets_never_leak_with_sqlite() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    secrets_never_leak(&environment, None).await;
}

#[tokio::test]
async fn secrets_never_leak_with_postgres() {
    let (Some(environment), Some(database)) =
        (TestEnvironment::find(), create_postgres_database().await)
    else {
        return;
    };
    secrets_never_leak(&environment, Some(&database)).await;
}

async fn secrets_never_leak(environment: &TestEnvironment, database: Option<&str>) {
    // The client needs a TLS provider even for plain HTTP. An error means that one is installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let began = SystemTime::now();
    let variable = |name: &str| std::env::var(name).expect("`cargo xtask test` sets this variable");
    let (auth_host, auth_user, auth_password) = (
        variable("ACRTASK_TEST_AUTH_REGISTRY"),
        variable("ACRTASK_TEST_AUTH_USER"),
        variable("ACRTASK_TEST_AUTH_PASSWORD"),
    );
    let repositories = Repositories::default();
    repositories.create("app");
    let task = Canary::new("secret of a task", "/\"+ ");
    let argument = Canary::new("secret in a line", "/+");
    let volume = Canary::new("secret volume", "\n");
    let mount = Canary::new("build secret of a task", "&'");
    let engine = Canary::new("secret in an error of the engine", "%");
    let of_run = Canary::new("secret of a run", "$&");
    let breaking = Canary::new("secret that breaks the task file", "\\$");
    let file = Canary::new("secret file of a build", "<>");
    let build_argument = Canary::new("secret build argument", "=");
    let git_token = Canary::new("token for git", "-");
    let hook = Canary::new("secret of a webhook", "-");
    let notification = Canary::new("URL of a notification", "-");
    let signing = Canary::new("key that notifications are signed with", "-");
    let ssh = SshGit::start(&repositories.root()).expect("`cargo xtask test` sets sshd up");
    let key = ssh.private_key();
    let ssh_key = Canary::from_value("SSH key", key.lines().nth(2).unwrap());
    let registry_password = Canary::from_value("password for a registry", &auth_password);

    let image = format!("canary/{}", new_run_id());
    let busybox = "$Registry/base/busybox:1.36";
    let task_file = format!(
        r#"version: v1.1.0
volumes:
  - name: keys
    secret:
      key.txt: {{{{.Secrets.volume | b64enc}}}}
steps:
  - id: env
    cmd: {busybox} sh -c 'echo "$MY"; printf %s "$MY" | base64; printf %s "$MY" | od -An -tx1; cat /keys/key.txt; base64 /keys/key.txt; sleep 1'
    env: [{{{{printf "MY=%s" .Secrets.task | quote}}}}]
    volumeMounts: [{{name: keys, mountPath: /keys}}]
  - id: line
    cmd: {busybox} echo x{{{{.Secrets.argument}}}}
  - id: login
    cmd: docker login -u {auth_user} -p {{{{.Secrets.login}}}} {auth_host}
  - id: image
    build: -t $Registry/{image}:$ID --secret id=token,env=TOKEN .
    env: ["TOKEN={{{{.Secrets.mount}}}}"]
  - id: out
    push: ["$Registry/{image}:$ID"]
  - id: missing
    cmd: {busybox} /no/such/{{{{.Secrets.engine}}}}
    ignoreErrors: true
  - id: bad
    cmd: {busybox} sh -c 'echo "{{{{.Secrets.argument}}}}" >&2; exit 3'
"#
    );
    let dockerfile = format!(
        "FROM {}\nRUN --mount=type=secret,id=token cat /run/secrets/token; base64 /run/secrets/token\n",
        environment.busybox()
    );
    repositories.commit(
        "app",
        &[("acr-task.yaml", &task_file), ("Dockerfile", &dockerfile)],
    );
    let git = HttpGit::start(&repositories.root(), Some(("ci", &git_token.value)));
    let receiver = MockServer::start().await;
    Mock::given(any())
        .respond_with(ResponseTemplate::new(200))
        .mount(&receiver)
        .await;

    let mut flags = vec![
        "--allow-private-addresses",
        "--public-url",
        "https://ci.example.com",
    ];
    flags.extend(database.iter().flat_map(|url| ["--database", url]));
    let server = TestServer::start(environment, &flags);

    let definition = json!({
        "name": "canary",
        "context": format!("{}#main", git.url("app")),
        "registry": environment.registry,
        "secrets": {
            "task": "task", "argument": "argument", "volume": "volume", "mount": "mount",
            "engine": "engine", "login": "login",
        },
        "notify": [{"url": "notification", "signWith": "signing"}],
        "triggers": {"commit": {"enabled": true}, "timers": {"far": {"schedule": "0 0 1 1 *"}}},
    });
    let show = format!("version: v1.1.0\nsteps:\n  - cmd: {busybox} cat acr-task.yaml\n");
    let keyed = json!({
        "name": "keyed", "context": format!("{}#main", ssh.url("app")), "text": show,
        "registry": environment.registry,
    });
    let notify_url = format!("{}/{}", receiver.uri(), notification.value);
    let sign_with = format!("whsec_{}", STANDARD_NO_PAD.encode(&signing.value));
    let build_docker = format!(
        "FROM {}\nARG TOKEN\nRUN --mount=type=secret,id=file cat /run/secrets/file && echo $TOKEN\n",
        environment.busybox()
    );
    let files = create_folder(&[
        ("task.yaml", &definition.to_string()),
        ("keyed.yaml", &keyed.to_string()),
        ("key", &key),
        ("known_hosts", &ssh.known_hosts()),
        ("task", &task.value),
        ("argument", &argument.value),
        ("volume", &volume.value),
        ("mount", &mount.value),
        ("engine", &engine.value),
        ("login", &auth_password),
        ("git", &git_token.value),
        ("hook", &hook.value),
        ("notification", &notify_url),
        ("signing", &sign_with),
        ("file", &file.value),
        ("one/Dockerfile", &build_docker),
        (
            "one/acr-task.yaml",
            &format!(
                "version: v1.1.0\nsteps:\n  - id: show\n    cmd: {busybox} sh -c 'echo \"$MY\"; exit 4'\n    env: [\"MY={{{{.Secrets.ofRun}}}}\"]\n"
            ),
        ),
    ]);
    let client = |args: &[&str], variables: &[(&str, &str)]| {
        let own = server.variables();
        let own = own
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        let variables: Vec<_> = own.chain(variables.iter().copied()).collect();
        environment
            .start_plain(files.path(), args, &variables)
            .wait()
    };
    let mut printed = String::new();
    let mut ok = |args: &[&str]| {
        let outcome = client(args, &[]);
        assert_eq!(outcome.code, Some(0), "{args:?}: {}", outcome.transcript());
        printed.push_str(&outcome.transcript());
        outcome.stdout
    };
    for name in [
        "task",
        "argument",
        "volume",
        "mount",
        "engine",
        "login",
        "notification",
        "signing",
    ] {
        ok(&["secret", "set", name, "--from-file", name]);
    }
    let git_host = git.address();
    ok(&[
        "credential",
        "set",
        &git_host,
        "--username",
        "ci",
        "--from-file",
        "git",
    ]);
    ok(&[
        "credential",
        "set",
        &auth_host,
        "--username",
        &auth_user,
        "--from-file",
        "login",
    ]);
    ok(&["task", "apply", "-f", "task.yaml"]);
    ok(&["task", "apply", "-f", "keyed.yaml"]);
    let login = [
        "credential",
        "set",
        "127.0.0.1",
        "--username",
        "git",
        "--task",
        "keyed",
    ];
    let of_key = ["--known-hosts", "known_hosts", "--from-file", "key"];
    ok(&[&login[..], &of_key].concat());
    ok(&[
        "webhook",
        "create",
        "app",
        "--provider",
        "github",
        "--secret-file",
        "hook",
    ]);
    let url = ok(&["task", "trigger-url", "create", "canary"]);
    let url = url
        .split_whitespace()
        .find(|word| word.contains("acrtu_"))
        .unwrap()
        .to_owned();
    let url_token = url.rsplit('/').next().unwrap().to_owned();

    let own = Canary::from_value("token of the administrator", &server.token);
    let of_url = Canary::from_value("token of a trigger URL", &url_token);
    let canaries = Arc::new(vec![
        task,
        argument,
        volume,
        mount,
        engine,
        of_run,
        breaking,
        file,
        build_argument,
        git_token,
        hook,
        notification,
        signing,
        ssh_key,
        registry_password,
        own,
        of_url,
    ]);
    let value_of = |way: &str| {
        let canary = canaries.iter().find(|canary| canary.way == way);
        canary.unwrap().value.clone()
    };
    let watching = Processes::watch(server.pid(), Arc::clone(&canaries));

    // A run with an SSH key, a commit, a call of the trigger URL, a run with its own secrets, and a
    // build.
    ok(&["task", "run", "keyed", "-o", "plain"]);
    let commit = repositories.commit("app", &[("new", "1")]);
    let body = json!({
        "ref": "refs/heads/main", "before": "0".repeat(40), "after": commit, "forced": false,
        "commits": [], "head_commit": {"id": commit, "message": "change"},
        "repository": {"full_name": "org/app", "clone_url": git.url("app"), "default_branch": "main"},
    });
    let hook_url = format!("{}/hooks/app", server.url);
    let secret = value_of("secret of a webhook");
    let (status, _) = deliver(&hook_url, &secret, "push", "d-1", &body).unwrap();
    assert!((200..300).contains(&status), "{status}");
    let wrong = deliver(&hook_url, &format!("{secret}x"), "push", "d-2", &body).unwrap();
    assert_eq!(wrong.0, 401, "{wrong:?}");
    let http = reqwest::Client::new();
    let called = format!("{}/trigger/{url_token}", server.url);
    let called = http.post(&called).send().await.unwrap();
    assert!(
        called.status().is_success(),
        "{}",
        called.text().await.unwrap()
    );
    let value = value_of("secret of a run");
    let args = [
        "run",
        "--registry",
        &environment.registry,
        "-o",
        "plain",
        "--set-secret",
        "ofRun",
        "one",
    ];
    let ran = client(&args, &[("ofRun", &value)]);
    assert_eq!(ran.code, Some(1), "{}", ran.transcript());
    assert!(ran.stdout.contains("***"), "{}", ran.transcript());
    // An error about the task file that the secret breaks quotes no part of the secret.
    let value = value_of("secret that breaks the task file");
    let broken = client(&args, &[("ofRun", &value)]);
    assert_eq!(broken.code, Some(2), "{}", broken.transcript());
    let built_name = format!("{}/{image}:built", environment.registry);
    let value = value_of("secret build argument");
    let args = [
        "build",
        "-t",
        &built_name,
        "--secret-file",
        "file=file",
        "--secret-build-arg",
        "TOKEN",
        "one",
    ];
    let built = client(&args, &[("TOKEN", &value)]);
    assert_eq!(built.code, Some(0), "{}", built.transcript());

    // All runs finish. Those of the task fail in its last step.
    let list = loop {
        let list = server.run_json(&["runs", "list", "-o", "json"]);
        let runs = list["items"]
            .as_array()
            .or(list.as_array())
            .unwrap()
            .clone();
        let over = |run: &Value| {
            ["succeeded", "failed", "error", "canceled", "timed_out"]
                .contains(&run["state"].as_str().unwrap())
        };
        if runs.len() >= 6 && runs.iter().all(over) {
            break runs;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    };
    for _ in 0..100 {
        let count = receiver.received_requests().await.unwrap().len();
        if count >= 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut found = watching.stop();

    // Logs of the runs, and proof that they did their work.
    let mut masked = 0;
    for run in &list {
        let id = run["id"].as_str().unwrap();
        let log = server.run_ok(&["runs", "logs", id]).transcript();
        let shown = server.run_ok(&["runs", "show", id]).transcript();
        masked += log.matches("***").count();
        printed.push_str(&log);
        printed.push_str(&shown);
        if run["task"] == "canary" {
            assert!(log.contains("bad"), "{log}");
            assert_eq!(run["state"], "failed", "{run:#}: {log}");
            assert!(
                !log.contains("step image failed") && !log.contains("step env failed"),
                "{log}"
            );
        }
        assert_eq!(list_remains(id), [""; 0], "left over from {id}");
    }
    assert!(masked > 20, "{masked} masks: {printed}");
    search_all(
        &canaries[..15],
        "the output of clients",
        printed.as_bytes(),
        &mut found,
    );
    search_all(
        &canaries,
        "the output of a run",
        ran.transcript().as_bytes(),
        &mut found,
    );
    search_all(
        &canaries,
        "the output of a build",
        built.transcript().as_bytes(),
        &mut found,
    );
    search_all(
        &canaries,
        "a message about a task file",
        broken.transcript().as_bytes(),
        &mut found,
    );
    let log = server.log();
    let log: String = log
        .lines()
        .filter(|line| !line.contains("first token"))
        .collect();
    search_all(&canaries, "the server's log", log.as_bytes(), &mut found);

    // Notifications contain no secret. Only the URL that receives them is one.
    for request in receiver.received_requests().await.unwrap() {
        search_all(&canaries, "a notification", &request.body, &mut found);
        search_all(
            &canaries,
            "headers of a notification",
            format!("{:?}", request.headers).as_bytes(),
            &mut found,
        );
    }
    search_api(&server, &list, &canaries, &mut found).await;
    search_files(
        &server,
        began,
        &[files.path(), &repositories.root(), ssh.folder()],
        &canaries,
        &mut found,
    );
    if let Some(url) = database {
        for row in acrtask_store::testing::dump(url).await.unwrap() {
            search_all(&canaries, "PostgreSQL", row.as_bytes(), &mut found);
        }
    }
    pushed::search_images(environment, &image, &list, &canaries, &mut found).await;
    let found: Vec<String> = found.into_iter().collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Searches every API response to a GET request of an administrator.
async fn search_api(
    server: &TestServer,
    runs: &[Value],
    canaries: &[Canary],
    found: &mut BTreeSet<String>,
) {
    let http = reqwest::Client::new();
    let mut waiting: Vec<String> = [
        "me",
        "tokens",
        "federations",
        "secrets",
        "secrets?task=canary",
        "credentials",
        "tasks",
        "tasks/canary",
        "tasks/canary/triggers",
        "tasks/canary/timers",
        "tasks/canary/trigger-url",
        "webhooks",
        "webhooks/app",
        "deliveries",
        "runners",
        "runs",
        "images",
        "bases",
        "cascades",
        "cascades/settings",
        "openapi.json",
    ]
    .map(|path| format!("/api/v1/{path}"))
    .to_vec();
    waiting.extend(["/metrics", "/healthz", "/readyz"].map(str::to_owned));
    for run in runs {
        let id = run["id"].as_str().unwrap();
        for part in [
            "",
            "/log?format=text",
            "/log?format=json",
            "/events",
            "/why",
            "/outline",
        ] {
            waiting.push(format!("/api/v1/runs/{id}{part}"));
        }
    }
    let mut answered = 0;
    while let Some(path) = waiting.pop() {
        let url = format!("{}{path}", server.url);
        let request = http.get(&url).bearer_auth(&server.token);
        let answer = request
            .timeout(Duration::from_secs(20))
            .send()
            .await
            .unwrap();
        if answer.status().is_success() {
            answered += 1;
        }
        let bytes = answer.bytes().await.unwrap_or_default();
        if path.ends_with("/deliveries") {
            let list: Value = serde_json::from_slice(&bytes).unwrap();
            for delivery in list["items"].as_array().unwrap() {
                let id = delivery["id"].as_str().unwrap();
                waiting.push(format!("/api/v1/deliveries/{id}"));
            }
        }
        search_all(canaries, &path, &bytes, found);
    }
    assert!(answered >= 30, "{answered} answers");
}

/// Searches the folder of the server and temporary files, and checks their permissions.
fn search_files(
    server: &TestServer,
    began: SystemTime,
    test_folders: &[&Path],
    canaries: &[Canary],
    found: &mut BTreeSet<String>,
) {
    let data = server.data_dir();
    let own = data.parent().unwrap();
    let mut searched = 0;
    for file in list_files(&data) {
        let bytes = fs::read(&file).unwrap_or_default();
        let name = file.strip_prefix(own).unwrap().display().to_string();
        let mode = fs::metadata(&file).map_or(0, |found| found.permissions().mode() & 0o777);
        let inside_blobs = name.starts_with("data/blobs/");
        if mode & 0o077 != 0 && !inside_blobs {
            found.insert(format!("{name} has mode {mode:o}"));
        }
        search_all(canaries, &name, &bytes, found);
        searched += 1;
    }
    assert!(searched >= 4, "{searched} files in {}", data.display());
    for folder in ["data/blobs", "data/runner"] {
        let mode = fs::metadata(own.join(folder)).unwrap().permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            found.insert(format!("{folder} has mode {mode:o}"));
        }
    }
    for file in list_files(&std::env::temp_dir()) {
        let excluded =
            file.starts_with(own) || test_folders.iter().any(|path| file.starts_with(path));
        let Ok(meta) = fs::metadata(&file) else {
            continue;
        };
        let new = meta.modified().is_ok_and(|time| time >= began);
        if excluded || !new || meta.len() > 32 << 20 {
            continue;
        }
        let bytes = fs::read(&file).unwrap_or_default();
        // Files of other tests contain the password of the shared registry.
        let canaries = canaries
            .iter()
            .filter(|canary| canary.way != "password for a registry");
        for canary in canaries {
            canary.search(&file.display().to_string(), &bytes, found);
        }
    }
}
