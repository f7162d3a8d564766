//! Faults: runners that are silent, accept no lease, reconnect or report on runs of others, and
//! servers that restart.

use std::time::{Duration, Instant};

use acrtask_model::RunState;
use acrtask_proto::runner::{
    Attempt, Fence, Heartbeat, from_runner::Message as From, to_runner::Message,
};
use acrtask_server::Config;

use crate::{
    support::{
        FakeRunner, RunnerStream, enqueue, new_run, on_both, quick_config, read_metric,
        wait_for_state, wait_until,
    },
    test_db::TestDb,
};

on_both!(
    run_of_a_silent_runner_is_leased_to_another,
    unaccepted_lease_is_requeued,
    restarted_server_keeps_active_attempts,
    runner_cannot_change_a_run_of_another_runner,
    second_stream_closes_the_first,
    lease_missing_from_a_hello_is_requeued,
    canceled_run_gets_no_permission_to_push,
    first_message_must_be_a_hello,
);

async fn request_fence(stream: &mut RunnerStream, attempt: &Attempt, nonce: u64) -> bool {
    stream
        .send(From::Fence(Fence {
            of: Some(attempt.clone()),
            nonce,
        }))
        .await;
    stream
        .receive("a response", |message| match message {
            Message::Fence(response) if response.nonce == nonce => Some(response.granted),
            _ => None,
        })
        .await
}

async fn run_of_a_silent_runner_is_leased_to_another(db: TestDb) {
    let server = db.start_server(quick_config()).await;
    let app = server.app();
    let first = FakeRunner::register(&server, "first").await;
    let mut zombie = first.connect(&server).await;
    zombie.start_heartbeats(Duration::from_millis(200));
    let row = enqueue(app, new_run("rone")).await;
    let attempt = zombie.receive_lease().await.of.unwrap();
    zombie.set_active(&[&attempt]);
    zombie.send_started(&attempt).await;
    zombie.send_log(&attempt, 0, b"of the first").await;
    assert_eq!(zombie.receive_log_ack(&attempt).await, 12);
    assert!(request_fence(&mut zombie, &attempt, 1).await);
    // A renewed lease lasts longer than its initial period.
    tokio::time::sleep(quick_config().lease * 2).await;
    assert_eq!(
        app.store.run(&row.id).await.unwrap().state,
        RunState::Running
    );
    let second = FakeRunner::register(&server, "second").await;
    let mut stream = second.connect(&server).await;
    stream.start_heartbeats(Duration::from_millis(200));
    zombie.stop_heartbeats();
    let silent = Instant::now();
    let next = stream.receive_lease().await.of.unwrap();
    assert_eq!((next.run.as_str(), next.attempt), ("rone", 2));
    assert!(silent.elapsed() < quick_config().lease + Duration::from_secs(10));
    stream.set_active(&[&next]);
    stream.send_started(&next).await;
    // The server sends an abandon message on the old stream. If that stream is closed, it keeps no
    // attempt in the next welcome.
    let mut zombie = if app.hub.runner(&first.id).is_some() {
        zombie.receive_abandon(&attempt).await;
        zombie
    } else {
        let reconnected = first
            .clone()
            .with_active(&[&attempt])
            .connect(&server)
            .await;
        assert!(reconnected.welcome.kept.is_empty());
        reconnected
    };
    // The server rejects every report of the old attempt.
    assert!(!request_fence(&mut zombie, &attempt, 2).await);
    zombie.send_log(&attempt, 12, b"too late").await;
    zombie.receive_abandon(&attempt).await;
    zombie
        .send_finished(&attempt, RunState::Succeeded, b"of the first")
        .await;
    zombie.receive_abandon(&attempt).await;
    let row = app.store.run(&row.id).await.unwrap();
    assert_eq!(
        (row.state, row.attempt, row.log_length),
        (RunState::Running, 2, 0)
    );
    stream.finish_attempt(&next, RunState::Succeeded, b"").await;
    wait_for_state(&app.store, &row.id, RunState::Succeeded).await;
    let attempts = app.store.attempts(&row.id).await.unwrap();
    let outcomes: Vec<Option<&str>> = attempts.iter().map(|a| a.outcome.as_deref()).collect();
    assert_eq!(outcomes, [Some("lost"), Some("succeeded")]);
    assert_eq!(attempts[0].log_length, 12);
    let lost = read_metric(&server, "acrtask_leases_lost_total{state=\"queued\"}").await;
    assert_eq!(lost, Some(1.0));
}

