//! Load without a token: memory of the release build and latency of valid clients during attacks.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::{Bench, Row, spread};
use crate::{cache, cargo, progress};

/// Bounds, which the test `load` checks, too.
const CEILING_MIB: f64 = 256.0;
const LATENCY_MS: f64 = 1000.0;

/// Report of the test `load` for one attack.
#[derive(Debug, Deserialize)]
struct Attack {
    over_idle_mib: f64,
    requests: usize,
    refused: usize,
    p50_ms: f64,
    p99_ms: f64,
}

impl Bench {
    /// Runs the test `load` with the release build.
    pub(super) fn strangers(&self) -> Result<Vec<Row>> {
        progress::announce("Measuring: valid clients while strangers attack");
        let report = self.scratch.join("load-report");
        cache::write_whole(&report, "")?;
        let test = ["test", "--package", "acrtask-tests", "--test", "load"];
        // One server at a time has the whole machine.
        let one = ["--", "--ignored", "--test-threads", "1"];
        let mut command = cargo::cargo(&[&test[..], &one[..]].concat())?;
        command
            .env("ACRTASK_LOAD_BIN", &self.acrtask)
            .env("ACRTASK_LOAD_REPORT", &report);
        cargo::run(&mut command)?;
        let text = std::fs::read_to_string(&report).context("there is no report")?;
        let attacks: serde_json::Result<Vec<Attack>> =
            text.lines().map(serde_json::from_str).collect();
        let attacks = attacks.context("the report cannot be read")?;
        ensure!(!attacks.is_empty(), "the report is empty");
        let row = |what: &str, unit, bound, of: &dyn Fn(&Attack) -> f64, scale| {
            let values: Vec<f64> = attacks.iter().map(of).collect();
            let (low, median, high) = spread(&values)?;
            Ok::<_, anyhow::Error>(Row {
                what: what.into(),
                low,
                median,
                decides: high,
                high,
                bound,
                unit,
                scale,
            })
        };
        let requests: usize = attacks.iter().map(|attack| attack.requests).sum();
        let refused: usize = attacks.iter().map(|attack| attack.refused).sum();
        let slowest = attacks
            .iter()
            .map(|attack| attack.p50_ms)
            .fold(0.0, f64::max);
        Ok(vec![
            row(
                "memory over idle while strangers attack",
                " MiB",
                CEILING_MIB,
                &|attack| attack.over_idle_mib,
                format!("{} attacks", attacks.len()),
            )?,
            row(
                "p99 of valid requests while strangers attack",
                " ms",
                LATENCY_MS,
                &|attack| attack.p99_ms,
                format!("{requests} requests, {refused} refused, slowest median {slowest:.0} ms"),
            )?,
        ])
    }
}
