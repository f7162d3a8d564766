//! Two real registries (distribution, from Debian's `docker-registry`) on loopback: an open one,
//! and one that requires a password. They run beside any service of the machine.

use std::fs;
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cache::{self, Cache, Lock};
use crate::http::{self, Address};
use crate::packages::Tools;
use crate::process::{Service, log_tail, start_detached, wait_until};
use crate::progress;

/// Kind of registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Every client may push and pull.
    Open,
    /// Only [`USER`] with [`PASSWORD`] may push and pull.
    Password,
}

/// User of the registry with a password.
pub(crate) const USER: &str = "tester";
/// Password of [`USER`]. Not a secret: the registry listens on loopback and contains test images.
pub(crate) const PASSWORD: &str = "correct-horse";
/// [`USER`] and the bcrypt hash of [`PASSWORD`].
const HTPASSWD: &str = "tester:$2b$04$DObTtG2d4UxvP4Rdg1n.I.SxXEveOJ3UwDmRLwyBY3NdxtrWHcO9S\n";

impl Kind {
    fn folder(self) -> &'static str {
        match self {
            Self::Open => "registry",
            Self::Password => "registry-auth",
        }
    }

    fn service(self, cache: &Cache) -> Service {
        Service {
            mark: cache
                .path(self.folder())
                .join("config.yml")
                .display()
                .to_string(),
            programs: &["docker-registry"],
        }
    }
}

/// Returns the address of a registry, `127.0.0.1:PORT`. Starts the registry if it does not run.
pub(crate) fn get(cache: &Cache, _lock: &Lock, tools: &Tools, kind: Kind) -> Result<String> {
    let folder = cache.dir(kind.folder())?;
    let service = kind.service(cache);
    let last_port = port_of_last_time(cache, kind);
    if let Some(port) = last_port
        && !service.processes().is_empty()
        && answers(port, kind)
    {
        let address = address(port);
        progress::report(format!(
            "the {} set up earlier runs at {address}",
            describe(kind)
        ));
        return Ok(address);
    }
    service.stop(None, Duration::from_secs(5))?;
    let port = free_port(last_port)?;
    let address = address(port);
    progress::announce(format!("Starting a {} at {address}", describe(kind)));
    let data = cache.dir(folder.join("data"))?;
    let auth = match kind {
        Kind::Open => String::new(),
        Kind::Password => {
            let file = folder.join("htpasswd");
            cache::write_whole(&file, HTPASSWD)?;
            format!(
                "auth:\n  htpasswd:\n    realm: acrtask-test\n    path: {:?}\n",
                file.display().to_string()
            )
        }
    };
    let configuration = format!(
        "version: 0.1\nlog:\n  level: warn\n  accesslog:\n    disabled: false\nstorage:\n  filesystem:\n    rootdirectory: {:?}\n  \
         delete:\n    enabled: true\nhttp:\n  addr: {address}\n{auth}",
        data.display().to_string(),
    );
    let file = folder.join("config.yml");
    cache::write_whole(&file, &configuration)?;
    cache::write_whole(&folder.join("port"), &format!("{port}\n"))?;
    let log = cache.dir("logs")?.join(format!("{}.log", kind.folder()));
    let mut command = Command::new("setsid");
    command
        .arg(tools.path("/usr/bin/docker-registry"))
        .arg("serve")
        .arg(&file);
    // A variable like REGISTRY_HTTP_ADDR would override the configuration.
    command.env_clear();
    let mut child = start_detached(command, &log)?;
    let mut ended = None;
    wait_until(Duration::from_secs(20), || {
        ended = child.try_wait().ok().flatten();
        ended.is_some() || answers(port, kind)
    });
    if ended.is_some() || !answers(port, kind) {
        bail!(
            "the registry at {address} did not start; the end of {}:\n{}",
            log.display(),
            log_tail(&log, 10)
        );
    }
    Ok(address)
}

/// Stops both registries.
pub(crate) fn down(cache: &Cache, _lock: &Lock) -> Result<()> {
    for kind in [Kind::Open, Kind::Password] {
        if kind.service(cache).stop(None, Duration::from_secs(5))? {
            progress::announce(format!("Stopped the {}", describe(kind)));
        }
    }
    Ok(())
}

/// Returns the last address of the open registry.
pub(crate) fn address_of_last_time(cache: &Cache) -> Option<String> {
    port_of_last_time(cache, Kind::Open).map(address)
}

fn port_of_last_time(cache: &Cache, kind: Kind) -> Option<u16> {
    let file = cache.path(kind.folder()).join("port");
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

fn address(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

fn describe(kind: Kind) -> &'static str {
    match kind {
        Kind::Open => "registry",
        Kind::Password => "registry with a password",
    }
}

fn answers(port: u16, kind: Kind) -> bool {
    let expected = match kind {
        Kind::Open => 200,
        Kind::Password => 401,
    };
    let address = Address::Tcp(address(port));
    http::request(&address, "GET", "/v2/", &[], b"", Duration::from_secs(5))
        .is_ok_and(|answer| answer.status == expected)
}

/// Returns `preferred` if it is free, so that image names stay valid. Otherwise returns any free
/// port.
fn free_port(preferred: Option<u16>) -> Result<u16> {
    let preferred = preferred.and_then(|port| TcpListener::bind(("127.0.0.1", port)).ok());
    let listener = preferred.map_or_else(|| TcpListener::bind(("127.0.0.1", 0)), Ok);
    let address = listener.and_then(|listener| listener.local_addr());
    Ok(address.context("no port of 127.0.0.1 is free")?.port())
}
