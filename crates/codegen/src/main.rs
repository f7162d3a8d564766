//! `cargo xtask codegen`: generates Rust code from `proto/` into
//! `crates/acrtask-proto/src/generated`, and `docs/task-definition.md` from the JSON Schema of task
//! definitions.
//!
//! The generated files are checked in, so that building acrtask needs neither this crate nor
//! `protoc`. `--check` fails if they are outdated. Invariant: no other files are written.
#![allow(clippy::print_stderr)]

mod task_definition;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

/// Files with this project's services and messages, relative to `proto/`.
const FILES: &[&str] = &["acrtask/runner/v1/runner.proto"];

/// Messages with secrets; `acrtask-proto` implements their `Debug` by hand.
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
    let is_check = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => false,
        [flag] if flag == "--check" => true,
        _ => {
            eprintln!("usage: cargo xtask codegen [--check]");
            return ExitCode::from(2);
        }
    };
    match generate_files(is_check) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn generate_files(is_check: bool) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .context("codegen is not in crates/codegen")?;
    let target = root.join("crates/acrtask-proto/src/generated");
    let modules = generate_modules(&root.join("proto"))?;
    let page = task_definition::generate_page()?;
    let page_path = root.join(task_definition::PAGE);
    if is_check {
        check_modules(&modules, &target)?;
        if fs::read_to_string(&page_path).ok().as_ref() != Some(&page) {
            bail!(
                "{} does not match the task definition; run `cargo xtask codegen`",
                task_definition::PAGE
            );
        }
        return Ok(());
    }
    fs::write(&page_path, page).with_context(|| format!("cannot write {}", page_path.display()))?;
    fs::create_dir_all(&target).with_context(|| format!("cannot create {}", target.display()))?;
    for (name, text) in &modules {
        let path = target.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Returns the names and contents of the generated modules.
fn generate_modules(proto: &Path) -> Result<Vec<(String, String)>> {
    let descriptors = protox::compile(FILES, [proto]).context("proto/ does not compile")?;
    let out = tempfile::tempdir().context("cannot create a temporary folder")?;
    tonic_prost_build::configure()
        .emit_rerun_if_changed(false)
        // Its `connect` conflicts with an RPC of that name; clients are created from a channel.
        .build_transport(false)
        .out_dir(out.path())
        .bytes(".acrtask.runner.v1.LogChunk.data")
        .bytes(".acrtask.runner.v1.ContextChunk.data")
        .bytes(".acrtask.runner.v1.RegistryRecordChunk.data")
        .skip_debug(WITH_SECRETS)
        .compile_fds(descriptors)
        .context("cannot generate the code")?;
    let mut modules = Vec::new();
    for entry in fs::read_dir(out.path()).context("cannot list the generated files")? {
        let entry = entry.context("cannot list the generated files")?;
        let text = fs::read_to_string(entry.path()).context("cannot read a generated file")?;
        let name = entry.file_name().to_string_lossy().into_owned();
        modules.push((name, format!("{HEADER}{text}")));
    }
    modules.sort();
    Ok(modules)
}

fn check_modules(modules: &[(String, String)], target: &Path) -> Result<()> {
    let outdated: Vec<PathBuf> = modules
        .iter()
        .map(|(name, text)| (target.join(name), text))
        .filter(|(path, text)| fs::read_to_string(path).ok().as_ref() != Some(*text))
        .map(|(path, _)| path)
        .collect();
    if outdated.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = outdated
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    bail!("outdated: {}; run `cargo xtask codegen`", names.join(", "));
}
