//! A control plane that listens, and deliveries as their senders send them.

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

/// What both sides know.
pub(crate) const SECRET: &str = "a secret that both sides know";

/// A control plane that listens, and its folder.
pub(crate) struct World {
    pub(crate) server: Server,
    pub(crate) http: reqwest::Client,
    pub(crate) admin: String,
    _folder: tempfile::TempDir,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(Config::default()).await
    }

    pub(crate) async fn with(config: Config) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let server = start(ServeOptions {
            listen: "127.0.0.1:0".parse().unwrap(),
            tls: None,
            allow_plaintext: false,
            database: format!("sqlite:{}", path("db.sqlite").display()),
            blobs: path("blobs").display().to_string(),
            key_file: path("key"),
            config,
            clock: Clock::real(),
        })
        .await
        .unwrap();
        let admin = auth::bootstrap(server.app()).await.unwrap().unwrap().0;
        Self {
            server,
            http: reqwest::Client::new(),
            admin,
            _folder: folder,
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.server.addr())
    }

    pub(crate) async fn api(
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
        let (status, answer) = self.api(reqwest::Method::PUT, path, body).await;
        assert!((200..300).contains(&status), "{path}: {answer}");
        answer
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.api(reqwest::Method::POST, path, body).await;
        assert!((200..300).contains(&status), "{path}: {answer}");
        answer
    }

    pub(crate) async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> T {
        let (status, answer) = self.api(reqwest::Method::GET, path, Value::Null).await;
        assert_eq!(status, 200, "{path}: {answer}");
        serde_json::from_value(answer).unwrap()
    }

    pub(crate) async fn webhook(&self, name: &str, provider: &str) {
        let body = json!({"provider": provider, "secrets": [SECRET]});
        self.put(&format!("/webhooks/{name}"), body).await;
    }

    /// A task of a repository.
    pub(crate) async fn task(&self, name: &str, context: &str, commit: Value) {
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
    pub(crate) async fn send(&self, hook: &str, one: &Sent) -> (u16, Value) {
        let mut request = self.http.post(self.url(&format!("/hooks/{hook}")));
        for (name, value) in &one.headers {
            request = request.header(name, value);
        }
        let answer = request.body(one.body.clone()).send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    pub(crate) async fn taken(&self, hook: &str, one: &Sent) -> Receipt {
        let (status, answer) = self.send(hook, one).await;
        assert_eq!(status, 200, "{answer}");
        serde_json::from_value(answer).unwrap()
    }

    pub(crate) async fn run(&self, id: &acrtask_model::RunId) -> RunRow {
        self.server.app().store.run(id).await.unwrap()
    }

    pub(crate) async fn runs(&self) -> Vec<RunRow> {
        let filter = RunFilter {
            limit: 10_000,
            ..RunFilter::default()
        };
        self.server.app().store.runs(filter).await.unwrap().0
    }
}

/// A delivery as its sender sends it.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Sent {
    /// One of the published payloads.
    pub(crate) fn fixture(provider: &str, name: &str) -> Self {
        Self::changed(provider, name, |_| {})
    }

    pub(crate) fn changed(provider: &str, name: &str, change: impl FnOnce(&mut Value)) -> Self {
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
        one.prove(provider, SECRET);
        one
    }

    /// With another header.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.headers.retain(|(known, _)| known != name);
        self.headers.push((name.into(), value.into()));
    }

    /// Adds the proof that a sender adds.
    pub(crate) fn prove(&mut self, provider: &str, secret: &str) {
        let signature: String = hmac(secret, &self.body)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        match provider {
            "github" | "registries/github-packages" => {
                self.set("x-hub-signature-256", &format!("sha256={signature}"));
            }
            "gitlab" => self.set("x-gitlab-token", secret),
            "gitea" => self.set("x-gitea-signature", &signature),
            "forgejo" => self.set("x-forgejo-signature", &signature),
            "bitbucket-cloud" | "bitbucket-server" => {
                self.set("x-hub-signature", &format!("sha256={signature}"));
            }
            "azure-devops" => {
                let login = STANDARD.encode(format!("acrtask:{secret}"));
                self.set("authorization", &format!("Basic {login}"));
            }
            "generic" => {
                let time = jiff::Timestamp::now().as_second();
                let text = [format!("msg_1.{time}.").as_bytes(), self.body.as_slice()].concat();
                let signature = STANDARD.encode(hmac(secret, &text));
                self.set("webhook-timestamp", &time.to_string());
                self.set("webhook-signature", &format!("v1,{signature}"));
            }
            _ => self.set("authorization", &format!("Bearer {secret}")),
        }
    }
}

pub(crate) fn hmac(secret: &str, text: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(text);
    mac.finalize().into_bytes().to_vec()
}

/// A push of another commit to GitHub.
pub(crate) fn github_push(commit: &str, delivery: &str) -> Sent {
    let mut one = Sent::changed("github", "push", |body| {
        body["after"] = commit.into();
        body["head_commit"]["id"] = commit.into();
        body["commits"][0]["id"] = commit.into();
    });
    one.set("x-github-delivery", delivery);
    one
}

pub(crate) fn github_pull_request(fixture: &str, commit: &str, delivery: &str) -> Sent {
    let mut one = Sent::changed("github", fixture, |body| {
        body["pull_request"]["head"]["sha"] = commit.into();
    });
    one.set("x-github-delivery", delivery);
    one
}

pub(crate) fn commit(n: u32) -> String {
    format!("{n:040x}")
}

pub(crate) const GITHUB: &str = "https://github.com/team/app.git";
