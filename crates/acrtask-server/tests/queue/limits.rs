//! Limits for clients without a valid credential, through the real listener.

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
    support::{FakeRunner, connect_client},
    test_db::TestDb,
};

fn http_client() -> reqwest::Client {
    acrtask_registry::install_crypto_provider();
    reqwest::Client::builder()
        .timeout(Duration::from_secs(20))
        .build()
        .unwrap()
}

fn url_of(server: &Server, path: &str) -> String {
    format!("http://{}{path}", server.addr())
}

async fn get_me(server: &Server, token: &str, forwarded: &str) -> Response {
    let request = http_client()
        .get(url_of(server, "/api/v1/me"))
        .bearer_auth(token);
    request
        .header("x-forwarded-for", forwarded)
        .send()
        .await
        .unwrap()
}

async fn create_api_token(server: &Server) -> String {
    let minted = auth::new_token();
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

/// Sends wrong tokens until the server refuses the address with `429`.
async fn exhaust_failures(server: &Server, forwarded: &str) {
    for _ in 0..20 {
        let wrong = get_me(server, &auth::new_token().text.0, forwarded).await;
        assert_eq!(wrong.status(), StatusCode::UNAUTHORIZED);
    }
    let refused = get_me(server, &auth::new_token().text.0, forwarded).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(refused.headers().contains_key("retry-after"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_tokens_do_not_block_valid_credentials_of_their_address() {
    let db = TestDb::sqlite();
    let server = db.start_server(Config::default()).await;
    exhaust_failures(&server, "192.0.2.1").await;
    let first_use = get_me(&server, &create_api_token(&server).await, "192.0.2.1").await;
    assert_eq!(first_use.status(), StatusCode::OK);
    // Wrong credentials of other kinds have their own counters.
    for path in ["/trigger/acrtu_x_y", "/api/v1/auth/exchange"] {
        let request = http_client()
            .post(url_of(&server, path))
            .json(&serde_json::json!({"token": "x"}));
        let wrong = request.send().await.unwrap();
        assert_eq!(wrong.status(), StatusCode::UNAUTHORIZED, "{path}");
    }
    let runner = FakeRunner::register(&server, "one").await;
    runner.connect(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_are_counted_for_the_client_behind_a_trusted_proxy_only() {
    let db = TestDb::sqlite();
    let config = Config {
        trusted_proxies: vec!["127.0.0.1".parse().unwrap()],
        ..Config::default()
    };
    let server = db.start_server(config).await;
    exhaust_failures(&server, "203.0.113.9, 192.0.2.1").await;
    let wrong = auth::new_token().text.0;
    let other = get_me(&server, &wrong, "192.0.2.1, 192.0.2.2").await;
    assert_eq!(other.status(), StatusCode::UNAUTHORIZED);
    drop(server);
    let untrusting = TestDb::sqlite().start_server(Config::default()).await;
    exhaust_failures(&untrusting, "192.0.2.1").await;
    let same = get_me(&untrusting, &wrong, "192.0.2.2").await;
    assert_eq!(same.status(), StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_without_a_valid_credential_are_limited_to_32_kib() {
    let db = TestDb::sqlite();
    let server = db.start_server(Config::default()).await;
    let body = serde_json::json!({"token": "x".repeat(40 << 10)});
    let exchange = http_client()
        .post(url_of(&server, "/api/v1/auth/exchange"))
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
    let refused = connect_client(&server)
        .await
        .register(request)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), tonic::Code::OutOfRange, "{refused}");
    // With a token the limit of a JSON body applies.
    let token = create_api_token(&server).await;
    let large = http_client()
        .post(url_of(&server, "/api/v1/runs"))
        .bearer_auth(token)
        .json(&body);
    assert_eq!(
        large.send().await.unwrap().status(),
        StatusCode::BAD_REQUEST
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_bodies_are_refused_with_the_minimum_rate() {
    let db = TestDb::sqlite();
    let server = db.start_server(Config::default()).await;
    let mut stream = TcpStream::connect(server.addr()).await.unwrap();
    let head = "POST /api/v1/auth/exchange HTTP/1.1\r\nhost: localhost\r\n\
                content-type: application/json\r\ncontent-length: 1000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let started = Instant::now();
    let mut response = Vec::new();
    loop {
        stream.write_all(b" ").await.unwrap();
        let mut bytes = [0; 4096];
        let read = tokio::time::timeout(Duration::from_millis(500), stream.read(&mut bytes)).await;
        if let Ok(read) = read {
            response.extend_from_slice(&bytes[..read.unwrap()]);
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(15), "no response");
    }
    let response = String::from_utf8_lossy(&response);
    assert!(response.starts_with("HTTP/1.1 408"), "{response}");
    assert!(response.contains("16 KiB per second"), "{response}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oldest_anonymous_connection_of_an_address_is_closed_at_the_limit() {
    let db = TestDb::sqlite();
    let server = db.start_server(Config::default()).await;
    let mut first = TcpStream::connect(server.addr()).await.unwrap();
    let mut silent = Vec::new();
    // 600 connections are more than the limit of one address.
    for _ in 0..600 {
        silent.push(TcpStream::connect(server.addr()).await.unwrap());
    }
    let mut byte = [0];
    let closed = tokio::time::timeout(Duration::from_secs(5), first.read(&mut byte)).await;
    assert_eq!(closed.expect("the server closes it soon").unwrap_or(0), 0);
    let response = http_client()
        .get(url_of(&server, "/healthz"))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::OK);
}
