//! Server crashes while deliveries arrive. Acknowledged deliveries are stored, and no delivery
//! starts two runs, however often it is sent.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use acrtask_api::webhook::DecisionAction;
use acrtask_store::{DeliveryFilter, RunFilter, Store};
use acrtask_tests::{TestEnvironment, dice::Dice, forge::deliver, project, service::TestServer};
use serde_json::{Value, json};

use crate::{
    common::{self, assert_triggers_accounted},
    fixture::SECRET,
};

const SENDERS: u32 = 8;
/// Longest time that a sender retries a delivery.
const LIMIT: Duration = Duration::from_secs(120);

/// Acknowledged deliveries of the senders: the id of the receipt by the id of the sender.
type Acknowledged = Mutex<BTreeMap<String, String>>;

/// Returns `true` if the path filter of the task excludes the changes of the delivery.
fn is_excluded(n: u32) -> bool {
    n % 3 == 2
}

/// Sends a delivery until it is acknowledged, as a user of the forge would by redelivering it.
fn send_until_acknowledged(hook: &str, n: u32, acknowledged: &Acknowledged) {
    let id = format!("delivery-{n}");
    let commit = format!("{:040x}", n + 1);
    let file = if is_excluded(n) {
        "docs/index.md"
    } else {
        "src/file"
    };
    let change = json!({ "id": commit, "message": "change", "added": [], "modified": [file], "removed": [] });
    let body = json!({
        "ref": "refs/heads/main", "before": "f".repeat(40), "after": commit, "forced": false,
        "commits": [change], "head_commit": change, "repository": {
            "full_name": "org/app", "clone_url": "https://git.example.com/org/app.git", "default_branch": "main"
        }
    });
    let begun = Instant::now();
    loop {
        match deliver(hook, SECRET, "push", &id, &body) {
            Ok((status, receipt)) if (200..300).contains(&status) => {
                let stored_id = receipt["delivery"].as_str().unwrap().to_owned();
                let runs = receipt["runs"].as_array().unwrap().len();
                let seen_before = receipt["duplicate"] == true;
                let starts = !seen_before && !is_excluded(n);
                assert_eq!(runs, usize::from(starts), "{receipt:#}");
                let earlier = acknowledged.lock().unwrap().insert(id, stored_id.clone());
                assert!(
                    earlier.is_none_or(|earlier| earlier == stored_id),
                    "{n}: {receipt:#}"
                );
                return;
            }
            // The server is being killed or started, or is overloaded.
            Err(_) | Ok((500.., _)) => {}
            Ok((status, answer)) => panic!("{n}: {status}: {answer:#}"),
        }
        assert!(begun.elapsed() < LIMIT, "{n} was not acknowledged");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Sends all deliveries while the server is killed `kills` times, then checks the stored rows.
async fn deliver_during_crashes(
    mut server: TestServer,
    database: &str,
    deliveries: u32,
    kills: u32,
) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = u64::try_from(since.as_nanos()).unwrap() | 1;
    let mut dice = Dice::new(seed);
    let files = project::create_folder(&[
        ("secret", SECRET),
        (
            "app.yaml",
            // No runner is in this pool.
            "name: app\ncontext: https://git.example.com/org/app.git#main\nqueue: { pool: nowhere }\ntriggers: { commit: { paths: { exclude: [docs] } } }\n",
        ),
    ]);
    for args in [
        // Higher limits than a team needs, because this test starts many runs of one task.
        &["quota", "set", "task:*", "runsPerMinute", "1000000"][..],
        &["quota", "set", "task:*", "queuedRuns", "1000000"],
        &["task", "apply", "--file", "app.yaml"],
        &[
            "webhook",
            "create",
            "app",
            "--provider",
            "github",
            "--secret-file",
            "secret",
        ],
    ] {
        let outcome = server.start_client(files.path(), args).wait();
        assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    }
    let hook = format!("{}/hooks/app", server.url);
    let acknowledged = Acknowledged::default();
    let next = AtomicU32::new(0);
    let mut moments: Vec<u32> = (0..kills).map(|_| dice.below(deliveries)).collect();
    moments.sort_unstable();
    let mut killed = 0;
    thread::scope(|scope| {
        let senders: Vec<_> = (0..SENDERS)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let n = next.fetch_add(1, Ordering::SeqCst);
                        if n >= deliveries {
                            return;
                        }
                        send_until_acknowledged(&hook, n, &acknowledged);
                        // Some forges send acknowledged deliveries again.
                        if n.is_multiple_of(10) {
                            send_until_acknowledged(&hook, n / 2, &acknowledged);
                        }
                    }
                })
            })
            .collect();
        for moment in moments {
            while next.load(Ordering::SeqCst) < moment
                && !senders.iter().all(|sender| sender.is_finished())
            {
                thread::sleep(Duration::from_millis(1));
            }
            thread::sleep(Duration::from_micros(dice.below(20_000).into()));
            server.kill();
            server.restart();
            killed += 1;
        }
        for sender in senders {
            sender.join().unwrap_or_else(|_| panic!("seed {seed}"));
        }
    });
    assert_eq!(killed, kills);
    let acknowledged = acknowledged.into_inner().unwrap();
    let store = Store::open(database).await.unwrap();

    // Acknowledged deliveries are stored under the id of the receipt.
    let mut stored = BTreeMap::new();
    let mut runs = BTreeSet::new();
    let mut ignored = 0;
    let mut before = None;
    loop {
        let filter = DeliveryFilter {
            before,
            limit: 1000,
            ..DeliveryFilter::default()
        };
        let (rows, next) = store.deliveries(filter).await.unwrap();
        for row in rows {
            let [outcome] = row.outcomes.as_slice() else {
                panic!("seed {seed}: {row:#?}");
            };
            match (outcome.what, &outcome.run) {
                (DecisionAction::RunStarted, Some(run)) => {
                    assert!(runs.insert(run.clone()), "seed {seed}: {row:#?}");
                }
                (DecisionAction::Ignored, None) => ignored += 1,
                _ => panic!("seed {seed}: {row:#?}"),
            }
            assert_eq!(stored.insert(row.sender_id, row.id), None, "seed {seed}");
        }
        before = next;
        if before.is_none() {
            break;
        }
    }
    assert_eq!(acknowledged.len() as u32, deliveries, "seed {seed}");
    for (id, stored_id) in &acknowledged {
        assert_eq!(stored.get(id), Some(stored_id), "seed {seed}: {id}");
    }
    assert_eq!(stored.len() as u32, deliveries, "seed {seed}");

    // Each delivery that starts a run has exactly one run, and no other runs exist.
    let mut count = 0;
    let mut before = None;
    let mut commits = BTreeSet::new();
    loop {
        let filter = RunFilter {
            before,
            limit: 1000,
            ..RunFilter::default()
        };
        let (rows, next) = store.runs(filter).await.unwrap();
        for row in rows {
            assert!(runs.contains(&row.id), "seed {seed}: {}", row.id);
            commits.insert(row.spec.variables.commit);
            count += 1;
        }
        before = next;
        if before.is_none() {
            break;
        }
    }
    assert_eq!(ignored, deliveries / 3, "seed {seed}");
    assert_eq!(count, deliveries - ignored, "seed {seed}");
    assert_eq!(commits.len() as u32, count, "seed {seed}");
    assert_triggers_accounted(database).await;
    let shown: Value = server.run_json(&["webhook", "deliveries", "-o", "json"]);
    assert!(!shown["items"].as_array().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_survive_server_crashes() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &["--no-runner"]);
    let database = common::database_url(&server);
    deliver_during_crashes(server, &database, 10_000, 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_survive_server_crashes_on_postgresql() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let Some(database) = common::create_postgres_database().await else {
        return;
    };
    let server = TestServer::start(&environment, &["--no-runner", "--database", &database]);
    deliver_during_crashes(server, &database, 1_500, 5).await;
}
