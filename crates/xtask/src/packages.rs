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

/// Mirror of Debian, and the keys of its releases.
const MIRROR: &str = "http://deb.debian.org/debian";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

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
    unpack_once(cache, name, packages, instead, |dir, log| {
        download(cache, packages, dir, log)
    })
}

/// Releases of Debian, beside the machine's own.
pub(crate) struct Suites {
    /// Name of the folder in the cache.
    pub(crate) name: &'static str,
    /// Names of the releases.
    pub(crate) releases: &'static [&'static str],
}

/// Unpacks `packages` of other releases of Debian, each written `NAME=VERSION`. apt's lists of these
/// releases go into the cache.
pub(crate) fn unpacked_from(
    cache: &Cache,
    suites: &Suites,
    packages: &[&str],
    instead: &str,
) -> Result<PathBuf> {
    unpack_once(cache, suites.name, packages, instead, |dir, log| {
        let state = cache.dir("apt-suites/lists/partial")?;
        let state = state.ancestors().nth(2).unwrap_or(&state).to_owned();
        let archives = cache.dir("apt-suites/archives/partial")?;
        let archives = archives.ancestors().nth(2).unwrap_or(&archives).to_owned();
        let sources = state.join("sources.list");
        let lines: String = suites
            .releases
            .iter()
            .map(|release| format!("deb [signed-by={KEYRING}] {MIRROR} {release} main\n"))
            .collect();
        fs::write(&sources, lines)
            .with_context(|| format!("cannot write {}", sources.display()))?;
        let options = [
            format!("Dir::Etc::sourcelist={}", sources.display()),
            "Dir::Etc::sourceparts=/dev/null".into(),
            format!("Dir::State={}", state.display()),
            "Dir::State::status=/var/lib/dpkg/status".into(),
            format!("Dir::Cache={}", archives.display()),
            // The lists of sid are valid for a week only, and mirrors may be late.
            "Acquire::Check-Valid-Until=false".into(),
        ];
        let apt = |args: &[&str]| {
            let mut command = apt_get(dir);
            for option in &options {
                command.args(["-o", option]);
            }
            command.args(args);
            command
        };
        run_logged(&mut apt(&["update"]), log).context("cannot fetch Debian's package lists")?;
        let mut fetch = vec!["download"];
        fetch.extend(packages);
        run_logged(&mut apt(&fetch), log).context("cannot download Debian packages")?;
        remove_tree(&cache.path("apt-suites"))
    })
}

fn unpack_once(
    cache: &Cache,
    name: &str,
    packages: &[&str],
    instead: &str,
    download: impl FnOnce(&Path, &Path) -> Result<()>,
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
        download(dir, &log)?;
        unpack(dir, &log)
    })
}

fn apt_get(folder: &Path) -> Command {
    let mut command = Command::new("apt-get");
    command
        .current_dir(folder)
        .args(["-qq", "-o", "APT::Sandbox::User=root"]);
    command
}

fn download(cache: &Cache, packages: &[&str], into: &Path, log: &Path) -> Result<()> {
    let apt = |args: &[&str]| {
        let mut command = apt_get(into);
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
