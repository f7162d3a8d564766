//! Rules for dependencies: their direction, purity, one TLS provider, and none that is unused.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use super::find_files;
use super::source_text::split_lines;
use crate::cargo;

/// Crates of the workspace that each crate may depend on. A crate that is missing here is a breach.
const MAY_USE: &[(&str, &[&str])] = &[
    ("acrtask-model", &[]),
    ("acrtask-template", &[]),
    ("acrtask-purge", &[]),
    (
        "acrtask-spec",
        &["acrtask-model", "acrtask-purge", "acrtask-template"],
    ),
    ("acrtask-buildkit", &["acrtask-model"]),
    ("acrtask-registry", &["acrtask-model"]),
    ("acrtask-source", &["acrtask-model", "acrtask-registry"]),
    (
        "acrtask-upkeep",
        &[
            "acrtask-api",
            "acrtask-model",
            "acrtask-purge",
            "acrtask-registry",
        ],
    ),
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
            "acrtask-upkeep",
        ],
    ),
    ("acrtask-cascade", &["acrtask-model"]),
    ("acrtask-api", &["acrtask-model"]),
    ("acrtask-arm", &["acrtask-api", "acrtask-model"]),
    ("acrtask-page", &["acrtask-model"]),
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
            "acrtask-arm",
            "acrtask-cascade",
            "acrtask-model",
            "acrtask-page",
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
            "acrtask-upkeep",
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
            "acrtask-page",
            "acrtask-proto",
            "acrtask-source",
            "acrtask-spec",
            "acrtask-template",
            "acrtask-trigger",
        ],
    ),
    ("xtask", &[]),
];

/// Crates that do no input or output.
const PURE: &[&str] = &[
    "acrtask-api",
    "acrtask-arm",
    "acrtask-cascade",
    "acrtask-model",
    "acrtask-page",
    "acrtask-purge",
    "acrtask-template",
    "acrtask-spec",
    "acrtask-trigger",
];
/// Dependencies that do input or output.
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

/// TLS providers beside ring. Two providers in one program make rustls panic at run time.
const FOREIGN_TLS: &[&str] = &["aws-lc-rs", "aws-lc-sys", "native-tls", "openssl-sys"];

/// Packages whose library has another name than the package.
const LIBRARY_NAMES: &[(&str, &str)] = &[("astral-tokio-tar", "tokio_tar")];

/// Dependencies that only a file of another crate names, which `#[path]` includes.
const USED_BY_INCLUDED_FILES: &[(&str, &str)] = &[("acrtask-tests", "astral-tokio-tar")];

/// Finds every breach of the rules for dependencies in the workspace.
pub(super) fn check_dependencies(root: &Path) -> Result<Vec<String>> {
    let mut breaches = Vec::new();
    for package in read_packages()? {
        breaches.extend(check_package(&package));
        let folder = package.manifest_path.parent().unwrap_or(root);
        let mut code = String::new();
        for path in find_files(vec![folder.to_owned()], "rs")? {
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            for line in split_lines(&text) {
                code.push_str(&line.code);
                code.push('\n');
            }
        }
        breaches.extend(find_unused(&package, &code));
    }
    let lock = root.join("Cargo.lock");
    let lock =
        fs::read_to_string(&lock).with_context(|| format!("cannot read {}", lock.display()))?;
    breaches.extend(check_tls_providers(&lock));
    Ok(breaches)
}

/// Returns the dependencies of `package` that its `code` never names.
fn find_unused(package: &Package, code: &str) -> Vec<String> {
    let names: BTreeSet<&str> = code
        .split(|char: char| !(char.is_alphanumeric() || char == '_'))
        .collect();
    let unused = package.dependencies.iter().filter(|dependency| {
        let library = LIBRARY_NAMES
            .iter()
            .find(|(package, _)| *package == dependency.name)
            .map(|(_, library)| (*library).to_owned());
        let name = dependency.rename.as_ref().unwrap_or(&dependency.name);
        let library = library.unwrap_or_else(|| name.replace('-', "_"));
        let included =
            USED_BY_INCLUDED_FILES.contains(&(package.name.as_str(), dependency.name.as_str()));
        !included && !names.contains(library.as_str())
    });
    unused
        .map(|dependency| {
            format!(
                "{} does not use {}; remove it from its Cargo.toml",
                package.name, dependency.name
            )
        })
        .collect()
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    /// `dev` or `build`. `None` for an ordinary dependency.
    kind: Option<String>,
    /// Name in the crate's code, if it differs from the package.
    #[serde(default)]
    rename: Option<String>,
}

fn read_packages() -> Result<Vec<Package>> {
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

fn check_package(package: &Package) -> Vec<String> {
    let name = &package.name;
    let Some((_, allowed)) = MAY_USE.iter().find(|(listed, _)| listed == name) else {
        return vec![format!(
            "{name} is not in the dependency directions; add it in crates/xtask/src/check.rs"
        )];
    };
    let ours: BTreeSet<&str> = MAY_USE.iter().map(|(listed, _)| *listed).collect();
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

fn check_tls_providers(lock: &str) -> Vec<String> {
    let names: BTreeSet<&str> = lock
        .lines()
        .filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'))
        .collect();
    let foreign = FOREIGN_TLS.iter().filter(|name| names.contains(**name));
    foreign
        .map(|name| format!("Cargo.lock has {name}; ring is the only TLS provider here"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, uses: &[(&str, Option<&str>)]) -> Package {
        let dependency = |(name, kind): &(&str, Option<&str>)| Dependency {
            name: (*name).to_owned(),
            kind: kind.map(str::to_owned),
            rename: None,
        };
        Package {
            name: name.to_owned(),
            manifest_path: PathBuf::new(),
            dependencies: uses.iter().map(dependency).collect(),
        }
    }

    #[test]
    fn dependencies_against_the_direction_are_refused() {
        assert_eq!(
            check_package(&package(
                "acrtask-spec",
                &[("acrtask-model", None), ("regex", None)]
            )),
            [""; 0]
        );
        assert_eq!(
            check_package(&package(
                "acrtask-model",
                &[("acrtask-spec", None), ("tokio", None)]
            )),
            [
                "acrtask-model must not depend on acrtask-spec: dependencies point the other way",
                "acrtask-model is pure and must not depend on tokio",
            ]
        );
        assert_eq!(
            check_package(&package("acrtask-spec", &[("tempfile", Some("dev"))])),
            [""; 0]
        );
        assert_eq!(check_package(&package("acrtask-new", &[])).len(), 1);
    }

    #[test]
    fn second_tls_provider_is_refused() {
        assert_eq!(
            check_tls_providers("name = \"ring\"\nname = \"openssl-probe\"\n"),
            [""; 0]
        );
        assert_eq!(
            check_tls_providers("name = \"aws-lc-rs\"\n"),
            ["Cargo.lock has aws-lc-rs; ring is the only TLS provider here"]
        );
    }

    #[test]
    fn unused_dependencies_are_refused() {
        let package = package("acrtask-spec", &[("tokio-util", None), ("regex", None)]);
        assert_eq!(
            find_unused(&package, "use tokio_util::io; regex::Regex"),
            [""; 0]
        );
        assert_eq!(
            find_unused(&package, "use tokio_util::io;"),
            ["acrtask-spec does not use regex; remove it from its Cargo.toml"]
        );
    }
}
