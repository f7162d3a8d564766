//! Verification that the stored log is the log that the runner wrote.
//!
//! The server hashes the bytes of a connection as they arrive. A log of several connections is read
//! back from the blobs once, at its end. Invariant: a run succeeds only if its stored log has the
//! SHA-256 that the runner reports.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use acrtask_model::{RunId, RunState};
use acrtask_store::{Report, StoreError};
use futures::TryStreamExt as _;
use sha2::{Digest as _, Sha256};

use crate::{
    App,
    logs::{LogError, read_log},
};

/// Pause between attempts to read a log.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
struct RunningDigest {
    attempt: u32,
    length: u64,
    hash: Sha256,
}

/// Hashes of the logs that arrive over one connection from their first byte.
#[derive(Debug, Clone, Default)]
pub(super) struct LogDigests(Arc<Mutex<HashMap<RunId, RunningDigest>>>);

impl LogDigests {
    /// Adds arrived bytes. Repeated bytes are skipped, and a gap makes the hash incomplete.
    pub(super) fn add(&self, run: &RunId, attempt: u32, offset: u64, data: &[u8]) {
        let mut running_digests = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let running = running_digests
            .entry(run.clone())
            .or_insert_with(|| RunningDigest {
                attempt,
                length: 0,
                hash: Sha256::new(),
            });
        if running.attempt != attempt {
            *running = RunningDigest {
                attempt,
                length: 0,
                hash: Sha256::new(),
            };
        }
        let Some(skip) = running.length.checked_sub(offset) else {
            return;
        };
        if let Some(news) = usize::try_from(skip).ok().and_then(|skip| data.get(skip..)) {
            running.hash.update(news);
            running.length += news.len() as u64;
        }
    }

    /// Forgets a finished run.
    pub(super) fn forget(&self, run: &RunId) {
        let mut running_digests = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        running_digests.remove(run);
    }

    /// Returns `true` if the whole log arrived over this connection and has the reported hash.
    pub(super) fn matches(&self, run: &RunId, attempt: u32, length: u64, sha256: &str) -> bool {
        if length == 0 {
            return hex(Sha256::new()) == sha256;
        }
        let running_digests = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        running_digests.get(run).is_some_and(|running| {
            running.attempt == attempt
                && running.length == length
                && hex(running.hash.clone()) == sha256
        })
    }

    /// Verifies the log of a final report. All earlier reports have to be committed.
    ///
    /// A success whose stored log has another hash becomes an error.
    ///
    /// # Errors
    /// The stored length, if the log is incomplete.
    pub(super) async fn check(
        &self,
        app: &Arc<App>,
        run: &RunId,
        attempt: u32,
        mut report: Report,
    ) -> Result<Report, u64> {
        let Report::Finished {
            state,
            reason,
            log_length,
            log_sha256,
            ..
        } = &mut report
        else {
            return Ok(report);
        };
        let stored = loop {
            match stored(app, run, attempt, *log_length).await {
                Ok(stored) => break stored,
                Err(error) => {
                    tracing::error!(%run, attempt, error = acrtask_model::error_chain(&error), "cannot read a log to verify it");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        };
        let stored = match stored {
            Stored::Short(length) => return Err(length),
            Stored::Whole(stored) if stored != *log_sha256 => stored,
            Stored::Whole(_) | Stored::Foreign => return Ok(report),
        };
        tracing::error!(%run, attempt, stored, reported = log_sha256, "found a damaged log");
        if *state == RunState::Succeeded {
            *state = RunState::Error;
            *reason = Some(format!(
                "the stored log is not the log of the runner: its SHA-256 is {stored} and should be {log_sha256}"
            ));
        }
        Ok(report)
    }
}

/// State of a stored log.
enum Stored {
    /// The hash of a complete log.
    Whole(String),
    /// The length of an incomplete log, in bytes.
    Short(u64),
    /// The log is finished, too long or of another attempt. The store decides about the report.
    Foreign,
}

async fn stored(
    app: &Arc<App>,
    run: &RunId,
    attempt: u32,
    length: u64,
) -> Result<Stored, LogError> {
    let state = match app.store.log_state(run).await {
        Err(StoreError::NotFound { .. }) => return Ok(Stored::Foreign),
        state => state?,
    };
    if state.attempt != attempt || state.state.is_final() || state.length > length {
        return Ok(Stored::Foreign);
    }
    if state.length < length {
        return Ok(Stored::Short(state.length));
    }
    let hash = read_log(app.clone(), run.clone(), attempt, 0)
        .try_fold(Sha256::new(), async |hash, bytes| {
            Ok(hash.chain_update(&bytes))
        })
        .await?;
    Ok(Stored::Whole(hex(hash)))
}

fn hex(hash: Sha256) -> String {
    let bytes = hash.finalize();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_and_overlapping_bytes_are_hashed_once() {
        let digests = LogDigests::default();
        let run = RunId::new("r1").unwrap();
        let sha = |text: &str| hex(Sha256::new().chain_update(text));
        for (offset, text) in [(0, "0123"), (2, "23"), (0, "012345"), (9, "gap"), (6, "6")] {
            digests.add(&run, 1, offset, text.as_bytes());
        }
        assert!(digests.matches(&run, 1, 7, &sha("0123456")));
        assert!(!digests.matches(&run, 1, 7, &sha("012345x")));
        assert!(!digests.matches(&run, 2, 7, &sha("0123456")));
        digests.add(&run, 2, 0, b"b");
        assert!(digests.matches(&run, 2, 1, &sha("b")));
        digests.forget(&run);
        assert!(!digests.matches(&run, 2, 1, &sha("b")));
        assert!(digests.matches(&run, 2, 0, &sha("")));
    }
}
