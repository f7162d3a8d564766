//! Pushes of images that start tasks: those that a task's own runs led to, and deliveries without a run.

use acrtask_api::{
    run::{BaseResult, ImageResult, Page, RunResult},
    webhook::{Delivery, OutcomeKind, Receipt, Refusal},
};
use acrtask_model::{
    Digest, RunId, RunState, StepId,
    events::{BaseRole, Evidence},
};
use acrtask_store::{Claim, Report, Reported};
use serde_json::json;

use super::testing::{GITHUB, Sent, World, commit, github_push};

fn sha(letter: char) -> Digest {
    let text = format!("sha256:{}", letter.to_string().repeat(64));
    text.parse().unwrap()
}

/// A registry's report that `repository:tag` was pushed.
fn push(repository: &str, tag: &str, letter: char) -> Sent {
    let mut one = Sent::changed("registries/distribution", "push", |body| {
        let event = &mut body["events"][0];
        event["id"] = format!("{repository}-{tag}-{letter}").into();
        event["target"]["repository"] = repository.into();
        event["target"]["tag"] = tag.into();
        event["target"]["digest"] = sha(letter).to_string().into();
    });
    one.prove("registries/distribution", super::testing::SECRET);
    one
}

async fn report(world: &World, run: &RunId, report: Report) {
    let reported = Reported {
        run: run.clone(),
        attempt: 1,
        runner_id: "mine".into(),
        report,
    };
    let app = world.server.app();
    let now = app.clock.now_ms();
    app.store.report(&[reported], now, 60_000).await.unwrap();
}

async fn begin(world: &World, run: &RunId) {
    let app = world.server.app();
    let now = app.clock.now_ms();
    let classes = app.store.ready_classes().await.unwrap();
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
    report(world, run, Report::Started).await;
}

