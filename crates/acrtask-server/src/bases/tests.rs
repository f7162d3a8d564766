//! Tests of the poller against a misbehaving registry, and against a real one if available.

use std::time::Duration;

use acrtask_api::image::{BaseStatus, BaseTagChange};
use acrtask_model::events::BaseRole;
use acrtask_store::{WatchFilter, WatchRow};
use axum::http::StatusCode;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use wiremock::{
    Mock, MockServer, ResponseTemplate,
    matchers::{header, method, path},
};

use super::*;
use crate::{
    Config,
    api::testing::{NOW, TestServer, letter_digest},
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

async fn server() -> TestServer {
    let server = TestServer::with(Config {
        base_interval: Duration::from_secs(300),
        // Without concurrency, so that requests can be counted.
        base_parallel: 1,
        ..Config::default()
    })
    .await;
    server.register_runner("mine").await;
    server
}

/// Creates a task whose image depends on `base`. Returns the watch of `base`.
async fn watch_base(server: &TestServer, task: &str, base: &str) -> WatchRow {
    let body = json!({"name": task, "cmd": "alpine true"});
    server
        .post("/tasks", body)
        .await
        .json::<Value>(StatusCode::CREATED);
    let bases = [(base, '0', BaseRole::Runtime)];
    let image = format!("r.io/{task}:1");
    server.complete_push(task, (&image, 'f'), &bases).await;
    update_watches(&server.app).await.unwrap();
    watch_row(server, base).await
}

async fn watch_row(server: &TestServer, name: &str) -> WatchRow {
    let filter = WatchFilter {
        name: Some(name.into()),
        limit: 10,
        ..WatchFilter::default()
    };
    server.app.store.watches(filter).await.unwrap().remove(0)
}

/// Makes all tags due and polls them.
async fn poll_all(server: &TestServer) {
    let app = &server.app;
    app.clock.set(app.clock.now_ms() + 1000);
    let now = app.clock.now_ms();
    app.store.mark_watches_due(None, now).await.unwrap();
    let due = app.store.claim_watches(now, MAX_LEASE_MS, 256).await;
    let due = futures::stream::iter([due]);
    app.poller.poll_due(app, due).await.unwrap();
}

async fn changes(server: &TestServer, name: &str) -> Vec<BaseTagChange> {
    let id = watch_row(server, name).await.id;
    server.app.store.base_changes(id, 10).await.unwrap()
}

fn digest_header(letter: char) -> ResponseTemplate {
    ResponseTemplate::new(200)
        .insert_header("docker-content-digest", letter_digest(letter).as_str())
        .insert_header("etag", format!("\"{letter}\"").as_str())
        .set_body_raw(vec![b' '; 100], MANIFEST)
}

async fn respond_with(registry: &MockServer, template: ResponseTemplate) {
    registry.reset().await;
    Mock::given(method("HEAD"))
        .and(path("/v2/base/manifests/1"))
        .respond_with(template)
        .mount(registry)
        .await;
}

async fn head_count(registry: &MockServer) -> usize {
    let requests = registry.received_requests().await.unwrap();
    requests
        .iter()
        .filter(|request| request.method.as_str() == "HEAD")
        .count()
}

#[tokio::test]
async fn poll_records_the_moves_of_a_tag() {
    let registry = MockServer::start().await;
    let server = server().await;
    let base = format!("{}/base:1", registry.address());
    let new = watch_base(&server, "one", &base).await;
    assert_eq!((new.status, new.next_check_at), (BaseStatus::New, NOW));
    respond_with(&registry, digest_header('a')).await;
    poll_all(&server).await;
    let seen = watch_row(&server, &base).await;
    assert_eq!(
        (seen.status, seen.digest),
        (BaseStatus::Ok, Some(letter_digest('a')))
    );
    let next = seen.next_check_at - server.app.clock.now_ms();
    assert!((270_000..=330_000).contains(&next), "{next}");
    // The request accepts all kinds of manifests.
    let requests = registry.received_requests().await.unwrap();
    let accepts = requests[0].headers["accept"].to_str().unwrap();
    assert_eq!(accepts.split(", ").count(), 4, "{accepts}");
    // The ETag is sent, and the response has no body.
    registry.reset().await;
    Mock::given(method("HEAD"))
        .and(header("if-none-match", "\"a\""))
        .respond_with(ResponseTemplate::new(304))
        .expect(1)
        .mount(&registry)
        .await;
    poll_all(&server).await;
    let same = watch_row(&server, &base).await;
    assert_eq!(
        (same.status, same.digest),
        (BaseStatus::Ok, Some(letter_digest('a')))
    );
    registry.verify().await;
    for (letter, back) in [('b', false), ('a', true), ('c', false)] {
        respond_with(&registry, digest_header(letter)).await;
        poll_all(&server).await;
        let last = changes(&server, &base).await.remove(0);
        assert_eq!((last.to, last.moved_back), (letter_digest(letter), back));
    }
    let moved = server.app.store.stale_bases().await.unwrap();
    assert_eq!(moved[0].now, letter_digest('c'));
}

#[tokio::test]
async fn poll_failure_is_recorded_as_a_status() {
    let registry = MockServer::start().await;
    let server = server().await;
    let base = format!("{}/base:1", registry.address());
    watch_base(&server, "one", &base).await;
    respond_with(&registry, digest_header('a')).await;
    poll_all(&server).await;
    let usual = 300_000;
    for (status, expected, least, most) in [
        (404, BaseStatus::Vanished, usual, usual),
        (401, BaseStatus::Denied, 2 * usual, 2 * usual),
        (403, BaseStatus::Denied, 4 * usual, 4 * usual),
        (500, BaseStatus::Unreachable, 15_000, 2 * usual),
        (503, BaseStatus::Unreachable, 15_000, 2 * usual),
    ] {
        let challenge = (status == 401).then_some(r#"Basic realm="x""#);
        let template = challenge.map_or(ResponseTemplate::new(status), |text| {
            ResponseTemplate::new(status).insert_header("www-authenticate", text)
        });
        respond_with(&registry, template).await;
        poll_all(&server).await;
        let seen = watch_row(&server, &base).await;
        assert_eq!(seen.status, expected, "{status}");
        assert!(seen.detail.is_some_and(|detail| !detail.is_empty()));
        assert_eq!(
            seen.digest,
            Some(letter_digest('a')),
            "what is known stays known"
        );
        let next = seen.next_check_at - server.app.clock.now_ms();
        assert!(
            (least * 9 / 10..=most * 11 / 10).contains(&next),
            "{status}: {next}"
        );
        // A challenge is answered once.
        let asked = 1 + usize::from(challenge.is_some());
        assert_eq!(
            head_count(&registry).await,
            asked,
            "{status} is not asked again"
        );
    }
    respond_with(&registry, digest_header('a')).await;
    poll_all(&server).await;
    let well = watch_row(&server, &base).await;
    assert_eq!((well.status, well.failures), (BaseStatus::Ok, 0));
    assert_eq!(changes(&server, &base).await, []);
    // No server listens here.
    let gone = "127.0.0.1:9/base:1";
    watch_base(&server, "two", gone).await;
    poll_all(&server).await;
    assert_eq!(
        watch_row(&server, gone).await.status,
        BaseStatus::Unreachable
    );
}

#[tokio::test]
async fn rate_limited_registry_gets_no_requests_until_its_retry_time() {
    let registry = MockServer::start().await;
    let server = server().await;
    let base = format!("{}/base:1", registry.address());
    let other = format!("{}/other:1", registry.address());
    watch_base(&server, "one", &base).await;
    watch_base(&server, "two", &other).await;
    registry.reset().await;
    let limited = ResponseTemplate::new(429).insert_header("retry-after", "600");
    Mock::given(method("HEAD"))
        .respond_with(limited)
        .mount(&registry)
        .await;
    poll_all(&server).await;
    assert_eq!(head_count(&registry).await, 1, "one budget for both");
    let now = server.app.clock.now_ms();
    let states = [
        watch_row(&server, &base).await,
        watch_row(&server, &other).await,
    ];
    assert_eq!(states[0].status, BaseStatus::Limited);
    for state in states {
        let wait = state.next_check_at - now;
        assert!((599_000..=600_000).contains(&wait), "{wait}");
    }
    // The budget refuses further requests.
    poll_all(&server).await;
    assert_eq!(head_count(&registry).await, 1);
}

#[tokio::test]
async fn push_makes_its_tag_due() {
    let registry = MockServer::start().await;
    let server = server().await;
    let base = format!("{}/base:1", registry.address());
    watch_base(&server, "one", &base).await;
    respond_with(&registry, digest_header('a')).await;
    poll_all(&server).await;
    let host = registry.address().to_string();
    let due = async || {
        let now = server.app.clock.now_ms();
        watch_row(&server, &base).await.next_check_at <= now
    };
    mark_push_due(&server.app, &host, "other", None)
        .await
        .unwrap();
    mark_push_due(&server.app, &host, "base", Some("2"))
        .await
        .unwrap();
    mark_push_due(&server.app, "not a host", "base", Some("1"))
        .await
        .unwrap();
    assert!(!due().await);
    mark_push_due(&server.app, &host, "base", Some("1"))
        .await
        .unwrap();
    assert!(due().await);
    poll_all(&server).await;
    assert!(!due().await);
    mark_push_due(&server.app, &host, "base", None)
        .await
        .unwrap();
    assert!(due().await);
}

#[tokio::test]
async fn cloud_metadata_addresses_are_never_polled() {
    let server = server().await;
    let base = "169.254.169.254/base:1";
    watch_base(&server, "one", base).await;
    poll_all(&server).await;
    let seen = watch_row(&server, base).await;
    assert_eq!(seen.status, BaseStatus::Unreachable);
    let detail = seen.detail.unwrap();
    assert!(detail.contains("not a public address"), "{detail}");
}

/// Registry with real content.
struct RealRegistry {
    host: String,
    http: reqwest::Client,
    login: Option<(String, String)>,
}

impl RealRegistry {
    fn find(variable: &str) -> Option<Self> {
        let Ok(host) = std::env::var(variable) else {
            assert!(
                std::env::var("ACRTASK_TEST_SKIP_ENGINE").is_ok(),
                "{variable} does not name a registry: run `cargo xtask test`, or `eval \"$(cargo xtask env)\"` before this, \
                 or set ACRTASK_TEST_SKIP_ENGINE to leave these tests out"
            );
            return None;
        };
        acrtask_registry::install_crypto_provider();
        Some(Self {
            host,
            http: reqwest::Client::new(),
            login: None,
        })
    }

    fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        let request = self
            .http
            .request(method, format!("http://{}/v2/{path}", self.host));
        match &self.login {
            Some((user, password)) => request.basic_auth(user, Some(password)),
            None => request,
        }
    }

    async fn push_blob(&self, repository: &str, bytes: Vec<u8>) -> Value {
        let digest = sha256_of(&bytes);
        let size = bytes.len();
        let begun = self
            .request(
                reqwest::Method::POST,
                &format!("{repository}/blobs/uploads/"),
            )
            .send()
            .await
            .unwrap();
        let location = begun.headers()["location"].to_str().unwrap().to_owned();
        let mut url = url::Url::parse(&format!("http://{}/", self.host))
            .unwrap()
            .join(&location)
            .unwrap();
        url.query_pairs_mut().append_pair("digest", &digest);
        let mut put = self.http.put(url).body(bytes);
        if let Some((user, password)) = &self.login {
            put = put.basic_auth(user, Some(password));
        }
        let put = put.send().await.unwrap();
        assert!(put.status().is_success(), "{}", put.status());
        json!({"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": size})
    }

    async fn push_manifest(&self, repository: &str, tag: &str, manifest: &Value) -> String {
        let text = manifest.to_string();
        let put = self
            .request(
                reqwest::Method::PUT,
                &format!("{repository}/manifests/{tag}"),
            )
            .header("content-type", manifest["mediaType"].as_str().unwrap())
            .body(text.clone())
            .send()
            .await
            .unwrap();
        assert!(put.status().is_success(), "{}", put.status());
        sha256_of(text.as_bytes())
    }

    /// Pushes an index with one image per platform. The note makes each image different.
    async fn push_index(&self, repository: &str, tag: &str, images: &[(&str, &str)]) -> String {
        let mut entries = Vec::new();
        for (architecture, note) in images {
            let config = json!({"os": "linux", "architecture": architecture, "note": note});
            let config = self
                .push_blob(repository, config.to_string().into_bytes())
                .await;
            let image = json!({
                "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [],
            });
            let name = format!("{tag}-{architecture}-{note}");
            let digest = self.push_manifest(repository, &name, &image).await;
            entries.push(json!({
                "mediaType": MANIFEST, "digest": digest, "size": image.to_string().len(),
                "platform": {"os": "linux", "architecture": architecture},
            }));
        }
        let index = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries,
        });
        self.push_manifest(repository, tag, &index).await
    }
}

