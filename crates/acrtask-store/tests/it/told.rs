//! What forges and people are told of runs: once, in order, and again where it failed.

use acrtask_model::RunState;
use acrtask_store::{Due, Told};

use crate::support::{Fixture, NOW, finished, new_run, on_both, run_id};

use crate::webhooks::{delivery, run};

on_both!(statuses_follow_the_run, results_are_told_once,);

async fn statuses_follow_the_run(fixture: &Fixture) {
    let store = &fixture.store;
    store
        .deliver(
            delivery("d1", "one"),
            vec![run("ra", "t1 main", "b2", false)],
            NOW,
        )
        .await
        .unwrap();
    let take = async |now: i64| store.take_statuses(now, now + 90_000, 10).await.unwrap();
    let tell = async |due: Vec<Due>, told: Told| {
        let told = due.into_iter().map(|due| (due, told.clone())).collect();
        store.settle_statuses(told, NOW).await.unwrap();
    };
    let due = take(NOW).await;
    assert_eq!((due.len(), due[0].state), (1, RunState::Queued));
    // Somebody has it now.
    assert_eq!(take(NOW).await, []);
    tell(
        due,
        Told::Again {
            error: "503".into(),
            at: NOW + 1000,
        },
    )
    .await;
    assert_eq!(take(NOW + 999).await, []);
    let untold = store.untold_statuses(vec!["ra".into()]).await.unwrap();
    assert_eq!((untold[0].last_error.as_str(), untold[0].over), ("503", 0));
    let due = take(NOW + 1000).await;
    assert_eq!(due[0].attempts, 1);
    tell(due, Told::Yes).await;
    // Nothing new to say.
    assert_eq!(take(NOW + 500_000).await, []);
    let claimed = fixture.claim("a", 1, NOW).await.remove(0);
    let due = take(NOW + 500_000).await;
    assert_eq!(due[0].state, RunState::Leased);
    tell(due, Told::Yes).await;
    fixture
        .say("a", &claimed, NOW, acrtask_store::Report::Started)
        .await;
    assert_eq!(take(NOW + 500_000).await, [], "that is no news");
    fixture
        .say("a", &claimed, NOW, finished(RunState::Failed, 0))
        .await;
    let due = take(NOW + 500_000).await;
    assert_eq!(due[0].state, RunState::Failed);
    // The server dies before it has written that down: another one says it again.
    let due = take(NOW + 600_000).await;
    assert_eq!(due.len(), 1);
    tell(due, Told::Yes).await;
    assert_eq!(take(NOW + 900_000).await, []);
}

async fn results_are_told_once(fixture: &Fixture) {
    let store = &fixture.store;
    let mut new = new_run("ra");
    new.origin.notify = true;
    store.enqueue(new, NOW).await.unwrap();
    fixture.queued("rb", NOW).await;
    assert_eq!(store.unnoticed(10).await.unwrap(), []);
    for id in ["ra", "rb"] {
        store.request_cancel(&run_id(id), "x", NOW).await.unwrap();
    }
    let waiting = store.unnoticed(10).await.unwrap();
    assert_eq!(waiting, [(run_id("ra"), None, RunState::Canceled)]);
    let targets = vec!["{\"a\":1}".to_owned(), "{\"b\":1}".to_owned()];
    store
        .add_notices(&run_id("ra"), targets.clone(), NOW)
        .await
        .unwrap();
    store
        .add_notices(&run_id("ra"), targets, NOW)
        .await
        .unwrap();
    assert_eq!(store.unnoticed(10).await.unwrap(), []);
    let due = store.take_notices(NOW, NOW + 90_000, 10).await.unwrap();
    assert_eq!(due.iter().map(|due| due.place).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(store.take_notices(NOW, NOW + 90_000, 10).await.unwrap(), []);
    let [first, second] = <[Due; 2]>::try_from(due).unwrap();
    let later = Told::Again {
        error: "500".into(),
        at: NOW + 5,
    };
    store
        .settle_notices(vec![(first, Told::Yes), (second, later)])
        .await
        .unwrap();
    let due = store.take_notices(NOW + 5, NOW + 90_000, 10).await.unwrap();
    assert_eq!((due.len(), due[0].place, due[0].attempts), (1, 1, 1));
    let never = Told::Never {
        error: "410".into(),
    };
    store
        .settle_notices(due.into_iter().map(|due| (due, never.clone())).collect())
        .await
        .unwrap();
    assert_eq!(
        store
            .take_notices(NOW + 900_000, NOW + 990_000, 10)
            .await
            .unwrap(),
        []
    );
}
