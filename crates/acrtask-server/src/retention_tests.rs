//! Tests of `retention.rs`.

use std::time::Duration;

use acrtask_api::run::RunResult;
use acrtask_model::RunState;
use acrtask_store::TokenRow;
use bytes::Bytes;

use super::*;
use crate::{
    Config,
    api::testing::{NOW, TestServer},
};

#[tokio::test]
async fn old_data_is_removed_with_its_blobs() {
    let day = 24 * 3_600_000;
    let server = TestServer::with(Config {
        retention: Duration::from_secs(24 * 3600),
        ..Config::default()
    })
    .await;
    let app = &server.app;
    let runner = server.register_runner("one").await;
    let finished = async || {
        let run = server.start_run().await.id;
        let attempt = server.lease_run(&run, &runner).await;
        server.append_log(&run, attempt, &runner, 0, "{}\n").await;
        server
            .finish_run(
                &run,
                attempt,
                &runner,
                RunState::Succeeded,
                "{}\n",
                RunResult::default(),
            )
            .await;
        run
    };
    let old = finished().await;
    let waiting = server.start_run().await.id;
    app.clock.set(NOW + day / 2);
    let young = finished().await;
    app.clock.set(NOW + day + 1);
    let mut left = vec!["logs/left/1/0".to_owned()];
    app.blobs
        .put("logs/left/1/0", Bytes::from_static(b"x"))
        .await
        .unwrap();
    let removed = remove_old(app, &mut left).await.unwrap();
    assert_eq!(
        removed,
        Removed {
            runs: 1,
            contexts: 0,
            blobs: 2,
            tokens: 0,
        }
    );
    assert!(left.is_empty());
    assert!(app.store.run(&old).await.is_err());
    app.store.run(&young).await.unwrap();
    app.store.run(&waiting).await.unwrap();
    let gone = app.blobs.get(&format!("logs/{old}/1/0"), 1 << 20).await;
    assert!(matches!(gone, Err(crate::blobs::BlobError::NotFound(_))));
    app.blobs
        .get(&format!("logs/{young}/1/0"), 1 << 20)
        .await
        .unwrap();
    assert_eq!(
        remove_old(app, &mut left).await.unwrap(),
        Removed::default()
    );
}

#[tokio::test]
async fn expired_tokens_are_removed_a_day_later() {
    let server = TestServer::start().await;
    let body = serde_json::json!({"name": "short", "scopes": ["read"], "ttlSecs": 60});
    server.post("/tokens", body).await;
    let app = &server.app;
    app.clock.set(NOW + 120_000);
    assert_eq!(remove_old(app, &mut Vec::new()).await.unwrap().tokens, 0);
    app.clock.set(NOW + 120_000 + 24 * 3_600_000);
    assert_eq!(remove_old(app, &mut Vec::new()).await.unwrap().tokens, 1);
    assert_eq!(app.store.tokens().await.unwrap().len(), 1);
}

#[tokio::test]
async fn daily_short_lived_tokens_leave_no_rows() {
    let server = TestServer::start().await;
    let app = &server.app;
    for number in 0..3 {
        let token = TokenRow {
            id: format!("t{number}"),
            name: "repo:org/app".into(),
            hash: vec![1],
            scopes: Vec::new(),
            tasks: None,
            created_at: NOW,
            expires_at: Some(NOW + 60_000),
            last_used_at: None,
            subject: Some("repo:org/app".into()),
            issuer: Some("https://issuer.example.com".into()),
            pools: Vec::new(),
        };
        app.store.create_token(&token).await.unwrap();
    }
    let hour = Duration::from_secs(3600);
    crate::runners::new_runner_token(app, Default::default(), hour)
        .await
        .unwrap();
    let there = app.store.count_tokens().await.unwrap();
    app.clock.set(NOW + 26 * 3_600_000);
    assert_eq!(remove_old(app, &mut Vec::new()).await.unwrap().tokens, 4);
    assert_eq!(app.store.count_tokens().await.unwrap(), there - 3);
    assert_eq!(remove_old(app, &mut Vec::new()).await.unwrap().tokens, 0);
}
