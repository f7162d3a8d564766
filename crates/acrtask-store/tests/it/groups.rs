//! Concurrency groups.

use acrtask_model::RunState;
use acrtask_store::{Report, RunGroup, Store};

use crate::support::{
    LEASE, NOW, TestDb, finished_report, grouped, new_run, on_both, run_id, run_ids,
};

on_both!(
    group_runs_at_most_its_limit,
    finish_cancel_and_reaper_unblock_the_next_run,
    newer_run_supersedes_earlier_ones,
    lost_run_keeps_its_group_slot,
    group_defaults_to_the_task_name,
    leftover_blocked_runs_are_released,
    concurrent_requests_run_one_at_a_time,
    user_group_names_never_match_server_groups,
    supersede_reason_names_no_run_of_another_task,
);

async fn blocked_states(db: &TestDb, ids: &[&str]) -> Vec<bool> {
    let mut blocked = Vec::new();
    for id in ids {
        blocked.push(db.store.run(&run_id(id)).await.unwrap().blocked);
    }
    blocked
}

async fn enqueue_in_group(db: &TestDb, id: &str, max: u32) {
    db.store
        .enqueue(grouped(id, "g", max, false), NOW)
        .await
        .unwrap();
}

async fn group_runs_at_most_its_limit(db: &TestDb) {
    for id in ["one", "two", "three", "four"] {
        enqueue_in_group(db, id, 2).await;
    }
    db.store
        .enqueue(grouped("other", "h", 1, false), NOW)
        .await
        .unwrap();
    assert_eq!(
        blocked_states(db, &["one", "two", "three", "four", "other"]).await,
        [false, false, true, true, false]
    );
    assert_eq!(
        run_ids(&db.claim("a", 9, NOW).await),
        ["one", "two", "other"]
    );
    let position = db.store.position(&run_id("four")).await.unwrap();
    let behind = position.behind.unwrap();
    assert_eq!((behind.run, behind.count), (run_id("one"), 2));
    assert_eq!(db.store.release_blocked_runs(NOW).await.unwrap(), 0);
    assert_eq!(db.claim("a", 9, NOW).await, []);
    assert_eq!(db.store.unaccounted_triggers(NOW + 1, 0).await.unwrap(), []);
}

async fn finish_cancel_and_reaper_unblock_the_next_run(db: &TestDb) {
    for id in ["one", "two", "three", "four", "five"] {
        let mut new = grouped(id, "g", 1, false);
        new.max_attempts = 1;
        db.store.enqueue(new, NOW).await.unwrap();
    }
    let one = db.claim("a", 9, NOW).await;
    assert_eq!(run_ids(&one), ["one"]);
    db.report("a", &one[0], NOW, finished_report(RunState::Failed, 0))
        .await;
    // `two` is ready and is canceled, which unblocks `three`.
    assert_eq!(blocked_states(db, &["two", "three"]).await, [false, true]);
    db.store
        .request_cancel(&run_id("two"), "x", NOW)
        .await
        .unwrap();
    let three = db.claim("a", 9, NOW).await;
    assert_eq!(run_ids(&three), ["three"]);
    db.report("a", &three[0], NOW, Report::Started).await;
    // Canceling a blocked run frees no slot.
    db.store
        .request_cancel(&run_id("four"), "x", NOW)
        .await
        .unwrap();
    assert_eq!(blocked_states(db, &["five"]).await, [true]);
    db.store.expire_leases(NOW + LEASE + 1, 9).await.unwrap();
    assert_eq!(db.run_state("three").await, RunState::Error);
    assert_eq!(run_ids(&db.claim("a", 9, NOW).await), ["five"]);
}

async fn newer_run_supersedes_earlier_ones(db: &TestDb) {
    let store = &db.store;
    let add = |id: &'static str| store.enqueue(grouped(id, "g", 1, true), NOW);
    add("one").await.unwrap();
    let one = db.claim("a", 9, NOW).await.remove(0);
    add("two").await.unwrap();
    assert_eq!(blocked_states(db, &["two"]).await, [true]);
    let row = store.run(&one.id).await.unwrap();
    assert_eq!(row.state, RunState::Leased);
    assert_eq!(row.cancel_reason.as_deref(), Some("superseded by two"));
    assert_eq!(store.cancel_requests().await.unwrap().len(), 1);
    // `two` never started, so it ends immediately. `three` waits for `one`.
    store
        .enqueue_many(vec![grouped("three", "g", 1, true)], NOW)
        .await
        .unwrap();
    let two = store.run(&run_id("two")).await.unwrap();
    assert_eq!(
        (two.state, two.reason.as_deref()),
        (RunState::Canceled, Some("superseded by three"))
    );
    assert_eq!(db.claim("b", 9, NOW).await, []);
    db.report("a", &one, NOW, finished_report(RunState::Canceled, 0))
        .await;
    let row = store.run(&one.id).await.unwrap();
    assert_eq!(
        (row.state, row.reason.as_deref()),
        (RunState::Canceled, Some("superseded by two"))
    );
    assert_eq!(run_ids(&db.claim("b", 9, NOW).await), ["three"]);
    // Within a batch, the last run supersedes the others.
    let batch = ["x", "y", "z"].map(|id| grouped(id, "h", 1, true));
    store.enqueue_many(batch.into(), NOW).await.unwrap();
    assert_eq!(run_ids(&db.claim("b", 9, NOW).await), ["z"]);
}

