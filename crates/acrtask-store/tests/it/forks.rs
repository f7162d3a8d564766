//! Runs of forks: they end and block nothing before their approval.

use acrtask_api::{spec::RunSpec, task::Concurrency};
use acrtask_model::RunState;
use acrtask_store::{Ends, LeadsTo, Looked};

use crate::{
    support::{Fixture, NOW, finished, grouped, on_both, run_id},
    webhooks::{delivery, looked, new, run},
};

on_both!(
    an_unapproved_run_cancels_no_run_of_its_group,
    a_fork_ends_only_its_unapproved_runs,
);

/// A run of a pull request from another repository.
fn fork_run(id: &str, lane: &str, commit: &str, group: Option<&str>) -> Looked {
    let mut looked = run(id, lane, commit, true);
    if let LeadsTo::Run { new, .. } = &mut looked.leads_to {
        new.origin.needs_approval = true;
        new.queue.concurrency = group.map(|group| Concurrency {
            group: Some(group.to_owned()),
            max: 1,
            cancel_superseded: true,
        });
    }
    looked
}

async fn an_unapproved_run_cancels_no_run_of_its_group(fixture: &Fixture) {
    let store = &fixture.store;
    store
        .enqueue(grouped("trusted", "g", 1, true), NOW)
        .await
        .unwrap();
    let claimed = fixture.claim("a", 9, NOW).await;
    assert_eq!(claimed[0].id, run_id("trusted"));
    let fork = fork_run("fork", "t1 pull/7", "c1", Some("g"));
    let delivered = store
        .deliver(delivery("d1", "s1"), vec![fork], NOW)
        .await
        .unwrap();
    assert_eq!(new(delivered).1, []);
    let mut again = grouped("again", "g", 1, true);
    again.origin.needs_approval = true;
    store.enqueue(again, NOW).await.unwrap();
    let trusted = store.run(&run_id("trusted")).await.unwrap();
    assert_eq!(
        (trusted.state, trusted.cancel_reason),
        (RunState::Leased, None)
    );
    // Approved, it waits for its turn.
    let spec = RunSpec::default();
    let approved = store
        .approve(&run_id("fork"), &spec, "ann", NOW)
        .await
        .unwrap();
    assert!(approved.held);
    let trusted = store.run(&run_id("trusted")).await.unwrap();
    assert_eq!(trusted.cancel_reason, None);
    fixture
        .say("a", &claimed[0], NOW, finished(RunState::Succeeded, 0))
        .await;
    assert_eq!(fixture.claim("a", 9, NOW).await[0].id, run_id("fork"));
}

async fn a_fork_ends_only_its_unapproved_runs(fixture: &Fixture) {
    let store = &fixture.store;
    let lane = "t1 pull/7";
    for (n, commit) in [(1, "c1"), (2, "c2")] {
        let fork = fork_run(&format!("r{n}"), lane, commit, None);
        let delivered = store
            .deliver(
                delivery(&format!("d{n}"), &format!("s{n}")),
                vec![fork],
                NOW,
            )
            .await
            .unwrap();
        let ended = new(delivered).1;
        // The first one waits, so the second one replaces it.
        assert_eq!(ended.len(), n - 1);
    }
    store
        .approve(&run_id("r2"), &RunSpec::default(), "ann", NOW)
        .await
        .unwrap();
    let fork = fork_run("r3", lane, "c3", None);
    let delivered = store
        .deliver(delivery("d3", "s3"), vec![fork], NOW)
        .await
        .unwrap();
    assert_eq!(new(delivered).1, []);
    let closed = looked(LeadsTo::Cancel {
        lane: lane.into(),
        ends: Ends::Unapproved,
    });
    let delivered = store
        .deliver(delivery("d4", "s4"), vec![closed], NOW)
        .await
        .unwrap();
    assert_eq!(new(delivered).1, [run_id("r3")]);
    let approved = store.run(&run_id("r2")).await.unwrap();
    assert_eq!(
        (approved.state, approved.cancel_reason),
        (RunState::Queued, None)
    );
}
