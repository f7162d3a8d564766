//! `cargo xtask codegen`: generates the Rust code of `proto/` and `docs/task-definition.md`, or
//! compares them with the files that are checked in.
//!
//! The generator is a separate program (`crates/codegen`), so that xtask compiles fast.

use anyhow::{Context, Result};

use crate::{cargo, progress};

/// Generates the files. With `check` it compares them instead.
pub(crate) fn codegen(check: bool) -> Result<()> {
    let mut arguments = vec!["run", "--quiet", "--package", "codegen", "--"];
    if check {
        progress::announce(
            "Comparing generated files with their sources (cargo xtask codegen --check)",
        );
        arguments.push("--check");
    } else {
        progress::announce(
            "Generating crates/acrtask-proto/src/generated and docs/task-definition.md",
        );
    }
    cargo::run(&mut cargo::cargo(&arguments)?).context("the generator failed")
}
