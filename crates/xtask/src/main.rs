//! Commands for work on the project: `cargo xtask demo`, `cargo xtask test` and others.
//!
//! The product does not contain this crate. Progress goes to standard error, data to standard
//! output.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod browser;
mod cache;
mod cargo;
mod check;
mod codegen;
mod demo;
mod engine;
mod fuzz;
mod http;
mod images;
mod npm;
mod packages;
mod postgres;
mod process;
mod progress;
mod python;
mod registry;
mod registry_tools;
mod setup;
mod sshd;
mod strace;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Commands for working on acrtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build an image, run it as a test and push it, on a real engine and a real registry.
    Demo,
    /// Check format, lints and project rules, and run every test.
    ///
    /// With a filter, run only the tests whose names contain it, without format and lints:
    /// `cargo xtask test imported_caches`.
    Test {
        /// Part of the names of the tests to run.
        filter: Option<String>,
        /// Check format and project rules, and run the tests of the libraries, which need no
        /// engine.
        #[arg(long, conflicts_with = "filter")]
        quick: bool,
    },
    /// Check the project's rules: dependency directions, sizes, headers, language, commit subjects.
    Check {
        /// Print figures of the language and the size of the code instead.
        #[arg(long)]
        measure: bool,
    },
    /// Generate the Rust of proto/ and docs/task-definition.md.
    Codegen {
        /// Compare with the files that are checked in, and write none.
        #[arg(long)]
        check: bool,
    },
    /// Feed mutated inputs to every parser of untrusted input.
    Fuzz {
        /// Run only this target.
        target: Option<String>,
        /// Seconds for each target.
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        /// Seed of the random numbers. The same seed makes the same inputs.
        #[arg(long)]
        seed: Option<u64>,
        /// List the targets and run none.
        #[arg(long)]
        list: bool,
    },
    /// Time acrtask beside the `docker` command: all cases, or the named ones.
    Bench {
        /// Cases to time.
        cases: Vec<bench::Case>,
    },
    /// Run a command and print its time and memory. Part of `bench`.
    #[command(hide = true)]
    Measured {
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Take pictures of every page of the web page: light, dark, and at the width of a phone.
    Screenshots {
        /// Folder for the PNG files.
        #[arg(default_value = "target/screenshots")]
        folder: std::path::PathBuf,
    },
    /// Find or set up an engine, registries, base images, PostgreSQL and a browser.
    Up,
    /// Do what `up` does and print the variables that name the services, for `eval "$(cargo xtask
    /// env)"`.
    Env,
    /// Stop and remove all that `up` set up.
    Down,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            progress::fail(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Demo => demo::demo()?,
        Command::Test { filter, quick } => match (filter, quick) {
            (Some(filter), _) => test::test_matching(&filter)?,
            (None, true) => test::test_quick()?,
            (None, false) => test::test()?,
        },
        Command::Check { measure: true } => check::measure()?,
        Command::Check { measure: false } => check::check()?,
        Command::Codegen { check } => codegen::codegen(check)?,
        Command::Fuzz {
            target,
            seconds,
            seed,
            list,
        } => fuzz::fuzz(target, seconds, seed, list)?,
        Command::Screenshots { folder } => test::screenshots(&folder)?,
        Command::Bench { cases } => bench::bench(&cases)?,
        Command::Measured { command } => bench::measured(&command)?,
        Command::Up => {
            let environment = setup::up()?;
            progress::finish("ready; these variables name the services:");
            print!("{}", environment.shell());
        }
        Command::Env => print!("{}", setup::up()?.shell()),
        Command::Down => setup::down()?,
    }
    Ok(())
}
