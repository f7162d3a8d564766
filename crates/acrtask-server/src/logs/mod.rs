//! Readers of stored logs, also while the logs grow.
//!
//! A log consists of chunks for each attempt: an index row in the database, and the bytes in a
//! blob. A reader first subscribes, then reads what is stored, then waits.
//!
//! Invariants: a reader needs memory for a few chunks, whatever the length of the log. A lost
//! wake-up delays a reader by at most half a second.
//!
//! [`split`] and [`text`] parse and render events. [`index`] finds lines, [`reader`] reads them and
//! [`search`] searches them.

pub(crate) mod index;
mod indexes;
pub(crate) mod reader;
mod reads;
pub(crate) mod search;
mod split;
pub(crate) mod text;

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use acrtask_model::RunId;
use acrtask_store::{ChunkRow, StoreError};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::watch;

use crate::{App, blobs::BlobError};

pub use indexes::LogIndexes;
pub(crate) use indexes::{blob_key as index_key, with_index};
pub(crate) use reads::LogReads;
pub(crate) use split::MAX_EVENT;

/// Number of index rows per query.
const PAGE: u32 = 128;
/// Number of blobs to fetch ahead of the reader.
const PREFETCH: usize = 4;
/// Maximum time without a wake-up until a reader checks the log.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

type Readers = HashMap<RunId, watch::Sender<()>>;

/// Wake-ups for readers of growing logs.
#[derive(Debug, Clone, Default)]
pub struct LogHub {
    /// Only runs that have readers.
    readers: Arc<Mutex<Readers>>,
}

impl LogHub {
    /// Wakes the readers of `run` because its log has grown or its state has changed.
    pub fn wake(&self, run: &RunId) {
        if let Some(readers) = self.lock().get(run) {
            readers.send_replace(());
        }
    }

    /// Subscribes to changes of `run`.
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

