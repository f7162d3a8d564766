//! Programs from Debian's packages, unpacked into the cache and not installed. The machine does not
//! change, no service starts, and root is not needed. `apt-get download` verifies the packages.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::{Cache, Lock, remove_tree, short_hash};
use crate::process::run_logged;
use crate::progress;

/// Packages that every set-up needs: the registry, the content of the base images, and debootstrap.
const PACKAGES: &[&str] = &[
    "bash-static",
    "busybox-static",
    "debootstrap",
    "docker-registry",
];

/// Folder of the unpacked programs.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    root: PathBuf,
}

impl Tools {
    /// Unpacks the packages if they are missing.
    pub(crate) fn get(cache: &Cache, _lock: &Lock) -> Result<Self> {
        let root = unpacked(
            cache,
            "tools",
            PACKAGES,
            "ACRTASK_TEST_DOCKER_HOST to a Docker Engine with the containerd image store",
        )?;
        Ok(Self { root })
    }

    /// Returns a file of the packages by its absolute path there.
    pub(crate) fn path(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }
}

/// Unpacks `packages` into the folder `NAME-HASH` of the cache. `instead` ends the sentence `set
/// ...` in the error for machines without Debian's packages.
pub(crate) fn unpacked(
    cache: &Cache,
    name: &str,
    packages: &[&str],
    instead: &str,
) -> Result<PathBuf> {
    let name = format!("{name}-{}", short_hash(&packages.join(" ")));
    cache.dir_once(&name, |dir| {
        if !Path::new("/usr/bin/apt-get").exists() || !Path::new("/usr/bin/dpkg-deb").exists() {
            bail!(
                "this machine has no apt-get, so {} cannot be had from Debian's packages; \
                 on other systems set {instead} and run this in a Debian container or machine",
                packages.join(", ")
            );
        }
        progress::announce(format!(
            "Unpacking {} from Debian's packages into {} (nothing is installed)",
            packages.join(", "),
            cache.root().display()
        ));
        let log = cache.dir("logs")?.join("packages.log");
        download(cache, packages, dir, &log)?;
        unpack(dir, &log)
    })
}

fn download(cache: &Cache, packages: &[&str], into: &Path, log: &Path) -> Result<()> {
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .current_dir(into)
            .args(["-qq", "-o", "APT::Sandbox::User=root"]);
        command.args(args);
        command
    };
    let mut fetch = vec!["download"];
    fetch.extend(packages);
    if run_logged(&mut apt(&fetch), log).is_ok() {
        return Ok(());
    }
    // The machine's lists are missing or old. Fresh lists go into the cache, not into the machine.
    progress::report("apt's package lists are missing or old: fetching fresh ones into the cache");
    let state = format!(
        "Dir::State={}",
        cache
            .dir("apt/state/lists/partial")?
            .ancestors()
            .nth(2)
            .unwrap_or(into)
            .display()
    );
    let archives = format!(
        "Dir::Cache={}",
        cache
            .dir("apt/cache/archives/partial")?
            .ancestors()
            .nth(2)
            .unwrap_or(into)
            .display()
    );
    let own = [
        "-o",
        &state,
        "-o",
        "Dir::State::status=/var/lib/dpkg/status",
        "-o",
        &archives,
    ];
    let updated = run_logged(&mut apt(&[&own[..], &["update"]].concat()), log);
    // One broken source of the machine makes `update` fail although Debian's lists arrived.
    run_logged(&mut apt(&[&own[..], &fetch].concat()), log)
        .or_else(|error| updated.and(Err(error)))
        .context("cannot download Debian packages")?;
    remove_tree(&cache.path("apt"))
}

fn unpack(dir: &Path, log: &Path) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    for entry in entries {
        let deb = entry.context("cannot list the packages")?.path();
        if deb.extension().is_some_and(|extension| extension == "deb") {
            run_logged(
                Command::new("dpkg-deb").arg("--extract").arg(&deb).arg(dir),
                log,
            )?;
            fs::remove_file(&deb).with_context(|| format!("cannot remove {}", deb.display()))?;
        }
    }
    Ok(())
}

/// Returns the library folders of unpacked packages for `LD_LIBRARY_PATH`: `usr/lib/TRIPLET` and
/// `lib/TRIPLET`.
pub(crate) fn libraries(root: &Path) -> Result<String> {
    let mut folders = Vec::new();
    for folder in ["usr/lib", "lib"] {
        let entries = fs::read_dir(root.join(folder));
        for entry in entries.into_iter().flatten() {
            let path = entry.context("cannot list the libraries")?.path();
            if path.to_string_lossy().ends_with("-linux-gnu") {
                folders.push(path.display().to_string());
            }
        }
    }
    Ok(folders.join(":"))
}
