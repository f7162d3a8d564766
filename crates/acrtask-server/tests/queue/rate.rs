//! How many runs a second go through the queue. Ignored: it takes minutes and says something only with `--release`:
//! `cargo test --release -p acrtask-server --test queue rate -- --ignored --nocapture --test-threads 1`.

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
    place::Place,
    support::{FakeRunner, new_run, on_both},
};

/// As many as a large installation has.
const RUNNERS: usize = 1000;
/// Runs that are counted.
const COUNTED: usize = 10_000;

on_both!(
    #[ignore = "a measurement"]
    a_short_queue,
    #[ignore = "a measurement"]
    a_long_queue,
);

async fn a_short_queue(place: Place) {
    // What is done while the runners connect is not counted.
    rate(place, COUNTED * 3).await;
}

async fn a_long_queue(place: Place) {
    rate(place, 100_000).await;
}

async fn rate(place: Place, queued: usize) {
    let server = place.server(Config::default()).await;
    let app = server.app();
    for first in (0..queued).step_by(1000) {
        let runs = (first..(first + 1000).min(queued))
            .map(|n| NewRun {
                warm_key: format!("task-{}", n % 300),
                ..new_run(&format!("r{n}"))
            })
            .collect();
        let now = app.clock.now_ms();
        app.store.enqueue_many(runs, now).await.unwrap();
    }
    let done = Arc::new(AtomicUsize::new(0));
    let begun = Instant::now();
    let mut runners = Vec::new();
    for n in 0..RUNNERS {
        runners.push(FakeRunner::register(&server, &format!("n{n}")).await);
    }
    println!("{RUNNERS} runners registered in {:?}", begun.elapsed());
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for runner in runners {
        let mut line = runner.connect(&server).await;
        line.beat(Duration::from_secs(10));
        let done = done.clone();
        tasks.spawn(async move {
            loop {
                line.work().await;
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    println!("connected in {:?}", begun.elapsed());
    let (begun, before) = (Instant::now(), done.load(Ordering::Relaxed));
    while done.load(Ordering::Relaxed) < (before + COUNTED).min(queued) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let count = done.load(Ordering::Relaxed) - before;
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{count} of {queued} runs in {seconds:.2} s: {:.0} a second",
        count as f64 / seconds
    );
    tasks.abort_all();
}
