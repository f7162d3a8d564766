//! Base tags that are watched: who looks at which when, what was seen, and which images are stale because of it.
//!
//! Invariants: each tag has one row for each login that it is looked at with; a server writes what it saw only while it
//! holds the row's lease, so that of two that look at once one wins; a digest that is known stays known when the tag
//! vanishes. What a look came to is written down in `looks.rs`. Left out: speaking to registries, and which images a move
//! makes stale (`stale.rs`).

mod looks;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use acrtask_api::image::{BaseChange, BaseStatus};
use acrtask_model::{Digest, ImageRef, events::BaseRole};
use sqlx::FromRow;

use crate::{
    Ms, Result, Store, StoreError,
    db::{Arg, Sql, args, one_of},
    from_json,
    images::{digest, word},
    lives, timestamp,
};

/// The digest of each platform of an index.
pub(crate) type Platforms = BTreeMap<String, Digest>;

/// A tag that nobody needs is watched for so long, so that a list that was read a moment ago removes no new one.
const YOUNG_MS: i64 = 60_000;

/// A tag that is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchRow {
    /// Its id.
    pub id: i64,
    /// Registry, repository and tag.
    pub name: String,
    /// The registry.
    pub registry: String,
    /// The task whose own login is used; empty: that of all tasks, or none.
    pub scope: String,
    /// What it held when that was last known.
    pub digest: Option<Digest>,
    /// What the registry called that.
    pub etag: Option<String>,
    /// How it stands.
    pub status: BaseStatus,
    /// Why, where it is not well.
    pub detail: Option<String>,
    /// It is not looked at.
    pub paused: bool,
    /// Looks without an answer, one after the other.
    pub failures: u32,
    /// When it was last looked at.
    pub checked_at: Option<Ms>,
    /// When it was found to have moved.
    pub changed_at: Option<Ms>,
    /// When it is looked at again.
    pub next_check_at: Ms,
    /// Until then a server looks at it.
    pub lease_until: Option<Ms>,
    /// Newest images that were built from it, whatever login they need.
    pub used_by: u64,
}

/// What a look at a tag came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// It holds what it held.
    Same,
    /// It holds this.
    Digest {
        /// The digest of the index or manifest.
        digest: Digest,
        /// What the registry calls that.
        etag: Option<String>,
        /// The digest of each platform, where that could be read.
        platforms: Option<Platforms>,
    },
    /// That could not be found out.
    Failed {
        /// How it stands.
        status: BaseStatus,
        /// Why.
        detail: String,
    },
}

/// Which watched tags a list shows.
#[derive(Debug, Clone, Default)]
pub struct WatchFilter {
    /// Only this name.
    pub name: Option<String>,
    /// Only names behind this one.
    pub after: Option<String>,
    /// At most so many.
    pub limit: u32,
}

/// The columns of [`RawWatch`].
macro_rules! watch_columns {
    () => {
        "id, name, registry, scope, digest, etag, status, detail, paused, failures, checked_at, changed_at, next_check_at, \
         lease_until"
    };
}

#[derive(Debug, FromRow)]
struct RawWatch {
    id: i64,
    name: String,
    registry: String,
    scope: String,
    digest: Option<String>,
    etag: Option<String>,
    status: String,
    detail: Option<String>,
    paused: i64,
    failures: i64,
    checked_at: Option<i64>,
    changed_at: Option<i64>,
    next_check_at: i64,
    lease_until: Option<i64>,
}

impl TryFrom<RawWatch> for WatchRow {
    type Error = StoreError;

    fn try_from(raw: RawWatch) -> Result<Self> {
        Ok(Self {
            id: raw.id,
            name: raw.name,
            registry: raw.registry,
            scope: raw.scope,
            digest: raw.digest.as_deref().map(digest).transpose()?,
            etag: raw.etag,
            status: BaseStatus::parse(&raw.status).ok_or_else(|| {
                StoreError::corrupt(format_args!("a tag cannot be `{}`", raw.status))
            })?,
            detail: raw.detail,
            paused: raw.paused != 0,
            failures: lives::small(raw.failures)?,
            checked_at: raw.checked_at,
            changed_at: raw.changed_at,
            next_check_at: raw.next_check_at,
            lease_until: raw.lease_until,
            used_by: 0,
        })
    }
}

