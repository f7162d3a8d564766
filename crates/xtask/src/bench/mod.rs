//! `cargo xtask bench`: times acrtask beside the `docker` command on the same engine.
//!
//! Both sides do the same job in turn (A B A B ...) after one warm-up round. The report has the
//! ratio within each round, so a slow phase of the machine affects both sides. The program is a
//! release build. Absolute times show the scale and must not be compared between runs.

mod bases;
mod cascades;
mod cases;
mod log_index;
mod measure;
mod service;
mod strangers;
mod webhooks;

pub(crate) use measure::measured;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::cache::{self, Cache};
use crate::setup::{self, Environment};
use crate::{cargo, progress};

/// Benchmark that can be selected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Case {
    /// A build of ten layers that are all cached.
    Cached,
    /// A context of 100,000 small files.
    Files,
    /// A context of one file of 1 GiB.
    Big,
    /// Build, run and push, all cached.
    Run,
    /// The plan of the largest task file at hand.
    Plan,
    /// Runs handed to a thousand runners, with few and with 100,000 in the queue, on SQLite and
    /// PostgreSQL.
    Dispatch,
    /// Time from a request to a service to the first step of its run.
    Latency,
    /// Memory of an idle control plane with a thousand runners, and of an idle runner.
    Idle,
    /// Ten million lines from a container to a reader, and reads of parts of the stored log.
    Logs,
    /// Deliveries at a steady rate, and time from a delivery to the first step of its run.
    Webhook,
    /// Time from the push of a base to the first step of the rebuild, among 10,000 tasks.
    Rebuild,
    /// Polls of 100,000 base tags in a registry on this machine.
    Watch,
    /// Plans of cascades over 100,000 and 1,000,000 images.
    CascadePlan,
    /// Valid clients and memory of a control plane while clients without a token attack it.
    Load,
}

/// Row of the report.
#[derive(Debug)]
struct Row {
    what: String,
    low: f64,
    median: f64,
    high: f64,
    /// The one of the three figures that `bound` limits.
    decides: f64,
    bound: f64,
    /// Unit of all figures.
    unit: &'static str,
    /// Absolute figures.
    scale: String,
}

/// Programs, services and folders that the cases use.
#[derive(Debug)]
struct Bench {
    environment: Environment,
    acrtask: PathBuf,
    docker: PathBuf,
    /// A `DOCKER_CONFIG` with the buildx plugin and without credentials.
    docker_config: PathBuf,
    /// Folder of the contexts.
    scratch: PathBuf,
}

/// Runs the selected cases, or all of them.
pub(crate) fn bench(cases: &[Case]) -> Result<()> {
    let environment = setup::up()?;
    progress::announce("Building acrtask for release (some minutes the first time)");
    let acrtask = cargo::build_acrtask(&[
        "--package",
        "acrtask",
        "--package",
        "acrtask-tests",
        "--bins",
        "--release",
    ])?;
    let bench = Bench::new(environment, acrtask)?;
    let all = Case::value_variants();
    let mut rows = Vec::new();
    for case in if cases.is_empty() { all } else { cases } {
        rows.extend(bench.run(*case)?);
    }
    print!("{}", table(&rows));
    Ok(())
}

impl Bench {
    fn new(environment: Environment, acrtask: PathBuf) -> Result<Self> {
        let cache = Cache::locate()?;
        let scratch = cache.dir("bench")?;
        let (docker, plugins) = match environment.root() {
            Some(root) => (
                root.join("usr/bin/docker"),
                vec![root.join("usr/libexec/docker/cli-plugins")],
            ),
            None => (PathBuf::from("docker"), Vec::new()),
        };
        let docker_config = cache.dir("bench/docker-config")?;
        let config = serde_json::json!({ "cliPluginsExtraDirs": plugins });
        cache::write_whole(&docker_config.join("config.json"), &config.to_string())?;
        Ok(Self {
            environment,
            acrtask,
            docker,
            docker_config,
            scratch,
        })
    }

    /// Creates an empty folder for a context.
    fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.scratch.join(name);
        cache::remove_tree(&folder)?;
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(folder)
    }

    /// Removes the folders whose names begin with `prefix`, and syncs the disk.
    fn forget(&self, prefix: &str) -> Result<()> {
        let entries =
            fs::read_dir(&self.scratch).context("cannot read the folder of benchmarks")?;
        for entry in entries {
            let entry = entry.context("cannot read the folder of benchmarks")?;
            if entry.file_name().to_string_lossy().starts_with(prefix) {
                cache::remove_tree(&entry.path())?;
            }
        }
        cargo::run(&mut std::process::Command::new("sync"))
    }
}

fn write(path: &Path, content: &str) -> Result<()> {
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

/// Formats the rows as a table with a verdict for each bound.
fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<52} {:>9} {:>9} {:>9} {:>9}  {}\n",
        "what", "bound", "min", "median", "max", "verdict"
    );
    for row in rows {
        let figure = |value: f64| format!("{value:.2}{}", row.unit);
        let verdict = if row.decides <= row.bound {
            "ok".to_owned()
        } else {
            format!("missed by {:.0} %", (row.decides / row.bound - 1.0) * 100.0)
        };
        text.push_str(&format!(
            "{:<52} {:>9} {:>9} {:>9} {:>9}  {verdict}{}\n",
            row.what,
            figure(row.bound),
            figure(row.low),
            figure(row.median),
            figure(row.high),
            if row.scale.is_empty() {
                String::new()
            } else {
                format!("  ({})", row.scale)
            },
        ));
    }
    text
}

/// Returns the minimum, the median and the maximum.
fn spread(values: &[f64]) -> Result<(f64, f64, f64)> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.as_slice() {
        [] => bail!("nothing was measured"),
        [low, .., high] => Ok((*low, sorted[sorted.len() / 2], *high)),
        [only] => Ok((*only, *only, *only)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_above_the_bound_is_reported_as_missed() {
        let row = |median| Row {
            what: "x".to_owned(),
            low: 0.5,
            median,
            decides: median,
            high: 2.0,
            bound: 1.0,
            unit: "x",
            scale: String::new(),
        };
        assert!(table(&[row(1.0)]).contains("2.00x  ok"));
        assert!(table(&[row(1.1)]).contains("missed by 10 %"));
    }

    #[test]
    fn spread_is_of_sorted_values() {
        assert_eq!(spread(&[3.0, 1.0, 2.0]).unwrap(), (1.0, 2.0, 3.0));
        assert_eq!(spread(&[4.0]).unwrap(), (4.0, 4.0, 4.0));
        assert!(spread(&[]).is_err());
    }
}
