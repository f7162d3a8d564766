//! Requests to the API with a given token.

use acrtask_tests::service::TestServer;
use serde_json::Value;

/// Creates a token with these scopes, limited to the tasks that match `pattern`.
pub(crate) fn create_limited_token(
    server: &TestServer,
    name: &str,
    scopes: &[&str],
    pattern: &str,
) -> String {
    let mut args = vec!["token", "create", name, "--tasks", pattern, "-o", "json"];
    for scope in scopes {
        args.extend(["--scope", scope]);
    }
    let token = server.run_json(&args);
    token["secret"].as_str().unwrap().to_owned()
}

/// Sends a request and returns the status and the body of the response.
pub(crate) async fn request(
    server: &TestServer,
    token: &str,
    method: &str,
    path: &str,
    body: Value,
) -> (u16, Value) {
    let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
    let url = format!("{}/api/v1{path}", server.url);
    let mut request = reqwest::Client::new()
        .request(method, url)
        .bearer_auth(token);
    if !body.is_null() {
        request = request.json(&body);
    }
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    let text = answer.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::Null))
}

/// Sends a request that must succeed and returns the body of the response.
pub(crate) async fn send(
    server: &TestServer,
    token: &str,
    method: &str,
    path: &str,
    body: Value,
) -> Value {
    let (status, answer) = request(server, token, method, path, body).await;
    assert!(
        (200..300).contains(&status),
        "{method} {path}: {status} {answer:#}"
    );
    answer
}
