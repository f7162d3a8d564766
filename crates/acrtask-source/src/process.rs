//! One child process with bounded output, that does not outlive the future which waits for it.

use std::{io, process::Stdio};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
};

/// How much of the error stream is kept, in bytes.
const MAX_STDERR: u64 = 64 << 10;

/// What a child left.
pub(crate) struct Output {
    pub(crate) success: bool,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

/// Kills the child with all that it started, unless it has been waited for.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // The group is gone if the child ended in the meantime, which is as good.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// Runs `command` in a process group of its own, without input, and keeps at most `limit` bytes of its output. More
/// than that is read and thrown away, and [`Output::stdout`] is then one byte longer than `limit`.
pub(crate) async fn run(command: Command, limit: u64) -> io::Result<Output> {
    run_child(command, None, limit).await
}

/// As [`run`], with `input`, which should be short: a program may end without reading it.
pub(crate) async fn run_with_input(
    command: Command,
    input: &[u8],
    limit: u64,
) -> io::Result<Output> {
    run_child(command, Some(input), limit).await
}

async fn run_child(mut command: Command, input: Option<&[u8]>, limit: u64) -> io::Result<Output> {
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
    let mut group = Group(pid);
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        // A program that has ended says itself why.
        let _ = stdin.write_all(input).await;
    }
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (stdout, stderr) = tokio::try_join!(read(stdout, limit + 1), read(stderr, MAX_STDERR))?;
    let status = child.wait().await?;
    group.0 = None;
    Ok(Output {
        success: status.success(),
        stdout,
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    })
}

async fn read(stream: Option<impl AsyncRead + Unpin>, limit: u64) -> io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    if let Some(mut stream) = stream {
        (&mut stream).take(limit).read_to_end(&mut kept).await?;
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    }
    Ok(kept)
}