async fn lost_run_keeps_its_group_slot(db: &TestDb) {
    enqueue_in_group(db, "one", 1).await;
    enqueue_in_group(db, "two", 1).await;
    db.claim("a", 9, NOW).await;
    let late = NOW + LEASE + 1;
    assert_eq!(
        db.store.expire_leases(late, 9).await.unwrap()[0].to,
        RunState::Queued
    );
    assert_eq!(blocked_states(db, &["one", "two"]).await, [false, true]);
    assert_eq!(run_ids(&db.claim("a", 9, late).await), ["one"]);
}

async fn group_defaults_to_the_task_name(db: &TestDb) {
    for id in ["one", "two"] {
        let mut new = grouped(id, "", 1, false);
        new.task_name = Some("web".into());
        new.queue.concurrency.as_mut().unwrap().group = None;
        db.store.enqueue(new, NOW).await.unwrap();
    }
    let row = db.store.run(&run_id("two")).await.unwrap();
    let web = Some(RunGroup::Named("web".into()));
    assert_eq!((row.group, row.blocked), (web, true));
    // A run without a task and without a group name has no group.
    let mut new = grouped("three", "", 1, false);
    new.queue.concurrency.as_mut().unwrap().group = None;
    let row = db.store.enqueue(new, NOW).await.unwrap().into_row();
    assert_eq!((row.group, row.blocked), (None, false));
}

async fn leftover_blocked_runs_are_released(db: &TestDb) {
    db.store.enqueue(new_run("plain"), NOW).await.unwrap();
    for id in ["one", "two", "three"] {
        enqueue_in_group(db, id, 1).await;
    }
    db.execute("UPDATE runs SET blocked = 1 WHERE id = 'one'")
        .await;
    let lost = db.store.unaccounted_triggers(NOW + 10, 5).await.unwrap();
    assert_eq!(lost.len(), 3);
    assert_eq!(
        lost[0].why,
        "its run one is blocked although its group has a free slot"
    );
    assert_eq!(db.store.release_blocked_runs(NOW).await.unwrap(), 1);
    assert_eq!(db.store.release_blocked_runs(NOW).await.unwrap(), 0);
    assert_eq!(
        blocked_states(db, &["one", "two", "three"]).await,
        [false, true, true]
    );
    assert_eq!(
        db.store.unaccounted_triggers(NOW + 10, 5).await.unwrap(),
        []
    );
}

async fn concurrent_requests_run_one_at_a_time(db: &TestDb) {
    let other = Store::open(&db.url).await.unwrap();
    let mut requests = Vec::new();
    for number in 0..12 {
        let store = if number % 2 == 0 { &db.store } else { &other }.clone();
        requests.push(tokio::spawn(async move {
            let new = grouped(&format!("run-{number}"), "g", 1, number % 3 == 0);
            store.enqueue(new, NOW).await.unwrap();
        }));
    }
    for request in requests {
        request.await.unwrap();
    }
    // In any order of arrival, the runs finish one by one.
    let mut ended = 0;
    loop {
        let claimed = db.claim("a", 9, NOW).await;
        let Some(run) = claimed.first() else { break };
        assert_eq!(claimed.len(), 1);
        db.report("a", run, NOW, finished_report(RunState::Succeeded, 0))
            .await;
        ended += 1;
    }
    assert!(ended >= 1);
    let depth = db.store.queue_depth().await.unwrap();
    assert_eq!(depth, []);
}

/// A group name from a user never cancels or blocks runs in groups of the server.
async fn user_group_names_never_match_server_groups(db: &TestDb) {
    let mut waiting = new_run("waiting");
    waiting.origin.needs_approval = true;
    let mut of_ref = new_run("ref");
    of_ref.origin.ref_key = Some("t1 branch main".into());
    of_ref.origin.one_at_a_time = true;
    for new in [waiting, of_ref] {
        db.store.enqueue(new, NOW).await.unwrap();
    }
    let row = db.store.run(&run_id("waiting")).await.unwrap();
    assert_eq!(row.group, Some(RunGroup::Approval(run_id("waiting"))));
    let row = db.store.run(&run_id("ref")).await.unwrap();
    assert_eq!(row.group, Some(RunGroup::Ref("t1 branch main".into())));
    let names = [
        "approval of waiting",
        "approval waiting",
        "t1 branch main",
        "ref t1 branch main",
        "named approval waiting",
    ];
    for (number, name) in names.into_iter().enumerate() {
        let id = format!("attack{number}");
        db.store
            .enqueue(grouped(&id, name, 1, true), NOW)
            .await
            .unwrap();
        for victim in ["waiting", "ref"] {
            assert_eq!(db.run_state(victim).await, RunState::Queued, "{name}");
        }
        assert_eq!(
            blocked_states(db, &["ref", &id]).await,
            [false, false],
            "{name}"
        );
    }
}

async fn supersede_reason_names_no_run_of_another_task(db: &TestDb) {
    let of = |id: &str, task: &str| {
        let mut new = grouped(id, "shared", 1, true);
        new.task_name = Some(task.into());
        new
    };
    for (id, task) in [("a1", "team/a"), ("a2", "team/a"), ("b1", "prod/b")] {
        db.store.enqueue(of(id, task), NOW).await.unwrap();
    }
    let first = db.store.run(&run_id("a1")).await.unwrap();
    assert_eq!(first.reason.as_deref(), Some("superseded by a2"));
    let second = db.store.run(&run_id("a2")).await.unwrap();
    assert_eq!(
        second.reason.as_deref(),
        Some("superseded by a newer run of its group")
    );
    assert_eq!(first.superseded_by, Some(run_id("a2")));
    assert_eq!(second.superseded_by, Some(run_id("b1")));
}