#[derive(Debug, FromRow)]
struct RawChange {
    old: String,
    new: String,
    at: i64,
    moved_back: i64,
    platforms: String,
}

impl TryFrom<RawChange> for BaseChange {
    type Error = StoreError;

    fn try_from(raw: RawChange) -> Result<Self> {
        Ok(Self {
            old: digest(&raw.old)?,
            new: digest(&raw.new)?,
            at: timestamp(raw.at),
            moved_back: raw.moved_back != 0,
            platforms: from_json(&raw.platforms)?,
        })
    }
}

impl Store {
    /// What the images of tasks stand on: the tag, the login that it needs, the task, and what the base is to its images.
    pub async fn wanted_bases(&self) -> Result<Vec<(String, String, String, BaseRole)>> {
        let rows: Vec<(String, String, String, String)> = self
            .db
            .rows(
                "SELECT DISTINCT b.name, CASE WHEN EXISTS (SELECT 1 FROM credentials c WHERE c.scope = i.task_id \
                 AND c.host = b.registry) THEN i.task_id ELSE '' END, i.task_id, b.role FROM image_bases b \
                 JOIN images i ON i.id = b.image_id JOIN tasks t ON t.id = i.task_id \
                 WHERE i.newest = 1 AND b.pinned = 0",
                args![],
            )
            .await?;
        rows.into_iter()
            .map(|(name, scope, task, role)| Ok((name, scope, task, word(&role)?)))
            .collect()
    }

    /// Watches these tags, each with a login, and no others. Says how many are new.
    pub async fn set_watches(&self, wanted: &BTreeSet<(String, String)>, now: Ms) -> Result<u64> {
        let there: Vec<(i64, String, String, i64)> = self
            .db
            .rows(
                "SELECT id, name, scope, created_at FROM base_watches",
                args![],
            )
            .await?;
        let known: BTreeSet<(&str, &str)> = there
            .iter()
            .map(|(_, name, scope, _)| (name.as_str(), scope.as_str()))
            .collect();
        let missing: Vec<&(String, String)> = wanted
            .iter()
            .filter(|(name, scope)| !known.contains(&(name.as_str(), scope.as_str())))
            .collect();
        let left: Vec<i64> = there
            .iter()
            .filter(|(_, name, scope, created)| {
                *created < now - YOUNG_MS && !wanted.contains(&(name.clone(), scope.clone()))
            })
            .map(|(id, ..)| *id)
            .collect();
        if missing.is_empty() && left.is_empty() {
            return Ok(0);
        }
        let mut tx = self.db.write().await?;
        let mut made = 0;
        for (name, scope) in missing {
            let registry = name
                .parse::<ImageRef>()
                .map_err(StoreError::corrupt)?
                .registry()
                .to_owned();
            made += tx
                .exec(
                    "INSERT INTO base_watches (name, registry, scope, created_at, next_check_at) \
                     VALUES ($1, $2, $3, $4, $4) ON CONFLICT (name, scope) DO NOTHING",
                    args![name, registry, scope, now],
                )
                .await?;
        }
        if !left.is_empty() {
            tx.exec(
                one_of!("DELETE FROM base_watches WHERE id", "$1", ""),
                args![left],
            )
            .await?;
        }
        tx.commit().await?;
        Ok(made)
    }

    /// Takes tags that are due, at most `limit`: nobody else looks at them for `lease_ms`.
    pub async fn claim_watches(&self, now: Ms, lease_ms: i64, limit: u32) -> Result<Vec<WatchRow>> {
        const CLAIM: Sql = Sql::of(
            concat!(
                "UPDATE base_watches SET lease_until = $2 WHERE id IN (SELECT id FROM base_watches WHERE paused = 0 \
                 AND next_check_at <= $1 AND (lease_until IS NULL OR lease_until < $1) ORDER BY next_check_at, id LIMIT $3) \
                 RETURNING ",
                watch_columns!()
            ),
            concat!(
                "UPDATE base_watches SET lease_until = $2 WHERE id IN (SELECT id FROM base_watches WHERE paused = 0 \
                 AND next_check_at <= $1 AND (lease_until IS NULL OR lease_until < $1) ORDER BY next_check_at, id LIMIT $3 \
                 FOR UPDATE SKIP LOCKED) RETURNING ",
                watch_columns!()
            ),
        );
        let due: Option<(i64,)> = self
            .db
            .row(
                "SELECT CAST(1 AS BIGINT) FROM base_watches WHERE paused = 0 AND next_check_at <= $1 LIMIT 1",
                args![now],
            )
            .await?;
        if due.is_none() {
            return Ok(Vec::new());
        }
        let mut tx = self.db.write().await?;
        let rows: Vec<RawWatch> = tx.rows(CLAIM, args![now, now + lease_ms, limit]).await?;
        tx.commit().await?;
        rows.into_iter().map(WatchRow::try_from).collect()
    }

