//! Tests of `tokens.rs`.

use axum::http::Method;
use serde_json::json;

use super::*;
use crate::api::testing::{NOW, Server};

#[tokio::test]
async fn a_token_is_made_used_and_revoked() {
    let server = Server::start().await;
    let body = json!({"name": "ci", "scopes": ["read", "run"], "tasks": "team/*", "ttlSecs": 60});
    let new: NewToken = server.post("/tokens", body).await.json(StatusCode::CREATED);
    let secret = new.secret.0;
    let me: Me = server
        .ask(Method::GET, "/me", &secret, None)
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
    // It ends by itself.
    server.app.clock.set(NOW + 60_000);
    let problem = server
        .ask(Method::GET, "/me", &secret, None)
        .await
        .problem(StatusCode::UNAUTHORIZED);
    assert_eq!(problem.code, "unauthorized");
    server.app.clock.set(NOW + 59_999);
    server
        .ask(Method::GET, "/me", &secret, None)
        .await
        .json::<Me>(StatusCode::OK);
    let answer = server.delete(&format!("/tokens/{}", new.token.id)).await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    server
        .ask(Method::GET, "/me", &secret, None)
        .await
        .problem(StatusCode::UNAUTHORIZED);
    server
        .delete(&format!("/tokens/{}", new.token.id))
        .await
        .problem(StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_first_token_is_made_once() {
    let server = Server::start().await;
    assert!(auth::bootstrap(&server.app).await.unwrap().is_none());
    let tokens: Vec<Token> = server.get("/tokens").await.json(StatusCode::OK);
    let path = format!("/tokens/{}", tokens[0].id);
    let problem = server.delete(&path).await.problem(StatusCode::CONFLICT);
    insta::assert_snapshot!(problem.message);
}

#[tokio::test]
async fn the_last_lasting_admin_token_stays() {
    let server = Server::start().await;
    let tokens: Vec<Token> = server.get("/tokens").await.json(StatusCode::OK);
    let first = format!("/tokens/{}", tokens[0].id);
    // An expiring administrator, or a token that may do less, replaces it not.
    for body in [
        json!({"name": "short", "scopes": ["admin"], "ttlSecs": 3600}),
        json!({"name": "writer", "scopes": ["read", "run", "write"]}),
    ] {
        let made: NewToken = server.post("/tokens", body).await.json(StatusCode::CREATED);
        server.delete(&first).await.problem(StatusCode::CONFLICT);
        // Either may go itself.
        let answer = server.delete(&format!("/tokens/{}", made.token.id)).await;
        assert_eq!(answer.status, StatusCode::NO_CONTENT);
    }
    let secret = auth::new_admin_token(&server.app.store, "reset", NOW)
        .await
        .unwrap();
    server
        .ask(Method::GET, "/me", &secret.0, None)
        .await
        .json::<Me>(StatusCode::OK);
    let answer = server.delete(&first).await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn a_token_that_makes_no_sense_is_refused() {
    let server = Server::start().await;
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
async fn guessing_is_slowed_down() {
    let server = Server::start().await;
    let wrong = auth::mint().text.0;
    let mut last = StatusCode::OK;
    for _ in 0..30 {
        last = server.ask(Method::GET, "/me", &wrong, None).await.status;
        if last == StatusCode::TOO_MANY_REQUESTS {
            break;
        }
        assert_eq!(last, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(last, StatusCode::TOO_MANY_REQUESTS);
    let refused = server.ask(Method::GET, "/me", &wrong, None).await;
    let problem = refused.problem(StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(problem.code, "too-many");
    assert_eq!(refused.headers["retry-after"], "5");
    // A valid token from the same address passes, though it was never used before.
    server.get("/me").await.json::<Me>(StatusCode::OK);
    server.app.clock.set(NOW + 5000);
    let answer = server.ask(Method::GET, "/me", &wrong, None).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    // Once it was right, nobody locks it out.
    for _ in 0..30 {
        server.ask(Method::GET, "/me", &wrong, None).await;
    }
    server.get("/me").await.json::<Me>(StatusCode::OK);
}

#[tokio::test]
async fn what_is_no_token_is_told() {
    let server = Server::start().await;
    for header in ["", "Bearer", "Bearer x", "Basic YTpi", "bearer acrt_x_y"] {
        let mut request = Server::request(Method::GET, "/me", None, None);
        request
            .headers_mut()
            .insert("authorization", header.parse().unwrap());
        let answer = server.send(request).await;
        answer.problem(StatusCode::UNAUTHORIZED);
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
    }
    // The scheme is written in any case.
    let mut request = Server::request(Method::GET, "/me", None, None);
    let header = format!("bearer {}", server.admin);
    request
        .headers_mut()
        .insert("authorization", header.parse().unwrap());
    server.send(request).await.json::<Me>(StatusCode::OK);
}
