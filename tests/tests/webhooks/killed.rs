//! A server that is killed at any moment while deliveries come: what it has acknowledged is stored, and no delivery leads
//! to two runs, however often it is sent.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use acrtask_api::webhook::OutcomeKind;
use acrtask_store::{DeliveryFilter, RunFilter, Store};
use acrtask_tests::{World, dice::Dice, forge::deliver, project, service::Server};
use serde_json::{Value, json};

use crate::{
    common::{self, law_holds},
    place::SECRET,
};

const SENDERS: u32 = 8;
/// The longest that a sender tries.
const LIMIT: Duration = Duration::from_secs(120);

/// What a sender knows of its deliveries: the id that was acknowledged, by its own.
type Acknowledged = Mutex<BTreeMap<String, String>>;

/// Whether a delivery is of a change that the task does not count.
fn starts_nothing(n: u32) -> bool {
    n % 3 == 2
}

/// Sends a delivery until it is acknowledged, as one does who presses the forge's button for it.
fn send(hook: &str, n: u32, acknowledged: &Acknowledged) {
    let id = format!("delivery-{n}");
    let commit = format!("{:040x}", n + 1);
    let file = if starts_nothing(n) {
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
                let told = receipt["delivery"].as_str().unwrap().to_owned();
                let runs = receipt["runs"].as_array().unwrap().len();
                let seen_before = receipt["seenBefore"] == true;
                let starts = !seen_before && !starts_nothing(n);
                assert_eq!(runs, usize::from(starts), "{receipt:#}");
                let earlier = acknowledged.lock().unwrap().insert(id, told.clone());
                assert!(
                    earlier.is_none_or(|earlier| earlier == told),
                    "{n}: {receipt:#}"
                );
                return;
            }
            // It is being killed, or started, or has too much to do.
            Err(_) | Ok((500.., _)) => {}
            Ok((status, answer)) => panic!("{n}: {status}: {answer:#}"),
        }
        assert!(begun.elapsed() < LIMIT, "{n} is not acknowledged");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Sends all of them while the server is killed so often; then looks at what is stored.
async fn while_killed(mut server: Server, database: &str, deliveries: u32, kills: u32) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = u64::try_from(since.as_nanos()).unwrap() | 1;
    let mut dice = Dice::new(seed);
    let files = project::folder(&[
        ("secret", SECRET),
        (
            "app.yaml",
            // No runner is in this pool.
            "name: app\ncontext: https://git.example.com/org/app.git#main\nqueue: { pool: nowhere }\ntriggers: { commit: { paths: { exclude: [docs] } } }\n",
        ),
    ]);
    for args in [
        // More runs of one task than a team starts.
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
        let outcome = server.client(files.path(), args).wait();
        assert_eq!(outcome.code, Some(0), "{}", outcome.all());
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
                        send(&hook, n, &acknowledged);
                        // Some forges send what was acknowledged once more.
                        if n.is_multiple_of(10) {
                            send(&hook, n / 2, &acknowledged);
                        }
                    }
                })
            })
            .collect();
        for moment in moments {
            while next.load(Ordering::SeqCst) < moment
                && !senders.iter().all(|one| one.is_finished())
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

    // What was acknowledged is stored, under the id that was told.
    let mut stored = BTreeMap::new();
    let mut runs = BTreeSet::new();
    let mut nothing = 0;
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
                (OutcomeKind::Run, Some(run)) => {
                    assert!(runs.insert(run.clone()), "seed {seed}: {row:#?}");
                }
                (OutcomeKind::Suppressed, None) => nothing += 1,
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
    for (id, told) in &acknowledged {
        assert_eq!(stored.get(id), Some(told), "seed {seed}: {id}");
    }
    assert_eq!(stored.len() as u32, deliveries, "seed {seed}");

    // Each that was to start one has one run, and there are no others.
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
            commits.insert(row.spec.facts.commit);
            count += 1;
        }
        before = next;
        if before.is_none() {
            break;
        }
    }
    assert_eq!(nothing, deliveries / 3, "seed {seed}");
    assert_eq!(count, deliveries - nothing, "seed {seed}");
    assert_eq!(commits.len() as u32, count, "seed {seed}");
    law_holds(database).await;
    let shown: Value = server.json(&["webhook", "deliveries", "-o", "json"]);
    assert!(!shown["items"].as_array().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_deliveries_while_the_server_is_killed() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &["--no-runner"]);
    let database = common::database(&server);
    while_killed(server, &database, 10_000, 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_while_a_server_on_postgresql_is_killed() {
    let Some(world) = World::find() else { return };
    let Some(database) = common::postgres().await else {
        return;
    };
    let server = Server::start(&world, &["--no-runner", "--database", &database]);
    while_killed(server, &database, 1_500, 5).await;
}
