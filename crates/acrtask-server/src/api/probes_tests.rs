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
    api::testing::{NOW, Server},
};

const PASSWORD: &str = "correct-horse-battery";

/// What a host says of its clock, so many seconds before the server's.
fn date(ahead: i64) -> String {
    let then = Timestamp::from_second(NOW / 1000 + ahead).unwrap();
    let zoned = then.to_zoned(jiff::tz::TimeZone::UTC);
    zoned.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

/// A registry that takes one login, and says what time it has.
async fn registry(user: &str, password: &str, ahead: i64) -> MockServer {
    let registry = MockServer::start().await;
    let login = STANDARD.encode(format!("{user}:{password}"));
    let good = ResponseTemplate::new(200)
        .insert_header("date", date(ahead))
        .set_body_json(json!({}));
    Mock::given(method("GET"))
        .and(path("/v2/"))
        .and(header("authorization", format!("Basic {login}")))
        .respond_with(good)
        .mount(&registry)
        .await;
    let wants = ResponseTemplate::new(401)
        .insert_header("date", date(ahead))
        .insert_header("www-authenticate", "Basic realm=\"it\"")
        // A host that tells what it was sent.
        .set_body_json(json!({ "errors": [{ "message": format!("not {PASSWORD}") }] }));
    Mock::given(method("GET"))
        .and(path("/v2/"))
        .respond_with(wants)
        .mount(&registry)
        .await;
    registry
}

fn host(server: &MockServer) -> String {
    server.address().to_string()
}

async fn store(server: &Server, host: &str, task: Option<&str>, password: &str) {
    let mut login = json!({ "username": "ci", "password": password });
    if let Some(task) = task {
        login["task"] = task.into();
    }
    server
        .put(&format!("/credentials/{host}"), login)
        .await
        .json::<Value>(StatusCode::OK);
}

async fn task(server: &Server, body: Value) {
    server
        .post("/tasks", body)
        .await
        .json::<Value>(StatusCode::CREATED);
}

async fn probe(server: &Server) -> TaskProbe {
    let answer = server.post("/tasks/app/probe", json!({})).await;
    assert!(!answer.text().contains(PASSWORD), "{}", answer.text());
    answer.json(StatusCode::OK)
}

fn of<'a>(found: &'a TaskProbe, host: &str) -> &'a Probe {
    let mut logins = found.logins.iter();
    logins
        .find(|probe| probe.host == host)
        .unwrap_or_else(|| panic!("{host}: {found:#?}"))
}

#[tokio::test]
async fn logins_are_tried_where_they_belong_and_clocks_are_compared() {
    let server = Server::start().await;
    let good = registry("ci", PASSWORD, 0).await;
    let wrong = registry("ci", "another", 90).await;
    let asks = registry("nobody", "another", -7).await;
    let open = MockServer::start().await;
    Mock::given(path("/v2/"))
        .respond_with(ResponseTemplate::new(200).insert_header("date", date(0)))
        .mount(&open)
        .await;
    // Pages for people, with success at any path; and nothing at all.
    let page = MockServer::start().await;
    Mock::given(method("GET"))
        .respond_with(ResponseTemplate::new(200).set_body_raw("<html>", "text/html; charset=utf-8"))
        .mount(&page)
        .await;
    let gone = host(&MockServer::builder().start().await);
    task(
        &server,
        json!({ "name": "app", "cmd": "alpine true", "registry": host(&asks) }),
    )
    .await;
    store(&server, &host(&good), Some("app"), PASSWORD).await;
    // The task's own comes before that of all, which is another.
    store(&server, &host(&good), None, "of all tasks").await;
    store(&server, &host(&wrong), None, PASSWORD).await;
    store(&server, &host(&open), Some("app"), PASSWORD).await;
    store(&server, &host(&page), None, PASSWORD).await;
    let found = probe(&server).await;
    assert_eq!(found.source, None, "its files come from nowhere");
    assert_eq!(found.logins.len(), 5, "{found:#?}");
    let told = |server: &MockServer| {
        let probe = of(&found, &host(server));
        (probe.outcome, probe.login, probe.clock_ahead)
    };
    let (own, all) = (Some(ProbeLogin::Task), Some(ProbeLogin::All));
    assert_eq!(told(&good), (ProbeOutcome::Works, own, Some(0)));
    assert_eq!(told(&wrong), (ProbeOutcome::Denied, all, Some(90)));
    assert_eq!(told(&asks), (ProbeOutcome::NoLogin, None, Some(-7)));
    assert_eq!(told(&open), (ProbeOutcome::Open, own, Some(0)));
    assert_eq!(told(&page).0, ProbeOutcome::NoRegistry);
    let wrong = of(&found, &host(&wrong));
    let help = wrong.help.as_deref().unwrap();
    assert!(help.contains("acrtask credential set"), "{help}");
    assert!(wrong.message.contains("***"), "{}", wrong.message);
    // Nobody was given a login before it was asked for, nor one that is another's.
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
    // The same without a login: it is the task's own.
    let own = json!({ "name": "app", "cmd": "alpine true", "registry": host(&page) });
    server
        .put("/tasks/app", own)
        .await
        .json::<Value>(StatusCode::OK);
    server
        .delete(&format!("/credentials/{}", host(&page)))
        .await;
    let found = probe(&server).await;
    let page = of(&found, &host(&page));
    assert_eq!((page.outcome, page.login), (ProbeOutcome::NoRegistry, None));
    assert!(
        page.help
            .as_deref()
            .unwrap()
            .contains("acrtask task update app")
    );
    // A host that does not answer.
    store(&server, &gone, Some("app"), PASSWORD).await;
    let found = probe(&server).await;
    assert_eq!(of(&found, &gone).outcome, ProbeOutcome::Unreachable);
}

