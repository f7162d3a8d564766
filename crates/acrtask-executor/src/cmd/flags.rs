//! The flags of `docker run`, including those that need the operator's permission.
//!
//! Some flags extend the reach of a container: devices, capabilities, the host's namespaces, host
//! paths. They are refused with a hint to the `--allow` option that permits them. A flag that the
//! engine's API lacks is refused by name. No flag is silently ignored.

use std::collections::HashMap;

use acrtask_spec::cmd_line::Word;
use bollard::models::{Mount, PortBinding, ResourcesUlimits};

use super::{
    body::{Bindings, DefinitionInput, FlagSettings, Pull},
    expand,
};
use crate::{
    engine::volumes::volume_mount,
    workspace::{HOME, WORKSPACE, resolve_path},
};

/// Applies the flags that have no field of their own in the line.
pub(crate) fn apply_flags(
    flags: &[(String, Word)],
    input: &DefinitionInput<'_>,
) -> Result<FlagSettings, String> {
    let mut out = FlagSettings::default();
    for (name, value) in flags {
        let value = expand::expand_word(value, input.now)?;
        apply_flag(&mut out, name.trim_start_matches('-'), &value, input)?;
    }
    Ok(out)
}

fn apply_flag(
    out: &mut FlagSettings,
    name: &str,
    value: &str,
    input: &DefinitionInput<'_>,
) -> Result<(), String> {
    let host = &mut out.host;
    let needs_privileged = |what: &str| {
        if input.allow.privileged {
            return Ok(());
        }
        Err(format!(
            "`--{what} {value}` would let the container reach other processes of the machine; an operator who trusts \
             this task allows it with `--allow privileged`"
        ))
    };
    match name {
        // Containers are always removed at the end, and no terminal exists to attach.
        "rm" | "i" | "interactive" | "t" | "tty" | "it" | "a" | "attach" | "sig-proxy" | "q"
        | "quiet" | "detach-keys" => {}
        "m" | "memory" => host.memory = Some(parse_bytes(name, value)?),
        "memory-reservation" => host.memory_reservation = Some(parse_bytes(name, value)?),
        "memory-swap" => host.memory_swap = Some(parse_bytes(name, value)?),
        "shm-size" => host.shm_size = Some(parse_bytes(name, value)?),
        "cpus" => host.nano_cpus = Some(parse_nano_cpus(value)?),
        "c" | "cpu-shares" => {
            let shares = parse_number(name, value)?;
            if shares > DEFAULT_CPU_SHARES {
                needs_privileged(name)?;
            }
            host.cpu_shares = Some(shares);
        }
        "cpu-period" => host.cpu_period = Some(parse_number(name, value)?),
        "cpu-quota" => host.cpu_quota = Some(parse_number(name, value)?),
        "cpuset-cpus" => host.cpuset_cpus = Some(value.into()),
        "cpuset-mems" => host.cpuset_mems = Some(value.into()),
        "pids-limit" => host.pids_limit = Some(parse_number(name, value)?),
        "oom-score-adj" => {
            needs_privileged(name)?;
            host.oom_score_adj = Some(parse_number(name, value)?);
        }
        "init" => host.init = Some(value != "false"),
        "read-only" => host.readonly_rootfs = Some(value != "false"),
        "P" | "publish-all" if value == "false" => {}
        "P" | "publish-all" if input.allow.host_network => host.publish_all_ports = Some(true),
        "P" | "publish-all" => {
            return Err(format!(
                "`--{name}` publishes ports on all addresses of the machine: name them with `-p PORT`, which publishes \
                 them on {LOOPBACK}; an operator who trusts this task allows it with `--allow host-network`"
            ));
        }
        "add-host" => host
            .extra_hosts
            .get_or_insert_default()
            .push(value.replacen('=', ":", 1)),
        "dns" => host.dns.get_or_insert_default().push(value.into()),
        "dns-search" => host.dns_search.get_or_insert_default().push(value.into()),
        "dns-option" | "dns-opt" => host.dns_options.get_or_insert_default().push(value.into()),
        "group-add" => host.group_add.get_or_insert_default().push(value.into()),
        "cap-drop" => host.cap_drop.get_or_insert_default().push(value.into()),
        "tmpfs" => {
            let (path, options) = value.split_once(':').unwrap_or((value, ""));
            host.tmpfs
                .get_or_insert_default()
                .insert(path.into(), options.into());
        }
        "sysctl" => {
            let (key, value) = parse_pair(name, value)?;
            if !is_namespaced(&key) {
                return Err(format!(
                    "`--sysctl {key}` would change the whole machine; a container has its own `net.*`, `kernel.shm*`, \
                     `kernel.msg*`, `kernel.sem` and `fs.mqueue.*` alone"
                ));
            }
            host.sysctls.get_or_insert_default().insert(key, value);
        }
        "ulimit" => {
            let limit = parse_ulimit(value)?;
            if limit.name.as_deref().is_some_and(is_machine_wide_limit) {
                needs_privileged(name)?;
            }
            host.ulimits.get_or_insert_default().push(limit);
        }
        // All other drivers open connections as the engine, from the machine's network, also to
        // sockets and files of the machine.
        "log-driver" => {
            if !matches!(value, "none" | "local" | "json-file") {
                needs_privileged(name)?;
            }
            host.log_config.get_or_insert_default().typ = Some(value.into());
        }
        "log-opt" => {
            let (key, value) = parse_pair(name, value)?;
            if !matches!(key.as_str(), "max-size" | "max-file" | "compress") {
                needs_privileged(name)?;
            }
            let config = &mut host.log_config.get_or_insert_default().config;
            config.get_or_insert_default().insert(key, value);
        }
        "hostname" | "h" => out.hostname = Some(value.into()),
        "domainname" => out.domainname = Some(value.into()),
        "stop-signal" => out.stop_signal = Some(value.into()),
        "platform" => out.platform = Some(value.into()),
        "pull" => {
            out.pull = match value {
                "always" => Pull::Always,
                "never" => Pull::Never,
                "missing" | "" => Pull::Missing,
                other => return Err(format!("--pull is always, missing or never, not `{other}`")),
            }
        }
        "cap-add" => {
            needs_privileged(name)?;
            host.cap_add.get_or_insert_default().push(value.into());
        }
        "security-opt" => {
            if value != "no-new-privileges" && value != "no-new-privileges:true" {
                needs_privileged(name)?;
            }
            host.security_opt.get_or_insert_default().push(value.into());
        }
        "pid" | "ipc" | "uts" | "userns" | "cgroupns"
            if value == "private" || value == "shareable" => {}
        "pid" => {
            needs_privileged(name)?;
            host.pid_mode = Some(value.into());
        }
        "ipc" => {
            needs_privileged(name)?;
            host.ipc_mode = Some(value.into());
        }
        "uts" => {
            needs_privileged(name)?;
            host.uts_mode = Some(value.into());
        }
        "userns" => {
            needs_privileged(name)?;
            host.userns_mode = Some(value.into());
        }
        "restart" if value == "no" => {}
        "restart" | "cidfile" | "detach-after" => {
            return Err(format!(
                "`--{name}` is not for a step; `retries` repeats a step that fails"
            ));
        }
        "device" | "gpus" | "device-cgroup-rule" | "cgroup-parent" | "runtime" | "volumes-from"
        | "volume-driver" | "mount" => {
            return Err(format!("`--{name}` is not supported in a task"));
        }
        other => {
            return Err(format!(
                "`--{other}` is not a flag of `docker run` that a step may have"
            ));
        }
    }
    Ok(())
}

