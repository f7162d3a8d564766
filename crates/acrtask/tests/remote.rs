//! The program as a client: what a user sees where a server answers, exit code, standard output, standard error, whole.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use wiremock::{
    Mock, MockServer, ResponseTemplate,
    matchers::{header, method, path, query_param},
};

/// The program, in an environment that is the same everywhere.
fn acrtask(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_acrtask"));
    command
        .args(args)
        .current_dir(folder)
        .env_clear()
        .env("HOME", folder)
        .env("COLUMNS", "100")
        .stdin(Stdio::null());
    command
}

/// A client of `server`.
fn client(server: &MockServer, folder: &Path, args: &[&str]) -> Command {
    let mut command = acrtask(folder, args);
    command
        .env("ACRTASK_SERVER", server.uri())
        .env("ACRTASK_TOKEN", "t0k3n");
    command
}

/// Runs it beside the server; what comes back is one text.
async fn seen(mut command: Command, input: &'static str) -> String {
    let output = tokio::task::spawn_blocking(move || {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        child.wait_with_output().unwrap()
    })
    .await
    .unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    format!(
        "exit code: {}\n----- stdout -----\n{}----- stderr -----\n{}",
        output.status.code().unwrap_or(-1),
        text(&output.stdout),
        text(&output.stderr)
    )
}

fn run(state: &str, more: &Value) -> Value {
    let mut run = json!({
        "id": "r1", "state": state, "trigger": "manual", "attempt": 1, "queue": {}, "spec": {},
        "createdAt": "2026-01-02T03:04:05Z", "logLength": 1
    });
    let all = run.as_object_mut().unwrap();
    all.extend(more.as_object().unwrap().clone());
    run
}

fn answer(body: &Value) -> ResponseTemplate {
    ResponseTemplate::new(200).set_body_json(body)
}

fn sse(events: &[Value]) -> ResponseTemplate {
    let mut text = String::from("event: attempt\nid: 0\ndata: {\"attempt\":1}\n\n");
    for (at, event) in events.iter().enumerate() {
        text += &format!("id: {}\ndata: {event}\n\n", at + 1);
    }
    text += "event: end\ndata: {}\n\n";
    ResponseTemplate::new(200).set_body_raw(text, "text/event-stream")
}

/// A server with one run.
async fn server(events: &[Value], run: &Value) -> MockServer {
    let server = MockServer::start().await;
    Mock::given(path("/api/v1/runs/r1/events"))
        .and(header("authorization", "Bearer t0k3n"))
        .respond_with(sse(events))
        .mount(&server)
        .await;
    Mock::given(path("/api/v1/runs/r1"))
        .respond_with(answer(run))
        .mount(&server)
        .await;
    server
}

