//! Requests for runs, and claims.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use acrtask_model::RunState;
use acrtask_store::{Claim, Enqueued, PRIORITY_MS, Store, StoreError};

use crate::support::{
    ACCEPT, LEASE, NOW, TestDb, context_owner, new_run, on_both, run_id, run_ids,
};

on_both!(
    stored_run_equals_requested_run,
    idempotency_key_creates_one_run,
    concurrent_idempotency_key_creates_one_run,
    batch_of_runs_keeps_its_order,
    run_with_incomplete_context_is_rejected,
    priority_is_a_head_start,
    requirements_are_shared_and_ready_while_they_have_runs,
    claim_leases_only_assigned_runs,
    concurrent_claims_never_lease_the_same_run,
    claim_ignores_invalid_assignments,
    claim_without_ready_runs_is_empty,
);

async fn stored_run_equals_requested_run(db: &TestDb) {
    let mut new = new_run("one");
    new.task_id = Some("t1".into());
    new.task_name = Some("web/app".into());
    new.spec.set = BTreeMap::from([("tag".into(), "v2".into())]);
    new.queue.priority = 2;
    new.queue.pool = Some("big".into());
    new.queue.labels = BTreeMap::from([("gpu".into(), "yes".into())]);
    new.secrets = Some(vec![0, 255, 3]);
    new.rerun_of = Some(run_id("zero"));
    new.timeout_secs = Some(90);
    new.traceparent = "00-x".into();
    let Enqueued::New(row) = db.store.enqueue(new.clone(), NOW).await.unwrap() else {
        panic!("the run is not new");
    };
    assert_eq!(row, db.store.run(&new.id).await.unwrap());
    assert_eq!(
        (&row.spec, &row.queue, &row.secrets, &row.rerun_of),
        (&new.spec, &new.queue, &new.secrets, &new.rerun_of)
    );
    assert_eq!(
        (row.pool.as_str(), row.platform.as_str()),
        ("big", "linux/amd64")
    );
    assert_eq!(
        (row.state, row.attempt, row.blocked),
        (RunState::Queued, 0, false)
    );
    assert_eq!(row.queue_rank, NOW - 2 * PRIORITY_MS);
    assert_eq!((row.deadline, row.lease_until), (None, None));
    let shown = row.to_api();
    assert_eq!(shown.task.as_deref(), Some("web/app"));
    assert_eq!(shown.created_at.as_millisecond(), NOW);
    let error = db.store.run(&run_id("two")).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound { .. }), "{error:?}");
}

async fn idempotency_key_creates_one_run(db: &TestDb) {
    let with_key = |id| {
        let mut new = new_run(id);
        new.idempotency_key = Some("delivery-7".into());
        new
    };
    let first = db.store.enqueue(with_key("one"), NOW).await.unwrap();
    let both = db
        .store
        .enqueue_many(
            vec![with_key("two"), new_run("three"), with_key("four")],
            NOW + 1,
        )
        .await
        .unwrap();
    assert_eq!(both[0], Enqueued::Existing(first.row().clone()));
    assert!(matches!(&both[1], Enqueued::New(row) if row.id == run_id("three")));
    assert_eq!(both[2], both[0]);
    let (rows, _) = db.store.runs(all_runs()).await.unwrap();
    assert_eq!(run_ids(&rows), ["three", "one"]);
    assert_eq!(
        db.store.unaccounted_triggers(NOW + 10, 0).await.unwrap(),
        []
    );
}

fn all_runs() -> acrtask_store::RunFilter {
    acrtask_store::RunFilter {
        limit: 100,
        ..Default::default()
    }
}

async fn concurrent_idempotency_key_creates_one_run(db: &TestDb) {
    let mut waiting = Vec::new();
    for number in 0..8 {
        let store = db.store.clone();
        waiting.push(tokio::spawn(async move {
            let mut new = new_run(&format!("run-{number}"));
            new.idempotency_key = Some("delivery-8".into());
            store.enqueue(new, NOW).await.unwrap()
        }));
    }
    let mut seen = HashSet::new();
    let mut fresh = 0;
    for answer in waiting {
        let answer = answer.await.unwrap();
        fresh += usize::from(matches!(answer, Enqueued::New(_)));
        seen.insert(answer.into_row().id);
    }
    assert_eq!((seen.len(), fresh), (1, 1));
}