async fn unaccepted_lease_is_requeued(db: TestDb) {
    let server = db.start_server(quick_config()).await;
    let app = server.app();
    // After a start the server expires no lease for one lease period.
    tokio::time::sleep(quick_config().lease).await;
    let deaf = FakeRunner::register(&server, "deaf").await;
    let mut deaf_stream = deaf.connect(&server).await;
    deaf_stream.start_heartbeats(Duration::from_millis(200));
    let row = enqueue(app, new_run("rone")).await;
    let attempt = deaf_stream.receive_lease().await.of.unwrap();
    deaf_stream.set_active(&[&attempt]);
    let other = FakeRunner::register(&server, "other").await;
    let mut stream = other.connect(&server).await;
    stream.start_heartbeats(Duration::from_millis(200));
    // The server may lease the run to the first runner again, because that one has a free slot.
    let reason = deaf_stream.receive_abandon(&attempt).await;
    assert_eq!(reason, "runner deaf did not accept it");
    wait_until("the other runner starts the run", || async {
        let row = app.store.run(&row.id).await.unwrap();
        (row.attempt > 1 && row.runner_id.as_deref() == Some(other.id.as_str())).then_some(())
    })
    .await;
    let next = stream.receive_lease().await.of.unwrap();
    stream.send_started(&next).await;
    stream.finish_attempt(&next, RunState::Succeeded, b"").await;
    let row = wait_for_state(&app.store, &row.id, RunState::Succeeded).await;
    assert_eq!(row.lost_attempts, 0, "nothing was lost with a runner");
}

async fn restarted_server_keeps_active_attempts(db: TestDb) {
    let config = quick_config();
    let server = db.start_server(config.clone()).await;
    let runner = FakeRunner::register(&server, "one").await;
    let mut stream = runner.connect(&server).await;
    let row = enqueue(server.app(), new_run("rone")).await;
    let attempt = stream.receive_lease().await.of.unwrap();
    stream.send_started(&attempt).await;
    stream.send_log(&attempt, 0, b"before").await;
    assert_eq!(stream.receive_log_ack(&attempt).await, 6);
    server.shutdown().await;
    let status = stream.receive_end().await;
    assert_eq!(status.message(), "the control plane is shutting down");
    // The server is down for longer than a lease.
    tokio::time::sleep(config.lease + Duration::from_millis(300)).await;
    let server = db.start_server(config.clone()).await;
    let spare = FakeRunner::register(&server, "spare").await;
    let mut spare_stream = spare.connect(&server).await;
    spare_stream.start_heartbeats(Duration::from_millis(200));
    tokio::time::sleep(config.lease / 2).await;
    let mut stream = runner
        .clone()
        .with_active(&[&attempt])
        .connect(&server)
        .await;
    stream.set_active(&[&attempt]);
    stream.start_heartbeats(Duration::from_millis(200));
    let kept = &stream.welcome.kept;
    assert_eq!(kept.len(), 1);
    assert_eq!((kept[0].of.as_ref(), kept[0].offset), (Some(&attempt), 6));
    tokio::time::sleep(config.lease).await;
    stream.send_log(&attempt, 6, b" after").await;
    assert_eq!(stream.receive_log_ack(&attempt).await, 12);
    let stored = stream
        .finish_attempt(&attempt, RunState::Succeeded, b"before after")
        .await;
    assert_eq!(stored, 12);
    let row = server.app().store.run(&row.id).await.unwrap();
    assert_eq!((row.state, row.attempt), (RunState::Succeeded, 1));
    spare_stream.assert_no_lease().await;
}

