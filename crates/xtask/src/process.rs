//! Starts, finds and stops processes that outlive the command that started them.
//!
//! A process is found by its name and by a mark in its command line (`Cache::mark`). A stored
//! process id would be stale after a reboot and could then name an unrelated process.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Starts `command` as the leader of a new session with its output in `log`. Does not wait for it.
pub(crate) fn start_detached(mut command: Command, log: &Path) -> Result<Child> {
    let output = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
    let errors = output.try_clone().context("cannot share the log file")?;
    command
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .current_dir("/")
        .spawn()
        .with_context(|| format!("cannot start {:?}", command.get_program()))
}

/// Properties that identify the processes of one service.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    /// Word in the command line that only this service has.
    pub(crate) mark: String,
    /// Names of its programs, or their beginnings.
    pub(crate) programs: &'static [&'static str],
}

impl Service {
    /// Returns its running processes. Zombies do not count.
    pub(crate) fn processes(&self) -> Vec<Pid> {
        all().filter(|pid| self.owns(*pid)).collect()
    }

    fn owns(&self, pid: Pid) -> bool {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        // Empty for a process that has ended (proc_pid_cmdline(5)).
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        self.programs
            .iter()
            .any(|program| name.starts_with(program))
            && !arguments.is_empty()
            && String::from_utf8_lossy(&arguments).contains(&self.mark)
    }

    /// Sends a signal to `first` (`None`: to all) and waits for `grace`. Then kills the processes
    /// that still run, with their children. Returns `false` if none ran.
    pub(crate) fn stop(&self, first: Option<Pid>, grace: Duration) -> Result<bool> {
        let running = self.processes();
        if running.is_empty() {
            return Ok(false);
        }
        let children = descendants(&running);
        let ended = || self.processes().is_empty();
        match first {
            Some(pid) => signal(pid, Signal::SIGTERM),
            None => running.iter().for_each(|pid| signal(*pid, Signal::SIGTERM)),
        }
        if wait_until(grace, ended) {
            return Ok(true);
        }
        for pid in self.processes().into_iter().chain(children) {
            signal(pid, Signal::SIGKILL);
        }
        if !wait_until(Duration::from_secs(10), ended) {
            bail!(
                "processes {:?} do not end, not even when killed",
                self.processes()
            );
        }
        Ok(true)
    }
}

/// Polls a condition until it is true or `limit` has passed. Returns its last value.
pub(crate) fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Returns the last lines of a log, for an error message.
pub(crate) fn log_tail(log: &Path, lines: usize) -> String {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let text = text.unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Runs a program with its output in `log`. The error of a failed program contains the end of the
/// log.
pub(crate) fn run_logged(command: &mut Command, log: &Path) -> Result<()> {
    let output = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("cannot open {}", log.display()))?;
    let errors = output.try_clone().context("cannot share the log file")?;
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .status()
        .with_context(|| format!("cannot start {program}"))?;
    if !status.success() {
        bail!(
            "{program} ended with {status}; the end of {}:\n{}",
            log.display(),
            log_tail(log, 15)
        );
    }
    Ok(())
}

fn signal(pid: Pid, signal: Signal) {
    // The process may have ended meanwhile.
    let _ = kill(pid, signal);
}

/// Returns all processes of the machine.
fn all() -> impl Iterator<Item = Pid> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .map(Pid::from_raw)
}

fn parent(pid: Pid) -> Option<Pid> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain blanks and parentheses.
    let after_name = &stat[stat.rfind(')')? + 2..];
    Some(Pid::from_raw(after_name.split(' ').nth(1)?.parse().ok()?))
}

fn descendants(roots: &[Pid]) -> BTreeSet<Pid> {
    let pairs: Vec<(Pid, Pid)> = all().filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let mut found: BTreeSet<Pid> = roots.iter().copied().collect();
    loop {
        let before = found.len();
        for (pid, parent) in &pairs {
            if found.contains(parent) {
                found.insert(*pid);
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Script that waits without a child process: a forked shell would carry the mark for a moment.
    const WAIT: &str = r#"exec tail -f /dev/null "$0""#;

    /// Starts a shell that runs `script` and carries a mark of its own.
    fn start(name: &str, script: &str) -> (Service, Child) {
        let service = Service {
            mark: format!("xtask-test-{name}-{}", std::process::id()),
            programs: &["sh", "tail"],
        };
        let mut command = Command::new("sh");
        command.args(["-c", script, &service.mark]);
        let log = std::env::temp_dir().join(format!("{}.log", service.mark));
        let child = start_detached(command, &log).unwrap();
        fs::remove_file(log).unwrap();
        assert!(wait_until(Duration::from_secs(10), || {
            !service.processes().is_empty()
        }));
        (service, child)
    }

    #[test]
    fn service_is_found_and_stopped_once() {
        let (service, mut child) = start("polite", WAIT);
        let pid = Pid::from_raw(child.id().try_into().unwrap());
        assert_eq!(service.processes(), [pid]);
        assert!(service.stop(None, Duration::from_secs(10)).unwrap());
        assert!(!service.stop(None, Duration::from_secs(10)).unwrap());
        child.wait().unwrap();
    }

    #[test]
    fn process_that_ignores_signals_is_killed_with_its_children() {
        let script = "trap '' TERM; sleep 1000 & echo; while :; do sleep 0.01; done";
        let (service, mut child) = start("stubborn", script);
        let pid = Pid::from_raw(child.id().try_into().unwrap());
        let sleeper = || {
            descendants(&[pid]).into_iter().find(|other| {
                fs::read(format!("/proc/{other}/cmdline"))
                    .is_ok_and(|args| args == b"sleep\x001000\0")
            })
        };
        assert!(wait_until(Duration::from_secs(10), || sleeper().is_some()));
        let sleeper = sleeper().unwrap();
        assert!(service.stop(None, Duration::from_millis(100)).unwrap());
        child.wait().unwrap();
        let is_running =
            || fs::read(format!("/proc/{sleeper}/cmdline")).is_ok_and(|args| !args.is_empty());
        assert!(wait_until(Duration::from_secs(10), || !is_running()));
    }

    #[test]
    fn another_program_with_the_mark_is_left_alone() {
        let (service, mut child) = start("other", WAIT);
        let registry = Service {
            programs: &["docker-registry"],
            ..service.clone()
        };
        assert!(!registry.stop(None, Duration::ZERO).unwrap());
        assert!(service.stop(None, Duration::from_secs(10)).unwrap());
        child.wait().unwrap();
    }
}
