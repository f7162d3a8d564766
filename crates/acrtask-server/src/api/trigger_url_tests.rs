//! Tests of `trigger_url.rs`.

use acrtask_api::{
    run::{Page, Run},
    webhook::{DecisionAction, Trigger},
};
use axum::{
    body::Body,
    http::{Method, Request},
};
use serde_json::{Value, json};

use super::*;
use crate::api::testing::{NOW, TestResponse, TestServer};

async fn server_with_url() -> (TestServer, String) {
    let server = TestServer::start().await;
    let task =
        json!({"name": "app", "cmd": "alpine true", "triggers": {"url": {"allowSet": ["tag"]}}});
    server
        .post("/tasks", task)
        .await
        .json::<Task>(StatusCode::CREATED);
    let path = create_url(&server).await;
    (server, path)
}

async fn create_url(server: &TestServer) -> String {
    let response = server.post("/tasks/app/trigger-url", json!({})).await;
    let new: NewTriggerUrl = response.json(StatusCode::CREATED);
    new.path.0
}

async fn call_url(
    server: &TestServer,
    path: &str,
    key: Option<&str>,
    body: impl Into<Body>,
) -> TestResponse {
    let mut request = Request::builder().method(Method::POST).uri(path);
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    server.send(request.body(body.into()).unwrap()).await
}

async fn triggers(server: &TestServer) -> Vec<Trigger> {
    let response = server.get("/tasks/app/triggers").await;
    response.json::<Page<Trigger>>(StatusCode::OK).items
}

#[tokio::test]
async fn call_starts_a_run_of_the_task() {
    let (server, path) = server_with_url().await;
    server.app.clock.set(NOW + 5_000);
    let called: TriggeredRun = call_url(&server, &path, None, r#"{"set": {"tag": "v2"}}"#)
        .await
        .json(StatusCode::CREATED);
    let run: Run = server
        .get(&format!("/runs/{}", called.run))
        .await
        .json(StatusCode::OK);
    assert_eq!(run.task.as_deref(), Some("app"));
    assert_eq!(run.trigger, "url");
    assert_eq!(run.spec.variables.triggered_by, "Url");
    assert_eq!(run.spec.set["tag"], "v2");
    assert_eq!(run.spec.untrusted_values, ["tag".to_owned()].into());
    let url: TriggerUrl = server
        .get("/tasks/app/trigger-url")
        .await
        .json(StatusCode::OK);
    assert_eq!(url.last_used_at, Some(timestamp(NOW + 5_000)));
    assert_eq!(url.created_by.as_deref(), Some("admin"));
    assert_eq!(url.allow_set, ["tag"]);
    let all = triggers(&server).await;
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].kind, "url");
    assert_eq!(all[0].decision.action, DecisionAction::RunStarted);
    let left = server.app.store.unaccounted_triggers(NOW + 9_000, 0).await;
    assert_eq!(left.unwrap(), []);
}

