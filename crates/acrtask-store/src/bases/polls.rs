//! Recording of poll results of base tags, in batches.

use std::collections::HashMap;

use acrtask_api::image::BaseTagChange;
use acrtask_model::Digest;

use super::{Platforms, PollResult, WatchRow};
use crate::{
    Ms, Result, Store,
    db::{Sql, Tx, args, locked},
    from_json,
    images::digest,
    stale::changed_platforms,
    timestamp, to_json,
};

impl Store {
    /// Stores a poll result and the time of the next poll. Returns the digest change, if any. Does
    /// nothing if the lease of `watch` is outdated.
    pub async fn record_poll(
        &self,
        watch: &WatchRow,
        seen: &PollResult,
        now: Ms,
        next: Ms,
    ) -> Result<Option<BaseTagChange>> {
        let polls = [(watch.clone(), seen.clone(), next)];
        let mut changes = self.record_polls(&polls, now).await?;
        Ok(changes.pop().map(|(_, change)| change))
    }

    /// Stores poll results as [`Store::record_poll`] does, in one transaction. Returns the digest
    /// changes with the names of their tags.
    pub async fn record_polls(
        &self,
        polls: &[(WatchRow, PollResult, Ms)],
        now: Ms,
    ) -> Result<Vec<(String, BaseTagChange)>> {
        if polls.is_empty() {
            return Ok(Vec::new());
        }
        // Every writer of many rows of this table follows the order of ids.
        let mut polls: Vec<&(WatchRow, PollResult, Ms)> = polls.iter().collect();
        polls.sort_by_key(|(watch, ..)| watch.id);
        let mut tx = self.db.begin().await?;
        let mut changes = Vec::new();
        let mut unchanged = Vec::new();
        for (watch, seen, next) in polls {
            match seen {
                PollResult::Unchanged => {
                    unchanged.push(args![watch.id, watch.lease_until, now, *next])
                }
                PollResult::Failed { status, detail } => {
                    tx.exec(
                        "UPDATE base_watches SET status = $5, detail = $6, failures = failures + 1, checked_at = $3, \
                         next_check_at = $4, lease_until = NULL WHERE id = $1 AND lease_until = $2",
                        args![watch.id, watch.lease_until, now, *next, status.as_str(), detail],
                    )
                    .await?;
                }
                PollResult::Digest {
                    digest,
                    etag,
                    platforms,
                } => {
                    let change =
                        record_digest(&mut tx, watch, (digest, etag, platforms), now, *next)
                            .await?;
                    changes.extend(change.map(|change| (watch.name.clone(), change)));
                }
            }
        }
        if !unchanged.is_empty() {
            tx.exec_each(UPDATE_UNCHANGED, unchanged).await?;
        }
        tx.commit().await?;
        Ok(changes)
    }
}

/// Records a poll with an unchanged digest.
const UPDATE_UNCHANGED: Sql = Sql::new(
    "UPDATE base_watches SET status = 'ok', detail = NULL, failures = 0, checked_at = $3, next_check_at = $4, \
     lease_until = NULL WHERE id = $1 AND lease_until = $2",
    "UPDATE base_watches w SET status = 'ok', detail = NULL, failures = 0, checked_at = s.now, next_check_at = s.next, \
     lease_until = NULL FROM UNNEST($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[]) AS s (id, lease, now, next) \
     WHERE w.id = s.id AND w.lease_until = s.lease",
);

/// Stores the digest of a tag. Returns the digest change, if any.
async fn record_digest(
    tx: &mut Tx,
    watch: &WatchRow,
    (new, etag, platforms): (&Digest, &Option<String>, &Option<Platforms>),
    now: Ms,
    next: Ms,
) -> Result<Option<BaseTagChange>> {
    let leased: Option<(Option<String>,)> = tx
        .fetch_optional(
            locked!("SELECT digest FROM base_watches WHERE id = $1 AND lease_until = $2"),
            args![watch.id, watch.lease_until],
        )
        .await?;
    let Some((old,)) = leased else {
        return Ok(None);
    };
    put_digest(tx, watch.id, new, platforms.as_ref(), now).await?;
    let old = old.as_deref().map(digest).transpose()?;
    let change = match old.filter(|old| old != new) {
        Some(old) => Some(record_change(tx, watch.id, &old, new, now).await?),
        None => None,
    };
    tx.exec(
        "UPDATE base_watches SET status = 'ok', detail = NULL, failures = 0, checked_at = $2, next_check_at = $3, \
         lease_until = NULL, digest = $4, etag = $5, changed_at = COALESCE($6, changed_at) WHERE id = $1",
        args![
            watch.id,
            now,
            next,
            new.as_str(),
            etag.clone(),
            change.is_some().then_some(now)
        ],
    )
    .await?;
    Ok(change)
}

pub(super) async fn put_digest(
    tx: &mut Tx,
    watch: i64,
    digest: &Digest,
    platforms: Option<&Platforms>,
    now: Ms,
) -> Result<()> {
    let platforms = platforms.map(to_json).transpose()?;
    tx.exec(
        "INSERT INTO base_digests (watch_id, digest, platforms, seen_at) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (watch_id, digest) DO UPDATE SET platforms = COALESCE(excluded.platforms, base_digests.platforms)",
        args![watch, digest.as_str(), platforms, now],
    )
    .await
    .map(drop)
}

async fn record_change(
    tx: &mut Tx,
    watch: i64,
    old: &Digest,
    new: &Digest,
    now: Ms,
) -> Result<BaseTagChange> {
    let before: Option<(i64,)> = tx
        .fetch_optional(
            "SELECT id FROM base_changes WHERE watch_id = $1 AND old = $2 LIMIT 1",
            args![watch, new.as_str()],
        )
        .await?;
    let stored: Vec<(String, Option<String>)> = tx
        .fetch_all(
            "SELECT digest, platforms FROM base_digests WHERE watch_id = $1 AND digest IN ($2, $3)",
            args![watch, old.as_str(), new.as_str()],
        )
        .await?;
    let mut of: HashMap<String, Platforms> = HashMap::new();
    for (digest, json) in stored {
        if let Some(json) = json {
            of.insert(digest, from_json(&json)?);
        }
    }
    let platforms = match (of.get(old.as_str()), of.get(new.as_str())) {
        (Some(before), Some(now)) => changed_platforms(before, now),
        _ => Vec::new(),
    };
    let moved_back = before.is_some();
    tx.exec(
        "INSERT INTO base_changes (watch_id, old, new, changed_at, moved_back, platforms) VALUES ($1, $2, $3, $4, $5, $6)",
        args![
            watch,
            old.as_str(),
            new.as_str(),
            now,
            moved_back,
            to_json(&platforms)?
        ],
    )
    .await?;
    Ok(BaseTagChange {
        from: old.clone(),
        to: new.clone(),
        changed_at: timestamp(now),
        moved_back,
        platforms,
    })
}
