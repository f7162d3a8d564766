//! `cargo xtask check`: the rules of the house that compilers do not check. All breaches are told at once.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::{cargo, say};

/// Which crates of ours each crate may build on. A crate that is missing here is a breach: whoever adds one
/// decides where it stands.
const MAY_USE: &[(&str, &[&str])] = &[
    ("acrtask-model", &[]),
    ("acrtask-template", &[]),
    ("acrtask-spec", &["acrtask-model", "acrtask-template"]),
    ("acrtask-buildkit", &["acrtask-model"]),
    ("acrtask-registry", &["acrtask-model"]),
    ("acrtask-source", &["acrtask-model", "acrtask-registry"]),
    ("acrtask-vaults", &["acrtask-model", "acrtask-registry"]),
    (
        "acrtask-executor",
        &[
            "acrtask-model",
            "acrtask-spec",
            "acrtask-buildkit",
            "acrtask-registry",
            "acrtask-source",
            "acrtask-template",
        ],
    ),
    ("acrtask-cascade", &["acrtask-model"]),
    ("acrtask-api", &["acrtask-model"]),
    ("acrtask-trigger", &["acrtask-api", "acrtask-model"]),
    ("acrtask-proto", &[]),
    ("acrtask-store", &["acrtask-api", "acrtask-model"]),
    (
        "acrtask-job",
        &[
            "acrtask-api",
            "acrtask-executor",
            "acrtask-model",
            "acrtask-registry",
            "acrtask-source",
            "acrtask-spec",
            "acrtask-vaults",
        ],
    ),
    (
        "acrtask-agent",
        &[
            "acrtask-api",
            "acrtask-executor",
            "acrtask-job",
            "acrtask-model",
            "acrtask-proto",
            "acrtask-registry",
            "acrtask-source",
            "acrtask-spec",
            "acrtask-vaults",
        ],
    ),
    (
        "acrtask-server",
        &[
            "acrtask-api",
            "acrtask-cascade",
            "acrtask-model",
            "acrtask-proto",
            "acrtask-registry",
            "acrtask-source",
            "acrtask-spec",
            "acrtask-store",
            "acrtask-trigger",
        ],
    ),
    (
        "acrtask",
        &[
            "acrtask-agent",
            "acrtask-api",
            "acrtask-cascade",
            "acrtask-job",
            "acrtask-server",
            "acrtask-store",
            "acrtask-trigger",
            "acrtask-model",
            "acrtask-spec",
            "acrtask-buildkit",
            "acrtask-registry",
            "acrtask-source",
            "acrtask-executor",
            "acrtask-vaults",
        ],
    ),
    (
        "acrtask-tests",
        &[
            "acrtask-api",
            "acrtask-model",
            "acrtask-proto",
            "acrtask-registry",
            "acrtask-source",
            "acrtask-spec",
            "acrtask-store",
        ],
    ),
    ("codegen", &["acrtask-api"]),
    (
        "fuzz",
        &[
            "acrtask-api",
            "acrtask-executor",
            "acrtask-model",
            "acrtask-proto",
            "acrtask-source",
            "acrtask-spec",
            "acrtask-template",
            "acrtask-trigger",
        ],
    ),
    ("xtask", &[]),
];

/// The crates that do no input or output, and what would let them.
const PURE: &[&str] = &[
    "acrtask-api",
    "acrtask-cascade",
    "acrtask-model",
    "acrtask-template",
    "acrtask-spec",
    "acrtask-trigger",
];
const IMPURE: &[&str] = &[
    "bollard",
    "git2",
    "hyper",
    "hyper-util",
    "nix",
    "reqwest",
    "tempfile",
    "tokio",
    "tonic",
];

/// One TLS provider in the graph: two make rustls panic when the program runs.
const FOREIGN_TLS: &[&str] = &["aws-lc-rs", "aws-lc-sys", "native-tls", "openssl-sys"];

const LONGEST_FILE: usize = 600;
/// A line that begins with this, followed by a reason, lets a file be longer.
const LONG_BECAUSE: &str = "// Long because:";

/// Finds every breach of the rules.
pub(crate) fn check() -> Result<()> {
    say::doing("Checking the project's own rules (cargo xtask check)");
    let root = cargo::checkout()?;
    let mut breaches = Vec::new();
    for package in packages()? {
        breaches.extend(dependencies(&package));
    }
    let lock = root.join("Cargo.lock");
    let lock =
        fs::read_to_string(&lock).with_context(|| format!("cannot read {}", lock.display()))?;
    breaches.extend(tls(&lock));
    for path in sources(&root)? {
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path
            .strip_prefix(&root)
            .unwrap_or(&path)
            .display()
            .to_string();
        breaches.extend(source(&name, &text));
    }
    if !breaches.is_empty() {
        bail!(
            "the project's rules are broken:\n  {}",
            breaches.join("\n  ")
        );
    }
    Ok(())
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    /// `dev`, `build`, or nothing for an ordinary one.
    kind: Option<String>,
}

