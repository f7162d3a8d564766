//! Tests of the page, without a socket.

mod content;
mod rights;
mod sessions;
mod updates;

use acrtask_api::{admin::Scope, run::Run};
use acrtask_model::{RunState, events::BaseRole};
use acrtask_store::{NewDelivery, StoredBody};
use axum::{
    body::Body,
    http::{Method, Request, StatusCode, header},
};
use serde_json::{Value, json};

use super::{Listener, router};
use crate::{
    Config,
    api::testing::{TestResponse, TestServer},
};

/// Host of the requests of tests.
const HOST: &str = "127.0.0.1:7070";

/// A server with its page, and the cookie of a session.
struct PageServer {
    server: TestServer,
}

impl PageServer {
    async fn start() -> Self {
        Self::with(Config::default(), false).await
    }

    async fn with(config: Config, tls: bool) -> Self {
        let mut server = TestServer::with(config).await;
        let listener = Listener {
            address: HOST.parse().unwrap(),
            tls,
        };
        server.router = server
            .router
            .clone()
            .merge(router(server.app.clone(), listener));
        Self { server }
    }

    fn request(method: Method, path: &str, cookie: Option<&str>) -> axum::http::request::Builder {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, HOST);
        if let Some(cookie) = cookie {
            request = request.header(header::COOKIE, cookie);
        }
        request
    }

    async fn get(&self, path: &str, cookie: Option<&str>) -> TestResponse {
        let request = Self::request(Method::GET, path, cookie);
        self.server.send(request.body(Body::empty()).unwrap()).await
    }

    /// Returns the text of a page. Fails if it is not shown.
    #[track_caller]
    fn expect_page(&self, path: &str, cookie: &str) -> impl Future<Output = String> {
        let caller = std::panic::Location::caller();
        async move {
            let response = self.get(path, Some(cookie)).await;
            let text = response.text();
            assert_eq!(response.status, StatusCode::OK, "{caller} {path}: {text}");
            text
        }
    }

    /// Sends a form as a page of this server does.
    async fn post(&self, path: &str, form: &str, cookie: Option<&str>) -> TestResponse {
        let request = Self::request(Method::POST, path, cookie)
            .header("sec-fetch-site", "same-origin")
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        let request = request.body(Body::from(form.to_owned())).unwrap();
        self.server.send(request).await
    }

    /// Signs in with a token and returns the cookie.
    async fn sign_in(&self, token: &str) -> String {
        let form = format!("token={token}&next=%2F");
        let response = self.post("/sign-in", &form, None).await;
        assert_eq!(
            response.status,
            StatusCode::SEE_OTHER,
            "{}",
            response.text()
        );
        cookie_of(&response)
    }

    async fn sign_in_as_admin(&self) -> String {
        self.sign_in(&self.server.admin).await
    }

    /// Signs in with a new token for these tasks and returns the cookie.
    async fn sign_in_limited(&self, scopes: &[Scope], tasks: Option<&str>) -> String {
        let token = self.server.create_token(scopes, tasks).await;
        self.sign_in(&token).await
    }

    async fn create_task(&self, name: &str) {
        let body = json!({"name": name, "cmd": "alpine true"});
        self.server
            .post("/tasks", body)
            .await
            .json::<Value>(StatusCode::CREATED);
    }

    async fn start_task(&self, name: &str) -> Run {
        self.server
            .post(
                &format!("/tasks/{}/runs", name.replace('/', "%2F")),
                json!({}),
            )
            .await
            .json(StatusCode::CREATED)
    }

    /// Pushes the image `r.io/mine:1` by a run of `task`, then changes its base `r.io/base:1`. The
    /// cascade 1 collects changes afterwards. Needs the runner `mine`.
    async fn push_stale_image(&self, task: &str) {
        let server = &self.server;
        let base = [("r.io/base:1", 'b', BaseRole::Runtime)];
        let path = task.replace('/', "%2F");
        server
            .complete_push(&path, ("r.io/mine:1", 'a'), &base)
            .await;
        server.record_digest("r.io/base:1", 'b').await;
        server.record_digest("r.io/base:1", 'c').await;
        server.wait_for_cascade(1).await;
    }

    /// Stores a delivery that concerns no task.
    async fn record_delivery(&self, id: &str, summary: &str) {
        let delivery = NewDelivery {
            id: id.into(),
            webhook: "ci".into(),
            sender_id: id.into(),
            kind: "push".into(),
            repository: None,
            summary: summary.into(),
            note: Some("no task follows <it>".into()),
            redelivery_of: None,
            headers: "{}".into(),
            watches: Vec::new(),
            size: 2,
            sha256: "0".repeat(64),
            body: StoredBody::Inline(b"{}".to_vec()),
            replay_age: None,
        };
        let now = self.server.app.clock.now_ms();
        let store = &self.server.app.store;
        store
            .record_delivery(delivery, Vec::new(), now)
            .await
            .unwrap();
    }

    /// Starts a run of `task` that fails with this log.
    async fn fail_task(&self, task: &str, log: &str) -> Run {
        let run = self.start_task(task).await;
        let server = &self.server;
        let attempt = server.lease_run(&run.id, "nmine").await;
        if !log.is_empty() {
            server.append_log(&run.id, attempt, "nmine", 0, log).await;
        }
        let failed = RunState::Failed;
        server
            .finish_run(&run.id, attempt, "nmine", failed, log, Default::default())
            .await;
        run
    }
}

/// Returns the `NAME=VALUE` of the cookie that a response sets.
fn cookie_of(response: &TestResponse) -> String {
    let text = response.headers[header::SET_COOKIE].to_str().unwrap();
    text.split(';').next().unwrap().to_owned()
}

/// Returns the target of a redirect.
#[track_caller]
fn target_of(response: &TestResponse) -> &str {
    assert_eq!(
        response.status,
        StatusCode::SEE_OTHER,
        "{}",
        response.text()
    );
    response.headers[header::LOCATION].to_str().unwrap()
}
