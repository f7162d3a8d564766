//! What looks at base tags came to, written down many at once.

use std::collections::HashMap;

use acrtask_api::image::BaseChange;
use acrtask_model::Digest;

use super::{Platforms, Seen, WatchRow};
use crate::{
    Ms, Result, Store,
    db::{Sql, Tx, args, locked},
    from_json,
    images::digest,
    stale::differ,
    timestamp, to_json,
};

impl Store {
    /// Writes down what a look came to, and when the next one is. A move of the tag is given back. Nothing happens where
    /// the lease of `watch` is not the one that holds.
    pub async fn watched(
        &self,
        watch: &WatchRow,
        seen: &Seen,
        now: Ms,
        next: Ms,
    ) -> Result<Option<BaseChange>> {
        let looks = [(watch.clone(), seen.clone(), next)];
        let mut moved = self.watched_all(&looks, now).await?;
        Ok(moved.pop().map(|(_, change)| change))
    }

    /// The same for many, in one transaction. Gives the names of the tags that have moved.
    pub async fn watched_all(
        &self,
        looks: &[(WatchRow, Seen, Ms)],
        now: Ms,
    ) -> Result<Vec<(String, BaseChange)>> {
        if looks.is_empty() {
            return Ok(Vec::new());
        }
        // All who write many rows of this table do so in the order of ids.
        let mut looks: Vec<&(WatchRow, Seen, Ms)> = looks.iter().collect();
        looks.sort_by_key(|(watch, ..)| watch.id);
        let mut tx = self.db.write().await?;
        let mut moves = Vec::new();
        let mut same = Vec::new();
        for (watch, seen, next) in looks {
            match seen {
                Seen::Same => same.push(args![watch.id, watch.lease_until, now, *next]),
                Seen::Failed { status, detail } => {
                    tx.exec(
                        "UPDATE base_watches SET status = $5, detail = $6, failures = failures + 1, checked_at = $3, \
                         next_check_at = $4, lease_until = NULL WHERE id = $1 AND lease_until = $2",
                        args![watch.id, watch.lease_until, now, *next, status.as_str(), detail],
                    )
                    .await?;
                }
                Seen::Digest {
                    digest,
                    etag,
                    platforms,
                } => {
                    let change =
                        holds(&mut tx, watch, (digest, etag, platforms), now, *next).await?;
                    moves.extend(change.map(|change| (watch.name.clone(), change)));
                }
            }
        }
        if !same.is_empty() {
            tx.each(SAME, same).await?;
        }
        tx.commit().await?;
        Ok(moves)
    }
}

/// What is written where a tag holds what it held.
const SAME: Sql = Sql::of(
    "UPDATE base_watches SET status = 'ok', detail = NULL, failures = 0, checked_at = $3, next_check_at = $4, \
     lease_until = NULL WHERE id = $1 AND lease_until = $2",
    "UPDATE base_watches w SET status = 'ok', detail = NULL, failures = 0, checked_at = s.now, next_check_at = s.next, \
     lease_until = NULL FROM UNNEST($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[]) AS s (id, lease, now, next) \
     WHERE w.id = s.id AND w.lease_until = s.lease",
);

/// Writes down what a tag holds. Gives its move.
async fn holds(
    tx: &mut Tx,
    watch: &WatchRow,
    (new, etag, platforms): (&Digest, &Option<String>, &Option<Platforms>),
    now: Ms,
    next: Ms,
) -> Result<Option<BaseChange>> {
    let there: Option<(Option<String>,)> = tx
        .row(
            locked!("SELECT digest FROM base_watches WHERE id = $1 AND lease_until = $2"),
            args![watch.id, watch.lease_until],
        )
        .await?;
    let Some((old,)) = there else {
        return Ok(None);
    };
    put_digest(tx, watch.id, new, platforms.as_ref(), now).await?;
    let old = old.as_deref().map(digest).transpose()?;
    let change = match old.filter(|old| old != new) {
        Some(old) => Some(moved(tx, watch.id, &old, new, now).await?),
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

async fn moved(tx: &mut Tx, watch: i64, old: &Digest, new: &Digest, now: Ms) -> Result<BaseChange> {
    let before: Option<(i64,)> = tx
        .row(
            "SELECT id FROM base_changes WHERE watch_id = $1 AND old = $2 LIMIT 1",
            args![watch, new.as_str()],
        )
        .await?;
    let known: Vec<(String, Option<String>)> = tx
        .rows(
            "SELECT digest, platforms FROM base_digests WHERE watch_id = $1 AND digest IN ($2, $3)",
            args![watch, old.as_str(), new.as_str()],
        )
        .await?;
    let mut of: HashMap<String, Platforms> = HashMap::new();
    for (digest, json) in known {
        if let Some(json) = json {
            of.insert(digest, from_json(&json)?);
        }
    }
    let platforms = match (of.get(old.as_str()), of.get(new.as_str())) {
        (Some(before), Some(now)) => differ(before, now),
        _ => Vec::new(),
    };
    let moved_back = before.is_some();
    tx.exec(
        "INSERT INTO base_changes (watch_id, old, new, at, moved_back, platforms) VALUES ($1, $2, $3, $4, $5, $6)",
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
    Ok(BaseChange {
        old: old.clone(),
        new: new.clone(),
        at: timestamp(now),
        moved_back,
        platforms,
    })
}
