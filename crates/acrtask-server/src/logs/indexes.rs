//! Indexes of the logs that are read: in memory while they are in use, and as blobs for large
//! finished logs.
//!
//! The index of a live log continues where the last reader ended. The index of a finished log is a
//! blob beside its chunks. The blob is derived: if it is missing or of another version, the log is
//! indexed again.
//!
//! Invariants: a log is indexed once at a time. An interrupted reader loses no progress. Memory is
//! bounded by [`MAX_MEMORY`] and one index per running request.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
};

use acrtask_model::RunId;
use acrtask_store::{INDEXED_LOG_BYTES, RunRow};
use futures::TryStreamExt as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use super::{LogError, index::LogIndex, read_log};
use crate::{App, blobs::BlobError};

/// Version of the blobs. Change it with every change of the index or of the lines of an event.
const VERSION: u32 = 1;
/// Maximum size of all indexes in memory in bytes, without those in use.
const MAX_MEMORY: usize = 32 << 20;
/// Maximum number of indexes in memory, without those in use.
const MAX_INDEXES: usize = 256;
/// Maximum size of a blob in bytes.
const MAX_BLOB: u64 = 64 << 20;
/// Number of large logs that are indexed at the same time.
const MAX_BUILDS: usize = 2;
/// Number of searches at the same time.
const MAX_SEARCHES: usize = 4;

type SharedIndex = Arc<tokio::sync::Mutex<LogIndex>>;
/// Run, time of its request, attempt. Another run may later have the same id.
type Key = (RunId, i64, u32);

/// Indexes in memory.
#[derive(Debug)]
pub struct LogIndexes {
    entries: Mutex<Entries>,
    builds: Semaphore,
    /// Permits of searches.
    pub(crate) searches: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Entries {
    by_key: HashMap<Key, Entry>,
    /// Number of uses so far.
    uses: u64,
}

#[derive(Debug)]
struct Entry {
    index: SharedIndex,
    last_use: u64,
    memory: usize,
}

impl Default for LogIndexes {
    fn default() -> Self {
        Self {
            entries: Mutex::default(),
            builds: Semaphore::new(MAX_BUILDS),
            searches: Arc::new(Semaphore::new(MAX_SEARCHES)),
        }
    }
}

impl LogIndexes {
    fn open(&self, key: &Key) -> SharedIndex {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.uses += 1;
        let last_use = entries.uses;
        let entry = entries.by_key.entry(key.clone());
        let entry = entry.or_insert_with(|| Entry {
            index: Arc::new(tokio::sync::Mutex::new(LogIndex::new(key.1, key.2))),
            last_use,
            memory: 0,
        });
        entry.last_use = last_use;
        entry.index.clone()
    }

    /// Records the size of an index, and removes the indexes that were not used for longest.
    fn close(&self, key: &Key, memory: usize) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.by_key.get_mut(key) {
            entry.memory = memory;
        }
        let mut total: usize = entries.by_key.values().map(|entry| entry.memory).sum();
        while total > MAX_MEMORY || entries.by_key.len() > MAX_INDEXES {
            let unused = entries.by_key.iter();
            let unused = unused.filter(|(_, entry)| Arc::strong_count(&entry.index) == 1);
            let Some((oldest, _)) = unused.min_by_key(|(_, entry)| entry.last_use) else {
                break;
            };
            let oldest = oldest.clone();
            let removed = entries.by_key.remove(&oldest);
            total -= removed.map_or(0, |entry| entry.memory);
        }
    }

    /// Returns the number of indexes in memory and their size in bytes.
    #[cfg(test)]
    pub(crate) fn usage(&self) -> (usize, usize) {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = entries.by_key.values().map(|entry| entry.memory).sum();
        (entries.by_key.len(), memory)
    }
}

/// Reads the index of an attempt, up to the current end of its log.
///
/// # Errors
/// The log cannot be read.
pub(crate) async fn with_index<T>(
    app: &Arc<App>,
    row: &RunRow,
    attempt: u32,
    read: impl FnOnce(&LogIndex) -> T,
) -> Result<T, LogError> {
    let key = (row.id.clone(), row.created_at, attempt);
    let indexes = &app.log_indexes;
    let shared = indexes.open(&key);
    let mut index = shared.lock().await;
    let updated = update(app, row, attempt, &mut index).await;
    let result = updated.map(|()| read(&index));
    let memory = index.memory();
    drop(index);
    drop(shared);
    indexes.close(&key, memory);
    result
}

