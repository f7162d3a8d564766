//! Tests of `acrtask cascade` against a mock server: exit code, standard output and standard error.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use wiremock::{
    Mock, MockServer, ResponseTemplate,
    matchers::{body_json, method, path, query_param},
};

/// Runs the program as a client of `server`; returns exit code and both streams as one text.
async fn output_of(server: &MockServer, args: &[&str], input: &'static str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_acrtask"));
    command
        .args(args)
        .current_dir(folder.path())
        .env_clear()
        .env("HOME", folder.path())
        .env("COLUMNS", "100")
        .env("ACRTASK_SERVER", server.uri())
        .env("ACRTASK_TOKEN", "t0k3n")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        // A program that rejects its arguments does not read the input.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    })
    .await
    .unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let text = format!(
        "exit code: {}\n----- stdout -----\n{}----- stderr -----\n{}",
        output.status.code().unwrap_or(-1),
        text(&output.stdout),
        text(&output.stderr)
    );
    text.replace(&server.uri(), "http://SERVER")
}

fn sha(letter: char) -> String {
    format!("sha256:{}", letter.to_string().repeat(64))
}

fn response(status: u16, body: &Value) -> ResponseTemplate {
    ResponseTemplate::new(status).set_body_json(body)
}

async fn mount_response(server: &MockServer, verb: &str, at: &str, status: u16, body: &Value) {
    Mock::given(method(verb))
        .and(path(format!("/api/v1/cascades{at}")))
        .respond_with(response(status, body))
        .mount(server)
        .await;
}

/// Returns a cascade with one task in `state`; a finished one took 2.5 s.
fn cascade(state: &str, phase: &str) -> Value {
    let mut cascade = json!({
        "id": 7, "phase": phase, "createdAt": "2026-01-02T03:04:05Z", "changes": {"r.io/base:1": sha('2')},
        "counts": {state: 1}, "promotion": "none",
        "nodes": [{"task": "app", "state": state, "attempts": 1, "run": "run1", "pins": {"r.io/base:1": sha('2')},
            "startedAt": "2026-01-02T03:04:06Z"}],
        "images": [{"name": "r.io/app:1", "before": sha('8'), "after": sha('9'), "state": "promoted"},
            {"name": "r.io/new:1", "after": sha('9'), "state": "promoted"}]
    });
    if phase == "finished" {
        cascade["finishedAt"] = json!("2026-01-02T03:04:07.5Z");
        cascade["nodes"][0]["endedAt"] = json!("2026-01-02T03:04:07Z");
    }
    if state == "failed" {
        cascade["nodes"][0]["reason"] = json!("the step build failed");
    }
    cascade
}

const PLAN: &str = r#"{
  "changes": [{"image": "docker.io/library/base:1", "from": ["sha256:1111111111111111111111111111111111111111111111111111111111111111"],
    "to": "sha256:2222222222222222222222222222222222222222222222222222222222222222"}],
  "size": {"tasks": 2, "images": 2, "waves": 2},
  "estimate": {"parallel": 4, "totalMs": 90000, "criticalMs": 90000, "workMs": 90000, "guessed": 1},
  "nodes": [
    {"task": "middle", "wave": 0, "images": [{"image": "r.io/middle:1"}], "pins": [{"image": "docker.io/library/base:1",
      "role": "runtime", "from": "sha256:1111111111111111111111111111111111111111111111111111111111111111",
      "to": "sha256:2222222222222222222222222222222222222222222222222222222222222222", "reason": true}], "runMs": 60000},
    {"task": "app", "wave": 1, "after": ["middle"], "images": [{"image": "r.io/app:1"}], "pins": [{"image": "r.io/middle:1",
      "role": "runtime", "from": "sha256:1111111111111111111111111111111111111111111111111111111111111111",
      "outputOf": "middle", "reason": true}]}
  ],
  "refused": [{"message": "own pushes r.io/own:1 -> own: a task that rebuilds its own base would be rebuilt forever", "type": "loop",
    "path": [{"task": "own", "image": "r.io/own:1"}], "tasks": ["own"]}]
}"#;

