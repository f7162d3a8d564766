//! Tests of `probes.rs`.

use acrtask_api::{
    admin::Scope,
    probe::{Probe, ProbeLogin, ProbeOutcome},
};
use axum::http::{Method, StatusCode};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Value, json};
use wiremock::{
    Mock, MockServer, ResponseTemplate,
    matchers::{header, method, path},
};

use super::*;
use crate::{
    Config,
    api::testing::{NOW, TestServer},
};

const PASSWORD: &str = "correct-horse-battery";

/// Returns a `Date` header that is `ahead` seconds ahead of the server's clock.
fn date_header(ahead: i64) -> String {
    let then = Timestamp::from_second(NOW / 1000 + ahead).unwrap();
    let zoned = then.to_zoned(jiff::tz::TimeZone::UTC);
    zoned.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

/// Starts a registry that accepts one login and reports its time.
async fn start_registry(user: &str, password: &str, ahead: i64) -> MockServer {
    let registry = MockServer::start().await;
    let login = STANDARD.encode(format!("{user}:{password}"));
    let good = ResponseTemplate::new(200)
        .insert_header("date", date_header(ahead))
        .set_body_json(json!({}));
    Mock::given(method("GET"))
        .and(path("/v2/"))
        .and(header("authorization", format!("Basic {login}")))
        .respond_with(good)
        .mount(&registry)
        .await;
    let wants = ResponseTemplate::new(401)
        .insert_header("date", date_header(ahead))
        .insert_header("www-authenticate", "Basic realm=\"it\"")
        // A hostile host that returns the received password.
        .set_body_json(json!({ "errors": [{ "message": format!("not {PASSWORD}") }] }));
    Mock::given(method("GET"))
        .and(path("/v2/"))
        .respond_with(wants)
        .mount(&registry)
        .await;
    registry
}

fn host_of(server: &MockServer) -> String {
    server.address().to_string()
}

async fn store_login(server: &TestServer, host: &str, task: Option<&str>, password: &str) {
    let mut login = json!({ "username": "ci", "password": password });
    if let Some(task) = task {
        login["task"] = task.into();
    }
    server
        .put(&format!("/credentials/{host}"), login)
        .await
        .json::<Value>(StatusCode::OK);
}

async fn create_task(server: &TestServer, body: Value) {
    server
        .post("/tasks", body)
        .await
        .json::<Value>(StatusCode::CREATED);
}

async fn probe(server: &TestServer) -> TaskProbe {
    let response = server.post("/tasks/app/probe", json!({})).await;
    assert!(!response.text().contains(PASSWORD), "{}", response.text());
    response.json(StatusCode::OK)
}

fn probe_of<'a>(found: &'a TaskProbe, host: &str) -> &'a Probe {
    let mut logins = found.logins.iter();
    logins
        .find(|probe| probe.host == host)
        .unwrap_or_else(|| panic!("{host}: {found:#?}"))
}

