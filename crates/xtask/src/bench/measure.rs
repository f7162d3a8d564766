//! Wall time and peak memory of one process.
//!
//! The kernel reports the highest peak of all ended children of a process (getrusage(2)). So each
//! measured program gets its own parent: this program, as the hidden command `measured`. That
//! parent's few megabytes are the lowest possible figure.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use nix::sys::resource::{UsageWho, getrusage};
use serde::{Deserialize, Serialize};

/// Resources that one process used.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Taken {
    /// Wall time from start to end.
    pub(super) seconds: f64,
    /// Peak memory of the process and of the processes that it waited for.
    pub(super) peak_mib: f64,
    success: bool,
}

/// Runs `command` and prints its [`Measured`] as JSON to standard output. The command's output goes
/// to standard error.
pub(crate) fn measured(words: &[String]) -> Result<()> {
    let (program, arguments) = words.split_first().context("no command to measure")?;
    let begun = Instant::now();
    let status = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .with_context(|| format!("cannot start {program}"))?;
    let seconds = begun.elapsed().as_secs_f64();
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("cannot read what it took")?;
    let taken = Taken {
        seconds,
        // Linux counts in KiB.
        peak_mib: usage.max_rss() as f64 / 1024.0,
        success: status.success(),
    };
    println!("{}", serde_json::to_string(&taken)?);
    Ok(())
}

/// Runs `command` under `xtask measured` with its output in `log`. Returns an error if it fails.
pub(super) fn take(command: &Command, log: &Path) -> Result<Taken> {
    let own = std::env::current_exe().context("cannot find this program itself")?;
    let errors = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
    let mut measured = Command::new(own);
    measured
        .arg("measured")
        .arg("--")
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => measured.env(name, value),
            None => measured.env_remove(name),
        };
    }
    let output = measured
        .stderr(errors)
        .output()
        .context("cannot start a measurement")?;
    let taken: Taken =
        serde_json::from_slice(&output.stdout).with_context(|| failed(command, log))?;
    if !taken.success {
        bail!(failed(command, log));
    }
    Ok(taken)
}

fn failed(command: &Command, log: &Path) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .collect();
    format!(
        "{words:?} failed:\n{}",
        fs::read_to_string(log).unwrap_or_default().trim_end()
    )
}
