//! Assignment of runs to runners: requirements, priorities, groups, cancellation and draining.

use std::time::{Duration, Instant};

use acrtask_api::task::{Concurrency, QueueOptions};
use acrtask_model::{RunId, RunState};
use acrtask_proto::runner::{Draining, from_runner::Message as From, to_runner::Message};
use acrtask_server::Config;
use acrtask_store::{Hint, NewRun};

use crate::{
    support::{
        FakeRunner, create_token, enqueue, new_run, on_both, quick_config, read_metric, to_labels,
        wait_for_state, wait_until,
    },
    test_db::TestDb,
};

on_both!(
    run_is_leased_executed_and_counted_once,
    run_without_a_hint_is_found_by_polling,
    runs_are_leased_by_priority_and_then_by_age,
    run_is_leased_only_to_a_matching_runner,
    runner_gets_one_run_per_slot,
    new_run_cancels_superseded_runs,
    concurrency_group_limits_its_active_runs,
    cancellation_without_a_hint_reaches_the_runner,
    declined_lease_is_offered_to_another_runner,
    draining_runner_gets_no_new_run,
    many_runners_execute_many_runs,
);

async fn run_is_leased_executed_and_counted_once(db: TestDb) {
    let server = db.start_server(Config::default()).await;
    let store = &server.app().store;
    let runner = FakeRunner::register(&server, "one").await;
    let mut stream = runner.connect(&server).await;
    let run = NewRun {
        traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
        ..new_run("rone")
    };
    let requested = Instant::now();
    let row = enqueue(server.app(), run).await;
    assert_eq!(row.state, RunState::Queued);
    let lease = stream.receive_lease().await;
    let delay = requested.elapsed();
    assert!(delay < Duration::from_millis(500), "{delay:?}");
    let attempt = lease.of.unwrap();
    assert_eq!((attempt.run.as_str(), attempt.attempt), ("rone", 1));
    assert!(lease.traceparent.starts_with("00-0af7"));
    let spec: acrtask_api::spec::RunSpec = serde_json::from_str(&lease.spec_json).unwrap();
    assert_eq!(spec, row.spec);
    let leased = wait_for_state(store, &row.id, RunState::Leased).await;
    assert_eq!(leased.runner_id.as_deref(), Some(runner.id.as_str()));
    stream.send_started(&attempt).await;
    wait_for_state(store, &row.id, RunState::Running).await;
    assert_eq!(server.app().hub.runner(&runner.id).unwrap().busy, 1);
    stream.send_log(&attempt, 0, b"one\n").await;
    assert_eq!(stream.receive_log_ack(&attempt).await, 4);
    stream.send_log(&attempt, 4, b"two\n").await;
    assert_eq!(stream.receive_log_ack(&attempt).await, 8);
    let stored = stream
        .finish_attempt(&attempt, RunState::Succeeded, b"one\ntwo\n")
        .await;
    assert_eq!(stored, 8);
    let row = store.run(&row.id).await.unwrap();
    assert_eq!(row.state, RunState::Succeeded);
    assert_eq!(row.result.unwrap().cached_vertices, 3);
    assert_eq!(server.app().hub.runner(&runner.id).unwrap().busy, 0);
    // The server acknowledges a repeated report, but counts the run once.
    let stored = stream
        .finish_attempt(&attempt, RunState::Succeeded, b"one\ntwo\n")
        .await;
    assert_eq!(stored, 8);
    for (name, count) in [
        ("acrtask_runs_finished_total{state=\"succeeded\"}", 1.0),
        ("acrtask_log_bytes_total", 8.0),
        ("acrtask_build_vertices_cached_total", 3.0),
        ("acrtask_run_wait_seconds_count", 1.0),
        ("acrtask_run_seconds_count", 1.0),
        ("acrtask_leases_total", 1.0),
    ] {
        assert_eq!(read_metric(&server, name).await, Some(count), "{name}");
    }
}