async fn expect_request(server: &MockServer, verb: &str, at: &str, body: Value, reply: &Value) {
    Mock::given(method(verb))
        .and(path(format!("/api/v1/cascades{at}")))
        .and(body_json(body))
        .respond_with(response(200, reply))
        .expect(1..)
        .mount(server)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plan_is_printed_as_tree_graph_and_json() {
    let server = MockServer::start().await;
    let plan: Value = serde_json::from_str(PLAN).unwrap();
    let request = json!({"reference": "docker.io/library/base:1", "all": false});
    expect_request(&server, "POST", "/plan", request, &plan).await;
    let tree = output_of(&server, &["cascade", "plan", "base:1"], "").await;
    let dot = output_of(&server, &["cascade", "plan", "base:1", "-o", "dot"], "").await;
    let text = output_of(&server, &["cascade", "plan", "base:1", "-o", "json"], "").await;
    insta::assert_snapshot!([tree, dot].join("\n"));
    let (_, text) = text.split_once("----- stdout -----\n").unwrap();
    let (text, _) = text.split_once("----- stderr -----\n").unwrap();
    assert_eq!(serde_json::from_str::<Value>(text).unwrap(), plan);
    // Digest and `--all` are part of the request.
    let digest = sha('3');
    let request =
        json!({"reference": "docker.io/library/base:latest", "digest": digest, "all": true});
    expect_request(&server, "POST", "/plan", request, &plan).await;
    let named = format!("base@{digest}");
    let output = output_of(&server, &["cascade", "plan", "--all", &named], "").await;
    assert!(output.starts_with("exit code: 0"), "{output}");
    expect_request(&server, "POST", "/plan", json!({"all": true}), &plan).await;
    let output = output_of(&server, &["cascade", "plan"], "").await;
    assert!(output.starts_with("exit code: 0"), "{output}");
    let wrong = output_of(&server, &["cascade", "plan", "base:1@sha256:12"], "").await;
    insta::assert_snapshot!("no_such_base", wrong);
}

#[tokio::test(flavor = "multi_thread")]
async fn cascade_list_follows_the_pages() {
    let server = MockServer::start().await;
    for (cursor, id) in [(None, 7), (Some("7"), 6)] {
        let mut item = cascade("succeeded", "finished");
        item["id"] = json!(id);
        let mut page = json!({"items": [item]});
        if cursor.is_none() {
            page["next"] = json!("7");
        }
        let mock = Mock::given(method("GET"))
            .and(path("/api/v1/cascades"))
            .and(query_param("active", "true"))
            .and(query_param("task", "app"));
        let mock = match cursor {
            None => mock.and(query_param("limit", "2")),
            Some(cursor) => mock.and(query_param("cursor", cursor)),
        };
        mock.respond_with(response(200, &page)).mount(&server).await;
    }
    let command = "cascade list --active --task app --limit 2 -o json";
    let args: Vec<&str> = command.split(' ').collect();
    let text = output_of(&server, &args, "").await;
    assert!(
        text.contains("\"id\": 7") && text.contains("\"id\": 6"),
        "{text}"
    );
}

/// Starts a server with a cascade that is finished after the first request.
async fn server_with_finishing_cascade(state: &str) -> MockServer {
    let server = MockServer::start().await;
    let at = "/api/v1/cascades/7";
    Mock::given(path(at))
        .respond_with(response(200, &cascade("running", "active")))
        .up_to_n_times(1)
        .mount(&server)
        .await;
    mount_response(&server, "GET", "/7", 200, &cascade(state, "finished")).await;
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn cascade_is_followed_to_its_end() {
    let mut shown = Vec::new();
    for state in ["succeeded", "failed", "canceled"] {
        let server = server_with_finishing_cascade(state).await;
        let text = output_of(&server, &["cascade", "show", "--follow", "7"], "").await;
        // The duration of a running task depends on this machine's clock.
        let lines = text
            .lines()
            .filter(|line| !line.starts_with("app: running"));
        shown.push(lines.collect::<Vec<_>>().join("\n"));
    }
    insta::assert_snapshot!(shown.join("\n"));
    // In a pipe, the cascade is printed once, regardless of its outcome.
    let server = server_with_finishing_cascade("failed").await;
    mount_response(&server, "GET", "/7", 200, &cascade("failed", "finished")).await;
    let once = output_of(&server, &["cascade", "show", "7", "-o", "json"], "").await;
    assert!(once.starts_with("exit code: 0"), "{once}");
    assert!(once.contains("\"state\": \"running\""), "{once}");
    let json = output_of(
        &server_with_finishing_cascade("failed").await,
        &["cascade", "show", "-f", "7", "-o", "json"],
        "",
    )
    .await;
    assert!(json.starts_with("exit code: 1"), "{json}");
    assert!(json.contains("\"state\": \"failed\""), "{json}");
}

#[tokio::test(flavor = "multi_thread")]
async fn actions_are_sent_to_the_server() {
    let mut shown = Vec::new();
    for action in [
        "pause", "resume", "approve", "cancel", "retry", "promote", "rollback",
    ] {
        let server = MockServer::start().await;
        let at = format!("/7/{action}");
        let mut reply = cascade("succeeded", "finished");
        if action == "rollback" {
            reply["images"][0]["state"] = json!("rolledBack");
            reply["images"][1]["reason"] = json!("the tag did not exist before");
        }
        expect_request(&server, "POST", &at, json!({}), &reply).await;
        shown.push(output_of(&server, &["cascade", action, "7"], "").await);
    }
    let server = MockServer::start().await;
    let problem = json!({"code": "conflict",
        "message": "cascade 7 is finished; `acrtask cascade retry 7` retries its unbuilt tasks"});
    mount_response(&server, "POST", "/7/pause", 409, &problem).await;
    shown.push(output_of(&server, &["cascade", "pause", "7"], "").await);
    insta::assert_snapshot!(shown.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_are_printed_and_set() {
    let server = MockServer::start().await;
    let settings = json!({
        "settleSecs": 30, "parallel": 2, "retries": 1, "retryDelaySecs": 60, "retryFailedAfterSecs": 3600, "priority": -5, "maxDeferrals": 3,
        "timezone": "Europe/Berlin", "quietHours": [{"from": "22:00", "to": "06:00"}],
        "rules": [{"tasks": "app/", "mode": {"canary": {"first": ["app/small"]}}}, {"tasks": "shop/", "mode": "approval"}],
        "promotion": {"tasks": "shop/", "tests": ["shop/e2e"]}
    });
    mount_response(&server, "GET", "/settings", 200, &settings).await;
    let yaml = output_of(&server, &["cascade", "settings"], "").await;
    let (_, file) = yaml.split_once("----- stdout -----\n").unwrap();
    let (file, _) = file.split_once("----- stderr -----\n").unwrap();
    // The printed settings are valid input.
    expect_request(&server, "PUT", "/settings", settings.clone(), &settings).await;
    let file: &'static str = String::leak(file.to_owned());
    let set = output_of(&server, &["cascade", "settings", "set", "-f", "-"], file).await;
    let wrong = output_of(
        &server,
        &["cascade", "settings", "set", "-f", "-"],
        "parallel: 4\nquite: []\n",
    )
    .await;
    let none = output_of(
        &server,
        &["cascade", "settings", "set", "-f", "none.yaml"],
        "",
    )
    .await;
    insta::assert_snapshot!([yaml, set, wrong, none].join("\n"));
}
