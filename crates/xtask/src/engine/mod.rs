//! The Docker Engine for tests and the demo: the machine's, or one in the cache.
//!
//! An engine of the machine is never reconfigured or stopped. If it lacks a feature, the error
//! names the feature. The cache gets an engine only if none runs: two engines on one machine would
//! overwrite each other's packet filter rules.

mod daemon;
mod firewall;
pub(crate) mod rootfs;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::unistd::{Uid, User};
use serde::Deserialize;

use crate::cache::{Cache, Lock};
use crate::http::{self, Address};
use crate::packages::Tools;
use crate::progress;

pub(crate) use daemon::down;

/// An engine that responds and has all required features.
#[derive(Debug)]
pub(crate) struct Engine {
    /// Value of `DOCKER_HOST`.
    pub(crate) host: String,
    /// Root file system of the engine in the cache. `None` for an engine of the machine.
    pub(crate) root: Option<PathBuf>,
}

/// Required part of the engine's `GET /info` (Docker Engine API, SystemInfo).
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Info {
    server_version: String,
    #[serde(default)]
    driver_status: Vec<(String, String)>,
}

impl Info {
    /// Returns `true` if containerd stores the images. The classic store supports neither registry
    /// caches nor attestations, and gives a built image no manifest digest.
    fn has_containerd_store(&self) -> bool {
        let wanted = ("driver-type", "io.containerd.snapshotter.v1");
        self.driver_status
            .iter()
            .any(|(key, value)| (key.as_str(), value.as_str()) == wanted)
    }
}

/// Finds a usable engine or sets one up.
pub(crate) fn get(cache: &Cache, lock: &Lock, tools: &Tools) -> Result<Engine> {
    progress::announce("Looking for a Docker Engine with the containerd image store");
    if let Some(engine) = daemon::running(cache)? {
        progress::report(format!("the one set up earlier runs at {}", engine.host));
        return Ok(engine);
    }
    let own = format!("unix://{}", daemon::socket(cache).display());
    if let Some((variable, host)) = named_by_environment().filter(|(_, host)| *host != own) {
        let info = ask(&host)
            .with_context(|| format!("{variable} names an engine that cannot be used"))?;
        return accept(host, &info);
    }
    let mut unreachable = None;
    for socket in usual_sockets().iter().filter(|socket| socket.exists()) {
        let host = format!("unix://{}", socket.display());
        match ask(&host) {
            Ok(info) => return accept(host, &info),
            Err(error) => unreachable = Some(error),
        }
    }
    match whether_to_set_up() {
        Ok(()) => {
            progress::report("none runs; this is Debian and root, so one of our own is used");
            let root = rootfs::get(cache, lock, tools)?;
            daemon::start(cache, &root, tools)
        }
        Err(why_not) => Err(why_not.context(match unreachable {
            Some(error) => format!("no Docker Engine could be used ({error:#})"),
            None => "no Docker Engine was found".to_owned(),
        })),
    }
}

fn named_by_environment() -> Option<(&'static str, String)> {
    ["ACRTASK_TEST_DOCKER_HOST", "DOCKER_HOST"]
        .into_iter()
        .find_map(|variable| {
            let host = std::env::var(variable)
                .ok()
                .filter(|host| !host.is_empty())?;
            Some((variable, host))
        })
}

fn usual_sockets() -> Vec<PathBuf> {
    let mut sockets = vec![PathBuf::from("/var/run/docker.sock")];
    if let Some(runtime) = std::env::var_os("XDG_RUNTIME_DIR") {
        sockets.push(Path::new(&runtime).join("docker.sock"));
    }
    if let Some(home) = std::env::home_dir() {
        sockets.push(home.join(".docker/run/docker.sock"));
    }
    sockets
}

fn ask(host: &str) -> Result<Info> {
    let address = Address::from_docker_host(host)?;
    let answer = http::request(&address, "GET", "/info", &[], b"", Duration::from_secs(20))?;
    if answer.status != 200 {
        bail!(
            "{host} answered {} to GET /info: {}",
            answer.status,
            answer.text()
        );
    }
    serde_json::from_slice(&answer.body).with_context(|| format!("{host} is not a Docker Engine"))
}

fn accept(host: String, info: &Info) -> Result<Engine> {
    // With a separate buildkitd the engine only runs containers, and the classic store suffices.
    let builds = std::env::var_os("BUILDKIT_HOST").is_none();
    if builds && !info.has_containerd_store() {
        bail!(
            "the Docker Engine {} at {host} keeps its images in the classic store. The demo and the tests need the \
             containerd image store: put {{\"features\":{{\"containerd-snapshotter\":true}}}} into /etc/docker/daemon.json \
             of an engine from 26 on and restart it, or name another engine in ACRTASK_TEST_DOCKER_HOST. \
             It was left as it is, and no second one is set up beside it",
            info.server_version
        );
    }
    progress::report(format!(
        "Docker Engine {} at {host} is used as it is",
        info.server_version
    ));
    Ok(Engine { host, root: None })
}

fn whether_to_set_up() -> Result<()> {
    let instead = "start a Docker Engine with the containerd image store, or name one in ACRTASK_TEST_DOCKER_HOST";
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if !is_debian(&release) {
        bail!("an engine is set up only on Debian; {instead}");
    }
    if !Uid::effective().is_root() {
        let user = User::from_uid(Uid::effective()).ok().flatten();
        let user = user.map_or_else(|| "this user".to_owned(), |user| user.name);
        bail!("setting one up needs root, and {user} is not; run this as root, or {instead}");
    }
    if let Some(pid) = daemon::foreign() {
        bail!(
            "a dockerd runs already (process {pid}) and does not listen where it was looked for; a second one would \
             rewrite its packet filter rules. Name its address in ACRTASK_TEST_DOCKER_HOST, or stop it"
        );
    }
    Ok(())
}

fn is_debian(os_release: &str) -> bool {
    os_release
        .lines()
        .any(|line| line == "ID=debian" || line == "ID=\"debian\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn driver_status_names_the_image_store() {
        let ask = |json: &str| {
            serde_json::from_str::<Info>(json)
                .unwrap()
                .has_containerd_store()
        };
        assert!(ask(
            r#"{"ServerVersion":"26.1.5","DriverStatus":[["driver-type","io.containerd.snapshotter.v1"]]}"#
        ));
        assert!(!ask(
            r#"{"ServerVersion":"20.10.24","DriverStatus":[["Backing Filesystem","extfs"]]}"#
        ));
        assert!(!ask(r#"{"ServerVersion":"20.10.24"}"#));
    }

    #[test]
    fn derivatives_of_debian_are_not_debian() {
        assert!(is_debian("NAME=\"Debian GNU/Linux\"\nID=debian\n"));
        assert!(!is_debian("ID=ubuntu\nID_LIKE=debian\n"));
    }
}
