//! Programs of others for registries, with which tests check images after purges and copies:
//! `crane`, `oras`, `cosign` and `notation`. Debian's packages, unpacked and not installed.
//!
//! The versions are pinned. If Debian has replaced one, raise its version here.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::cache::{Cache, Lock};
use crate::packages::{self, Suites};

/// Variable that names the folder of the programs for the tests.
pub(crate) const VARIABLE: &str = "ACRTASK_TEST_REGISTRY_TOOLS";
/// Releases of Debian that have the packages. They are statically linked, so older releases run
/// them.
const SUITES: Suites = Suites {
    name: "registry-tools",
    releases: &["trixie", "sid"],
};
const PACKAGES: &[&str] = &[
    "cosign=2.5.0-2+b5",
    "crane=0.20.7+ds1-5",
    "notation=1.3.2-2",
    "oras=1.3.3-1",
];
const PROGRAMS: [&str; 4] = ["cosign", "crane", "notation", "oras"];

/// Returns the folder that the user named, or the one in the cache. Fills the latter if it is
/// missing.
pub(crate) fn get(cache: &Cache, _lock: &Lock) -> Result<PathBuf> {
    let named = std::env::var_os(VARIABLE).map(PathBuf::from);
    let folder = match named.filter(|named| named.is_dir()) {
        Some(named) => named,
        None => {
            let instead = format!(
                "{VARIABLE} to a folder with the programs {}",
                PROGRAMS.join(", ")
            );
            packages::unpacked_from(cache, &SUITES, PACKAGES, &instead)?.join("usr/bin")
        }
    };
    for program in PROGRAMS {
        ensure!(
            folder.join(program).is_file(),
            "{} has no program {program}: unset {VARIABLE}",
            folder.display()
        );
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_pinned() {
        for package in PACKAGES {
            let (name, version) = package.split_once('=').unwrap();
            assert!(PROGRAMS.contains(&name) && !version.is_empty(), "{package}");
        }
    }
}
