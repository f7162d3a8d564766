//! `cargo xtask fuzz`: runs fuzz targets for a given time, one after the other.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program's output"
)]

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use fuzz::{Limits, Target};

/// Send mutated inputs to all parsers of untrusted data.
#[derive(Debug, Parser)]
struct Arguments {
    /// Run only this target.
    target: Option<String>,
    /// Duration for each target, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Seed of the random numbers. The same seed generates the same inputs.
    #[arg(long)]
    seed: Option<u64>,
    /// Only list the targets.
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let targets: Vec<Target> = fuzz::all()
        .into_iter()
        .filter(|target| {
            arguments
                .target
                .as_ref()
                .is_none_or(|name| name == target.name)
        })
        .collect();
    if arguments.list {
        for target in targets {
            println!("{:<12} {}", target.name, target.about);
        }
        return ExitCode::SUCCESS;
    }
    if targets.is_empty() {
        eprintln!("unknown target: `--list` shows the targets");
        return ExitCode::from(2);
    }
    let seed = arguments.seed.unwrap_or_else(rand::random);
    println!("seed {seed}");
    let mut failed = false;
    for target in targets {
        let time = Duration::from_secs(arguments.seconds);
        match fuzz::fuzz(&target, time, seed, &Limits::default(), true) {
            Ok(report) => println!("{:<12} {report}", target.name),
            Err(failure) => {
                failed = true;
                println!("{:<12} {failure}", target.name);
            }
        }
    }
    ExitCode::from(u8::from(failed))
}
