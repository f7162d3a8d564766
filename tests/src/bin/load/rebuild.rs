//! Fleet in a database with a task whose base changes. Measures the time between a push and the
//! first step of the rebuild.

use std::time::Duration;

use acrtask_api::{
    run::{BaseResult, ImageResult, Page, RunResult, RunSummary},
    task::TaskDefinition,
    webhook::PutWebhook,
};
use acrtask_model::{
    Digest, Event, EventKind, RunId, RunState, StepId,
    events::{BaseRole, Evidence},
};
use acrtask_store::{AttemptReport, Claim, NewRunner, Report, RunnerHello, RunnerTokenRow, Store};
use acrtask_tests::project::RegistryClient;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    api::{Api, percentiles},
    new_run,
    watch::poll_all,
};

/// Task whose base changes, and webhook that reports the change.
const TASK: &str = "bench/rebuild";
const HOOK: &str = "bench-registry";
const TOKEN: &str = "the token of the benchmark's registry";
/// Number of bases that the other tasks share. Each task uses `EACH` of them.
const BASES: usize = 100;
const EACH: usize = 4;
const HOUR_MS: i64 = 60 * 60 * 1000;
/// Tasks written in one transaction.
const BATCH: usize = 500;
/// SHA-256 of an empty log.
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn repository(base: usize) -> String {
    format!("bench/base-{base}")
}

/// Adds tasks to a database. Each has pushed an image built from four shared bases. One more task
/// uses its own base.
pub(crate) async fn fill_tasks(database: &str, registry: &str, image: &str, tasks: usize) -> Value {
    let client = RegistryClient::new(registry, None);
    let mut bases = Vec::new();
    for base in 0..=BASES {
        let digest = put_base(&client, &repository(base), "first").await;
        bases.push((format!("{registry}/{}:latest", repository(base)), digest));
    }
    let store = Store::open(database).await.unwrap();
    let runner = register_runner(&store).await;
    let mut all: Vec<(String, Vec<usize>)> = (0..tasks)
        .map(|n| {
            let on = (0..EACH).map(|i| 1 + (n * 7 + i * 13) % BASES);
            (format!("fleet/{n}"), on.collect())
        })
        .collect();
    all.push((TASK.into(), vec![0]));
    for batch in all.chunks(BATCH) {
        let now = Timestamp::now().as_millisecond();
        let mut runs = Vec::new();
        let mut results = std::collections::HashMap::new();
        for (name, on) in batch {
            let definition: TaskDefinition = serde_json::from_value(json!({
                "name": name, "cmd": format!("{image} true"), "cache": false,
            }))
            .unwrap();
            let task = store
                .create_task(
                    &format!("t{}", name.replace('/', "-")),
                    &definition,
                    None,
                    now,
                )
                .await
                .unwrap();
            let mut run = new_run(0);
            run.id = RunId::new(format!("first-{}", name.replace('/', "-"))).unwrap();
            run.task_id = Some(task.id);
            run.task_name = Some(name.clone());
            results.insert(run.id.clone(), run_result(registry, name, on, &bases));
            runs.push(run);
        }
        store.enqueue_many(runs, now).await.unwrap();
        finish_runs(&store, &runner, results, now).await;
    }
    // As in a service that has run for a while: every base was polled, and none is due.
    let now = Timestamp::now().as_millisecond();
    let digests: std::collections::HashMap<&str, &Digest> = bases
        .iter()
        .map(|(name, digest)| (name.as_str(), digest))
        .collect();
    let polled = poll_all(&store, now, now + HOUR_MS, |name| digests[name].clone()).await;
    assert_eq!(polled, bases.len());
    drop(store);
    acrtask_store::testing::run_maintenance(database)
        .await
        .unwrap();
    json!({ "tasks": all.len() })
}

fn run_result(registry: &str, name: &str, on: &[usize], bases: &[(String, Digest)]) -> RunResult {
    let step = StepId::new("build").unwrap();
    RunResult {
        images: vec![ImageResult {
            step: step.clone(),
            name: format!("{registry}/{name}:latest"),
            digest: digest_of(name),
            platforms: Default::default(),
            staged: false,
        }],
        bases: on
            .iter()
            .map(|base| BaseResult {
                step: step.clone(),
                role: BaseRole::Runtime,
                name: bases[*base].0.clone(),
                digest: bases[*base].1.clone(),
                evidence: Evidence::Provenance,
                platforms: Vec::new(),
            })
            .collect(),
        ..RunResult::default()
    }
}

/// Returns a different digest for each name.
fn digest_of(name: &str) -> Digest {
    use sha2::Digest as _;
    let hash = sha2::Sha256::digest(name);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}").parse().unwrap()
}

pub(crate) async fn register_runner(store: &Store) -> String {
    let now = Timestamp::now().as_millisecond();
    let token = RunnerTokenRow {
        id: "xfill".into(),
        hash: vec![1],
        pool: None,
        labels: Default::default(),
        max_slots: None,
        tasks: None,
        created_at: now,
        expires_at: now + 60_000,
    };
    store.create_runner_token(&token).await.unwrap();
    let runner = NewRunner {
        id: "nfill".into(),
        name: "fill".into(),
        key_hash: vec![2],
    };
    store
        .register_runner(&token.id, &runner, now)
        .await
        .unwrap();
    let hello = RunnerHello {
        pool: "default".into(),
        labels: Default::default(),
        platforms: vec!["linux/amd64".into()],
        slots: 1000,
        features: Default::default(),
        version: "load".into(),
        free_disk: 1 << 40,
    };
    store
        .runner_hello(&runner.id, &hello, "load", now)
        .await
        .unwrap();
    runner.id
}

