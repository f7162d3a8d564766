//! Tests of cascades with a simulated clock. They cover order and pins, failures, later base
//! digests, commands of users, killed servers and several servers.
//!
//! Each test runs on SQLite, and on PostgreSQL if `ACRTASK_TEST_POSTGRES` names a server.

#![allow(clippy::unwrap_used, reason = "a test")]
#![allow(clippy::print_stdout, reason = "a failing test prints its seed")]

#[path = "cascades/groups.rs"]
mod groups;
#[path = "cascades/killed_servers.rs"]
mod killed_servers;
#[path = "queue/test_db.rs"]
#[allow(dead_code, reason = "only the tests of the queue use all of it")]
mod test_db;
#[path = "cascades/test_fleet.rs"]
mod test_fleet;

use std::{collections::BTreeMap, time::Instant};

use acrtask_api::cascade::{CascadeNodeState, CascadePhase};
use acrtask_cascade::cascade::{CascadeId, Event};
use acrtask_server::cascades::{self, CommandError};
use serde_json::{Value, json};
use test_db::TestDb;
use test_fleet::{SECOND, TestFleet, digest_of};

/// Creates one test per database from a function that takes a [`TestDb`].
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::test_db::TestDb::sqlite()).await;
            })+
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if let Some(db) = crate::test_db::TestDb::postgres() {
                    super::$name(db).await;
                }
            })+
        }
    };
}
pub(crate) use on_both;

on_both!(
    diamond_is_built_once_in_order_on_the_same_digests,
    failed_node_stops_only_its_dependents,
    second_digest_joins_waiting_nodes_and_starts_a_follow_up,
    cascade_can_be_paused_approved_and_canceled,
    node_of_an_invalid_task_fails_with_a_reason,
    attempts_are_deleted_with_their_task,
    staged_images_are_pinned_and_move_no_tag,
    outdated_poll_does_not_undo_a_push_of_a_cascade,
    retry_of_an_inactive_cascade_starts_another,
    two_servers_build_each_task_once,
    large_fleet_is_reconciled_and_planned,
    server_wakes_when_settling_or_a_run_ends,
);

pub(crate) const BASE: &str = "r.io/base:1";

/// Creates a fleet of four images: `left` and `right` use the base, `bottom` uses both.
/// All tasks were built once from the base digest `old`.
pub(crate) async fn build_diamond(db: TestDb, settings: Value) -> TestFleet {
    let mut fleet = TestFleet::new(db, settings).await;
    fleet.registry.insert(BASE.into(), digest_of("old"));
    fleet.create_built_task("left", &[BASE]).await;
    fleet.create_built_task("right", &[BASE]).await;
    fleet
        .create_built_task("bottom", &["r.io/left:1", "r.io/right:1"])
        .await;
    fleet.move_base(BASE, "old").await;
    fleet.run_full_pass().await;
    assert_eq!(cascades::list(&fleet.app, list_filter()).await.unwrap(), []);
    fleet
}

fn list_filter() -> cascades::ListFilter {
    cascades::ListFilter {
        limit: 100,
        ..cascades::ListFilter::default()
    }
}

pub(crate) fn counts_of(count: usize, names: &[&str]) -> BTreeMap<String, usize> {
    names
        .iter()
        .map(|name| ((*name).to_owned(), count))
        .collect()
}