fn parse_pair(name: &str, value: &str) -> Result<(String, String), String> {
    value
        .split_once('=')
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .ok_or_else(|| format!("--{name} takes KEY=VALUE, not `{value}`"))
}

fn parse_number(name: &str, value: &str) -> Result<i64, String> {
    value
        .parse()
        .map_err(|_| format!("--{name} takes a whole number, not `{value}`"))
}

/// Parses a size such as `512m`, `1.5g` or `1024`, as Docker does, in powers of 1024.
fn parse_bytes(name: &str, value: &str) -> Result<i64, String> {
    let error = || format!("--{name} takes a size such as 512m, not `{value}`");
    let lower = value.trim().to_ascii_lowercase();
    if lower == "-1" {
        return Ok(-1);
    }
    let digits = lower
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(lower.len());
    let (amount, unit) = lower.split_at(digits);
    let amount: f64 = amount.parse().map_err(|_| error())?;
    let power = match unit.trim().trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return Err(error()),
    };
    let bytes = amount * 1024_f64.powi(power);
    if !(0.0..9e18).contains(&bytes) {
        return Err(error());
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the range was checked above"
    )]
    Ok(bytes as i64)
}

/// Parses a number of CPUs. Returns it in billionths.
pub(crate) fn parse_nano_cpus(value: &str) -> Result<i64, String> {
    let error = || format!("cpus must be a number such as 0.5 or 2, not `{value}`");
    let cpus: f64 = value.trim().parse().map_err(|_| error())?;
    if !(cpus > 0.0 && cpus < 1e6) {
        return Err(error());
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the range was checked above"
    )]
    Ok((cpus * 1e9).round() as i64)
}

