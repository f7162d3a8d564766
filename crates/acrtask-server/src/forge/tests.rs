//! Statuses of commits, told to a stand-in of each forge.

use std::time::{Duration, Instant};

use acrtask_model::{RunId, RunState, Secret};
use acrtask_store::{Claim, Report, Reported};
use serde_json::{Value, json};
use wiremock::{
    Mock, MockServer, ResponseTemplate,
    matchers::{header, method, path},
};

use super::{
    request::{Login, status},
    *,
};
use crate::{
    Config,
    webhooks::testing::{GITHUB, World, commit, github_pull_request, github_push},
};

/// A control plane that does not wait long.
pub(super) async fn world() -> World {
    World::with(Config {
        poll: Duration::from_millis(30),
        public_url: Some("https://ci.example.com/".parse().unwrap()),
        notify_private: true,
        ..Config::default()
    })
    .await
}

/// Waits until something holds.
pub(super) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Hands a run to a runner that does not exist, which begins it.
pub(super) async fn begin(world: &World, run: &RunId) {
    let store = &world.server.app().store;
    let now = world.server.app().clock.now_ms();
    let classes = store.ready_classes().await.unwrap();
    let classes: Vec<i64> = classes.iter().map(|class| class.id).collect();
    let claims = store
        .claim(&classes, 100, now, 60_000, 60_000, |candidates| {
            candidates
                .iter()
                .filter(|candidate| candidate.id == *run)
                .map(|candidate| Claim {
                    run: candidate.id.clone(),
                    runner_id: "somebody".into(),
                })
                .collect()
        })
        .await
        .unwrap();
    assert_eq!(claims.len(), 1);
    say(world, run, Report::Started).await;
}

pub(super) async fn end(world: &World, run: &RunId, state: RunState) {
    let finished = Report::Finished {
        state,
        reason: (state != RunState::Succeeded).then(|| "the step `test` failed".to_owned()),
        result: Box::default(),
        log_length: 0,
        log_sha256: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".into(),
    };
    say(world, run, finished).await;
}

async fn say(world: &World, run: &RunId, report: Report) {
    let reported = Reported {
        run: run.clone(),
        attempt: 1,
        runner_id: "somebody".into(),
        report,
    };
    let now = world.server.app().clock.now_ms();
    let store = &world.server.app().store;
    store.report(&[reported], now, 60_000).await.unwrap();
}