async fn runner_cannot_change_a_run_of_another_runner(db: TestDb) {
    let server = db.start_server(Config::default()).await;
    let app = server.app();
    let holder = FakeRunner::register(&server, "holder").await;
    let mut stream = holder.connect(&server).await;
    let row = enqueue(app, new_run("rone")).await;
    let attempt = stream.receive_lease().await.of.unwrap();
    stream.send_started(&attempt).await;
    wait_for_state(&app.store, &row.id, RunState::Running).await;
    let thief = FakeRunner::register(&server, "thief")
        .await
        .with_active(&[&attempt]);
    let mut thief_stream = thief.connect(&server).await;
    assert!(thief_stream.welcome.kept.is_empty());
    thief_stream.receive_abandon(&attempt).await;
    thief_stream.send_started(&attempt).await;
    thief_stream.receive_abandon(&attempt).await;
    thief_stream.receive_abandon(&attempt).await;
    thief_stream.send_declined(&attempt, "mine now").await;
    thief_stream.receive_abandon(&attempt).await;
    thief_stream.send_log(&attempt, 0, b"lies").await;
    thief_stream.receive_abandon(&attempt).await;
    thief_stream
        .send_finished(&attempt, RunState::Failed, b"")
        .await;
    thief_stream.receive_abandon(&attempt).await;
    assert!(!request_fence(&mut thief_stream, &attempt, 3).await);
    thief_stream
        .send(From::Heartbeat(Heartbeat {
            attempts: vec![attempt.clone()],
            free_disk: 5,
        }))
        .await;
    let renewed = thief_stream
        .receive("a response", |message| match message {
            Message::Renewed(renewed) => Some(renewed.attempts.clone()),
            _ => None,
        })
        .await;
    assert!(renewed.is_empty());
    let nonsense = Attempt {
        run: "../x".into(),
        attempt: 1,
    };
    thief_stream.send_log(&nonsense, 0, b"lies").await;
    thief_stream.receive_abandon(&nonsense).await;
    thief_stream.send_started(&nonsense).await;
    thief_stream.receive_abandon(&nonsense).await;
    thief_stream.send_log(&attempt, u64::MAX, b"lies").await;
    thief_stream.receive_abandon(&attempt).await;
    let logs = db.folder().join("blobs/logs");
    assert!(!logs.exists(), "nothing that the thief sent is stored");
    let row = app.store.run(&row.id).await.unwrap();
    assert_eq!((row.state, row.log_length), (RunState::Running, 0));
    assert!(request_fence(&mut stream, &attempt, 4).await);
}

async fn canceled_run_gets_no_permission_to_push(db: TestDb) {
    let server = db.start_server(Config::default()).await;
    let app = server.app();
    let runner = FakeRunner::register(&server, "one").await;
    let mut stream = runner.connect(&server).await;
    for (nonce, name) in (1..).zip(["rone", "rtwo", "rthree"]) {
        let row = enqueue(app, new_run(name)).await;
        let attempt = stream.receive_lease().await.of.unwrap();
        stream.send_started(&attempt).await;
        wait_for_state(&app.store, &row.id, RunState::Running).await;
        // Another server stores the cancellation and its hint is lost. The runner has no cancel
        // message yet.
        let now = app.clock.now_ms();
        app.store.request_cancel(&row.id, "ann", now).await.unwrap();
        assert!(!request_fence(&mut stream, &attempt, nonce).await, "{name}");
        stream
            .finish_attempt(&attempt, RunState::Canceled, b"")
            .await;
    }
}

async fn second_stream_closes_the_first(db: TestDb) {
    let server = db.start_server(Config::default()).await;
    let app = server.app();
    let runner = FakeRunner::register(&server, "one").await;
    let mut first = runner.connect(&server).await;
    let row = enqueue(app, new_run("rone")).await;
    let attempt = first.receive_lease().await.of.unwrap();
    first.send_started(&attempt).await;
    wait_for_state(&app.store, &row.id, RunState::Running).await;
    let mut second = runner
        .clone()
        .with_active(&[&attempt])
        .connect(&server)
        .await;
    let status = first.receive_end().await;
    assert_eq!(status.message(), "the runner opened a second connection");
    assert_eq!(second.welcome.kept.len(), 1);
    second
        .finish_attempt(&attempt, RunState::Succeeded, b"")
        .await;
    assert_eq!(app.hub.len(), 1);
}