fn recorded(name: &str) -> Vec<Value> {
    let path = format!(
        "{}/src/render/testdata/{name}.jsonl",
        env!("CARGO_MANIFEST_DIR")
    );
    std::fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

const FOLLOW: [&str; 4] = ["runs", "logs", "-f", "r1"];

#[tokio::test]
async fn a_run_ends_here_as_it_ended_there() {
    let folder = tempfile::tempdir().unwrap();
    for (state, log, more, code) in [
        ("succeeded", "succeeded", json!({}), 0),
        ("failed", "failed", json!({ "reason": "a step failed" }), 1),
        (
            "canceled",
            "interrupted",
            json!({ "reason": "canceled by me" }),
            130,
        ),
        (
            "timed_out",
            "failed",
            json!({ "reason": "it took longer than 1h" }),
            124,
        ),
        (
            "error",
            "failed",
            json!({ "reason": "the engine is gone" }),
            3,
        ),
    ] {
        let server = server(&recorded(log), &run(state, &more)).await;
        let seen = seen(client(&server, folder.path(), &FOLLOW), "").await;
        assert!(
            seen.starts_with(&format!("exit code: {code}\n")),
            "{state}: {seen}"
        );
        // Each event in the words of a run of this machine, and the reason last.
        let name = format!(
            "acrtask__render__tests__a_run_that_{}",
            match log {
                "succeeded" => "succeeds_as_plain_lines",
                "failed" => "fails_as_plain_lines",
                _ => "was_interrupted_as_plain_lines",
            }
        );
        let here = format!(
            "{}/src/render/snapshots/{name}.snap",
            env!("CARGO_MANIFEST_DIR")
        );
        let here = std::fs::read_to_string(here).unwrap();
        let here = here.splitn(3, "---\n").nth(2).unwrap();
        let here = here
            .split("\n-- standard error --")
            .next()
            .unwrap()
            .trim_end();
        let there = seen.split("----- stdout -----\n").nth(1).unwrap();
        let there = there.split("----- stderr -----").next().unwrap().trim_end();
        assert_eq!(there, here, "{state}");
    }
}

/// Its file was refused by the runner: told on standard error, as `acrtask run` tells it of a file of this machine.
#[tokio::test]
async fn a_task_file_that_the_runner_refused() {
    let text = "version: v1.1.0\nsteps:\n  - id: a\n    bild: -t x .\n";
    let event = json!({
        "time": "2026-01-02T03:04:05Z", "run": "r1", "event": "task_file", "name": "acr-task.yaml", "text": text,
        "problems": [{
            "code": "unknown-key", "error": true, "message": "a step has no key `bild`", "help": "write `build`",
            "places": [{ "start": 39, "end": 43, "text": "here" }]
        }]
    });
    let refused = run(
        "failed",
        &json!({ "reason": "the task file was refused", "result": { "refused": true } }),
    );
    let server = server(&[event], &refused).await;
    let folder = tempfile::tempdir().unwrap();
    insta::assert_snapshot!(seen(client(&server, folder.path(), &FOLLOW), "").await);
}

/// It ended before a runner had it: there is no log, and the reason is told all the same.
#[tokio::test]
async fn a_run_that_never_began() {
    let over = run(
        "canceled",
        &json!({ "reason": "canceled by laptop", "attempt": 0 }),
    );
    let server = server(&[], &over).await;
    let folder = tempfile::tempdir().unwrap();
    insta::assert_snapshot!(seen(client(&server, folder.path(), &FOLLOW), "").await);
}

#[tokio::test]
async fn a_login_is_checked_and_stored_for_its_user_alone() {
    let server = MockServer::start().await;
    let me = json!({ "name": "laptop", "scopes": ["read", "run"], "serverVersion": "0.1.0" });
    Mock::given(path("/api/v1/me"))
        .and(header("authorization", "Bearer t0k3n"))
        .respond_with(answer(&me))
        .mount(&server)
        .await;
    let problem =
        json!({ "code": "unauthorized", "message": "the token is wrong, expired or revoked" });
    Mock::given(path("/api/v1/me"))
        .respond_with(ResponseTemplate::new(401).set_body_json(problem))
        .mount(&server)
        .await;
    let folder = tempfile::tempdir().unwrap();
    let uri = server.uri();
    let mut text = String::new();
    for (args, input) in [
        (&["login", &uri][..], "wr0ng\n"),
        (&["whoami"], ""),
        (&["login", &uri], "t0k3n\n"),
        (&["whoami"], ""),
        (&["whoami", "-o", "json"], ""),
        (&["logout"], ""),
        (&["whoami"], ""),
    ] {
        let seen = seen(acrtask(folder.path(), args), input).await;
        text += &format!("$ acrtask {}\n{seen}\n", args.join(" "));
        let config = folder.path().join(".config/acrtask/config.json");
        if args[0] == "login" && input == "t0k3n\n" {
            let mode = std::fs::metadata(&config).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }
    let text = text
        .replace(&uri, "http://SERVER")
        .replace(&folder.path().display().to_string(), "HOME");
    insta::assert_snapshot!(text);
}

/// What is asked of the server: the files, the flags, and nothing of this machine's own logins.
#[tokio::test]
async fn a_run_is_asked_for_with_its_files() {
    let server = MockServer::start().await;
    let context =
        json!({ "id": "c1", "received": 0, "size": 0, "complete": true, "partLimit": 1024 });
    Mock::given(method("POST"))
        .and(path("/api/v1/contexts"))
        .respond_with(answer(&context))
        .mount(&server)
        .await;
    Mock::given(method("POST"))
        .and(path("/api/v1/runs"))
        .respond_with(ResponseTemplate::new(201).set_body_json(run("queued", &json!({}))))
        .mount(&server)
        .await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("acr-task.yaml"), "steps:\n  - cmd: a\n").unwrap();
    std::fs::create_dir(folder.path().join(".docker")).unwrap();
    let login = r#"{"auths":{"reg.example.com":{"auth":"bWU6aHVudGVyMg=="}}}"#;
    std::fs::write(folder.path().join(".docker/config.json"), login).unwrap();
    let args = [
        "run",
        "--no-wait",
        "-r",
        "reg.example.com",
        "--set",
        "a=1",
        "--set-secret",
        "s=hush",
        "--pool",
        "big",
        "--runner-label",
        "disk=ssd",
        "--priority",
        "-2",
        "--timeout",
        "90s",
        "--no-push",
        "--branch",
        "main",
        "--credential",
        "other.example.com=me:env:PW",
        ".",
    ];
    let mut command = client(&server, folder.path(), &args);
    command.env("PW", "s3cret");
    let seen = seen(command, "").await;
    assert_eq!(
        seen,
        "exit code: 0\n----- stdout -----\nr1\n----- stderr -----\n"
    );
    let requests = server.received_requests().await.unwrap();
    let asked = requests
        .iter()
        .find(|request| request.url.path() == "/api/v1/runs")
        .unwrap();
    assert!(asked.headers.contains_key("idempotency-key"));
    let asked: Value = serde_json::from_slice(&asked.body).unwrap();
    insta::assert_json_snapshot!(asked);
}

/// For programs a log is what the runner wrote, byte for byte.
#[tokio::test]
async fn a_log_that_is_over() {
    let lines: String = recorded("succeeded")
        .iter()
        .map(|event| format!("{event}\n"))
        .collect();
    let server = MockServer::start().await;
    Mock::given(path("/api/v1/runs/r1/log"))
        .and(query_param("format", "json"))
        .and(query_param("attempt", "2"))
        .respond_with(
            ResponseTemplate::new(200).set_body_raw(lines.clone(), "application/x-ndjson"),
        )
        .mount(&server)
        .await;
    let folder = tempfile::tempdir().unwrap();
    let args = ["runs", "logs", "r1", "--attempt", "2", "-o", "json"];
    let seen = seen(client(&server, folder.path(), &args), "").await;
    let out = seen.split("----- stdout -----\n").nth(1).unwrap();
    let out = out.split("----- stderr -----").next().unwrap();
    assert_eq!(out, lines);
}
