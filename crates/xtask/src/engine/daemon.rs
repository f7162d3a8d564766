//! The engine of the cache: dockerd in its root file system and in a mount namespace.
//!
//! The mounts end with the last process of the namespace, and the machine never sees them. `/run`
//! there is a fresh tmpfs. Only the folder of the socket comes from outside: `engine/run` of the
//! cache.
//!
//! Left out: the AppArmor profile `docker-default`, which dockerd loads, stays loaded until the
//! next boot.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::unistd::Pid;
use serde_json::json;

use super::{Engine, ask, firewall, rootfs};
use crate::cache::{self, Cache, Lock};
use crate::packages::Tools;
use crate::process::{Service, log_tail, start_detached, wait_until};
use crate::progress;

/// Script for the shell in the new mount namespace: $1 root file system, $2 data, $3 folder of the
/// socket, $4 mark, then the daemon's command line. runc requires a root that is a mount point, so
/// the first line mounts it.
const ENTER: &str = r#"
set -eu
root=$1 data=$2 run=$3 mark=$4
shift 4
mount --bind "$root" "$root"
mount --rbind /proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mkdir -p "$root/run/$mark" "$root/var/lib/docker"
mount --bind "$run" "$root/run/$mark"
mount --bind "$data" "$root/var/lib/docker"
# A machine without any cgroup mount still has cgroup v2 in its kernel.
if [ -z "$(ls -A "$root/sys/fs/cgroup")" ]; then
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
fi
exec chroot "$root" "$@"
"#;

/// Returns the socket of the engine.
pub(super) fn socket(cache: &Cache) -> PathBuf {
    cache.path("engine/run/docker.sock")
}

fn service(cache: &Cache) -> Service {
    Service {
        mark: cache.mark(),
        programs: &["dockerd", "containerd"],
    }
}

/// Returns the engine if it runs and responds.
pub(super) fn running(cache: &Cache) -> Result<Option<Engine>> {
    if main_process(cache).is_none() {
        return Ok(None);
    }
    let host = format!("unix://{}", socket(cache).display());
    if ask(&host).is_err() {
        return Ok(None);
    }
    Ok(Some(Engine {
        host,
        root: Some(rootfs::folder(cache)),
    }))
}

/// Returns the process id of a dockerd outside of the cache.
pub(super) fn foreign() -> Option<Pid> {
    let any = Service {
        mark: String::new(),
        programs: &["dockerd"],
    };
    any.processes().first().copied()
}

/// Starts dockerd and waits until it responds.
pub(super) fn start(cache: &Cache, root: &Path, tools: &Tools) -> Result<Engine> {
    let socket = socket(cache);
    // A socket path has at most 108 bytes with the final zero (unix(7)).
    if socket.as_os_str().as_bytes().len() > 107 {
        bail!(
            "{} is too long for a socket's path; set XDG_CACHE_HOME to a shorter one",
            socket.display()
        );
    }
    if service(cache).stop(None, Duration::from_secs(10))? {
        progress::report("stopped what was left of an engine that had died");
    }
    let log = cache.dir("logs")?.join("dockerd.log");
    let mark = cache.mark();
    let run = cache.dir("engine/run")?;
    for stale in ["docker.sock", "docker.pid"] {
        let _ = fs::remove_file(run.join(stale));
    }
    let firewall = firewall::choose(root);
    let configuration = json!({
        "features": { "containerd-snapshotter": true },
        "hosts": [format!("unix:///run/{mark}/docker.sock")],
        "pidfile": format!("/run/{mark}/docker.pid"),
        "exec-root": format!("/run/{mark}/exec"),
        "data-root": "/var/lib/docker",
        "insecure-registries": ["127.0.0.0/8"],
        "iptables": firewall.is_some(),
        "ip6tables": false,
        // Without a limit, BuildKit's cache may use a tenth of the disk, and more during a build.
        "builder": { "gc": { "enabled": true, "defaultKeepStorage": "10GB" } },
    });
    let etc = root.join("etc/docker");
    fs::create_dir_all(&etc).with_context(|| format!("cannot create {}", etc.display()))?;
    cache::write_whole(
        &etc.join(format!("{mark}.json")),
        &format!("{configuration:#}\n"),
    )?;

    progress::announce(format!(
        "Starting the engine at unix://{} (log: {})",
        socket.display(),
        log.display()
    ));
    let mut command = Command::new("setsid");
    command
        .args([
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "--",
            "sh",
            "-c",
            ENTER,
            "sh",
        ])
        .arg(root)
        .arg(cache.dir("engine/data")?)
        .arg(&run)
        .arg(&mark)
        .arg("dockerd")
        .arg(format!("--config-file=/etc/docker/{mark}.json"))
        .env_clear()
        .env("PATH", firewall::search_path(root, firewall)?);
    for variable in [
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "no_proxy",
    ] {
        if let Some(value) = std::env::var_os(variable) {
            command.env(variable, value);
        }
    }
    firewall::remember(cache, root, tools, firewall)?;
    let begun = Instant::now();
    let mut child = start_detached(command, &log)?;
    let host = format!("unix://{}", socket.display());
    let mut ended = None;
    let answered = wait_until(Duration::from_secs(60), || {
        ended = child.try_wait().ok().flatten();
        ended.is_some() || ask(&host).is_ok()
    });
    if let Some(status) = ended {
        bail!(
            "dockerd ended with {status}; the end of {}:\n{}",
            log.display(),
            log_tail(&log, 15)
        );
    }
    if !answered {
        bail!(
            "dockerd does not answer at {host} after 60 s; the end of {}:\n{}",
            log.display(),
            log_tail(&log, 15)
        );
    }
    let info = ask(&host)?;
    if !info.has_containerd_store() {
        bail!(
            "dockerd came up without the containerd image store; see {}",
            log.display()
        );
    }
    progress::report(format!(
        "Docker Engine {} answered after {:.1} s",
        info.server_version,
        begun.elapsed().as_secs_f32()
    ));
    Ok(Engine {
        host,
        root: Some(root.to_owned()),
    })
}

/// Stops the engine and removes its bridges and packet filter rules.
pub(crate) fn down(cache: &Cache, _lock: &Lock) -> Result<()> {
    let host = format!("unix://{}", socket(cache).display());
    let main = main_process(cache);
    if main.is_some() && ask(&host).is_ok() {
        progress::announce(format!(
            "Removing the containers and networks of the engine at {host}"
        ));
        firewall::remove_networks(&host)?;
    }
    if service(cache).stop(main, Duration::from_secs(40))? {
        progress::announce("Stopped the engine");
    }
    firewall::forget(cache)
}

fn main_process(cache: &Cache) -> Option<Pid> {
    let service = Service {
        programs: &["dockerd"],
        ..service(cache)
    };
    service.processes().first().copied()
}
