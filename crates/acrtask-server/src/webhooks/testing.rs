//! Test fixtures: a listening control plane, and deliveries as their senders send them.

use std::path::Path;

use acrtask_api::webhook::Receipt;
use acrtask_store::{RunFilter, RunRow};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::{
    Config, auth,
    clock::Clock,
    serve::{ServeOptions, Server, start},
};

/// Secret of every webhook of a test.
pub(crate) const SECRET: &str = "a secret that both sides know";

/// A listening control plane with its folder.
pub(crate) struct TestServer {
    pub(crate) inner: Server,
    pub(crate) http: reqwest::Client,
    pub(crate) admin: String,
    _folder: tempfile::TempDir,
}

impl TestServer {
    pub(crate) async fn new() -> Self {
        Self::with_config(Config::default()).await
    }

    pub(crate) async fn with_config(config: Config) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let inner = start(ServeOptions {
            listen: "127.0.0.1:0".parse().unwrap(),
            tls: None,
            allow_plaintext: false,
            database: format!("sqlite:{}", path("db.sqlite").display()),
            blobs: path("blobs").display().to_string(),
            key_file: path("key"),
            config,
            clock: Clock::system(),
        })
        .await
        .unwrap();
        let admin = auth::create_first_token(inner.app())
            .await
            .unwrap()
            .unwrap()
            .0;
        Self {
            inner,
            http: reqwest::Client::new(),
            admin,
            _folder: folder,
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.inner.addr())
    }

    pub(crate) async fn request(
        &self,
        method: reqwest::Method,
        path: &str,
        body: Value,
    ) -> (u16, Value) {
        let mut request = self
            .http
            .request(method, self.url(&format!("/api/v1{path}")))
            .bearer_auth(&self.admin);
        if !body.is_null() {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.request(reqwest::Method::PUT, path, body).await;
        assert!((200..300).contains(&status), "{path}: {answer}");
        answer
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.request(reqwest::Method::POST, path, body).await;
        assert!((200..300).contains(&status), "{path}: {answer}");
        answer
    }

    pub(crate) async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> T {
        let (status, answer) = self.request(reqwest::Method::GET, path, Value::Null).await;
        assert_eq!(status, 200, "{path}: {answer}");
        serde_json::from_value(answer).unwrap()
    }

    pub(crate) async fn add_webhook(&self, name: &str, provider: &str) {
        let body = json!({"provider": provider, "secrets": [SECRET]});
        self.put(&format!("/webhooks/{name}"), body).await;
    }

    /// Stores a task whose context is a repository.
    pub(crate) async fn add_task(&self, name: &str, context: &str, commit: Value) {
        self.put("/secrets/stored", json!({"value": "hush"})).await;
        let body = json!({
            "name": name,
            "context": context,
            "file": "acr-task.yaml",
            "secrets": {"token": "stored"},
            "triggers": {"commit": commit},
        });
        self.put(&format!("/tasks/{}", name.replace('/', "%2F")), body)
            .await;
    }

    /// Sends a delivery with its proof.
    pub(crate) async fn send(&self, hook: &str, one: &TestDelivery) -> (u16, Value) {
        let mut request = self.http.post(self.url(&format!("/hooks/{hook}")));
        for (name, value) in &one.headers {
            request = request.header(name, value);
        }
        let answer = request.body(one.body.clone()).send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    pub(crate) async fn deliver(&self, hook: &str, one: &TestDelivery) -> Receipt {
        let (status, answer) = self.send(hook, one).await;
        assert_eq!(status, 200, "{answer}");
        serde_json::from_value(answer).unwrap()
    }

    pub(crate) async fn run(&self, id: &acrtask_model::RunId) -> RunRow {
        self.inner.app().store.run(id).await.unwrap()
    }

    pub(crate) async fn runs(&self) -> Vec<RunRow> {
        let filter = RunFilter {
            limit: 10_000,
            ..RunFilter::default()
        };
        self.inner.app().store.runs(filter).await.unwrap().0
    }
}

/// A delivery as its sender sends it.
#[derive(Debug, Clone)]
pub(crate) struct TestDelivery {
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl TestDelivery {
    /// Reads one of the published payloads.
    pub(crate) fn from_fixture(provider: &str, name: &str) -> Self {
        Self::modified_fixture(provider, name, |_| {})
    }

    pub(crate) fn modified_fixture(
        provider: &str,
        name: &str,
        change: impl FnOnce(&mut Value),
    ) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../acrtask-trigger/tests/fixtures")
            .join(provider)
            .join(format!("{name}.json"));
        let text = std::fs::read_to_string(path).unwrap();
        let mut fixture: Value = serde_json::from_str(&text).unwrap();
        change(&mut fixture["body"]);
        let headers = fixture["headers"].as_object().unwrap().iter();
        let mut one = Self {
            headers: headers
                .map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned()))
                .collect(),
            body: serde_json::to_vec(&fixture["body"]).unwrap(),
        };
        one.sign(provider, SECRET);
        one
    }

    /// Replaces a header.
    pub(crate) fn set_header(&mut self, name: &str, value: &str) {
        self.headers.retain(|(present, _)| present != name);
        self.headers.push((name.into(), value.into()));
    }

    /// Adds the proof that a sender of this provider adds.
    pub(crate) fn sign(&mut self, provider: &str, secret: &str) {
        let signature: String = hmac(secret, &self.body)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        match provider {
            "github" | "registries/github-packages" => {
                self.set_header("x-hub-signature-256", &format!("sha256={signature}"));
            }
            "gitlab" => self.set_header("x-gitlab-token", secret),
            "gitea" => self.set_header("x-gitea-signature", &signature),
            "forgejo" => self.set_header("x-forgejo-signature", &signature),
            "bitbucket-cloud" | "bitbucket-server" => {
                self.set_header("x-hub-signature", &format!("sha256={signature}"));
            }
            "azure-devops" => {
                let login = STANDARD.encode(format!("acrtask:{secret}"));
                self.set_header("authorization", &format!("Basic {login}"));
            }
            "generic" => {
                let time = jiff::Timestamp::now().as_second();
                let text = [format!("msg_1.{time}.").as_bytes(), self.body.as_slice()].concat();
                let signature = STANDARD.encode(hmac(secret, &text));
                self.set_header("webhook-timestamp", &time.to_string());
                self.set_header("webhook-signature", &format!("v1,{signature}"));
            }
            _ => self.set_header("authorization", &format!("Bearer {secret}")),
        }
    }
}

pub(crate) fn hmac(secret: &str, text: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(text);
    mac.finalize().into_bytes().to_vec()
}

/// Creates a push of another commit to GitHub.
pub(crate) fn github_push(commit: &str, delivery: &str) -> TestDelivery {
    let mut one = TestDelivery::modified_fixture("github", "push", |body| {
        body["after"] = commit.into();
        body["head_commit"]["id"] = commit.into();
        body["commits"][0]["id"] = commit.into();
    });
    one.set_header("x-github-delivery", delivery);
    one
}

pub(crate) fn github_pull_request(fixture: &str, commit: &str, delivery: &str) -> TestDelivery {
    let mut one = TestDelivery::modified_fixture("github", fixture, |body| {
        body["pull_request"]["head"]["sha"] = commit.into();
    });
    one.set_header("x-github-delivery", delivery);
    one
}

pub(crate) fn commit(n: u32) -> String {
    format!("{n:040x}")
}

pub(crate) const GITHUB: &str = "https://github.com/team/app.git";
