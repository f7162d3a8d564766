//! The part of the API that the benchmarks need.

use std::time::Duration;

use acrtask_api::{
    admin::RunnerToken,
    run::{CreateRun, Run},
    spec::{RunSource, RunSpec},
};
use acrtask_model::{Event, EventKind};
use jiff::Timestamp;
use reqwest::{Client, Method, StatusCode};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// Client of one server.
pub(crate) struct Api {
    pub(crate) client: Client,
    /// URL of the server.
    pub(crate) server: String,
    base: String,
    token: String,
}

impl Api {
    pub(crate) fn new(server: &str, token: &str) -> Self {
        // An error means that a provider is already installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self {
            client: Client::new(),
            server: server.to_owned(),
            base: format!("{server}{}", acrtask_api::BASE),
            token: token.to_owned(),
        }
    }

    pub(crate) async fn create_runner_token(&self) -> String {
        let answer = self
            .client
            .post(format!("{}/runner-tokens", self.base))
            .bearer_auth(&self.token)
            .json(&json!({}))
            .send()
            .await
            .and_then(reqwest::Response::error_for_status)
            .unwrap();
        let token: RunnerToken = answer.json().await.unwrap();
        token.secret.0
    }

    async fn start_run(&self, request: &CreateRun) -> Run {
        self.post("/runs", request).await
    }

    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> T {
        self.send(Method::POST, path, body).await
    }

    pub(crate) async fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> T {
        self.send(Method::PUT, path, body).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> T {
        let answer = self
            .client
            .request(method, format!("{}{path}", self.base))
            .bearer_auth(&self.token)
            .json(body)
            .send()
            .await
            .unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{path}: {status}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    pub(crate) async fn get_text(&self, path: &str) -> String {
        let found = self.get_if_exists(path).await;
        found.unwrap_or_else(|| panic!("{path} was not found"))
    }

    /// Returns the text of `path`. `None` if the server responds with 404.
    pub(crate) async fn get_if_exists(&self, path: &str) -> Option<String> {
        let answer = self
            .client
            .get(format!("{}{path}", self.base))
            .bearer_auth(&self.token)
            .send()
            .await
            .unwrap();
        if answer.status() == StatusCode::NOT_FOUND {
            return None;
        }
        let answer = answer.error_for_status().unwrap();
        Some(answer.text().await.unwrap())
    }
}

/// Measures the milliseconds between the request for a run and the start of its first step. Both
/// times come from the clock of this machine.
pub(crate) async fn measure_latency(server: &str, token: &str, image: &str, runs: usize) -> Value {
    let api = Api::new(server, token);
    let mut waits = Vec::new();
    // The first runs warm up connections, pages and the engine.
    for i in 0..runs + 5 {
        let request = CreateRun {
            spec: RunSpec {
                source: RunSource::Cmd {
                    line: format!("{image} true"),
                },
                ..RunSpec::default()
            },
            ..CreateRun::default()
        };
        let requested = Timestamp::now();
        let id = api.start_run(&request).await.id;
        loop {
            let run: Run =
                serde_json::from_str(&api.get_text(&format!("/runs/{id}")).await).unwrap();
            if run.state.is_final() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let log = api.get_text(&format!("/runs/{id}/log?format=json")).await;
        let began = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Event>(line).ok())
            .find(|event| matches!(event.kind, EventKind::StepStarted { .. }))
            .unwrap_or_else(|| panic!("run {id} began no step:\n{log}"));
        if i >= 5 {
            waits.push(began.time.duration_since(requested).as_millis_f64());
        }
        // Lets the system become idle: the cleanup of the last run must be finished.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    percentiles(waits)
}

/// Returns the count, the median, the 99th percentile and the maximum.
pub(crate) fn percentiles(mut waits: Vec<f64>) -> Value {
    waits.sort_by(f64::total_cmp);
    let at = |part: f64| waits[((waits.len() as f64 * part) as usize).min(waits.len() - 1)];
    json!({ "count": waits.len(), "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1.0) })
}