fn sha256_of(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

fn repository() -> String {
    format!("watched/{:016x}", rand::random::<u64>())
}

#[tokio::test]
async fn index_change_for_another_platform_is_not_stale() {
    let Some(real) = RealRegistry::find("ACRTASK_TEST_REGISTRY") else {
        return;
    };
    let server = server().await;
    let repository = repository();
    let base = format!("{}/{repository}:1", real.host);
    let first = real
        .push_index(&repository, "1", &[("amd64", "a"), ("arm64", "a")])
        .await;
    let body = json!({"name": "one", "cmd": "alpine true"});
    server
        .post("/tasks", body)
        .await
        .json::<Value>(StatusCode::CREATED);
    server
        .complete_push_from(
            "one",
            ("r.io/one:1", 'f'),
            &[(&base, first.parse().unwrap(), BaseRole::Runtime)],
        )
        .await;
    update_watches(&server.app).await.unwrap();
    poll_all(&server).await;
    let seen = watch_row(&server, &base).await;
    assert_eq!(seen.digest.as_ref().map(ToString::to_string), Some(first));
    let platforms = server.app.store.base_platforms(&seen).await.unwrap();
    let names: Vec<&String> = platforms.keys().collect();
    assert_eq!(names, ["linux/amd64", "linux/arm64"]);
    poll_all(&server).await;
    assert_eq!(watch_row(&server, &base).await.status, BaseStatus::Ok);
    // The image is for amd64 only.
    real.push_index(&repository, "1", &[("amd64", "a"), ("arm64", "b")])
        .await;
    poll_all(&server).await;
    assert_eq!(changes(&server, &base).await[0].platforms, ["linux/arm64"]);
    let moved = server.app.store.stale_bases().await.unwrap();
    assert_eq!((moved.len(), moved[0].affects_platforms), (1, false));
    real.push_index(&repository, "1", &[("amd64", "b"), ("arm64", "b")])
        .await;
    poll_all(&server).await;
    assert_eq!(changes(&server, &base).await[0].platforms, ["linux/amd64"]);
    let moved = server.app.store.stale_bases().await.unwrap();
    assert_eq!((moved.len(), moved[0].affects_platforms), (1, true));
}

#[tokio::test]
async fn private_tag_is_polled_with_the_login_of_its_task() {
    let Some(mut real) = RealRegistry::find("ACRTASK_TEST_AUTH_REGISTRY") else {
        return;
    };
    let variable = |name: &str| std::env::var(name).unwrap();
    let login = (
        variable("ACRTASK_TEST_AUTH_USER"),
        variable("ACRTASK_TEST_AUTH_PASSWORD"),
    );
    real.login = Some(login.clone());
    let server = server().await;
    let repository = repository();
    let base = format!("{}/{repository}:1", real.host);
    let digest = real.push_index(&repository, "1", &[("amd64", "a")]).await;
    watch_base(&server, "one", &base).await;
    poll_all(&server).await;
    assert_eq!(watch_row(&server, &base).await.status, BaseStatus::Denied);
    let put = json!({"username": login.0, "password": login.1, "task": "one"});
    server
        .put(&format!("/credentials/{}", real.host), put)
        .await
        .json::<Value>(StatusCode::OK);
    update_watches(&server.app).await.unwrap();
    poll_all(&server).await;
    let filter = WatchFilter {
        name: Some(base),
        limit: 10,
        ..WatchFilter::default()
    };
    let rows = server.app.store.watches(filter).await.unwrap();
    let own = rows.iter().find(|row| !row.scope.is_empty()).unwrap();
    assert_eq!(own.status, BaseStatus::Ok, "{own:?}");
    assert_eq!(own.digest.as_ref().map(ToString::to_string), Some(digest));
}