/// Returns `true` if at least a part of the log is indexed. Does not wait for another reader.
pub(crate) async fn is_indexed(app: &Arc<App>, row: &RunRow, attempt: u32) -> bool {
    let key = (row.id.clone(), row.created_at, attempt);
    let shared = app.log_indexes.open(&key);
    let Ok(mut index) = shared.try_lock() else {
        return false;
    };
    if index.bytes() == 0
        && is_final(row, attempt)
        && let Ok(Some(stored)) = load(app, row, attempt).await
    {
        *index = stored;
    }
    index.bytes() > 0
}

/// Returns `true` if the log of an attempt cannot grow any more.
pub(super) fn is_final(row: &RunRow, attempt: u32) -> bool {
    row.state.is_final() || attempt < row.attempt
}

/// Extends an index to the current end of its log.
async fn update(
    app: &Arc<App>,
    row: &RunRow,
    attempt: u32,
    index: &mut LogIndex,
) -> Result<(), LogError> {
    if index.is_complete() {
        return Ok(());
    }
    let is_final = is_final(row, attempt);
    if is_final
        && index.bytes() == 0
        && let Some(stored) = load(app, row, attempt).await?
    {
        *index = stored;
        return Ok(());
    }
    let is_long = attempt != row.attempt || row.log_length > index.bytes() + INDEXED_LOG_BYTES;
    let _permit = if is_long {
        app.log_indexes.builds.acquire().await.ok()
    } else {
        None
    };
    let log = read_log(app.clone(), row.id.clone(), attempt, index.bytes());
    let mut log = pin!(log);
    while let Some(bytes) = log.try_next().await? {
        index.push(&bytes);
        tokio::task::consume_budget().await;
    }
    if is_final {
        index.finish();
        if index.bytes() >= INDEXED_LOG_BYTES {
            store(app, row, attempt, index).await;
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct StoredIndex {
    version: u32,
    index: LogIndex,
}

#[derive(Serialize)]
struct IndexToStore<'i> {
    version: u32,
    index: &'i LogIndex,
}

/// Returns the key of the blob with the index of an attempt.
pub(crate) fn blob_key(run: &str, attempt: i64) -> String {
    let folder = Sha256::digest(run)[0];
    format!("logs/{folder:02x}/{run}-{attempt}-index")
}

async fn load(app: &App, row: &RunRow, attempt: u32) -> Result<Option<LogIndex>, LogError> {
    let key = blob_key(row.id.as_str(), attempt.into());
    let bytes = match app.blobs.get(&key, MAX_BLOB).await {
        Ok(bytes) => bytes,
        Err(BlobError::NotFound(_) | BlobError::TooLarge { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let stored = serde_json::from_slice::<StoredIndex>(&bytes).ok();
    let current = stored
        .filter(|stored| stored.version == VERSION && stored.index.is_of(row.created_at, attempt));
    Ok(current.map(|stored| stored.index))
}

/// Stores the index of a finished log. A failure is only logged, because the index is derived.
async fn store(app: &App, row: &RunRow, attempt: u32, index: &LogIndex) {
    let version = VERSION;
    let Ok(text) = serde_json::to_vec(&IndexToStore { version, index }) else {
        return;
    };
    if text.len() as u64 > MAX_BLOB || app.floor.check().is_err() {
        return;
    }
    let key = blob_key(row.id.as_str(), attempt.into());
    if let Err(error) = app.blobs.put(&key, text.into()).await {
        let error = acrtask_model::error_chain(&error);
        tracing::warn!(run = %row.id, attempt, error, "cannot store the index of a log");
        return;
    }
    // Retention may have removed the run and its blobs meanwhile.
    if app.store.log_state(&row.id).await.is_err() {
        let _ = app.blobs.delete(&[key]).await;
    }
}
