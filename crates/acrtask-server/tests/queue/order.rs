//! Who gets which run, and when.

use std::time::{Duration, Instant};

use acrtask_api::task::{Concurrency, QueueOptions};
use acrtask_model::{RunId, RunState};
use acrtask_proto::runner::{Draining, from_runner::Message as From, to_runner::Message};
use acrtask_server::Config;
use acrtask_store::{Hint, NewRun};

use crate::{
    place::Place,
    support::{
        FakeRunner, enqueue, eventually, labels, metric, new_run, on_both, quick, reaches, token,
    },
};

on_both!(
    a_run_goes_its_way,
    a_lost_hint_costs_one_poll,
    first_come_is_first_served_within_a_priority,
    a_run_goes_only_where_it_may,
    a_runner_gets_as_many_as_it_has_slots,
    a_new_run_cancels_those_it_supersedes,
    a_group_takes_turns,
    a_cancel_reaches_the_runner_within_a_second,
    a_declined_lease_goes_to_another_runner,
    a_runner_that_drains_gets_nothing_new,
    many_runs_and_many_runners,
);

async fn a_run_goes_its_way(place: Place) {
    let server = place.server(Config::default()).await;
    let store = &server.app().store;
    let runner = FakeRunner::register(&server, "one").await;
    let mut line = runner.connect(&server).await;
    let run = NewRun {
        traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
        ..new_run("rone")
    };
    let asked = Instant::now();
    let row = enqueue(server.app(), run).await;
    assert_eq!(row.state, RunState::Queued);
    let lease = line.lease().await;
    let took = asked.elapsed();
    assert!(took < Duration::from_millis(500), "{took:?}");
    let of = lease.of.unwrap();
    assert_eq!((of.run.as_str(), of.attempt), ("rone", 1));
    assert!(lease.traceparent.starts_with("00-0af7"));
    let spec: acrtask_api::spec::RunSpec = serde_json::from_str(&lease.spec_json).unwrap();
    assert_eq!(spec, row.spec);
    let leased = reaches(store, &row.id, RunState::Leased).await;
    assert_eq!(leased.runner_id.as_deref(), Some(runner.id.as_str()));
    line.start(&of).await;
    reaches(store, &row.id, RunState::Running).await;
    assert_eq!(server.app().hub.runner(&runner.id).unwrap().busy, 1);
    line.log(&of, 0, b"one\n").await;
    assert_eq!(line.log_ack(&of).await, 4);
    line.log(&of, 4, b"two\n").await;
    assert_eq!(line.log_ack(&of).await, 8);
    let stored = line.finish(&of, RunState::Succeeded, b"one\ntwo\n").await;
    assert_eq!(stored, 8);
    let row = store.run(&row.id).await.unwrap();
    assert_eq!(row.state, RunState::Succeeded);
    assert_eq!(row.result.unwrap().cached_vertices, 3);
    assert_eq!(server.app().hub.runner(&runner.id).unwrap().busy, 0);
    // Said again, it is acknowledged again, and counted once.
    let stored = line.finish(&of, RunState::Succeeded, b"one\ntwo\n").await;
    assert_eq!(stored, 8);
    for (line, count) in [
        ("acrtask_runs_finished_total{state=\"succeeded\"}", 1.0),
        ("acrtask_log_bytes_total", 8.0),
        ("acrtask_build_vertices_cached_total", 3.0),
        ("acrtask_run_wait_seconds_count", 1.0),
        ("acrtask_run_seconds_count", 1.0),
        ("acrtask_leases_total", 1.0),
    ] {
        assert_eq!(metric(&server, line).await, Some(count), "{line}");
    }
}

async fn a_lost_hint_costs_one_poll(place: Place) {
    let server = place.server(Config::default()).await;
    let app = server.app();
    let runner = FakeRunner::register(&server, "one").await;
    let mut line = runner.connect(&server).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    for name in ["ra", "rb"] {
        // Nobody is told of it.
        let now = app.clock.now_ms();
        app.store.enqueue(new_run(name), now).await.unwrap();
        let asked = Instant::now();
        assert_eq!(line.work().await.run, name);
        let took = asked.elapsed();
        assert!(took < app.config.poll * 2, "{took:?}");
    }
}

async fn first_come_is_first_served_within_a_priority(place: Place) {
    let server = place.server(Config::default()).await;
    for (name, priority) in [("ra", 0), ("rb", 0), ("rc", 1), ("rd", -1), ("re", 1)] {
        let queue = QueueOptions {
            priority,
            ..QueueOptions::default()
        };
        enqueue(
            server.app(),
            NewRun {
                queue,
                ..new_run(name)
            },
        )
        .await;
    }
    let runner = FakeRunner::register(&server, "one").await;
    let mut line = runner.connect(&server).await;
    let mut order = Vec::new();
    for _ in 0..5 {
        order.push(line.work().await.run);
    }
    assert_eq!(order, ["rc", "re", "ra", "rb", "rd"]);
}

