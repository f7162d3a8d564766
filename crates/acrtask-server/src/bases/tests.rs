//! The watcher against a real registry where there is one, and against one that misbehaves on purpose.

use std::time::Duration;

use acrtask_api::image::{BaseChange, BaseStatus};
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
    api::testing::{NOW, Server, sha},
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

async fn server() -> Server {
    let server = Server::with(Config {
        base_interval: Duration::from_secs(300),
        // One after the other, so that what is asked can be counted.
        base_parallel: 1,
        ..Config::default()
    })
    .await;
    server.runner("mine").await;
    server
}

/// A task whose image stands on `base`, and its watch.
async fn watched(server: &Server, task: &str, base: &str) -> WatchRow {
    let body = json!({"name": task, "cmd": "alpine true"});
    server
        .post("/tasks", body)
        .await
        .json::<Value>(StatusCode::CREATED);
    let bases = [(base, '0', BaseRole::Runtime)];
    let image = format!("r.io/{task}:1");
    server.pushed(task, (&image, 'f'), &bases).await;
    compare(&server.app).await.unwrap();
    row(server, base).await
}

async fn row(server: &Server, name: &str) -> WatchRow {
    let filter = WatchFilter {
        name: Some(name.into()),
        limit: 10,
        ..WatchFilter::default()
    };
    server.app.store.watches(filter).await.unwrap().remove(0)
}

/// Makes everything due and looks at it.
async fn look(server: &Server) {
    let app = &server.app;
    app.clock.set(app.clock.now_ms() + 1000);
    let now = app.clock.now_ms();
    app.store.hurry_watches(None, now).await.unwrap();
    let due = app.store.claim_watches(now, LEASE_MS, 256).await;
    let due = futures::stream::iter([due]);
    app.watcher.look_at(app, due).await.unwrap();
}

async fn changes(server: &Server, name: &str) -> Vec<BaseChange> {
    let id = row(server, name).await.id;
    server.app.store.base_changes(id, 10).await.unwrap()
}

fn digest_header(letter: char) -> ResponseTemplate {
    ResponseTemplate::new(200)
        .insert_header("docker-content-digest", sha(letter).as_str())
        .insert_header("etag", format!("\"{letter}\"").as_str())
        .set_body_raw(vec![b' '; 100], MANIFEST)
}

async fn answer(registry: &MockServer, template: ResponseTemplate) {
    registry.reset().await;
    Mock::given(method("HEAD"))
        .and(path("/v2/base/manifests/1"))
        .respond_with(template)
        .mount(registry)
        .await;
}

async fn heads(registry: &MockServer) -> usize {
    let requests = registry.received_requests().await.unwrap();
    requests
        .iter()
        .filter(|request| request.method.as_str() == "HEAD")
        .count()
}

#[tokio::test]
async fn a_tag_is_looked_at_and_its_moves_are_seen() {
    let registry = MockServer::start().await;
    let server = server().await;
    let base = format!("{}/base:1", registry.address());
    let new = watched(&server, "one", &base).await;
    assert_eq!((new.status, new.next_check_at), (BaseStatus::New, NOW));
    answer(&registry, digest_header('a')).await;
    look(&server).await;
    let seen = row(&server, &base).await;
    assert_eq!((seen.status, seen.digest), (BaseStatus::Ok, Some(sha('a'))));
    let next = seen.next_check_at - server.app.clock.now_ms();
    assert!((270_000..=330_000).contains(&next), "{next}");
    // All kinds of manifests are asked for.
    let requests = registry.received_requests().await.unwrap();
    let accepts = requests[0].headers["accept"].to_str().unwrap();
    assert_eq!(accepts.split(", ").count(), 4, "{accepts}");
    // What is known is said, and nothing is sent.
    registry.reset().await;
    Mock::given(method("HEAD"))
        .and(header("if-none-match", "\"a\""))
        .respond_with(ResponseTemplate::new(304))
        .expect(1)
        .mount(&registry)
        .await;
    look(&server).await;
    let same = row(&server, &base).await;
    assert_eq!((same.status, same.digest), (BaseStatus::Ok, Some(sha('a'))));
    registry.verify().await;
    for (letter, back) in [('b', false), ('a', true), ('c', false)] {
        answer(&registry, digest_header(letter)).await;
        look(&server).await;
        let last = changes(&server, &base).await.remove(0);
        assert_eq!((last.new, last.moved_back), (sha(letter), back));
    }
    let moved = server.app.store.moved_bases().await.unwrap();
    assert_eq!(moved[0].now, sha('c'));
}

