//! `cargo xtask test`: all checks that a change must pass.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::setup::Environment;
use crate::{cargo, check, codegen, progress, setup};

/// Checks format, lints and project rules, then runs all tests. Stops at the first failure. Fast
/// checks come first.
pub(crate) fn test() -> Result<()> {
    let begun = Instant::now();
    check_format()?;
    check::check()?;
    progress::announce("Checking the lints (cargo clippy)");
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
    let tests = Tests::build()?;
    if has_nextest() {
        progress::announce("Running the examples in the documentation (cargo test --doc)");
        tests.run(&["test", "--workspace", "--doc", "--quiet"])?;
    }
    tests.run_matching(None)?;
    finish(begun);
    Ok(())
}

/// Runs the tests whose names contain `filter`.
pub(crate) fn test_matching(filter: &str) -> Result<()> {
    let begun = Instant::now();
    Tests::build()?.run_matching(Some(filter))?;
    finish(begun);
    Ok(())
}

/// Takes pictures of every page of the web page, as PNG files in `folder`.
pub(crate) fn screenshots(folder: &Path) -> Result<()> {
    let begun = Instant::now();
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    let folder = std::path::absolute(folder)
        .with_context(|| format!("cannot resolve {}", folder.display()))?;
    let mut tests = Tests::build()?;
    tests.pictures = Some(folder);
    tests.run_matching(Some("every_page_is_accessible_inert_and_fits_a_phone"))?;
    finish(begun);
    Ok(())
}

/// Checks format and project rules and runs the tests of the libraries, which need no services.
pub(crate) fn test_quick() -> Result<()> {
    let begun = Instant::now();
    check_format()?;
    check::check()?;
    progress::announce("Running the tests of the libraries (cargo test --lib)");
    cargo::run(&mut cargo::cargo(&[
        "test",
        "--workspace",
        "--lib",
        "--no-fail-fast",
    ])?)?;
    finish(begun);
    Ok(())
}

fn check_format() -> Result<()> {
    progress::announce("Checking the format (cargo fmt --check)");
    cargo::run(&mut cargo::cargo(&["fmt", "--all", "--check"])?)
        .context("the format is off; `cargo fmt` corrects it")
}

fn finish(begun: Instant) {
    progress::finish(format!(
        "everything passed in {:.0} s",
        begun.elapsed().as_secs_f32()
    ));
}

/// Builds the program and the tests and sets up the services that they need.
struct Tests {
    environment: Environment,
    program: PathBuf,
    /// Folder for pictures of the web page. `None`: no pictures.
    pictures: Option<PathBuf>,
}

impl Tests {
    fn build() -> Result<Self> {
        let environment = setup::up()?;
        progress::announce("Building acrtask and the tests");
        // One command for all: cargo unites the features of the selected packages. Separate builds
        // would compile many libraries twice.
        let program = cargo::build_acrtask(&["--workspace", "--all-targets"])?;
        Ok(Self {
            environment,
            program,
            pictures: None,
        })
    }

    fn run(&self, arguments: &[&str]) -> Result<()> {
        let mut command = cargo::cargo(arguments)?;
        forget_user(&mut command);
        command
            .envs(self.environment.variables())
            .env("ACRTASK_TEST_BIN", &self.program);
        if let Some(folder) = &self.pictures {
            command.env("ACRTASK_TEST_SCREENSHOTS", folder);
        }
        let buildkit = SeparateBuildkit::start(&self.program, self.environment.variables())?;
        if let Some(buildkit) = &buildkit {
            command.env(BUILDKITD, &buildkit.url);
        }
        cargo::run(&mut command)
    }

    fn run_matching(&self, filter: Option<&str>) -> Result<()> {
        let mut arguments = if has_nextest() {
            progress::announce("Running the tests (cargo nextest run)");
            vec!["nextest", "run", "--workspace", "--no-fail-fast"]
        } else {
            progress::announce(
                "Running the tests (cargo test; with cargo-nextest installed this is faster)",
            );
            vec!["test", "--workspace", "--no-fail-fast"]
        };
        arguments.extend(filter);
        self.run(&arguments)
    }
}

/// Variable with the URL of a separate BuildKit.
const BUILDKITD: &str = "ACRTASK_TEST_BUILDKITD";

/// Separate BuildKit of the tests, which ends with its handle.
struct SeparateBuildkit {
    url: String,
    child: Child,
}

impl SeparateBuildkit {
    /// Starts one with the program of the tests beside `program`. `None` if the user names one.
    fn start<'v>(
        program: &Path,
        variables: impl Iterator<Item = (&'v str, &'v str)>,
    ) -> Result<Option<Self>> {
        if std::env::var_os(BUILDKITD).is_some() {
            return Ok(None);
        }
        progress::announce("Starting a separate BuildKit for the tests");
        let mut child = Command::new(program.with_file_name("separate_buildkit"))
            .envs(variables)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the program separate_buildkit")?;
        let mut url = String::new();
        if let Some(output) = child.stdout.take() {
            BufReader::new(output)
                .read_line(&mut url)
                .context("cannot read the URL of the separate BuildKit")?;
        }
        let url = url.trim().to_owned();
        anyhow::ensure!(!url.is_empty(), "the separate BuildKit did not start");
        Ok(Some(Self { url, child }))
    }
}

impl Drop for SeparateBuildkit {
    fn drop(&mut self) {
        // The end of its input stops it.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Removes the user's logins and settings from the environment of tests.
fn forget_user(command: &mut Command) {
    let names = std::env::vars_os().map(|(name, _)| name);
    let text = names.filter_map(|name| name.into_string().ok());
    for name in text.filter(|name| is_of_user(name)) {
        command.env_remove(name);
    }
    // This file does not exist.
    let nowhere = std::env::temp_dir().join(format!("acrtask-no-user-{}", std::process::id()));
    command
        .env("XDG_CONFIG_HOME", &nowhere)
        .env("DOCKER_CONFIG", &nowhere);
}

/// Returns `true` for variables that acrtask, git or SSH read.
fn is_of_user(name: &str) -> bool {
    let of_tests = ["ACRTASK_TEST_", "ACRTASK_LOAD_"];
    let of_user = ["ACRTASK_", "GIT_", "SSH_"];
    let begins = |all: &[&str]| all.iter().any(|start| name.starts_with(start));
    begins(&of_user) && !begins(&of_tests)
}

fn has_nextest() -> bool {
    let mut command = Command::new("cargo");
    command
        .args(["nextest", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_get_no_settings_of_the_user() {
        for name in [
            "ACRTASK_SERVER",
            "ACRTASK_TOKEN",
            "GIT_DIR",
            "SSH_AUTH_SOCK",
        ] {
            assert!(is_of_user(name), "{name}");
        }
        for name in ["ACRTASK_TEST_REGISTRY", "PATH", "DOCKER_HOST", "HOME"] {
            assert!(!is_of_user(name), "{name}");
        }
    }
}
