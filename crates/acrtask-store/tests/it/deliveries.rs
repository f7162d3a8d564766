//! Batches of deliveries, and deliveries that are interrupted halfway.

use std::time::Duration;

use acrtask_api::webhook::DecisionAction;
use acrtask_model::RunState;
use acrtask_store::{Delivered, Ms, NewDelivery, Store, TriggerAction};

use crate::support::{NOW, TestDb, grouped, on_both, run_id};

use crate::webhooks::{all_runs, decision, delivery, expect_new, run_decision, set_task};

on_both!(
    dropped_delivery_is_stored_completely_or_not_at_all,
    batch_has_the_same_result_as_single_deliveries,
    concurrent_batches_do_not_deadlock,
    replays_are_detected_by_age,
    only_the_newest_run_of_a_ref_is_joined,
);

async fn replays_are_detected_by_age(db: &TestDb) {
    let store = &db.store;
    let send = async |n: i64, at: Ms| {
        let one = NewDelivery {
            sha256: "the same".into(),
            replay_age: Some(1000),
            ..delivery(&format!("d{n}"), &format!("s{n}"))
        };
        let decisions = vec![run_decision(
            &format!("r{n}"),
            "t1 v1",
            &format!("c{n}"),
            false,
        )];
        expect_new(store.record_delivery(one, decisions, at).await.unwrap())
            .0
            .remove(0)
    };
    assert_eq!(send(1, NOW).await.0, DecisionAction::RunStarted);
    // The same tag is pushed again, in a delivery with its own id.
    assert_eq!(send(2, NOW + 999).await.0, DecisionAction::RunStarted);
    let (what, _, reason) = send(3, NOW + 1000).await;
    assert_eq!(what, DecisionAction::Ignored);
    assert!(reason.contains("as delivery d1"), "{reason}");
}

async fn only_the_newest_run_of_a_ref_is_joined(db: &TestDb) {
    let store = &db.store;
    let send = async |n: u32, commit: &str| {
        let decisions = vec![run_decision(&format!("r{n}"), "t1 main", commit, false)];
        let delivered = store
            .record_delivery(delivery(&format!("d{n}"), &format!("s{n}")), decisions, NOW)
            .await
            .unwrap();
        let (what, run, _) = expect_new(delivered).0.remove(0);
        (what, run.unwrap())
    };
    let started = |id: &str| (DecisionAction::RunStarted, id.to_owned());
    let joined = |id: &str| (DecisionAction::ExistingRun, id.to_owned());
    assert_eq!(send(1, "a").await, started("r1"));
    assert_eq!(send(2, "a").await, joined("r1"));
    assert_eq!(send(3, "b").await, started("r3"));
    assert_eq!(send(4, "b").await, joined("r3"));
    // The branch is at `a` again, so its run must end after that of `b`.
    assert_eq!(send(5, "a").await, started("r5"));
    assert_eq!(send(6, "a").await, joined("r5"));
    assert_eq!(send(7, "b").await, started("r7"));
    // A finished run still counts as the newest.
    let canceled = store.request_cancel(&run_id("r7"), "enough", NOW).await;
    canceled.unwrap();
    assert_eq!(db.run_state("r7").await, RunState::Canceled);
    assert_eq!(send(8, "a").await, started("r8"));
}

/// Drops the future of a delivery after increasing durations, so that each step is interrupted.
async fn dropped_delivery_is_stored_completely_or_not_at_all(db: &TestDb) {
    let store = &db.store;
    let mut whole = 0;
    for n in 0..60_u32 {
        let (id, sender) = (format!("d{n}"), format!("s{n}"));
        let decisions = || {
            vec![
                run_decision(
                    &format!("r{n}"),
                    &format!("t1 ref_key{}", n % 2),
                    &format!("c{n}"),
                    true,
                ),
                decision(TriggerAction::Ignore),
            ]
        };
        let limit = Duration::from_micros(u64::from(n) * 120);
        let _ = tokio::time::timeout(
            limit,
            store.record_delivery(delivery(&id, &sender), decisions(), NOW),
        )
        .await;
        // A commit in progress may complete later. A later read sees at least the same state.
        let id_of_run = run_id(&format!("r{n}"));
        let run = store.run(&id_of_run).await;
        let stored = store.delivery(&id).await;
        assert!(run.is_err() || stored.is_ok(), "{n}");
        let run = store.run(&id_of_run).await;
        assert!(stored.is_err() || run.is_ok(), "{n}");
        if let Ok(stored) = stored {
            whole += 1;
            assert_eq!(stored.outcomes.len(), 2, "{n}");
        }
        // After the sender repeats the delivery there is exactly one run.
        let mut again = delivery(&format!("{id}-again"), &sender);
        again.sha256 = "x".into();
        store
            .record_delivery(again, decisions(), NOW)
            .await
            .unwrap();
        assert!(store.run(&run_id(&format!("r{n}"))).await.is_ok());
    }
    println!("{whole} of 60 were whole before they were sent again");
    assert_eq!(all_runs(store).await.len(), 60);
    assert_eq!(store.unaccounted_triggers(NOW + 1, 0).await.unwrap(), []);
}

