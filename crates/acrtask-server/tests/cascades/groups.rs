//! Runs of cascades in concurrency groups whose newest run supersedes the older ones.

use acrtask_api::{
    cascade::{CascadeNodeState, CascadePhase},
    task::Concurrency,
};
use acrtask_cascade::cascade::{CascadeId, Event};
use acrtask_model::RunState;
use serde_json::json;

use crate::{
    BASE, build_diamond, counts_of, on_both, start_cascade,
    test_db::TestDb,
    test_fleet::{SECOND, TestFleet},
};

on_both!(
    cascade_run_supersedes_no_other_run_and_can_be_superseded,
    superseded_run_does_not_count_as_a_failed_attempt,
);

/// Creates the diamond without retries. The newest run of `left` supersedes its older runs.
async fn superseding_diamond(db: TestDb) -> TestFleet {
    let fleet = build_diamond(db, json!({"retries": 0})).await;
    fleet
        .change_task("left", |task| {
            task.queue.concurrency = Some(Concurrency {
                group: Some("left".into()),
                max: 1,
                cancel_superseded: true,
            });
        })
        .await;
    fleet
}

async fn cascade_run_supersedes_no_other_run_and_can_be_superseded(db: TestDb) {
    let mut fleet = superseding_diamond(db).await;
    // A manual run exists first. The cascade run does not supersede it and waits for it.
    let first = fleet.enqueue_run("left").await;
    start_cascade(&mut fleet, "new").await;
    let mut triggers: Vec<&str> = fleet
        .leased
        .iter()
        .map(|run| run.trigger.as_str())
        .collect();
    triggers.sort_unstable();
    assert_eq!(triggers, ["cascade", "task"]);
    let run = fleet.app.store.run(&first).await.unwrap();
    assert_eq!(run.state, RunState::Running);
    // A later manual run supersedes the cascade run and builds on the new base. The cascade has
    // nothing left to build.
    let second = fleet.enqueue_run("left").await;
    fleet.run_full_pass().await;
    let run = fleet.cascade(1).await.nodes[1].run.clone().unwrap();
    assert_eq!(
        fleet.node_states(1).await[1],
        format!("left running: its run {run} was superseded by {second}; waiting for that run")
    );
    fleet.finish_all(|_| true).await;
    assert_eq!(fleet.lease_runs().await, ["left"]);
    // However long that run takes, the cascade starts no second run for the same digests.
    fleet.advance_clock(600 * SECOND);
    fleet.run_full_pass().await;
    assert_eq!(fleet.lease_runs().await, [""; 0]);
    fleet.finish_all(|_| true).await;
    fleet.run_full_pass().await;
    assert_eq!(
        fleet.node_states(1).await[1],
        "left skipped: it became fresh in the meantime"
    );
    fleet.run_until_idle().await;
    fleet.assert_all_fresh();
    assert_eq!(
        fleet.run_counts().await,
        counts_of(1, &["left", "right", "bottom"])
    );
}

/// The cascade restarts a node without counting a failure, if the run that superseded it failed.
async fn superseded_run_does_not_count_as_a_failed_attempt(db: TestDb) {
    let mut fleet = superseding_diamond(db).await;
    fleet.move_base(BASE, "new").await;
    fleet.run_full_pass().await;
    fleet.advance_clock(30 * SECOND);
    fleet.run_pass().await;
    for start in 2..4 {
        // The node waits for the last run that supersedes it.
        fleet.enqueue_run("left").await;
        let last = fleet.enqueue_run("left").await;
        fleet.run_full_pass().await;
        assert_eq!(fleet.node_state(1, "left").await, CascadeNodeState::Running);
        let taken = fleet.lease_runs().await;
        assert!(taken.contains(&"left".to_owned()), "{taken:?}");
        assert!(fleet.leased.iter().any(|run| run.id == last));
        fleet.run_pass().await;
        assert_eq!(fleet.node_state(1, "left").await, CascadeNodeState::Running);
        fleet.finish_all(|name| name != "left").await;
        fleet.run_pass().await;
        let states = fleet.node_states(1).await;
        let is_checking = states[1].ends_with("; checking whether that run built it");
        assert!(is_checking, "{states:?}");
        fleet.run_full_pass().await;
        let left = fleet.cascade(1).await.nodes.remove(1);
        assert_eq!(
            (left.state, left.attempts),
            (CascadeNodeState::Running, start)
        );
    }
    // A canceled cascade does not wait for runs that it did not start.
    fleet.enqueue_run("left").await;
    let cancel = Event::Cancel {
        cascade: CascadeId(1),
        by: "ann".into(),
    };
    fleet.apply_command(cancel).await.unwrap();
    fleet.run_pass().await;
    assert_eq!(fleet.cascade(1).await.summary.phase, CascadePhase::Finished);
    assert_eq!(
        fleet.node_state(1, "left").await,
        CascadeNodeState::Canceled
    );
}