async fn diamond_is_built_once_in_order_on_the_same_digests(db: TestDb) {
    let mut fleet = build_diamond(db, json!({})).await;
    let old = fleet.registry.clone();
    fleet.move_base(BASE, "new").await;
    fleet.run_full_pass().await;
    assert_eq!(fleet.lease_runs().await, [""; 0], "the cascade settles");
    let settling = fleet.cascade(1).await;
    assert_eq!(settling.summary.phase, CascadePhase::Settling);
    assert_eq!(
        settling.summary.changes,
        [(BASE.to_owned(), digest_of("new"))].into()
    );
    fleet.advance_clock(29 * SECOND);
    fleet.run_pass().await;
    assert_eq!(fleet.lease_runs().await, [""; 0]);
    fleet.advance_clock(SECOND);
    fleet.run_pass().await;
    assert_eq!(fleet.lease_runs().await, ["left", "right"]);
    fleet.run_full_pass().await;
    let run = fleet.leased[0].clone();
    assert_eq!(run.spec.pins, [(BASE.to_owned(), digest_of("new"))].into());
    assert_eq!(run.spec.variables.triggered_by, "Image Update");
    assert_eq!(run.queue.priority, -5);
    fleet.finish_run(0, true).await;
    fleet.run_pass().await;
    assert_eq!(
        fleet.lease_runs().await,
        [""; 0],
        "the node waits for both sides"
    );
    fleet.finish_all(|_| true).await;
    fleet.run_pass().await;
    assert_eq!(fleet.lease_runs().await, ["bottom"]);
    let pins = fleet.leased[0].spec.pins.clone();
    assert_eq!(pins["r.io/left:1"], fleet.registry["r.io/left:1"]);
    assert_eq!(pins["r.io/right:1"], fleet.registry["r.io/right:1"]);
    // A cascade run records the changes at its start: each base with its previous and its new
    // digest.
    let id = fleet.leased[0].id.clone();
    let ids = [id.clone(), run.id];
    let cascades_of = fleet.app.store.cascades_of_runs(&ids).await.unwrap();
    let changes = &cascades_of[&id].changes;
    let names: Vec<&str> = changes.iter().map(|base| base.reference.as_str()).collect();
    assert_eq!(names, ["r.io/left:1", "r.io/right:1"]);
    for base in changes {
        assert_eq!(base.from, old[&base.reference]);
        assert_eq!(base.to, pins[&base.reference]);
    }
    assert_eq!(cascades_of.len(), 2);
    fleet.finish_all(|_| true).await;
    fleet.run_pass().await;
    let finished = fleet.cascade(1).await;
    assert_eq!(finished.summary.phase, CascadePhase::Finished);
    assert_eq!(finished.summary.counts.succeeded, 3);
    let bottom = &finished.nodes[0];
    assert_eq!(bottom.after, ["left", "right"]);
    assert_eq!(
        (bottom.attempts, bottom.images.len(), bottom.pins.len()),
        (1, 1, 2)
    );
    assert!(bottom.run.is_some() && bottom.ended_at.is_some());
    assert_eq!(finished.images.len(), 3);
    assert!(finished.images.iter().all(|image| image.before.is_some()));
    fleet.run_full_pass().await;
    fleet.run_until_idle().await;
    assert_eq!(
        fleet.run_counts().await,
        counts_of(1, &["left", "right", "bottom"])
    );
    assert_eq!(
        cascades::list(&fleet.app, list_filter())
            .await
            .unwrap()
            .len(),
        1
    );
    fleet.assert_all_fresh();
    fleet.assert_built_once().await;
    let triggers = fleet
        .app
        .store
        .triggers_of_task("left", None, 1)
        .await
        .unwrap()
        .0;
    assert_eq!(
        triggers[0].detail.as_deref(),
        Some("cascade 1: r.io/base:1 has a new digest")
    );
}

/// Moves the base tag and leases the first runs of the new cascade.
pub(crate) async fn start_cascade(fleet: &mut TestFleet, digest: &str) {
    fleet.move_base(BASE, digest).await;
    fleet.run_full_pass().await;
    fleet.advance_clock(30 * SECOND);
    fleet.run_pass().await;
    fleet.lease_runs().await;
}