#[tokio::test]
async fn what_is_wrong_is_a_state_and_no_loop() {
    let registry = MockServer::start().await;
    let server = server().await;
    let base = format!("{}/base:1", registry.address());
    watched(&server, "one", &base).await;
    answer(&registry, digest_header('a')).await;
    look(&server).await;
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
        answer(&registry, template).await;
        look(&server).await;
        let seen = row(&server, &base).await;
        assert_eq!(seen.status, expected, "{status}");
        assert!(seen.detail.is_some_and(|detail| !detail.is_empty()));
        assert_eq!(seen.digest, Some(sha('a')), "what is known stays known");
        let next = seen.next_check_at - server.app.clock.now_ms();
        assert!(
            (least * 9 / 10..=most * 11 / 10).contains(&next),
            "{status}: {next}"
        );
        // A challenge is answered, once.
        let asked = 1 + usize::from(challenge.is_some());
        assert_eq!(heads(&registry).await, asked, "{status} is not asked again");
    }
    answer(&registry, digest_header('a')).await;
    look(&server).await;
    let well = row(&server, &base).await;
    assert_eq!((well.status, well.failures), (BaseStatus::Ok, 0));
    assert_eq!(changes(&server, &base).await, []);
    // Nobody is there at all.
    let gone = "127.0.0.1:9/base:1";
    watched(&server, "two", gone).await;
    look(&server).await;
    assert_eq!(row(&server, gone).await.status, BaseStatus::Unreachable);
}

#[tokio::test]
async fn a_registry_that_limits_us_is_left_alone_for_as_long_as_it_says() {
    let registry = MockServer::start().await;
    let server = server().await;
    let base = format!("{}/base:1", registry.address());
    let other = format!("{}/other:1", registry.address());
    watched(&server, "one", &base).await;
    watched(&server, "two", &other).await;
    registry.reset().await;
    let limited = ResponseTemplate::new(429).insert_header("retry-after", "600");
    Mock::given(method("HEAD"))
        .respond_with(limited)
        .mount(&registry)
        .await;
    look(&server).await;
    assert_eq!(heads(&registry).await, 1, "one budget for both");
    let now = server.app.clock.now_ms();
    let states = [row(&server, &base).await, row(&server, &other).await];
    assert_eq!(states[0].status, BaseStatus::Limited);
    for state in states {
        let wait = state.next_check_at - now;
        assert!((599_000..=600_000).contains(&wait), "{wait}");
    }
    // Who insists is refused by the budget.
    look(&server).await;
    assert_eq!(heads(&registry).await, 1);
}

#[tokio::test]
async fn a_push_makes_its_tag_due() {
    let registry = MockServer::start().await;
    let server = server().await;
    let base = format!("{}/base:1", registry.address());
    watched(&server, "one", &base).await;
    answer(&registry, digest_header('a')).await;
    look(&server).await;
    let host = registry.address().to_string();
    let due = async || {
        let now = server.app.clock.now_ms();
        row(&server, &base).await.next_check_at <= now
    };
    pushed(&server.app, &host, "other", None).await.unwrap();
    pushed(&server.app, &host, "base", Some("2")).await.unwrap();
    pushed(&server.app, "not a host", "base", Some("1"))
        .await
        .unwrap();
    assert!(!due().await);
    pushed(&server.app, &host, "base", Some("1")).await.unwrap();
    assert!(due().await);
    look(&server).await;
    assert!(!due().await);
    pushed(&server.app, &host, "base", None).await.unwrap();
    assert!(due().await);
}

#[tokio::test]
async fn where_clouds_keep_secrets_is_not_asked() {
    let server = server().await;
    let base = "169.254.169.254/base:1";
    watched(&server, "one", base).await;
    look(&server).await;
    let seen = row(&server, base).await;
    assert_eq!(seen.status, BaseStatus::Unreachable);
    let detail = seen.detail.unwrap();
    assert!(detail.contains("not a public address"), "{detail}");
}

