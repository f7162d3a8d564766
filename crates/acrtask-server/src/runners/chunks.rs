//! Chunks of logs on their way into blobs and the index.
//!
//! Invariants: a chunk's bytes are kept before its row is written; each try has a blob of its own, which is removed unless
//! the try was written down; a runner is told that a byte is stored only when it is; a log that reaches a quota ends with a
//! mark that says so.

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
    hub::End,
    session::{abandon, unwritten},
};
use crate::{
    App,
    recorder::{Receipt, Recorder},
};

/// How often a chunk behind a gap is tried again: what is missing may be under way.
const GAP_TRIES: u32 = 3;
/// The pause between.
const GAP_PAUSE: Duration = Duration::from_millis(30);
/// The longest pause while blobs cannot be put.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What a runner was told of its logs on one connection. An offset that is not above the last one says that something did
/// not fit, so that a repetition must not be acknowledged like news.
#[derive(Debug, Clone, Default)]
pub(super) struct Acknowledged(Arc<Mutex<HashMap<RunId, (u32, u64)>>>);

impl Acknowledged {
    /// True where the runner does not know yet that everything below `offset` is stored.
    fn is_news(&self, run: &RunId, attempt: u32, offset: u64) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = told.entry(run.clone()).or_insert((attempt, 0));
        if *last >= (attempt, offset) {
            return false;
        }
        *last = (attempt, offset);
        true
    }

    /// The run is over.
    pub(super) fn forget(&self, run: &RunId) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.remove(run);
    }
}

/// A chunk, until it is known to be stored.
pub(super) struct Chunk {
    pub(super) app: Arc<App>,
    pub(super) recorder: Recorder,
    pub(super) told: Acknowledged,
    /// The runner.
    pub(super) id: String,
    pub(super) of: Attempt,
    pub(super) run: RunId,
    pub(super) offset: u64,
    pub(super) data: Bytes,
    /// What is written down of it.
    pub(super) report: Report,
}

impl Chunk {
    /// Waits until the chunk is stored. Of one that overlaps what is stored the rest is stored; of one behind a gap the
    /// runner is told where the gap begins, and sends from there.
    pub(super) async fn stored(mut self, mut receipt: Receipt, end: End) -> Vec<Message> {
        let chunk_end = self.offset + self.data.len() as u64;
        let attempt = self.of.attempt;
        let mut gaps = 0;
        loop {
            let verdict = receipt.await;
            let is_done = matches!(verdict, Ok(Verdict::Done));
            let stored = match verdict {
                Ok(Verdict::Done) => chunk_end,
                Ok(Verdict::LogAt(stored)) => stored,
                Ok(Verdict::LogFull(exceeded)) => return self.full(&exceeded, &end).await,
                Ok(Verdict::Refused { reason }) => {
                    self.discard().await;
                    return vec![abandon(self.of, reason)];
                }
                Err(_) => return unwritten(&end),
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
                let news = self.told.is_news(&self.run, attempt, stored);
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
                self.report = put(&self.app, &self.run, attempt, stored, &self.data).await;
            }
            let report = self.report.clone();
            receipt = self
                .recorder
                .submit(&self.id, &self.run, attempt, report)
                .await;
        }
    }

    /// Ends the log with a mark, and the run as an error. The runner stops it.
    async fn full(mut self, exceeded: &QuotaExceeded, end: &End) -> Vec<Message> {
        self.discard().await;
        let reason = format!("the log has reached a limit: {exceeded}");
        for _ in 0..=GAP_TRIES {
            let mark = mark(&self.app, &self.run, &reason, exceeded.help());
            self.report = match put(&self.app, &self.run, self.of.attempt, self.offset, &mark).await
            {
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
            let receipt = self
                .recorder
                .submit(&self.id, &self.run, self.of.attempt, report)
                .await;
            match receipt.await {
                Ok(Verdict::Done) => break,
                Ok(Verdict::LogAt(stored)) => self.offset = stored,
                Ok(Verdict::Refused { .. } | Verdict::LogFull(_)) => {
                    self.discard().await;
                    break;
                }
                Err(_) => return unwritten(end),
            }
            self.discard().await;
        }
        vec![abandon(self.of, reason)]
    }

    /// Removes the blob of a try that was not written down.
    async fn discard(&self) {
        let (Report::LogChunk { offset, blob, .. } | Report::LogFull { offset, blob, .. }) =
            &self.report
        else {
            return;
        };
        // An answer may have been lost after the commit.
        let store = &self.app.store;
        match store
            .is_log_blob(&self.run, self.of.attempt, *offset, blob)
            .await
        {
            Ok(true) => {}
            Ok(false) => {
                if let Err(error) = self.app.blobs.delete(std::slice::from_ref(blob)).await {
                    tracing::warn!(run = %self.run, error = acrtask_model::chain(&error), "a blob that nothing needs stays");
                }
            }
            Err(error) => {
                tracing::warn!(run = %self.run, %error, "a blob that nothing needs stays")
            }
        }
    }
}

/// Returns the mark at which a log ends early: an event on a line of its own, since the log may end within a line.
fn mark(app: &App, run: &RunId, reason: &str, help: String) -> Bytes {
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

/// Returns the key of one try to store a chunk. Few folders that are there already hold all runs: a folder for each run would
/// be as many more writes that the disk has to confirm as its whole log.
fn key(run: &RunId, attempt: u32, offset: u64, length: u32) -> String {
    let folder = Sha256::digest(run.as_str())[0];
    let own: u32 = rand::random();
    format!("logs/{folder:02x}/{run}-{attempt}-{offset}-{length}-{own:08x}")
}

/// Puts bytes of a log into a blob and gives the report of it.
pub(super) async fn put(app: &App, run: &RunId, attempt: u32, offset: u64, data: &Bytes) -> Report {
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let blob = key(run, attempt, offset, length);
    let mut pause = Duration::from_millis(100);
    while let Err(reason) = app.floor.check() {
        tracing::error!(%run, attempt, reason, "a part of a log waits for free disk");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    while let Err(error) = app.blobs.put(&blob, data.clone()).await {
        tracing::error!(%run, attempt, error = acrtask_model::chain(&error), "a part of a log waits for the place for blobs");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    Report::LogChunk {
        offset,
        length,
        blob,
    }
}
