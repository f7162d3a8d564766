//! Tests of hostile bodies: every JSON parser refuses them quickly.

use std::time::{Duration, Instant};

use axum::{
    body::Body,
    http::{Method, Request, header},
};

use super::testing::TestServer;

/// Time limit for one body in an unoptimized build.
const LIMIT: Duration = Duration::from_secs(10);

fn bombs() -> Vec<(&'static str, String)> {
    vec![
        ("brackets", "[".repeat(1 << 20)),
        ("braces", "{\"a\":".repeat(200_000)),
        (
            "closed brackets",
            format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)),
        ),
        (
            "nested below a known key",
            format!(
                "{{\"spec\":{}{}}}",
                "{\"a\":".repeat(50_000),
                "}".repeat(50_000)
            ),
        ),
        (
            "a long number",
            format!("{{\"name\":{}}}", "9".repeat(1 << 20)),
        ),
        ("a large exponent", "{\"ttlSecs\":1e999999999}".to_owned()),
        (
            "many keys",
            format!(
                "{{{}\"z\":1}}",
                (0..100_000).fold(String::new(), |text, n| text + &format!("\"k{n}\":1,"))
            ),
        ),
        (
            "one key many times",
            format!("{{{}\"name\":\"x\"}}", "\"name\":\"x\",".repeat(100_000)),
        ),
        (
            "escapes",
            format!("{{\"name\":\"{}\"}}", "\\u0000".repeat(500_000)),
        ),
        ("half a surrogate", "{\"name\":\"\\ud800\"}".to_owned()),
        ("white space", " ".repeat(4 << 20)),
        ("more than is read", "x".repeat(32 << 20)),
    ]
}

#[tokio::test]
async fn json_bombs_are_refused_in_time() {
    let server = TestServer::start().await;
    for (name, text) in bombs() {
        for (method, path) in [
            (Method::POST, "/runs"),
            (Method::POST, "/tokens"),
            (Method::PUT, "/secrets/x"),
            (Method::POST, "/auth/exchange"),
        ] {
            let request = Request::builder()
                .method(method)
                .uri(format!("{}{path}", acrtask_api::BASE))
                .header(header::AUTHORIZATION, format!("Bearer {}", server.admin))
                .header(header::CONTENT_TYPE, "application/json")
                .body(Body::from(text.clone()))
                .unwrap();
            let began = Instant::now();
            let response = server.send(request).await;
            let took = began.elapsed();
            assert!(
                response.status.is_client_error(),
                "{name} at {path}: {}",
                response.status
            );
            assert!(took < LIMIT, "{name} at {path}: {took:?}");
            assert!(
                response.body.len() < 64 << 10,
                "{name} at {path}: {} bytes",
                response.body.len()
            );
        }
    }
}
