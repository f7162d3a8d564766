//! `cargo xtask check`: the project's rules that compilers do not check. It reports all breaches at
//! once.

mod commits;
mod dependencies;
mod language;
mod measure;
mod source_text;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{cargo, progress};

pub(crate) use measure::measure;

/// Paths that the language rules do not read: code that `buf` generates, and the rules themselves,
/// which quote what they refuse.
const NOT_PROSE: &[&str] = &[
    "crates/acrtask-proto/src/generated",
    "crates/xtask/src/check/",
];

/// Most lines of a file.
const LONGEST_FILE: usize = 650;
/// Beginning of a line that gives the reason why a file is longer.
const LONG_BECAUSE: &str = "// Long because:";

/// Finds every breach of the rules.
pub(crate) fn check() -> Result<()> {
    progress::announce("Checking the project's own rules (cargo xtask check)");
    let root = cargo::checkout()?;
    let mut breaches = Vec::new();
    breaches.extend(dependencies::check_dependencies(&root)?);
    for path in sources(&root)? {
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path
            .strip_prefix(&root)
            .unwrap_or(&path)
            .display()
            .to_string();
        breaches.extend(source(&name, &text));
        if !NOT_PROSE.iter().any(|prefix| name.starts_with(prefix)) {
            breaches.extend(language::check_rust(&name, &text));
        }
    }
    for path in pages(&root)? {
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path
            .strip_prefix(&root)
            .unwrap_or(&path)
            .display()
            .to_string();
        if !NOT_PROSE.iter().any(|prefix| name.starts_with(prefix)) {
            breaches.extend(language::check_markdown(&name, &text));
        }
    }
    breaches.extend(commits::check_subjects(&root)?);
    if !breaches.is_empty() {
        bail!(
            "the project's rules are broken:\n  {}",
            breaches.join("\n  ")
        );
    }
    Ok(())
}

fn source(name: &str, text: &str) -> Vec<String> {
    let mut breaches = Vec::new();
    // A file of tests is part of the module it tests, whose header covers both.
    if !text.starts_with("//!") && !name.ends_with("tests.rs") {
        breaches.push(format!(
            "{name}:1: the file has no header; begin it with `//!` and its purpose"
        ));
    }
    let length = text.lines().count();
    if length > LONGEST_FILE && !text.lines().any(|line| line.starts_with(LONG_BECAUSE)) {
        breaches.push(format!(
            "{name}: {length} lines; cut it below {LONGEST_FILE}, or give the reason as `{LONG_BECAUSE} ...`"
        ));
    }
    for (number, line) in text.lines().enumerate() {
        // `concat!` keeps this file from finding itself.
        for mark in [
            concat!("TO", "DO"),
            concat!("FIX", "ME"),
            concat!("HA", "CK:"),
        ] {
            if line
                .split_once("//")
                .is_some_and(|(_, comment)| comment.contains(mark))
            {
                breaches.push(format!(
                    "{name}:{}: {mark}: do it, or open an issue",
                    number + 1
                ));
            }
        }
    }
    breaches
}

/// Returns all Rust files of the project, sorted.
fn sources(root: &Path) -> Result<Vec<PathBuf>> {
    let folders = ["crates", "runners", "tests"].map(|folder| root.join(folder));
    find_files(folders.to_vec(), "rs")
}

/// Returns all Markdown pages of the project, sorted.
fn pages(root: &Path) -> Result<Vec<PathBuf>> {
    let folders = ["docs", "examples", "runners"].map(|folder| root.join(folder));
    let mut found = find_files(folders.to_vec(), "md")?;
    for entry in fs::read_dir(root).context("cannot list the checkout")? {
        let path = entry.context("cannot list the checkout")?.path();
        if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn find_files(mut waiting: Vec<PathBuf>, wanted: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    while let Some(dir) = waiting.pop() {
        let entries =
            fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
        for entry in entries {
            let path = entry
                .with_context(|| format!("cannot list {}", dir.display()))?
                .path();
            if path.is_dir() {
                waiting.push(path);
            } else if path
                .extension()
                .is_some_and(|extension| extension == wanted)
            {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_without_header_or_too_long_are_refused() {
        assert_eq!(source("a.rs", "//! Purpose.\n"), [""; 0]);
        assert_eq!(
            source("a.rs", "fn main() {}\n"),
            ["a.rs:1: the file has no header; begin it with `//!` and its purpose"]
        );
        assert_eq!(source("a_tests.rs", "use super::*;\n"), [""; 0]);
        let long = format!("//! Purpose.\n{}", "\n".repeat(LONGEST_FILE));
        assert_eq!(source("a.rs", &long).len(), 1);
        assert_eq!(
            source("a.rs", &format!("{long}{LONG_BECAUSE} a table\n")),
            [""; 0]
        );
        let open = concat!("//! Purpose.\nlet x = 1; // TO", "DO: later\n");
        assert_eq!(
            source("a.rs", open),
            [concat!("a.rs:2: TO", "DO: do it, or open an issue")]
        );
    }
}