async fn failed_node_stops_only_its_dependents(db: TestDb) {
    let mut fleet = build_diamond(db, json!({"retries": 1, "retryDelaySecs": 60})).await;
    start_cascade(&mut fleet, "new").await;
    fleet.finish_all(|name| name != "left").await;
    fleet.run_pass().await;
    let states = fleet.node_states(1).await;
    assert!(states[1].starts_with("left ready: retry at "), "{states:?}");
    assert!(states[1].ends_with(", after: a step failed"), "{states:?}");
    fleet.advance_clock(59 * SECOND);
    fleet.run_pass().await;
    assert_eq!(fleet.lease_runs().await, [""; 0]);
    fleet.advance_clock(SECOND);
    fleet.run_pass().await;
    assert_eq!(fleet.lease_runs().await, ["left"]);
    fleet.finish_all(|_| false).await;
    fleet.run_full_pass().await;
    let states = fleet.node_states(1).await;
    assert_eq!(states[0], "bottom stale: its base task left was not built");
    assert!(
        states[1].starts_with("left failed: a step failed; retry at "),
        "{states:?}"
    );
    assert_eq!(states[2], "right succeeded");
    assert_eq!(fleet.cascade(1).await.summary.phase, CascadePhase::Finished);
    // The failed node is not retried immediately.
    fleet.run_until_idle().await;
    assert_eq!(fleet.run_counts().await["left"], 2);
    fleet.advance_clock(60 * 60 * SECOND);
    fleet.run_full_pass().await;
    fleet.advance_clock(30 * SECOND);
    fleet.run_pass().await;
    assert_eq!(fleet.lease_runs().await, ["left"]);
    fleet.finish_all(|_| false).await;
    fleet.run_pass().await;
    fleet.advance_clock(60 * SECOND);
    fleet.run_pass().await;
    assert_eq!(fleet.lease_runs().await, ["left"]);
    fleet.finish_all(|_| false).await;
    fleet.run_full_pass().await;
    assert_eq!(fleet.cascade(2).await.summary.phase, CascadePhase::Finished);
    fleet
        .apply_command(Event::Retry {
            cascade: CascadeId(2),
        })
        .await
        .unwrap();
    fleet.run_full_pass().await;
    assert_eq!(fleet.lease_runs().await, ["left"]);
    fleet.finish_all(|_| true).await;
    fleet.run_until_idle().await;
    fleet.assert_all_fresh();
    assert_eq!(
        fleet.node_state(2, "bottom").await,
        CascadeNodeState::Succeeded
    );
    let counts = [("left", 5), ("right", 1), ("bottom", 1)];
    let counts: BTreeMap<String, usize> = counts.map(|(name, count)| (name.into(), count)).into();
    assert_eq!(fleet.run_counts().await, counts);
}

async fn second_digest_joins_waiting_nodes_and_starts_a_follow_up(db: TestDb) {
    let mut fleet = build_diamond(db, json!({"parallel": 1})).await;
    start_cascade(&mut fleet, "second").await;
    assert_eq!(fleet.leased.len(), 1);
    let first = fleet.leased[0].task_name.clone().unwrap();
    let other = if first == "left" { "right" } else { "left" };
    fleet.move_base(BASE, "third").await;
    fleet.run_full_pass().await;
    // The node that has not started joins with the new digest. The follow-up cascade rebuilds the
    // node that has started.
    assert_eq!(fleet.cascade(2).await.summary.follows, Some(1));
    fleet.finish_all(|_| true).await;
    fleet.run_pass().await;
    assert_eq!(fleet.lease_runs().await, [other]);
    assert_eq!(fleet.leased[0].spec.pins[BASE], digest_of("third"));
    fleet.run_until_idle().await;
    fleet.assert_all_fresh();
    fleet.assert_built_once().await;
    let counts = fleet.run_counts().await;
    assert_eq!(
        (counts[&first], counts[other], counts["bottom"]),
        (2, 1, 1),
        "{counts:?}"
    );
    let bottom = fleet.node_states(1).await.remove(0);
    assert_eq!(bottom, "bottom skipped: it is built in cascade 2");
}

