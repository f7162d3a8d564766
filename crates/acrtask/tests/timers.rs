//! Tests of `acrtask task timer`, `task trigger-url` and `task show` against a mock server.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::{Command, Stdio};

use serde_json::{Value, json};
use wiremock::{
    Mock, MockServer, ResponseTemplate,
    matchers::{body_json, method, path, query_param},
};

/// Runs the program as a client of `server`; returns exit code and both streams as one text.
async fn output_of(server: &MockServer, args: &[&str]) -> String {
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
        .stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap())
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

async fn mount_response(server: &MockServer, verb: &str, at: &str, status: u16, body: Value) {
    Mock::given(method(verb))
        .and(path(format!("/api/v1/tasks/{at}")))
        .respond_with(ResponseTemplate::new(status).set_body_json(body))
        .mount(server)
        .await;
}

/// Mounts an endpoint that expects exactly this timer.
async fn expect_timer(server: &MockServer, timer: &str, body: Value) {
    Mock::given(method("PUT"))
        .and(path(format!("/api/v1/tasks/app/timers/{timer}")))
        .and(body_json(body))
        .respond_with(ResponseTemplate::new(200).set_body_json(json!({})))
        .expect(1)
        .mount(server)
        .await;
}

/// Starts a server whose task has one timer.
async fn server_with_a_timer() -> MockServer {
    let server = MockServer::start().await;
    let timers = json!([{"name": "t1", "schedule": "0 3 * * *", "enabled": true, "jitter": "5m"}]);
    mount_response(&server, "GET", "app/timers", 200, timers).await;
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn timers_are_added_updated_and_removed() {
    let server = server_with_a_timer().await;
    let new = json!({"schedule": "*/5 * * * *", "enabled": true, "timezone": "Europe/Berlin", "missed": "skip"});
    expect_timer(&server, "t2", new).await;
    let add = ["task", "timer", "add", "app", "--schedule"];
    let flags = [
        "*/5 * * * *",
        "--timezone",
        "Europe/Berlin",
        "--missed",
        "skip",
    ];
    insta::assert_snapshot!(
        "added",
        output_of(&server, &[&add[..], &flags].concat()).await
    );
    let existing = ["0 * * * *", "--timer-name", "t1"];
    insta::assert_snapshot!(
        "taken",
        output_of(&server, &[&add[..], &existing].concat()).await
    );
    let changed = json!({"schedule": "0 3 * * *", "enabled": false});
    expect_timer(&server, "t1", changed).await;
    let update = ["task", "timer", "update", "app", "--timer-name"];
    let flags = ["t1", "--enabled", "false", "--jitter", ""];
    insta::assert_snapshot!(
        "updated",
        output_of(&server, &[&update[..], &flags].concat()).await
    );
    let unchanged = ["t1", "--enabled", "true"];
    insta::assert_snapshot!(
        "same",
        output_of(&server, &[&update[..], &unchanged].concat()).await
    );
    let other = ["t9", "--enabled", "true"];
    insta::assert_snapshot!(
        "missing",
        output_of(&server, &[&update[..], &other].concat()).await
    );
    mount_response(&server, "DELETE", "app/timers/t1", 204, json!({})).await;
    let remove = ["task", "timer", "remove", "-n", "app", "--timer-name", "t1"];
    insta::assert_snapshot!("removed", output_of(&server, &remove).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn trigger_url_is_printed_once() {
    let server = MockServer::start().await;
    let task = json!({"id": "t1", "name": "app", "cmd": "alpine true", "generation": 3,
        "createdAt": "2026-11-25T12:00:00Z", "updatedAt": "2026-11-25T12:00:00Z"});
    mount_response(&server, "GET", "app", 200, task.clone()).await;
    mount_response(&server, "PUT", "app", 200, task).await;
    let url = json!({"path": "/trigger/acrtu_abc_secret", "id": "abc", "createdAt": "2026-11-25T12:00:00Z",
        "allowSet": ["tag"]});
    mount_response(&server, "POST", "app/trigger-url", 201, url).await;
    let create = ["task", "trigger-url", "create", "app", "--allow-set", "tag"];
    insta::assert_snapshot!("url_created", output_of(&server, &create).await);
    let put = server.received_requests().await.unwrap();
    let put = put
        .iter()
        .find(|request| request.method.as_str() == "PUT")
        .unwrap();
    let body: Value = serde_json::from_slice(&put.body).unwrap();
    assert_eq!(body["triggers"]["url"]["allowSet"], json!(["tag"]));
    let none = json!({"code": "not-found", "message": "the task `app` has no trigger URL",
        "help": "`acrtask task trigger-url create app` makes one"});
    mount_response(&server, "GET", "app/trigger-url", 404, none).await;
    let show = ["task", "trigger-url", "show", "app"];
    insta::assert_snapshot!("no_url", output_of(&server, &show).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn task_is_shown_with_its_trigger_history() {
    let server = MockServer::start().await;
    let task = json!({"id": "t1", "name": "app", "cmd": "alpine true", "generation": 3,
        "createdAt": "2026-11-25T12:00:00Z", "updatedAt": "2026-11-25T12:00:00Z"});
    mount_response(&server, "GET", "app", 200, task).await;
    let now = jiff::Timestamp::now();
    let triggers = json!({"items": [
        {"id": "r2", "kind": "timer", "receivedAt": now, "task": "app", "action": "runStarted", "run": "r2", "state": "running",
         "reason": "the timer night fired at 2026-11-25T11:00:00Z",
         "firing": {"timer": "night", "scheduledAt": "2026-11-25T11:00:00Z", "firingCount": 1}},
        {"id": "u1", "kind": "url", "receivedAt": now, "task": "app", "action": "ignored",
         "reason": "the task `app` is disabled"},
    ]});
    Mock::given(method("GET"))
        .and(path("/api/v1/tasks/app/triggers"))
        .and(query_param("limit", "10"))
        .respond_with(ResponseTemplate::new(200).set_body_json(triggers))
        .mount(&server)
        .await;
    let text = output_of(&server, &["task", "show", "app"]).await;
    let text = normalize_ages(&text);
    insta::assert_snapshot!("task_shown", text);
}

/// Replaces the ages that a slow machine produces with `0s ago`.
fn normalize_ages(text: &str) -> String {
    (1..10).fold(text.to_owned(), |text, seconds| {
        text.replace(&format!("{seconds}s ago"), "0s ago")
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn help_of_timer_and_trigger_url() {
    let server = MockServer::start().await;
    for command in [
        &["timer"][..],
        &["timer", "add"],
        &["timer", "update"],
        &["trigger-url", "create"],
    ] {
        let args = [&["task"], command, &["--help"]].concat();
        let text = output_of(&server, &args).await;
        assert!(text.starts_with("exit code: 0\n"), "{text}");
        insta::assert_snapshot!(format!("help_{}", command.join("_")), text);
    }
}
