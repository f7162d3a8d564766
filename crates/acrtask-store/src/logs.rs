//! The index of logs: which blob holds which bytes. Chunks come in through `reports.rs`.

use acrtask_model::{RunId, RunState};

use crate::{Result, Store, StoreError};

/// A part of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkRow {
    /// The attempt.
    pub attempt: u32,
    /// Where it begins in that attempt's log.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
    /// The blob that holds it.
    pub blob: String,
}

/// How far the log of a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogState {
    /// The attempt that counts.
    pub attempt: u32,
    /// Bytes that are stored of its log.
    pub length: u64,
    /// Where the run stands: with a final state, the log grows no more.
    pub state: RunState,
}

impl Store {
    /// Chunks of an attempt's log in order; the first one holds `from_offset`.
    pub async fn log_chunks(
        &self,
        run: &RunId,
        attempt: u32,
        from_offset: u64,
        limit: u32,
    ) -> Result<Vec<ChunkRow>> {
        let _ = (run, attempt, from_offset, limit);
        Err(StoreError::not_found("run"))
    }

    /// How far the log of a run is.
    pub async fn log_state(&self, run: &RunId) -> Result<LogState> {
        Err(StoreError::not_found(format!("run {run}")))
    }
}