#[tokio::test]
async fn whoever_sees_one_task_alone_is_told_of_no_login_that_is_not_its() {
    let (own, all) = (
        registry("ci", PASSWORD, 0).await,
        registry("ci", PASSWORD, 0).await,
    );
    // It is at a private address, and named by the operator.
    let server = Server::with(Config {
        insecure_registries: vec![host(&own)],
        ..Config::default()
    })
    .await;
    task(&server, json!({ "name": "app", "cmd": "alpine true" })).await;
    store(&server, &host(&own), Some("app"), PASSWORD).await;
    store(&server, &host(&all), None, PASSWORD).await;
    let token = server.token(&[Scope::Run], Some("app")).await;
    let asked = server
        .ask(Method::POST, "/tasks/app/probe", &token, None)
        .await;
    let found: TaskProbe = asked.json(StatusCode::OK);
    assert_eq!(found.logins.len(), 1);
    assert_eq!(of(&found, &host(&own)).outcome, ProbeOutcome::Works);
    assert!(all.received_requests().await.unwrap().is_empty());
}

#[tokio::test]
async fn too_many_at_once_are_refused() {
    let server = Server::start().await;
    task(&server, json!({ "name": "app", "cmd": "alpine true" })).await;
    let held = server.app.probes.try_acquire_many(4).unwrap();
    server
        .post("/tasks/app/probe", json!({}))
        .await
        .problem(StatusCode::TOO_MANY_REQUESTS);
    drop(held);
    assert_eq!(probe(&server).await, TaskProbe::default());
}

/// A git host that knows one login, as far as asking for references goes.
async fn git() -> MockServer {
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
        .insert_header("date", date(3))
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
                .insert_header("date", date(3))
                .insert_header("www-authenticate", "Basic realm=\"it\""),
        )
        .mount(&git)
        .await;
    git
}

#[tokio::test]
async fn a_repository_is_read_with_the_login_of_its_host() {
    let private = Config {
        notify_private: true,
        ..Config::default()
    };
    let server = Server::with(private).await;
    let git = git().await;
    let context = |branch: &str| format!("http://{}/app.git#{branch}", host(&git));
    task(
        &server,
        json!({ "name": "app", "cmd": "alpine true", "context": context("main") }),
    )
    .await;
    let source = probe(&server).await.source.unwrap();
    assert_eq!(source.outcome, ProbeOutcome::Denied, "{source:#?}");
    assert_eq!((source.login, source.clock_ahead), (None, Some(3)));
    let help = source.help.unwrap();
    let set = format!(
        "acrtask credential set {} --username USER --task app",
        host(&git)
    );
    assert!(help.contains(&set), "{help}");
    store(&server, &host(&git), None, PASSWORD).await;
    let found = probe(&server).await;
    assert_eq!(found.logins, [], "it is no registry's");
    let source = found.source.unwrap();
    assert_eq!(source.outcome, ProbeOutcome::Works, "{source:#?}");
    assert_eq!(source.login, Some(ProbeLogin::All));
    store(&server, &host(&git), Some("app"), "expired").await;
    let source = probe(&server).await.source.unwrap();
    assert_eq!(source.outcome, ProbeOutcome::Denied, "{source:#?}");
    assert_eq!(source.login, Some(ProbeLogin::Task));
    store(&server, &host(&git), Some("app"), PASSWORD).await;
    let other = json!({ "name": "app", "cmd": "alpine true", "context": context("gone") });
    server
        .put("/tasks/app", other)
        .await
        .json::<Value>(StatusCode::OK);
    let source = probe(&server).await.source.unwrap();
    assert_eq!(source.outcome, ProbeOutcome::Missing, "{source:#?}");
    // SSH without a key is not even tried.
    let other = json!({ "name": "app", "cmd": "alpine true", "context": "git@127.0.0.1:app.git" });
    server
        .put("/tasks/app", other)
        .await
        .json::<Value>(StatusCode::OK);
    let source = probe(&server).await.source.unwrap();
    assert_eq!(source.outcome, ProbeOutcome::NoLogin, "{source:#?}");
}

