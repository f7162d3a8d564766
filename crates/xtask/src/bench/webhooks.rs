//! Webhooks under load: time to acknowledge a delivery, and time to the first step of its run.

use anyhow::{Result, ensure};
use serde::Deserialize;

use super::service::wait_for_runner;
use super::{Bench, Row};
use crate::progress;

/// Deliveries per second, and the duration in seconds.
const RATE: u32 = 200;
const SECONDS: u32 = 30;

/// Milliseconds.
#[derive(Debug, Deserialize)]
struct Waits {
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

/// Output of `load deliver`.
#[derive(Debug, Deserialize)]
struct Steady {
    #[serde(flatten)]
    waits: Waits,
    per_second: f64,
    bytes: u64,
    runs: u32,
    refused: u32,
    why: Option<String>,
}

/// Output of `load first-step`.
#[derive(Debug, Deserialize)]
struct FirstStep {
    wait: Waits,
    checkout: Waits,
}

impl Bench {
    /// Measures acknowledgements at a steady rate, and the time from a delivery to the first step
    /// of its run on an idle system.
    pub(super) fn webhook(&self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for (postgres, name) in [(false, "SQLite"), (true, "PostgreSQL")] {
            progress::announce(format!(
                "Measuring: {RATE} deliveries a second on {name}, for {SECONDS} s"
            ));
            let database = self.database(postgres, &format!("{name}-deliver").to_lowercase())?;
            let server = self.serve("deliver", Some(&database), &["--no-runner"])?;
            let steady: Steady = self.loaded(&[
                "deliver",
                "--server",
                &server.url,
                "--token",
                &server.token,
                "--rate",
                &RATE.to_string(),
                "--seconds",
                &SECONDS.to_string(),
            ])?;
            ensure!(
                steady.refused == 0,
                "{} deliveries were refused: {}",
                steady.refused,
                steady.why.unwrap_or_default()
            );
            ensure!(
                steady.runs == RATE * SECONDS,
                "{} runs were started, and each delivery starts one",
                steady.runs
            );
            rows.push(Row {
                what: format!("webhook acknowledged at {RATE}/s on {name}, p99"),
                low: steady.waits.p50_ms,
                median: steady.waits.p99_ms,
                high: steady.waits.max_ms,
                decides: steady.waits.p99_ms,
                bound: 100.0,
                unit: "ms",
                scale: format!(
                    "p50, p99 and the slowest of {} deliveries of {:.1} KiB; {:.0} a second came through",
                    RATE * SECONDS,
                    steady.bytes as f64 / 1024.0,
                    steady.per_second
                ),
            });
        }
        for (postgres, name) in [(false, "SQLite"), (true, "PostgreSQL")] {
            progress::announce(format!(
                "Measuring: from a delivery to its run's first step on {name}"
            ));
            let database = self.database(postgres, &format!("{name}-first").to_lowercase())?;
            let server = self.serve("first", Some(&database), &["--allow-private-addresses"])?;
            wait_for_runner(&server)?;
            let image = format!("{}/base/busybox:1.36", self.environment.registry);
            let first_step: FirstStep = self.loaded(&[
                "first-step",
                "--server",
                &server.url,
                "--token",
                &server.token,
                "--image",
                &image,
            ])?;
            rows.push(Row {
                what: format!("webhook to first step on {name}, p50"),
                low: first_step.wait.p50_ms,
                median: first_step.wait.p50_ms,
                high: first_step.wait.max_ms,
                decides: first_step.wait.p50_ms,
                bound: 100.0,
                unit: "ms",
                scale: format!(
                    "p99 {:.0} ms; beside it the checkout, p50 {:.0} ms and p99 {:.0} ms",
                    first_step.wait.p99_ms, first_step.checkout.p50_ms, first_step.checkout.p99_ms
                ),
            });
        }
        Ok(rows)
    }
}
