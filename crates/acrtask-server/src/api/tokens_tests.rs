//! Tests of `tokens.rs`.

use axum::http::Method;
use serde_json::json;

use super::*;
use crate::api::testing::{NOW, TestServer};

#[tokio::test]
async fn token_is_created_used_and_revoked() {
    let server = TestServer::start().await;
    let body = json!({"name": "ci", "scopes": ["read", "run"], "tasks": "team/*", "ttlSecs": 60});
    let new: NewToken = server.post("/tokens", body).await.json(StatusCode::CREATED);
    let secret = new.secret.0;
    let me: Me = server
        .send_as(Method::GET, "/me", &secret, None)
        .await
        .json(StatusCode::OK);
    assert_eq!(me.name, "ci");
    assert_eq!(me.scopes, [Scope::Read, Scope::Run]);
    assert_eq!(me.tasks.as_deref(), Some("team/*"));
    let listed = server.get("/tokens").await;
    assert!(!listed.text().contains(secret.rsplit('_').next().unwrap()));
    let tokens: Vec<Token> = listed.json(StatusCode::OK);
    let used = tokens.iter().find(|token| token.name == "ci").unwrap();
    assert_eq!(used.last_used_at, Some(acrtask_store::timestamp(NOW)));
    // The token expires after its lifetime.
    server.app.clock.set(NOW + 60_000);
    let problem = server
        .send_as(Method::GET, "/me", &secret, None)
        .await
        .problem(StatusCode::UNAUTHORIZED);
    assert_eq!(problem.code, "unauthorized");
    server.app.clock.set(NOW + 59_999);
    server
        .send_as(Method::GET, "/me", &secret, None)
        .await
        .json::<Me>(StatusCode::OK);
    let response = server.delete(&format!("/tokens/{}", new.token.id)).await;
    assert_eq!(response.status, StatusCode::NO_CONTENT);
    server
        .send_as(Method::GET, "/me", &secret, None)
        .await
        .problem(StatusCode::UNAUTHORIZED);
    server
        .delete(&format!("/tokens/{}", new.token.id))
        .await
        .problem(StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn first_token_is_created_once() {
    let server = TestServer::start().await;
    assert!(
        auth::create_first_token(&server.app)
            .await
            .unwrap()
            .is_none()
    );
    let tokens: Vec<Token> = server.get("/tokens").await.json(StatusCode::OK);
    let path = format!("/tokens/{}", tokens[0].id);
    let problem = server.delete(&path).await.problem(StatusCode::CONFLICT);
    insta::assert_snapshot!(problem.message);
}

#[tokio::test]
async fn last_unexpiring_admin_token_cannot_be_revoked() {
    let server = TestServer::start().await;
    let tokens: Vec<Token> = server.get("/tokens").await.json(StatusCode::OK);
    let first = format!("/tokens/{}", tokens[0].id);
    // An expiring admin token or a token with fewer rights does not replace it.
    for body in [
        json!({"name": "short", "scopes": ["admin"], "ttlSecs": 3600}),
        json!({"name": "writer", "scopes": ["read", "run", "write"]}),
    ] {
        let made: NewToken = server.post("/tokens", body).await.json(StatusCode::CREATED);
        server.delete(&first).await.problem(StatusCode::CONFLICT);
        // Both of them can be revoked.
        let response = server.delete(&format!("/tokens/{}", made.token.id)).await;
        assert_eq!(response.status, StatusCode::NO_CONTENT);
    }
    let secret = auth::create_admin_token(&server.app.store, "reset", NOW)
        .await
        .unwrap();
    server
        .send_as(Method::GET, "/me", &secret.0, None)
        .await
        .json::<Me>(StatusCode::OK);
    let response = server.delete(&first).await;
    assert_eq!(response.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn invalid_tokens_are_refused() {
    let server = TestServer::start().await;
    for wrong in [
        json!({"name": "", "scopes": ["read"]}),
        json!({"name": "a\u{1b}[2Jb", "scopes": ["read"]}),
        json!({"name": "a\u{9b}2Jb", "scopes": ["read"]}),
        json!({"name": "a\u{202e}b", "scopes": ["read"]}),
        json!({"name": "ci\u{200b}", "scopes": ["read"]}),
        json!({"name": "a\nb", "scopes": ["read"]}),
        json!({"name": "x", "scopes": []}),
        json!({"name": "x", "scopes": ["root"]}),
        json!({"name": "x", "scopes": ["admin"], "tasks": "a"}),
        json!({"name": "x", "scopes": ["read"], "tasks": "a*b"}),
        json!({"name": "x", "scopes": ["read"], "tasks": ""}),
        json!({"name": "x", "scopes": ["read"], "ttlSecs": 0}),
    ] {
        let text = wrong.to_string();
        server.post("/tokens", wrong).await.refused(&text);
    }
}

#[tokio::test]
async fn wrong_tokens_are_limited_per_address() {
    let server = TestServer::start().await;
    let wrong = auth::new_token().text.0;
    let mut last = StatusCode::OK;
    for _ in 0..30 {
        last = server
            .send_as(Method::GET, "/me", &wrong, None)
            .await
            .status;
        if last == StatusCode::TOO_MANY_REQUESTS {
            break;
        }
        assert_eq!(last, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(last, StatusCode::TOO_MANY_REQUESTS);
    let refused = server.send_as(Method::GET, "/me", &wrong, None).await;
    let problem = refused.problem(StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(problem.code, "too-many");
    assert_eq!(refused.headers["retry-after"], "5");
    // A valid token from the same address is accepted, even at its first use.
    server.get("/me").await.json::<Me>(StatusCode::OK);
    server.app.clock.set(NOW + 5000);
    let response = server.send_as(Method::GET, "/me", &wrong, None).await;
    assert_eq!(response.status, StatusCode::UNAUTHORIZED);
    // A valid token is never locked out.
    for _ in 0..30 {
        server.send_as(Method::GET, "/me", &wrong, None).await;
    }
    server.get("/me").await.json::<Me>(StatusCode::OK);
}

#[tokio::test]
async fn malformed_tokens_are_refused_with_a_challenge() {
    let server = TestServer::start().await;
    for header in ["", "Bearer", "Bearer x", "Basic YTpi", "bearer acrt_x_y"] {
        let mut request = TestServer::request(Method::GET, "/me", None, None);
        request
            .headers_mut()
            .insert("authorization", header.parse().unwrap());
        let response = server.send(request).await;
        response.problem(StatusCode::UNAUTHORIZED);
        assert_eq!(response.headers["www-authenticate"], "Bearer");
    }
    // The case of the scheme does not matter.
    let mut request = TestServer::request(Method::GET, "/me", None, None);
    let header = format!("bearer {}", server.admin);
    request
        .headers_mut()
        .insert("authorization", header.parse().unwrap());
    server.send(request).await.json::<Me>(StatusCode::OK);
}
