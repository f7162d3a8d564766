//! The engine's traces in the machine's network, and their removal.
//!
//! dockerd creates the bridge `docker0` and chains named `DOCKER*` in the packet filter, and sets
//! the FORWARD policy to DROP. It removes none of these when it ends. The engine starts only if no
//! other one runs, so all of them belong to it. The state before the start is stored first.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::cache::{self, Cache};
use crate::http::{self, Address};
use crate::packages::Tools;
use crate::progress;

/// Packet filter of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Firewall {
    /// nf_tables, through `iptables-nft`.
    Nft,
    /// The older tables, through `iptables-legacy`.
    Legacy,
}

impl Firewall {
    fn program(self) -> &'static str {
        match self {
            Self::Nft => "iptables-nft",
            Self::Legacy => "iptables-legacy",
        }
    }
}

/// State of the machine's network before the engine started.
#[derive(Debug, Serialize, Deserialize)]
struct Before {
    root: PathBuf,
    firewall: Option<Firewall>,
    /// Policy of the FORWARD chain: ACCEPT or DROP.
    forward: Option<String>,
    /// Network interfaces.
    links: BTreeSet<String>,
    /// A busybox for its `ip`, which some machines lack.
    busybox: PathBuf,
    /// Content of /proc/sys/net/ipv4/ip_forward.
    forwarding: String,
}

const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// Returns the first packet filter that the kernel supports. Without one, containers reach each
/// other and the machine only, and a proxy publishes their ports.
pub(super) fn choose(root: &Path) -> Option<Firewall> {
    let answers = |firewall: &Firewall| {
        iptables(root, *firewall, &["-t", "nat", "-S"]).is_ok()
            && iptables(root, *firewall, &["-S"]).is_ok()
    };
    let found = [Firewall::Nft, Firewall::Legacy].into_iter().find(answers);
    match found {
        Some(firewall) => progress::report(format!(
            "the kernel's packet filter answers to {}",
            firewall.program()
        )),
        None => progress::report(
            "the kernel has no packet filter: containers reach only each other and this machine",
        ),
    }
    found
}

/// Returns the `PATH` with which dockerd finds the right `iptables`.
pub(super) fn search_path(root: &Path, firewall: Option<Firewall>) -> Result<String> {
    let usual = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let Some(firewall) = firewall else {
        return Ok(usual.to_owned());
    };
    let dir = format!("/opt/{}", firewall.program());
    let inside = root.join(dir.trim_start_matches('/'));
    fs::create_dir_all(&inside).with_context(|| format!("cannot create {}", inside.display()))?;
    let link = inside.join("iptables");
    if !link.is_symlink() {
        symlink(format!("/usr/sbin/{}", firewall.program()), &link)
            .with_context(|| format!("cannot create {}", link.display()))?;
    }
    Ok(format!("{dir}:{usual}"))
}

/// Stores the state of the network before dockerd changes it. Keeps the first stored state.
pub(super) fn remember(
    cache: &Cache,
    root: &Path,
    tools: &Tools,
    firewall: Option<Firewall>,
) -> Result<()> {
    let path = cache.path("engine/before.json");
    if path.exists() {
        return Ok(());
    }
    let rules = firewall
        .map(|firewall| iptables(root, firewall, &["-S", "FORWARD"]))
        .transpose()?;
    let policy = rules
        .as_deref()
        .and_then(|rules| rules.lines().next()?.strip_prefix("-P FORWARD "));
    let before = Before {
        root: root.to_owned(),
        firewall,
        forward: policy.map(str::to_owned),
        links: links()?,
        busybox: tools.path("/bin/busybox"),
        forwarding: fs::read_to_string(IP_FORWARD).unwrap_or_default(),
    };
    cache::write_whole(&path, &serde_json::to_string_pretty(&before)?)
}

