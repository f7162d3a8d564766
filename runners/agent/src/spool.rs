//! Log of one attempt: its events as JSON lines, on disk until the control plane has stored them.
//!
//! [`LogWriter`] appends, and senders read from [`RunLog`]. On a full disk the file ends after the
//! last complete event and a warning follows in the log. Then only events that describe the end of
//! the run are kept, in bounded memory: nothing is cut without a mark. Stored parts of the file are
//! released while the run continues, and the last [`RunLog`] removes the file.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use acrtask_model::{Event, EventKind, RunId, RunState};
use acrtask_proto::runner::{Finished, FromRunner, LogChunk, from_runner::Message};
use bytes::Bytes;
use nix::fcntl::{FallocateFlags, fallocate};
use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;

use crate::{
    id::AttemptId,
    log_window::{LogWindow, Next, OffsetMismatch},
};

/// Maximum size of the part in memory when the disk is full, in bytes.
const MAX_TAIL: usize = 256 << 10;

/// End of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finish {
    pub(crate) state: RunState,
    pub(crate) reason: Option<String>,
    /// The result as JSON.
    pub(crate) result: String,
}

/// The log of one attempt.
#[derive(Debug)]
pub(crate) struct RunLog {
    id: AttemptId,
    path: PathBuf,
    file: File,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    window: LogWindow,
    /// Length of the file. The log continues in `tail`.
    on_disk: u64,
    tail: Vec<u8>,
    finish: Option<(Finish, String)>,
}

