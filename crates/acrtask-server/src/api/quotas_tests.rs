//! Tests of `quotas.rs`.

use acrtask_api::quota::QuotaKind;
use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use super::*;
use crate::api::testing::TestServer;

async fn list_quotas(server: &TestServer, token: &str, query: &str) -> Vec<Quota> {
    let path = format!("/quotas{query}");
    server
        .send_as(Method::GET, &path, token, None)
        .await
        .json(StatusCode::OK)
}

async fn put_quota(server: &TestServer, body: Value) -> crate::api::testing::TestResponse {
    server.put("/quotas", body).await
}

#[tokio::test]
async fn quotas_are_shown_and_set() {
    let server = TestServer::start().await;
    let all = list_quotas(&server, &server.admin, "").await;
    assert!(all.iter().all(|quota| !quota.set), "{all:?}");
    let set = json!({"subject": "task:*", "kind": "queuedRuns", "limit": 7});
    let now: Vec<Quota> = put_quota(&server, set).await.json(StatusCode::OK);
    assert_eq!(now.len(), 1);
    assert_eq!((now[0].limit, now[0].set), (7, true));
    let back = json!({"subject": "task:*", "kind": "queuedRuns"});
    let now: Vec<Quota> = put_quota(&server, back).await.json(StatusCode::OK);
    assert_eq!((now.len(), now[0].limit, now[0].set), (1, 1_000, false));
    // Without a default, the subject has no limit.
    let set = json!({"subject": "tasks:team/*", "kind": "queuedRuns", "limit": 7});
    let now: Vec<Quota> = put_quota(&server, set).await.json(StatusCode::OK);
    assert_eq!((now.len(), now[0].limit), (1, 7));
    let back = json!({"subject": "tasks:team/*", "kind": "queuedRuns"});
    let now: Vec<Quota> = put_quota(&server, back).await.json(StatusCode::OK);
    assert_eq!(now, []);
    for missing in ["task:nothere", "token:nothere"] {
        let set = json!({"subject": missing, "kind": "queuedRuns", "limit": 7});
        put_quota(&server, set).await.problem(StatusCode::NOT_FOUND);
        let back = json!({"subject": missing, "kind": "queuedRuns"});
        put_quota(&server, back)
            .await
            .json::<Vec<Quota>>(StatusCode::OK);
    }
    for wrong in [
        json!({"subject": "task:*", "kind": "contexts", "limit": 7}),
        json!({"subject": "token:k", "kind": "secrets", "limit": 7}),
        json!({"subject": "task:*", "kind": "queuedRuns", "limit": u64::MAX}),
        json!({"subject": "everybody", "kind": "queuedRuns", "limit": 7}),
        json!({"subject": "task:*", "kind": "cookies", "limit": 7}),
    ] {
        let response = put_quota(&server, wrong.clone()).await;
        response.refused(&wrong.to_string());
    }
}

#[tokio::test]
async fn limited_token_sees_the_quotas_of_its_tasks_and_its_own() {
    let server = TestServer::start().await;
    for name in ["team/app", "prod/app"] {
        let task = json!({"name": name, "cmd": "alpine true"});
        server.post("/tasks", task).await;
        let set = json!({"subject": format!("task:{name}"), "kind": "logBytes", "limit": 9});
        put_quota(&server, set).await;
    }
    let pattern = json!({"subject": "tasks:prod/*", "kind": "queuedRuns", "limit": 9});
    put_quota(&server, pattern).await;
    let token = server
        .create_token(&[Scope::Read, Scope::Run], Some("team/*"))
        .await;
    let seen = list_quotas(&server, &token, "").await;
    assert!(!format!("{seen:?}").contains("prod"), "{seen:?}");
    let own = seen
        .iter()
        .filter(|quota| matches!(quota.subject, QuotaSubject::Token(_)));
    assert!(own.count() > 3, "{seen:?}");
    let of_task = list_quotas(&server, &token, "?task=team%2Fapp").await;
    let logs = of_task
        .iter()
        .find(|quota| quota.kind == QuotaKind::LogBytes);
    assert_eq!(
        logs.map(|quota| (quota.limit, quota.used)),
        Some((9, Some(0)))
    );
    let hidden = server
        .send_as(Method::GET, "/quotas?task=prod%2Fapp", &token, None)
        .await;
    assert_eq!(hidden.status, StatusCode::NOT_FOUND);
}

/// Quotas also count triggered runs. A refused call gets a reason instead of a run.
#[tokio::test]
async fn call_of_a_trigger_url_is_refused_by_the_quota_of_its_task() {
    let server = TestServer::start().await;
    server
        .post("/tasks", json!({"name": "app", "cmd": "alpine true"}))
        .await;
    let made = server.post("/tasks/app/trigger-url", json!({})).await;
    let made: Value = made.json(StatusCode::CREATED);
    let set = json!({"subject": "task:app", "kind": "queuedRuns", "limit": 1});
    put_quota(&server, set).await;
    let url = made["url"].as_str().or(made["path"].as_str()).unwrap();
    let path = &url[url.find("/trigger/").unwrap()..];
    for expected in [StatusCode::CREATED, StatusCode::TOO_MANY_REQUESTS] {
        let request = axum::http::Request::post(path)
            .body(axum::body::Body::empty())
            .unwrap();
        let response = server.send(request).await;
        assert_eq!(response.status, expected, "{}", response.text());
    }
}
