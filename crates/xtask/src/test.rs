//! `cargo xtask test`: everything that has to hold before a change is taken.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::{cargo, check, codegen, say, setup};

/// Runs format, lints, project rules and all tests, and stops at the first that fails. What needs no
/// engine comes first: a slip in the format is told within a second.
pub(crate) fn test() -> Result<()> {
    let begun = Instant::now();
    say::doing("Checking the format (cargo fmt --check)");
    cargo::run(&mut cargo::cargo(&["fmt", "--all", "--check"])?)
        .context("the format is off; `cargo fmt` puts it right")?;
    check::check()?;
    say::doing("Checking the lints (cargo clippy)");
    let clippy = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    cargo::run(&mut cargo::cargo(&clippy)?)?;
    codegen::codegen(true)?;
    let environment = setup::up()?;
    say::doing("Building acrtask and the tests");
    // All at once: cargo gives libraries the features that the chosen packages want together, so that
    // building the program alone would compile many of them a second time.
    let program = cargo::build_acrtask(&["--workspace", "--all-targets"])?;
    let with_environment = |arguments: &[&str]| -> Result<Command> {
        let mut command = cargo::cargo(arguments)?;
        command
            .envs(environment.variables())
            .env("ACRTASK_TEST_BIN", &program);
        Ok(command)
    };
    if has_nextest() {
        say::doing("Running the examples in the documentation (cargo test --doc)");
        cargo::run(&mut with_environment(&[
            "test",
            "--workspace",
            "--doc",
            "--quiet",
        ])?)?;
        say::doing("Running the tests (cargo nextest run)");
        cargo::run(&mut with_environment(&[
            "nextest",
            "run",
            "--workspace",
            "--no-fail-fast",
        ])?)?;
    } else {
        say::doing("Running the tests (cargo test; with cargo-nextest installed this is faster)");
        cargo::run(&mut with_environment(&[
            "test",
            "--workspace",
            "--no-fail-fast",
        ])?)?;
    }
    say::done(format!(
        "everything passed in {:.0} s",
        begun.elapsed().as_secs_f32()
    ));
    Ok(())
}

fn has_nextest() -> bool {
    let mut command = Command::new("cargo");
    command
        .args(["nextest", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