    /// Gives a tag back without having looked at it.
    pub async fn unwatched(&self, watch: &WatchRow, next: Ms) -> Result<()> {
        self.db
            .exec(
                "UPDATE base_watches SET lease_until = NULL, next_check_at = $3 WHERE id = $1 AND lease_until = $2",
                args![watch.id, watch.lease_until, next],
            )
            .await
            .map(drop)
    }

    /// Looks at nothing of a registry with this login before `until`. The tag that the registry said so of is `limited`.
    pub async fn postpone(&self, registry: &str, scope: &str, until: Ms) -> Result<()> {
        const POSTPONE: Sql = Sql::of(
            "UPDATE base_watches SET next_check_at = $3 WHERE registry = $1 AND scope = $2 AND next_check_at < $3",
            "UPDATE base_watches SET next_check_at = $3 WHERE id IN (SELECT id FROM base_watches WHERE registry = $1 \
             AND scope = $2 AND next_check_at < $3 ORDER BY id FOR UPDATE)",
        );
        let args = || args![registry, scope, until];
        let mut tx = self.db.write().await?;
        tx.exec(POSTPONE, args()).await?;
        tx.exec(
            "UPDATE tag_lists SET next_check_at = $3 WHERE registry = $1 AND scope = $2 AND next_check_at < $3",
            args(),
        )
        .await?;
        tx.commit().await
    }

