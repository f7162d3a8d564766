//! Root file systems in the cache: Debian trixie, installed by debootstrap. One is for the engine,
//! because the Docker of Debian 12 (20.10) lacks the containerd image store.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache::{Cache, Lock, short_hash};
use crate::packages::Tools;
use crate::process::run_logged;
use crate::progress;

const RELEASE: &str = "trixie";
const MIRROR: &str = "http://deb.debian.org/debian";
/// Packages of the root file system. On a kernel with AppArmor the engine starts no container
/// without its parser. `git` is for git contexts, `docker-cli` and `docker-buildx` for comparisons.
const PACKAGES: &str =
    "apparmor,ca-certificates,docker-buildx,docker-cli,docker.io,git,iptables,procps";

/// Prefix of the folder of the engine's root file system.
const ENGINE: &str = "rootfs";

fn name(prefix: &str, packages: &str) -> String {
    let recipe = format!("{RELEASE} {MIRROR} {packages}");
    format!("{prefix}-{}", short_hash(&recipe))
}

/// Returns the folder of the engine's root file system.
pub(super) fn folder(cache: &Cache) -> PathBuf {
    cache.path(name(ENGINE, PACKAGES))
}

/// Creates the engine's root file system if it is missing.
pub(super) fn get(cache: &Cache, lock: &Lock, tools: &Tools) -> Result<PathBuf> {
    install(cache, lock, tools, ENGINE, PACKAGES)
        .context("cannot install Debian with a Docker Engine")
}

/// Creates a root file system with `packages`, separated by commas, if it is missing. Its folder
/// begins with `prefix`.
pub(crate) fn install(
    cache: &Cache,
    _lock: &Lock,
    tools: &Tools,
    prefix: &str,
    packages: &str,
) -> Result<PathBuf> {
    cache.dir_once(&name(prefix, packages), |dir| {
        let log = cache.dir("logs")?.join("debootstrap.log");
        progress::announce(format!(
            "Installing Debian {RELEASE} with {packages} into {} (about a minute; log: {})",
            dir.display(),
            log.display()
        ));
        let programs = with_wget(tools)?;
        // The mount namespace ends with debootstrap, so a killed one leaves no mount.
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "--"])
            .arg(tools.path("/usr/sbin/debootstrap"))
            .args([
                "--variant=minbase",
                &format!("--include={packages}"),
                RELEASE,
            ])
            .arg(dir)
            .arg(MIRROR)
            .env("DEBOOTSTRAP_DIR", tools.path("/usr/share/debootstrap"))
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env(
                "PATH",
                format!(
                    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:{}",
                    programs.display()
                ),
            )
            .env("LC_ALL", "C.UTF-8");
        run_logged(&mut command, &log)
    })
}

/// Returns a folder with busybox's `wget` for debootstrap, for machines without `wget`.
fn with_wget(tools: &Tools) -> Result<PathBuf> {
    let programs = tools.path("/bin");
    let wget = programs.join("wget");
    if !wget.is_symlink() {
        symlink("busybox", &wget).with_context(|| format!("cannot create {}", wget.display()))?;
    }
    Ok(programs)
}