async fn cascade_can_be_paused_approved_and_canceled(db: TestDb) {
    let rules = json!({"rules": [{"tasks": "bottom", "mode": "approval"}]});
    let mut fleet = build_diamond(db, rules).await;
    let id = CascadeId(1);
    start_cascade(&mut fleet, "new").await;
    fleet
        .apply_command(Event::Pause { cascade: id })
        .await
        .unwrap();
    fleet.finish_all(|_| true).await;
    fleet.run_pass().await;
    assert_eq!(
        fleet.node_states(1).await[0],
        "bottom ready: the cascade is paused; continue it with `acrtask cascade resume 1`"
    );
    fleet
        .apply_command(Event::Resume { cascade: id })
        .await
        .unwrap();
    fleet.run_full_pass().await;
    assert_eq!(fleet.lease_runs().await, [""; 0]);
    let waits = fleet.cascade(1).await;
    assert!(waits.summary.awaiting_approval);
    assert_eq!(
        waits.nodes[0].reason.as_deref(),
        Some("waits for approval: `acrtask cascade approve 1`")
    );
    fleet
        .apply_command(Event::Approve { cascade: id })
        .await
        .unwrap();
    assert_eq!(fleet.lease_runs().await, ["bottom"]);
    let by = "ann".to_owned();
    fleet
        .apply_command(Event::Cancel { cascade: id, by })
        .await
        .unwrap();
    let run = fleet.app.store.run(&fleet.leased[0].id).await.unwrap();
    assert_eq!(
        run.cancel_reason.as_deref(),
        Some("cascade 1 was canceled by ann")
    );
    assert_eq!(
        fleet.cascade(1).await.summary.phase,
        CascadePhase::Canceling
    );
    fleet.finish_all(|_| false).await;
    fleet.run_pass().await;
    assert_eq!(
        fleet.node_states(1).await[0],
        "bottom canceled: canceled by ann"
    );
    fleet.run_until_idle().await;
    assert_eq!(
        fleet.run_counts().await["bottom"],
        1,
        "a canceled node stays stale"
    );
    let refused = fleet
        .apply_command(Event::Pause { cascade: id })
        .await
        .unwrap_err();
    assert!(matches!(refused, CommandError::Over(1)), "{refused}");
    let unknown = fleet
        .apply_command(Event::Pause {
            cascade: CascadeId(9),
        })
        .await
        .unwrap_err();
    assert!(matches!(unknown, CommandError::Unknown(9)), "{unknown}");
    // Another digest makes the canceled tasks part of a new cascade.
    fleet.move_base(BASE, "newer").await;
    fleet.run_full_pass().await;
    fleet
        .apply_command(Event::Approve {
            cascade: CascadeId(2),
        })
        .await
        .unwrap();
    fleet.run_until_idle().await;
    fleet.assert_all_fresh();
}

async fn node_of_an_invalid_task_fails_with_a_reason(db: TestDb) {
    let mut fleet = build_diamond(db, json!({"retryFailedAfterSecs": 0})).await;
    fleet
        .change_task("left", |task| {
            task.secrets.insert("token".into(), "not-there".into());
        })
        .await;
    fleet.move_base(BASE, "new").await;
    fleet.run_full_pass().await;
    fleet.app.store.delete_task("right").await.unwrap();
    fleet.advance_clock(30 * SECOND);
    fleet.run_pass().await;
    assert_eq!(
        fleet.node_states(1).await,
        [
            "bottom stale: its base task left was not built",
            "left failed: the secret `not-there` is missing; set it with `acrtask secret set not-there --task left`",
            "right failed: the task no longer exists"
        ]
    );
    assert_eq!(fleet.cascade_runs().await.len(), 0);
    assert_eq!(fleet.cascade(1).await.summary.phase, CascadePhase::Finished);
    // A disabled task is not part of a cascade.
    fleet
        .change_task("bottom", |task| task.enabled = false)
        .await;
    fleet.move_base(BASE, "newer").await;
    fleet.run_full_pass().await;
    let states = fleet.node_states(2).await;
    assert_eq!(states.len(), 1, "{states:?}");
}

async fn attempts_are_deleted_with_their_task(db: TestDb) {
    let mut fleet = build_diamond(db, json!({"retries": 0, "retryFailedAfterSecs": 0})).await;
    start_cascade(&mut fleet, "new").await;
    fleet.finish_all(|_| false).await;
    fleet.run_full_pass().await;
    let attempted = async |fleet: &TestFleet| {
        let loaded = fleet.app.store.load_cascades().await.unwrap();
        let mut tasks: Vec<String> = loaded.attempts.into_iter().map(|(task, _)| task).collect();
        tasks.sort();
        tasks
    };
    assert_eq!(attempted(&fleet).await, ["left", "right"]);
    fleet.app.store.delete_task("left").await.unwrap();
    fleet.run_full_pass().await;
    assert_eq!(attempted(&fleet).await, ["right"]);
    // A restarted server keeps the other attempts. It starts no second run for the same digests.
    fleet.restart_server().await;
    fleet.run_until_idle().await;
    assert_eq!(attempted(&fleet).await, ["right"]);
    assert_eq!(fleet.run_counts().await, counts_of(1, &["left", "right"]));
}

