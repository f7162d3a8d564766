//! Who made a thing, so that another start can tell whether its maker still lives.
//!
//! The label names machine, boot, process-id namespace, process and its start time. Only a process of
//! the same machine and namespace can be judged; for everything else the answer is
//! [`Judgement::Unknown`], and what it made is left alone. A process id that was given out again has
//! another start time.

use std::{collections::HashMap, fmt, fs, str::FromStr};

/// The label that carries the run's id, on everything that a run makes.
pub const RUN_LABEL: &str = "io.acrtask.run";
/// The label that carries the [`Owner`].
pub const OWNER_LABEL: &str = "io.acrtask.owner";
/// The label that carries the step's id, on containers.
pub const STEP_LABEL: &str = "io.acrtask.step";
/// The label of every container of a step: `true` if the task asked to keep it, else `false`.
pub const KEEP_LABEL: &str = "io.acrtask.keep";
/// The beginning of the labels that a line gave its container with `--label`. Programs of the machine act on labels of
/// containers, so a task cannot choose a whole one.
pub const TASK_LABEL: &str = "io.acrtask.label.";
/// Beginnings of labels that a task cannot give: acrtask's own, and those that Docker reserves.
pub const RESERVED_LABELS: [&str; 4] = [
    "io.acrtask.",
    "com.docker.",
    "io.docker.",
    "org.dockerproject.",
];
/// The label that carries the name that a line gave its container with `--name`.
pub const NAME_LABEL: &str = "io.acrtask.name";

/// A process, named so that it is never mixed up with another one.
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

/// Whether the maker of a thing still lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// It runs.
    Alive,
    /// It does not run any more.
    Dead,
    /// It is not ours to judge: another machine, another container.
    Unknown,
}

impl Owner {
    /// This process.
    pub fn this_process() -> Self {
        let read = |path: &str| {
            fs::read_to_string(path)
                .map(|text| clean(text.trim()))
                .unwrap_or_default()
        };
        let pid = std::process::id();
        Self {
            machine: read("/etc/machine-id"),
            boot: read("/proc/sys/kernel/random/boot_id"),
            pid_namespace: fs::read_link("/proc/self/ns/pid")
                .map(|link| clean(&link.to_string_lossy()))
                .unwrap_or_default(),
            pid,
            start: start_time(pid).unwrap_or_default(),
        }
    }

    /// Whether this owner lives, seen from `me`; `start_of` gives the start time of a process of this machine.
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

    /// As [`Self::judge`], asking `/proc`.
    pub fn judge_here(&self, me: &Self) -> Judgement {
        self.judge(me, start_time)
    }
}

/// Keeps letters, digits and `-`, so that no field can hold the separator.
fn clean(text: &str) -> String {
    text.chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
        .collect()
}

/// When process `pid` started, in clock ticks since boot.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name, in parentheses, may itself hold spaces and parentheses.
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
    fn judges_only_what_it_can_see() {
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
    fn this_process_lives_and_its_label_reads_back() {
        let me = Owner::this_process();
        assert_eq!(me.to_string().parse(), Ok(me.clone()));
        assert_eq!(me.judge_here(&me), Judgement::Alive);
    }

    #[test]
    fn refuses_other_labels() {
        for text in ["", "v1", "v2/m/b/n/1/2", "v1/m/b/n/x/2", "v1/m/b/n/1/2/3"] {
            assert!(text.parse::<Owner>().is_err(), "{text}");
        }
    }
}
