//! Retention: removes old rows first and blobs afterwards, so that no row names a missing blob.

use std::collections::HashSet;

use crate::{
    Ms, Result, Store, cascades,
    db::{Sql, Tx, args, one_of},
    images, quotas, triggers,
};

/// Size from which a log has an index beside it, in bytes.
pub const INDEXED_LOG_BYTES: u64 = 1 << 20;

/// Numbers of removed rows, and blobs to remove.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expired {
    /// Runs, with their triggers, attempts and chunks.
    pub runs: u64,
    /// Triggers that led to no run.
    pub triggers: u64,
    /// Contexts, with their parts.
    pub contexts: u64,
    /// Deliveries, with their triggers that led to no run.
    pub deliveries: u64,
    /// Blobs without references.
    pub blobs: Vec<String>,
    /// Attempts of removed runs whose logs have at least [`INDEXED_LOG_BYTES`].
    pub indexed_logs: Vec<(String, i64)>,
}

impl Store {
    /// Removes runs that finished before `before`, unused contexts that were last used before it,
    /// and deliveries that were received before it. At most `limit` of each.
    pub async fn remove_expired(&self, before: Ms, limit: u32) -> Result<Expired> {
        let mut tx = self.db.begin().await?;
        let mut expired = Expired::default();
        expire_runs(&mut tx, before, limit, &mut expired).await?;
        expired.triggers = triggers::expire(&mut tx, before, limit).await?;
        expire_contexts(&mut tx, before, limit, &mut expired).await?;
        let bodies = crate::deliveries::expire(&mut tx, before, limit).await?;
        expired.deliveries = bodies.0;
        expired.blobs.extend(bodies.1);
        images::expire(&mut tx, before, limit).await?;
        cascades::expire(&mut tx, before, limit).await?;
        tx.commit().await?;
        Ok(expired)
    }
}

impl Store {
    /// Removes at most `limit` incomplete uploads that started before `before`.
    pub async fn expire_uploads(&self, before: Ms, limit: u32) -> Result<Expired> {
        let mut tx = self.db.begin().await?;
        let mut expired = Expired::default();
        let ids: Vec<(String,)> = tx
            .fetch_all(
                "SELECT id FROM contexts WHERE complete = 0 AND created_at < $1 ORDER BY created_at LIMIT $2",
                args![before, limit],
            )
            .await?;
        // Keeps an upload that was completed meanwhile.
        let sql = one_of!(
            "DELETE FROM contexts WHERE complete = 0 AND created_at < $2 AND id",
            "$1",
            " RETURNING id"
        );
        remove_contexts(&mut tx, ids, before, sql, &mut expired).await?;
        tx.commit().await?;
        Ok(expired)
    }
}

/// Removes contexts with their parts. `delete` gets the ids and `before`, and returns the ids of
/// the removed rows.
async fn remove_contexts(
    tx: &mut Tx,
    ids: Vec<(String,)>,
    before: Ms,
    delete: Sql,
    expired: &mut Expired,
) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    let ids: Vec<String> = ids.into_iter().map(|(id,)| id).collect();
    let parts: Vec<(String, String)> = tx
        .fetch_all(
            one_of!(
                "SELECT context_id, blob FROM \
                 (SELECT context_id, blob FROM context_parts UNION ALL SELECT context_id, blob FROM context_blocks) AS all_parts \
                 WHERE context_id",
                "$1",
                ""
            ),
            args![ids.clone()],
        )
        .await?;
    let gone: Vec<(String,)> = tx.fetch_all(delete, args![ids, before]).await?;
    let gone: HashSet<String> = gone.into_iter().map(|(id,)| id).collect();
    expired.contexts = gone.len() as u64;
    let blobs = parts
        .into_iter()
        .filter(|(context, _)| gone.contains(context));
    expired.blobs.extend(blobs.map(|(_, blob)| blob));
    Ok(())
}

async fn expire_runs(tx: &mut Tx, before: Ms, limit: u32, expired: &mut Expired) -> Result<()> {
    let ids: Vec<(String,)> = tx
        .fetch_all(
            "SELECT id FROM runs WHERE finished_at IS NOT NULL AND finished_at < $1 ORDER BY finished_at LIMIT $2",
            args![before, limit],
        )
        .await?;
    if ids.is_empty() {
        return Ok(());
    }
    let ids: Vec<String> = ids.into_iter().map(|(id,)| id).collect();
    // A final run never changes, so all of its chunks are stored.
    let blobs: Vec<(String,)> = tx
        .fetch_all(
            one_of!("SELECT blob FROM log_chunks WHERE run_id", "$1", ""),
            args![ids.clone()],
        )
        .await?;
    expired.blobs.extend(blobs.into_iter().map(|(blob,)| blob));
    let indexed: Vec<(String, i64)> = tx
        .fetch_all(
            one_of!(
                "SELECT run_id, attempt FROM attempts WHERE log_length >= $2 AND run_id",
                "$1",
                ""
            ),
            args![ids.clone(), INDEXED_LOG_BYTES],
        )
        .await?;
    expired.indexed_logs.extend(indexed);
    triggers::remove_firings(tx, ids.clone()).await?;
    let bytes = quotas::logs_of_runs(tx, ids.clone()).await?;
    tx.exec(
        one_of!("DELETE FROM triggers WHERE run_id", "$1", ""),
        args![ids.clone()],
    )
    .await?;
    expired.runs = tx
        .exec(one_of!("DELETE FROM runs WHERE id", "$1", ""), args![ids])
        .await?;
    quotas::release_log_bytes(tx, bytes).await?;
    Ok(())
}

async fn expire_contexts(tx: &mut Tx, before: Ms, limit: u32, expired: &mut Expired) -> Result<()> {
    let ids: Vec<(String,)> = tx
        .fetch_all(
            "SELECT id FROM contexts c WHERE last_used_at < $1 \
             AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.context_id = c.id) ORDER BY last_used_at, id LIMIT $2",
            args![before, limit],
        )
        .await?;
    // A concurrent request for a run has updated the time of use, which keeps the context.
    let sql = one_of!(
        "DELETE FROM contexts WHERE last_used_at < $2 AND id",
        "$1",
        " RETURNING id"
    );
    remove_contexts(tx, ids, before, sql, expired).await
}
