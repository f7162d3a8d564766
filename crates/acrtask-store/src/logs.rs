//! The index of logs: which blob holds which bytes. Chunks come in through `reports.rs`.

use acrtask_model::{RunId, RunState};

use crate::{Result, Store, db::args, lives, runs};

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
        let rows: Vec<(i64, i64, i64, String)> = self
            .db
            .rows(
                "SELECT attempt, begins, length, blob FROM log_chunks WHERE run_id = $1 AND attempt = $2 \
                 AND begins >= COALESCE((SELECT MAX(begins) FROM log_chunks WHERE run_id = $1 AND attempt = $2 \
                 AND begins <= $3), 0) AND begins + length > $3 ORDER BY begins LIMIT $4",
                args![run, attempt, from_offset, limit],
            )
            .await?;
        rows.into_iter()
            .map(|(attempt, offset, length, blob)| {
                Ok(ChunkRow {
                    attempt: lives::small(attempt)?,
                    offset: lives::size(offset)?,
                    length: lives::small(length)?,
                    blob,
                })
            })
            .collect()
    }

    /// Returns `true` if a blob holds a chunk of the log that begins at `offset`.
    pub async fn is_log_blob(
        &self,
        run: &RunId,
        attempt: u32,
        offset: u64,
        blob: &str,
    ) -> Result<bool> {
        let row: Option<(i64,)> = self
            .db
            .row(
                "SELECT begins FROM log_chunks WHERE run_id = $1 AND attempt = $2 AND begins = $3 AND blob = $4",
                args![run, attempt, offset, blob],
            )
            .await?;
        Ok(row.is_some())
    }

    /// How far the log of a run is.
    pub async fn log_state(&self, run: &RunId) -> Result<LogState> {
        let row: Option<(i64, i64, String)> = self
            .db
            .row(
                "SELECT attempt, log_length, state FROM runs WHERE id = $1",
                args![run],
            )
            .await?;
        let (attempt, length, state) = row.ok_or_else(|| runs::missing(run))?;
        Ok(LogState {
            attempt: lives::small(attempt)?,
            length: lives::size(length)?,
            state: lives::state(&state)?,
        })
    }
}
