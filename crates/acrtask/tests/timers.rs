//! `acrtask task timer`, `task trigger-url` and what `task show` says of triggers, beside a server that answers as one does.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::{Command, Stdio};

use serde_json::{Value, json};
use wiremock::{
    Mock, MockServer, ResponseTemplate,
    matchers::{body_json, method, path, query_param},
};

/// Runs the program as a client of `server`; what comes back is one text.
async fn seen(server: &MockServer, args: &[&str]) -> String {
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

async fn answers(server: &MockServer, verb: &str, at: &str, status: u16, body: Value) {
    Mock::given(method(verb))
        .and(path(format!("/api/v1/tasks/{at}")))
        .respond_with(ResponseTemplate::new(status).set_body_json(body))
        .mount(server)
        .await;
}

/// The server takes this timer, and no other one.
async fn takes(server: &MockServer, timer: &str, body: Value) {
    Mock::given(method("PUT"))
        .and(path(format!("/api/v1/tasks/app/timers/{timer}")))
        .and(body_json(body))
        .respond_with(ResponseTemplate::new(200).set_body_json(json!({})))
        .expect(1)
        .mount(server)
        .await;
}

/// A server whose task has one timer.
async fn with_a_timer() -> MockServer {
    let server = MockServer::start().await;
    let timers = json!([{"name": "t1", "schedule": "0 3 * * *", "enabled": true, "jitter": "5m"}]);
    answers(&server, "GET", "app/timers", 200, timers).await;
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn timers_are_added_and_changed() {
    let server = with_a_timer().await;
    let new = json!({"schedule": "*/5 * * * *", "enabled": true, "timezone": "Europe/Berlin", "missed": "skip"});
    takes(&server, "t2", new).await;
    let add = ["task", "timer", "add", "app", "--schedule"];
    let how = [
        "*/5 * * * *",
        "--timezone",
        "Europe/Berlin",
        "--missed",
        "skip",
    ];
    insta::assert_snapshot!("added", seen(&server, &[&add[..], &how].concat()).await);
    let again = ["0 * * * *", "--timer-name", "t1"];
    insta::assert_snapshot!("taken", seen(&server, &[&add[..], &again].concat()).await);
    let changed = json!({"schedule": "0 3 * * *", "enabled": false});
    takes(&server, "t1", changed).await;
    let update = ["task", "timer", "update", "app", "--timer-name"];
    let how = ["t1", "--enabled", "false", "--jitter", ""];
    insta::assert_snapshot!(
        "updated",
        seen(&server, &[&update[..], &how].concat()).await
    );
    let same = ["t1", "--enabled", "true"];
    insta::assert_snapshot!("same", seen(&server, &[&update[..], &same].concat()).await);
    let other = ["t9", "--enabled", "true"];
    insta::assert_snapshot!(
        "missing",
        seen(&server, &[&update[..], &other].concat()).await
    );
    answers(&server, "DELETE", "app/timers/t1", 204, json!({})).await;
    let remove = ["task", "timer", "remove", "-n", "app", "--timer-name", "t1"];
    insta::assert_snapshot!("removed", seen(&server, &remove).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_is_printed_once() {
    let server = MockServer::start().await;
    let task = json!({"id": "t1", "name": "app", "cmd": "alpine true", "generation": 3,
        "createdAt": "2026-11-25T12:00:00Z", "updatedAt": "2026-11-25T12:00:00Z"});
    answers(&server, "GET", "app", 200, task.clone()).await;
    answers(&server, "PUT", "app", 200, task).await;
    let url = json!({"path": "/trigger/acrtu_abc_secret", "id": "abc", "createdAt": "2026-11-25T12:00:00Z",
        "allowSet": ["tag"]});
    answers(&server, "POST", "app/trigger-url", 201, url).await;
    let create = ["task", "trigger-url", "create", "app", "--allow-set", "tag"];
    insta::assert_snapshot!("url_created", seen(&server, &create).await);
    let put = server.received_requests().await.unwrap();
    let put = put.iter().find(|it| it.method.as_str() == "PUT").unwrap();
    let body: Value = serde_json::from_slice(&put.body).unwrap();
    assert_eq!(body["triggers"]["url"]["allowSet"], json!(["tag"]));
    let none = json!({"code": "not-found", "message": "the task `app` has no trigger URL",
        "help": "`acrtask task trigger-url create app` makes one"});
    answers(&server, "GET", "app/trigger-url", 404, none).await;
    let show = ["task", "trigger-url", "show", "app"];
    insta::assert_snapshot!("no_url", seen(&server, &show).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_shown_with_what_its_triggers_led_to() {
    let server = MockServer::start().await;
    let task = json!({"id": "t1", "name": "app", "cmd": "alpine true", "generation": 3,
        "createdAt": "2026-11-25T12:00:00Z", "updatedAt": "2026-11-25T12:00:00Z"});
    answers(&server, "GET", "app", 200, task).await;
    let now = jiff::Timestamp::now();
    let triggers = json!({"items": [
        {"id": "r2", "kind": "timer", "receivedAt": now, "task": "app", "what": "run", "run": "r2", "state": "running",
         "reason": "the timer night ticked at 2026-11-25T11:00:00Z",
         "tick": {"timer": "night", "scheduledAt": "2026-11-25T11:00:00Z", "standsFor": 1}},
        {"id": "u1", "kind": "url", "receivedAt": now, "task": "app", "what": "suppressed",
         "reason": "the task `app` is disabled"},
    ]});
    Mock::given(method("GET"))
        .and(path("/api/v1/tasks/app/triggers"))
        .and(query_param("limit", "10"))
        .respond_with(ResponseTemplate::new(200).set_body_json(triggers))
        .mount(&server)
        .await;
    let text = seen(&server, &["task", "show", "app"]).await;
    let text = ages_alike(&text);
    insta::assert_snapshot!("task_shown", text);
}

/// The text with one age in the place of those that a slow machine makes.
fn ages_alike(text: &str) -> String {
    (1..10).fold(text.to_owned(), |text, seconds| {
        text.replace(&format!("{seconds}s ago"), "0s ago")
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn help() {
    let server = MockServer::start().await;
    for words in [
        &["timer"][..],
        &["timer", "add"],
        &["timer", "update"],
        &["trigger-url", "create"],
    ] {
        let args = [&["task"], words, &["--help"]].concat();
        let text = seen(&server, &args).await;
        assert!(text.starts_with("exit code: 0\n"), "{text}");
        insta::assert_snapshot!(format!("help_{}", words.join("_")), text);
    }
}
