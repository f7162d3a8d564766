//! What goes wrong: runners that are silent, never accept, come back, or talk about what is not theirs; servers that
//! end in the middle.

use std::time::{Duration, Instant};

use acrtask_model::RunState;
use acrtask_proto::runner::{
    Attempt, Fence, Heartbeat, from_runner::Message as From, to_runner::Message,
};
use acrtask_server::Config;

use crate::{
    place::Place,
    support::{FakeRunner, Line, enqueue, eventually, metric, new_run, on_both, quick, reaches},
};

on_both!(
    a_silent_runners_run_goes_to_another,
    a_lease_that_is_not_accepted_goes_back,
    a_restarted_server_keeps_what_runners_hold,
    a_run_of_another_runner_is_not_touched,
    a_second_stream_ends_the_first,
    what_a_runner_forgot_is_not_kept_for_it,
    a_run_that_is_to_end_pushes_nothing,
    the_first_message_is_a_hello,
);

async fn fence(line: &mut Line, of: &Attempt, nonce: u64) -> bool {
    line.say(From::Fence(Fence {
        of: Some(of.clone()),
        nonce,
    }))
    .await;
    line.until("an answer", |message| match message {
        Message::Fence(answer) if answer.nonce == nonce => Some(answer.granted),
        _ => None,
    })
    .await
}

async fn a_silent_runners_run_goes_to_another(place: Place) {
    let server = place.server(quick()).await;
    let app = server.app();
    let first = FakeRunner::register(&server, "first").await;
    let mut zombie = first.connect(&server).await;
    zombie.beat(Duration::from_millis(200));
    let row = enqueue(app, new_run("rone")).await;
    let of = zombie.lease().await.of.unwrap();
    zombie.holds(&[&of]);
    zombie.start(&of).await;
    zombie.log(&of, 0, b"of the first").await;
    assert_eq!(zombie.log_ack(&of).await, 12);
    assert!(fence(&mut zombie, &of, 1).await);
    // A lease that is renewed outlives its period.
    tokio::time::sleep(quick().lease * 2).await;
    assert_eq!(
        app.store.run(&row.id).await.unwrap().state,
        RunState::Running
    );
    let second = FakeRunner::register(&server, "second").await;
    let mut line = second.connect(&server).await;
    line.beat(Duration::from_millis(200));
    zombie.faint();
    let silent = Instant::now();
    let next = line.lease().await.of.unwrap();
    assert_eq!((next.run.as_str(), next.attempt), ("rone", 2));
    assert!(silent.elapsed() < quick().lease + Duration::from_secs(2));
    line.holds(&[&next]);
    line.start(&next).await;
    // It is told on its way out, or it hears it where it connects again.
    let mut zombie = if app.hub.runner(&first.id).is_some() {
        zombie.abandoned(&of).await;
        zombie
    } else {
        let again = first.clone().holding(&[&of]).connect(&server).await;
        assert!(again.welcome.kept.is_empty());
        again
    };
    // Whatever it says is refused.
    assert!(!fence(&mut zombie, &of, 2).await);
    zombie.log(&of, 12, b"too late").await;
    zombie.abandoned(&of).await;
    zombie
        .say_finished(&of, RunState::Succeeded, b"of the first")
        .await;
    zombie.abandoned(&of).await;
    let row = app.store.run(&row.id).await.unwrap();
    assert_eq!(
        (row.state, row.attempt, row.log_length),
        (RunState::Running, 2, 0)
    );
    line.finish(&next, RunState::Succeeded, b"").await;
    reaches(&app.store, &row.id, RunState::Succeeded).await;
    let attempts = app.store.attempts(&row.id).await.unwrap();
    let outcomes: Vec<Option<&str>> = attempts.iter().map(|a| a.outcome.as_deref()).collect();
    assert_eq!(outcomes, [Some("lost"), Some("succeeded")]);
    assert_eq!(attempts[0].log_length, 12);
    let lost = metric(&server, "acrtask_leases_lost_total{state=\"queued\"}").await;
    assert_eq!(lost, Some(1.0));
}

async fn a_lease_that_is_not_accepted_goes_back(place: Place) {
    let server = place.server(quick()).await;
    let app = server.app();
    // The reaper watches at first.
    tokio::time::sleep(quick().lease).await;
    let deaf = FakeRunner::register(&server, "deaf").await;
    let mut deaf_line = deaf.connect(&server).await;
    deaf_line.beat(Duration::from_millis(200));
    let row = enqueue(app, new_run("rone")).await;
    let of = deaf_line.lease().await.of.unwrap();
    deaf_line.holds(&[&of]);
    let other = FakeRunner::register(&server, "other").await;
    let mut line = other.connect(&server).await;
    line.beat(Duration::from_millis(200));
    // It may come to the first one again: that one is free, too.
    let reason = deaf_line.abandoned(&of).await;
    assert_eq!(reason, "runner deaf did not accept it");
    eventually("it is begun by the other", || async {
        let row = app.store.run(&row.id).await.unwrap();
        (row.attempt > 1 && row.runner_id.as_deref() == Some(other.id.as_str())).then_some(())
    })
    .await;
    let next = line.lease().await.of.unwrap();
    line.start(&next).await;
    line.finish(&next, RunState::Succeeded, b"").await;
    let row = reaches(&app.store, &row.id, RunState::Succeeded).await;
    assert_eq!(row.losses, 0, "nothing was lost with a runner");
}

