//! Two servers that share one PostgreSQL database.

use std::time::{Duration, Instant};

use acrtask_model::RunState;
use acrtask_proto::runner::to_runner::Message;
use acrtask_store::Hint;

use crate::{
    support::{FakeRunner, enqueue, new_run, quick_config, wait_for_state},
    test_db::TestDb,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_share_a_queue() {
    let Some(db) = TestDb::postgres() else {
        return;
    };
    let (one, two) = tokio::join!(
        db.start_server(quick_config()),
        db.start_server(quick_config())
    );
    // The first server enqueues a run, the second leases it to its runner.
    let runner = FakeRunner::register(&one, "one").await;
    let mut stream = runner.connect(&two).await;
    stream.start_heartbeats(Duration::from_millis(200));
    let row = enqueue(one.app(), new_run("rone")).await;
    one.app().store.send_hints(&[Hint::Enqueued]).await.unwrap();
    let attempt = stream.receive_lease().await.of.unwrap();
    stream.set_active(&[&attempt]);
    stream.send_started(&attempt).await;
    // A hint makes the first server read log chunks that the second has stored.
    let mut changes = one.app().logs.subscribe(&row.id);
    stream.send_log(&attempt, 0, b"hello").await;
    let started = Instant::now();
    loop {
        let state = one.app().store.log_state(&row.id).await.unwrap();
        if state.length == 5 {
            break;
        }
        changes.changed().await;
        assert!(started.elapsed() < Duration::from_secs(10));
    }
    // A cancellation on the first server reaches the runner of the second.
    let now = one.app().clock.now_ms();
    one.app()
        .store
        .request_cancel(&row.id, "enough", now)
        .await
        .unwrap();
    stream
        .receive("a cancel", |message| {
            matches!(message, Message::Cancel(_)).then_some(())
        })
        .await;
    stream
        .finish_attempt(&attempt, RunState::Canceled, b"hello")
        .await;
    wait_for_state(&one.app().store, &row.id, RunState::Canceled).await;
    // One server shuts down. Its runner reconnects to the other with its active attempt.
    let next = enqueue(one.app(), new_run("rtwo")).await;
    let attempt = stream.receive_lease().await.of.unwrap();
    stream.send_started(&attempt).await;
    wait_for_state(&one.app().store, &next.id, RunState::Running).await;
    two.shutdown().await;
    stream.receive_end().await;
    let mut stream = runner.with_active(&[&attempt]).connect(&one).await;
    assert_eq!(stream.welcome.kept.len(), 1);
    stream
        .finish_attempt(&attempt, RunState::Succeeded, b"")
        .await;
    wait_for_state(&one.app().store, &next.id, RunState::Succeeded).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_never_lease_a_run_twice() {
    let Some(db) = TestDb::postgres() else {
        return;
    };
    let (one, two) = tokio::join!(
        db.start_server(quick_config()),
        db.start_server(quick_config())
    );
    let mut tasks = tokio::task::JoinSet::new();
    let count = tokio::sync::watch::Sender::new(0);
    for n in 0..6 {
        let server = if n % 2 == 0 { &one } else { &two };
        let runner = FakeRunner::register(server, &format!("n{n}")).await;
        let mut stream = runner.with_slots(3).connect(server).await;
        stream.start_heartbeats(Duration::from_millis(200));
        let count = count.clone();
        let mut ended = count.subscribe();
        tasks.spawn(async move {
            let mut done = Vec::new();
            loop {
                tokio::select! {
                    attempt = stream.execute_next_lease() => {
                        done.push((attempt.run, attempt.attempt));
                        count.send_modify(|count| *count += 1);
                    }
                    _ = ended.wait_for(|count| *count >= 200) => return done,
                }
            }
        });
    }
    let app = one.app();
    let runs = (0..200).map(|n| new_run(&format!("r{n}"))).collect();
    let now = app.clock.now_ms();
    app.store.enqueue_many(runs, now).await.unwrap();
    app.store.send_hints(&[Hint::Enqueued]).await.unwrap();
    let mut done: Vec<(String, u32)> = tasks.join_all().await.concat();
    done.sort();
    done.dedup();
    assert_eq!(done.len(), 200);
    assert!(done.iter().all(|(_, attempt)| *attempt == 1));
}

/// Tests a lease that the runner does not accept. The server without a connection to the runner
/// requeues it. The server with the connection must free the slot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lease_requeued_by_another_server_frees_its_slot() {
    let Some(db) = TestDb::postgres() else {
        return;
    };
    let config = quick_config();
    let one = db.start_server(config.clone()).await;
    tokio::time::sleep(config.lease).await;
    // The second server is in its first lease period and expires no leases yet.
    let two = db.start_server(config.clone()).await;
    let runner = FakeRunner::register(&two, "one").await;
    let mut stream = runner.connect(&two).await;
    stream.start_heartbeats(Duration::from_millis(100));
    enqueue(two.app(), new_run("rone")).await;
    let attempt = stream.receive_lease().await.of.unwrap();
    let next = stream.receive_lease().await.of.unwrap();
    assert_eq!((next.run, next.attempt), (attempt.run, 2));
    drop(one);
}