async fn a_run_goes_only_where_it_may(place: Place) {
    let server = place.server(Config::default()).await;
    let plain = FakeRunner::register(&server, "plain").await;
    let of_big = [("disk", "nvme"), ("zone", "a")];
    let token = token(&server, Some("big"), &of_big).await;
    let mut big = FakeRunner::register_with(&server, "big", &token)
        .await
        .unwrap();
    big.hello.platforms = vec!["linux/arm64".into(), "linux/amd64".into()];
    big.hello.labels = labels(&of_big);
    let mut plain_line = plain.connect(&server).await;
    let mut big_line = big.connect(&server).await;
    let queue = |pool: &str, wanted: &[(&str, &str)]| QueueOptions {
        pool: Some(pool.to_owned()).filter(|pool| !pool.is_empty()),
        labels: labels(wanted).into_iter().collect(),
        ..QueueOptions::default()
    };
    let run = |name: &str, queue: QueueOptions, platform: &str| NewRun {
        queue,
        platform: platform.into(),
        ..new_run(name)
    };
    let app = server.app();
    // Nobody has the label, the platform or the pool: these wait, and hold nothing up.
    enqueue(app, run("rx1", queue("big", &[("disk", "tape")]), "")).await;
    enqueue(app, run("rx2", queue("", &[]), "linux/arm64")).await;
    enqueue(app, run("rx3", queue("nowhere", &[]), "")).await;
    let arm = queue("big", &[("disk", "nvme")]);
    enqueue(app, run("rbig", arm, "linux/arm64")).await;
    enqueue(app, run("rplain", queue("", &[]), "linux/amd64")).await;
    assert_eq!(plain_line.work().await.run, "rplain");
    assert_eq!(big_line.work().await.run, "rbig");
    plain_line.no_lease().await;
    for name in ["rx1", "rx2", "rx3"] {
        let row = app.store.run(&RunId::new(name).unwrap()).await.unwrap();
        assert_eq!(row.state, RunState::Queued, "{name}");
    }
}

async fn a_runner_gets_as_many_as_it_has_slots(place: Place) {
    let server = place.server(Config::default()).await;
    let runner = FakeRunner::register(&server, "one").await.slots(3);
    let mut line = runner.connect(&server).await;
    for n in 0..5 {
        enqueue(server.app(), new_run(&format!("r{n}"))).await;
    }
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(line.lease().await.of.unwrap());
    }
    line.no_lease().await;
    line.start(&held[1]).await;
    line.finish(&held[1], RunState::Failed, b"").await;
    line.lease().await;
    line.no_lease().await;
    assert_eq!(server.app().hub.runner(&runner.id).unwrap().busy, 3);
}

fn grouped(name: &str, max: u32, cancel_superseded: bool) -> NewRun {
    NewRun {
        queue: QueueOptions {
            concurrency: Some(Concurrency {
                group: Some("deploy".into()),
                max,
                cancel_superseded,
            }),
            ..QueueOptions::default()
        },
        ..new_run(name)
    }
}

async fn a_new_run_cancels_those_it_supersedes(place: Place) {
    let server = place.server(Config::default()).await;
    let app = server.app();
    let runner = FakeRunner::register(&server, "one").await.slots(4);
    let mut line = runner.connect(&server).await;
    let first = enqueue(app, grouped("ra", 1, true)).await;
    let of = line.lease().await.of.unwrap();
    line.start(&of).await;
    reaches(&app.store, &first.id, RunState::Running).await;
    let second = enqueue(app, grouped("rb", 1, true)).await;
    let third = enqueue(app, grouped("rc", 1, true)).await;
    reaches(&app.store, &second.id, RunState::Canceled).await;
    let reason = line
        .until("a cancel", |message| match message {
            Message::Cancel(cancel) if cancel.of.as_ref() == Some(&of) => {
                Some(cancel.reason.clone())
            }
            _ => None,
        })
        .await;
    assert!(!reason.is_empty());
    line.no_lease().await;
    line.finish(&of, RunState::Canceled, b"").await;
    let row = app.store.run(&first.id).await.unwrap();
    assert_eq!(row.state, RunState::Canceled);
    assert_eq!(line.work().await.run, "rc");
    reaches(&app.store, &third.id, RunState::Succeeded).await;
}

async fn a_group_takes_turns(place: Place) {
    let server = place.server(Config::default()).await;
    let app = server.app();
    let runner = FakeRunner::register(&server, "one").await.slots(9);
    let mut line = runner.connect(&server).await;
    for name in ["ra", "rb", "rc", "rd"] {
        enqueue(app, grouped(name, 2, false)).await;
    }
    let mut turns = vec![line.lease().await.of.unwrap()];
    turns.push(line.lease().await.of.unwrap());
    line.no_lease().await;
    for _ in 0..2 {
        let of = turns.remove(0);
        line.start(&of).await;
        line.finish(&of, RunState::Failed, b"").await;
        turns.push(line.lease().await.of.unwrap());
    }
    let names: Vec<&str> = turns.iter().map(|of| of.run.as_str()).collect();
    assert_eq!(names, ["rc", "rd"]);
}

