//! Measurement of the runs per second that the queue handles.
//!
//! The tests are ignored, because they take minutes and need `--release`:
//! `cargo test --release -p acrtask-server --test queue rate -- --ignored --nocapture
//! --test-threads 1`.

#![allow(clippy::print_stdout, reason = "a measurement")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use acrtask_server::Config;
use acrtask_store::NewRun;

use crate::{
    support::{FakeRunner, new_run, on_both},
    test_db::TestDb,
};

/// Number of runners of a large installation.
const RUNNERS: usize = 1000;
/// Number of measured runs.
const COUNTED: usize = 10_000;

on_both!(
    #[ignore = "a measurement"]
    short_queue_rate,
    #[ignore = "a measurement"]
    long_queue_rate,
);

async fn short_queue_rate(db: TestDb) {
    // Adds runs for the time in which the runners connect, which is not measured.
    measure_rate(db, COUNTED * 3).await;
}

async fn long_queue_rate(db: TestDb) {
    measure_rate(db, 100_000).await;
}

async fn measure_rate(db: TestDb, queued: usize) {
    let server = db.start_server(Config::default()).await;
    let app = server.app();
    for first in (0..queued).step_by(1000) {
        let runs = (first..(first + 1000).min(queued))
            .map(|n| NewRun {
                affinity_key: format!("task-{}", n % 300),
                ..new_run(&format!("r{n}"))
            })
            .collect();
        let now = app.clock.now_ms();
        app.store.enqueue_many(runs, now).await.unwrap();
    }
    let done = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let mut runners = Vec::new();
    for n in 0..RUNNERS {
        runners.push(FakeRunner::register(&server, &format!("n{n}")).await);
    }
    println!("{RUNNERS} runners registered in {:?}", started.elapsed());
    let started = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for runner in runners {
        let mut stream = runner.connect(&server).await;
        stream.start_heartbeats(Duration::from_secs(10));
        let done = done.clone();
        tasks.spawn(async move {
            loop {
                stream.execute_next_lease().await;
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    println!("connected in {:?}", started.elapsed());
    let (started, before) = (Instant::now(), done.load(Ordering::Relaxed));
    while done.load(Ordering::Relaxed) < (before + COUNTED).min(queued) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let count = done.load(Ordering::Relaxed) - before;
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{count} of {queued} runs in {seconds:.2} s: {:.0} a second",
        count as f64 / seconds
    );
    tasks.abort_all();
}