/// Expects a new lease at once, if a reconnected runner does not list the old one in its hello.
async fn lease_missing_from_a_hello_is_requeued(db: TestDb) {
    let server = db.start_server(Config::default()).await;
    let app = server.app();
    let runner = FakeRunner::register(&server, "one").await;
    let mut first = runner.connect(&server).await;
    enqueue(app, new_run("rone")).await;
    first.receive_lease().await;
    let mut second = runner.connect(&server).await;
    let next = second.receive_lease().await.of.unwrap();
    assert_eq!((next.run.as_str(), next.attempt), ("rone", 2));
}

async fn first_message_must_be_a_hello(db: TestDb) {
    let server = db.start_server(Config::default()).await;
    let runner = FakeRunner::register(&server, "one").await;
    let mut stream = runner.open_stream(&server).await.unwrap();
    stream.send(From::Heartbeat(Heartbeat::default())).await;
    let status = stream.receive_end().await;
    assert_eq!(
        status.message(),
        "the first message of a runner must be a hello"
    );
    // The server ignores a message of a newer version.
    let stream = runner.connect(&server).await;
    stream.send_unknown().await;
    stream
        .send(From::Heartbeat(Heartbeat {
            attempts: Vec::new(),
            free_disk: 17,
        }))
        .await;
    wait_until("the server processes the heartbeat", || async {
        let runner = server.app().hub.runner(&runner.id)?;
        (runner.free_disk == 17).then_some(())
    })
    .await;
}

/// Disconnects the database for longer than a lease. The server acknowledges no report, loses no
/// report, and counts no lost attempt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_of_runners_wait_for_the_database() {
    let Some(mut db) = TestDb::postgres() else {
        return;
    };
    let proxy = db.insert_proxy().await;
    let config = quick_config();
    let server = db.start_server(config.clone()).await;
    let app = server.app();
    tokio::time::sleep(config.lease).await;
    let runner = FakeRunner::register(&server, "one").await;
    let mut stream = runner.connect(&server).await;
    stream.start_heartbeats(Duration::from_millis(200));
    let row = enqueue(app, new_run("rone")).await;
    let attempt = stream.receive_lease().await.of.unwrap();
    stream.set_active(&[&attempt]);
    stream.send_started(&attempt).await;
    wait_for_state(&app.store, &row.id, RunState::Running).await;
    proxy.disconnect();
    let ready = format!("http://{}/readyz", server.addr());
    wait_until("the server reports that it is not ready", || async {
        let response = reqwest::get(&ready).await.unwrap();
        (response.status() == 503).then_some(())
    })
    .await;
    stream.send_log(&attempt, 0, b"while it was away").await;
    stream
        .send_finished(&attempt, RunState::Succeeded, b"while it was away")
        .await;
    let acknowledgement = tokio::time::timeout(
        config.lease + Duration::from_secs(1),
        stream.receive("an acknowledgement", |message| {
            matches!(message, Message::LogAck(_) | Message::FinishedAck(_)).then_some(())
        }),
    );
    assert!(
        acknowledgement.await.is_err(),
        "acknowledged without a database"
    );
    proxy.reconnect();
    let stored = stream
        .receive("an acknowledgement of the end", |message| match message {
            Message::FinishedAck(ack) => Some(ack.log_offset),
            _ => None,
        })
        .await;
    assert_eq!(stored, 17);
    let row = app.store.run(&row.id).await.unwrap();
    assert_eq!((row.state, row.attempt), (RunState::Succeeded, 1));
    assert_eq!(row.log_length, 17);
    stream.set_active(&[]);
    enqueue(app, new_run("rtwo")).await;
    stream.execute_next_lease().await;
}