async fn batch_of_runs_keeps_its_order(db: &TestDb) {
    let new: Vec<_> = (0..300)
        .map(|number| new_run(&format!("run-{number:03}")))
        .collect();
    let rows = db.store.enqueue_many(new, NOW).await.unwrap();
    assert_eq!(rows.len(), 300);
    let claimed = db.claim("a", 300, NOW).await;
    let expected: Vec<_> = (0..300).map(|number| format!("run-{number:03}")).collect();
    assert_eq!(run_ids(&claimed), expected);
}

async fn run_with_incomplete_context_is_rejected(db: &TestDb) {
    let store = &db.store;
    let digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
    let mut new = new_run("one");
    new.context_id = Some("c1".into());
    for complete in [false, true] {
        if complete {
            store
                .create_context("c1", 3, &digest, &context_owner(), NOW)
                .await
                .unwrap();
        }
        let error = store.enqueue(new.clone(), NOW).await.unwrap_err();
        assert!(matches!(error, StoreError::NotFound { .. }), "{error:?}");
    }
    // A rejected request leaves no rows.
    assert_eq!(store.runs(all_runs()).await.unwrap().0, []);
    assert_eq!(store.unaccounted_triggers(NOW + 1, 0).await.unwrap(), []);
    store.add_part("c1", 0, 3, "blob", NOW).await.unwrap();
    store.complete_context("c1", NOW).await.unwrap();
    let row = store.enqueue(new, NOW).await.unwrap().into_row();
    assert_eq!(row.context_id.as_deref(), Some("c1"));
}

async fn priority_is_a_head_start(db: &TestDb) {
    let add = |id: &'static str, priority, at| async move {
        let mut new = new_run(id);
        new.queue.priority = priority;
        db.store.enqueue(new, at).await.unwrap();
    };
    add("normal", 0, NOW).await;
    add("later", 0, NOW).await;
    add("low", -1, NOW).await;
    add("high", 1, NOW + 5_000).await;
    // Ten minutes compensate for one priority level.
    add("high-late", 1, NOW + PRIORITY_MS + 1).await;
    add("very-late", 0, NOW + PRIORITY_MS + 1).await;
    let at = db.store.position(&run_id("low")).await.unwrap();
    assert_eq!((at.ahead, at.behind), (4, None));
    let claimed = db.claim("a", 10, NOW).await;
    assert_eq!(
        run_ids(&claimed),
        ["high", "normal", "later", "high-late", "low", "very-late"]
    );
}

async fn requirements_are_shared_and_ready_while_they_have_runs(db: &TestDb) {
    db.enqueue("one", NOW).await;
    db.enqueue("two", NOW).await;
    let mut other = new_run("three");
    other.platform = String::new();
    other.queue.labels = BTreeMap::from([("a".into(), "b".into())]);
    db.store.enqueue(other, NOW).await.unwrap();
    let requirements = db.store.ready_requirements().await.unwrap();
    assert_eq!(requirements.len(), 2);
    assert_eq!(requirements, db.store.runner_requirements().await.unwrap());
    assert_eq!(requirements[0].pool, acrtask_store::DEFAULT_POOL);
    assert_eq!(requirements[1].labels["a"], "b");
    db.store
        .claim(&[requirements[1].id], 9, NOW, LEASE, ACCEPT, |candidates| {
            assert_eq!(candidates.len(), 1);
            claim_all(candidates, "a")
        })
        .await
        .unwrap();
    let ready = db.store.ready_requirements().await.unwrap();
    assert_eq!(ready, requirements[..1]);
}

fn claim_all(candidates: &[acrtask_store::Candidate], runner: &str) -> Vec<Claim> {
    candidates
        .iter()
        .map(|candidate| Claim {
            run: candidate.id.clone(),
            runner_id: runner.into(),
        })
        .collect()
}

