//! The project's own commands: `cargo xtask demo`, `test`, and what they are made of.
//!
//! Nothing here is part of the product. It prints what it does to standard error and data to standard output.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bench;
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
mod registry;
mod say;
mod schemathesis;
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
    /// Format, lints, project rules and every test.
    ///
    /// With a filter, it runs only the tests whose names contain it, and neither format nor lints:
    /// `cargo xtask test imported_caches`.
    Test {
        /// A part of the names of the tests to run.
        filter: Option<String>,
        /// Run format, project rules and the tests of the libraries, which need no engine.
        #[arg(long, conflicts_with = "filter")]
        quick: bool,
    },
    /// Only the project's rules: dependency directions, sizes, headers.
    Check,
    /// Generate the Rust of proto/ and docs/task-definition.md.
    Codegen {
        /// Only compare with what is checked in.
        #[arg(long)]
        check: bool,
    },
    /// Feed mutated inputs to everything that reads what a stranger can write.
    Fuzz {
        /// Run only this target.
        target: Option<String>,
        /// Seconds for each target.
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        /// Start of the random numbers; the same seed makes the same inputs.
        #[arg(long)]
        seed: Option<u64>,
        /// Only list the targets.
        #[arg(long)]
        list: bool,
    },
    /// Compare with the `docker` command: all, or the named cases.
    Bench {
        /// What to compare.
        cases: Vec<bench::Case>,
    },
    /// Run a command and print what it took: a part of `bench`.
    #[command(hide = true)]
    Measured {
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Find or set up an engine, registries, base images and PostgreSQL.
    Up,
    /// Like `up`, and print the variables that name them, for `eval "$(cargo xtask env)"`.
    Env,
    /// Stop and remove everything that `up` set up.
    Down,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say::failed(&error);
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
        Command::Check => check::check()?,
        Command::Codegen { check } => codegen::codegen(check)?,
        Command::Fuzz {
            target,
            seconds,
            seed,
            list,
        } => fuzz::fuzz(target, seconds, seed, list)?,
        Command::Bench { cases } => bench::bench(&cases)?,
        Command::Measured { command } => bench::measured(&command)?,
        Command::Up => {
            let environment = setup::up()?;
            say::done("ready; these variables name it:");
            print!("{}", environment.shell());
        }
        Command::Env => print!("{}", setup::up()?.shell()),
        Command::Down => setup::down()?,
    }
    Ok(())
}
