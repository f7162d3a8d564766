//! Deliveries that come together, or break off half-way.

use std::time::Duration;

use acrtask_api::webhook::OutcomeKind;
use acrtask_model::RunState;
use acrtask_store::{Delivered, LeadsTo, Ms, NewDelivery, Store};

use crate::support::{Fixture, NOW, grouped, on_both, run_id};

use crate::webhooks::{all_runs, delivery, looked, new, of_task, run};

on_both!(
    a_delivery_that_is_dropped_leaves_all_or_nothing,
    many_are_taken_as_if_one_after_the_other,
    batches_of_two_servers_do_not_stop_each_other,
    replays_are_told_by_their_age,
    only_the_newest_run_of_a_lane_is_joined,
);

async fn replays_are_told_by_their_age(fixture: &Fixture) {
    let store = &fixture.store;
    let send = async |n: i64, at: Ms| {
        let one = NewDelivery {
            sha256: "the same".into(),
            replay_age: Some(1000),
            ..delivery(&format!("d{n}"), &format!("s{n}"))
        };
        let looked = vec![run(&format!("r{n}"), "t1 v1", &format!("c{n}"), false)];
        new(store.deliver(one, looked, at).await.unwrap())
            .0
            .remove(0)
    };
    assert_eq!(send(1, NOW).await.0, OutcomeKind::Run);
    // A tag that is pushed once more, under an id of its own.
    assert_eq!(send(2, NOW + 999).await.0, OutcomeKind::Run);
    let (what, _, reason) = send(3, NOW + 1000).await;
    assert_eq!(what, OutcomeKind::Suppressed);
    assert!(reason.contains("as delivery d1"), "{reason}");
}

async fn only_the_newest_run_of_a_lane_is_joined(fixture: &Fixture) {
    let store = &fixture.store;
    let send = async |n: u32, commit: &str| {
        let looked = vec![run(&format!("r{n}"), "t1 main", commit, false)];
        let delivered = store
            .deliver(delivery(&format!("d{n}"), &format!("s{n}")), looked, NOW)
            .await
            .unwrap();
        let (what, run, _) = new(delivered).0.remove(0);
        (what, run.unwrap())
    };
    let started = |id: &str| (OutcomeKind::Run, id.to_owned());
    let joined = |id: &str| (OutcomeKind::Joined, id.to_owned());
    assert_eq!(send(1, "a").await, started("r1"));
    assert_eq!(send(2, "a").await, joined("r1"));
    assert_eq!(send(3, "b").await, started("r3"));
    assert_eq!(send(4, "b").await, joined("r3"));
    // The branch is at `a` again: its run has to end after that of `b`.
    assert_eq!(send(5, "a").await, started("r5"));
    assert_eq!(send(6, "a").await, joined("r5"));
    assert_eq!(send(7, "b").await, started("r7"));
    // It counts as newer when it has ended, too.
    let canceled = store.request_cancel(&run_id("r7"), "enough", NOW).await;
    canceled.unwrap();
    assert_eq!(fixture.state("r7").await, RunState::Canceled);
    assert_eq!(send(8, "a").await, started("r8"));
}

/// Stops waiting for a delivery after longer and longer times, so that it is dropped at each of its steps.
async fn a_delivery_that_is_dropped_leaves_all_or_nothing(fixture: &Fixture) {
    let store = &fixture.store;
    let mut whole = 0;
    for n in 0..60_u32 {
        let (id, sender) = (format!("d{n}"), format!("s{n}"));
        let looked = || {
            vec![
                run(
                    &format!("r{n}"),
                    &format!("t1 lane{}", n % 2),
                    &format!("c{n}"),
                    true,
                ),
                looked(LeadsTo::Nothing),
            ]
        };
        let limit = Duration::from_micros(u64::from(n) * 120);
        let _ =
            tokio::time::timeout(limit, store.deliver(delivery(&id, &sender), looked(), NOW)).await;
        // What was being committed may be there a moment later: what is read later is as new at least.
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
        // The sender sends it again: whatever was left, there is one run then.
        let mut again = delivery(&format!("{id}-again"), &sender);
        again.sha256 = "x".into();
        store.deliver(again, looked(), NOW).await.unwrap();
        assert!(store.run(&run_id(&format!("r{n}"))).await.is_ok());
    }
    println!("{whole} of 60 were whole before they were sent again");
    assert_eq!(all_runs(store).await.len(), 60);
    assert_eq!(store.unaccounted(NOW + 1, 0).await.unwrap(), []);
}