async fn run_without_a_hint_is_found_by_polling(db: TestDb) {
    let server = db.start_server(Config::default()).await;
    let app = server.app();
    let runner = FakeRunner::register(&server, "one").await;
    let mut stream = runner.connect(&server).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    for name in ["ra", "rb"] {
        // Enqueues without sending a hint.
        let now = app.clock.now_ms();
        app.store.enqueue(new_run(name), now).await.unwrap();
        let requested = Instant::now();
        assert_eq!(stream.execute_next_lease().await.run, name);
        let delay = requested.elapsed();
        assert!(delay < app.config.poll * 2, "{delay:?}");
    }
}

async fn runs_are_leased_by_priority_and_then_by_age(db: TestDb) {
    let server = db.start_server(Config::default()).await;
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
    let mut stream = runner.connect(&server).await;
    let mut order = Vec::new();
    for _ in 0..5 {
        order.push(stream.execute_next_lease().await.run);
    }
    assert_eq!(order, ["rc", "re", "ra", "rb", "rd"]);
}

async fn run_is_leased_only_to_a_matching_runner(db: TestDb) {
    let server = db.start_server(Config::default()).await;
    let plain = FakeRunner::register(&server, "plain").await;
    let of_big = [("disk", "nvme"), ("zone", "a")];
    let token = create_token(&server, Some("big"), &of_big).await;
    let mut big = FakeRunner::register_with_token(&server, "big", &token)
        .await
        .unwrap();
    big.hello.platforms = vec!["linux/arm64".into(), "linux/amd64".into()];
    big.hello.labels = to_labels(&of_big);
    let mut plain_stream = plain.connect(&server).await;
    let mut big_stream = big.connect(&server).await;
    let queue = |pool: &str, wanted: &[(&str, &str)]| QueueOptions {
        pool: Some(pool.to_owned()).filter(|pool| !pool.is_empty()),
        labels: to_labels(wanted).into_iter().collect(),
        ..QueueOptions::default()
    };
    let run = |name: &str, queue: QueueOptions, platform: &str| NewRun {
        queue,
        platform: platform.into(),
        ..new_run(name)
    };
    let app = server.app();
    // No runner has the label, the platform or the pool of these runs. They wait and block no other
    // run.
    enqueue(app, run("rx1", queue("big", &[("disk", "tape")]), "")).await;
    enqueue(app, run("rx2", queue("", &[]), "linux/arm64")).await;
    enqueue(app, run("rx3", queue("nowhere", &[]), "")).await;
    let arm = queue("big", &[("disk", "nvme")]);
    enqueue(app, run("rbig", arm, "linux/arm64")).await;
    enqueue(app, run("rplain", queue("", &[]), "linux/amd64")).await;
    assert_eq!(plain_stream.execute_next_lease().await.run, "rplain");
    assert_eq!(big_stream.execute_next_lease().await.run, "rbig");
    plain_stream.assert_no_lease().await;
    for name in ["rx1", "rx2", "rx3"] {
        let row = app.store.run(&RunId::new(name).unwrap()).await.unwrap();
        assert_eq!(row.state, RunState::Queued, "{name}");
    }
}

async fn runner_gets_one_run_per_slot(db: TestDb) {
    let server = db.start_server(Config::default()).await;
    let runner = FakeRunner::register(&server, "one").await.with_slots(3);
    let mut stream = runner.connect(&server).await;
    for n in 0..5 {
        enqueue(server.app(), new_run(&format!("r{n}"))).await;
    }
    let mut attempts = Vec::new();
    for _ in 0..3 {
        attempts.push(stream.receive_lease().await.of.unwrap());
    }
    stream.assert_no_lease().await;
    stream.send_started(&attempts[1]).await;
    stream
        .finish_attempt(&attempts[1], RunState::Failed, b"")
        .await;
    stream.receive_lease().await;
    stream.assert_no_lease().await;
    assert_eq!(server.app().hub.runner(&runner.id).unwrap().busy, 3);
}

