//! `cargo xtask codegen`: generates the Rust text of `proto/` and `docs/task-definition.md`, or compares them with what is
//! checked in.
//!
//! The generator is a program of its own (`crates/codegen`): xtask is compiled first by everybody and stays small.

use anyhow::{Context, Result};

use crate::{cargo, say};

/// Generates, or with `check` only compares.
pub(crate) fn codegen(check: bool) -> Result<()> {
    let mut arguments = vec!["run", "--quiet", "--package", "codegen", "--"];
    if check {
        say::doing("Comparing generated files with their sources (cargo xtask codegen --check)");
        arguments.push("--check");
    } else {
        say::doing("Generating crates/acrtask-proto/src/generated and docs/task-definition.md");
    }
    cargo::run(&mut cargo::cargo(&arguments)?).context("the generator failed")
}
