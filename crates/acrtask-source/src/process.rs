//! Child process with bounded output that does not outlive the waiting future.
//!
//! The disk and memory usage of the process is measured while it runs ([`Bounds`]). The server
//! decides how much a git command needs, and git has no limits of its own.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
};
use walkdir::WalkDir;

/// Maximum size of the error stream, in bytes.
const MAX_STDERR: u64 = 64 << 10;

/// Wait before the first measurement of a child, and minimum wait between two measurements.
const MEASURE: Duration = Duration::from_millis(250);
/// Minimum ratio of the wait to the duration of a measurement.
const SPACING: u32 = 20;

/// Limits of a child and its descendants.
#[derive(Debug, Clone)]
pub(crate) struct Bounds {
    /// Folder that the processes write to.
    pub(crate) folder: PathBuf,
    /// Maximum size of all files in the folder, in bytes.
    pub(crate) bytes: u64,
    /// Maximum number of files and folders in the folder.
    pub(crate) entries: u64,
    /// Maximum memory of all processes, in bytes.
    pub(crate) memory: u64,
}

/// Exceeded bound, wrapped in an [`io::Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than {limit} {unit}")]
pub(crate) struct Exceeded {
    pub(crate) limit: u64,
    pub(crate) unit: &'static str,
}

impl Bounds {
    /// Waits until the processes of `group` exceed a bound.
    async fn wait_until_exceeded(&self, group: Option<Pid>) -> Exceeded {
        let mut wait = MEASURE;
        loop {
            tokio::time::sleep(wait).await;
            let bounds = self.clone();
            let begun = Instant::now();
            let measured = tokio::task::spawn_blocking(move || bounds.measure(group)).await;
            if let Ok(Err(exceeded)) = measured {
                return exceeded;
            }
            wait = MEASURE.max(begun.elapsed() * SPACING);
        }
    }

    /// Measures once. Includes the memory of `group` if there is one.
    pub(crate) fn measure(&self, group: Option<Pid>) -> Result<(), Exceeded> {
        if group.is_some_and(|group| measure_memory(group) > self.memory) {
            return Err(Exceeded {
                limit: self.memory,
                unit: "bytes of memory",
            });
        }
        let (mut bytes, mut entries) = (0u64, 0u64);
        // Files may disappear during the measurement. A missing file counts as empty.
        for entry in WalkDir::new(&self.folder).into_iter().flatten() {
            entries += 1;
            bytes = bytes.saturating_add(entry.metadata().map_or(0, |of| of.len()));
            if bytes > self.bytes {
                return Err(Exceeded {
                    limit: self.bytes,
                    unit: "bytes on disk",
                });
            }
            if entries > self.entries {
                return Err(Exceeded {
                    limit: self.entries,
                    unit: "files and folders",
                });
            }
        }
        Ok(())
    }
}

/// Returns the memory of all processes of a group, in bytes. 0 if `/proc` is unreadable.
fn measure_memory(group: Pid) -> u64 {
    let Ok(processes) = fs::read_dir("/proc") else {
        return 0;
    };
    let sizes = processes.flatten().filter_map(|process| {
        let name = process.file_name();
        name.to_str()?.parse::<u32>().ok()?;
        process_memory(&process.path(), group)
    });
    sizes.sum()
}

/// Returns the memory of the process `folder` in bytes. `None` if it does not belong to `group`.
///
/// Source: proc_pid_stat(5), proc_pid_status(5).
fn process_memory(folder: &Path, group: Pid) -> Option<u64> {
    let stat = fs::read_to_string(folder.join("stat")).ok()?;
    // The name of the program is in parentheses and may contain any text. State, parent and group
    // follow it.
    let (_, rest) = stat.rsplit_once(')')?;
    let of: i32 = rest.split_whitespace().nth(2)?.parse().ok()?;
    if of != group.as_raw() {
        return None;
    }
    let status = fs::read_to_string(folder.join("status")).ok()?;
    // Excludes the pages of files, because these are packs that git maps.
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib << 10)
}

/// Result of a finished child.
pub(crate) struct Output {
    pub(crate) success: bool,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

/// Guard that kills the child and its descendants, unless the child has been waited for.
struct KillGuard(Option<Pid>);

impl Drop for KillGuard {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // If the child has ended in the meantime, its group may not exist.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// Runs `command` in its own process group, without input. Keeps at most `limit` bytes of output
/// and drops the rest. [`Output::stdout`] is one byte longer than `limit` if more arrived. Fails
/// with [`Exceeded`] if the command exceeds `bounds`.
pub(crate) async fn run(command: Command, limit: u64, bounds: &Bounds) -> io::Result<Output> {
    run_child(command, None, limit, Some(bounds)).await
}

/// Runs `command` like [`run`], with a short `input`. A program may end without reading it.
pub(crate) async fn run_with_input(
    command: Command,
    input: &[u8],
    limit: u64,
) -> io::Result<Output> {
    run_child(command, Some(input), limit, None).await
}

async fn run_child(
    mut command: Command,
    input: Option<&[u8]>,
    limit: u64,
    bounds: Option<&Bounds>,
) -> io::Result<Output> {
    let stdin = if input.is_some() {
        Stdio::piped()
    } else {
        Stdio::null()
    };
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let pid = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .map(Pid::from_raw);
    let mut group = KillGuard(pid);
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        // A program that has ended reports the reason itself.
        let _ = stdin.write_all(input).await;
    }
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let ending = async {
        let (stdout, stderr) = tokio::try_join!(
            read_limited(stdout, limit + 1),
            read_limited(stderr, MAX_STDERR)
        )?;
        Ok::<_, io::Error>((stdout, stderr, child.wait().await?))
    };
    let watching = async {
        match bounds {
            Some(bounds) => bounds.wait_until_exceeded(pid).await,
            None => std::future::pending().await,
        }
    };
    let (stdout, stderr, status) = tokio::select! {
        ended = ending => ended?,
        exceeded = watching => return Err(io::Error::other(exceeded)),
    };
    group.0 = None;
    Ok(Output {
        success: status.success(),
        stdout,
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    })
}

async fn read_limited(stream: Option<impl AsyncRead + Unpin>, limit: u64) -> io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    if let Some(mut stream) = stream {
        (&mut stream).take(limit).read_to_end(&mut kept).await?;
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn run_bounded(script: &str) -> io::Result<Output> {
        let folder = tempfile::tempdir()?;
        let bounds = Bounds {
            folder: folder.path().to_owned(),
            bytes: 64 << 20,
            entries: 1000,
            memory: 256 << 20,
        };
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(folder.path());
        run(command, 1 << 20, &bounds).await
    }

    #[tokio::test]
    async fn child_that_exceeds_a_bound_is_killed() {
        for (script, unit) in [
            // `tail` stores the last line, which never ends.
            ("tail /dev/zero", "bytes of memory"),
            ("tail /dev/zero | cat", "bytes of memory"),
            ("cat /dev/zero > file", "bytes on disk"),
            (
                "i=0; while :; do mkdir -p $i; i=$((i+1)); done",
                "files and folders",
            ),
        ] {
            let error = run_bounded(script).await.err().unwrap();
            let exceeded = error.get_ref().unwrap().downcast_ref::<Exceeded>();
            assert_eq!(exceeded.unwrap().unit, unit, "{script}");
        }
        assert!(run_bounded("sleep 0.6; echo fine").await.unwrap().success);
    }
}
