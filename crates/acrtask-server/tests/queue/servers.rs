//! Two control planes on one PostgreSQL.

use std::time::{Duration, Instant};

use acrtask_model::RunState;
use acrtask_proto::runner::to_runner::Message;
use acrtask_store::Hint;

use crate::{
    place::Place,
    support::{FakeRunner, enqueue, new_run, quick, reaches},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_share_a_queue() {
    let Some(place) = Place::postgres() else {
        return;
    };
    let (one, two) = tokio::join!(place.server(quick()), place.server(quick()));
    // A run that is asked for here goes to the runner there.
    let runner = FakeRunner::register(&one, "one").await;
    let mut line = runner.connect(&two).await;
    line.beat(Duration::from_millis(200));
    let row = enqueue(one.app(), new_run("rone")).await;
    one.app().store.hint(&[Hint::Enqueued]).await.unwrap();
    let of = line.lease().await.of.unwrap();
    line.holds(&[&of]);
    line.start(&of).await;
    // A reader here sees what grows there, by a hint.
    let mut changes = one.app().logs.subscribe(&row.id);
    line.log(&of, 0, b"hello").await;
    let begun = Instant::now();
    loop {
        let state = one.app().store.log_state(&row.id).await.unwrap();
        if state.length == 5 {
            break;
        }
        changes.changed().await;
        assert!(begun.elapsed() < Duration::from_secs(2));
    }
    // A cancel here reaches the runner there.
    let now = one.app().clock.now_ms();
    one.app()
        .store
        .request_cancel(&row.id, "enough", now)
        .await
        .unwrap();
    line.until("a cancel", |message| {
        matches!(message, Message::Cancel(_)).then_some(())
    })
    .await;
    line.finish(&of, RunState::Canceled, b"hello").await;
    reaches(&one.app().store, &row.id, RunState::Canceled).await;
    // One of them goes: the runner moves with what it holds.
    let next = enqueue(one.app(), new_run("rtwo")).await;
    let of = line.lease().await.of.unwrap();
    line.start(&of).await;
    reaches(&one.app().store, &next.id, RunState::Running).await;
    two.shutdown().await;
    line.end().await;
    let mut line = runner.holding(&[&of]).connect(&one).await;
    assert_eq!(line.welcome.kept.len(), 1);
    line.finish(&of, RunState::Succeeded, b"").await;
    reaches(&one.app().store, &next.id, RunState::Succeeded).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_never_give_a_run_away_twice() {
    let Some(place) = Place::postgres() else {
        return;
    };
    let (one, two) = tokio::join!(place.server(quick()), place.server(quick()));
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..6 {
        let server = if n % 2 == 0 { &one } else { &two };
        let runner = FakeRunner::register(server, &format!("n{n}")).await;
        let mut line = runner.slots(3).connect(server).await;
        line.beat(Duration::from_millis(200));
        tasks.spawn(async move {
            let mut done = Vec::new();
            while let Ok(of) = tokio::time::timeout(Duration::from_millis(2500), line.work()).await
            {
                done.push((of.run, of.attempt));
            }
            done
        });
    }
    let app = one.app();
    let runs = (0..200).map(|n| new_run(&format!("r{n}"))).collect();
    let now = app.clock.now_ms();
    app.store.enqueue_many(runs, now).await.unwrap();
    app.store.hint(&[Hint::Enqueued]).await.unwrap();
    let mut done: Vec<(String, u32)> = tasks.join_all().await.concat();
    done.sort();
    done.dedup();
    assert_eq!(done.len(), 200);
    assert!(done.iter().all(|(_, attempt)| *attempt == 1));
}

/// A lease that never arrived is taken back by the server that its runner is not connected to: the other one must not
/// take the slot for taken for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_another_server_took_back_frees_its_slot() {
    let Some(place) = Place::postgres() else {
        return;
    };
    let config = quick();
    let one = place.server(config.clone()).await;
    tokio::time::sleep(config.lease).await;
    // This one watches and does not reap yet.
    let two = place.server(config.clone()).await;
    let runner = FakeRunner::register(&two, "one").await;
    let mut line = runner.connect(&two).await;
    line.beat(Duration::from_millis(100));
    enqueue(two.app(), new_run("rone")).await;
    let of = line.lease().await.of.unwrap();
    let again = line.lease().await.of.unwrap();
    assert_eq!((again.run, again.attempt), (of.run, 2));
    drop(one);
}
