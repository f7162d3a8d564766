//! Clients with valid credentials, one of each kind, which measure their requests.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use acrtask_proto::runner::{
    FromRunner, Heartbeat, Hello, RegisterRequest, ToRunner, from_runner,
    runners_client::RunnersClient, to_runner,
};
use acrtask_tests::forge::signature;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Streaming,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};
use wiremock::{Mock, MockServer, ResponseTemplate, matchers};

use crate::target::Target;

/// Longest wait for a response.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Secret of the webhook.
const SECRET: &str = "the secret of a webhook under attack";
/// Number of tokens that the server has not seen before the attack in which each is used.
const FRESH: usize = 300;

/// Requests of valid clients: durations, and the errors of failed requests.
#[derive(Default)]
pub(crate) struct Samples(Mutex<Vec<(Duration, Option<String>)>>);

impl Samples {
    fn add(&self, kind: &str, begun: Instant, result: Result<(), String>) {
        let took = begun.elapsed();
        let refused = result
            .err()
            .map(|why| format!("{kind} after {took:?}: {why}"));
        self.0.lock().unwrap().push((took, refused));
    }

    pub(crate) fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Returns the errors of all failed requests.
    pub(crate) fn refused(&self) -> Vec<String> {
        let all = self.0.lock().unwrap();
        all.iter()
            .filter_map(|(_, refused)| refused.clone())
            .collect()
    }

    /// Returns the duration within which this share of the requests completed. A failed request
    /// counts as 999 seconds.
    pub(crate) fn percentile(&self, part: f64) -> Duration {
        let all = self.0.lock().unwrap();
        let mut durations: Vec<Duration> = all
            .iter()
            .map(|(took, refused)| {
                if refused.is_some() {
                    Duration::from_secs(999)
                } else {
                    *took
                }
            })
            .collect();
        durations.sort();
        let at = (durations.len() as f64 * part) as usize;
        durations
            .get(at.min(durations.len().saturating_sub(1)))
            .copied()
            .unwrap_or_default()
    }
}

/// All clients of one server.
pub(crate) struct Clients {
    url: String,
    token: String,
    /// HTTP client that opens a connection for each request.
    fresh: Client,
    /// HTTP client that keeps its connections open.
    kept: Client,
    /// Unused tokens.
    tokens: Vec<String>,
    next: AtomicUsize,
    trigger: String,
    issuer: MockServer,
    key: EncodingKey,
    channel: Channel,
    runner_key: String,
}

fn client_builder(target: &Target) -> reqwest::ClientBuilder {
    let builder = Client::builder()
        .timeout(TIMEOUT)
        .resolve("localhost", target.address.socket);
    match &target.certificate {
        None => builder,
        Some(pem) => {
            let root = reqwest::Certificate::from_pem(pem.as_bytes()).unwrap();
            builder.tls_certs_only([root])
        }
    }
}

