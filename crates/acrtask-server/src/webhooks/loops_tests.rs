//! Tests of pushed images that start tasks: loops, and deliveries without a run.

use acrtask_api::{
    run::{BaseResult, ImageResult, Page, RunResult},
    webhook::{DecisionAction, Delivery, Receipt, Refusal},
};
use acrtask_model::{
    Digest, RunId, RunState, StepId,
    events::{BaseRole, Evidence},
};
use acrtask_store::{AttemptReport, Claim, Report};
use serde_json::json;

use super::testing::{GITHUB, TestDelivery, TestServer, commit, github_push};

fn sha(letter: char) -> Digest {
    let text = format!("sha256:{}", letter.to_string().repeat(64));
    text.parse().unwrap()
}

/// Creates a registry's report of a push of `repository:tag`.
fn registry_push(repository: &str, tag: &str, letter: char) -> TestDelivery {
    let mut one = TestDelivery::modified_fixture("registries/distribution", "push", |body| {
        let event = &mut body["events"][0];
        event["id"] = format!("{repository}-{tag}-{letter}").into();
        event["target"]["repository"] = repository.into();
        event["target"]["tag"] = tag.into();
        event["target"]["digest"] = sha(letter).to_string().into();
    });
    one.sign("registries/distribution", super::testing::SECRET);
    one
}

async fn report(server: &TestServer, run: &RunId, report: Report) {
    let reported = AttemptReport {
        run: run.clone(),
        attempt: 1,
        runner_id: "mine".into(),
        report,
    };
    let app = server.inner.app();
    let now = app.clock.now_ms();
    app.store.report(&[reported], now, 60_000).await.unwrap();
}

async fn start_run(server: &TestServer, run: &RunId) {
    let app = server.inner.app();
    let now = app.clock.now_ms();
    let classes = app.store.ready_requirements().await.unwrap();
    let classes: Vec<i64> = classes.iter().map(|class| class.id).collect();
    let claimed = app
        .store
        .claim(&classes, 100, now, 60_000, 60_000, |candidates| {
            let wanted = candidates.iter().filter(|candidate| candidate.id == *run);
            wanted
                .map(|candidate| Claim {
                    run: candidate.id.clone(),
                    runner_id: "mine".into(),
                })
                .collect()
        })
        .await
        .unwrap();
    assert_eq!(claimed.len(), 1);
    report(server, run, Report::Started).await;
}

async fn finish_run(server: &TestServer, run: &RunId, state: RunState, image: (&str, char)) {
    let result = RunResult {
        images: vec![ImageResult {
            step: StepId::new("push").unwrap(),
            name: image.0.into(),
            digest: sha(image.1),
            platforms: [].into(),
            staged: false,
        }],
        bases: vec![BaseResult {
            step: StepId::new("push").unwrap(),
            role: BaseRole::Runtime,
            name: format!("{REGISTRY}/base/os:1"),
            digest: sha('0'),
            evidence: Evidence::Provenance,
            platforms: Vec::new(),
        }],
        ..RunResult::default()
    };
    let finished = Report::Finished {
        state,
        reason: (state != RunState::Succeeded).then(|| "a step failed".to_owned()),
        result: Box::new(result),
        log_length: 0,
        log_sha256: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".into(),
    };
    report(server, run, finished).await;
}

async fn add_task(server: &TestServer, name: &str, repository: &str) {
    let body = json!({
        "name": name,
        "cmd": "alpine true",
        "triggers": {"registryPush": {"repositories": [repository]}},
    });
    server.put(&format!("/tasks/{name}"), body).await;
}

/// Sends a registry_push. Returns its run, or the reason why it started none.
async fn send_push(server: &TestServer, one: &TestDelivery) -> Result<RunId, String> {
    let receipt: Receipt = server.deliver("registry", one).await;
    let delivery: Delivery = server
        .get(&format!("/deliveries/{}", receipt.delivery))
        .await;
    let outcome = &delivery.decisions[0];
    match outcome.action {
        DecisionAction::RunStarted => Ok(receipt.runs[0].clone()),
        _ => Err(outcome.reason.clone()),
    }
}

const REGISTRY: &str = "reg.example.com:5000";

#[tokio::test]
async fn task_triggered_by_its_own_push_is_stopped() {
    let server = TestServer::new().await;
    server.add_webhook("registry", "distribution").await;
    add_task(&server, "self", &format!("{REGISTRY}/team/*")).await;
    // A push from outside starts a run, which pushes and then fails.
    let first = send_push(&server, &registry_push("team/app", "1", 'a'))
        .await
        .unwrap();
    start_run(&server, &first).await;
    let image = format!("{REGISTRY}/team/app:{first}");
    finish_run(&server, &first, RunState::Failed, (&image, 'b')).await;
    let own = registry_push("team/app", first.as_str(), 'b');
    let reason = send_push(&server, &own).await.unwrap_err();
    assert!(
        reason.contains(&format!("loop: self -> {image} -> self; run {first} ")),
        "{reason}"
    );
    // Pushes from outside still start runs.
    let second = send_push(&server, &registry_push("team/app", "2", 'c'))
        .await
        .unwrap();
    start_run(&server, &second).await;
    // The server recognizes a push of an unfinished run by its repository.
    let own = registry_push("team/app", second.as_str(), 'd');
    let reason = send_push(&server, &own).await.unwrap_err();
    assert!(reason.contains("make a loop"), "{reason}");
    let elsewhere = send_push(&server, &registry_push("team/other", "1", 'e')).await;
    elsewhere.unwrap();
}