async fn claim_leases_only_assigned_runs(db: &TestDb) {
    db.register_runner("a", "first").await;
    for id in ["one", "two", "three"] {
        db.enqueue(id, NOW).await;
    }
    let requirement = db.store.ready_requirements().await.unwrap()[0].id;
    let claimed = db
        .store
        .claim(&[requirement], 2, NOW + 5, LEASE, ACCEPT, |candidates| {
            assert_eq!(candidates.len(), 2);
            assert_eq!(candidates[0].affinity_key, "warm");
            claim_all(&candidates[1..], "a")
        })
        .await
        .unwrap();
    assert_eq!(run_ids(&claimed), ["two"]);
    let run = &claimed[0];
    assert_eq!((run.state, run.attempt), (RunState::Leased, 1));
    assert_eq!(run.runner_name.as_deref(), Some("first"));
    assert_eq!(run.lease_until, Some(NOW + 5 + LEASE));
    assert_eq!(run.deadline, Some(NOW + 5 + ACCEPT));
    let attempts = db.store.attempts(&run.id).await.unwrap();
    assert_eq!(attempts.len(), 1);
    assert_eq!(
        (
            attempts[0].attempt,
            attempts[0].leased_at,
            attempts[0].ended_at
        ),
        (1, NOW + 5, None)
    );
    assert_eq!(db.store.runner_by_id("a").await.unwrap().unwrap().busy, 1);
    assert_eq!(db.run_state("one").await, RunState::Queued);
    assert_eq!(run_ids(&db.claim("b", 9, NOW).await), ["one", "three"]);
    let depth = db.store.queue_depth().await.unwrap();
    assert_eq!(depth.len(), 1);
    assert_eq!((depth[0].state, depth[0].count), (RunState::Leased, 3));
}

async fn concurrent_claims_never_lease_the_same_run(db: &TestDb) {
    const RUNS: usize = 400;
    let new = (0..RUNS)
        .map(|number| new_run(&format!("run-{number}")))
        .collect();
    db.store.enqueue_many(new, NOW).await.unwrap();
    let requirement = db.store.ready_requirements().await.unwrap()[0].id;
    // Two servers have separate connections.
    let other = Store::open(&db.url).await.unwrap();
    let mut claimers = Vec::new();
    for (number, store) in [&db.store, &other, &db.store, &other]
        .into_iter()
        .enumerate()
    {
        let store = store.clone();
        claimers.push(tokio::spawn(async move {
            let runner = format!("runner-{number}");
            let mut mine = Vec::new();
            let mut empty = 0;
            // A claim skips rows that another one has locked, so an empty claim is repeated.
            while empty < 20 {
                let got = store
                    .claim(&[requirement], 7, NOW, LEASE, ACCEPT, |candidates| {
                        claim_all(candidates, &runner)
                    })
                    .await
                    .unwrap();
                if got.is_empty() {
                    empty += 1;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                for run in got {
                    assert_eq!(run.runner_id.as_deref(), Some(runner.as_str()));
                    assert_eq!(run.attempt, 1);
                    mine.push(run.id);
                }
            }
            mine
        }));
    }
    let mut all = Vec::new();
    for claimer in claimers {
        all.extend(claimer.await.unwrap());
    }
    assert_eq!(all.len(), RUNS);
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), RUNS);
}

async fn claim_ignores_invalid_assignments(db: &TestDb) {
    db.enqueue("one", NOW).await;
    let requirement = db.store.ready_requirements().await.unwrap()[0].id;
    let claimed = db
        .store
        .claim(&[requirement], 9, NOW, LEASE, ACCEPT, |candidates| {
            let mut claims = claim_all(candidates, "a");
            claims.extend(claim_all(candidates, "b"));
            claims.push(Claim {
                run: run_id("unknown"),
                runner_id: "a".into(),
            });
            claims
        })
        .await
        .unwrap();
    assert_eq!(run_ids(&claimed), ["one"]);
    assert_eq!(claimed[0].runner_id.as_deref(), Some("a"));
}

async fn claim_without_ready_runs_is_empty(db: &TestDb) {
    db.enqueue("one", NOW).await;
    for (requirements, limit) in [(&[][..], 5), (&[1_i64][..], 0), (&[99][..], 5)] {
        let claimed = db
            .store
            .claim(requirements, limit, NOW, LEASE, ACCEPT, |_| {
                panic!("there is nothing to place")
            })
            .await
            .unwrap();
        assert_eq!(claimed, []);
    }
    assert_eq!(db.run_state("one").await, RunState::Queued);
}
