//! `cargo xtask codegen`: has the Rust text of `proto/` made, or compared with what is checked in.
//!
//! The generator is a program of its own (`crates/codegen`): xtask is compiled first by everybody and stays small.

use anyhow::{Context, Result};

use crate::{cargo, say};

/// Generates, or with `check` only compares.
pub(crate) fn codegen(check: bool) -> Result<()> {
    let mut arguments = vec!["run", "--quiet", "--package", "codegen", "--"];
    if check {
        say::doing("Comparing generated code with proto/ (cargo xtask codegen --check)");
        arguments.push("--check");
    } else {
        say::doing("Generating crates/acrtask-proto/src/generated from proto/");
    }
    cargo::run(&mut cargo::cargo(&arguments)?).context("the generator failed")
}