    /// Digests that images were built from under these tags and whose platforms nobody has read yet, at most `limit` of
    /// each.
    pub async fn unread_digests<'w>(
        &self,
        watches: &'w [WatchRow],
        limit: usize,
    ) -> Result<Vec<(&'w WatchRow, Digest)>> {
        if watches.is_empty() {
            return Ok(Vec::new());
        }
        let of: HashMap<i64, &WatchRow> = watches.iter().map(|watch| (watch.id, watch)).collect();
        let sql = one_of!(
            "SELECT DISTINCT w.id, b.digest FROM base_watches w JOIN image_bases b ON b.name = w.name \
             JOIN images i ON i.id = b.image_id WHERE i.newest = 1 AND NOT EXISTS (SELECT 1 FROM base_digests d \
             WHERE d.watch_id = w.id AND d.digest = b.digest) AND w.id",
            "$1",
            " ORDER BY w.id, b.digest"
        );
        let ids: Vec<i64> = of.keys().copied().collect();
        let rows: Vec<(i64, String)> = self.db.rows(sql, args![ids]).await?;
        let mut found = Vec::new();
        let mut last = (0, 0);
        for (id, text) in rows {
            last = (id, if last.0 == id { last.1 + 1 } else { 1 });
            if let Some(watch) = of.get(&id).filter(|_| last.1 <= limit) {
                found.push((*watch, digest(&text)?));
            }
        }
        Ok(found)
    }

    /// Writes down the platforms of a digest that a tag held once; nothing: they cannot be read.
    pub async fn put_platforms(
        &self,
        watch: &WatchRow,
        digest: &Digest,
        platforms: Option<&Platforms>,
        now: Ms,
    ) -> Result<()> {
        let mut tx = self.db.write().await?;
        let there: Option<(i64,)> = tx
            .row("SELECT id FROM base_watches WHERE id = $1", args![watch.id])
            .await?;
        if there.is_some() {
            looks::put_digest(&mut tx, watch.id, digest, platforms, now).await?;
        }
        tx.commit().await
    }

    /// Watched tags by name and login.
    pub async fn watches(&self, filter: WatchFilter) -> Result<Vec<WatchRow>> {
        let mut args = args![filter.after.as_deref().unwrap_or("")];
        let mut text = concat!(
            "SELECT ",
            watch_columns!(),
            " FROM base_watches WHERE name > $1"
        )
        .to_owned();
        if let Some(name) = filter.name {
            args.push(Arg::from(name));
            text += &format!(" AND name = ${}", args.len());
        }
        args.push(Arg::from(filter.limit));
        text += &format!(" ORDER BY name, scope LIMIT ${}", args.len());
        let rows: Vec<RawWatch> = self.db.rows(Sql::built(text), args).await?;
        let rows: Result<Vec<WatchRow>> = rows.into_iter().map(WatchRow::try_from).collect();
        let mut rows = rows?;
        let names: Vec<String> = rows.iter().map(|row| row.name.clone()).collect();
        let sql = one_of!(
            "SELECT b.name, COUNT(DISTINCT b.image_id) FROM image_bases b JOIN images i ON i.id = b.image_id \
             WHERE i.newest = 1 AND b.name",
            "$1",
            " GROUP BY b.name"
        );
        let counts: Vec<(String, i64)> = self.db.rows(sql, args![names]).await?;
        let counts: HashMap<String, i64> = counts.into_iter().collect();
        for row in &mut rows {
            row.used_by = lives::size(counts.get(&row.name).copied().unwrap_or(0))?;
        }
        Ok(rows)
    }

    /// How a tag moved, the newest first.
    pub async fn base_changes(&self, watch: i64, limit: u32) -> Result<Vec<BaseChange>> {
        let rows: Vec<RawChange> = self
            .db
            .rows(
                "SELECT old, new, at, moved_back, platforms FROM base_changes WHERE watch_id = $1 ORDER BY id DESC LIMIT $2",
                args![watch, limit],
            )
            .await?;
        rows.into_iter().map(BaseChange::try_from).collect()
    }

    /// The platforms of what a tag holds, as far as they are known.
    pub async fn base_platforms(&self, watch: &WatchRow) -> Result<Platforms> {
        let row: Option<(Option<String>,)> = self
            .db
            .row(
                "SELECT platforms FROM base_digests WHERE watch_id = $1 AND digest = $2",
                args![watch.id, watch.digest.as_ref().map(Digest::as_str)],
            )
            .await?;
        match row.and_then(|(platforms,)| platforms) {
            Some(json) => from_json(&json),
            None => Ok(Platforms::new()),
        }
    }

    /// Lets a tag be looked at or not, with every login. Says how many rows that were.
    pub async fn pause_watch(&self, name: &str, paused: bool, now: Ms) -> Result<u64> {
        self.db
            .exec(
                "UPDATE base_watches SET paused = $2, next_check_at = CASE WHEN $2 = 1 THEN next_check_at ELSE $3 END \
                 WHERE name = $1",
                args![name, i64::from(paused), now],
            )
            .await
    }

    /// Makes tags due that are not paused: all, or those with these names. A look that is under way counts no more, since it
    /// may have seen what was there before. Says how many.
    pub async fn hurry_watches(&self, names: Option<Vec<String>>, now: Ms) -> Result<u64> {
        match names {
            None => {
                self.db
                    .exec(
                        "UPDATE base_watches SET next_check_at = $1, lease_until = NULL WHERE paused = 0 \
                         AND (next_check_at > $1 OR lease_until IS NOT NULL)",
                        args![now],
                    )
                    .await
            }
            Some(names) => {
                let sql = one_of!(
                    "UPDATE base_watches SET next_check_at = $2, lease_until = NULL WHERE paused = 0 \
                     AND (next_check_at > $2 OR lease_until IS NOT NULL) AND name",
                    "$1",
                    ""
                );
                self.db.exec(sql, args![names, now]).await
            }
        }
    }

    /// The same for every tag of a repository.
    pub async fn hurry_repository(&self, repository: &str, now: Ms) -> Result<u64> {
        self.db
            .exec(
                "UPDATE base_watches SET next_check_at = $3, lease_until = NULL WHERE paused = 0 \
                 AND (next_check_at > $3 OR lease_until IS NOT NULL) AND name > $1 AND name < $2",
                args![format!("{repository}:"), format!("{repository};"), now],
            )
            .await
    }
}