impl Clients {
    /// Creates a task with a trigger URL, a webhook, a federation, a runner and tokens.
    pub(crate) async fn prepare(target: &Target) -> Self {
        let issuer = MockServer::start().await;
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        // Uncompressed point: the byte 4, x, y.
        let point = pair.public_key_raw();
        let key = json!({
            "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": "one",
            "x": URL_SAFE_NO_PAD.encode(&point[1..33]), "y": URL_SAFE_NO_PAD.encode(&point[33..65]),
        });
        for (path, answer) in [
            (
                "/.well-known/openid-configuration",
                json!({ "issuer": issuer.uri(), "jwks_uri": format!("{}/keys", issuer.uri()) }),
            ),
            ("/keys", json!({ "keys": [key] })),
        ] {
            Mock::given(matchers::path(path))
                .respond_with(ResponseTemplate::new(200).set_body_json(answer))
                .mount(&issuer)
                .await;
        }
        let mut endpoint = Endpoint::from_shared(target.url()).unwrap();
        if let Some(pem) = &target.certificate {
            let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
            endpoint = endpoint.tls_config(tls).unwrap();
        }
        let mut clients = Self {
            url: target.url(),
            token: target.token.clone(),
            fresh: client_builder(target)
                .pool_max_idle_per_host(0)
                .build()
                .unwrap(),
            kept: client_builder(target).build().unwrap(),
            tokens: Vec::new(),
            next: AtomicUsize::new(0),
            trigger: String::new(),
            key: EncodingKey::from_ec_der(&pair.serialize_der()),
            channel: endpoint.connect().await.unwrap(),
            runner_key: String::new(),
            issuer,
        };
        let task = json!({"name": "load", "cmd": "reg.example.com/app:1 true"});
        clients.send_request(Method::POST, "/tasks", task).await;
        let url = clients
            .send_request(Method::POST, "/tasks/load/trigger-url", json!({}))
            .await;
        clients.trigger = url["path"].as_str().unwrap().to_owned();
        let hook = json!({"provider": "github", "secrets": [SECRET]});
        clients
            .send_request(Method::PUT, "/webhooks/load", hook)
            .await;
        let federation = json!({
            "name": "ci", "issuer": clients.issuer.uri(), "audience": "acrtask",
            "subject": "repo:org/app:*", "scopes": ["read"],
        });
        clients
            .send_request(Method::PUT, "/federations/ci", federation)
            .await;
        for number in 0..FRESH {
            let token = json!({"name": format!("fresh-{number}"), "scopes": ["read"]});
            let made = clients.send_request(Method::POST, "/tokens", token).await;
            clients
                .tokens
                .push(made["secret"].as_str().unwrap().to_owned());
        }
        let made = clients
            .send_request(Method::POST, "/runner-tokens", json!({}))
            .await;
        let request = RegisterRequest {
            token: made["secret"].as_str().unwrap().to_owned(),
            name: "load".into(),
            ..RegisterRequest::default()
        };
        let registered = RunnersClient::new(clients.channel.clone())
            .register(request)
            .await;
        clients.runner_key = registered.unwrap().into_inner().key;
        clients
    }

