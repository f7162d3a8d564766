//! Runs of forks: before their approval they cancel and block no other run.

use acrtask_api::{spec::RunSpec, task::Concurrency};
use acrtask_model::RunState;
use acrtask_store::{CancelScope, TriggerAction, TriggerDecision};

use crate::{
    support::{NOW, TestDb, finished_report, grouped, on_both, run_id},
    webhooks::{decision, delivery, expect_new, run_decision},
};

on_both!(
    unapproved_run_cancels_no_run_of_its_group,
    fork_cancels_only_its_unapproved_runs,
);

/// Returns a decision that starts a run of a pull request from another repository.
fn fork_decision(id: &str, ref_key: &str, commit: &str, group: Option<&str>) -> TriggerDecision {
    let mut decision = run_decision(id, ref_key, commit, true);
    if let TriggerAction::Run { new, .. } = &mut decision.action {
        new.origin.needs_approval = true;
        new.queue.concurrency = group.map(|group| Concurrency {
            group: Some(group.to_owned()),
            max: 1,
            cancel_superseded: true,
        });
    }
    decision
}

async fn unapproved_run_cancels_no_run_of_its_group(db: &TestDb) {
    let store = &db.store;
    store
        .enqueue(grouped("trusted", "g", 1, true), NOW)
        .await
        .unwrap();
    let claimed = db.claim("a", 9, NOW).await;
    assert_eq!(claimed[0].id, run_id("trusted"));
    let fork = fork_decision("fork", "t1 pull/7", "c1", Some("g"));
    let delivered = store
        .record_delivery(delivery("d1", "s1"), vec![fork], NOW)
        .await
        .unwrap();
    assert_eq!(expect_new(delivered).1, []);
    let mut again = grouped("again", "g", 1, true);
    again.origin.needs_approval = true;
    store.enqueue(again, NOW).await.unwrap();
    let trusted = store.run(&run_id("trusted")).await.unwrap();
    assert_eq!(
        (trusted.state, trusted.cancel_reason),
        (RunState::Leased, None)
    );
    // The approved run waits for its turn.
    let spec = RunSpec::default();
    let approved = store
        .approve(&run_id("fork"), &spec, "ann", NOW)
        .await
        .unwrap();
    assert!(approved.blocked);
    let trusted = store.run(&run_id("trusted")).await.unwrap();
    assert_eq!(trusted.cancel_reason, None);
    db.report(
        "a",
        &claimed[0],
        NOW,
        finished_report(RunState::Succeeded, 0),
    )
    .await;
    assert_eq!(db.claim("a", 9, NOW).await[0].id, run_id("fork"));
}

async fn fork_cancels_only_its_unapproved_runs(db: &TestDb) {
    let store = &db.store;
    let ref_key = "t1 pull/7";
    for (n, commit) in [(1, "c1"), (2, "c2")] {
        let fork = fork_decision(&format!("r{n}"), ref_key, commit, None);
        let delivered = store
            .record_delivery(
                delivery(&format!("d{n}"), &format!("s{n}")),
                vec![fork],
                NOW,
            )
            .await
            .unwrap();
        let ended = expect_new(delivered).1;
        // The first run waits for an approval, so the second one replaces it.
        assert_eq!(ended.len(), n - 1);
    }
    store
        .approve(&run_id("r2"), &RunSpec::default(), "ann", NOW)
        .await
        .unwrap();
    let fork = fork_decision("r3", ref_key, "c3", None);
    let delivered = store
        .record_delivery(delivery("d3", "s3"), vec![fork], NOW)
        .await
        .unwrap();
    assert_eq!(expect_new(delivered).1, []);
    let closed = decision(TriggerAction::Cancel {
        ref_key: ref_key.into(),
        scope: CancelScope::Unapproved,
    });
    let delivered = store
        .record_delivery(delivery("d4", "s4"), vec![closed], NOW)
        .await
        .unwrap();
    assert_eq!(expect_new(delivered).1, [run_id("r3")]);
    let approved = store.run(&run_id("r2")).await.unwrap();
    assert_eq!(
        (approved.state, approved.cancel_reason),
        (RunState::Queued, None)
    );
}