async fn a_cancel_reaches_the_runner_within_a_second(place: Place) {
    let server = place.server(Config::default()).await;
    let app = server.app();
    let runner = FakeRunner::register(&server, "one").await;
    let mut line = runner.connect(&server).await;
    let row = enqueue(app, new_run("rone")).await;
    let of = line.lease().await.of.unwrap();
    line.start(&of).await;
    reaches(&app.store, &row.id, RunState::Running).await;
    // With no hint at all.
    let asked = Instant::now();
    let now = app.clock.now_ms();
    app.store
        .request_cancel(&row.id, "ann wants its end", now)
        .await
        .unwrap();
    let reason = line
        .until("a cancel", |message| match message {
            Message::Cancel(cancel) => Some(cancel.reason.clone()),
            _ => None,
        })
        .await;
    assert!(asked.elapsed() < Duration::from_secs(1));
    assert_eq!(reason, "ann wants its end");
    // It pushes nothing from now on.
    line.say(From::Fence(acrtask_proto::runner::Fence {
        of: Some(of.clone()),
        nonce: 7,
    }))
    .await;
    let granted = line
        .until("an answer", |message| match message {
            Message::Fence(answer) if answer.nonce == 7 => Some(answer.granted),
            _ => None,
        })
        .await;
    assert!(!granted);
    line.finish(&of, RunState::Canceled, b"").await;
    let row = app.store.run(&row.id).await.unwrap();
    assert_eq!(row.state, RunState::Canceled);
    assert_eq!(row.reason.as_deref(), Some("ann wants its end"));
}

async fn a_declined_lease_goes_to_another_runner(place: Place) {
    let server = place.server(Config::default()).await;
    let app = server.app();
    let full = FakeRunner::register(&server, "full").await;
    let mut full_line = full.connect(&server).await;
    let row = enqueue(app, new_run("rone")).await;
    let of = full_line.lease().await.of.unwrap();
    let spare = FakeRunner::register(&server, "spare").await;
    let mut spare_line = spare.connect(&server).await;
    full_line.decline(&of, "no disk").await;
    let next = spare_line.lease().await.of.unwrap();
    assert_eq!((next.run.as_str(), next.attempt), ("rone", 2));
    // The first one has no say any more.
    full_line.start(&of).await;
    full_line.abandoned(&of).await;
    spare_line.start(&next).await;
    spare_line.finish(&next, RunState::Succeeded, b"").await;
    reaches(&app.store, &row.id, RunState::Succeeded).await;
}

async fn a_runner_that_drains_gets_nothing_new(place: Place) {
    let server = place
        .server(Config {
            heartbeat: Duration::from_millis(200),
            ..Config::default()
        })
        .await;
    let app = server.app();
    let one = FakeRunner::register(&server, "one").await.slots(2);
    let mut line = one.connect(&server).await;
    enqueue(app, new_run("ra")).await;
    let of = line.lease().await.of.unwrap();
    line.start(&of).await;
    // As another server does it.
    app.store.set_draining(&one.id, true).await.unwrap();
    line.until("a drain", |message| {
        matches!(message, Message::Drain(_)).then_some(())
    })
    .await;
    enqueue(app, new_run("rb")).await;
    line.no_lease().await;
    line.finish(&of, RunState::Succeeded, b"").await;
    line.no_lease().await;
    // Another one says so itself.
    let two = FakeRunner::register(&server, "two").await;
    let mut line = two.connect(&server).await;
    assert_eq!(line.work().await.run, "rb");
    line.say(From::Draining(Draining {})).await;
    eventually("it drains", || async {
        app.hub.runner(&two.id).filter(|runner| runner.draining)
    })
    .await;
    enqueue(app, new_run("rc")).await;
    line.no_lease().await;
}

async fn many_runs_and_many_runners(place: Place) {
    let server = place.server(quick()).await;
    let app = server.app();
    let mut tasks = tokio::task::JoinSet::new();
    let total = 300;
    for n in 0..8 {
        let runner = FakeRunner::register(&server, &format!("n{n}")).await;
        let mut line = runner.slots(2).connect(&server).await;
        line.beat(Duration::from_millis(300));
        tasks.spawn(async move {
            let mut done = 0;
            while let Ok(of) = tokio::time::timeout(Duration::from_secs(2), line.work()).await {
                line.holds(&[&of]);
                done += 1;
            }
            done
        });
    }
    let runs = (0..total)
        .map(|n| NewRun {
            warm_key: format!("task-{}", n % 5),
            ..new_run(&format!("r{n}"))
        })
        .collect();
    app.store
        .enqueue_many(runs, app.clock.now_ms())
        .await
        .unwrap();
    app.store.hint(&[Hint::Enqueued]).await.unwrap();
    app.wake.notify_one();
    let done: Vec<usize> = tasks.join_all().await;
    assert_eq!(done.iter().sum::<usize>(), total);
    let left = app.store.queue_depth().await.unwrap();
    assert!(left.is_empty(), "{left:?}");
    let now = app.clock.now_ms();
    assert_eq!(app.store.unaccounted(now, 0).await.unwrap(), []);
}
