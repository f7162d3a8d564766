//! Base tags in a database and in a registry. Measures how soon a server has polled all of them.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use acrtask_api::{
    run::{BaseResult, BuiltResult, ImageResult, RunResult},
    task::TaskDefinition,
};
use acrtask_model::{
    Digest, RunId, StepId,
    events::{BaseRole, Evidence},
};
use acrtask_store::{PollResult, Store};
use acrtask_tests::project::RegistryClient;
use futures::StreamExt as _;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    new_run,
    rebuild::{finish_runs, register_runner},
};

/// Tags of a repository, and images of a task.
const EACH: usize = 1000;
/// Tags pushed concurrently.
const PUSHES: usize = 16;
/// Watches claimed in one transaction.
const BATCH: u32 = 5000;
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn repository(number: usize) -> String {
    format!("bench/watched-{}", number / EACH)
}

fn tag(number: usize) -> String {
    format!("t{}", number % EACH)
}

/// Pushes the watched tags to a registry, unless they exist, and adds the watches to a database.
/// Each was polled once, and all are due.
pub(crate) async fn fill_watches(database: &str, registry: &str, watches: usize) -> Value {
    let digest = push_tags(registry, watches).await;
    let store = Store::open(database).await.unwrap();
    let runner = register_runner(&store).await;
    let now = Timestamp::now().as_millisecond();
    for first in (0..watches).step_by(EACH) {
        let name = format!("watched/{}", first / EACH);
        let definition: TaskDefinition =
            serde_json::from_value(json!({"name": name, "cmd": "reg.example.com/app:1 true"}))
                .unwrap();
        let id = format!("w{first}");
        store
            .create_task(&id, &definition, None, now)
            .await
            .unwrap();
        let mut run = new_run(0);
        run.id = RunId::new(format!("watched-{first}")).unwrap();
        run.task_id = Some(id);
        run.task_name = Some(name);
        let numbers = first..watches.min(first + EACH);
        let results = HashMap::from([(run.id.clone(), run_result(registry, numbers, &digest))]);
        store.enqueue_many(vec![run], now).await.unwrap();
        finish_runs(&store, &runner, results, now).await;
    }
    assert_eq!(
        poll_all(&store, now, now + 1, |_| digest.clone()).await,
        watches
    );
    drop(store);
    acrtask_store::testing::run_maintenance(database)
        .await
        .unwrap();
    json!({ "watches": watches })
}

/// Watches all bases of images and polls each once. Returns their number. `next`: time of the next
/// poll, in milliseconds.
pub(crate) async fn poll_all(
    store: &Store,
    now: i64,
    next: i64,
    digest_of: impl Fn(&str) -> Digest,
) -> usize {
    let wanted: BTreeSet<(String, String)> = store
        .wanted_bases()
        .await
        .unwrap()
        .into_iter()
        .map(|(name, scope, ..)| (name, scope))
        .collect();
    store.set_watches(&wanted, now).await.unwrap();
    loop {
        let due = store.claim_watches(now, 60_000, BATCH).await.unwrap();
        if due.is_empty() {
            return wanted.len();
        }
        let polls: Vec<_> = due
            .into_iter()
            .map(|watch| {
                let digest = digest_of(&watch.name);
                let result = PollResult::Digest {
                    etag: Some(format!("\"{digest}\"")),
                    platforms: Some([("linux/amd64".to_owned(), digest.clone())].into()),
                    digest,
                };
                (watch, result, next)
            })
            .collect();
        store.record_polls(&polls, now).await.unwrap();
    }
}

/// Pushes the same image under all tags and returns its digest.
async fn push_tags(registry: &str, watches: usize) -> Digest {
    let client = RegistryClient::new(registry, None);
    let config = json!({"os": "linux", "architecture": "amd64"}).to_string();
    let mut manifest = Value::Null;
    for first in (0..watches).step_by(EACH) {
        let (digest, size) = client
            .put_blob(&repository(first), config.clone().into_bytes())
            .await;
        let media = "application/vnd.oci.image.config.v1+json";
        manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "layers": [],
            "config": {"mediaType": media, "digest": digest, "size": size},
        });
    }
    let last = format!("{}:{}", repository(watches - 1), tag(watches - 1));
    if let Some((digest, _)) = client.fetch_manifest(&last).await {
        return digest.parse().unwrap();
    }
    let (client, manifest) = (&client, &manifest);
    // The last tag proves that all others exist, so it is pushed last.
    let all = futures::stream::iter(0..watches - 1).map(async |number| {
        client
            .put_manifest(&repository(number), &tag(number), MANIFEST, manifest)
            .await
    });
    all.buffer_unordered(PUSHES).for_each(async |_| {}).await;
    let digest = client
        .put_manifest(
            &repository(watches - 1),
            &tag(watches - 1),
            MANIFEST,
            manifest,
        )
        .await;
    digest.parse().unwrap()
}

/// Returns the result of a run that pushed one image for each of these base tags.
fn run_result(registry: &str, numbers: std::ops::Range<usize>, digest: &Digest) -> RunResult {
    let mut result = RunResult::default();
    for number in numbers {
        let step = StepId::new(format!("s{number}")).unwrap();
        let name = format!("{registry}/bench/on-watched:{number}");
        result.built.push(BuiltResult {
            step: step.clone(),
            names: vec![name.clone()],
            digest: digest.clone(),
        });
        result.images.push(ImageResult {
            step: step.clone(),
            name,
            digest: digest.clone(),
            platforms: Default::default(),
            staged: false,
        });
        result.bases.push(BaseResult {
            step,
            role: BaseRole::Runtime,
            name: format!("{registry}/{}:{}", repository(number), tag(number)),
            digest: digest.clone(),
            evidence: Evidence::Provenance,
            platforms: Vec::new(),
        });
    }
    result
}

/// Returns the number of polls without a change, and of all other polls.
async fn poll_counts(client: &reqwest::Client, server: &str) -> (u64, u64) {
    let answer = client
        .get(format!("{server}/metrics"))
        .send()
        .await
        .unwrap();
    let text = answer.text().await.unwrap();
    let of = |outcome: &str| {
        let line = text
            .lines()
            .find(|line| line.starts_with("acrtask_base_polls_total") && line.contains(outcome));
        let figure = line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        figure.unwrap_or(0.0) as u64
    };
    (of("\"same\""), of("\"digest\"") + of("\"failed\""))
}

/// Waits until a server has polled this number of tags.
pub(crate) async fn measure_polls(server: &str, watches: u64) -> Value {
    // An error means that a provider is already installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::new();
    let mut first = None;
    let limit = Instant::now() + Duration::from_secs(1800);
    loop {
        let (same, other) = poll_counts(&client, server).await;
        if same + other > 0 && first.is_none() {
            first = Some((Instant::now(), same + other));
        }
        if let Some((begun, before)) = first.filter(|_| same + other >= watches) {
            // Polls before the first query are counted at the rate measured after it.
            let rate = (same + other - before) as f64 / begun.elapsed().as_secs_f64();
            return json!({
                "seconds": (same + other) as f64 / rate, "polls": same + other, "other": other,
                "per_second": rate,
            });
        }
        assert!(
            Instant::now() < limit,
            "{same} and {other} polls in half an hour"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
