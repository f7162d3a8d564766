//! Base tags in a database and in a registry, and how soon a server has looked at all of them.

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
use acrtask_store::{Seen, Store};
use acrtask_tests::project::RegistryClient;
use futures::StreamExt as _;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    new_run,
    rebuild::{finish, runner},
};

/// Tags of a repository, and images of a task.
const EACH: usize = 1000;
/// Tags that are pushed side by side.
const PUSHES: usize = 16;
/// Rows that are written together.
const BATCH: u32 = 5000;
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn repository(number: usize) -> String {
    format!("bench/watched-{}", number / EACH)
}

fn tag(number: usize) -> String {
    format!("t{}", number % EACH)
}

/// Puts watched tags into a registry, where they are not there already, and into a database: each was looked at once, and
/// all are due.
pub(crate) async fn fill(database: &str, registry: &str, watches: usize) -> Value {
    let digest = push(registry, watches).await;
    let store = Store::open(database).await.unwrap();
    let runner = runner(&store).await;
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
        let results = HashMap::from([(run.id.clone(), result(registry, numbers, &digest))]);
        store.enqueue_many(vec![run], now).await.unwrap();
        finish(&store, &runner, results, now).await;
    }
    assert_eq!(
        look(&store, now, now + 1, |_| digest.clone()).await,
        watches
    );
    drop(store);
    acrtask_store::testing::settle(database).await.unwrap();
    json!({ "watches": watches })
}

/// Watches all tags that images stand on, and looks at each once; how many there are. `next`: when they are due again.
pub(crate) async fn look(
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
        let looks: Vec<_> = due
            .into_iter()
            .map(|watch| {
                let digest = digest_of(&watch.name);
                let seen = Seen::Digest {
                    etag: Some(format!("\"{digest}\"")),
                    platforms: Some([("linux/amd64".to_owned(), digest.clone())].into()),
                    digest,
                };
                (watch, seen, next)
            })
            .collect();
        store.watched_all(&looks, now).await.unwrap();
    }
}

/// The same image under all tags; its digest.
async fn push(registry: &str, watches: usize) -> Digest {
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
    if let Some((digest, _)) = client.manifest(&last).await {
        return digest.parse().unwrap();
    }
    let (client, manifest) = (&client, &manifest);
    // The last one tells that all are there, so it comes last.
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

/// What a run leaves that pushed an image on each of these tags.
fn result(registry: &str, numbers: std::ops::Range<usize>, digest: &Digest) -> RunResult {
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
            held: false,
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

/// How often a server has looked, by what came of it.
async fn looks(client: &reqwest::Client, server: &str) -> (u64, u64) {
    let answer = client
        .get(format!("{server}/metrics"))
        .send()
        .await
        .unwrap();
    let text = answer.text().await.unwrap();
    let of = |outcome: &str| {
        let line = text
            .lines()
            .find(|line| line.starts_with("acrtask_base_looks_total") && line.contains(outcome));
        let figure = line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        figure.unwrap_or(0.0) as u64
    };
    (of("\"same\""), of("\"digest\"") + of("\"failed\""))
}

/// Waits until a server has looked at so many tags.
pub(crate) async fn watch(server: &str, watches: u64) -> Value {
    // An error means that there is a provider already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::new();
    let mut first = None;
    let limit = Instant::now() + Duration::from_secs(1800);
    loop {
        let (same, other) = looks(&client, server).await;
        if same + other > 0 && first.is_none() {
            first = Some((Instant::now(), same + other));
        }
        if let Some((begun, before)) = first.filter(|_| same + other >= watches) {
            // What came before the first question is counted at the rate of what came after it.
            let rate = (same + other - before) as f64 / begun.elapsed().as_secs_f64();
            return json!({
                "seconds": (same + other) as f64 / rate, "looks": same + other, "other": other,
                "per_second": rate,
            });
        }
        assert!(
            Instant::now() < limit,
            "{same} and {other} looks in half an hour"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