async fn batch_has_the_same_result_as_single_deliveries(db: &TestDb) {
    let store = &db.store;
    let one = |n: u32, sender: &str, wins: bool| {
        (
            NewDelivery {
                replay_age: Some(0),
                ..delivery(&format!("d{n}"), sender)
            },
            vec![run_decision(
                &format!("r{n}"),
                "t1 main",
                &format!("c{n}"),
                wins,
            )],
        )
    };
    let mut replayed = one(5, "x", true);
    replayed.0.sha256 = "sha of b".into();
    let mut joining = one(6, "y", false);
    if let TriggerAction::Run { new, .. } = &mut joining.1[0].action {
        new.origin.commit = Some("c4".into());
    }
    let all = vec![
        one(1, "c", true),
        one(2, "b", true),
        // The same delivery again in the same batch.
        one(3, "b", true),
        one(4, "a", true),
        replayed,
        joining,
    ];
    let delivered = store.record_deliveries(all, NOW).await.unwrap();
    let seen: Vec<bool> = delivered
        .iter()
        .map(|one| matches!(one, Delivered::Duplicate(_)))
        .collect();
    assert_eq!(
        seen.iter().filter(|seen| **seen).count(),
        1,
        "{delivered:?}"
    );
    assert!(seen[1] || seen[2]);
    let mut delivered = delivered.into_iter();
    assert_eq!(
        expect_new(delivered.next().unwrap()).0[0].0,
        DecisionAction::RunStarted
    );
    let mut delivered = delivered.skip(2);
    assert_eq!(
        expect_new(delivered.next().unwrap()).0[0].0,
        DecisionAction::RunStarted
    );
    assert_eq!(
        expect_new(delivered.next().unwrap()).0[0].0,
        DecisionAction::Ignored
    );
    let (joined, _) = expect_new(delivered.next().unwrap());
    assert_eq!(
        (joined[0].0, joined[0].1.as_deref()),
        (DecisionAction::ExistingRun, Some("r4"))
    );
    assert_eq!(db.run_state("r1").await, RunState::Canceled);
    assert_eq!(db.run_state("r4").await, RunState::Queued);
    assert_eq!(all_runs(store).await.len(), 3);
    assert_eq!(store.unaccounted_triggers(NOW + 1, 0).await.unwrap(), []);
}

async fn concurrent_batches_do_not_deadlock(db: &TestDb) {
    let other = Store::open(&db.url).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for server in 0..2_u32 {
        let store = if server == 0 { &db.store } else { &other }.clone();
        tasks.spawn(async move {
            for round in 0..15_u32 {
                // Both servers get the same deliveries in different orders.
                let mut all: Vec<_> = (0..12_u32)
                    .map(|n| {
                        let mut new = grouped(
                            &format!("r{round}-{n}-{server}"),
                            &format!("g{}", n % 3),
                            1,
                            n % 4 == 0,
                        );
                        set_task(
                            &mut new,
                            &format!("t1 ref_key{}", n % 5),
                            &format!("c{round}-{n}"),
                        );
                        let decision = decision(TriggerAction::Run {
                            new: Box::new(new),
                            newest_wins: n % 2 == 0,
                            may_join: true,
                            status: None,
                        });
                        let id = format!("d{round}-{n}-{server}");
                        (delivery(&id, &format!("s{round}-{n}")), vec![decision])
                    })
                    .collect();
                if server == 1 {
                    all.reverse();
                }
                store.record_deliveries(all, NOW).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(all_runs(&db.store).await.len(), 15 * 12);
    assert_eq!(db.store.unaccounted_triggers(NOW + 1, 0).await.unwrap(), []);
}
