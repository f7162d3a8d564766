//! Limits of clients without a valid credential, through the real listener.

use std::time::{Duration, Instant};

use acrtask_api::admin::Scope;
use acrtask_proto::runner::RegisterRequest;
use acrtask_server::{Config, auth, serve::Server};
use acrtask_store::TokenRow;
use reqwest::{Response, StatusCode};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    place::Place,
    support::{FakeRunner, client},
};

fn http() -> reqwest::Client {
    acrtask_registry::install_crypto_provider();
    reqwest::Client::builder()
        .timeout(Duration::from_secs(20))
        .build()
        .unwrap()
}

fn url(server: &Server, path: &str) -> String {
    format!("http://{}{path}", server.addr())
}

async fn me(server: &Server, token: &str, forwarded: &str) -> Response {
    let request = http().get(url(server, "/api/v1/me")).bearer_auth(token);
    request
        .header("x-forwarded-for", forwarded)
        .send()
        .await
        .unwrap()
}

async fn token(server: &Server) -> String {
    let minted = auth::mint();
    let row = TokenRow {
        name: minted.id.clone(),
        id: minted.id,
        hash: minted.hash,
        scopes: vec![Scope::Run],
        tasks: None,
        pools: Vec::new(),
        created_at: 0,
        expires_at: None,
        last_used_at: None,
        subject: None,
        issuer: None,
    };
    server.app().store.create_token(&row).await.unwrap();
    minted.text.0
}

/// Sends wrong tokens until the address is refused for their number.
async fn exhaust(server: &Server, forwarded: &str) {
    for _ in 0..20 {
        let wrong = me(server, &auth::mint().text.0, forwarded).await;
        assert_eq!(wrong.status(), StatusCode::UNAUTHORIZED);
    }
    let refused = me(server, &auth::mint().text.0, forwarded).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(refused.headers().contains_key("retry-after"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_tokens_block_no_valid_credential_of_their_address() {
    let place = Place::sqlite();
    let server = place.server(Config::default()).await;
    exhaust(&server, "192.0.2.1").await;
    let first_use = me(&server, &token(&server).await, "192.0.2.1").await;
    assert_eq!(first_use.status(), StatusCode::OK);
    // Other kinds of credentials are not counted with tokens.
    for path in ["/trigger/acrtu_x_y", "/api/v1/auth/exchange"] {
        let request = http()
            .post(url(&server, path))
            .json(&serde_json::json!({"token": "x"}));
        let wrong = request.send().await.unwrap();
        assert_eq!(wrong.status(), StatusCode::UNAUTHORIZED, "{path}");
    }
    let runner = FakeRunner::register(&server, "one").await;
    runner.connect(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_are_counted_for_the_client_behind_a_trusted_proxy_only() {
    let place = Place::sqlite();
    let config = Config {
        trusted_proxies: vec!["127.0.0.1".parse().unwrap()],
        ..Config::default()
    };
    let server = place.server(config).await;
    exhaust(&server, "203.0.113.9, 192.0.2.1").await;
    let wrong = auth::mint().text.0;
    let other = me(&server, &wrong, "192.0.2.1, 192.0.2.2").await;
    assert_eq!(other.status(), StatusCode::UNAUTHORIZED);
    drop(server);
    let untrusting = Place::sqlite().server(Config::default()).await;
    exhaust(&untrusting, "192.0.2.1").await;
    let same = me(&untrusting, &wrong, "192.0.2.2").await;
    assert_eq!(same.status(), StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_without_a_valid_credential_end_at_32_kib() {
    let place = Place::sqlite();
    let server = place.server(Config::default()).await;
    let body = serde_json::json!({"token": "x".repeat(40 << 10)});
    let exchange = http()
        .post(url(&server, "/api/v1/auth/exchange"))
        .json(&body);
    let refused = exchange.send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let text = refused.text().await.unwrap();
    assert!(text.contains("32 KiB"), "{text}");
    let request = RegisterRequest {
        token: "x".repeat(40 << 10),
        name: "one".into(),
        ..RegisterRequest::default()
    };
    let refused = client(&server).await.register(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::OutOfRange, "{refused}");
    // With a token the limit is that of a JSON body.
    let token = token(&server).await;
    let large = http()
        .post(url(&server, "/api/v1/runs"))
        .bearer_auth(token)
        .json(&body);
    assert_eq!(
        large.send().await.unwrap().status(),
        StatusCode::BAD_REQUEST
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_trickle_are_refused_with_the_least_pace() {
    let place = Place::sqlite();
    let server = place.server(Config::default()).await;
    let mut stream = TcpStream::connect(server.addr()).await.unwrap();
    let head = "POST /api/v1/auth/exchange HTTP/1.1\r\nhost: localhost\r\n\
                content-type: application/json\r\ncontent-length: 1000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let begun = Instant::now();
    let mut answer = Vec::new();
    loop {
        stream.write_all(b" ").await.unwrap();
        let mut bytes = [0; 4096];
        let read = tokio::time::timeout(Duration::from_millis(500), stream.read(&mut bytes)).await;
        if let Ok(read) = read {
            answer.extend_from_slice(&bytes[..read.unwrap()]);
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(15), "no answer");
    }
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("16 KiB per second"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oldest_anonymous_connection_of_an_address_makes_room() {
    let place = Place::sqlite();
    let server = place.server(Config::default()).await;
    let mut first = TcpStream::connect(server.addr()).await.unwrap();
    let mut silent = Vec::new();
    // More than the limit of one address.
    for _ in 0..600 {
        silent.push(TcpStream::connect(server.addr()).await.unwrap());
    }
    let mut byte = [0];
    let closed = tokio::time::timeout(Duration::from_secs(5), first.read(&mut byte)).await;
    assert_eq!(closed.expect("it is closed soon").unwrap_or(0), 0);
    let answer = http().get(url(&server, "/healthz")).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
}