async fn staged_images_are_pinned_and_move_no_tag(db: TestDb) {
    let mut fleet = build_diamond(db, json!({"promotion": {"tasks": "bott"}})).await;
    let before = fleet.registry.clone();
    start_cascade(&mut fleet, "new").await;
    fleet.finish_all(|_| true).await;
    fleet.run_pass().await;
    fleet.lease_runs().await;
    let pins = fleet.leased[0].spec.pins.clone();
    assert_ne!(
        pins["r.io/left:1"], before["r.io/left:1"],
        "it is pinned to the staged image"
    );
    fleet.finish_all(|_| true).await;
    fleet.run_full_pass().await;
    let finished = fleet.cascade(1).await;
    assert!(finished.summary.stages_images);
    assert_eq!(finished.summary.phase, CascadePhase::Finished);
    assert_eq!(finished.summary.counts.succeeded, 3);
    assert_eq!(finished.images.len(), 3);
    for (name, digest) in &before {
        if name != BASE {
            assert_eq!(fleet.registry[name], *digest, "{name}");
            let image = fleet.app.store.image(name).await.unwrap().0;
            assert_eq!(image.digest, *digest, "{name}");
        }
    }
    let left = finished
        .images
        .iter()
        .find(|image| image.name == "r.io/left:1")
        .unwrap();
    assert_eq!(left.before.as_ref(), Some(&before["r.io/left:1"]));
    // Staged images count as pushed, so no image is stale.
    fleet.run_until_idle().await;
    assert_eq!(
        fleet.run_counts().await,
        counts_of(1, &["left", "right", "bottom"])
    );
}

async fn outdated_poll_does_not_undo_a_push_of_a_cascade(db: TestDb) {
    let mut fleet = build_diamond(db, json!({})).await;
    // The tag of `left` has a base watch because `bottom` depends on it.
    fleet.poll_tag("r.io/left:1").await;
    start_cascade(&mut fleet, "new").await;
    let old = fleet.registry["r.io/left:1"].clone();
    fleet.finish_all(|_| true).await;
    // This poll resolved the tag before the push and is recorded after it.
    let new = fleet.registry.insert("r.io/left:1".into(), old).unwrap();
    fleet.advance_clock(5 * SECOND);
    fleet.poll_tag("r.io/left:1").await;
    fleet.registry.insert("r.io/left:1".into(), new);
    fleet.run_full_pass().await;
    assert_eq!(fleet.lease_runs().await, ["bottom"]);
    fleet.finish_all(|_| true).await;
    fleet.run_full_pass().await;
    fleet.advance_clock(60 * SECOND);
    fleet.poll_tag("r.io/left:1").await;
    fleet.run_until_idle().await;
    assert_eq!(
        fleet.run_counts().await,
        counts_of(1, &["left", "right", "bottom"])
    );
    fleet.assert_all_fresh();
    // A push from outside the cascade is a digest change like any other.
    fleet.move_base("r.io/left:1", "by hand").await;
    fleet.run_full_pass().await;
    fleet.advance_clock(30 * SECOND);
    fleet.run_pass().await;
    assert_eq!(fleet.lease_runs().await, ["bottom"]);
    assert_eq!(
        fleet.leased[0].spec.pins["r.io/left:1"],
        digest_of("by hand")
    );
}

async fn retry_of_an_inactive_cascade_starts_another(db: TestDb) {
    let mut fleet = build_diamond(db, json!({"retries": 0})).await;
    start_cascade(&mut fleet, "new").await;
    fleet.finish_all(|name| name != "left").await;
    fleet.run_full_pass().await;
    fleet.advance_clock(25 * 3600 * SECOND);
    fleet.run_full_pass().await;
    assert!(!fleet.app.store.cascade(1).await.unwrap().active);
    assert_eq!(fleet.node_states(1).await[1], "left failed: a step failed");
    fleet.restart_server().await;
    let refused = fleet
        .apply_command(Event::Pause {
            cascade: CascadeId(1),
        })
        .await
        .unwrap_err();
    assert!(matches!(refused, CommandError::Over(1)), "{refused}");
    fleet
        .apply_command(Event::Retry {
            cascade: CascadeId(1),
        })
        .await
        .unwrap();
    fleet.run_until_idle().await;
    fleet.assert_all_fresh();
    assert_eq!(
        fleet.node_state(2, "bottom").await,
        CascadeNodeState::Succeeded
    );
}