/// Names of resource limits (setrlimit(2)). The engine and BuildKit each accept further spellings,
/// such as upper case, so all other names are refused.
const ULIMIT_NAMES: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// Parses `nofile=1024:2048`.
pub(crate) fn parse_ulimit(value: &str) -> Result<ResourcesUlimits, String> {
    let error = || format!("--ulimit takes NAME=SOFT[:HARD], not `{value}`");
    let (name, limits) = value.split_once('=').ok_or_else(error)?;
    if !ULIMIT_NAMES.contains(&name) {
        return Err(format!(
            "--ulimit has no limit `{name}`; write one of {}",
            ULIMIT_NAMES.join(", ")
        ));
    }
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    Ok(ResourcesUlimits {
        name: Some(name.into()),
        soft: Some(soft.parse().map_err(|_| error())?),
        hard: Some(hard.parse().map_err(|_| error())?),
    })
}

/// Returns `true` for a kernel input that each container has for itself. Docker has the same
/// list. The engine refuses `net.*` in a container on the machine's network.
fn is_namespaced(sysctl: &str) -> bool {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let ipc_settings = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    let begins = |start: &str| {
        sysctl
            .strip_prefix(start)
            .is_some_and(|rest| !rest.is_empty())
    };
    sysctl.chars().all(is_name)
        && !sysctl.contains("..")
        && (ipc_settings.contains(&sysctl) || begins("net.") || begins("fs.mqueue."))
}

/// The engine's default weight of a container's CPU time. A higher weight would reduce the CPU time
/// of other containers.
const DEFAULT_CPU_SHARES: i64 = 1024;

/// Returns `true` for a resource limit that can give a process priority over all others of the
/// machine.
pub(crate) fn is_machine_wide_limit(name: &str) -> bool {
    matches!(name, "rtprio" | "nice" | "rttime")
}

/// Address on which ports are published, unless the operator allows the machine's network.
const LOOPBACK: &str = "127.0.0.1";

/// Options of `-v` that affect only the mount. Only `ro` has an effect: volumes of a run are
/// neither relabelled nor filled from the image.
const VOLUME_OPTIONS: [&str; 8] = [
    "ro",
    "rw",
    "z",
    "Z",
    "nocopy",
    "cached",
    "delegated",
    "consistent",
];

/// The mount that a `-v` flag describes.
#[derive(Debug)]
pub(crate) enum VolumeFlag {
    /// A volume of the run, or a part of the workspace.
    Mount {
        mount: Box<Mount>,
        /// Name of the task's volume, if it is one.
        task_volume: Option<String>,
    },
    /// A path of the engine's host that the operator allowed.
    Bind(String),
    /// A path with an anonymous volume.
    Anonymous(String),
}

/// The usual path of the engine's socket in lines.
const SOCKET: &str = "/var/run/docker.sock";

/// Parses `SOURCE:TARGET[:OPTIONS]`.
pub(crate) fn parse_volume(value: &str, input: &DefinitionInput<'_>) -> Result<VolumeFlag, String> {
    let mut parts = value.split(':');
    let (source, target, options) = (parts.next(), parts.next(), parts.next());
    let (source, target) = match (source, target, parts.next()) {
        (Some(path), None, _) if path.starts_with('/') => {
            return Ok(VolumeFlag::Anonymous(path.into()));
        }
        (Some(source), Some(target), None) if target.starts_with('/') && !source.is_empty() => {
            (source, target)
        }
        _ => return Err(format!("-v takes SOURCE:/TARGET[:ro], not `{value}`")),
    };
    let options: Vec<&str> = options.into_iter().flat_map(|o| o.split(',')).collect();
    if let Some(unknown) = options.iter().find(|o| !VOLUME_OPTIONS.contains(o)) {
        return Err(format!(
            "-v {value}: the option `{unknown}` is not supported; it is one of {}",
            VOLUME_OPTIONS.join(", ")
        ));
    }
    let read_only = options.contains(&"ro");
    if matches!(source, SOCKET | "/run/docker.sock") {
        if input.allow.docker_socket {
            return Ok(VolumeFlag::Bind(format!("{source}:{target}")));
        }
        return Err(
            "steps do not receive the engine's socket, because it gives control of the machine. \
                    `cmd: docker ...` steps need no socket; an operator who trusts this task \
                    allows it with `--allow docker-socket`"
                .into(),
        );
    }
    let whole_workspace = source == input.workspace_name;
    let is_path = source.starts_with(['/', '.', '~']) || source.contains('/');
    if whole_workspace || is_path {
        let path = if whole_workspace {
            WORKSPACE.to_owned()
        } else {
            let base = super::body::working_folder(input.step);
            resolve_path(&base, source).map_err(|error| {
                format!("-v {value}: {error}; paths of the machine are never mounted")
            })?
        };
        let (volume, root) = if path == HOME || path.starts_with(&format!("{HOME}/")) {
            ((input.volume_name)("home"), HOME)
        } else {
            (input.workspace_volume.to_owned(), WORKSPACE)
        };
        let sub = path[root.len()..].trim_start_matches('/');
        let sub = (!sub.is_empty()).then_some(sub);
        if sub.is_some() && !input.supports_subpaths {
            return Err(format!(
                "-v {value}: this engine cannot mount a part of the workspace, which Docker 26 and later can; the whole of \
                 it is at {WORKSPACE} in every container"
            ));
        }
        return Ok(VolumeFlag::Mount {
            mount: Box::new(volume_mount(&volume, target, read_only, sub, input.labels)),
            task_volume: None,
        });
    }
    let task_volume = input.volumes.contains(&source).then(|| source.to_owned());
    Ok(VolumeFlag::Mount {
        mount: Box::new(volume_mount(
            &(input.volume_name)(source),
            target,
            read_only,
            None,
            input.labels,
        )),
        task_volume,
    })
}

