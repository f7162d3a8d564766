//! Base images: time to poll 100,000 watched tags, and to plan over 1,000,000 images.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::{Bench, Row};
use crate::{cargo, progress};

/// Watched tags.
const WATCHES: u64 = 100_000;
/// Configured budget of the server, in requests per second. The measured rate must not exceed it.
const RATE: u32 = 3_000;
/// Concurrent polls.
const PARALLEL: u32 = 64;

/// Output of `load fill-watches`.
#[derive(Debug, Deserialize)]
struct Filled {
    watches: u64,
}

/// Output of `load watch`.
#[derive(Debug, Deserialize)]
struct Watched {
    seconds: f64,
    polls: u64,
    other: u64,
    per_second: f64,
}

/// Output of the example `plan_scale` for one size.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Planned {
    images: u64,
    planned: u64,
    plan_ms: PlanMs,
    graph_bytes: u64,
    plan_bytes: u64,
    graph_build_ms: f64,
}

#[derive(Debug, Deserialize)]
struct PlanMs {
    min: f64,
    median: f64,
    max: f64,
}

impl Bench {
    /// Measures a HEAD request for each of 100,000 tags in a registry on this machine, within the
    /// budget.
    pub(super) fn watch(&self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for (postgres, name) in [(false, "SQLite"), (true, "PostgreSQL")] {
            progress::announce(format!(
                "Measuring: polls of {WATCHES} base tags on {name} (the first time, pushing them takes some minutes)"
            ));
            let database = self.database(postgres, &format!("{name}-watch").to_lowercase())?;
            let filled: Filled = self.loaded(&[
                "fill-watches",
                "--database",
                &database,
                "--registry",
                &self.environment.registry,
                "--watches",
                &WATCHES.to_string(),
            ])?;
            let flags = [
                "--no-runner",
                "--base-interval",
                "24h",
                "--base-rate",
                &RATE.to_string(),
                "--base-parallel",
                &PARALLEL.to_string(),
            ];
            let server = self.serve("watch", Some(&database), &flags)?;
            let watched: Watched = self.loaded(&[
                "watch",
                "--server",
                &server.url,
                "--watches",
                &filled.watches.to_string(),
            ])?;
            ensure!(
                watched.other == 0,
                "{} of {} polls returned another digest than the stored one",
                watched.other,
                watched.polls
            );
            ensure!(
                watched.per_second <= f64::from(RATE) * 1.05,
                "{:.0} requests a second were made, and {RATE} were allowed",
                watched.per_second
            );
            rows.push(Row {
                what: format!("{WATCHES} HEADs of base tags on {name}"),
                low: watched.seconds,
                median: watched.seconds,
                high: watched.seconds,
                decides: watched.seconds,
                bound: 60.0,
                unit: "s",
                scale: format!(
                    "{:.0} a second, {RATE} allowed, {PARALLEL} side by side",
                    watched.per_second
                ),
            });
        }
        Ok(rows)
    }

    /// Measures plans over 100,000 and 1,000,000 images with four edges each.
    pub(super) fn cascade_plan(&self) -> Result<Vec<Row>> {
        progress::announce("Measuring: plans over 100,000 and 1,000,000 images");
        let words = [
            "run",
            "--release",
            "--quiet",
            "--package",
            "acrtask-cascade",
            "--example",
            "plan_scale",
        ];
        let output = cargo::cargo(&words)?
            .stderr(std::process::Stdio::inherit())
            .output()
            .context("cannot start cargo")?;
        ensure!(output.status.success(), "the example plan_scale failed");
        let text = String::from_utf8_lossy(&output.stdout);
        let planned: Vec<Planned> = text
            .lines()
            .map(|line| serde_json::from_str(line).context("what plan_scale printed"))
            .collect::<Result<_>>()?;
        ensure!(
            planned.len() == 2,
            "plan_scale measured {} sizes",
            planned.len()
        );
        let mut rows = Vec::new();
        for (plan, bound) in planned.iter().zip([50.0, 1000.0]) {
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            rows.push(Row {
                what: format!("plan over {} images, four edges each", plan.images),
                low: plan.plan_ms.min,
                median: plan.plan_ms.median,
                high: plan.plan_ms.max,
                decides: plan.plan_ms.median,
                bound,
                unit: "ms",
                scale: format!(
                    "{} planned; graph {:.1} MiB, made in {:.0} ms; plan {:.1} MiB",
                    plan.planned,
                    mib(plan.graph_bytes),
                    plan.graph_build_ms,
                    mib(plan.plan_bytes)
                ),
            });
        }
        // Memory must grow in proportion to the number of images.
        let bytes =
            |plan: &Planned| (plan.graph_bytes + plan.plan_bytes) as f64 / plan.images as f64;
        let growth = bytes(&planned[1]) / bytes(&planned[0]);
        rows.push(Row {
            what: "memory of an image in the larger plan to the smaller".to_owned(),
            low: growth,
            median: growth,
            high: growth,
            decides: growth,
            bound: 1.1,
            unit: "x",
            scale: format!(
                "{:.0} and {:.0} bytes",
                bytes(&planned[0]),
                bytes(&planned[1])
            ),
        });
        Ok(rows)
    }
}