/// Restores the network to its stored state.
pub(super) fn forget(cache: &Cache) -> Result<()> {
    let path = cache.path("engine/before.json");
    let Ok(text) = fs::read_to_string(&path) else {
        return Ok(());
    };
    let before: Before =
        serde_json::from_str(&text).with_context(|| format!("{} is not whole", path.display()))?;
    if let Some(pid) = super::daemon::foreign() {
        progress::report(format!(
            "the packet filter rules and bridges stay: another dockerd (process {pid}) uses the same names"
        ));
        return Ok(());
    }
    if let Some(firewall) = before.firewall {
        progress::announce("Removing the engine's packet filter rules");
        for table in ["filter", "nat"] {
            let rules = iptables(&before.root, firewall, &["-t", table, "-S"])?;
            for change in removals(&rules) {
                let arguments: Vec<&str> = change.split(' ').collect();
                iptables(
                    &before.root,
                    firewall,
                    &[&["-t", table][..], &arguments].concat(),
                )?;
            }
        }
        if let Some(policy) = &before.forward {
            iptables(&before.root, firewall, &["-P", "FORWARD", policy])?;
        }
    }
    let made = |link: &String| is_bridge(link) && !before.links.contains(link);
    for link in links()?.iter().filter(|link| made(link)) {
        progress::announce(format!("Removing the bridge {link}"));
        let mut command = Command::new(&before.busybox);
        let status = command.args(["ip", "link", "delete", link]).status();
        if !status.is_ok_and(|status| status.success()) {
            bail!("cannot remove the bridge {link}: `ip link delete {link}` failed");
        }
    }
    if !before.forwarding.is_empty() {
        fs::write(IP_FORWARD, &before.forwarding)
            .with_context(|| format!("cannot write {IP_FORWARD}"))?;
    }
    fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
}

/// Removes all containers and unused networks of the engine, whose bridges would outlive it.
pub(super) fn remove_networks(host: &str) -> Result<()> {
    #[derive(Deserialize)]
    struct Container {
        #[serde(rename = "Id")]
        id: String,
    }
    let address = Address::from_docker_host(host)?;
    let ask = |method: &str, path: &str| {
        http::request(&address, method, path, &[], b"", Duration::from_secs(60))
    };
    let list = ask("GET", "/containers/json?all=true")?;
    let containers: Vec<Container> =
        serde_json::from_slice(&list.body).context("cannot read the list of containers")?;
    for Container { id } in containers {
        ask("DELETE", &format!("/containers/{id}?force=true&v=true"))?;
    }
    ask("POST", "/networks/prune")?;
    Ok(())
}

/// Returns the iptables arguments that undo dockerd's rules in one table: first the rules, then the
/// chains, which are empty by then.
fn removals(rules: &str) -> Vec<String> {
    let chains: BTreeSet<&str> = rules
        .lines()
        .filter_map(|line| line.strip_prefix("-N "))
        .filter(|chain| *chain == "DOCKER" || chain.starts_with("DOCKER-"))
        .collect();
    let ours = |line: &&str| {
        line.split(' ')
            .any(|word| chains.contains(word) || is_bridge(word))
            || line.contains("-s 172.17.0.0/16 ")
    };
    let deletions = rules
        .lines()
        .filter(ours)
        .filter_map(|line| line.strip_prefix("-A "));
    let mut changes: Vec<String> = deletions.map(|rule| format!("-D {rule}")).collect();
    changes.extend(chains.iter().map(|chain| format!("-X {chain}")));
    changes
}

/// Returns `true` for a bridge name of dockerd: `docker0`, or `br-` and twelve hexadecimal digits.
fn is_bridge(link: &str) -> bool {
    let is_id = |id: &str| id.len() == 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    link == "docker0" || link.strip_prefix("br-").is_some_and(is_id)
}

/// Returns the network interfaces (proc_pid_net(5): two lines of headings, then `NAME: figures`).
fn links() -> Result<BTreeSet<String>> {
    let table = fs::read_to_string("/proc/net/dev").context("cannot read /proc/net/dev")?;
    let names = table
        .lines()
        .skip(2)
        .filter_map(|line| line.split_once(':'));
    Ok(names.map(|(name, _)| name.trim().to_owned()).collect())
}

fn iptables(root: &Path, firewall: Firewall, arguments: &[&str]) -> Result<String> {
    let output = Command::new("chroot")
        .arg(root)
        .arg(format!("/usr/sbin/{}", firewall.program()))
        .arg("--wait")
        .args(arguments)
        .output()
        .context("cannot start chroot")?;
    if !output.status.success() {
        bail!(
            "{} {} failed: {}",
            firewall.program(),
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_engines_rules_are_removed() {
        let rules = "-P FORWARD DROP\n-N DOCKER\n-N DOCKER-USER\n-N mine\n-A FORWARD -j DOCKER-USER\n\
                     -A FORWARD -i docker0 -o docker0 -j ACCEPT\n-A FORWARD -i br-0123456789ab -j ACCEPT\n\
                     -A FORWARD -i br-lan -j ACCEPT\n-A FORWARD -j mine\n-A DOCKER-USER -j RETURN\n";
        assert_eq!(
            removals(rules),
            [
                "-D FORWARD -j DOCKER-USER",
                "-D FORWARD -i docker0 -o docker0 -j ACCEPT",
                "-D FORWARD -i br-0123456789ab -j ACCEPT",
                "-D DOCKER-USER -j RETURN",
                "-X DOCKER",
                "-X DOCKER-USER",
            ]
        );
    }
}
