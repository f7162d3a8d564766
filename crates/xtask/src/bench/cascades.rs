//! Cascades on an idle system: time from the push of a base to the first step of a dependent task.

use anyhow::Result;
use serde::Deserialize;

use super::service::wait_for_runner;
use super::{Bench, Row};
use crate::progress;

/// Output of `load fill-tasks`.
#[derive(Debug, Deserialize)]
struct Filled {
    tasks: u64,
}

/// Milliseconds.
#[derive(Debug, Deserialize)]
struct Waits {
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

impl Bench {
    /// Measures the time from the push of a base to the first step of the rebuild, beyond settling.
    pub(super) fn rebuild(&self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        let registry = &self.environment.registry;
        let image = format!("{registry}/base/busybox:1.36");
        for (postgres, name) in [(false, "SQLite"), (true, "PostgreSQL")] {
            progress::announce(format!(
                "Measuring: from the push of a base to the first step on {name}, among 10,000 tasks"
            ));
            let database = self.database(postgres, &format!("{name}-rebuild").to_lowercase())?;
            let filled: Filled = self.loaded(&[
                "fill-tasks",
                "--database",
                &database,
                "--registry",
                registry,
                "--image",
                &image,
            ])?;
            let server = self.serve("rebuild", Some(&database), &[])?;
            wait_for_runner(&server)?;
            let waits: Waits = self.loaded(&[
                "rebuild",
                "--server",
                &server.url,
                "--token",
                &server.token,
                "--registry",
                registry,
            ])?;
            rows.push(Row {
                what: format!("pushed base to first step on {name}, p50"),
                low: waits.p50_ms,
                median: waits.p50_ms,
                high: waits.max_ms,
                decides: waits.p50_ms,
                bound: 250.0,
                unit: "ms",
                scale: format!(
                    "beyond the settling time, among {} tasks; p99 {:.0} ms",
                    filled.tasks, waits.p99_ms
                ),
            });
        }
        Ok(rows)
    }
}
