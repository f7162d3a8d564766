//! Load generator for a server: the part of `cargo xtask bench` that needs more than the program
//! itself. Prints one JSON object.
//!
//! The runners are fakes that send the messages of a real runner and execute nothing. The server
//! and its database are real.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a tool for measuring"
)]

mod api;
mod deliver;
mod fleet;
mod rebuild;
mod watch;

use std::time::{Duration, Instant};

use acrtask_api::{
    spec::{RunSource, RunSpec},
    task::QueueOptions,
};
use acrtask_model::{RunId, TrustDomain};
use acrtask_store::{NewRun, Store};
use clap::{Parser, Subcommand};
use serde_json::json;

#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Adds queued runs to a database that no server has open.
    Fill {
        #[arg(long)]
        database: String,
        #[arg(long)]
        runs: usize,
    },
    /// Creates an empty database on a PostgreSQL server.
    CreateDatabase {
        #[arg(long)]
        postgres: String,
        #[arg(long)]
        name: String,
    },
    /// Claims runs with the simplest statements that the database offers, one transaction each.
    Bare {
        #[arg(long)]
        database: String,
        #[arg(long)]
        claims: u32,
    },
    /// Connects runners that finish every run at once, until `runs` leases were dispatched. The
    /// `first` leases are not counted, because runners still connect during them.
    Dispatch {
        #[arg(long)]
        server: String,
        #[arg(long)]
        token: String,
        #[arg(long, default_value_t = 1000)]
        runners: usize,
        #[arg(long)]
        first: usize,
        #[arg(long)]
        runs: usize,
    },
    /// Connects runners that do nothing and reports when they are connected. Ends with standard
    /// input.
    Idle {
        #[arg(long)]
        server: String,
        #[arg(long)]
        token: String,
        #[arg(long, default_value_t = 1000)]
        runners: usize,
    },
    /// Starts one run after the other at a real service. Reports how long each waited for its first
    /// step.
    Latency {
        #[arg(long)]
        server: String,
        #[arg(long)]
        token: String,
        #[arg(long)]
        image: String,
        #[arg(long, default_value_t = 100)]
        runs: usize,
    },
    /// Sends signed pushes to a service at a steady rate. Reports how long each waited for its
    /// response.
    Deliver {
        #[arg(long)]
        server: String,
        #[arg(long)]
        token: String,
        #[arg(long, default_value_t = 200)]
        rate: u32,
        #[arg(long, default_value_t = 20)]
        seconds: u32,
    },
    /// Sends one signed push after the other to a real service. Reports how long each waited for
    /// the first step of its run.
    FirstStep {
        #[arg(long)]
        server: String,
        #[arg(long)]
        token: String,
        #[arg(long)]
        image: String,
        #[arg(long, default_value_t = 50)]
        runs: usize,
    },
    /// Adds due watches of base tags to a database that no server has open, and pushes the tags to
    /// the registry.
    FillWatches {
        #[arg(long)]
        database: String,
        #[arg(long)]
        registry: String,
        #[arg(long, default_value_t = 100_000)]
        watches: usize,
    },
    /// Waits until a server has polled this number of base tags. Reports the time since the first
    /// poll.
    Watch {
        #[arg(long)]
        server: String,
        #[arg(long, default_value_t = 100_000)]
        watches: u64,
    },
    /// Adds tasks with images to a database that no server has open.
    FillTasks {
        #[arg(long)]
        database: String,
        #[arg(long)]
        registry: String,
        #[arg(long)]
        image: String,
        #[arg(long, default_value_t = 10_000)]
        tasks: usize,
    },
    /// Pushes a base repeatedly. Reports how long the first step of each rebuild waited beyond the
    /// settling time.
    Rebuild {
        #[arg(long)]
        server: String,
        #[arg(long)]
        token: String,
        #[arg(long)]
        registry: String,
        #[arg(long, default_value_t = 20)]
        rounds: usize,
    },
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let result = match Arguments::parse().command {
        Command::Fill { database, runs } => fill_queue(&database, runs).await,
        Command::CreateDatabase { postgres, name } => {
            let url = acrtask_store::testing::create_database(&postgres, &name)
                .await
                .unwrap();
            json!({ "url": url })
        }
        Command::Bare { database, claims } => {
            let taken = acrtask_store::testing::bare_claims(&database, claims)
                .await
                .unwrap();
            rate(claims as usize, taken)
        }
        Command::Dispatch {
            server,
            token,
            runners,
            first,
            runs,
        } => {
            let keys = fleet::register(&server, &token, runners).await;
            let taken = fleet::measure_dispatch(&server, keys, first, runs).await;
            rate(runs, taken)
        }
        Command::Idle {
            server,
            token,
            runners,
        } => {
            let keys = fleet::register(&server, &token, runners).await;
            fleet::run_idle(&server, keys).await;
            return;
        }
        Command::Latency {
            server,
            token,
            image,
            runs,
        } => api::measure_latency(&server, &token, &image, runs).await,
        Command::Deliver {
            server,
            token,
            rate,
            seconds,
        } => deliver::send_steadily(&server, &token, rate, seconds).await,
        Command::FirstStep {
            server,
            token,
            image,
            runs,
        } => deliver::measure_first_step(&server, &token, &image, runs).await,
        Command::FillWatches {
            database,
            registry,
            watches,
        } => watch::fill_watches(&database, &registry, watches).await,
        Command::Watch { server, watches } => watch::measure_polls(&server, watches).await,
        Command::FillTasks {
            database,
            registry,
            image,
            tasks,
        } => rebuild::fill_tasks(&database, &registry, &image, tasks).await,
        Command::Rebuild {
            server,
            token,
            registry,
            rounds,
        } => rebuild::measure_rebuilds(&server, &token, &registry, rounds).await,
    };
    println!("{result}");
}

fn rate(count: usize, taken: Duration) -> serde_json::Value {
    json!({ "count": count, "seconds": taken.as_secs_f64(), "per_second": count as f64 / taken.as_secs_f64() })
}

async fn fill_queue(database: &str, runs: usize) -> serde_json::Value {
    let store = Store::open(database).await.unwrap();
    let begun = Instant::now();
    let mut left = runs;
    let mut number = 0_u64;
    while left > 0 {
        let batch: Vec<NewRun> = (0..left.min(1000))
            .map(|_| {
                number += 1;
                new_run(number)
            })
            .collect();
        left -= batch.len();
        let now = jiff::Timestamp::now().as_millisecond();
        store.enqueue_many(batch, now).await.unwrap();
    }
    let taken = begun.elapsed();
    drop(store);
    acrtask_store::testing::run_maintenance(database)
        .await
        .unwrap();
    // Flushes pending writes, which would otherwise slow down the next measurement.
    let synced = std::process::Command::new("sync").status().unwrap();
    assert!(synced.success());
    rate(runs, taken)
}

fn new_run(number: u64) -> NewRun {
    NewRun {
        id: RunId::new(format!("load-{}-{number}", std::process::id())).unwrap(),
        task_id: None,
        task_name: None,
        spec: RunSpec {
            source: RunSource::Cmd {
                line: "reg.example.com/app:1 true".into(),
            },
            ..RunSpec::default()
        },
        queue: QueueOptions::default(),
        platform: String::new(),
        context_id: None,
        secrets: None,
        trigger: "manual".into(),
        requested_by: None,
        rerun_of: None,
        idempotency_key: None,
        timeout_secs: None,
        traceparent: String::new(),
        // As many tasks as a fleet has.
        affinity_key: format!("task-{}", number % 500),
        max_attempts: 3,
        trust_domain: TrustDomain::Local,
        origin: Default::default(),
    }
}