/// Maximum number of ports that one container may publish. The engine runs a process for each, and
/// sets them up one by one.
const MAX_PORTS: usize = 100;

/// Parses published ports, `[[IP:]HOST:]CONTAINER[/PROTOCOL]` with ranges. Returns their bindings
/// and the ports to expose.
///
/// A port without an address is published on [`LOOPBACK`]. Another address is refused, unless
/// `any_address` is set.
pub(crate) fn parse_ports(
    specs: Vec<String>,
    any_address: bool,
) -> Result<(Bindings, Vec<String>), String> {
    let mut bindings: Bindings = HashMap::new();
    let mut exposed = Vec::new();
    for spec in specs {
        let error = || format!("a port is [[IP:]HOST:]CONTAINER[/PROTOCOL], not `{spec}`");
        let (rest, protocol) = spec.rsplit_once('/').unwrap_or((&spec, "tcp"));
        let (host, container) = match rest.rsplit_once(':') {
            Some((host, container)) => (Some(host), container),
            None => (None, rest),
        };
        let (ip, host) = match host {
            Some(host) => match host.rsplit_once(':') {
                Some((ip, host)) => (Some(ip.trim_matches(['[', ']'])), Some(host)),
                None => (None, Some(host)),
            },
            None => (None, None),
        };
        let ip = match ip {
            Some(ip) if !any_address && !matches!(ip, LOOPBACK | "::1") => {
                return Err(format!(
                    "a port is published on {LOOPBACK} only, and `{spec}` names another address: write it without the \
                     address; an operator who trusts this task allows it with `--allow host-network`"
                ));
            }
            None if !any_address => Some(LOOPBACK),
            ip => ip,
        };
        let containers = parse_port_range(container).ok_or_else(error)?;
        let hosts = match host {
            Some("") | None => None,
            Some(host) => Some(parse_port_range(host).ok_or_else(error)?),
        };
        if hosts
            .as_ref()
            .is_some_and(|hosts| hosts.len() != containers.len())
        {
            return Err(format!(
                "the two port ranges of `{spec}` have different lengths"
            ));
        }
        if exposed.len() + containers.len() > MAX_PORTS {
            return Err(format!(
                "`{spec}` publishes more than the {MAX_PORTS} ports that a container may publish: name fewer"
            ));
        }
        for (i, port) in containers.clone().enumerate() {
            let key = format!("{port}/{protocol}");
            let host_port = hosts.clone().and_then(|mut hosts| hosts.nth(i));
            exposed.push(key.clone());
            bindings
                .entry(key)
                .or_insert_with(|| Some(Vec::new()))
                .get_or_insert_default()
                .push(PortBinding {
                    host_ip: ip.map(str::to_owned),
                    host_port: host_port.map(|port| port.to_string()),
                });
        }
    }
    Ok((bindings, exposed))
}

/// Parses exposed ports: `8080`, `8080/udp`, `8080-8082`.
pub(crate) fn parse_exposed_ports(spec: &str) -> Result<Vec<String>, String> {
    let (ports, protocol) = spec.split_once('/').unwrap_or((spec, "tcp"));
    let ports = parse_port_range(ports).ok_or_else(|| format!("`{spec}` is not a port"))?;
    Ok(ports.map(|port| format!("{port}/{protocol}")).collect())
}

fn parse_port_range(text: &str) -> Option<std::ops::RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (first > 0 && first <= last).then_some(first..=last)
}

#[cfg(test)]
#[path = "flags_tests.rs"]
mod tests;
