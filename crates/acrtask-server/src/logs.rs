//! Logs of runs, as they are stored, for those who read them while they grow.
//!
//! A log is a row of chunks for each attempt: an index row in the database, the bytes in a blob. A reader subscribes first,
//! then reads what is stored, then waits. Invariants: a reader holds a few chunks in memory, whatever the log's length;
//! a wake-up that is lost costs a reader half a second and nothing else. Left out: what the bytes mean.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use acrtask_model::RunId;
use acrtask_store::{ChunkRow, StoreError};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::watch;

use crate::{App, blobs::BlobError};

/// Index rows that are read at once.
const PAGE: u32 = 128;
/// Blobs that are fetched ahead of the reader.
const AHEAD: usize = 4;
/// How long a reader waits before it looks for itself.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

type Readers = HashMap<RunId, watch::Sender<()>>;

/// Wakes those who read logs that grow.
#[derive(Debug, Clone, Default)]
pub struct LogHub {
    /// Only runs that somebody reads.
    readers: Arc<Mutex<Readers>>,
}

impl LogHub {
    /// Wakes the readers of `run`: its log has grown, or its state has changed.
    pub fn wake(&self, run: &RunId) {
        if let Some(readers) = self.lock().get(run) {
            readers.send_replace(());
        }
    }

    /// From now on [`Subscription::changed`] tells what happens to `run`.
    pub fn subscribe(&self, run: &RunId) -> Subscription {
        let mut readers = self.lock();
        let changes = match readers.get(run) {
            Some(sender) => sender.subscribe(),
            None => {
                let (sender, changes) = watch::channel(());
                readers.insert(run.clone(), sender);
                changes
            }
        };
        Subscription {
            hub: self.clone(),
            run: run.clone(),
            changes: Some(changes),
        }
    }

    /// Runs that somebody reads now.
    pub fn watched(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, Readers> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One reader of one run.
#[derive(Debug)]
pub struct Subscription {
    hub: LogHub,
    run: RunId,
    /// There until it is dropped.
    changes: Option<watch::Receiver<()>>,
}

impl Subscription {
    /// Returns when something has changed since the last time, or when it is time to look whether a hint was lost.
    pub async fn changed(&mut self) {
        let Some(changes) = &mut self.changes else {
            return;
        };
        if let Ok(Err(_)) = tokio::time::timeout(LOOK_AGAIN, changes.changed()).await {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut readers = self.hub.lock();
        self.changes = None;
        if readers
            .get(&self.run)
            .is_some_and(|sender| sender.receiver_count() == 0)
        {
            readers.remove(&self.run);
        }
    }
}

/// Why a log cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The database failed.
    #[error("cannot read the index of the log")]
    Store(#[from] StoreError),
    /// The place for blobs failed.
    #[error("cannot read a part of the log")]
    Blob(#[from] BlobError),
    /// The index and the blobs do not fit together.
    #[error("the log of run {run} is damaged at byte {offset}")]
    Damaged {
        /// The run.
        run: RunId,
        /// The first byte that is missing.
        offset: u64,
    },
}

/// What is stored of the log of an attempt at `run`, from `offset` to its present end.
///
/// To follow a log that grows, subscribe at [`LogHub`] before the first call, and call again from where it ended.
pub fn read_log(
    app: Arc<App>,
    run: RunId,
    attempt: u32,
    offset: u64,
) -> impl Stream<Item = Result<Bytes, LogError>> + Send + 'static {
    let pages = stream::try_unfold(offset, move |offset| {
        let (app, run) = (app.clone(), run.clone());
        async move {
            let rows = app.store.log_chunks(&run, attempt, offset, PAGE).await?;
            let (cuts, end) = cuts(rows, offset).map_err(|offset| LogError::Damaged {
                run: run.clone(),
                offset,
            })?;
            if cuts.is_empty() {
                return Ok::<_, LogError>(None);
            }
            let parts = stream::iter(cuts)
                .map(move |cut| fetch(app.clone(), run.clone(), cut))
                .buffered(AHEAD);
            Ok(Some((parts, end)))
        }
    });
    pages.try_flatten()
}

/// A blob, and what of it is wanted.
#[derive(Debug, PartialEq, Eq)]
struct Cut {
    blob: String,
    offset: u64,
    skip: usize,
    length: usize,
    /// Bytes of the whole blob.
    size: u32,
}

/// Which bytes of `rows` come at `offset` and behind it, and where they end; or where bytes are missing.
fn cuts(rows: Vec<ChunkRow>, offset: u64) -> Result<(VecDeque<Cut>, u64), u64> {
    let mut at = offset;
    let mut cuts = VecDeque::with_capacity(rows.len());
    for row in rows {
        let end = row.offset + u64::from(row.length);
        if row.offset > at {
            return Err(at);
        }
        if end <= at {
            continue;
        }
        cuts.push_back(Cut {
            blob: row.blob,
            offset: at,
            skip: usize::try_from(at - row.offset).map_err(|_| at)?,
            length: usize::try_from(end - at).map_err(|_| at)?,
            size: row.length,
        });
        at = end;
    }
    Ok((cuts, at))
}

async fn fetch(app: Arc<App>, run: RunId, cut: Cut) -> Result<Bytes, LogError> {
    let bytes = app.blobs.get(&cut.blob, cut.size.into()).await?;
    if bytes.len() != cut.size as usize {
        return Err(LogError::Damaged {
            run,
            offset: cut.offset + (bytes.len().saturating_sub(cut.skip)) as u64,
        });
    }
    Ok(bytes.slice(cut.skip..cut.skip + cut.length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(offset: u64, length: u32) -> ChunkRow {
        ChunkRow {
            attempt: 1,
            offset,
            length,
            blob: format!("b{offset}"),
        }
    }

    fn cut(offset: u64, skip: usize, length: usize) -> Cut {
        Cut {
            blob: format!("b{}", offset - skip as u64),
            offset,
            skip,
            length,
            size: u32::try_from(skip + length).unwrap(),
        }
    }

    #[test]
    fn a_reader_starts_in_the_middle_of_a_chunk() {
        let rows = vec![row(0, 10), row(10, 5), row(15, 1)];
        let (found, end) = cuts(rows, 7).unwrap();
        assert_eq!(found, [cut(7, 7, 3), cut(10, 0, 5), cut(15, 0, 1)]);
        assert_eq!(end, 16);
    }

    #[test]
    fn a_reader_at_the_end_gets_nothing() {
        assert_eq!(cuts(vec![row(0, 10)], 10).unwrap(), (VecDeque::new(), 10));
        assert_eq!(cuts(vec![], 3).unwrap(), (VecDeque::new(), 3));
    }

    #[test]
    fn missing_bytes_are_told() {
        assert_eq!(cuts(vec![row(0, 4), row(6, 4)], 0), Err(4));
    }

    #[tokio::test(start_paused = true)]
    async fn readers_are_woken_and_forgotten() {
        let hub = LogHub::default();
        let run = RunId::new("r1").unwrap();
        hub.wake(&run);
        let mut first = hub.subscribe(&run);
        let second = hub.subscribe(&run);
        assert_eq!(hub.watched(), 1);
        hub.wake(&run);
        let start = tokio::time::Instant::now();
        first.changed().await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        first.changed().await;
        assert_eq!(start.elapsed(), LOOK_AGAIN);
        drop(first);
        assert_eq!(hub.watched(), 1);
        drop(second);
        assert_eq!(hub.watched(), 0);
    }
}