#[tokio::test]
async fn logins_are_tried_where_they_belong_and_clocks_are_compared() {
    let server = TestServer::start().await;
    let good = start_registry("ci", PASSWORD, 0).await;
    let wrong = start_registry("ci", "another", 90).await;
    let asks = start_registry("other", "another", -7).await;
    let open = MockServer::start().await;
    Mock::given(path("/v2/"))
        .respond_with(ResponseTemplate::new(200).insert_header("date", date_header(0)))
        .mount(&open)
        .await;
    // One host serves pages with success at any path. Another one does not respond.
    let page = MockServer::start().await;
    Mock::given(method("GET"))
        .respond_with(ResponseTemplate::new(200).set_body_raw("<html>", "text/html; charset=utf-8"))
        .mount(&page)
        .await;
    let gone = host_of(&MockServer::builder().start().await);
    create_task(
        &server,
        json!({ "name": "app", "cmd": "alpine true", "registry": host_of(&asks) }),
    )
    .await;
    store_login(&server, &host_of(&good), Some("app"), PASSWORD).await;
    // The login of the task has priority over the different login of all tasks.
    store_login(&server, &host_of(&good), None, "of all tasks").await;
    store_login(&server, &host_of(&wrong), None, PASSWORD).await;
    store_login(&server, &host_of(&open), Some("app"), PASSWORD).await;
    store_login(&server, &host_of(&page), None, PASSWORD).await;
    let found = probe(&server).await;
    assert_eq!(found.source, None, "the task has no context");
    assert_eq!(found.logins.len(), 5, "{found:#?}");
    let result_of = |server: &MockServer| {
        let probe = probe_of(&found, &host_of(server));
        (probe.outcome, probe.login, probe.clock_ahead_secs)
    };
    let (own, all) = (Some(ProbeLogin::Task), Some(ProbeLogin::All));
    assert_eq!(result_of(&good), (ProbeOutcome::Works, own, Some(0)));
    assert_eq!(result_of(&wrong), (ProbeOutcome::Denied, all, Some(90)));
    assert_eq!(result_of(&asks), (ProbeOutcome::NoLogin, None, Some(-7)));
    assert_eq!(result_of(&open), (ProbeOutcome::Open, own, Some(0)));
    assert_eq!(result_of(&page).0, ProbeOutcome::NoRegistry);
    let wrong = probe_of(&found, &host_of(&wrong));
    let help = wrong.help.as_deref().unwrap();
    assert!(help.contains("acrtask credential set"), "{help}");
    assert!(wrong.message.contains("***"), "{}", wrong.message);
    // No host receives a login before it requests one, and no host receives the login of another
    // host.
    let got = open.received_requests().await.unwrap();
    assert!(
        got.iter()
            .all(|one| !one.headers.contains_key("authorization"))
    );
    let got = asks.received_requests().await.unwrap();
    assert!(
        got.iter()
            .all(|one| !one.headers.contains_key("authorization"))
    );
    // Without a stored login, the registry of the task is still probed.
    let own = json!({ "name": "app", "cmd": "alpine true", "registry": host_of(&page) });
    server
        .put("/tasks/app", own)
        .await
        .json::<Value>(StatusCode::OK);
    server
        .delete(&format!("/credentials/{}", host_of(&page)))
        .await;
    let found = probe(&server).await;
    let page = probe_of(&found, &host_of(&page));
    assert_eq!((page.outcome, page.login), (ProbeOutcome::NoRegistry, None));
    assert!(
        page.help
            .as_deref()
            .unwrap()
            .contains("acrtask task update app")
    );
    // A host that does not respond.
    store_login(&server, &gone, Some("app"), PASSWORD).await;
    let found = probe(&server).await;
    assert_eq!(probe_of(&found, &gone).outcome, ProbeOutcome::Unreachable);
}

#[tokio::test]
async fn limited_token_sees_only_the_logins_of_its_task() {
    let (own, all) = (
        start_registry("ci", PASSWORD, 0).await,
        start_registry("ci", PASSWORD, 0).await,
    );
    // The registry has a private address. The operator allows it.
    let server = TestServer::with(Config {
        insecure_registries: vec![host_of(&own)],
        ..Config::default()
    })
    .await;
    create_task(&server, json!({ "name": "app", "cmd": "alpine true" })).await;
    store_login(&server, &host_of(&own), Some("app"), PASSWORD).await;
    store_login(&server, &host_of(&all), None, PASSWORD).await;
    let token = server.create_token(&[Scope::Run], Some("app")).await;
    let response = server
        .send_as(Method::POST, "/tasks/app/probe", &token, None)
        .await;
    let found: TaskProbe = response.json(StatusCode::OK);
    assert_eq!(found.logins.len(), 1);
    assert_eq!(
        probe_of(&found, &host_of(&own)).outcome,
        ProbeOutcome::Works
    );
    assert!(all.received_requests().await.unwrap().is_empty());
}

