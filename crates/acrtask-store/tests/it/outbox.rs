//! Commit statuses and notifications: sent once, in order, and retried after failures.

use acrtask_model::RunState;
use acrtask_store::{DeliveryResult, OutboxEntry};

use crate::support::{NOW, TestDb, finished_report, new_run, on_both, run_id};

use crate::webhooks::{delivery, run_decision};

on_both!(commit_statuses_follow_the_run, notifications_are_sent_once,);

async fn commit_statuses_follow_the_run(db: &TestDb) {
    let store = &db.store;
    store
        .record_delivery(
            delivery("d1", "one"),
            vec![run_decision("ra", "t1 main", "b2", false)],
            NOW,
        )
        .await
        .unwrap();
    let lease = async |now: i64| store.lease_statuses(now, now + 90_000, 10).await.unwrap();
    let record = async |due: Vec<OutboxEntry>, result: DeliveryResult| {
        let results = due.into_iter().map(|due| (due, result.clone())).collect();
        store.record_status_results(results, NOW).await.unwrap();
    };
    let due = lease(NOW).await;
    assert_eq!((due.len(), due[0].state), (1, RunState::Queued));
    // Another server has leased it.
    assert_eq!(lease(NOW).await, []);
    record(
        due,
        DeliveryResult::Retry {
            error: "503".into(),
            at: NOW + 1000,
        },
    )
    .await;
    assert_eq!(lease(NOW + 999).await, []);
    let failed = store.failed_statuses(vec!["ra".into()]).await.unwrap();
    assert_eq!((failed[0].last_error.as_str(), failed[0].done), ("503", 0));
    let due = lease(NOW + 1000).await;
    assert_eq!(due[0].attempts, 1);
    record(due, DeliveryResult::Delivered).await;
    // The status has not changed.
    assert_eq!(lease(NOW + 500_000).await, []);
    let claimed = db.claim("a", 1, NOW).await.remove(0);
    let due = lease(NOW + 500_000).await;
    assert_eq!(due[0].state, RunState::Leased);
    record(due, DeliveryResult::Delivered).await;
    db.report("a", &claimed, NOW, acrtask_store::Report::Started)
        .await;
    assert_eq!(lease(NOW + 500_000).await, [], "the status has not changed");
    db.report("a", &claimed, NOW, finished_report(RunState::Failed, 0))
        .await;
    let due = lease(NOW + 500_000).await;
    assert_eq!(due[0].state, RunState::Failed);
    // The server crashes before it stores the result, so another one sends the status again.
    let due = lease(NOW + 600_000).await;
    assert_eq!(due.len(), 1);
    record(due, DeliveryResult::Delivered).await;
    assert_eq!(lease(NOW + 900_000).await, []);
}

async fn notifications_are_sent_once(db: &TestDb) {
    let store = &db.store;
    let mut new = new_run("ra");
    new.origin.notify = true;
    store.enqueue(new, NOW).await.unwrap();
    db.enqueue("rb", NOW).await;
    assert_eq!(store.runs_to_notify(10).await.unwrap(), []);
    for id in ["ra", "rb"] {
        store.request_cancel(&run_id(id), "x", NOW).await.unwrap();
    }
    let waiting = store.runs_to_notify(10).await.unwrap();
    assert_eq!(waiting, [(run_id("ra"), None, RunState::Canceled)]);
    let targets = vec!["{\"a\":1}".to_owned(), "{\"b\":1}".to_owned()];
    store
        .add_notifications(&run_id("ra"), targets.clone(), NOW)
        .await
        .unwrap();
    store
        .add_notifications(&run_id("ra"), targets, NOW)
        .await
        .unwrap();
    assert_eq!(store.runs_to_notify(10).await.unwrap(), []);
    let due = store
        .lease_notifications(NOW, NOW + 90_000, 10)
        .await
        .unwrap();
    assert_eq!(due.iter().map(|due| due.place).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(
        store
            .lease_notifications(NOW, NOW + 90_000, 10)
            .await
            .unwrap(),
        []
    );
    let [first, second] = <[OutboxEntry; 2]>::try_from(due).unwrap();
    let later = DeliveryResult::Retry {
        error: "500".into(),
        at: NOW + 5,
    };
    store
        .record_notification_results(vec![(first, DeliveryResult::Delivered), (second, later)])
        .await
        .unwrap();
    let due = store
        .lease_notifications(NOW + 5, NOW + 90_000, 10)
        .await
        .unwrap();
    assert_eq!((due.len(), due[0].place, due[0].attempts), (1, 1, 1));
    let never = DeliveryResult::GiveUp {
        error: "410".into(),
    };
    store
        .record_notification_results(due.into_iter().map(|due| (due, never.clone())).collect())
        .await
        .unwrap();
    assert_eq!(
        store
            .lease_notifications(NOW + 900_000, NOW + 990_000, 10)
            .await
            .unwrap(),
        []
    );
}
