//! Index of logs: the blobs of their chunks. `reports.rs` adds chunks.

use acrtask_model::{RunId, RunState};

use crate::{Result, Store, db::args, run_state, runs};

/// A chunk of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkRow {
    /// Number of the attempt.
    pub attempt: u32,
    /// Position in the log of the attempt, in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub length: u32,
    /// Key of the blob.
    pub blob: String,
}

/// Progress of a run's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogState {
    /// Current attempt.
    pub attempt: u32,
    /// Stored bytes of its log.
    pub length: u64,
    /// State of the run. In a final state the log is complete.
    pub state: RunState,
}

impl Store {
    /// Returns chunks of an attempt's log in order, starting with the one that contains
    /// `from_offset`.
    pub async fn log_chunks(
        &self,
        run: &RunId,
        attempt: u32,
        from_offset: u64,
        limit: u32,
    ) -> Result<Vec<ChunkRow>> {
        let rows: Vec<(i64, i64, i64, String)> = self
            .db
            .fetch_all(
                "SELECT attempt, offset_bytes, length, blob FROM log_chunks WHERE run_id = $1 AND attempt = $2 \
                 AND offset_bytes >= COALESCE((SELECT MAX(offset_bytes) FROM log_chunks WHERE run_id = $1 AND attempt = $2 \
                 AND offset_bytes <= $3), 0) AND offset_bytes + length > $3 ORDER BY offset_bytes LIMIT $4",
                args![run, attempt, from_offset, limit],
            )
            .await?;
        rows.into_iter()
            .map(|(attempt, offset, length, blob)| {
                Ok(ChunkRow {
                    attempt: run_state::to_u32(attempt)?,
                    offset: run_state::to_u64(offset)?,
                    length: run_state::to_u32(length)?,
                    blob,
                })
            })
            .collect()
    }

    /// Returns `true` if the blob contains the log chunk at `offset`.
    pub async fn is_log_blob(
        &self,
        run: &RunId,
        attempt: u32,
        offset: u64,
        blob: &str,
    ) -> Result<bool> {
        let row: Option<(i64,)> = self
            .db
            .fetch_optional(
                "SELECT offset_bytes FROM log_chunks WHERE run_id = $1 AND attempt = $2 AND offset_bytes = $3 AND blob = $4",
                args![run, attempt, offset, blob],
            )
            .await?;
        Ok(row.is_some())
    }

    /// Returns the progress of a run's log.
    pub async fn log_state(&self, run: &RunId) -> Result<LogState> {
        let row: Option<(i64, i64, String)> = self
            .db
            .fetch_optional(
                "SELECT attempt, log_length, state FROM runs WHERE id = $1",
                args![run],
            )
            .await?;
        let (attempt, length, state) = row.ok_or_else(|| runs::missing_run(run))?;
        Ok(LogState {
            attempt: run_state::to_u32(attempt)?,
            length: run_state::to_u64(length)?,
            state: run_state::parse_state(&state)?,
        })
    }
}