#[tokio::test]
async fn too_many_concurrent_probes_are_refused() {
    let server = TestServer::start().await;
    create_task(&server, json!({ "name": "app", "cmd": "alpine true" })).await;
    let permits = server.app.probes.try_acquire_many(4).unwrap();
    server
        .post("/tasks/app/probe", json!({}))
        .await
        .problem(StatusCode::TOO_MANY_REQUESTS);
    drop(permits);
    assert_eq!(probe(&server).await, TaskProbe::default());
}

/// Starts a git host that accepts one login, up to the list of references.
async fn start_git_host() -> MockServer {
    let git = MockServer::start().await;
    let line = |text: &str| format!("{:04x}{text}", text.len() + 4);
    let refs = [
        line("# service=git-upload-pack\n"),
        "0000".into(),
        line(&format!(
            "{} HEAD\0symref=HEAD:refs/heads/main\n",
            "a".repeat(40)
        )),
        line(&format!("{} refs/heads/main\n", "a".repeat(40))),
        "0000".into(),
    ];
    let good = ResponseTemplate::new(200)
        .insert_header("date", date_header(3))
        .set_body_raw(refs.concat(), "application/x-git-upload-pack-advertisement");
    let login = STANDARD.encode(format!("ci:{PASSWORD}"));
    Mock::given(path("/app.git/info/refs"))
        .and(header("authorization", format!("Basic {login}")))
        .respond_with(good)
        .mount(&git)
        .await;
    Mock::given(method("GET"))
        .respond_with(
            ResponseTemplate::new(401)
                .insert_header("date", date_header(3))
                .insert_header("www-authenticate", "Basic realm=\"it\""),
        )
        .mount(&git)
        .await;
    git
}

#[tokio::test]
async fn repository_is_read_with_the_login_of_its_host() {
    let private = Config {
        notify_private: true,
        ..Config::default()
    };
    let server = TestServer::with(private).await;
    let git = start_git_host().await;
    let context = |branch: &str| format!("http://{}/app.git#{branch}", host_of(&git));
    create_task(
        &server,
        json!({ "name": "app", "cmd": "alpine true", "context": context("main") }),
    )
    .await;
    let source = probe(&server).await.source.unwrap();
    assert_eq!(source.outcome, ProbeOutcome::Denied, "{source:#?}");
    assert_eq!((source.login, source.clock_ahead_secs), (None, Some(3)));
    let help = source.help.unwrap();
    let set = format!(
        "acrtask credential set {} --username USER --task app",
        host_of(&git)
    );
    assert!(help.contains(&set), "{help}");
    store_login(&server, &host_of(&git), None, PASSWORD).await;
    let found = probe(&server).await;
    assert_eq!(found.logins, [], "the login is not for a registry");
    let source = found.source.unwrap();
    assert_eq!(source.outcome, ProbeOutcome::Works, "{source:#?}");
    assert_eq!(source.login, Some(ProbeLogin::All));
    store_login(&server, &host_of(&git), Some("app"), "expired").await;
    let source = probe(&server).await.source.unwrap();
    assert_eq!(source.outcome, ProbeOutcome::Denied, "{source:#?}");
    assert_eq!(source.login, Some(ProbeLogin::Task));
    store_login(&server, &host_of(&git), Some("app"), PASSWORD).await;
    let other = json!({ "name": "app", "cmd": "alpine true", "context": context("gone") });
    server
        .put("/tasks/app", other)
        .await
        .json::<Value>(StatusCode::OK);
    let source = probe(&server).await.source.unwrap();
    assert_eq!(source.outcome, ProbeOutcome::Missing, "{source:#?}");
    // SSH without a key is not attempted.
    let other = json!({ "name": "app", "cmd": "alpine true", "context": "git@127.0.0.1:app.git" });
    server
        .put("/tasks/app", other)
        .await
        .json::<Value>(StatusCode::OK);
    let source = probe(&server).await.source.unwrap();
    assert_eq!(source.outcome, ProbeOutcome::NoLogin, "{source:#?}");
}