#[tokio::test]
async fn a_server_that_may_not_connect_to_private_addresses_does_not() {
    let server = Server::start().await;
    let git = git().await;
    let context = format!("http://{}/app.git#main", host(&git));
    task(
        &server,
        json!({ "name": "app", "cmd": "alpine true", "context": context }),
    )
    .await;
    store(&server, &host(&git), Some("app"), PASSWORD).await;
    // Nor to what tells a machine of a cloud its own secrets, whatever it is called.
    store(&server, "169.254.169.254", Some("app"), PASSWORD).await;
    let found = probe(&server).await;
    let source = found.source.as_ref().unwrap();
    assert_eq!(source.outcome, ProbeOutcome::PrivateAddress, "{source:#?}");
    assert_eq!(source.clock_ahead, None);
    assert!(git.received_requests().await.unwrap().is_empty());
    let metadata = of(&found, "169.254.169.254");
    assert_eq!(metadata.outcome, ProbeOutcome::Unreachable);
    assert!(
        metadata.message.contains("not a public address"),
        "{metadata:#?}"
    );
}

#[tokio::test]
async fn a_login_that_cannot_be_decrypted_is_told() {
    let server = Server::start().await;
    task(
        &server,
        json!({ "name": "app", "cmd": "alpine true", "registry": "reg.example.com" }),
    )
    .await;
    server
        .app
        .store
        .put_credential("", "reg.example.com", "ci", b"damaged", NOW)
        .await
        .unwrap();
    let found = probe(&server).await;
    let broken = of(&found, "reg.example.com");
    assert_eq!(broken.outcome, ProbeOutcome::Refused);
    assert!(broken.message.contains("decrypted"), "{broken:#?}");
}

/// A closed port, a port that talks something else, a page and a private address look the same, after the same time.
#[tokio::test]
async fn a_limited_token_learns_nothing_of_the_ports_of_a_host() {
    let server = Server::start().await;
    let page = MockServer::start().await;
    Mock::given(method("GET"))
        .respond_with(ResponseTemplate::new(200).set_body_raw("<html>", "text/html"))
        .mount(&page)
        .await;
    let locked = registry("nobody", "another", 0).await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let hosts = [
        host(&page),
        host(&locked),
        silent.local_addr().unwrap().to_string(),
        closed.to_string(),
        "169.254.169.254".to_owned(),
    ];
    let mut answers = Vec::new();
    for (number, host) in hosts.iter().enumerate() {
        let name = format!("team/t{number}");
        let scopes = [Scope::Read, Scope::Run, Scope::Write];
        let token = server.token(&scopes, Some("team/*")).await;
        let body = json!({ "name": name, "cmd": "alpine true", "registry": host });
        let made = server
            .ask(Method::POST, "/tasks", &token, Some(&body))
            .await;
        assert_eq!(made.status, StatusCode::CREATED);
        let path = format!("/tasks/team%2Ft{number}/probe");
        let begun = std::time::Instant::now();
        let answer = server.ask(Method::POST, &path, &token, None).await;
        let took = begun.elapsed().as_millis();
        assert!((5_000..7_000).contains(&took), "{host}: {took} ms");
        let text = answer.text();
        assert!(text.contains(host.as_str()), "{text}");
        answers.push(text.replace(host.as_str(), "HOST"));
        let again = server.ask(Method::POST, &path, &token, None).await;
        assert_eq!(
            again.status,
            StatusCode::TOO_MANY_REQUESTS,
            "{}",
            again.text()
        );
    }
    assert!(
        answers.iter().all(|answer| *answer == answers[0]),
        "{answers:#?}"
    );
    assert!(answers[0].contains("it cannot be used"), "{}", answers[0]);
    let received = page.received_requests().await.unwrap();
    assert_eq!(received.len(), 0, "a private address was connected to");
}