/// A registry with real contents.
struct Real {
    host: String,
    http: reqwest::Client,
    login: Option<(String, String)>,
}

impl Real {
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

    async fn blob(&self, repository: &str, bytes: Vec<u8>) -> Value {
        let digest = digest_of(&bytes);
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

    async fn manifest(&self, repository: &str, tag: &str, manifest: &Value) -> String {
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
        digest_of(text.as_bytes())
    }

    /// Pushes an index of an image for each of these platforms, each with a note that makes it another one.
    async fn index(&self, repository: &str, tag: &str, images: &[(&str, &str)]) -> String {
        let mut entries = Vec::new();
        for (architecture, note) in images {
            let config = json!({"os": "linux", "architecture": architecture, "note": note});
            let config = self.blob(repository, config.to_string().into_bytes()).await;
            let image = json!({
                "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [],
            });
            let name = format!("{tag}-{architecture}-{note}");
            let digest = self.manifest(repository, &name, &image).await;
            entries.push(json!({
                "mediaType": MANIFEST, "digest": digest, "size": image.to_string().len(),
                "platform": {"os": "linux", "architecture": architecture},
            }));
        }
        let index = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries,
        });
        self.manifest(repository, tag, &index).await
    }
}

fn digest_of(bytes: &[u8]) -> String {
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
async fn a_real_index_that_changes_for_another_platform_is_told_apart() {
    let Some(real) = Real::find("ACRTASK_TEST_REGISTRY") else {
        return;
    };
    let server = server().await;
    let repository = repository();
    let base = format!("{}/{repository}:1", real.host);
    let first = real
        .index(&repository, "1", &[("amd64", "a"), ("arm64", "a")])
        .await;
    let body = json!({"name": "one", "cmd": "alpine true"});
    server
        .post("/tasks", body)
        .await
        .json::<Value>(StatusCode::CREATED);
    server
        .pushed_from(
            "one",
            ("r.io/one:1", 'f'),
            &[(&base, first.parse().unwrap(), BaseRole::Runtime)],
        )
        .await;
    compare(&server.app).await.unwrap();
    look(&server).await;
    let seen = row(&server, &base).await;
    assert_eq!(seen.digest.as_ref().map(ToString::to_string), Some(first));
    let platforms = server.app.store.base_platforms(&seen).await.unwrap();
    let names: Vec<&String> = platforms.keys().collect();
    assert_eq!(names, ["linux/amd64", "linux/arm64"]);
    look(&server).await;
    assert_eq!(row(&server, &base).await.status, BaseStatus::Ok);
    // The image is for amd64.
    real.index(&repository, "1", &[("amd64", "a"), ("arm64", "b")])
        .await;
    look(&server).await;
    assert_eq!(changes(&server, &base).await[0].platforms, ["linux/arm64"]);
    let moved = server.app.store.moved_bases().await.unwrap();
    assert_eq!((moved.len(), moved[0].touched), (1, false));
    real.index(&repository, "1", &[("amd64", "b"), ("arm64", "b")])
        .await;
    look(&server).await;
    assert_eq!(changes(&server, &base).await[0].platforms, ["linux/amd64"]);
    let moved = server.app.store.moved_bases().await.unwrap();
    assert_eq!((moved.len(), moved[0].touched), (1, true));
}

#[tokio::test]
async fn a_private_tag_is_looked_at_with_the_login_of_its_task() {
    let Some(mut real) = Real::find("ACRTASK_TEST_AUTH_REGISTRY") else {
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
    let digest = real.index(&repository, "1", &[("amd64", "a")]).await;
    watched(&server, "one", &base).await;
    look(&server).await;
    assert_eq!(row(&server, &base).await.status, BaseStatus::Denied);
    let put = json!({"username": login.0, "password": login.1, "task": "one"});
    server
        .put(&format!("/credentials/{}", real.host), put)
        .await
        .json::<Value>(StatusCode::OK);
    compare(&server.app).await.unwrap();
    look(&server).await;
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
