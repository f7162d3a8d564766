//! Retention: what is old goes, rows first and blobs after that, so that no row ever names a blob that is gone.

use std::collections::HashSet;

use crate::{
    Ms, Result, Store, cascades,
    db::{Sql, Tx, args, one_of},
    images, quotas, triggers,
};

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expired {
    /// Runs, with their triggers, attempts and chunks.
    pub runs: u64,
    /// Triggers that led to no run.
    pub triggers: u64,
    /// Contexts, with their parts.
    pub contexts: u64,
    /// Deliveries, with the triggers that led to no run.
    pub deliveries: u64,
    /// The blobs that nothing names any more.
    pub blobs: Vec<String>,
}

impl Store {
    /// Removes final runs that ended before `before`, contexts that no run uses and that were last used before it, and
    /// deliveries that came before it: at most `limit` of each.
    pub async fn expire(&self, before: Ms, limit: u32) -> Result<Expired> {
        let mut tx = self.db.write().await?;
        let mut expired = Expired::default();
        runs(&mut tx, before, limit, &mut expired).await?;
        expired.triggers = triggers::expire(&mut tx, before, limit).await?;
        contexts(&mut tx, before, limit, &mut expired).await?;
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
    /// Removes uploads that began before `before` and are not complete, at most `limit`.
    pub async fn expire_uploads(&self, before: Ms, limit: u32) -> Result<Expired> {
        let mut tx = self.db.write().await?;
        let mut expired = Expired::default();
        let ids: Vec<(String,)> = tx
            .rows(
                "SELECT id FROM contexts WHERE complete = 0 AND created_at < $1 ORDER BY created_at LIMIT $2",
                args![before, limit],
            )
            .await?;
        // One that was completed meanwhile stays.
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

/// Removes contexts with their parts. `delete` gets the ids and `before`, and returns the ids of those that it removed.
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
        .rows(
            one_of!(
                "SELECT context_id, blob FROM context_parts WHERE context_id",
                "$1",
                ""
            ),
            args![ids.clone()],
        )
        .await?;
    let gone: Vec<(String,)> = tx.rows(delete, args![ids, before]).await?;
    let gone: HashSet<String> = gone.into_iter().map(|(id,)| id).collect();
    expired.contexts = gone.len() as u64;
    let blobs = parts
        .into_iter()
        .filter(|(context, _)| gone.contains(context));
    expired.blobs.extend(blobs.map(|(_, blob)| blob));
    Ok(())
}

async fn runs(tx: &mut Tx, before: Ms, limit: u32, expired: &mut Expired) -> Result<()> {
    let ids: Vec<(String,)> = tx
        .rows(
            "SELECT id FROM runs WHERE finished_at IS NOT NULL AND finished_at < $1 ORDER BY finished_at LIMIT $2",
            args![before, limit],
        )
        .await?;
    if ids.is_empty() {
        return Ok(());
    }
    let ids: Vec<String> = ids.into_iter().map(|(id,)| id).collect();
    // A final run never changes again, so its chunks are all there.
    let blobs: Vec<(String,)> = tx
        .rows(
            one_of!("SELECT blob FROM log_chunks WHERE run_id", "$1", ""),
            args![ids.clone()],
        )
        .await?;
    expired.blobs.extend(blobs.into_iter().map(|(blob,)| blob));
    triggers::forget_ticks(tx, ids.clone()).await?;
    let bytes = quotas::logs_of_runs(tx, ids.clone()).await?;
    tx.exec(
        one_of!("DELETE FROM triggers WHERE run_id", "$1", ""),
        args![ids.clone()],
    )
    .await?;
    expired.runs = tx
        .exec(one_of!("DELETE FROM runs WHERE id", "$1", ""), args![ids])
        .await?;
    quotas::give_back(tx, bytes).await?;
    Ok(())
}

async fn contexts(tx: &mut Tx, before: Ms, limit: u32, expired: &mut Expired) -> Result<()> {
    let ids: Vec<(String,)> = tx
        .rows(
            "SELECT id FROM contexts c WHERE last_used_at < $1 \
             AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.context_id = c.id) ORDER BY last_used_at, id LIMIT $2",
            args![before, limit],
        )
        .await?;
    // A run that is asked for meanwhile has written the time of use; then the context stays.
    let sql = one_of!(
        "DELETE FROM contexts WHERE last_used_at < $2 AND id",
        "$1",
        " RETURNING id"
    );
    remove_contexts(tx, ids, before, sql, expired).await
}