fn packages() -> Result<Vec<Package>> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    let output = cargo::cargo(&["metadata", "--no-deps", "--format-version=1"])?
        .output()
        .context("cannot start cargo")?;
    let metadata: Metadata = serde_json::from_slice(&output.stdout).with_context(|| {
        format!(
            "cargo metadata failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )
    })?;
    Ok(metadata.packages)
}

fn dependencies(package: &Package) -> Vec<String> {
    let name = &package.name;
    let Some((_, allowed)) = MAY_USE.iter().find(|(known, _)| known == name) else {
        return vec![format!(
            "{name} has no place in the dependency directions; give it one in crates/xtask/src/check.rs"
        )];
    };
    let ours: BTreeSet<&str> = MAY_USE.iter().map(|(known, _)| *known).collect();
    let ordinary = package
        .dependencies
        .iter()
        .filter(|dependency| dependency.kind.as_deref() != Some("dev"));
    ordinary
        .filter_map(|dependency| {
            let used = dependency.name.as_str();
            if ours.contains(used) && !allowed.contains(&used) {
                return Some(format!(
                    "{name} must not depend on {used}: dependencies point the other way"
                ));
            }
            if PURE.contains(&name.as_str()) && IMPURE.contains(&used) {
                return Some(format!("{name} is pure and must not depend on {used}"));
            }
            None
        })
        .collect()
}

fn tls(lock: &str) -> Vec<String> {
    let names: BTreeSet<&str> = lock
        .lines()
        .filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'))
        .collect();
    let foreign = FOREIGN_TLS.iter().filter(|name| names.contains(**name));
    foreign
        .map(|name| format!("Cargo.lock has {name}; ring is the only TLS provider here"))
        .collect()
}

fn source(name: &str, text: &str) -> Vec<String> {
    let mut breaches = Vec::new();
    // A file of tests is part of the module it tests, whose header speaks for both.
    if !text.starts_with("//!") && !name.ends_with("tests.rs") {
        breaches.push(format!(
            "{name}:1: a file begins with `//!` and what it is for"
        ));
    }
    let length = text.lines().count();
    if length > LONGEST_FILE && !text.lines().any(|line| line.starts_with(LONG_BECAUSE)) {
        breaches.push(format!(
            "{name}: {length} lines; cut it below {LONGEST_FILE}, or say `{LONG_BECAUSE} ...` in it"
        ));
    }
    for (number, line) in text.lines().enumerate() {
        // Put together here, so that this file does not find itself.
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

/// All Rust files of the project that people write.
fn sources(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut waiting = vec![
        root.join("crates"),
        root.join("runners"),
        root.join("tests"),
    ];
    while let Some(dir) = waiting.pop() {
        let entries =
            fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
        for entry in entries {
            let path = entry
                .with_context(|| format!("cannot list {}", dir.display()))?
                .path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
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

    fn package(name: &str, uses: &[(&str, Option<&str>)]) -> Package {
        let dependency = |(name, kind): &(&str, Option<&str>)| Dependency {
            name: (*name).to_owned(),
            kind: kind.map(str::to_owned),
        };
        Package {
            name: name.to_owned(),
            dependencies: uses.iter().map(dependency).collect(),
        }
    }

    #[test]
    fn dependencies_point_one_way() {
        assert_eq!(
            dependencies(&package(
                "acrtask-spec",
                &[("acrtask-model", None), ("regex", None)]
            )),
            [""; 0]
        );
        assert_eq!(
            dependencies(&package(
                "acrtask-model",
                &[("acrtask-spec", None), ("tokio", None)]
            )),
            [
                "acrtask-model must not depend on acrtask-spec: dependencies point the other way",
                "acrtask-model is pure and must not depend on tokio",
            ]
        );
        assert_eq!(
            dependencies(&package("acrtask-spec", &[("tempfile", Some("dev"))])),
            [""; 0]
        );
        assert_eq!(dependencies(&package("acrtask-new", &[])).len(), 1);
    }

    #[test]
    fn a_second_tls_provider_is_found() {
        assert_eq!(tls("name = \"ring\"\nname = \"openssl-probe\"\n"), [""; 0]);
        assert_eq!(
            tls("name = \"aws-lc-rs\"\n"),
            ["Cargo.lock has aws-lc-rs; ring is the only TLS provider here"]
        );
    }

    #[test]
    fn files_say_what_they_are_for_and_stay_short() {
        assert_eq!(source("a.rs", "//! Purpose.\n"), [""; 0]);
        assert_eq!(
            source("a.rs", "fn main() {}\n"),
            ["a.rs:1: a file begins with `//!` and what it is for"]
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
