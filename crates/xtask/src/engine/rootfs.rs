//! The root file system that our engine runs in: Debian trixie, whose Docker is recent enough, made by
//! debootstrap. Debian 12's own Docker (20.10) lacks the containerd image store.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache::{Cache, Lock, short_hash};
use crate::packages::Tools;
use crate::process::run_logged;
use crate::say;

const RELEASE: &str = "trixie";
const MIRROR: &str = "http://deb.debian.org/debian";
/// `apparmor` because on a kernel that has it the engine refuses to start containers without its
/// parser; `git` for git contexts; the two `docker` programs for comparing with.
const PACKAGES: &str =
    "apparmor,ca-certificates,docker-buildx,docker-cli,docker.io,git,iptables,procps";

fn name() -> String {
    let recipe = format!("{RELEASE} {MIRROR} {PACKAGES}");
    format!("rootfs-{}", short_hash(&recipe))
}

/// Where the root file system is or will be.
pub(super) fn folder(cache: &Cache) -> PathBuf {
    cache.path(name())
}

/// Makes the root file system, unless an earlier command did.
pub(super) fn get(cache: &Cache, _lock: &Lock, tools: &Tools) -> Result<PathBuf> {
    cache.dir_once(&name(), |dir| {
        let log = cache.dir("logs")?.join("debootstrap.log");
        say::doing(format!(
            "Installing Debian {RELEASE} with {PACKAGES} into {} (about a minute; log: {})",
            dir.display(),
            log.display()
        ));
        let programs = with_wget(tools)?;
        // In a mount namespace of its own, so that a killed debootstrap leaves no mount behind.
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "--"])
            .arg(tools.path("/usr/sbin/debootstrap"))
            .args([
                "--variant=minbase",
                &format!("--include={PACKAGES}"),
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
        run_logged(&mut command, &log).context("cannot install Debian with a Docker Engine")
    })
}

/// A folder with a `wget` for debootstrap, to be searched last: minimal machines have none, and busybox's will do.
fn with_wget(tools: &Tools) -> Result<PathBuf> {
    let programs = tools.path("/bin");
    let wget = programs.join("wget");
    if !wget.is_symlink() {
        symlink("busybox", &wget).with_context(|| format!("cannot create {}", wget.display()))?;
    }
    Ok(programs)
}