/// Finishes all queued runs with these results.
pub(crate) async fn finish_runs(
    store: &Store,
    runner: &str,
    mut results: std::collections::HashMap<RunId, RunResult>,
    now: i64,
) {
    while !results.is_empty() {
        let requirements = store.ready_requirements().await.unwrap();
        let requirements: Vec<i64> = requirements.iter().map(|entry| entry.id).collect();
        let claimed = store
            .claim(&requirements, 256, now, 30_000, 15_000, |ready| {
                let claim = |run: &acrtask_store::Candidate| Claim {
                    run: run.id.clone(),
                    runner_id: runner.into(),
                };
                ready.iter().map(claim).collect()
            })
            .await
            .unwrap();
        assert!(
            !claimed.is_empty(),
            "{} runs were not claimed",
            results.len()
        );
        let reports: Vec<AttemptReport> = claimed
            .into_iter()
            .flat_map(|run| {
                let result = results.remove(&run.id).unwrap();
                let finished = Report::Finished {
                    state: RunState::Succeeded,
                    reason: None,
                    result: Box::new(result),
                    log_length: 0,
                    log_sha256: EMPTY.into(),
                };
                [Report::Accepted, Report::Started, finished].map(|report| AttemptReport {
                    run: run.id.clone(),
                    attempt: run.attempt,
                    runner_id: runner.into(),
                    report,
                })
            })
            .collect();
        store.report(&reports, now, 30_000).await.unwrap();
    }
}

/// Pushes a base repeatedly and notifies the server as a registry does. Reports how long the first
/// step of each rebuild waited beyond the settling time.
pub(crate) async fn measure_rebuilds(
    server: &str,
    token: &str,
    registry: &str,
    rounds: usize,
) -> Value {
    let api = Api::new(server, token);
    let client = RegistryClient::new(registry, None);
    let webhook = PutWebhook {
        provider: "distribution".into(),
        secrets: vec![acrtask_api::run::SecretText(TOKEN.into())],
        ..PutWebhook::default()
    };
    let _: Value = api.put(&format!("/webhooks/{HOOK}"), &webhook).await;
    let settle = 1;
    let _: Value = api
        .put("/cascades/settings", &json!({ "settleSecs": settle }))
        .await;
    wait_until_polled(&api, registry).await;
    let mut waits = Vec::new();
    // The first rounds warm up connections, pages and the engine.
    for round in 0..rounds + 3 {
        // Lets the system become idle: the cleanup of the last round must be finished.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let note = format!("{round} {}", Timestamp::now());
        let digest = put_base(&client, &repository(0), &note).await;
        let pushed = Timestamp::now();
        send_notification(&api, registry, &digest).await;
        let run = wait_for_rebuild(&api, pushed).await;
        let log = api
            .get_text(&format!("/runs/{}/log?format=json", run.id))
            .await;
        let began = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Event>(line).ok())
            .find(|event| matches!(event.kind, EventKind::StepStarted { .. }))
            .unwrap_or_else(|| panic!("run {} began no step:\n{log}", run.id));
        if round >= 3 {
            let wait = began.time.duration_since(pushed).as_millis_f64();
            waits.push(wait - f64::from(settle) * 1000.0);
        }
    }
    percentiles(waits)
}

/// Waits until the server has polled the base that will change.
async fn wait_until_polled(api: &Api, registry: &str) {
    let name = format!("{registry}/{}:latest", repository(0));
    let path = format!("/bases/{}", name.replace('/', "%2F"));
    for _ in 0..600 {
        // The base is unknown until the server has compared its watches with the bases in use.
        let bases = api.get_if_exists(&path).await;
        let bases: Vec<acrtask_api::image::Base> =
            bases.map_or_else(Vec::new, |text| serde_json::from_str(&text).unwrap());
        if bases.iter().any(|base| base.digest.is_some()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{name} was not polled within a minute");
}

/// Waits for a finished run of the task that was created after `since`.
async fn wait_for_rebuild(api: &Api, since: Timestamp) -> RunSummary {
    for _ in 0..600 {
        let text = api.get_text(&format!("/runs?task={TASK}&limit=1")).await;
        let page: Page<RunSummary> = serde_json::from_str(&text).unwrap();
        if let Some(run) = page.items.into_iter().next()
            && run.created_at > since
            && run.state.is_final()
        {
            return run;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no rebuild finished within half a minute");
}

/// Pushes a small image with this note and returns its digest.
async fn put_base(client: &RegistryClient, repository: &str, note: &str) -> Digest {
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {"Labels": {"note": note}},
        "rootfs": {"type": "layers", "diff_ids": []},
    });
    let (config, size) = client
        .put_blob(repository, config.to_string().into_bytes())
        .await;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": size},
        "layers": [],
    });
    let media = "application/vnd.oci.image.manifest.v1+json";
    let digest = client
        .put_manifest(repository, "latest", media, &manifest)
        .await;
    digest.parse().unwrap()
}

/// Sends the notification of the push as a registry does.
async fn send_notification(api: &Api, registry: &str, digest: &Digest) {
    let body = json!({"events": [{
        "id": digest.as_str(), "action": "push",
        "target": {
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest.as_str(),
            "repository": repository(0), "tag": "latest",
        },
        "request": {"host": registry},
    }]});
    let answer = api
        .client
        .post(format!("{}/hooks/{HOOK}", api.server))
        .header(
            "content-type",
            "application/vnd.docker.distribution.events.v1+json",
        )
        .header("authorization", format!("Bearer {TOKEN}"))
        .json(&body)
        .send()
        .await
        .unwrap();
    assert!(answer.status().is_success(), "{}", answer.status());
}
