//! `cargo xtask codegen`: makes Rust of `proto/` in `crates/acrtask-proto/src/generated`, and `docs/task-definition.md` of
//! the JSON Schema of task definitions.
//!
//! Generated files are checked in, so that building acrtask needs neither this nor `protoc`. `--check` fails if they are
//! not current. Invariant: nothing else is written.
#![allow(clippy::print_stderr)]

mod task_definition;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

/// The files that services or messages of ours stand in, below `proto/`.
const FILES: &[&str] = &["acrtask/runner/v1/runner.proto"];

/// Messages that hold secrets: their `Debug` is written by hand, in `acrtask-proto`.
const WITH_SECRETS: [&str; 4] = [
    ".acrtask.runner.v1.Lease",
    ".acrtask.runner.v1.Credential",
    ".acrtask.runner.v1.RegisterRequest",
    ".acrtask.runner.v1.RegisterResponse",
];

const HEADER: &str = "//! Generated from `proto/` by `cargo xtask codegen`: do not edit.
// Long because: it is generated.
";

fn main() -> ExitCode {
    let check = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => false,
        [flag] if flag == "--check" => true,
        _ => {
            eprintln!("usage: cargo xtask codegen [--check]");
            return ExitCode::from(2);
        }
    };
    match codegen(check) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn codegen(check: bool) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .context("codegen lies in crates/codegen")?;
    let target = root.join("crates/acrtask-proto/src/generated");
    let made = generate(&root.join("proto"))?;
    let page = task_definition::page()?;
    let page_path = root.join(task_definition::PAGE);
    if check {
        compare(&made, &target)?;
        if fs::read_to_string(&page_path).ok().as_ref() != Some(&page) {
            bail!(
                "{} is not what the task definition says; run `cargo xtask codegen`",
                task_definition::PAGE
            );
        }
        return Ok(());
    }
    fs::write(&page_path, page).with_context(|| format!("cannot write {}", page_path.display()))?;
    fs::create_dir_all(&target).with_context(|| format!("cannot make {}", target.display()))?;
    for (name, text) in &made {
        let path = target.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Names of generated files, and what they hold.
fn generate(proto: &Path) -> Result<Vec<(String, String)>> {
    let descriptors = protox::compile(FILES, [proto]).context("proto/ does not compile")?;
    let out = tempfile::tempdir().context("cannot make a folder for what is generated")?;
    tonic_prost_build::configure()
        .emit_rerun_if_changed(false)
        // Its `connect` would have the name of ours; clients are made of a channel.
        .build_transport(false)
        .out_dir(out.path())
        .bytes(".acrtask.runner.v1.LogChunk.data")
        .bytes(".acrtask.runner.v1.ContextChunk.data")
        .skip_debug(WITH_SECRETS)
        .compile_fds(descriptors)
        .context("cannot generate")?;
    let mut made = Vec::new();
    for entry in fs::read_dir(out.path()).context("cannot list what was generated")? {
        let entry = entry.context("cannot list what was generated")?;
        let text = fs::read_to_string(entry.path()).context("cannot read what was generated")?;
        let name = entry.file_name().to_string_lossy().into_owned();
        made.push((name, format!("{HEADER}{text}")));
    }
    made.sort();
    Ok(made)
}

fn compare(made: &[(String, String)], target: &Path) -> Result<()> {
    let stale: Vec<PathBuf> = made
        .iter()
        .map(|(name, text)| (target.join(name), text))
        .filter(|(path, text)| fs::read_to_string(path).ok().as_ref() != Some(*text))
        .map(|(path, _)| path)
        .collect();
    if stale.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = stale
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    bail!(
        "not what proto/ says: {}; run `cargo xtask codegen`",
        names.join(", ")
    );
}
