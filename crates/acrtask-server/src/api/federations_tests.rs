//! Tests of `federations.rs`.

use axum::http::Method;
use serde_json::json;

use super::*;
use crate::{
    api::testing::{NOW, TestServer},
    oidc::tests::Issuer,
};

fn federation(issuer: &str) -> serde_json::Value {
    json!({
        "name": "github",
        "issuer": issuer,
        "audience": "acrtask",
        "subject": "repo:org/app:ref:refs/heads/*",
        "scopes": ["read", "run"],
        "tasks": "app",
        "ttlSecs": 600,
    })
}

async fn exchange(server: &TestServer, token: &str) -> crate::api::testing::TestResponse {
    let body = json!({ "token": token });
    let request = TestServer::request(Method::POST, "/auth/exchange", None, Some(&body));
    server.send(request).await
}

#[tokio::test]
async fn identity_token_of_a_job_is_exchanged() {
    let server = TestServer::start().await;
    let issuer = Issuer::start().await;
    server
        .put("/federations/github", federation(&issuer.url))
        .await
        .json::<Federation>(StatusCode::OK);
    let token = issuer.token(&issuer.claims(NOW));
    let new: NewToken = exchange(&server, &token).await.json(StatusCode::CREATED);
    assert_eq!(new.token.name, "repo:org/app:ref:refs/heads/main");
    assert_eq!(
        new.token.expires_at,
        Some(acrtask_store::timestamp(NOW + 600_000))
    );
    let secret = new.secret.0;
    let me: acrtask_api::admin::Me = server
        .send_as(Method::GET, "/me", &secret, None)
        .await
        .json(StatusCode::OK);
    assert_eq!(me.scopes, [Scope::Read, Scope::Run]);
    assert_eq!(me.tasks.as_deref(), Some("app"));
    server
        .send_as(Method::GET, "/tokens", &secret, None)
        .await
        .problem(StatusCode::FORBIDDEN);
    server.app.clock.set(NOW + 600_000);
    server
        .send_as(Method::GET, "/me", &secret, None)
        .await
        .problem(StatusCode::UNAUTHORIZED);
    // Without the federation the exchange fails.
    let response = server.delete("/federations/github").await;
    assert_eq!(response.status, StatusCode::NO_CONTENT);
    exchange(&server, &token)
        .await
        .problem(StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn invalid_identity_tokens_are_refused_and_counted() {
    let server = TestServer::start().await;
    for _ in 0..20 {
        exchange(&server, "not a token")
            .await
            .problem(StatusCode::UNAUTHORIZED);
    }
    exchange(&server, "not a token")
        .await
        .problem(StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn too_permissive_federation_is_refused() {
    let server = TestServer::start().await;
    let good = federation("https://token.actions.githubusercontent.com");
    server
        .put("/federations/github", good.clone())
        .await
        .json::<Federation>(StatusCode::OK);
    for (key, value) in [
        ("name", json!("gitlab")),
        ("issuer", json!("http://issuer.example.com")),
        ("issuer", json!("https://me:x@issuer.example.com")),
        ("issuer", json!("issuer")),
        ("audience", json!("")),
        ("subject", json!("*")),
        ("subject", json!("")),
        ("scopes", json!(["admin"])),
        ("scopes", json!([])),
        ("ttlSecs", json!(3601)),
        ("ttlSecs", json!(0)),
    ] {
        let mut wrong = good.clone();
        wrong[key] = value.clone();
        let response = server.put("/federations/github", wrong).await;
        response.refused(&format!("{key} {value}"));
    }
    let listed: Vec<Federation> = server.get("/federations").await.json(StatusCode::OK);
    assert_eq!(listed.len(), 1);
}
