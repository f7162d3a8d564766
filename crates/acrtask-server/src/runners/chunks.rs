//! Chunks of logs on their way into blobs and the index.
//!
//! Invariants: a chunk's bytes are kept before its row is written; no blob is ever replaced by a shorter one; a runner
//! is told that a byte is stored only when it is.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use acrtask_model::RunId;
use acrtask_proto::runner::{Attempt, LogAck, to_runner::Message};
use acrtask_store::{Report, Verdict};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::{
    hub::End,
    session::{abandon, unwritten},
};
use crate::{
    App,
    recorder::{Receipt, Recorder, describe},
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
            let stored = match receipt.await {
                Ok(Verdict::Done) => chunk_end,
                Ok(Verdict::LogAt(stored)) => stored,
                Ok(Verdict::Refused { reason }) => return vec![abandon(self.of, reason)],
                Err(_) => return unwritten(&end),
            };
            let is_gap = stored < self.offset;
            let ack = LogAck {
                of: Some(self.of.clone()),
                offset: stored,
            };
            if is_gap && gaps == GAP_TRIES {
                return vec![Message::LogAck(ack)];
            }
            if stored >= chunk_end {
                let news = self.told.is_news(&self.run, attempt, stored);
                return news.then_some(Message::LogAck(ack)).into_iter().collect();
            }
            if is_gap {
                gaps += 1;
                tokio::time::sleep(GAP_PAUSE).await;
            } else {
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
}

/// The key of a chunk. With the length in it no blob is ever replaced by a shorter one. Few folders that are there already
/// hold all runs: a folder for each run would be as many more writes that the disk has to confirm as its whole log.
fn key(run: &RunId, attempt: u32, offset: u64, length: u32) -> String {
    let folder = Sha256::digest(run.as_str())[0];
    format!("logs/{folder:02x}/{run}-{attempt}-{offset}-{length}")
}

/// Puts bytes of a log into a blob and gives the report of it.
pub(super) async fn put(app: &App, run: &RunId, attempt: u32, offset: u64, data: &Bytes) -> Report {
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let blob = key(run, attempt, offset, length);
    let mut pause = Duration::from_millis(100);
    while let Err(error) = app.blobs.put(&blob, data.clone()).await {
        tracing::error!(%run, attempt, error = describe(&error), "a part of a log waits for the place for blobs");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    Report::LogChunk {
        offset,
        length,
        blob,
    }
}
