//! Tests of commit statuses against a mock of each forge.

use std::time::{Duration, Instant};

use acrtask_model::{RunId, RunState, Secret};
use acrtask_store::{AttemptReport, Claim, Report};
use serde_json::{Value, json};
use wiremock::{
    Mock, MockServer, ResponseTemplate,
    matchers::{header, method, path},
};

use super::{
    request::{Login, status_request},
    *,
};
use crate::{
    Config,
    webhooks::testing::{GITHUB, TestServer, commit, github_pull_request, github_push},
};

/// Starts a control plane with a short poll interval.
pub(super) async fn start_server() -> TestServer {
    TestServer::with_config(Config {
        poll: Duration::from_millis(30),
        public_url: Some("https://ci.example.com/".parse().unwrap()),
        notify_private: true,
        ..Config::default()
    })
    .await
}

/// Waits until `check` returns a value.
pub(super) async fn until<T>(what: &str, mut evaluation: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = evaluation().await {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Leases a run to a fictitious runner and reports its start.
pub(super) async fn start_run(server: &TestServer, run: &RunId) {
    let store = &server.inner.app().store;
    let now = server.inner.app().clock.now_ms();
    let classes = store.ready_requirements().await.unwrap();
    let classes: Vec<i64> = classes.iter().map(|class| class.id).collect();
    let claims = store
        .claim(&classes, 100, now, 60_000, 60_000, |candidates| {
            candidates
                .iter()
                .filter(|candidate| candidate.id == *run)
                .map(|candidate| Claim {
                    run: candidate.id.clone(),
                    runner_id: "runner".into(),
                })
                .collect()
        })
        .await
        .unwrap();
    assert_eq!(claims.len(), 1);
    report(server, run, Report::Started).await;
}

pub(super) async fn finish_run(server: &TestServer, run: &RunId, state: RunState) {
    let finished = Report::Finished {
        state,
        reason: (state != RunState::Succeeded).then(|| "the step `test` failed".to_owned()),
        result: Box::default(),
        log_length: 0,
        log_sha256: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".into(),
    };
    report(server, run, finished).await;
}

async fn report(server: &TestServer, run: &RunId, report: Report) {
    let reported = AttemptReport {
        run: run.clone(),
        attempt: 1,
        runner_id: "runner".into(),
        report,
    };
    let now = server.inner.app().clock.now_ms();
    let store = &server.inner.app().store;
    store.report(&[reported], now, 60_000).await.unwrap();
}

/// Returns the statuses that the mock received, as `state: description`.
async fn received_statuses(forge: &MockServer) -> Vec<String> {
    let requests = forge.received_requests().await.unwrap();
    requests
        .iter()
        .map(|request| {
            let body: Value = serde_json::from_slice(&request.body).unwrap();
            format!(
                "{}: {}",
                body["state"].as_str().unwrap(),
                body["description"].as_str().unwrap()
            )
        })
        .collect()
}

async fn with_statuses(server: &TestServer, statuses: Value) {
    let body = json!({
        "provider": "github",
        "secrets": [crate::webhooks::testing::SECRET],
        "statuses": statuses,
    });
    server.put("/webhooks/forge", body).await;
}

#[tokio::test]
async fn forge_receives_each_state_of_a_run() {
    let server = start_server().await;
    let forge = MockServer::start().await;
    let sha = commit(1);
    // Two failures do not delay the run.
    Mock::given(method("POST"))
        .respond_with(ResponseTemplate::new(500).set_body_string("oh"))
        .up_to_n_times(2)
        .mount(&forge)
        .await;
    Mock::given(method("POST"))
        .and(path(format!("/repos/team/app/statuses/{sha}")))
        .and(header("authorization", "Bearer ghp_token"))
        .respond_with(ResponseTemplate::new(201))
        .mount(&forge)
        .await;
    with_statuses(
        &server,
        json!({"api": forge.uri(), "token": "status-token"}),
    )
    .await;
    server
        .put("/secrets/status-token", json!({"value": "ghp_token"}))
        .await;
    server.add_task("app", GITHUB, json!({})).await;
    let run = server.deliver("forge", &github_push(&sha, "d1")).await.runs[0].clone();
    until("two attempts have failed", async || {
        let store = &server.inner.app().store;
        let failed = store.failed_statuses(vec![run.to_string()]).await.unwrap();
        failed
            .first()
            .filter(|failed| failed.last_error.contains("500"))
            .cloned()
    })
    .await;
    // The retry is due later; a new state is sent at once.
    until("the forge received `queued`", async || {
        received_statuses(&forge)
            .await
            .contains(&"pending: queued".into())
            .then_some(())
    })
    .await;
    start_run(&server, &run).await;
    until("the forge received `running`", async || {
        received_statuses(&forge)
            .await
            .contains(&"pending: running".into())
            .then_some(())
    })
    .await;
    finish_run(&server, &run, RunState::Failed).await;
    let last = "failure: failed: the step `test` failed".to_owned();
    until("the forge received the result", async || {
        received_statuses(&forge)
            .await
            .contains(&last)
            .then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let all = received_statuses(&forge).await;
    assert_eq!(all.iter().filter(|one| **one == last).count(), 1, "{all:?}");
    let requests = forge.received_requests().await.unwrap();
    let body: Value = serde_json::from_slice(&requests.last().unwrap().body).unwrap();
    assert_eq!(body["context"], "acrtask/app");
    // The status contains no link to a page.
    assert_eq!(body.get("target_url"), None);
}

#[tokio::test]
async fn token_is_not_sent_to_other_hosts_or_redirects() {
    let server = start_server().await;
    let forge = MockServer::start().await;
    let thief = MockServer::start().await;
    Mock::given(method("POST"))
        .respond_with(ResponseTemplate::new(307).insert_header("location", thief.uri()))
        .mount(&forge)
        .await;
    with_statuses(&server, json!({"api": forge.uri()})).await;
    // The login for the repository's host does not apply to another API host.
    server
        .put(
            "/credentials/github.com",
            json!({"username": "u", "password": "other"}),
        )
        .await;
    server.add_task("app", GITHUB, json!({})).await;
    let run = server
        .deliver("forge", &github_push(&commit(1), "d1"))
        .await
        .runs[0]
        .clone();
    let store = &server.inner.app().store;
    let failed = async || {
        let failed = store.failed_statuses(vec![run.to_string()]).await.unwrap();
        failed
            .first()
            .map(|failed| (failed.last_error.clone(), failed.done))
    };
    let (error, _) = until("the login is missing", failed).await;
    assert!(error.starts_with("no login for 127.0.0.1"), "{error}");
    assert!(forge.received_requests().await.unwrap().is_empty());
    let host = forge.address().to_string();
    let login = json!({"username": "u", "password": "right", "task": "app"});
    server.put(&format!("/credentials/{host}"), login).await;
    let (error, done) = until("the request was sent", async || {
        failed().await.filter(|(error, _)| error.contains("307"))
    })
    .await;
    assert_eq!(done, 1, "{error}");
    let sent = &forge.received_requests().await.unwrap()[0];
    assert_eq!(sent.headers["authorization"], "Bearer right");
    assert!(thief.received_requests().await.unwrap().is_empty());
}

#[tokio::test]
async fn unapproved_fork_commit_has_a_waiting_status() {
    let server = start_server().await;
    let forge = MockServer::start().await;
    Mock::given(method("POST"))
        .respond_with(ResponseTemplate::new(201))
        .mount(&forge)
        .await;
    with_statuses(&server, json!({"api": forge.uri(), "token": "t"})).await;
    server.put("/secrets/t", json!({"value": "hunter2"})).await;
    server
        .add_task(
            "app",
            GITHUB,
            json!({"events": ["pullRequest"], "branches": ["main"]}),
        )
        .await;
    let one = github_pull_request("pr_from_fork", &commit(1), "p1");
    let run = server.deliver("forge", &one).await.runs[0].clone();
    until("the forge received the waiting state", async || {
        let waits = "pending: waits for an approval of this commit: branch `";
        let statuses = received_statuses(&forge).await;
        statuses
            .iter()
            .any(|one| one.starts_with(waits))
            .then_some(())
    })
    .await;
    server
        .post(&format!("/runs/{run}/approve"), json!({}))
        .await;
    until("the forge received `queued`", async || {
        received_statuses(&forge)
            .await
            .contains(&"pending: queued".into())
            .then_some(())
    })
    .await;
}

#[test]
fn status_requests_follow_each_forges_api() {
    let mut all = Vec::new();
    for (provider, api, repository, user) in [
        (Provider::GitHub, "https://api.github.com", "team/app", ""),
        (
            Provider::GitHub,
            "https://ghe.example.com/api/v3",
            "team/app",
            "",
        ),
        (
            Provider::GitLab,
            "https://gitlab.example.com/api/v4",
            "team/sub/app",
            "",
        ),
        (
            Provider::Gitea,
            "https://gitea.example.com/api/v1/",
            "team/app",
            "",
        ),
        (
            Provider::Forgejo,
            "https://code.example.com/api/v1",
            "team/app",
            "",
        ),
        (
            Provider::BitbucketCloud,
            "https://api.bitbucket.org/2.0",
            "team/app",
            "ann",
        ),
        (
            Provider::BitbucketCloud,
            "https://api.bitbucket.org/2.0",
            "team/app",
            "x-token-auth",
        ),
        (
            Provider::BitbucketServer,
            "https://git.example.com/bitbucket",
            "TEAM/app",
            "",
        ),
        (
            Provider::AzureDevops,
            "https://dev.azure.com/fabrikam",
            "Web Site/app",
            "",
        ),
    ] {
        let target = Target {
            provider,
            api: api.parse().unwrap(),
            derived: false,
            host: "git.example.com".into(),
            repository: repository.into(),
            commit: "b2".repeat(20),
            context: "acrtask/team/a-task-with-a-rather-long-name-of-its-own".into(),
            task: "t1".into(),
            token: None,
        };
        let login = Login {
            username: user.into(),
            token: Secret::new("TOKEN"),
        };
        let phase = StatusPhase::Finished(RunState::TimedOut);
        let request = status_request(&target, phase, Some("too long"), None, &login).unwrap();
        all.push(format!(
            "{provider}\n  {}\n  {}\n  {}",
            request.url,
            request.authorization.to_str().unwrap(),
            request.body
        ));
    }
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn default_api_is_derived_from_the_repository() {
    let api = |provider, host: &str, path: &str, http: Option<&str>| {
        let http = http.map(|url| url.parse::<Url>().unwrap());
        default_api(provider, host, path, http.as_ref()).map(String::from)
    };
    let https = Some("https://git.example.com:8443/team/app.git");
    assert_eq!(
        api(Provider::GitHub, "github.com", "team/app", None).as_deref(),
        Some("https://api.github.com/")
    );
    assert_eq!(
        api(Provider::GitHub, "git.example.com:8443", "team/app", https).as_deref(),
        Some("https://git.example.com:8443/api/v3")
    );
    assert_eq!(
        api(Provider::Gitea, "git.example.com:2222", "team/app", None).as_deref(),
        Some("https://git.example.com/api/v1")
    );
    assert_eq!(
        api(
            Provider::AzureDevops,
            "dev.azure.com",
            "fabrikam/web/app",
            None
        )
        .as_deref(),
        Some("https://dev.azure.com/fabrikam")
    );
    assert_eq!(
        api(Provider::AzureDevops, "tfs.example.com", "a/b", https),
        None
    );
}

#[test]
fn unencrypted_urls_are_refused() {
    for (url, good) in [
        ("https://api.github.com", true),
        ("http://127.0.0.1:3000", true),
        ("http://[::1]:3000", true),
        ("http://git.example.com", false),
        ("ftp://127.0.0.1", false),
    ] {
        assert_eq!(check_secure(&url.parse().unwrap()).is_ok(), good, "{url}");
    }
}