async fn a_restarted_server_keeps_what_runners_hold(place: Place) {
    let config = quick();
    let server = place.server(config.clone()).await;
    let runner = FakeRunner::register(&server, "one").await;
    let mut line = runner.connect(&server).await;
    let row = enqueue(server.app(), new_run("rone")).await;
    let of = line.lease().await.of.unwrap();
    line.start(&of).await;
    line.log(&of, 0, b"before").await;
    assert_eq!(line.log_ack(&of).await, 6);
    server.shutdown().await;
    let status = line.end().await;
    assert_eq!(status.message(), "the control plane is shutting down");
    // It is away for longer than a lease.
    tokio::time::sleep(config.lease + Duration::from_millis(300)).await;
    let server = place.server(config.clone()).await;
    let spare = FakeRunner::register(&server, "spare").await;
    let mut spare_line = spare.connect(&server).await;
    spare_line.beat(Duration::from_millis(200));
    tokio::time::sleep(config.lease / 2).await;
    let mut line = runner.clone().holding(&[&of]).connect(&server).await;
    line.holds(&[&of]);
    line.beat(Duration::from_millis(200));
    let kept = &line.welcome.kept;
    assert_eq!(kept.len(), 1);
    assert_eq!((kept[0].of.as_ref(), kept[0].offset), (Some(&of), 6));
    tokio::time::sleep(config.lease).await;
    line.log(&of, 6, b" after").await;
    assert_eq!(line.log_ack(&of).await, 12);
    let stored = line.finish(&of, RunState::Succeeded, b"before after").await;
    assert_eq!(stored, 12);
    let row = server.app().store.run(&row.id).await.unwrap();
    assert_eq!((row.state, row.attempt), (RunState::Succeeded, 1));
    spare_line.no_lease().await;
}

async fn a_run_of_another_runner_is_not_touched(place: Place) {
    let server = place.server(Config::default()).await;
    let app = server.app();
    let holder = FakeRunner::register(&server, "holder").await;
    let mut line = holder.connect(&server).await;
    let row = enqueue(app, new_run("rone")).await;
    let of = line.lease().await.of.unwrap();
    line.start(&of).await;
    reaches(&app.store, &row.id, RunState::Running).await;
    let thief = FakeRunner::register(&server, "thief").await.holding(&[&of]);
    let mut thief_line = thief.connect(&server).await;
    assert!(thief_line.welcome.kept.is_empty());
    thief_line.abandoned(&of).await;
    thief_line.start(&of).await;
    thief_line.abandoned(&of).await;
    thief_line.abandoned(&of).await;
    thief_line.decline(&of, "mine now").await;
    thief_line.abandoned(&of).await;
    thief_line.log(&of, 0, b"lies").await;
    thief_line.abandoned(&of).await;
    thief_line.say_finished(&of, RunState::Failed, b"").await;
    thief_line.abandoned(&of).await;
    assert!(!fence(&mut thief_line, &of, 3).await);
    thief_line
        .say(From::Heartbeat(Heartbeat {
            held: vec![of.clone()],
            free_disk: 5,
        }))
        .await;
    let renewed = thief_line
        .until("an answer", |message| match message {
            Message::Renewed(renewed) => Some(renewed.held.clone()),
            _ => None,
        })
        .await;
    assert!(renewed.is_empty());
    let nonsense = Attempt {
        run: "../x".into(),
        attempt: 1,
    };
    thief_line.log(&nonsense, 0, b"lies").await;
    thief_line.abandoned(&nonsense).await;
    thief_line.start(&nonsense).await;
    thief_line.abandoned(&nonsense).await;
    thief_line.log(&of, u64::MAX, b"lies").await;
    thief_line.abandoned(&of).await;
    let logs = place.folder().join("blobs/logs");
    assert!(!logs.exists(), "nothing of a thief's is kept");
    let row = app.store.run(&row.id).await.unwrap();
    assert_eq!((row.state, row.log_length), (RunState::Running, 0));
    assert!(fence(&mut line, &of, 4).await);
}

