//! Storage of log chunks in blobs and in the index.
//!
//! Invariants:
//! - The bytes of a chunk are stored before its row.
//! - Each attempt to store has its own blob, which is removed if its row is not committed.
//! - A runner gets an acknowledgement only for stored bytes.
//! - A log that reaches a quota ends with an event that explains it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use acrtask_model::{Event, EventKind, RunId};
use acrtask_proto::runner::{Attempt, LogAck, to_runner::Message};
use acrtask_store::{QuotaExceeded, Report, Verdict};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::{
    hub::EndSignal,
    session::{abandon_message, end_unwritten},
};
use crate::{
    App,
    recorder::{Ack, Recorder},
};

/// Number of retries of a chunk behind a gap: the missing bytes may still arrive.
const GAP_TRIES: u32 = 3;
/// Pause between these retries.
const GAP_PAUSE: Duration = Duration::from_millis(30);
/// Longest pause between attempts to store a blob.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Highest acknowledged offset of each log on one connection.
///
/// An acknowledgement at or below the last one means that a chunk did not fit. A repeated chunk
/// must therefore not cause a second acknowledgement.
#[derive(Debug, Clone, Default)]
pub(super) struct AckedOffsets(Arc<Mutex<HashMap<RunId, (u32, u64)>>>);

impl AckedOffsets {
    /// Returns `true` if the runner has no acknowledgement for `offset` yet.
    fn is_news(&self, run: &RunId, attempt: u32, offset: u64) -> bool {
        let mut acked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = acked.entry(run.clone()).or_insert((attempt, 0));
        if *last >= (attempt, offset) {
            return false;
        }
        *last = (attempt, offset);
        true
    }

    /// Forgets a finished run.
    pub(super) fn forget(&self, run: &RunId) {
        let mut acked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        acked.remove(run);
    }
}

/// A log chunk that is being stored.
pub(super) struct Chunk {
    pub(super) app: Arc<App>,
    pub(super) recorder: Recorder,
    pub(super) acked: AckedOffsets,
    /// The runner's id.
    pub(super) id: String,
    pub(super) of: Attempt,
    pub(super) run: RunId,
    pub(super) offset: u64,
    pub(super) data: Bytes,
    /// The report that the recorder commits for the chunk.
    pub(super) report: Report,
}

impl Chunk {
    /// Stores the chunk and returns the messages for the runner.
    ///
    /// If the chunk overlaps stored bytes, the rest is stored. If it is behind a gap, the runner
    /// gets the offset of the gap and sends again from there.
    pub(super) async fn store(mut self, mut pending: Ack, end: EndSignal) -> Vec<Message> {
        let chunk_end = self.offset + self.data.len() as u64;
        let attempt = self.of.attempt;
        let mut gaps = 0;
        loop {
            let verdict = pending.await;
            let is_done = matches!(verdict, Ok(Verdict::Done));
            let stored = match verdict {
                Ok(Verdict::Done) => chunk_end,
                Ok(Verdict::LogAt(stored)) => stored,
                Ok(Verdict::LogFull(exceeded)) => return self.end_full_log(&exceeded, &end).await,
                Ok(Verdict::Refused { reason }) => {
                    self.discard().await;
                    return vec![abandon_message(self.of, reason)];
                }
                Err(_) => return end_unwritten(&end),
            };
            let is_gap = stored < self.offset;
            let ack = LogAck {
                of: Some(self.of.clone()),
                offset: stored,
            };
            if is_gap && gaps == GAP_TRIES {
                self.discard().await;
                return vec![Message::LogAck(ack)];
            }
            if stored >= chunk_end {
                if stored > chunk_end || !is_done {
                    self.discard().await;
                }
                let news = self.acked.is_news(&self.run, attempt, stored);
                return news.then_some(Message::LogAck(ack)).into_iter().collect();
            }
            if is_gap {
                gaps += 1;
                tokio::time::sleep(GAP_PAUSE).await;
            } else {
                self.discard().await;
                let skip = usize::try_from(stored - self.offset).unwrap_or(usize::MAX);
                self.data = self.data.slice(skip..);
                self.offset = stored;
                self.report = put_chunk(&self.app, &self.run, attempt, stored, &self.data).await;
            }
            let report = self.report.clone();
            pending = self
                .recorder
                .submit(&self.id, &self.run, attempt, report)
                .await;
        }
    }

