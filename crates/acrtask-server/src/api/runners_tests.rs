//! Tests of `runners.rs`.

use axum::http::Method;
use serde_json::json;

use super::*;
use crate::api::testing::{NOW, TestServer};

#[tokio::test]
async fn runners_are_shown_drained_and_removed() {
    let server = TestServer::start().await;
    server.register_runner("one").await;
    let runners: Vec<Runner> = server.get("/runners").await.json(StatusCode::OK);
    assert_eq!(runners.len(), 1);
    // The runner was connected to another server a moment ago.
    assert_eq!(runners[0].state, RunnerState::Online);
    let drained: Runner = server
        .post("/runners/one/drain", json!({}))
        .await
        .json(StatusCode::OK);
    assert_eq!(drained.state, RunnerState::Draining);
    let resumed: Runner = server
        .post("/runners/one/resume", json!({}))
        .await
        .json(StatusCode::OK);
    assert_eq!(resumed.state, RunnerState::Online);
    // Its last contact is older than a lease.
    server.app.clock.set(NOW + 31_000);
    let shown: Runner = server.get("/runners/one").await.json(StatusCode::OK);
    assert_eq!(shown.state, RunnerState::Offline);
    let response = server.delete("/runners/one").await;
    assert_eq!(response.status, StatusCode::NO_CONTENT);
    server
        .get("/runners/one")
        .await
        .problem(StatusCode::NOT_FOUND);
    for path in ["/runners/one/drain", "/runners/one/resume"] {
        server
            .post(path, json!({}))
            .await
            .problem(StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn limited_tokens_see_the_runners_that_their_tasks_may_use() {
    let server = TestServer::start().await;
    for (name, pool, tasks) in [
        ("all", "default", None),
        ("theirs", "default", Some("team/*")),
        ("others", "default", Some("prod/*")),
        ("big", "big", None),
        ("other", "prod", None),
    ] {
        server.register_runner_for(name, Some(pool), tasks).await;
    }
    let task = json!({"name": "team/app", "cmd": "alpine true"});
    server.post("/tasks", task).await;
    let created =
        json!({"name": "t", "scopes": ["read", "run"], "tasks": "team/*", "pools": ["big"]});
    let token: acrtask_api::admin::NewToken = server
        .post("/tokens", created)
        .await
        .json(StatusCode::CREATED);
    let token = token.secret.0;
    let get = async |path: &str| server.send_as(Method::GET, path, &token, None).await;
    let seen: Vec<Runner> = get("/runners").await.json(StatusCode::OK);
    let mut names: Vec<&str> = seen.iter().map(|runner| runner.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["all", "big", "theirs"]);
    for hidden in ["others", "other"] {
        let problem = get(&format!("/runners/{hidden}")).await;
        let problem = problem.problem(StatusCode::NOT_FOUND);
        assert_eq!(
            problem.message,
            format!("the runner `{hidden}` does not exist")
        );
    }
    get("/runners/theirs").await.json::<Runner>(StatusCode::OK);
    // The reason of a waiting run names no runners of other pools and no tasks of others either.
    let run: acrtask_api::run::Run = server
        .post(
            "/tasks/team/app/runs".replace("team/", "team%2F").as_str(),
            json!({}),
        )
        .await
        .json(StatusCode::CREATED);
    let waiting = get(&format!("/runs/{}/why", run.id)).await;
    let text = waiting.text();
    assert!(
        !text.contains("\"other\"") && !text.contains("prod"),
        "{text}"
    );
    assert!(text.contains("is registered for other tasks"), "{text}");
    let all: Vec<Runner> = server.get("/runners").await.json(StatusCode::OK);
    assert_eq!(all.len(), 5);
}

#[tokio::test]
async fn registration_token_is_created() {
    let server = TestServer::start().await;
    let token: RunnerToken = server
        .send_as(Method::POST, "/runner-tokens", &server.admin, None)
        .await
        .json(StatusCode::CREATED);
    assert!(token.secret.0.starts_with("acrr_"));
    assert_eq!(token.expires_at, acrtask_store::timestamp(NOW + 3_600_000));
    let body = json!({"pool": "big", "labels": {"gpu": "yes"}, "ttlSecs": 60});
    server
        .post("/runner-tokens", body)
        .await
        .json::<RunnerToken>(StatusCode::CREATED);
    let wrong = json!({"pool": "a b", "labels": {"": "x"}, "ttlSecs": 0});
    let problem = server
        .post("/runner-tokens", wrong)
        .await
        .problem(StatusCode::BAD_REQUEST);
    assert_eq!(problem.message.split("; ").count(), 3, "{problem:?}");
}
