//! Tests of `trigger_url.rs`.

use acrtask_api::{
    run::{Page, Run},
    webhook::{OutcomeKind, Trigger},
};
use axum::{
    body::Body,
    http::{Method, Request},
};
use serde_json::{Value, json};

use super::*;
use crate::api::testing::{Answer, NOW, Server};

async fn with_task() -> (Server, String) {
    let server = Server::start().await;
    let task =
        json!({"name": "app", "cmd": "alpine true", "triggers": {"url": {"allowSet": ["tag"]}}});
    server
        .post("/tasks", task)
        .await
        .json::<Task>(StatusCode::CREATED);
    let path = made(&server).await;
    (server, path)
}

async fn made(server: &Server) -> String {
    let answer = server.post("/tasks/app/trigger-url", json!({})).await;
    let new: NewTriggerUrl = answer.json(StatusCode::CREATED);
    new.path.0
}

async fn called(server: &Server, path: &str, key: Option<&str>, body: impl Into<Body>) -> Answer {
    let mut request = Request::builder().method(Method::POST).uri(path);
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    server.send(request.body(body.into()).unwrap()).await
}

async fn triggers(server: &Server) -> Vec<Trigger> {
    let answer = server.get("/tasks/app/triggers").await;
    answer.json::<Page<Trigger>>(StatusCode::OK).items
}

#[tokio::test]
async fn a_call_starts_a_run_of_that_task() {
    let (server, path) = with_task().await;
    server.app.clock.set(NOW + 5_000);
    let called: Called = called(&server, &path, None, r#"{"set": {"tag": "v2"}}"#)
        .await
        .json(StatusCode::CREATED);
    let run: Run = server
        .get(&format!("/runs/{}", called.run))
        .await
        .json(StatusCode::OK);
    assert_eq!(run.task.as_deref(), Some("app"));
    assert_eq!(run.trigger, "url");
    assert_eq!(run.spec.facts.triggered_by, "Url");
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
    assert_eq!(all[0].outcome.what, OutcomeKind::Run);
    let left = server.app.store.unaccounted(NOW + 9_000, 0).await;
    assert_eq!(left.unwrap(), []);
}

#[tokio::test]
async fn the_same_key_is_the_same_run() {
    let (server, path) = with_task().await;
    let first: Called = called(&server, &path, Some("k"), "")
        .await
        .json(StatusCode::CREATED);
    let again: Called = called(&server, &path, Some("k"), "")
        .await
        .json(StatusCode::OK);
    assert_eq!(first, again);
    let other: Called = called(&server, &path, Some("l"), "")
        .await
        .json(StatusCode::CREATED);
    assert_ne!(first, other);
    let refused: Problem = called(&server, &path, Some("k"), r#"{"set": {"tag": "v3"}}"#)
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
async fn what_is_refused_is_accounted_for() {
    let (server, path) = with_task().await;
    let calls: [(Body, StatusCode, &str); 4] = [
        (
            r#"{"set": {"tag": "v", "image": "x"}}"#.into(),
            StatusCode::UNPROCESSABLE_ENTITY,
            "the call sets `image`, which the task does not let calls set",
        ),
        (
            r#"{"noPush": true}"#.into(),
            StatusCode::BAD_REQUEST,
            "the body is not as it should be: unknown field `noPush`",
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
        let problem = called(&server, &path, None, body).await.problem(status);
        assert!(problem.message.starts_with(why), "{problem:?}");
        let all = triggers(&server).await;
        assert_eq!(all.len(), at + 1);
        assert_eq!(all[0].outcome.what, OutcomeKind::Suppressed);
        assert!(all[0].outcome.reason.starts_with(why), "{:?}", all[0]);
    }
}

#[tokio::test]
async fn a_wrong_url_opens_nothing() {
    let (server, path) = with_task().await;
    let token = path.strip_prefix("/trigger/").unwrap();
    assert!(token.starts_with("acrtu_"));
    let mut other = path.clone();
    other.pop();
    other.push(if path.ends_with('A') { 'E' } else { 'A' });
    let as_token = format!("/trigger/{}", server.admin);
    for wrong in [other.as_str(), "/trigger/acrtu_x", "/trigger/x", &as_token] {
        called(&server, wrong, None, "")
            .await
            .problem(StatusCode::UNAUTHORIZED);
    }
    // It is no token of the API either, in either form.
    for token in [token.to_owned(), token.replace("acrtu_", "acrt_")] {
        let answer = server.ask(Method::GET, "/tasks", &token, None).await;
        answer.problem(StatusCode::UNAUTHORIZED);
    }
    assert_eq!(triggers(&server).await, []);
    // One that is replaced or removed is worth nothing.
    let second = made(&server).await;
    called(&server, &path, None, "")
        .await
        .problem(StatusCode::UNAUTHORIZED);
    called(&server, &second, None, "")
        .await
        .json::<Called>(StatusCode::CREATED);
    let answer = server.delete("/tasks/app/trigger-url").await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    called(&server, &second, None, "")
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
    // Guessing has an end.
    for _ in 0..40 {
        called(&server, "/trigger/x", None, "").await;
    }
    called(&server, "/trigger/x", None, "")
        .await
        .problem(StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn what_opens_it_is_shown_once_and_kept_as_a_hash() {
    let (server, path) = with_task().await;
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
async fn calls_have_a_rate() {
    let (server, path) = with_task().await;
    for _ in 0..60 {
        let body = json!({"set": {"no": "x"}}).to_string();
        called(&server, &path, None, body)
            .await
            .problem(StatusCode::UNPROCESSABLE_ENTITY);
    }
    let refused = called(&server, &path, None, "").await;
    assert_eq!(refused.headers["retry-after"], "1");
    refused.problem(StatusCode::TOO_MANY_REQUESTS);
    for _ in 0..2 {
        called(&server, &path, None, "")
            .await
            .problem(StatusCode::TOO_MANY_REQUESTS);
    }
    // They are counted, and shown.
    let begun = std::time::Instant::now();
    loop {
        let url: TriggerUrl = server
            .get("/tasks/app/trigger-url")
            .await
            .json(StatusCode::OK);
        if url.turned_away == 3 {
            assert_eq!(url.turned_away_at, Some(timestamp(NOW)));
            break;
        }
        assert_eq!(url.turned_away, 0);
        assert!(begun.elapsed() < 20 * WRITTEN);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.app.clock.set(NOW + 1_000);
    called(&server, &path, None, "")
        .await
        .json::<Value>(StatusCode::CREATED);
}
