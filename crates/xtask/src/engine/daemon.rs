//! Our own engine as a process: dockerd in the root file system, in a mount namespace of its own.
//!
//! The namespace is why nothing has to be unmounted: with its last process the mounts are gone, however that
//! process ended, and the machine never sees them. `/run` in it is a fresh tmpfs, so nothing of an earlier start is
//! stale; only the socket's folder is the cache's `engine/run`, for the outside to reach.
//!
//! Left out: the `docker-default` AppArmor profile, which dockerd loads on kernels that have AppArmor, stays
//! loaded until the next boot.

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
use crate::say;

/// Run by the shell in the new mount namespace: $1 root file system, $2 data, $3 folder for the socket,
/// $4 the mark; the rest is the daemon's command line. runc refuses a root that is not a mount point, therefore
/// the first line.
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

/// Where our engine listens.
pub(super) fn socket(cache: &Cache) -> PathBuf {
    cache.path("engine/run/docker.sock")
}

fn service(cache: &Cache) -> Service {
    Service {
        mark: cache.mark(),
        programs: &["dockerd", "containerd"],
    }
}

/// Our engine, when it runs and answers.
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

/// A dockerd that is not ours.
pub(super) fn foreign() -> Option<Pid> {
    let any = Service {
        mark: String::new(),
        programs: &["dockerd"],
    };
    any.processes().first().copied()
}

/// Starts dockerd and waits until it answers.
pub(super) fn start(cache: &Cache, root: &Path, tools: &Tools) -> Result<Engine> {
    let socket = socket(cache);
    // sockaddr_un holds 108 bytes with the final zero (unix(7)).
    if socket.as_os_str().as_bytes().len() > 107 {
        bail!(
            "{} is too long for a socket's path; set XDG_CACHE_HOME to a shorter one",
            socket.display()
        );
    }
    if service(cache).stop(None, Duration::from_secs(10))? {
        say::found("stopped what was left of an engine that had died");
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
        // Without a limit of its own BuildKit's cache may take a tenth of the disk, and more while it runs.
        "builder": { "gc": { "enabled": true, "defaultKeepStorage": "10GB" } },
    });
    let etc = root.join("etc/docker");
    fs::create_dir_all(&etc).with_context(|| format!("cannot create {}", etc.display()))?;
    cache::write_whole(
        &etc.join(format!("{mark}.json")),
        &format!("{configuration:#}\n"),
    )?;

    say::doing(format!(
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
    say::found(format!(
        "Docker Engine {} answered after {:.1} s",
        info.server_version,
        begun.elapsed().as_secs_f32()
    ));
    Ok(Engine {
        host,
        root: Some(root.to_owned()),
    })
}

/// Stops our engine, should it run, and takes its traces off the machine's network.
pub(crate) fn down(cache: &Cache, _lock: &Lock) -> Result<()> {
    let host = format!("unix://{}", socket(cache).display());
    let main = main_process(cache);
    if main.is_some() && ask(&host).is_ok() {
        say::doing(format!(
            "Removing the containers and networks of the engine at {host}"
        ));
        firewall::remove_networks(&host)?;
    }
    if service(cache).stop(main, Duration::from_secs(40))? {
        say::doing("Stopped the engine");
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
