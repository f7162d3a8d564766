//! Removes what is old: runs, their logs, contexts, tokens that have ended.
//!
//! Rows go first and blobs after that, so that no row ever names a blob that is gone. A blob whose deletion fails is tried
//! again; where the server ends before that, it stays, and costs its bytes and nothing else.

use std::time::Duration;

use acrtask_store::StoreError;

use crate::App;

/// How often is looked for what is old.
const EVERY: Duration = Duration::from_secs(600);
/// How long an upload may take, in milliseconds: a day.
const UNFINISHED: i64 = 24 * 3_600_000;
/// Runs that are removed in one transaction.
const BATCH: u32 = 200;
/// Blobs whose deletion failed that are remembered.
const MAX_LEFT: usize = 10_000;

/// What one pass has removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Runs.
    pub runs: u64,
    /// Contexts.
    pub contexts: u64,
    /// Blobs.
    pub blobs: u64,
    /// Tokens.
    pub tokens: u64,
}

/// Removes what is old, again and again, until the control plane closes.
pub async fn run(app: &App) {
    let mut left = Vec::new();
    loop {
        match pass(app, &mut left).await {
            Ok(removed) if removed != Removed::default() => tracing::info!(
                runs = removed.runs,
                contexts = removed.contexts,
                blobs = removed.blobs,
                tokens = removed.tokens,
                "what was old has been removed"
            ),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(
                    error = acrtask_model::chain(&error),
                    "what is old cannot be removed now"
                );
            }
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = app.closing.cancelled() => return,
        }
    }
}

/// Removes what is old now. `left`: blobs that could not be removed, which are tried again.
///
/// # Errors
/// When the database cannot be used. What was removed before stays removed.
pub async fn pass(app: &App, left: &mut Vec<String>) -> Result<Removed, StoreError> {
    let now = app.clock.now_ms();
    let retention = i64::try_from(app.config.retention.as_millis()).unwrap_or(i64::MAX);
    let before = now.saturating_sub(retention);
    let mut removed = Removed::default();
    let again = std::mem::take(left);
    removed.blobs += delete(app, again, left).await;
    loop {
        let expired = app.store.expire(before, BATCH).await?;
        if expired.runs + expired.contexts + expired.deliveries + expired.triggers == 0 {
            break;
        }
        removed.runs += expired.runs;
        removed.contexts += expired.contexts;
        removed.blobs += delete(app, expired.blobs, left).await;
        // Others want the database too.
        tokio::task::yield_now().await;
    }
    loop {
        let unfinished = now.saturating_sub(UNFINISHED);
        let expired = app.store.expire_uploads(unfinished, BATCH).await?;
        if expired.contexts == 0 {
            break;
        }
        removed.contexts += expired.contexts;
        removed.blobs += delete(app, expired.blobs, left).await;
    }
    // A token that has ended opens nothing; a day later nobody asks any more which one it was.
    let ended = now.saturating_sub(24 * 3_600_000);
    removed.tokens += app.store.forget_tokens(ended).await?;
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

async fn delete(app: &App, blobs: Vec<String>, left: &mut Vec<String>) -> u64 {
    if blobs.is_empty() {
        return 0;
    }
    let count = blobs.len() as u64;
    match app.blobs.delete(&blobs).await {
        Ok(()) => count,
        Err(error) => {
            tracing::warn!(
                error = acrtask_model::chain(&error),
                "blobs cannot be removed now"
            );
            left.extend(blobs);
            left.truncate(MAX_LEFT);
            0
        }
    }
}

#[cfg(test)]
#[path = "retention_tests.rs"]
mod tests;