    async fn send_request(&self, method: Method, path: &str, body: Value) -> Value {
        let request = self
            .kept
            .request(method, format!("{}{}{path}", self.url, acrtask_api::BASE))
            .bearer_auth(&self.token)
            .json(&body);
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{path}: {status}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// Sends requests of all kinds for the duration `time`.
    pub(crate) async fn run(&self, time: Duration) -> Samples {
        let samples = Samples::default();
        let until = Instant::now() + time;
        tokio::join!(
            repeat_request(100, until, &samples, "API with a token", || {
                self.get("/api/v1/me", &self.token, &self.fresh)
            }),
            repeat_request(100, until, &samples, "API on an open connection", || {
                self.get("/api/v1/runs?limit=1", &self.token, &self.kept)
            }),
            repeat_request(200, until, &samples, "API with a new token", || self
                .use_fresh_token()),
            repeat_request(150, until, &samples, "webhook", || self.deliver()),
            repeat_request(1100, until, &samples, "trigger URL", || self.trigger()),
            repeat_request(250, until, &samples, "OIDC exchange", || self.exchange()),
            self.run_heartbeats(until, &samples),
        );
        samples
    }

    async fn get(&self, path: &str, token: &str, client: &Client) -> Result<(), String> {
        let url = format!("{}{path}", self.url);
        expect_success(client.get(url).bearer_auth(token)).await
    }

    async fn use_fresh_token(&self) -> Result<(), String> {
        let number = self.next.fetch_add(1, Ordering::Relaxed) % self.tokens.len();
        self.get("/api/v1/me", &self.tokens[number], &self.fresh)
            .await
    }

    async fn deliver(&self) -> Result<(), String> {
        let body = json!({"zen": "Keep it logically awesome.", "hook_id": 1}).to_string();
        let id = format!("load-{}", self.next.fetch_add(1, Ordering::Relaxed));
        let request = self
            .fresh
            .post(format!("{}/hooks/load", self.url))
            .header("content-type", "application/json")
            .header("x-github-event", "ping")
            .header("x-github-delivery", id)
            .header("x-hub-signature-256", signature(SECRET, body.as_bytes()))
            .body(body);
        expect_success(request).await
    }

    async fn trigger(&self) -> Result<(), String> {
        expect_success(self.fresh.post(format!("{}{}", self.url, self.trigger))).await
    }

    async fn exchange(&self) -> Result<(), String> {
        let now = jiff::Timestamp::now().as_second();
        let claims = json!({
            "iss": self.issuer.uri(), "aud": "acrtask", "sub": "repo:org/app:ref:refs/heads/main",
            "exp": now + 300, "nbf": now,
        });
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some("one".into());
        let token = jsonwebtoken::encode(&header, &claims, &self.key).unwrap();
        let url = format!("{}/api/v1/auth/exchange", self.url);
        expect_success(self.fresh.post(url).json(&json!({ "token": token }))).await
    }

    /// Connects as a runner and measures its heartbeats.
    async fn run_heartbeats(&self, until: Instant, samples: &Samples) {
        while Instant::now() < until {
            let begun = Instant::now();
            match tokio::time::timeout(TIMEOUT, self.connect()).await {
                Ok(Ok((out, mut answers))) => {
                    samples.add("runner", begun, Ok(()));
                    while Instant::now() < until {
                        let begun = Instant::now();
                        let heartbeat = send_heartbeat(&out, &mut answers);
                        let result = tokio::time::timeout(TIMEOUT, heartbeat).await;
                        let result = result.unwrap_or_else(|_| Err("no answer".into()));
                        let ended = result.is_err();
                        samples.add("heartbeat", begun, result);
                        if ended {
                            break;
                        }
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
                Ok(Err(why)) => samples.add("runner", begun, Err(why)),
                Err(_) => samples.add("runner", begun, Err("no answer".into())),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn connect(&self) -> Result<(mpsc::Sender<FromRunner>, Streaming<ToRunner>), String> {
        let (out, messages) = mpsc::channel(4);
        let hello = from_runner::Message::Hello(Hello {
            version: "load".into(),
            platforms: vec!["linux/amd64".into()],
            slots: 1,
            free_disk: 1 << 40,
            ..Hello::default()
        });
        out.send(FromRunner {
            message: Some(hello),
        })
        .await
        .map_err(|error| error.to_string())?;
        let mut request = tonic::Request::new(ReceiverStream::new(messages));
        let bearer = format!("Bearer {}", self.runner_key).parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
        let answers = RunnersClient::new(self.channel.clone())
            .connect(request)
            .await;
        Ok((
            out,
            answers.map_err(|status| status.to_string())?.into_inner(),
        ))
    }
}

async fn send_heartbeat(
    out: &mpsc::Sender<FromRunner>,
    answers: &mut Streaming<ToRunner>,
) -> Result<(), String> {
    let heartbeat = from_runner::Message::Heartbeat(Heartbeat {
        attempts: Vec::new(),
        free_disk: 1 << 40,
    });
    let message = FromRunner {
        message: Some(heartbeat),
    };
    out.send(message).await.map_err(|error| error.to_string())?;
    loop {
        let answer = answers
            .message()
            .await
            .map_err(|status| status.to_string())?;
        let message = answer.ok_or("the stream ended")?.message;
        if let Some(to_runner::Message::Renewed(_)) = message {
            return Ok(());
        }
    }
}

async fn expect_success(request: reqwest::RequestBuilder) -> Result<(), String> {
    let answer = request.send().await.map_err(|error| format!("{error:?}"))?;
    let status = answer.status();
    let text = answer.text().await.map_err(|error| format!("{error:?}"))?;
    if status.is_success() {
        return Ok(());
    }
    Err(format!("{status}: {text}"))
}

async fn repeat_request<F: Future<Output = Result<(), String>>>(
    milliseconds: u64,
    until: Instant,
    samples: &Samples,
    kind: &str,
    request: impl Fn() -> F,
) {
    while Instant::now() < until {
        let begun = Instant::now();
        samples.add(kind, begun, request().await);
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    }
}