async fn finish(world: &World, run: &RunId, state: RunState, image: (&str, char)) {
    let result = RunResult {
        images: vec![ImageResult {
            step: StepId::new("push").unwrap(),
            name: image.0.into(),
            digest: sha(image.1),
            platforms: [].into(),
            held: false,
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
    report(world, run, finished).await;
}

async fn task(world: &World, name: &str, repository: &str) {
    let body = json!({
        "name": name,
        "cmd": "alpine true",
        "triggers": {"registryPush": {"repositories": [repository]}},
    });
    world.put(&format!("/tasks/{name}"), body).await;
}

/// Sends a push, and returns its run, or why there is none.
async fn sent(world: &World, one: &Sent) -> Result<RunId, String> {
    let receipt: Receipt = world.taken("registry", one).await;
    let delivery: Delivery = world
        .get(&format!("/deliveries/{}", receipt.delivery))
        .await;
    let outcome = &delivery.outcomes[0];
    match outcome.what {
        OutcomeKind::Run => Ok(receipt.runs[0].clone()),
        _ => Err(outcome.reason.clone()),
    }
}

const REGISTRY: &str = "reg.example.com:5000";

#[tokio::test]
async fn task_that_matches_its_own_push_is_stopped() {
    let world = World::new().await;
    world.webhook("registry", "distribution").await;
    task(&world, "self", &format!("{REGISTRY}/team/*")).await;
    // A push from outside starts a run. It pushes, and fails later.
    let first = sent(&world, &push("team/app", "1", 'a')).await.unwrap();
    begin(&world, &first).await;
    let image = format!("{REGISTRY}/team/app:{first}");
    finish(&world, &first, RunState::Failed, (&image, 'b')).await;
    let own = push("team/app", first.as_str(), 'b');
    let reason = sent(&world, &own).await.unwrap_err();
    assert!(
        reason.contains(&format!("loop: self -> {image} -> self; run {first} ")),
        "{reason}"
    );
    // Pushes from outside go on to count.
    let second = sent(&world, &push("team/app", "2", 'c')).await.unwrap();
    begin(&world, &second).await;
    // A push of a run that goes on is known by the repository.
    let own = push("team/app", second.as_str(), 'd');
    let reason = sent(&world, &own).await.unwrap_err();
    assert!(reason.contains("make a loop"), "{reason}");
    let elsewhere = sent(&world, &push("team/other", "1", 'e')).await;
    elsewhere.unwrap();
}

#[tokio::test]
async fn two_tasks_that_feed_each_other_are_stopped() {
    let world = World::new().await;
    world.webhook("registry", "distribution").await;
    task(&world, "one", &format!("{REGISTRY}/in")).await;
    task(&world, "two", &format!("{REGISTRY}/out")).await;
    let one = sent(&world, &push("in", "1", 'a')).await.unwrap();
    begin(&world, &one).await;
    let out = format!("{REGISTRY}/out:1");
    finish(&world, &one, RunState::Succeeded, (&out, 'b')).await;
    let two = sent(&world, &push("out", "1", 'b')).await.unwrap();
    begin(&world, &two).await;
    let back = format!("{REGISTRY}/in:2");
    finish(&world, &two, RunState::Succeeded, (&back, 'c')).await;
    let reason = sent(&world, &push("in", "2", 'c')).await.unwrap_err();
    assert!(
        reason.contains(&format!("loop: one -> {out} -> two -> {back} -> one")),
        "{reason}"
    );
}

#[tokio::test]
async fn push_of_a_watched_base_names_its_watch() {
    let world = World::new().await;
    world.webhook("registry", "distribution").await;
    let name = format!("{REGISTRY}/base/os:1");
    let app = world.server.app();
    // An image of a task was built from it.
    task(&world, "app", &format!("{REGISTRY}/in")).await;
    let run = sent(&world, &push("in", "1", 'b')).await.unwrap();
    begin(&world, &run).await;
    finish(
        &world,
        &run,
        RunState::Succeeded,
        (&format!("{REGISTRY}/app:1"), 'c'),
    )
    .await;
    crate::bases::compare(app).await.unwrap();
    let receipt = world.taken("registry", &push("base/os", "1", 'a')).await;
    let delivery: Delivery = world
        .get(&format!("/deliveries/{}", receipt.delivery))
        .await;
    assert_eq!(delivery.watches.len(), 1, "{delivery:?}");
    assert_eq!(delivery.watches[0].image, name);
    let note = delivery.note.unwrap();
    assert!(note.contains(&format!("`{name}` is watched")), "{note}");
}

#[tokio::test]
async fn refused_deliveries_are_listed_with_their_reason() {
    let world = World::new().await;
    world.webhook("forge", "github").await;
    for _ in 0..3 {
        let mut forged = github_push(&commit(1), "d1");
        forged.prove("github", "another secret");
        assert_eq!(world.send("forge", &forged).await.0, 401);
    }
    // Names that a sender makes up leave nothing.
    assert_eq!(
        world.send("none", &github_push(&commit(1), "d1")).await.0,
        404
    );
    let refused: Vec<Refusal> = world.get("/deliveries/refused").await;
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
    let (status, _) = world
        .api(
            reqwest::Method::DELETE,
            "/webhooks/forge",
            serde_json::Value::Null,
        )
        .await;
    assert_eq!(status, 204);
    assert_eq!(world.get::<Vec<Refusal>>("/deliveries/refused").await, []);
}

#[tokio::test]
async fn deliveries_are_listed_by_time() {
    let world = World::new().await;
    world.webhook("forge", "github").await;
    world.taken("forge", &github_push(&commit(1), "d1")).await;
    let listed = async |query: &str| {
        let page: Page<Delivery> = world.get(&format!("/deliveries?{query}")).await;
        page.items.len()
    };
    assert_eq!(listed("since=2020-01-01").await, 1);
    assert_eq!(listed("until=2020-01-01").await, 0);
    assert_eq!(listed("since=2999-01-01T00:00:00Z").await, 0);
    let (status, _) = world
        .api(
            reqwest::Method::GET,
            "/deliveries?since=yesterday",
            serde_json::Value::Null,
        )
        .await;
    assert_eq!(status, 400);
}

#[tokio::test]
async fn missing_secret_is_the_reason_of_a_delivery() {
    let world = World::new().await;
    world.webhook("forge", "github").await;
    world.task("app", GITHUB, json!({})).await;
    let (status, _) = world
        .api(
            reqwest::Method::DELETE,
            "/secrets/stored",
            serde_json::Value::Null,
        )
        .await;
    assert_eq!(status, 204);
    let receipt = world.taken("forge", &github_push(&commit(1), "d1")).await;
    assert_eq!(receipt.runs, []);
    let delivery: Delivery = world
        .get(&format!("/deliveries/{}", receipt.delivery))
        .await;
    let reason = &delivery.outcomes[0].reason;
    assert!(
        reason.contains("no secret `stored`; set it with `acrtask secret set stored --task app`"),
        "{reason}"
    );
    // Once it is there, the delivery can be evaluated again.
    world.put("/secrets/stored", json!({"value": "hush"})).await;
    let path = format!("/deliveries/{}/redeliver", receipt.delivery);
    let again: Receipt = serde_json::from_value(world.post(&path, json!({})).await).unwrap();
    assert_eq!(again.runs.len(), 1);
}
