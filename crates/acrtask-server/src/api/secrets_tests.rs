//! Tests of `secrets.rs`.

use axum::http::Method;
use serde_json::json;

use acrtask_api::admin::Scope;
use acrtask_model::ScopeChain;

use super::*;
use crate::api::testing::TestServer;

#[tokio::test]
async fn secret_values_are_encrypted_and_never_returned() {
    let server = TestServer::start().await;
    server
        .post("/tasks", json!({"name": "app", "cmd": "alpine true"}))
        .await
        .json::<serde_json::Value>(StatusCode::CREATED);
    let set = server
        .put("/secrets/npm", json!({"value": "hunter2"}))
        .await;
    assert!(!set.text().contains("hunter2"));
    set.json::<Secret>(StatusCode::OK);
    server
        .put("/secrets/npm", json!({"value": "hunter3", "task": "app"}))
        .await
        .json::<Secret>(StatusCode::OK);
    let listed = server.get("/secrets").await;
    assert!(!listed.text().contains("hunter"));
    let secrets: Vec<Secret> = listed.json(StatusCode::OK);
    let tasks: Vec<Option<&str>> = secrets
        .iter()
        .map(|secret| secret.task.as_deref())
        .collect();
    assert_eq!(tasks, [None, Some("app")]);
    let of_task: Vec<Secret> = server.get("/secrets?task=app").await.json(StatusCode::OK);
    assert_eq!(of_task.len(), 1);
    // The stored value is encrypted, and opens only for this secret.
    let store = &server.app.store;
    let sealed = store.secret(&ScopeChain::shared(), "npm").await;
    let (_, sealed) = sealed.unwrap().unwrap();
    assert!(!sealed.windows(7).any(|window| window == b"hunter2"));
    let vault = &server.app.vault;
    let opened = vault
        .open(&run_factory::secret_aad("", "npm"), &sealed)
        .unwrap();
    assert_eq!(opened.expose(), "hunter2");
    vault
        .open(&run_factory::secret_aad("", "other"), &sealed)
        .unwrap_err();
    let files = std::fs::read(server.folder.path().join("db.sqlite")).unwrap();
    assert!(!files.windows(7).any(|window| window == b"hunter2"));
    // A limited token sees only the secrets of its tasks.
    let limited = server.create_token(&[Scope::Read], Some("app")).await;
    let seen: Vec<Secret> = server
        .send_as(Method::GET, "/secrets", &limited, None)
        .await
        .json(StatusCode::OK);
    assert_eq!(seen.len(), 1);
    let response = server.delete("/secrets/npm?task=app").await;
    assert_eq!(response.status, StatusCode::NO_CONTENT);
    server
        .delete("/secrets/npm?task=app")
        .await
        .problem(StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn stored_and_sent_secrets_have_the_same_checks() {
    let server = TestServer::start().await;
    server
        .post("/tasks", json!({"name": "app", "cmd": "alpine true"}))
        .await
        .json::<serde_json::Value>(StatusCode::CREATED);
    let spec = json!({"source": {"type": "cmd", "line": "alpine true"}});
    let login = |password: &str| json!({"host": "h", "username": "u", "password": password});
    let large = "x".repeat((64 << 10) + 1);
    let most = "x".repeat(64 << 10);
    for wrong in ["", "abc", " abc\n", &large] {
        let refused = [
            server.put("/secrets/a", json!({"value": wrong})).await,
            server
                .put(
                    "/credentials/h",
                    json!({"username": "u", "password": wrong}),
                )
                .await,
            server
                .post("/runs", json!({"spec": spec, "secrets": {"a": wrong}}))
                .await,
            server
                .post(
                    "/runs",
                    json!({"spec": spec, "credentials": [login(wrong)]}),
                )
                .await,
            server
                .post("/tasks/app/runs", json!({"secrets": {"a": wrong}}))
                .await,
        ];
        for (at, response) in refused.into_iter().enumerate() {
            response.refused(&format!("{at}: {wrong:.9}"));
            assert!(response.text().len() < 1000, "{at}");
        }
    }
    for good in ["abcd", &most] {
        let body = json!({"spec": spec, "secrets": {"a": good}, "credentials": [login(good)]});
        let response = server.post("/runs", body).await;
        assert_eq!(response.status, StatusCode::CREATED, "{}", response.text());
    }
    // Each secret is within the limit, but their total is not.
    let many: std::collections::BTreeMap<String, &str> =
        (0..4).map(|at| (format!("s{at}"), most.as_str())).collect();
    for (path, body) in [
        ("/runs", json!({"spec": spec, "secrets": many})),
        ("/tasks/app/runs", json!({"secrets": many})),
    ] {
        let problem = server.post(path, body).await;
        let problem = problem.refused(path);
        let expected =
            "`secrets` and `credentials` of the run have 257 KiB, and the limit is 256 KiB";
        assert!(problem.message.starts_with(expected), "{}", problem.message);
    }
    let user = json!({"username": large, "password": "abcd"});
    let response = server.put("/credentials/h", user).await;
    assert_eq!(response.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn invalid_secrets_are_refused() {
    let server = TestServer::start().await;
    for (path, body, status) in [
        (
            "/secrets/a%20b",
            json!({"value": "x"}),
            StatusCode::BAD_REQUEST,
        ),
        ("/secrets/a", json!({"value": ""}), StatusCode::BAD_REQUEST),
        (
            "/secrets/a",
            json!({"value": " abc\n"}),
            StatusCode::UNPROCESSABLE_ENTITY,
        ),
        (
            "/secrets/a",
            json!({"value": "x".repeat(70_000)}),
            StatusCode::BAD_REQUEST,
        ),
        (
            "/secrets/a",
            json!({"value": "hunter2", "task": "nothere"}),
            StatusCode::NOT_FOUND,
        ),
        (
            "/secrets/a",
            json!({"valeu": "hunter2"}),
            StatusCode::BAD_REQUEST,
        ),
    ] {
        let response = server.put(path, body).await;
        assert!(!response.text().contains("hunter2"));
        response.problem(status);
    }
}