impl RunLog {
    /// Creates an empty log in `folder`.
    pub(crate) fn create(folder: &Path, id: AttemptId) -> io::Result<Arc<Self>> {
        let path = folder.join(id.file_name());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)?;
        Ok(Self::with_file(file, path, id))
    }

    fn with_file(file: File, path: PathBuf, id: AttemptId) -> Arc<Self> {
        Arc::new(Self {
            id,
            path,
            file,
            state: Mutex::default(),
            changed: Notify::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the window and wakes the sender.
    fn change<T>(&self, change: impl FnOnce(&mut LogWindow) -> T) -> T {
        let result = change(&mut self.state().window);
        self.changed.notify_waiters();
        result
    }

    /// Starts a stream; see [`LogWindow::connect`].
    pub(crate) fn connect(&self, offset: u64) -> Result<u64, OffsetMismatch> {
        self.change(|window| window.connect(offset))
    }

    /// Ends the stream.
    pub(crate) fn disconnect(&self) {
        self.change(LogWindow::disconnect);
    }

    /// Records that the control plane has stored everything before `offset`.
    pub(crate) fn acknowledge(
        self: &Arc<Self>,
        offset: u64,
        now: Duration,
    ) -> Result<(), OffsetMismatch> {
        let (fits, forgotten) =
            self.change(|window| (window.acknowledge(offset, now), window.take_releasable()));
        if let Some((from, length)) = forgotten {
            let log = Arc::clone(self);
            tokio::task::spawn_blocking(move || log.punch_hole(from, length));
        }
        fits
    }

    /// Releases disk blocks of the file. Unsupported file systems keep them until the file is
    /// removed.
    fn punch_hole(&self, from: u64, length: u64) {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        if let (Ok(from), Ok(length)) = (from.try_into(), length.try_into()) {
            let _ = fallocate(&self.file, flags, from, length);
        }
    }

    /// Records a final acknowledgement; see [`LogWindow::acknowledge_finish`].
    pub(crate) fn acknowledge_finish(&self, offset: u64) -> Result<bool, OffsetMismatch> {
        self.change(|window| window.acknowledge_finish(offset))
    }

    /// Sends lost bytes again; see [`LogWindow::resend_lost`].
    pub(crate) fn resend_lost(&self, now: Duration) {
        self.change(|window| window.resend_lost(now));
    }

    /// Returns a future that completes at the next change of the log or its window.
    pub(crate) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// Returns the next step of the sender on `stream`.
    pub(crate) fn next(&self, stream: u64) -> Next {
        self.state().window.next(stream)
    }

    /// Builds the message with the bytes that [`Self::next`] named.
    pub(crate) async fn chunk(
        self: &Arc<Self>,
        offset: u64,
        length: usize,
    ) -> io::Result<FromRunner> {
        let data = self.read_bytes(offset, length).await?;
        Ok(FromRunner {
            message: Some(Message::Log(LogChunk {
                of: Some(self.id.to_proto()),
                offset,
                data,
            })),
        })
    }

    async fn read_bytes(self: &Arc<Self>, offset: u64, length: usize) -> io::Result<Bytes> {
        let on_disk = {
            let state = self.state();
            if offset >= state.on_disk {
                let start = usize::try_from(offset - state.on_disk).unwrap_or(usize::MAX);
                let bytes = state.tail.get(start..start.saturating_add(length));
                return bytes.map(Bytes::copy_from_slice).ok_or_else(|| {
                    io::Error::new(io::ErrorKind::UnexpectedEof, "the log is shorter")
                });
            }
            state.on_disk
        };
        let in_file = usize::try_from(on_disk - offset)
            .unwrap_or(usize::MAX)
            .min(length);
        let log = Arc::clone(self);
        let read = move || {
            let mut bytes = vec![0; in_file];
            log.file.read_exact_at(&mut bytes, offset)?;
            Ok::<_, io::Error>(bytes)
        };
        let mut bytes = run_blocking(read).await?;
        let rest = length - in_file;
        if rest > 0 {
            let state = self.state();
            bytes.extend_from_slice(state.tail.get(..rest).unwrap_or_default());
        }
        Ok(bytes.into())
    }

    /// Records that bytes were sent.
    pub(crate) fn mark_sent(&self, stream: u64, offset: u64, length: usize, now: Duration) {
        self.state().window.mark_sent(stream, offset, length, now);
    }

    /// Returns `true` if the end of the attempt is recorded.
    pub(crate) fn is_finished(&self) -> bool {
        self.state().finish.is_some()
    }

    /// Builds the final message. `None` before the end of the attempt.
    pub(crate) fn finish(&self, stream: u64) -> Option<FromRunner> {
        let mut state = self.state();
        let (finish, digest) = state.finish.clone()?;
        state.window.mark_finish_sent(stream);
        Some(FromRunner {
            message: Some(Message::Finished(Finished {
                of: Some(self.id.to_proto()),
                state: finish.state.as_str().into(),
                reason: finish.reason.unwrap_or_default(),
                result_json: finish.result,
                log_length: state.window.length(),
                log_sha256: digest,
            })),
        })
    }
}

impl Drop for RunLog {
    fn drop(&mut self) {
        // The next start removes a remaining file.
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Writer of a log.
#[derive(Debug)]
pub(crate) struct LogWriter {
    log: Arc<RunLog>,
    hash: Sha256,
    full: bool,
}

impl LogWriter {
    /// Creates the only writer of `log`.
    pub(crate) fn new(log: Arc<RunLog>) -> Self {
        Self {
            log,
            hash: Sha256::new(),
            full: false,
        }
    }

    /// Appends events.
    ///
    /// # Errors
    /// The first time that the disk is full: the caller has to stop the run. Of later events, those
    /// that describe the end of the run are kept.
    pub(crate) async fn write(&mut self, events: &[Event]) -> Result<(), String> {
        if self.full {
            self.keep_in_memory(events);
            return Ok(());
        }
        let mut lines = Vec::new();
        for event in events {
            append_line(&mut lines, event);
        }
        let log = Arc::clone(&self.log);
        let offset = log.state().on_disk;
        let mut hash = std::mem::take(&mut self.hash);
        let length = lines.len() as u64;
        let append = move || {
            let written = log.file.write_all_at(&lines, offset);
            if written.is_ok() {
                hash.update(&lines);
            }
            Ok((hash, written))
        };
        let (hash, written) = match run_blocking(append).await {
            Ok(done) => done,
            Err(error) => {
                tracing::error!(%error, "writing a log panicked");
                (Sha256::new(), Err(error))
            }
        };
        self.hash = hash;
        if let Err(error) = written {
            self.full = true;
            let reason = format!(
                "the runner could not store the run's log ({error}); make room on the disk of its state folder"
            );
            if let Some(event) = events.first() {
                let warning = EventKind::Warning {
                    step: None,
                    message: "the log ends here: the runner's disk is full".into(),
                    help: None,
                };
                self.keep_in_memory(&[event_of(&event.run, warning)]);
            }
            self.keep_in_memory(events);
            return Err(reason);
        }
        let mut state = self.log.state();
        state.on_disk += length;
        state.window.append(length);
        drop(state);
        self.log.changed.notify_waiters();
        Ok(())
    }

    /// Keeps the events that describe the end of the run in memory.
    fn keep_in_memory(&mut self, events: &[Event]) {
        let mut state = self.log.state();
        for event in events {
            let last = matches!(event.kind, EventKind::RunFinished { .. });
            let is_essential = matches!(
                event.kind,
                EventKind::StepFinished { .. }
                    | EventKind::ImagePushed { .. }
                    | EventKind::Warning { .. }
            );
            let mut text = Vec::new();
            append_line(&mut text, event);
            if last || is_essential && state.tail.len() + text.len() <= MAX_TAIL {
                self.hash.update(&text);
                state.window.append(text.len() as u64);
                state.tail.append(&mut text);
            }
        }
        drop(state);
        self.log.changed.notify_waiters();
    }

    /// Records the end of the attempt.
    pub(crate) fn finish(self, finish: Finish) {
        let digest: String = self
            .hash
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let mut state = self.log.state();
        state.finish = Some((finish, digest));
        state.window.close();
        drop(state);
        self.log.changed.notify_waiters();
    }
}

/// Creates an event with the current time.
#[allow(
    clippy::disallowed_methods,
    reason = "the time of an event is the time of its creation"
)]
pub(crate) fn event_of(run: &RunId, kind: EventKind) -> Event {
    Event {
        time: jiff::Timestamp::now(),
        run: run.clone(),
        kind,
    }
}

fn append_line(into: &mut Vec<u8>, event: &Event) {
    let start = into.len();
    match serde_json::to_writer(&mut *into, event) {
        Ok(()) => into.push(b'\n'),
        Err(error) => {
            into.truncate(start);
            tracing::error!(%error, "cannot serialize an event");
        }
    }
}

#[cfg(test)]
mod tests {
    use acrtask_model::{Outcome, StepId, events::Stream};

    use super::*;

    fn id() -> AttemptId {
        AttemptId {
            run: RunId::new("r1").unwrap(),
            attempt: 2,
        }
    }

    fn output(text: &str) -> Event {
        event_of(
            &id().run,
            EventKind::Output {
                step: StepId::new("s").unwrap(),
                stream: Stream::Stdout,
                vertex: None,
                text: text.into(),
            },
        )
    }

    fn finished() -> Event {
        event_of(
            &id().run,
            EventKind::RunFinished {
                outcome: Outcome {
                    state: RunState::Error,
                    reason: Some("full".into()),
                },
                elapsed_ms: 1,
                remaining: Vec::new(),
            },
        )
    }

    async fn read_all(log: &Arc<RunLog>) -> Vec<u8> {
        let stream = log.connect(0).unwrap();
        let mut all = Vec::new();
        while let Next::Chunk { offset, length } = log.next(stream) {
            assert_eq!(offset, all.len() as u64);
            all.extend(log.read_bytes(offset, length).await.unwrap());
            log.mark_sent(stream, offset, length, Duration::ZERO);
            log.acknowledge(all.len() as u64, Duration::ZERO).unwrap();
        }
        all
    }

    fn hash(bytes: &[u8]) -> String {
        Sha256::digest(bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    #[tokio::test]
    async fn log_contains_its_events_line_by_line() {
        let folder = tempfile::tempdir().unwrap();
        let log = RunLog::create(folder.path(), id()).unwrap();
        let path = folder.path().join("r1.2");
        assert!(path.exists());
        let mut writer = LogWriter::new(Arc::clone(&log));
        let events: Vec<Event> = (0..1000).map(|n| output(&"x".repeat(n))).collect();
        for some in events.chunks(7) {
            writer.write(some).await.unwrap();
        }
        writer.finish(Finish {
            state: RunState::Succeeded,
            reason: None,
            result: "{}".into(),
        });
        let all = read_all(&log).await;
        let read: Vec<Event> = all
            .split_inclusive(|byte| *byte == b'\n')
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect();
        assert_eq!(read, events);
        let Some(Message::Finished(message)) = log.finish(1).unwrap().message else {
            panic!("no such message");
        };
        assert_eq!(message.log_length, all.len() as u64);
        assert_eq!(message.log_sha256, hash(&all));
        assert_eq!(message.state, "succeeded");
        drop(log);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn acknowledged_bytes_are_released_from_disk() {
        use std::os::unix::fs::MetadataExt as _;
        let folder = tempfile::tempdir().unwrap();
        let log = RunLog::create(folder.path(), id()).unwrap();
        let mut writer = LogWriter::new(Arc::clone(&log));
        let much = output(&"x".repeat(1 << 20));
        for _ in 0..40 {
            writer.write(std::slice::from_ref(&much)).await.unwrap();
        }
        let blocks = || log.file.metadata().unwrap().blocks() * 512;
        assert!(blocks() > 38 << 20);
        let all = read_all(&log).await;
        assert_eq!(all.len() as u64, log.state().window.length());
        // Another thread releases the blocks.
        for _ in 0..100 {
            if blocks() < 16 << 20 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{} bytes are still on the disk", blocks());
    }

    #[tokio::test]
    async fn full_disk_ends_the_log_with_a_warning() {
        // Every write to this file fails for lack of space.
        let full = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/full")
            .unwrap();
        let log = RunLog::with_file(full, "/nowhere/r1.2".into(), id());
        let mut writer = LogWriter::new(Arc::clone(&log));
        let reason = writer.write(&[output("lost")]).await.unwrap_err();
        assert!(reason.contains("make room"), "{reason}");
        writer.write(&[output("lost too")]).await.unwrap();
        writer.write(&[finished()]).await.unwrap();
        writer.finish(Finish {
            state: RunState::Error,
            reason: Some(reason),
            result: "{}".into(),
        });
        let all = read_all(&log).await;
        let kinds: Vec<EventKind> = all
            .split_inclusive(|byte| *byte == b'\n')
            .map(|line| serde_json::from_slice::<Event>(line).unwrap().kind)
            .collect();
        assert!(
            matches!(kinds.as_slice(), [EventKind::Warning { message, .. }, EventKind::RunFinished { .. }] if message.contains("ends here")),
            "{kinds:?}"
        );
        let Some(Message::Finished(message)) = log.finish(1).unwrap().message else {
            panic!("no such message");
        };
        assert_eq!(message.log_sha256, hash(&all));
    }

    #[tokio::test]
    async fn chunk_may_span_disk_and_memory() {
        let folder = tempfile::tempdir().unwrap();
        let log = RunLog::create(folder.path(), id()).unwrap();
        let mut writer = LogWriter::new(Arc::clone(&log));
        writer.write(&[output("on disk")]).await.unwrap();
        writer.full = true;
        writer.write(&[finished()]).await.unwrap();
        let all = read_all(&log).await;
        assert_eq!(all.iter().filter(|byte| **byte == b'\n').count(), 2);
        let middle = log.read_bytes(10, all.len() - 20).await.unwrap();
        assert_eq!(middle, all[10..all.len() - 10]);
    }
}