async fn two_servers_build_each_task_once(db: TestDb) {
    let mut fleet = build_diamond(db, json!({})).await;
    let other = fleet.open_app().await;
    for round in 0..4 {
        fleet.move_base(BASE, &format!("round {round}")).await;
        for _ in 0..12 {
            fleet.advance_clock(10 * SECOND);
            other.clock.set(fleet.now());
            let (one, two) = tokio::join!(
                cascades::run_pass(&fleet.app, true),
                cascades::run_pass(&other, true)
            );
            one.unwrap();
            two.unwrap();
            fleet.lease_runs().await;
            fleet.finish_all(|_| true).await;
        }
        fleet.assert_all_fresh();
    }
    assert_eq!(
        fleet.run_counts().await,
        counts_of(4, &["left", "right", "bottom"])
    );
    fleet.assert_built_once().await;
    assert_eq!(
        cascades::list(&fleet.app, list_filter())
            .await
            .unwrap()
            .len(),
        4
    );
}

/// Creates `ACRTASK_TEST_FLEET` tasks (default 300) and prints the duration of each step.
async fn large_fleet_is_reconciled_and_planned(db: TestDb) {
    let count = std::env::var("ACRTASK_TEST_FLEET").ok();
    let count = count.and_then(|count| count.parse().ok()).unwrap_or(300);
    let mut fleet = TestFleet::new(db, json!({"settleSecs": 1, "parallel": 8})).await;
    fleet.create_built_tasks(count, BASE).await;
    let started = std::cell::Cell::new(Instant::now());
    let print_step = |what: &str| {
        println!("{count} tasks, {what}: {:?}", started.get().elapsed());
        started.set(Instant::now());
    };
    fleet.move_base(BASE, "old").await;
    print_step("tasks created");
    fleet.run_full_pass().await;
    print_step("nothing is stale");
    fleet.run_full_pass().await;
    print_step("nothing is stale, second pass");
    fleet.move_base(BASE, "new").await;
    print_step("a base moves");
    fleet.run_full_pass().await;
    print_step("a cascade starts");
    fleet.run_full_pass().await;
    print_step("no change");
    fleet.advance_clock(SECOND);
    started.set(Instant::now());
    fleet.run_pass().await;
    print_step("the pass starts runs");
    // The first of each 50 tasks depends on the base only.
    assert_eq!(fleet.lease_runs().await.len(), count.div_ceil(50).min(8));
    fleet.finish_run(0, true).await;
    started.set(Instant::now());
    fleet.run_pass().await;
    print_step("the pass applies a finished run and starts the next");
    fleet.run_full_pass().await;
    print_step("a full pass during the cascade");
    assert_eq!(fleet.cascade(1).await.nodes.len(), count);
    print_step("the cascade is shown");
    assert_eq!(
        cascades::list(&fleet.app, list_filter())
            .await
            .unwrap()
            .len(),
        1
    );
    print_step("the cascade is listed");
    let base = Some(BASE.parse().unwrap());
    let plan = cascades::plan(&fleet.app, base, None, true).await.unwrap();
    print_step("a plan is made");
    assert_eq!(plan.nodes.len(), count - 1);
    fleet.restart_server().await;
    started.set(Instant::now());
    fleet.run_pass().await;
    print_step("a restarted server loads the cascade");
}

/// Tests the loops of a real server. The end of settling starts the first runs at once, and each
/// finished run starts the next ones.
async fn server_wakes_when_settling_or_a_run_ends(db: TestDb) {
    let mut fleet = build_diamond(db, json!({"settleSecs": 1})).await;
    fleet.set_clock_to_now().await;
    // Moves the base before the server starts, because a started server polls the tag itself.
    fleet.move_base(BASE, "new").await;
    let started = Instant::now();
    let server = fleet.start_server().await;
    let mut ran = Vec::new();
    while ran.len() < 3 {
        assert!(started.elapsed().as_secs() < 20, "{ran:?}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        let taken = fleet.lease_runs().await;
        if !taken.is_empty() {
            println!("{taken:?} after {:?}", started.elapsed());
        }
        ran.extend(taken);
        fleet.finish_all(|_| true).await;
    }
    assert!(started.elapsed().as_millis() >= 1000, "the cascade settles");
    ran.sort();
    assert_eq!(ran, ["bottom", "left", "right"]);
    fleet.assert_all_fresh();
    server.shutdown().await;
}
