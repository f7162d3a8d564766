//! Client tests against a mock server: exit code, standard output and standard error.

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

/// Returns the program with a fixed environment.
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

/// Returns the program as a client of `server`.
fn client(server: &MockServer, folder: &Path, args: &[&str]) -> Command {
    let mut command = acrtask(folder, args);
    command
        .env("ACRTASK_SERVER", server.uri())
        .env("ACRTASK_TOKEN", "t0k3n");
    command
}

/// Runs a command; returns exit code and both streams as one text.
async fn output_of(mut command: Command, input: &'static str) -> String {
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

fn response(body: &Value) -> ResponseTemplate {
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

/// Starts a server with one run.
async fn server(events: &[Value], run: &Value) -> MockServer {
    let server = MockServer::start().await;
    Mock::given(path("/api/v1/runs/r1/events"))
        .and(header("authorization", "Bearer t0k3n"))
        .respond_with(sse(events))
        .mount(&server)
        .await;
    Mock::given(path("/api/v1/runs/r1"))
        .respond_with(response(run))
        .mount(&server)
        .await;
    server
}

fn recorded_events(name: &str) -> Vec<Value> {
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
async fn followed_run_has_the_output_and_exit_code_of_a_local_run() {
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
        let server = server(&recorded_events(log), &run(state, &more)).await;
        let output = output_of(client(&server, folder.path(), &FOLLOW), "").await;
        assert!(
            output.starts_with(&format!("exit code: {code}\n")),
            "{state}: {output}"
        );
        // The output equals that of a local run; the reason comes last.
        let name = format!(
            "acrtask__render__tests__{}_run_as_plain_lines",
            match log {
                "succeeded" => "successful",
                "failed" => "failed",
                _ => "interrupted",
            }
        );
        let path = format!(
            "{}/src/render/snapshots/{name}.snap",
            env!("CARGO_MANIFEST_DIR")
        );
        let expected = std::fs::read_to_string(path).unwrap();
        let expected = expected.splitn(3, "---\n").nth(2).unwrap();
        let expected = expected
            .split("\n-- standard error --")
            .next()
            .unwrap()
            .trim_end();
        let actual = output.split("----- stdout -----\n").nth(1).unwrap();
        let actual = actual
            .split("----- stderr -----")
            .next()
            .unwrap()
            .trim_end();
        assert_eq!(actual, expected, "{state}");
    }
}

/// The runner rejected the task file; the diagnostics look like those of a local file.
#[tokio::test]
async fn rejected_task_file_is_reported_with_diagnostics() {
    let text = "version: v1.1.0\nsteps:\n  - id: a\n    bild: -t x .\n";
    let event = json!({
        "time": "2026-01-02T03:04:05Z", "run": "r1", "event": "task_file", "name": "acr-task.yaml", "text": text,
        "problems": [{
            "code": "unknown-key", "error": true, "message": "a step has no key `bild`", "help": "write `build`",
            "spans": [{ "start": 39, "end": 43, "text": "here" }]
        }]
    });
    let refused = run(
        "failed",
        &json!({ "reason": "the task file was refused", "result": { "refused": true } }),
    );
    let server = server(&[event], &refused).await;
    let folder = tempfile::tempdir().unwrap();
    insta::assert_snapshot!(output_of(client(&server, folder.path(), &FOLLOW), "").await);
}

/// The run ended before a runner leased it, so it has a reason but no log.
#[tokio::test]
async fn run_without_an_attempt_is_reported_with_its_reason() {
    let finished = run(
        "canceled",
        &json!({ "reason": "canceled by laptop", "attempt": 0 }),
    );
    let server = server(&[], &finished).await;
    let folder = tempfile::tempdir().unwrap();
    insta::assert_snapshot!(output_of(client(&server, folder.path(), &FOLLOW), "").await);
}

#[tokio::test]
async fn login_is_checked_and_stored_privately() {
    let server = MockServer::start().await;
    let me = json!({ "name": "laptop", "scopes": ["read", "run"], "serverVersion": "0.1.0" });
    Mock::given(path("/api/v1/me"))
        .and(header("authorization", "Bearer t0k3n"))
        .respond_with(response(&me))
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
        let output = output_of(acrtask(folder.path(), args), input).await;
        text += &format!("$ acrtask {}\n{output}\n", args.join(" "));
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

/// The request contains the files and the flags, but none of this machine's own logins.
#[tokio::test]
async fn run_request_contains_files_and_flags() {
    let server = MockServer::start().await;
    let context =
        json!({ "id": "c1", "received": 0, "size": 0, "complete": true, "partLimit": 1024 });
    Mock::given(method("POST"))
        .and(path("/api/v1/contexts"))
        .respond_with(response(&context))
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
    let output = output_of(command, "").await;
    assert_eq!(
        output,
        "exit code: 0\n----- stdout -----\nr1\n----- stderr -----\n"
    );
    let requests = server.received_requests().await.unwrap();
    let request = requests
        .iter()
        .find(|request| request.url.path() == "/api/v1/runs")
        .unwrap();
    assert!(request.headers.contains_key("idempotency-key"));
    let body: Value = serde_json::from_slice(&request.body).unwrap();
    insta::assert_json_snapshot!(body);
}

/// In JSON form, the log is printed byte for byte.
#[tokio::test]
async fn finished_log_is_printed_unchanged_as_json() {
    let lines: String = recorded_events("succeeded")
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
    let output = output_of(client(&server, folder.path(), &args), "").await;
    let out = output.split("----- stdout -----\n").nth(1).unwrap();
    let out = out.split("----- stderr -----").next().unwrap();
    assert_eq!(out, lines);
}

#[tokio::test]
async fn selected_lines_are_requested_and_printed() {
    let folder = tempfile::tempdir().unwrap();
    let server = MockServer::start().await;
    let line = |number: u64, text: &str| {
        json!({
            "step": "build", "number": number, "time": "2026-01-02T03:04:05Z", "text": text,
        })
    };
    let page = |lines: Value, next: Value| {
        response(&json!({"attempt": 1, "isComplete": true, "lines": lines, "next": next}))
    };
    let lines = || Mock::given(path("/api/v1/runs/r1/lines"));
    lines()
        .and(query_param("step", "build"))
        .and(query_param("cursor", "2"))
        .respond_with(page(json!([line(2, "two\u{1b}[2J")]), Value::Null))
        .mount(&server)
        .await;
    lines()
        .and(query_param("around", "build:7"))
        .respond_with(page(json!([line(7, "seven")]), json!("8")))
        .mount(&server)
        .await;
    lines()
        .and(query_param("tail", "5"))
        .respond_with(page(json!([line(9, "nine")]), Value::Null))
        .mount(&server)
        .await;
    lines()
        .and(query_param("step", "build"))
        .and(query_param("count", "1000"))
        .respond_with(page(json!([line(1, "one")]), json!("2")))
        .mount(&server)
        .await;
    let hit = json!({"type": "hit", "step": "build", "number": 3, "text": "an error"});
    let end = json!({"type": "end", "hits": 1200, "steps": {"build": 1200}, "isComplete": true});
    Mock::given(path("/api/v1/runs/r1/search"))
        .and(query_param("q", "error"))
        .and(query_param("ignoreCase", "true"))
        .respond_with(ResponseTemplate::new(200).set_body_string(format!("{hit}\n{end}\n")))
        .mount(&server)
        .await;
    Mock::given(path("/api/v1/runs/r1/search"))
        .and(query_param("q", "cut"))
        .respond_with(ResponseTemplate::new(200).set_body_string(format!("{hit}\n")))
        .mount(&server)
        .await;
    let mut shown = String::new();
    for args in [
        &["--step", "build"][..],
        &["--around", "build:7"],
        &["--tail", "5"],
        &["--tail", "5", "-o", "json"],
        &["--grep", "error", "--ignore-case"],
        &["--grep", "cut"],
        &["--grep", "x", "--tail", "1"],
    ] {
        let command = client(
            &server,
            folder.path(),
            &[&["runs", "logs", "r1"], args].concat(),
        );
        let output = output_of(command, "").await;
        shown += &format!("$ {}\n{output}\n", args.join(" "));
    }
    insta::assert_snapshot!(shown);
}