async fn many_are_taken_as_if_one_after_the_other(fixture: &Fixture) {
    let store = &fixture.store;
    let one = |n: u32, sender: &str, wins: bool| {
        (
            NewDelivery {
                replay_age: Some(0),
                ..delivery(&format!("d{n}"), sender)
            },
            vec![run(&format!("r{n}"), "t1 main", &format!("c{n}"), wins)],
        )
    };
    let mut replayed = one(5, "x", true);
    replayed.0.sha256 = "sha of b".into();
    let mut joining = one(6, "y", false);
    if let LeadsTo::Run { new, .. } = &mut joining.1[0].leads_to {
        new.origin.commit = Some("c4".into());
    }
    let all = vec![
        one(1, "c", true),
        one(2, "b", true),
        // The same once more in the same batch.
        one(3, "b", true),
        one(4, "a", true),
        replayed,
        joining,
    ];
    let delivered = store.deliver_many(all, NOW).await.unwrap();
    let seen: Vec<bool> = delivered
        .iter()
        .map(|one| matches!(one, Delivered::Seen(_)))
        .collect();
    assert_eq!(
        seen.iter().filter(|seen| **seen).count(),
        1,
        "{delivered:?}"
    );
    assert!(seen[1] || seen[2]);
    let mut delivered = delivered.into_iter();
    assert_eq!(new(delivered.next().unwrap()).0[0].0, OutcomeKind::Run);
    let mut delivered = delivered.skip(2);
    assert_eq!(new(delivered.next().unwrap()).0[0].0, OutcomeKind::Run);
    assert_eq!(
        new(delivered.next().unwrap()).0[0].0,
        OutcomeKind::Suppressed
    );
    let (joined, _) = new(delivered.next().unwrap());
    assert_eq!(
        (joined[0].0, joined[0].1.as_deref()),
        (OutcomeKind::Joined, Some("r4"))
    );
    assert_eq!(fixture.state("r1").await, RunState::Canceled);
    assert_eq!(fixture.state("r4").await, RunState::Queued);
    assert_eq!(all_runs(store).await.len(), 3);
    assert_eq!(store.unaccounted(NOW + 1, 0).await.unwrap(), []);
}

async fn batches_of_two_servers_do_not_stop_each_other(fixture: &Fixture) {
    let other = Store::open(&fixture.url).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for server in 0..2_u32 {
        let store = if server == 0 { &fixture.store } else { &other }.clone();
        tasks.spawn(async move {
            for round in 0..15_u32 {
                // The same deliveries at both, in other orders.
                let mut all: Vec<_> = (0..12_u32)
                    .map(|n| {
                        let mut new = grouped(
                            &format!("r{round}-{n}-{server}"),
                            &format!("g{}", n % 3),
                            1,
                            n % 4 == 0,
                        );
                        of_task(
                            &mut new,
                            &format!("t1 lane{}", n % 5),
                            &format!("c{round}-{n}"),
                        );
                        let looked = looked(LeadsTo::Run {
                            new: Box::new(new),
                            newest_wins: n % 2 == 0,
                            may_join: true,
                            status: None,
                        });
                        let id = format!("d{round}-{n}-{server}");
                        (delivery(&id, &format!("s{round}-{n}")), vec![looked])
                    })
                    .collect();
                if server == 1 {
                    all.reverse();
                }
                store.deliver_many(all, NOW).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(all_runs(&fixture.store).await.len(), 15 * 12);
    assert_eq!(fixture.store.unaccounted(NOW + 1, 0).await.unwrap(), []);
}
