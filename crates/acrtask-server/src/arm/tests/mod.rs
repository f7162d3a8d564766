//! Tests of the ARM API on a real database and real blobs, without a socket.

mod authorization;
mod blobs;
mod login;
mod runs;
mod tasks;

use acrtask_api::admin::Scope;
use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Method, Request, StatusCode, header},
};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::{
    Config,
    api::testing::{TestResponse, TestServer},
};

/// A server with the registries `myreg` and `other`.
struct ArmServer {
    server: TestServer,
    router: Router,
}

impl ArmServer {
    async fn start() -> Self {
        Self::with(Config::default()).await
    }

    async fn with(config: Config) -> Self {
        let arm = ["myreg=registry.test:5000", "other=other.test"]
            .map(|text| text.parse().unwrap())
            .to_vec();
        let server = TestServer::with(Config { arm, ..config }).await;
        Self {
            router: super::router(server.app.clone()),
            server,
        }
    }

    async fn send(&self, request: Request<Body>) -> TestResponse {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        TestResponse {
            status: parts.status,
            headers: parts.headers,
            body: body.collect().await.unwrap().to_bytes(),
        }
    }

    async fn call_as(
        &self,
        token: Option<&str>,
        method: Method,
        path: &str,
        body: &Value,
    ) -> TestResponse {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "arm.test:8443")
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let body = match body {
            Value::Null => Body::empty(),
            body => Body::from(body.to_string()),
        };
        self.send(request.body(body).unwrap()).await
    }

    async fn call(&self, method: Method, path: &str, body: Value) -> TestResponse {
        let token = self.server.admin.clone();
        self.call_as(Some(&token), method, path, &body).await
    }

    /// Sends a request to the registry `myreg` with the admin token.
    async fn of_registry(&self, method: Method, path: &str, body: Value) -> TestResponse {
        self.call(method, &in_registry(path), body).await
    }

    /// Sends a request to a link, without a token.
    async fn blob(
        &self,
        method: Method,
        link: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> TestResponse {
        let mut request = Request::builder()
            .method(method)
            .uri(link.strip_prefix("https://arm.test:8443").unwrap_or(link));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(body.into()).unwrap()).await
    }

    /// Schedules a run of one container, and returns its id.
    async fn schedule(&self) -> String {
        let run = self
            .of_registry(Method::POST, "/scheduleRun", encoded_run("hello"))
            .await
            .json::<Value>(StatusCode::OK);
        run["name"].as_str().unwrap().to_owned()
    }
}

fn in_registry(path: &str) -> String {
    format!(
        "{}{path}?api-version=2019-06-01-preview",
        acrtask_arm::registry_id("myreg")
    )
}

/// Returns a request for a run of one container.
fn encoded_run(cmd: &str) -> Value {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let text = format!("version: v1.1.0\nsteps:\n  - cmd: alpine echo {cmd}\n");
    json!({"type": "EncodedTaskRunRequest", "encodedTaskContent": STANDARD.encode(text), "platform": {"os": "linux"}})
}

fn docker_task() -> Value {
    json!({
        "location": "local",
        "properties": {
            "platform": {"os": "linux", "architecture": "amd64"},
            "step": {"type": "Docker", "imageNames": ["app:1"], "isPushEnabled": true, "dockerFilePath": "Dockerfile",
                "contextPath": "https://forge.test/o/r.git", "contextAccessToken": "ghp_x",
                "arguments": [{"name": "s", "value": "hunter2", "isSecret": true}]},
            "trigger": {"timerTriggers": [{"name": "daily", "schedule": "0 4 * * *"}]},
        },
    })
}

/// Returns the message of an error in the form of ARM.
fn message(response: &TestResponse, status: StatusCode) -> String {
    let body: Value = response.json(status);
    assert!(body["error"]["code"].is_string(), "{body}");
    body["error"]["message"].as_str().unwrap().to_owned()
}

fn header_text<'h>(headers: &'h HeaderMap, name: &str) -> &'h str {
    headers
        .get(name)
        .map_or("", |value| value.to_str().unwrap())
}

const ALL_SCOPES: [Scope; 3] = [Scope::Read, Scope::Run, Scope::Write];