#[tokio::test]
async fn private_addresses_are_not_probed_by_default() {
    let server = TestServer::start().await;
    let git = start_git_host().await;
    let context = format!("http://{}/app.git#main", host_of(&git));
    create_task(
        &server,
        json!({ "name": "app", "cmd": "alpine true", "context": context }),
    )
    .await;
    store_login(&server, &host_of(&git), Some("app"), PASSWORD).await;
    // The metadata service of a cloud is not probed either, under any name.
    store_login(&server, "169.254.169.254", Some("app"), PASSWORD).await;
    let found = probe(&server).await;
    let source = found.source.as_ref().unwrap();
    assert_eq!(source.outcome, ProbeOutcome::PrivateAddress, "{source:#?}");
    assert_eq!(source.clock_ahead_secs, None);
    assert!(git.received_requests().await.unwrap().is_empty());
    let metadata = probe_of(&found, "169.254.169.254");
    assert_eq!(metadata.outcome, ProbeOutcome::Unreachable);
    assert!(
        metadata.message.contains("not a public address"),
        "{metadata:#?}"
    );
}

#[tokio::test]
async fn undecryptable_login_is_reported() {
    let server = TestServer::start().await;
    create_task(
        &server,
        json!({ "name": "app", "cmd": "alpine true", "registry": "reg.example.com" }),
    )
    .await;
    server
        .app
        .store
        .put_credential("", "reg.example.com", ("ci", b"damaged"), None, NOW)
        .await
        .unwrap();
    let found = probe(&server).await;
    let broken = probe_of(&found, "reg.example.com");
    assert_eq!(broken.outcome, ProbeOutcome::Refused);
    assert!(broken.message.contains("decrypted"), "{broken:#?}");
}

/// A closed port, a port with another protocol, a page and a private address have the same result
/// after the same time.
#[tokio::test]
async fn limited_token_cannot_scan_the_ports_of_a_host() {
    let server = TestServer::start().await;
    let page = MockServer::start().await;
    Mock::given(method("GET"))
        .respond_with(ResponseTemplate::new(200).set_body_raw("<html>", "text/html"))
        .mount(&page)
        .await;
    let locked = start_registry("other", "another", 0).await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let hosts = [
        host_of(&page),
        host_of(&locked),
        silent.local_addr().unwrap().to_string(),
        closed.to_string(),
        "169.254.169.254".to_owned(),
    ];
    let mut answers = Vec::new();
    for (number, host) in hosts.iter().enumerate() {
        let name = format!("team/t{number}");
        let scopes = [Scope::Read, Scope::Run, Scope::Write];
        let token = server.create_token(&scopes, Some("team/*")).await;
        let body = json!({ "name": name, "cmd": "alpine true", "registry": host });
        let made = server
            .send_as(Method::POST, "/tasks", &token, Some(&body))
            .await;
        assert_eq!(made.status, StatusCode::CREATED);
        let path = format!("/tasks/team%2Ft{number}/probe");
        let begun = std::time::Instant::now();
        let response = server.send_as(Method::POST, &path, &token, None).await;
        let took = begun.elapsed().as_millis();
        assert!((5_000..7_000).contains(&took), "{host}: {took} ms");
        let text = response.text();
        assert!(text.contains(host.as_str()), "{text}");
        answers.push(text.replace(host.as_str(), "HOST"));
        let again = server.send_as(Method::POST, &path, &token, None).await;
        assert_eq!(
            again.status,
            StatusCode::TOO_MANY_REQUESTS,
            "{}",
            again.text()
        );
    }
    assert!(
        answers.iter().all(|response| *response == answers[0]),
        "{answers:#?}"
    );
    assert!(answers[0].contains("it cannot be used"), "{}", answers[0]);
    let received = page.received_requests().await.unwrap();
    assert_eq!(
        received.len(),
        0,
        "the server connected to a private address"
    );
}