#[tokio::test]
async fn same_key_returns_the_same_run() {
    let (server, path) = server_with_url().await;
    let first: TriggeredRun = call_url(&server, &path, Some("k"), "")
        .await
        .json(StatusCode::CREATED);
    let again: TriggeredRun = call_url(&server, &path, Some("k"), "")
        .await
        .json(StatusCode::OK);
    assert_eq!(first, again);
    let other: TriggeredRun = call_url(&server, &path, Some("l"), "")
        .await
        .json(StatusCode::CREATED);
    assert_ne!(first, other);
    let refused: Problem = call_url(&server, &path, Some("k"), r#"{"set": {"tag": "v3"}}"#)
        .await
        .json(StatusCode::CONFLICT);
    assert!(
        refused.message.contains(first.run.as_str()),
        "{}",
        refused.message
    );
    assert_eq!(triggers(&server).await.len(), 2);
}

#[tokio::test]
async fn refused_calls_are_recorded_with_a_reason() {
    let (server, path) = server_with_url().await;
    let calls: [(Body, StatusCode, &str); 4] = [
        (
            r#"{"set": {"tag": "v", "image": "x"}}"#.into(),
            StatusCode::UNPROCESSABLE_ENTITY,
            "the call sets `image`, which the task does not allow",
        ),
        (
            r#"{"noPush": true}"#.into(),
            StatusCode::BAD_REQUEST,
            "the body is invalid: unknown field `noPush`",
        ),
        (
            vec![b' '; MAX_BODY + 1].into(),
            StatusCode::PAYLOAD_TOO_LARGE,
            "the body is larger than 32 KiB, the limit of a call",
        ),
        (
            Body::empty(),
            StatusCode::CONFLICT,
            "the task `app` is disabled",
        ),
    ];
    for (at, (body, status, why)) in calls.into_iter().enumerate() {
        if status == StatusCode::CONFLICT {
            server.post("/tasks/app/disable", json!({})).await;
        }
        server.app.clock.set(NOW + i64::try_from(at).unwrap());
        let problem = call_url(&server, &path, None, body).await.problem(status);
        assert!(problem.message.starts_with(why), "{problem:?}");
        let all = triggers(&server).await;
        assert_eq!(all.len(), at + 1);
        assert_eq!(all[0].decision.action, DecisionAction::Ignored);
        assert!(all[0].decision.reason.starts_with(why), "{:?}", all[0]);
    }
}

#[tokio::test]
async fn wrong_trigger_url_is_refused() {
    let (server, path) = server_with_url().await;
    let token = path.strip_prefix("/trigger/").unwrap();
    assert!(token.starts_with("acrtu_"));
    let mut other = path.clone();
    other.pop();
    other.push(if path.ends_with('A') { 'E' } else { 'A' });
    let as_token = format!("/trigger/{}", server.admin);
    for wrong in [other.as_str(), "/trigger/acrtu_x", "/trigger/x", &as_token] {
        call_url(&server, wrong, None, "")
            .await
            .problem(StatusCode::UNAUTHORIZED);
    }
    // The secret is not a token of the API either, with either prefix.
    for token in [token.to_owned(), token.replace("acrtu_", "acrt_")] {
        let response = server.send_as(Method::GET, "/tasks", &token, None).await;
        response.problem(StatusCode::UNAUTHORIZED);
    }
    assert_eq!(triggers(&server).await, []);
    // A replaced or deleted URL is refused.
    let second = create_url(&server).await;
    call_url(&server, &path, None, "")
        .await
        .problem(StatusCode::UNAUTHORIZED);
    call_url(&server, &second, None, "")
        .await
        .json::<TriggeredRun>(StatusCode::CREATED);
    let response = server.delete("/tasks/app/trigger-url").await;
    assert_eq!(response.status, StatusCode::NO_CONTENT);
    call_url(&server, &second, None, "")
        .await
        .problem(StatusCode::UNAUTHORIZED);
    server
        .get("/tasks/app/trigger-url")
        .await
        .problem(StatusCode::NOT_FOUND);
    server
        .delete("/tasks/app/trigger-url")
        .await
        .problem(StatusCode::NOT_FOUND);
    // Wrong URLs are limited per address.
    for _ in 0..40 {
        call_url(&server, "/trigger/x", None, "").await;
    }
    call_url(&server, "/trigger/x", None, "")
        .await
        .problem(StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn secret_of_a_trigger_url_is_stored_only_as_a_hash() {
    let (server, path) = server_with_url().await;
    let shown = server.get("/tasks/app/trigger-url").await.text();
    let secret = path.rsplit('_').next().unwrap();
    assert!(!shown.contains(secret), "{shown}");
    let database = std::fs::read(server.folder.path().join("db.sqlite")).unwrap();
    let log = std::fs::read(server.folder.path().join("db.sqlite-wal")).unwrap();
    for bytes in [database, log] {
        let found = bytes
            .windows(secret.len())
            .any(|window| window == secret.as_bytes());
        assert!(!found);
    }
}

#[tokio::test]
async fn calls_are_rate_limited() {
    let (server, path) = server_with_url().await;
    for _ in 0..60 {
        let body = json!({"set": {"no": "x"}}).to_string();
        call_url(&server, &path, None, body)
            .await
            .problem(StatusCode::UNPROCESSABLE_ENTITY);
    }
    let refused = call_url(&server, &path, None, "").await;
    assert_eq!(refused.headers["retry-after"], "1");
    refused.problem(StatusCode::TOO_MANY_REQUESTS);
    for _ in 0..2 {
        call_url(&server, &path, None, "")
            .await
            .problem(StatusCode::TOO_MANY_REQUESTS);
    }
    // Rejected calls are counted and shown.
    let begun = std::time::Instant::now();
    loop {
        let url: TriggerUrl = server
            .get("/tasks/app/trigger-url")
            .await
            .json(StatusCode::OK);
        if url.rejected_calls == 3 {
            assert_eq!(url.last_rejected_at, Some(timestamp(NOW)));
            break;
        }
        assert_eq!(url.rejected_calls, 0);
        assert!(begun.elapsed() < 20 * REJECTED_CALLS_DELAY);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.app.clock.set(NOW + 1_000);
    call_url(&server, &path, None, "")
        .await
        .json::<Value>(StatusCode::CREATED);
}