    /// Returns the number of runs that have readers.
    pub fn watched_runs(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, Readers> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Subscription of one reader to one run.
#[derive(Debug)]
pub struct Subscription {
    hub: LogHub,
    run: RunId,
    /// `None` only while the subscription is being dropped.
    changes: Option<watch::Receiver<()>>,
}

impl Subscription {
    /// Waits for a change since the last call, or for the next regular check.
    pub async fn changed(&mut self) {
        let Some(changes) = &mut self.changes else {
            return;
        };
        if let Ok(Err(_)) = tokio::time::timeout(CHECK_INTERVAL, changes.changed()).await {
            tokio::time::sleep(CHECK_INTERVAL).await;
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

/// Reason why a log cannot be read further.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The database failed.
    #[error("cannot read the index of the log")]
    Store(#[from] StoreError),
    /// The blob storage failed.
    #[error("cannot read a part of the log")]
    Blob(#[from] BlobError),
    /// The index and the blobs disagree.
    #[error("the log of run {run} is damaged at byte {offset}")]
    Damaged {
        /// Id of the run.
        run: RunId,
        /// Offset of the first missing byte.
        offset: u64,
    },
}

/// Streams the stored log of an attempt, from `offset` to its current end.
///
/// To follow a growing log, subscribe to [`LogHub`] first and call this function again from the end
/// of the last stream.
pub fn read_log(
    app: Arc<App>,
    run: RunId,
    attempt: u32,
    offset: u64,
) -> impl Stream<Item = Result<Bytes, LogError>> + Send + 'static {
    read_range(app, run, attempt, offset..u64::MAX)
}

/// Streams a range of the stored log of an attempt, at most to its current end.
pub(crate) fn read_range(
    app: Arc<App>,
    run: RunId,
    attempt: u32,
    range: Range<u64>,
) -> impl Stream<Item = Result<Bytes, LogError>> + Send + 'static {
    let until = range.end;
    let pages = stream::try_unfold(range.start, move |offset| {
        let (app, run) = (app.clone(), run.clone());
        async move {
            if offset >= until {
                return Ok(None);
            }
            // A short range needs few chunks.
            let limit = if until - offset <= 64 << 10 { 8 } else { PAGE };
            let rows = app.store.log_chunks(&run, attempt, offset, limit).await?;
            let selected = select_parts(rows, offset..until);
            let (parts, end) = selected.map_err(|offset| LogError::Damaged {
                run: run.clone(),
                offset,
            })?;
            if parts.is_empty() {
                return Ok::<_, LogError>(None);
            }
            let chunks = stream::iter(parts)
                .map(move |part| fetch_part(app.clone(), run.clone(), part))
                .buffered(PREFETCH);
            Ok(Some((chunks, end)))
        }
    });
    pages.try_flatten()
}

/// Part of a blob.
#[derive(Debug, PartialEq, Eq)]
struct BlobPart {
    blob: String,
    offset: u64,
    skip: usize,
    length: usize,
    /// Size of the whole blob in bytes.
    size: u32,
}

/// Selects the parts of `rows` in `range`. Returns them and their end, or the offset of missing
/// bytes.
fn select_parts(rows: Vec<ChunkRow>, range: Range<u64>) -> Result<(VecDeque<BlobPart>, u64), u64> {
    let mut at = range.start;
    let mut parts = VecDeque::with_capacity(rows.len());
    for row in rows {
        let end = (row.offset + u64::from(row.length)).min(range.end);
        if at >= range.end {
            break;
        }
        if row.offset > at {
            return Err(at);
        }
        if end <= at {
            continue;
        }
        parts.push_back(BlobPart {
            blob: row.blob,
            offset: at,
            skip: usize::try_from(at - row.offset).map_err(|_| at)?,
            length: usize::try_from(end - at).map_err(|_| at)?,
            size: row.length,
        });
        at = end;
    }
    Ok((parts, at))
}

async fn fetch_part(app: Arc<App>, run: RunId, part: BlobPart) -> Result<Bytes, LogError> {
    let bytes = app.blobs.get(&part.blob, part.size.into()).await?;
    if bytes.len() != part.size as usize {
        return Err(LogError::Damaged {
            run,
            offset: part.offset + (bytes.len().saturating_sub(part.skip)) as u64,
        });
    }
    Ok(bytes.slice(part.skip..part.skip + part.length))
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

    fn part(offset: u64, skip: usize, length: usize) -> BlobPart {
        BlobPart {
            blob: format!("b{}", offset - skip as u64),
            offset,
            skip,
            length,
            size: u32::try_from(skip + length).unwrap(),
        }
    }

    fn cut_part(offset: u64, length: usize, size: u32) -> BlobPart {
        BlobPart {
            size,
            ..part(offset, 0, length)
        }
    }

    #[test]
    fn reader_starts_in_the_middle_of_a_chunk() {
        let rows = vec![row(0, 10), row(10, 5), row(15, 1)];
        let (found, end) = select_parts(rows.clone(), 7..u64::MAX).unwrap();
        assert_eq!(found, [part(7, 7, 3), part(10, 0, 5), part(15, 0, 1)]);
        assert_eq!(end, 16);
        let (found, end) = select_parts(rows, 7..12).unwrap();
        assert_eq!(found, [part(7, 7, 3), cut_part(10, 2, 5)]);
        assert_eq!(end, 12);
    }

    #[test]
    fn reader_at_the_end_gets_nothing() {
        assert_eq!(
            select_parts(vec![row(0, 10)], 10..u64::MAX).unwrap(),
            (VecDeque::new(), 10)
        );
        assert_eq!(
            select_parts(vec![], 3..u64::MAX).unwrap(),
            (VecDeque::new(), 3)
        );
    }

    #[test]
    fn missing_bytes_are_reported() {
        assert_eq!(
            select_parts(vec![row(0, 4), row(6, 4)], 0..u64::MAX),
            Err(4)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn readers_are_woken_and_removed() {
        let hub = LogHub::default();
        let run = RunId::new("r1").unwrap();
        hub.wake(&run);
        let mut first = hub.subscribe(&run);
        let second = hub.subscribe(&run);
        assert_eq!(hub.watched_runs(), 1);
        hub.wake(&run);
        let start = tokio::time::Instant::now();
        first.changed().await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        first.changed().await;
        assert_eq!(start.elapsed(), CHECK_INTERVAL);
        drop(first);
        assert_eq!(hub.watched_runs(), 1);
        drop(second);
        assert_eq!(hub.watched_runs(), 0);
    }
}