#[tokio::test]
async fn tasks_triggering_each_other_are_stopped() {
    let server = TestServer::new().await;
    server.add_webhook("registry", "distribution").await;
    add_task(&server, "one", &format!("{REGISTRY}/in")).await;
    add_task(&server, "two", &format!("{REGISTRY}/out")).await;
    let one = send_push(&server, &registry_push("in", "1", 'a'))
        .await
        .unwrap();
    start_run(&server, &one).await;
    let out = format!("{REGISTRY}/out:1");
    finish_run(&server, &one, RunState::Succeeded, (&out, 'b')).await;
    let two = send_push(&server, &registry_push("out", "1", 'b'))
        .await
        .unwrap();
    start_run(&server, &two).await;
    let back = format!("{REGISTRY}/in:2");
    finish_run(&server, &two, RunState::Succeeded, (&back, 'c')).await;
    let reason = send_push(&server, &registry_push("in", "2", 'c'))
        .await
        .unwrap_err();
    assert!(
        reason.contains(&format!("loop: one -> {out} -> two -> {back} -> one")),
        "{reason}"
    );
}

#[tokio::test]
async fn push_of_watched_base_names_its_watch() {
    let server = TestServer::new().await;
    server.add_webhook("registry", "distribution").await;
    let name = format!("{REGISTRY}/base/os:1");
    let app = server.inner.app();
    // An image of a task was built from the base.
    add_task(&server, "app", &format!("{REGISTRY}/in")).await;
    let run = send_push(&server, &registry_push("in", "1", 'b'))
        .await
        .unwrap();
    start_run(&server, &run).await;
    finish_run(
        &server,
        &run,
        RunState::Succeeded,
        (&format!("{REGISTRY}/app:1"), 'c'),
    )
    .await;
    crate::bases::update_watches(app).await.unwrap();
    let receipt = server
        .deliver("registry", &registry_push("base/os", "1", 'a'))
        .await;
    let delivery: Delivery = server
        .get(&format!("/deliveries/{}", receipt.delivery))
        .await;
    assert_eq!(delivery.watches.len(), 1, "{delivery:?}");
    assert_eq!(delivery.watches[0].image, name);
    let note = delivery.note.unwrap();
    assert!(note.contains(&format!("`{name}` is watched")), "{note}");
}

#[tokio::test]
async fn refused_deliveries_are_listed_with_their_reason() {
    let server = TestServer::new().await;
    server.add_webhook("forge", "github").await;
    for _ in 0..3 {
        let mut forged = github_push(&commit(1), "d1");
        forged.sign("github", "another secret");
        assert_eq!(server.send("forge", &forged).await.0, 401);
    }
    // Unknown webhook names leave no refusal.
    assert_eq!(
        server.send("none", &github_push(&commit(1), "d1")).await.0,
        404
    );
    let refused: Vec<Refusal> = server.get("/deliveries/refused").await;
    assert_eq!(refused.len(), 1, "{refused:?}");
    let one = &refused[0];
    assert_eq!(
        (one.webhook.as_str(), one.code.as_str(), one.count),
        ("forge", "unproved", 3)
    );
    assert!(
        !one.message.is_empty() && one.address == "127.0.0.1",
        "{one:?}"
    );
    let (status, _) = server
        .request(
            reqwest::Method::DELETE,
            "/webhooks/forge",
            serde_json::Value::Null,
        )
        .await;
    assert_eq!(status, 204);
    assert_eq!(server.get::<Vec<Refusal>>("/deliveries/refused").await, []);
}

#[tokio::test]
async fn deliveries_are_listed_by_time() {
    let server = TestServer::new().await;
    server.add_webhook("forge", "github").await;
    server
        .deliver("forge", &github_push(&commit(1), "d1"))
        .await;
    let listed = async |query: &str| {
        let page: Page<Delivery> = server.get(&format!("/deliveries?{query}")).await;
        page.items.len()
    };
    assert_eq!(listed("since=2020-01-01").await, 1);
    assert_eq!(listed("until=2020-01-01").await, 0);
    assert_eq!(listed("since=2999-01-01T00:00:00Z").await, 0);
    let (status, _) = server
        .request(
            reqwest::Method::GET,
            "/deliveries?since=yesterday",
            serde_json::Value::Null,
        )
        .await;
    assert_eq!(status, 400);
}

#[tokio::test]
async fn missing_secret_is_recorded_as_delivery_reason() {
    let server = TestServer::new().await;
    server.add_webhook("forge", "github").await;
    server.add_task("app", GITHUB, json!({})).await;
    let (status, _) = server
        .request(
            reqwest::Method::DELETE,
            "/secrets/stored",
            serde_json::Value::Null,
        )
        .await;
    assert_eq!(status, 204);
    let receipt = server
        .deliver("forge", &github_push(&commit(1), "d1"))
        .await;
    assert_eq!(receipt.runs, []);
    let delivery: Delivery = server
        .get(&format!("/deliveries/{}", receipt.delivery))
        .await;
    let reason = &delivery.decisions[0].reason;
    assert!(
        reason.contains(
            "the secret `stored` is missing; set it with `acrtask secret set stored --task app`"
        ),
        "{reason}"
    );
    // With the secret, a redelivery starts the run.
    server
        .put("/secrets/stored", json!({"value": "hush"}))
        .await;
    let path = format!("/deliveries/{}/redeliver", receipt.delivery);
    let again: Receipt = serde_json::from_value(server.post(&path, json!({})).await).unwrap();
    assert_eq!(again.runs.len(), 1);
}
