//! Owners of engine objects, so that another start can find out if an owner is still alive.
//!
//! The label names machine, boot, process-id namespace, process and its start time. Only a process
//! of the same machine and namespace can be judged. For all others the result is
//! [`Judgement::Unknown`], and their objects stay. A process id that the system assigned again has
//! another start time.

use std::{collections::HashMap, fmt, fs, str::FromStr};

/// Label with the id of the run, on every object that a run creates.
pub const RUN_LABEL: &str = "io.acrtask.run";
/// Label with the [`Owner`].
pub const OWNER_LABEL: &str = "io.acrtask.owner";
/// Label with the id of the step, on containers.
pub const STEP_LABEL: &str = "io.acrtask.step";
/// Label of every container of a step: `true` if the task asked to keep it, else `false`.
pub const KEEP_LABEL: &str = "io.acrtask.keep";
/// Prefix of the labels that a line sets with `--label`. Programs on the machine act on container
/// labels, so a task cannot choose a complete label name.
pub const TASK_LABEL: &str = "io.acrtask.label.";
/// Prefixes of labels that a task cannot set: acrtask's own and those that Docker reserves.
pub const RESERVED_LABELS: [&str; 4] = [
    "io.acrtask.",
    "com.docker.",
    "io.docker.",
    "org.dockerproject.",
];
/// Label with the container name that a line sets with `--name`.
pub const NAME_LABEL: &str = "io.acrtask.name";

/// A unique identification of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    machine: String,
    boot: String,
    pid_namespace: String,
    pid: u32,
    /// Start time in clock ticks since boot: field 22 of `/proc/PID/stat`.
    start: u64,
}

/// Returns `true` for the labels of a container that its task asked to keep.
pub(crate) fn is_kept(labels: &HashMap<String, String>) -> bool {
    labels.get(KEEP_LABEL).is_some_and(|keep| keep == "true")
}

/// The state of an owner as seen from this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// The process runs.
    Alive,
    /// The process has ended.
    Dead,
    /// The process cannot be seen from here: it belongs to another machine or container.
    Unknown,
}

impl Owner {
    /// Returns the owner that represents this process.
    pub fn this_process() -> Self {
        let read = |path: &str| {
            fs::read_to_string(path)
                .map(|text| strip_separators(text.trim()))
                .unwrap_or_default()
        };
        let pid = std::process::id();
        Self {
            machine: read("/etc/machine-id"),
            boot: read("/proc/sys/kernel/random/boot_id"),
            pid_namespace: fs::read_link("/proc/self/ns/pid")
                .map(|link| strip_separators(&link.to_string_lossy()))
                .unwrap_or_default(),
            pid,
            start: start_time(pid).unwrap_or_default(),
        }
    }

    /// Judges this owner from the point of view of `me`. `start_of` returns the start time of a
    /// process of this machine.
    pub fn judge(&self, me: &Self, start_of: impl Fn(u32) -> Option<u64>) -> Judgement {
        if self.machine.is_empty() || self.boot.is_empty() || self.machine != me.machine {
            return Judgement::Unknown;
        }
        if self.boot != me.boot {
            return Judgement::Dead;
        }
        if self.pid_namespace != me.pid_namespace {
            return Judgement::Unknown;
        }
        match start_of(self.pid) {
            Some(start) if start == self.start => Judgement::Alive,
            _ => Judgement::Dead,
        }
    }

    /// Judges this owner like [`Self::judge`], with start times from `/proc`.
    pub fn judge_locally(&self, me: &Self) -> Judgement {
        self.judge(me, start_time)
    }
}

/// Keeps letters, digits and `-`, so that no field contains the separator.
fn strip_separators(text: &str) -> String {
    text.chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
        .collect()
}

/// Returns the start time of process `pid` in clock ticks since boot.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name, in parentheses, may contain spaces and parentheses.
    let after_name = &stat[stat.rfind(')')? + 1..];
    let mut fields = after_name.split_whitespace();
    // A zombie has ended; only its exit code has not been read yet.
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            machine,
            boot,
            pid_namespace,
            pid,
            start,
        } = self;
        write!(f, "v1/{machine}/{boot}/{pid_namespace}/{pid}/{start}")
    }
}

impl FromStr for Owner {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let fields: Vec<&str> = text.split('/').collect();
        let ["v1", machine, boot, pid_namespace, pid, start] = fields[..] else {
            return Err(());
        };
        Ok(Self {
            machine: machine.into(),
            boot: boot.into(),
            pid_namespace: pid_namespace.into(),
            pid: pid.parse().map_err(|_| ())?,
            start: start.parse().map_err(|_| ())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(text: &str) -> Owner {
        text.parse().unwrap()
    }

    #[test]
    fn judge_ignores_other_machines_and_namespaces() {
        let me = owner("v1/m/b/ns/1/100");
        let running = |pid| (pid == 7).then_some(700);
        for (label, expected) in [
            ("v1/m/b/ns/7/700", Judgement::Alive),
            ("v1/m/b/ns/7/701", Judgement::Dead),
            ("v1/m/b/ns/8/700", Judgement::Dead),
            ("v1/m/earlier/ns/7/700", Judgement::Dead),
            ("v1/m/b/other/8/700", Judgement::Unknown),
            ("v1/elsewhere/b/ns/8/700", Judgement::Unknown),
            ("v1//b/ns/8/700", Judgement::Unknown),
        ] {
            assert_eq!(owner(label).judge(&me, running), expected, "{label}");
        }
    }

    #[test]
    fn this_process_is_alive_and_its_label_parses() {
        let me = Owner::this_process();
        assert_eq!(me.to_string().parse(), Ok(me.clone()));
        assert_eq!(me.judge_locally(&me), Judgement::Alive);
    }

    #[test]
    fn parser_refuses_invalid_labels() {
        for text in ["", "v1", "v2/m/b/n/1/2", "v1/m/b/n/x/2", "v1/m/b/n/1/2/3"] {
            assert!(text.parse::<Owner>().is_err(), "{text}");
        }
    }
}