    /// Ends the log with an event, and the run with an error. The runner stops the run.
    async fn end_full_log(mut self, exceeded: &QuotaExceeded, end: &EndSignal) -> Vec<Message> {
        self.discard().await;
        let reason = format!("the log exceeded a limit: {exceeded}");
        for _ in 0..=GAP_TRIES {
            let mark = end_mark(&self.app, &self.run, &reason, exceeded.help());
            self.report =
                match put_chunk(&self.app, &self.run, self.of.attempt, self.offset, &mark).await {
                    Report::LogChunk {
                        offset,
                        length,
                        blob,
                    } => Report::LogFull {
                        offset,
                        length,
                        blob,
                        reason: format!("{reason}; {}", exceeded.help()),
                    },
                    other => other,
                };
            let report = self.report.clone();
            let ack = self
                .recorder
                .submit(&self.id, &self.run, self.of.attempt, report)
                .await;
            match ack.await {
                Ok(Verdict::Done) => break,
                Ok(Verdict::LogAt(stored)) => self.offset = stored,
                Ok(Verdict::Refused { .. } | Verdict::LogFull(_)) => {
                    self.discard().await;
                    break;
                }
                Err(_) => return end_unwritten(end),
            }
            self.discard().await;
        }
        vec![abandon_message(self.of, reason)]
    }

    /// Removes the blob of an attempt that was not committed.
    async fn discard(&self) {
        let (Report::LogChunk { offset, blob, .. } | Report::LogFull { offset, blob, .. }) =
            &self.report
        else {
            return;
        };
        // The commit may have succeeded although its response was lost.
        let store = &self.app.store;
        match store
            .is_log_blob(&self.run, self.of.attempt, *offset, blob)
            .await
        {
            Ok(true) => {}
            Ok(false) => {
                if let Err(error) = self.app.blobs.delete(std::slice::from_ref(blob)).await {
                    tracing::warn!(run = %self.run, error = acrtask_model::error_chain(&error), "cannot remove an unused blob");
                }
            }
            Err(error) => {
                tracing::warn!(run = %self.run, %error, "cannot remove an unused blob")
            }
        }
    }
}

/// Returns the event that ends a full log, on a new line, because the log may end within a line.
fn end_mark(app: &App, run: &RunId, reason: &str, help: String) -> Bytes {
    let event = Event {
        time: app.clock.now(),
        run: run.clone(),
        kind: EventKind::Warning {
            step: None,
            message: reason.to_owned(),
            help: Some(help),
        },
    };
    let text = serde_json::to_string(&event).unwrap_or_default();
    Bytes::from(format!("\n{text}\n"))
}

/// Returns the blob key of one attempt to store a chunk.
///
/// All runs share few existing folders: a folder for each run would need more synced writes.
#[allow(
    clippy::disallowed_methods,
    reason = "identifiers and secrets are random"
)]
fn blob_key(run: &RunId, attempt: u32, offset: u64, length: u32) -> String {
    let folder = Sha256::digest(run.as_str())[0];
    let own: u32 = rand::random();
    format!("logs/{folder:02x}/{run}-{attempt}-{offset}-{length}-{own:08x}")
}

/// Puts bytes of a log into a blob and returns their report.
pub(super) async fn put_chunk(
    app: &App,
    run: &RunId,
    attempt: u32,
    offset: u64,
    data: &Bytes,
) -> Report {
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let blob = blob_key(run, attempt, offset, length);
    let mut pause = Duration::from_millis(100);
    while let Err(reason) = app.floor.check() {
        tracing::error!(%run, attempt, reason, "waiting for free disk to store a log chunk");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    while let Err(error) = app.blobs.put(&blob, data.clone()).await {
        tracing::error!(%run, attempt, error = acrtask_model::error_chain(&error), "waiting for the blob storage to store a log chunk");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    Report::LogChunk {
        offset,
        length,
        blob,
    }
}
