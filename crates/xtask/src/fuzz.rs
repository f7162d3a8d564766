//! `cargo xtask fuzz`: runs the fuzzer. It is a separate program (`crates/fuzz`), so that xtask
//! compiles fast.

use anyhow::{Context, Result};

use crate::cargo;

/// Fuzzes one target or all of them, each for `seconds`. With `list` it prints their names instead.
pub(crate) fn fuzz(
    target: Option<String>,
    seconds: u64,
    seed: Option<u64>,
    list: bool,
) -> Result<()> {
    let mut arguments = ["run", "--quiet", "--package", "fuzz", "--"]
        .map(str::to_owned)
        .to_vec();
    arguments.extend(target);
    arguments.extend(["--seconds".to_owned(), seconds.to_string()]);
    arguments.extend(
        seed.into_iter()
            .flat_map(|seed| ["--seed".to_owned(), seed.to_string()]),
    );
    arguments.extend(list.then(|| "--list".to_owned()));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    cargo::run(&mut cargo::cargo(&arguments)?).context("the fuzzer failed")
}