async fn a_run_that_is_to_end_pushes_nothing(place: Place) {
    let server = place.server(Config::default()).await;
    let app = server.app();
    let runner = FakeRunner::register(&server, "one").await;
    let mut line = runner.connect(&server).await;
    for (nonce, name) in (1..).zip(["rone", "rtwo", "rthree"]) {
        let row = enqueue(app, new_run(name)).await;
        let of = line.lease().await.of.unwrap();
        line.start(&of).await;
        reaches(&app.store, &row.id, RunState::Running).await;
        // Through another server, whose hint is lost: the runner has not been told yet.
        let now = app.clock.now_ms();
        app.store.request_cancel(&row.id, "ann", now).await.unwrap();
        assert!(!fence(&mut line, &of, nonce).await, "{name}");
        line.finish(&of, RunState::Canceled, b"").await;
    }
}

async fn a_second_stream_ends_the_first(place: Place) {
    let server = place.server(Config::default()).await;
    let app = server.app();
    let runner = FakeRunner::register(&server, "one").await;
    let mut first = runner.connect(&server).await;
    let row = enqueue(app, new_run("rone")).await;
    let of = first.lease().await.of.unwrap();
    first.start(&of).await;
    reaches(&app.store, &row.id, RunState::Running).await;
    let mut second = runner.clone().holding(&[&of]).connect(&server).await;
    let status = first.end().await;
    assert_eq!(status.message(), "the runner has connected a second time");
    assert_eq!(second.welcome.kept.len(), 1);
    second.finish(&of, RunState::Succeeded, b"").await;
    assert_eq!(app.hub.len(), 1);
}

/// A lease that was under way while the runner connected again is not waited for.
async fn what_a_runner_forgot_is_not_kept_for_it(place: Place) {
    let server = place.server(Config::default()).await;
    let app = server.app();
    let runner = FakeRunner::register(&server, "one").await;
    let mut first = runner.connect(&server).await;
    enqueue(app, new_run("rone")).await;
    first.lease().await;
    let mut second = runner.connect(&server).await;
    let again = second.lease().await.of.unwrap();
    assert_eq!((again.run.as_str(), again.attempt), ("rone", 2));
}

async fn the_first_message_is_a_hello(place: Place) {
    let server = place.server(Config::default()).await;
    let runner = FakeRunner::register(&server, "one").await;
    let mut line = runner.dial(&server).await.unwrap();
    line.say(From::Heartbeat(Heartbeat::default())).await;
    let status = line.end().await;
    assert_eq!(
        status.message(),
        "the first message of a runner has to be its hello"
    );
    // A message of a newer program is passed by.
    let line = runner.connect(&server).await;
    line.say_nothing().await;
    line.say(From::Heartbeat(Heartbeat {
        held: Vec::new(),
        free_disk: 17,
    }))
    .await;
    eventually("the heartbeat is heard", || async {
        let known = server.app().hub.runner(&runner.id)?;
        (known.free_disk == 17).then_some(())
    })
    .await;
}

/// The database is away for longer than a lease: nothing is acknowledged, nothing is lost, and nobody is blamed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runners_say_waits_for_the_database() {
    let Some(mut place) = Place::postgres() else {
        return;
    };
    let gate = place.gated().await;
    let config = quick();
    let server = place.server(config.clone()).await;
    let app = server.app();
    tokio::time::sleep(config.lease).await;
    let runner = FakeRunner::register(&server, "one").await;
    let mut line = runner.connect(&server).await;
    line.beat(Duration::from_millis(200));
    let row = enqueue(app, new_run("rone")).await;
    let of = line.lease().await.of.unwrap();
    line.holds(&[&of]);
    line.start(&of).await;
    reaches(&app.store, &row.id, RunState::Running).await;
    gate.close();
    let ready = format!("http://{}/readyz", server.addr());
    eventually("it is not ready", || async {
        let answer = reqwest::get(&ready).await.unwrap();
        (answer.status() == 503).then_some(())
    })
    .await;
    line.log(&of, 0, b"while it was away").await;
    line.say_finished(&of, RunState::Succeeded, b"while it was away")
        .await;
    let quiet = tokio::time::timeout(
        config.lease + Duration::from_secs(1),
        line.until("an answer", |message| {
            matches!(message, Message::LogAck(_) | Message::FinishedAck(_)).then_some(())
        }),
    );
    assert!(quiet.await.is_err(), "acknowledged without a database");
    gate.open();
    let stored = line
        .until("the end is acknowledged", |message| match message {
            Message::FinishedAck(ack) => Some(ack.log_offset),
            _ => None,
        })
        .await;
    assert_eq!(stored, 17);
    let row = app.store.run(&row.id).await.unwrap();
    assert_eq!((row.state, row.attempt), (RunState::Succeeded, 1));
    assert_eq!(row.log_length, 17);
    line.holds(&[]);
    enqueue(app, new_run("rtwo")).await;
    line.work().await;
}
