//! Removal of old data: runs, their logs, contexts, expired tokens, and ended sessions.
//!
//! Rows are removed before their blobs, so no row ever names a missing blob. A failed deletion of a
//! blob is retried. If the server stops first, the blob stays and only occupies space.

use std::time::Duration;

use acrtask_store::StoreError;

use crate::{App, auth, logs::index_key};

/// Interval between passes.
const INTERVAL: Duration = Duration::from_secs(600);
/// Maximum duration of an upload, in milliseconds: one day.
const MAX_UPLOAD_MS: i64 = 24 * 3_600_000;
/// Number of runs to remove per transaction.
const BATCH: u32 = 200;
/// Maximum number of blobs to remember for another deletion.
const MAX_REMEMBERED: usize = 10_000;

/// Result of a pass.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Number of removed runs.
    pub runs: u64,
    /// Number of removed contexts.
    pub contexts: u64,
    /// Number of removed blobs.
    pub blobs: u64,
    /// Number of removed tokens.
    pub tokens: u64,
}

/// Removes old data until the control plane closes.
pub async fn run(app: &App) {
    let mut left = Vec::new();
    loop {
        match remove_old(app, &mut left).await {
            Ok(removed) if removed != Removed::default() => tracing::info!(
                runs = removed.runs,
                contexts = removed.contexts,
                blobs = removed.blobs,
                tokens = removed.tokens,
                "removed old data"
            ),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(
                    error = acrtask_model::error_chain(&error),
                    "failed to remove old data"
                );
            }
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = app.closing.cancelled() => return,
        }
    }
}

/// Removes the data that is old now. Retries the blobs in `left` and adds those whose deletion
/// fails.
///
/// # Errors
/// The database failed. Data that was removed before stays removed.
pub async fn remove_old(app: &App, left: &mut Vec<String>) -> Result<Removed, StoreError> {
    let now = app.clock.now_ms();
    let retention = i64::try_from(app.config.retention.as_millis()).unwrap_or(i64::MAX);
    let before = now.saturating_sub(retention);
    let mut removed = Removed::default();
    let retried = std::mem::take(left);
    removed.blobs += delete_blobs(app, retried, left).await;
    loop {
        let expired = app.store.remove_expired(before, BATCH).await?;
        if expired.runs + expired.contexts + expired.deliveries + expired.triggers == 0 {
            break;
        }
        removed.runs += expired.runs;
        removed.contexts += expired.contexts;
        removed.blobs += delete_blobs(app, expired.blobs, left).await;
        // Not every log was read, so some of these blobs do not exist.
        let indexes = expired.indexed_logs.iter();
        let indexes = indexes
            .map(|(run, attempt)| index_key(run, *attempt))
            .collect();
        delete_blobs(app, indexes, left).await;
        // Lets other tasks use the database.
        tokio::task::yield_now().await;
    }
    loop {
        let unfinished = now.saturating_sub(MAX_UPLOAD_MS);
        let expired = app.store.expire_uploads(unfinished, BATCH).await?;
        if expired.contexts == 0 {
            break;
        }
        removed.contexts += expired.contexts;
        removed.blobs += delete_blobs(app, expired.blobs, left).await;
    }
    // An expired token grants nothing. It is kept for a day so that users can identify it.
    let ended = now.saturating_sub(24 * 3_600_000);
    removed.tokens += app.store.remove_expired_tokens(ended).await?;
    let idle = now.saturating_sub(auth::IDLE_MS);
    app.store.remove_ended_sessions(now, idle).await?;
    for token in app.store.tokens().await? {
        if token.expires_at.is_some_and(|end| end < ended) {
            match app.store.revoke_token(&token.id).await {
                Ok(()) => removed.tokens += 1,
                Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(removed)
}

async fn delete_blobs(app: &App, blobs: Vec<String>, left: &mut Vec<String>) -> u64 {
    if blobs.is_empty() {
        return 0;
    }
    let count = blobs.len() as u64;
    match app.blobs.delete(&blobs).await {
        Ok(()) => count,
        Err(error) => {
            tracing::warn!(
                error = acrtask_model::error_chain(&error),
                "failed to remove blobs"
            );
            left.extend(blobs);
            left.truncate(MAX_REMEMBERED);
            0
        }
    }
}

#[cfg(test)]
#[path = "retention_tests.rs"]
mod tests;
