//! Asking for runs and claiming them.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use acrtask_model::RunState;
use acrtask_store::{Claim, Enqueued, PRIORITY_MS, Store, StoreError};

use crate::support::{ACCEPT, Fixture, LEASE, NOW, ids, new_run, on_both, owner, run_id};

on_both!(
    a_run_comes_back_as_it_was_asked_for,
    the_same_key_makes_one_run,
    the_same_key_at_once_makes_one_run,
    many_at_once_are_in_order,
    a_run_whose_context_is_not_complete_is_refused,
    priority_is_a_head_start,
    classes_are_shared_and_ready_while_they_have_runs,
    a_claim_leases_what_is_placed_and_nothing_else,
    claims_at_once_never_take_the_same_run,
    a_place_that_makes_things_up_gets_nothing,
    nothing_is_ready_of_no_class,
);

async fn a_run_comes_back_as_it_was_asked_for(fixture: &Fixture) {
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
    let Enqueued::New(row) = fixture.store.enqueue(new.clone(), NOW).await.unwrap() else {
        panic!("the run is not new");
    };
    assert_eq!(row, fixture.store.run(&new.id).await.unwrap());
    assert_eq!(
        (&row.spec, &row.queue, &row.secrets, &row.rerun_of),
        (&new.spec, &new.queue, &new.secrets, &new.rerun_of)
    );
    assert_eq!(
        (row.pool.as_str(), row.platform.as_str()),
        ("big", "linux/amd64")
    );
    assert_eq!(
        (row.state, row.attempt, row.held),
        (RunState::Queued, 0, false)
    );
    assert_eq!(row.order_key, NOW - 2 * PRIORITY_MS);
    assert_eq!((row.deadline, row.lease_until), (None, None));
    let shown = row.to_api();
    assert_eq!(shown.task.as_deref(), Some("web/app"));
    assert_eq!(shown.created_at.as_millisecond(), NOW);
    let error = fixture.store.run(&run_id("two")).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound { .. }), "{error:?}");
}

async fn the_same_key_makes_one_run(fixture: &Fixture) {
    let with_key = |id| {
        let mut new = new_run(id);
        new.idempotency_key = Some("delivery-7".into());
        new
    };
    let first = fixture.store.enqueue(with_key("one"), NOW).await.unwrap();
    let both = fixture
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
    let (rows, _) = fixture.store.runs(list()).await.unwrap();
    assert_eq!(ids(&rows), ["three", "one"]);
    assert_eq!(fixture.store.unaccounted(NOW + 10, 0).await.unwrap(), []);
}

fn list() -> acrtask_store::RunFilter {
    acrtask_store::RunFilter {
        limit: 100,
        ..Default::default()
    }
}