/// What the stand-in was told, as `state: description`.
async fn told(forge: &MockServer) -> Vec<String> {
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

async fn with_statuses(world: &World, statuses: Value) {
    let body = json!({
        "provider": "github",
        "secrets": [crate::webhooks::testing::SECRET],
        "statuses": statuses,
    });
    world.put("/webhooks/forge", body).await;
}

#[tokio::test]
async fn a_forge_is_told_where_a_run_stands() {
    let world = world().await;
    let forge = MockServer::start().await;
    let sha = commit(1);
    // It fails twice, and nothing of the run waits for it.
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
    with_statuses(&world, json!({"api": forge.uri(), "token": "status-token"})).await;
    world
        .put("/secrets/status-token", json!({"value": "ghp_token"}))
        .await;
    world.task("app", GITHUB, json!({})).await;
    let run = world.taken("forge", &github_push(&sha, "d1")).await.runs[0].clone();
    until("it is told twice in vain", async || {
        let store = &world.server.app().store;
        let untold = store.untold_statuses(vec![run.to_string()]).await.unwrap();
        untold
            .first()
            .filter(|untold| untold.last_error.contains("500"))
            .cloned()
    })
    .await;
    // It would be told again in a while; news are told too.
    until("it is told that it waits", async || {
        told(&forge)
            .await
            .contains(&"pending: queued".into())
            .then_some(())
    })
    .await;
    begin(&world, &run).await;
    until("it is told that it runs", async || {
        told(&forge)
            .await
            .contains(&"pending: running".into())
            .then_some(())
    })
    .await;
    end(&world, &run, RunState::Failed).await;
    let last = "failure: failed: the step `test` failed".to_owned();
    until("it is told how it ended", async || {
        told(&forge).await.contains(&last).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let all = told(&forge).await;
    assert_eq!(all.iter().filter(|one| **one == last).count(), 1, "{all:?}");
    let requests = forge.received_requests().await.unwrap();
    let body: Value = serde_json::from_slice(&requests.last().unwrap().body).unwrap();
    assert_eq!(body["context"], "acrtask/app");
    // There is no page that a browser could open.
    assert_eq!(body.get("target_url"), None);
}

#[tokio::test]
async fn a_token_goes_to_its_own_host_and_along_no_redirect() {
    let world = world().await;
    let forge = MockServer::start().await;
    let thief = MockServer::start().await;
    Mock::given(method("POST"))
        .respond_with(ResponseTemplate::new(307).insert_header("location", thief.uri()))
        .mount(&forge)
        .await;
    with_statuses(&world, json!({"api": forge.uri()})).await;
    // That of another host is not for this one, though the repository is there.
    world
        .put(
            "/credentials/github.com",
            json!({"username": "u", "password": "other"}),
        )
        .await;
    world.task("app", GITHUB, json!({})).await;
    let run = world
        .taken("forge", &github_push(&commit(1), "d1"))
        .await
        .runs[0]
        .clone();
    let store = &world.server.app().store;
    let untold = async || {
        let untold = store.untold_statuses(vec![run.to_string()]).await.unwrap();
        untold
            .first()
            .map(|untold| (untold.last_error.clone(), untold.over))
    };
    let (error, _) = until("there is no login", untold).await;
    assert!(
        error.starts_with("there is no login for 127.0.0.1"),
        "{error}"
    );
    assert!(forge.received_requests().await.unwrap().is_empty());
    let host = forge.address().to_string();
    let login = json!({"username": "u", "password": "right", "task": "app"});
    world.put(&format!("/credentials/{host}"), login).await;
    let (error, over) = until("it was sent", async || {
        untold().await.filter(|(error, _)| error.contains("307"))
    })
    .await;
    assert_eq!(over, 1, "{error}");
    let sent = &forge.received_requests().await.unwrap()[0];
    assert_eq!(sent.headers["authorization"], "Bearer right");
    assert!(thief.received_requests().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_strangers_commit_is_told_to_wait() {
    let world = world().await;
    let forge = MockServer::start().await;
    Mock::given(method("POST"))
        .respond_with(ResponseTemplate::new(201))
        .mount(&forge)
        .await;
    with_statuses(&world, json!({"api": forge.uri(), "token": "t"})).await;
    world.put("/secrets/t", json!({"value": "hunter2"})).await;
    world
        .task(
            "app",
            GITHUB,
            json!({"events": ["pullRequest"], "branches": ["main"]}),
        )
        .await;
    let one = github_pull_request("pr_from_fork", &commit(1), "p1");
    let run = world.taken("forge", &one).await.runs[0].clone();
    until("it waits", async || {
        let waits = "pending: waits for an approval of this commit: branch `";
        let told = told(&forge).await;
        told.iter().any(|one| one.starts_with(waits)).then_some(())
    })
    .await;
    world.post(&format!("/runs/{run}/approve"), json!({})).await;
    until("it is approved", async || {
        told(&forge)
            .await
            .contains(&"pending: queued".into())
            .then_some(())
    })
    .await;
}

#[test]
fn each_forge_wants_another_request() {
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
        let word = Word::Over(RunState::TimedOut);
        let request = status(&target, word, Some("too long"), None, &login).unwrap();
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
fn the_usual_api_follows_from_the_repository() {
    let api = |provider, host: &str, path: &str, http: Option<&str>| {
        let http = http.map(|url| url.parse::<Url>().unwrap());
        usual_api(provider, host, path, http.as_ref()).map(String::from)
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
fn a_secret_is_not_sent_in_clear() {
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