fn new_grouped_run(name: &str, max: u32, cancel_superseded: bool) -> NewRun {
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

async fn new_run_cancels_superseded_runs(db: TestDb) {
    let server = db.start_server(Config::default()).await;
    let app = server.app();
    let runner = FakeRunner::register(&server, "one").await.with_slots(4);
    let mut stream = runner.connect(&server).await;
    let first = enqueue(app, new_grouped_run("ra", 1, true)).await;
    let attempt = stream.receive_lease().await.of.unwrap();
    stream.send_started(&attempt).await;
    wait_for_state(&app.store, &first.id, RunState::Running).await;
    let second = enqueue(app, new_grouped_run("rb", 1, true)).await;
    let third = enqueue(app, new_grouped_run("rc", 1, true)).await;
    wait_for_state(&app.store, &second.id, RunState::Canceled).await;
    let reason = stream
        .receive("a cancel", |message| match message {
            Message::Cancel(cancel) if cancel.of.as_ref() == Some(&attempt) => {
                Some(cancel.reason.clone())
            }
            _ => None,
        })
        .await;
    assert!(!reason.is_empty());
    stream.assert_no_lease().await;
    stream
        .finish_attempt(&attempt, RunState::Canceled, b"")
        .await;
    let row = app.store.run(&first.id).await.unwrap();
    assert_eq!(row.state, RunState::Canceled);
    assert_eq!(stream.execute_next_lease().await.run, "rc");
    wait_for_state(&app.store, &third.id, RunState::Succeeded).await;
}

async fn concurrency_group_limits_its_active_runs(db: TestDb) {
    let server = db.start_server(Config::default()).await;
    let app = server.app();
    let runner = FakeRunner::register(&server, "one").await.with_slots(9);
    let mut stream = runner.connect(&server).await;
    for name in ["ra", "rb", "rc", "rd"] {
        enqueue(app, new_grouped_run(name, 2, false)).await;
    }
    let mut active = vec![stream.receive_lease().await.of.unwrap()];
    active.push(stream.receive_lease().await.of.unwrap());
    stream.assert_no_lease().await;
    for _ in 0..2 {
        let attempt = active.remove(0);
        stream.send_started(&attempt).await;
        stream.finish_attempt(&attempt, RunState::Failed, b"").await;
        active.push(stream.receive_lease().await.of.unwrap());
    }
    let names: Vec<&str> = active.iter().map(|attempt| attempt.run.as_str()).collect();
    assert_eq!(names, ["rc", "rd"]);
}

async fn cancellation_without_a_hint_reaches_the_runner(db: TestDb) {
    let server = db.start_server(Config::default()).await;
    let app = server.app();
    let runner = FakeRunner::register(&server, "one").await;
    let mut stream = runner.connect(&server).await;
    let row = enqueue(app, new_run("rone")).await;
    let attempt = stream.receive_lease().await.of.unwrap();
    stream.send_started(&attempt).await;
    wait_for_state(&app.store, &row.id, RunState::Running).await;
    // Requests the cancellation without sending a hint.
    let requested = Instant::now();
    let now = app.clock.now_ms();
    app.store
        .request_cancel(&row.id, "ann wants its end", now)
        .await
        .unwrap();
    let reason = stream
        .receive("a cancel", |message| match message {
            Message::Cancel(cancel) => Some(cancel.reason.clone()),
            _ => None,
        })
        .await;
    assert!(requested.elapsed() < Duration::from_secs(10));
    assert_eq!(reason, "ann wants its end");
    // The runner may push nothing from now on.
    stream
        .send(From::Fence(acrtask_proto::runner::Fence {
            of: Some(attempt.clone()),
            nonce: 7,
        }))
        .await;
    let granted = stream
        .receive("a response", |message| match message {
            Message::Fence(response) if response.nonce == 7 => Some(response.granted),
            _ => None,
        })
        .await;
    assert!(!granted);
    stream
        .finish_attempt(&attempt, RunState::Canceled, b"")
        .await;
    let row = app.store.run(&row.id).await.unwrap();
    assert_eq!(row.state, RunState::Canceled);
    assert_eq!(row.reason.as_deref(), Some("ann wants its end"));
}

async fn declined_lease_is_offered_to_another_runner(db: TestDb) {
    let server = db.start_server(Config::default()).await;
    let app = server.app();
    let full = FakeRunner::register(&server, "full").await;
    let mut full_stream = full.connect(&server).await;
    let row = enqueue(app, new_run("rone")).await;
    let attempt = full_stream.receive_lease().await.of.unwrap();
    let spare = FakeRunner::register(&server, "spare").await;
    let mut spare_stream = spare.connect(&server).await;
    full_stream.send_declined(&attempt, "no disk").await;
    let next = spare_stream.receive_lease().await.of.unwrap();
    assert_eq!((next.run.as_str(), next.attempt), ("rone", 2));
    // The first runner can no longer change the run.
    full_stream.send_started(&attempt).await;
    full_stream.receive_abandon(&attempt).await;
    spare_stream.send_started(&next).await;
    spare_stream
        .finish_attempt(&next, RunState::Succeeded, b"")
        .await;
    wait_for_state(&app.store, &row.id, RunState::Succeeded).await;
}

async fn draining_runner_gets_no_new_run(db: TestDb) {
    let server = db
        .start_server(Config {
            heartbeat: Duration::from_millis(200),
            ..Config::default()
        })
        .await;
    let app = server.app();
    let one = FakeRunner::register(&server, "one").await.with_slots(2);
    let mut stream = one.connect(&server).await;
    enqueue(app, new_run("ra")).await;
    let attempt = stream.receive_lease().await.of.unwrap();
    stream.send_started(&attempt).await;
    // Simulates a drain request to another server.
    app.store.set_draining(&one.id, true).await.unwrap();
    stream
        .receive("a drain", |message| {
            matches!(message, Message::Drain(_)).then_some(())
        })
        .await;
    enqueue(app, new_run("rb")).await;
    stream.assert_no_lease().await;
    stream
        .finish_attempt(&attempt, RunState::Succeeded, b"")
        .await;
    stream.assert_no_lease().await;
    // The second runner requests to drain by sending a message.
    let two = FakeRunner::register(&server, "two").await;
    let mut stream = two.connect(&server).await;
    assert_eq!(stream.execute_next_lease().await.run, "rb");
    stream.send(From::Draining(Draining {})).await;
    wait_until("the runner drains", || async {
        app.hub.runner(&two.id).filter(|runner| runner.draining)
    })
    .await;
    enqueue(app, new_run("rc")).await;
    stream.assert_no_lease().await;
}

async fn many_runners_execute_many_runs(db: TestDb) {
    let server = db.start_server(quick_config()).await;
    let app = server.app();
    let mut tasks = tokio::task::JoinSet::new();
    let total = 300;
    for n in 0..8 {
        let runner = FakeRunner::register(&server, &format!("n{n}")).await;
        let mut stream = runner.with_slots(2).connect(&server).await;
        stream.start_heartbeats(Duration::from_millis(300));
        tasks.spawn(async move {
            let mut done = 0;
            while let Ok(attempt) =
                tokio::time::timeout(Duration::from_secs(2), stream.execute_next_lease()).await
            {
                stream.set_active(&[&attempt]);
                done += 1;
            }
            done
        });
    }
    let runs = (0..total)
        .map(|n| NewRun {
            affinity_key: format!("task-{}", n % 5),
            ..new_run(&format!("r{n}"))
        })
        .collect();
    app.store
        .enqueue_many(runs, app.clock.now_ms())
        .await
        .unwrap();
    app.store.send_hints(&[Hint::Enqueued]).await.unwrap();
    app.wake.notify_one();
    let done: Vec<usize> = tasks.join_all().await;
    assert_eq!(done.iter().sum::<usize>(), total);
    let left = app.store.queue_depth().await.unwrap();
    assert!(left.is_empty(), "{left:?}");
    let now = app.clock.now_ms();
    assert_eq!(app.store.unaccounted_triggers(now, 0).await.unwrap(), []);
}