async fn the_same_key_at_once_makes_one_run(fixture: &Fixture) {
    let mut waiting = Vec::new();
    for number in 0..8 {
        let store = fixture.store.clone();
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

async fn many_at_once_are_in_order(fixture: &Fixture) {
    let new: Vec<_> = (0..300)
        .map(|number| new_run(&format!("run-{number:03}")))
        .collect();
    let rows = fixture.store.enqueue_many(new, NOW).await.unwrap();
    assert_eq!(rows.len(), 300);
    let claimed = fixture.claim("a", 300, NOW).await;
    let expected: Vec<_> = (0..300).map(|number| format!("run-{number:03}")).collect();
    assert_eq!(ids(&claimed), expected);
}

async fn a_run_whose_context_is_not_complete_is_refused(fixture: &Fixture) {
    let store = &fixture.store;
    let digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
    let mut new = new_run("one");
    new.context_id = Some("c1".into());
    for complete in [false, true] {
        if complete {
            store
                .create_context("c1", 3, &digest, &owner(), NOW)
                .await
                .unwrap();
        }
        let error = store.enqueue(new.clone(), NOW).await.unwrap_err();
        assert!(matches!(error, StoreError::NotFound { .. }), "{error:?}");
    }
    // Nothing is left of what was refused.
    assert_eq!(store.runs(list()).await.unwrap().0, []);
    assert_eq!(store.unaccounted(NOW + 1, 0).await.unwrap(), []);
    store.add_part("c1", 0, 3, "blob", NOW).await.unwrap();
    store.complete_context("c1", NOW).await.unwrap();
    let row = store.enqueue(new, NOW).await.unwrap().into_row();
    assert_eq!(row.context_id.as_deref(), Some("c1"));
}

async fn priority_is_a_head_start(fixture: &Fixture) {
    let add = |id: &'static str, priority, at| async move {
        let mut new = new_run(id);
        new.queue.priority = priority;
        fixture.store.enqueue(new, at).await.unwrap();
    };
    add("normal", 0, NOW).await;
    add("later", 0, NOW).await;
    add("low", -1, NOW).await;
    add("high", 1, NOW + 5_000).await;
    // Ten minutes make up for one level.
    add("high-late", 1, NOW + PRIORITY_MS + 1).await;
    add("very-late", 0, NOW + PRIORITY_MS + 1).await;
    let at = fixture.store.position(&run_id("low")).await.unwrap();
    assert_eq!((at.ahead, at.behind), (4, None));
    let claimed = fixture.claim("a", 10, NOW).await;
    assert_eq!(
        ids(&claimed),
        ["high", "normal", "later", "high-late", "low", "very-late"]
    );
}

async fn classes_are_shared_and_ready_while_they_have_runs(fixture: &Fixture) {
    fixture.queued("one", NOW).await;
    fixture.queued("two", NOW).await;
    let mut other = new_run("three");
    other.platform = String::new();
    other.queue.labels = BTreeMap::from([("a".into(), "b".into())]);
    fixture.store.enqueue(other, NOW).await.unwrap();
    let classes = fixture.store.ready_classes().await.unwrap();
    assert_eq!(classes.len(), 2);
    assert_eq!(classes, fixture.store.classes().await.unwrap());
    assert_eq!(classes[0].pool, acrtask_store::DEFAULT_POOL);
    assert_eq!(classes[1].labels["a"], "b");
    fixture
        .store
        .claim(&[classes[1].id], 9, NOW, LEASE, ACCEPT, |candidates| {
            assert_eq!(candidates.len(), 1);
            take(candidates, "a")
        })
        .await
        .unwrap();
    let ready = fixture.store.ready_classes().await.unwrap();
    assert_eq!(ready, classes[..1]);
}

fn take(candidates: &[acrtask_store::Candidate], runner: &str) -> Vec<Claim> {
    candidates
        .iter()
        .map(|candidate| Claim {
            run: candidate.id.clone(),
            runner_id: runner.into(),
        })
        .collect()
}

async fn a_claim_leases_what_is_placed_and_nothing_else(fixture: &Fixture) {
    fixture.runner("a", "first").await;
    for id in ["one", "two", "three"] {
        fixture.queued(id, NOW).await;
    }
    let class = fixture.store.ready_classes().await.unwrap()[0].id;
    let claimed = fixture
        .store
        .claim(&[class], 2, NOW + 5, LEASE, ACCEPT, |candidates| {
            assert_eq!(candidates.len(), 2);
            assert_eq!(candidates[0].warm_key, "warm");
            take(&candidates[1..], "a")
        })
        .await
        .unwrap();
    assert_eq!(ids(&claimed), ["two"]);
    let run = &claimed[0];
    assert_eq!((run.state, run.attempt), (RunState::Leased, 1));
    assert_eq!(run.runner_name.as_deref(), Some("first"));
    assert_eq!(run.lease_until, Some(NOW + 5 + LEASE));
    assert_eq!(run.deadline, Some(NOW + 5 + ACCEPT));
    let attempts = fixture.store.attempts(&run.id).await.unwrap();
    assert_eq!(attempts.len(), 1);
    assert_eq!(
        (
            attempts[0].attempt,
            attempts[0].leased_at,
            attempts[0].ended_at
        ),
        (1, NOW + 5, None)
    );
    assert_eq!(
        fixture.store.runner_by_id("a").await.unwrap().unwrap().busy,
        1
    );
    assert_eq!(fixture.state("one").await, RunState::Queued);
    assert_eq!(ids(&fixture.claim("b", 9, NOW).await), ["one", "three"]);
    let depth = fixture.store.queue_depth().await.unwrap();
    assert_eq!(depth.len(), 1);
    assert_eq!((depth[0].state, depth[0].count), (RunState::Leased, 3));
}

async fn claims_at_once_never_take_the_same_run(fixture: &Fixture) {
    const RUNS: usize = 400;
    let new = (0..RUNS)
        .map(|number| new_run(&format!("run-{number}")))
        .collect();
    fixture.store.enqueue_many(new, NOW).await.unwrap();
    let class = fixture.store.ready_classes().await.unwrap()[0].id;
    // As of two servers, each with connections of its own.
    let other = Store::open(&fixture.url).await.unwrap();
    let mut claimers = Vec::new();
    for (number, store) in [&fixture.store, &other, &fixture.store, &other]
        .into_iter()
        .enumerate()
    {
        let store = store.clone();
        claimers.push(tokio::spawn(async move {
            let runner = format!("runner-{number}");
            let mut mine = Vec::new();
            let mut empty = 0;
            // What another claimer looks at is skipped, so that nothing left is seen only by looking again.
            while empty < 20 {
                let got = store
                    .claim(&[class], 7, NOW, LEASE, ACCEPT, |candidates| {
                        take(candidates, &runner)
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

async fn a_place_that_makes_things_up_gets_nothing(fixture: &Fixture) {
    fixture.queued("one", NOW).await;
    let class = fixture.store.ready_classes().await.unwrap()[0].id;
    let claimed = fixture
        .store
        .claim(&[class], 9, NOW, LEASE, ACCEPT, |candidates| {
            let mut claims = take(candidates, "a");
            claims.extend(take(candidates, "b"));
            claims.push(Claim {
                run: run_id("unknown"),
                runner_id: "a".into(),
            });
            claims
        })
        .await
        .unwrap();
    assert_eq!(ids(&claimed), ["one"]);
    assert_eq!(claimed[0].runner_id.as_deref(), Some("a"));
}

async fn nothing_is_ready_of_no_class(fixture: &Fixture) {
    fixture.queued("one", NOW).await;
    for (classes, limit) in [(&[][..], 5), (&[1_i64][..], 0), (&[99][..], 5)] {
        let claimed = fixture
            .store
            .claim(classes, limit, NOW, LEASE, ACCEPT, |_| {
                panic!("there is nothing to place")
            })
            .await
            .unwrap();
        assert_eq!(claimed, []);
    }
    assert_eq!(fixture.state("one").await, RunState::Queued);
}
