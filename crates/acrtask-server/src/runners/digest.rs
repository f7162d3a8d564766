//! Whether the log that is stored is the log that the runner wrote.
//!
//! The bytes of a connection are hashed as they come; where a log came over several connections, it is read back from the
//! blobs once, at its end. Invariant: a run does not succeed with a log whose SHA-256 is not the one that the runner
//! tells.

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

/// The pause while a log cannot be read.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
struct Running {
    attempt: u32,
    length: u64,
    hash: Sha256,
}

/// Hashes of the logs that come over one connection from their first byte on.
#[derive(Debug, Clone, Default)]
pub(super) struct Digests(Arc<Mutex<HashMap<RunId, Running>>>);

impl Digests {
    /// These bytes have come. What came before is passed over; behind a gap nothing is known.
    pub(super) fn add(&self, run: &RunId, attempt: u32, offset: u64, data: &[u8]) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let running = known.entry(run.clone()).or_insert_with(|| Running {
            attempt,
            length: 0,
            hash: Sha256::new(),
        });
        if running.attempt != attempt {
            *running = Running {
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

    /// The run is over.
    pub(super) fn forget(&self, run: &RunId) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.remove(run);
    }

    /// Whether all of a log has come over this connection, and is what the runner says it is.
    pub(super) fn is(&self, run: &RunId, attempt: u32, length: u64, sha256: &str) -> bool {
        if length == 0 {
            return hex(Sha256::new()) == sha256;
        }
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(run).is_some_and(|running| {
            running.attempt == attempt
                && running.length == length
                && hex(running.hash.clone()) == sha256
        })
    }

    /// The report of a run's end as it is written down: a success whose log is another one than the runner's is none. Or
    /// how much is stored of a log that is not whole. What came before has to be written down.
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
                    tracing::error!(%run, attempt, error = acrtask_model::chain(&error), "a log that is to be checked cannot be read");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        };
        let stored = match stored {
            Stored::Short(length) => return Err(length),
            Stored::Whole(stored) if stored != *log_sha256 => stored,
            Stored::Whole(_) | Stored::Foreign => return Ok(report),
        };
        tracing::error!(%run, attempt, stored, told = log_sha256, "a log is damaged");
        if *state == RunState::Succeeded {
            *state = RunState::Error;
            *reason = Some(format!(
                "its log is not the one that the runner wrote: its SHA-256 is {stored} and should be {log_sha256}"
            ));
        }
        Ok(report)
    }
}

/// What there is of a log.
enum Stored {
    /// Its hash.
    Whole(String),
    /// Only so many bytes.
    Short(u64),
    /// It is over, or another attempt's, or too long: the store says what is to be said.
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
    fn what_comes_again_or_overlaps_is_hashed_once() {
        let digests = Digests::default();
        let run = RunId::new("r1").unwrap();
        let sha = |text: &str| hex(Sha256::new().chain_update(text));
        for (offset, text) in [(0, "0123"), (2, "23"), (0, "012345"), (9, "gap"), (6, "6")] {
            digests.add(&run, 1, offset, text.as_bytes());
        }
        assert!(digests.is(&run, 1, 7, &sha("0123456")));
        assert!(!digests.is(&run, 1, 7, &sha("012345x")));
        assert!(!digests.is(&run, 2, 7, &sha("0123456")));
        digests.add(&run, 2, 0, b"b");
        assert!(digests.is(&run, 2, 1, &sha("b")));
        digests.forget(&run);
        assert!(!digests.is(&run, 2, 1, &sha("b")));
        assert!(digests.is(&run, 2, 0, &sha("")));
    }
}
