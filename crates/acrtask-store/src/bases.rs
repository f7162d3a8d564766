//! Watches of base tags: poll leases, poll results, and staleness of images.
//!
//! Invariants:
//! - Each tag has one row for each login that polls it.
//! - A server records a poll only while it has the row's lease, so that of two concurrent polls one
//!   wins.
//! - A known digest stays known if the tag vanishes.
//!
//! `polls.rs` records poll results. Left out: requests to registries, and the images that a digest
//! change makes stale (`stale.rs`).

mod polls;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use acrtask_api::image::{BaseStatus, BaseTagChange};
use acrtask_model::{Digest, ImageRef, events::BaseRole};
use sqlx::FromRow;

use crate::{
    Ms, Result, Store, StoreError,
    db::{Arg, Sql, args, one_of},
    from_json,
    images::{digest, parse_enum},
    run_state,
    secrets::login_scope,
    timestamp,
};

/// Digests of the platforms of an index.
pub(crate) type Platforms = BTreeMap<String, Digest>;

/// Time for which an unused tag stays watched, in milliseconds. A list of used tags that is
/// slightly outdated must not remove a new watch.
const UNUSED_GRACE_MS: i64 = 60_000;

/// A base watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchRow {
    /// Id of the watch.
    pub id: i64,
    /// Registry, repository and tag.
    pub name: String,
    /// Name of the registry.
    pub registry: String,
    /// Key of the scope of the login that polls the tag. Empty: the login for all tasks, or none.
    pub scope: String,
    /// Last known digest.
    pub digest: Option<Digest>,
    /// Entity tag of the registry for that digest.
    pub etag: Option<String>,
    /// Status of the last poll.
    pub status: BaseStatus,
    /// Reason of a status other than `ok`.
    pub detail: Option<String>,
    /// Polling is paused.
    pub paused: bool,
    /// Number of failed polls since the last success.
    pub failures: u32,
    /// Time of the last poll.
    pub checked_at: Option<Ms>,
    /// Time of the last digest change.
    pub changed_at: Option<Ms>,
    /// Time of the next poll.
    pub next_check_at: Ms,
    /// End of a server's poll lease.
    pub lease_until: Option<Ms>,
    /// Number of newest images that were built from the tag, whatever login they need.
    pub used_by: u64,
}

/// Result of polling a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PollResult {
    /// The digest has not changed.
    Unchanged,
    /// The tag has this digest.
    Digest {
        /// Digest of the index or manifest.
        digest: Digest,
        /// Entity tag of the registry.
        etag: Option<String>,
        /// Digests of the platforms, if they could be read.
        platforms: Option<Platforms>,
    },
    /// The poll failed.
    Failed {
        /// Status to store.
        status: BaseStatus,
        /// Reason for the user.
        detail: String,
    },
}

/// Filter of a list of watches.
#[derive(Debug, Clone, Default)]
pub struct WatchFilter {
    /// Only this name.
    pub name: Option<String>,
    /// Only names after this one.
    pub after: Option<String>,
    /// At most this number of watches.
    pub limit: u32,
}

/// Returns the columns of [`RawWatch`].
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
            failures: run_state::to_u32(raw.failures)?,
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
    changed_at: i64,
    moved_back: i64,
    platforms: String,
}

impl TryFrom<RawChange> for BaseTagChange {
    type Error = StoreError;

    fn try_from(raw: RawChange) -> Result<Self> {
        Ok(Self {
            from: digest(&raw.old)?,
            to: digest(&raw.new)?,
            changed_at: timestamp(raw.changed_at),
            moved_back: raw.moved_back != 0,
            platforms: from_json(&raw.platforms)?,
        })
    }
}

impl Store {
    /// Returns the bases of the newest images of tasks: tag, required login, task, and role of the
    /// base.
    pub async fn wanted_bases(&self) -> Result<Vec<(String, String, String, BaseRole)>> {
        let rows: Vec<(String, String, String, String)> = self
            .db
            .fetch_all(
                concat!(
                    "SELECT DISTINCT b.name, ",
                    login_scope!(),
                    ", i.task_id, b.role FROM image_bases b \
                     JOIN images i ON i.id = b.image_id JOIN tasks t ON t.id = i.task_id \
                     WHERE i.newest = 1 AND b.pinned = 0"
                ),
                args![],
            )
            .await?;
        rows.into_iter()
            .map(|(name, scope, task, role)| Ok((name, scope, task, parse_enum(&role)?)))
            .collect()
    }

    /// Watches exactly these tags, each with a login. Returns the number of new watches.
    pub async fn set_watches(&self, wanted: &BTreeSet<(String, String)>, now: Ms) -> Result<u64> {
        let stored: Vec<(i64, String, String, i64)> = self
            .db
            .fetch_all(
                "SELECT id, name, scope, created_at FROM base_watches",
                args![],
            )
            .await?;
        let watched: BTreeSet<(&str, &str)> = stored
            .iter()
            .map(|(_, name, scope, _)| (name.as_str(), scope.as_str()))
            .collect();
        let missing: Vec<&(String, String)> = wanted
            .iter()
            .filter(|(name, scope)| !watched.contains(&(name.as_str(), scope.as_str())))
            .collect();
        let unused: Vec<i64> = stored
            .iter()
            .filter(|(_, name, scope, created)| {
                *created < now - UNUSED_GRACE_MS && !wanted.contains(&(name.clone(), scope.clone()))
            })
            .map(|(id, ..)| *id)
            .collect();
        if missing.is_empty() && unused.is_empty() {
            return Ok(0);
        }
        let mut tx = self.db.begin().await?;
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
        if !unused.is_empty() {
            tx.exec(
                one_of!("DELETE FROM base_watches WHERE id", "$1", ""),
                args![unused],
            )
            .await?;
        }
        tx.commit().await?;
        Ok(made)
    }

    /// Leases at most `limit` due tags for polling. Other servers do not poll them for `lease_ms`.
    pub async fn claim_watches(&self, now: Ms, lease_ms: i64, limit: u32) -> Result<Vec<WatchRow>> {
        const CLAIM: Sql = Sql::new(
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
            .fetch_optional(
                "SELECT CAST(1 AS BIGINT) FROM base_watches WHERE paused = 0 AND next_check_at <= $1 LIMIT 1",
                args![now],
            )
            .await?;
        if due.is_none() {
            return Ok(Vec::new());
        }
        let mut tx = self.db.begin().await?;
        let rows: Vec<RawWatch> = tx
            .fetch_all(CLAIM, args![now, now + lease_ms, limit])
            .await?;
        tx.commit().await?;
        rows.into_iter().map(WatchRow::try_from).collect()
    }

    /// Returns the lease of a tag that was not polled.
    pub async fn release_watch(&self, watch: &WatchRow, next: Ms) -> Result<()> {
        self.db
            .exec(
                "UPDATE base_watches SET lease_until = NULL, next_check_at = $3 WHERE id = $1 AND lease_until = $2",
                args![watch.id, watch.lease_until, next],
            )
            .await
            .map(drop)
    }

    /// Postpones all polls of a registry with this login until `until`.
    pub async fn postpone_registry(&self, registry: &str, scope: &str, until: Ms) -> Result<()> {
        const POSTPONE: Sql = Sql::new(
            "UPDATE base_watches SET next_check_at = $3 WHERE registry = $1 AND scope = $2 AND next_check_at < $3",
            "UPDATE base_watches SET next_check_at = $3 WHERE id IN (SELECT id FROM base_watches WHERE registry = $1 \
             AND scope = $2 AND next_check_at < $3 ORDER BY id FOR UPDATE)",
        );
        let args = || args![registry, scope, until];
        let mut tx = self.db.begin().await?;
        tx.exec(POSTPONE, args()).await?;
        tx.exec(
            "UPDATE tag_lists SET next_check_at = $3 WHERE registry = $1 AND scope = $2 AND next_check_at < $3",
            args(),
        )
        .await?;
        tx.commit().await
    }

    /// Returns digests of these tags that images were built from and whose platforms are unknown.
    /// At most `limit` for each tag.
    pub async fn digests_without_platforms<'w>(
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
        let rows: Vec<(i64, String)> = self.db.fetch_all(sql, args![ids]).await?;
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

    /// Stores the platforms of an earlier digest of a tag. `None`: they cannot be read.
    pub async fn put_base_platforms(
        &self,
        watch: &WatchRow,
        digest: &Digest,
        platforms: Option<&Platforms>,
        now: Ms,
    ) -> Result<()> {
        let mut tx = self.db.begin().await?;
        let found: Option<(i64,)> = tx
            .fetch_optional("SELECT id FROM base_watches WHERE id = $1", args![watch.id])
            .await?;
        if found.is_some() {
            polls::put_digest(&mut tx, watch.id, digest, platforms, now).await?;
        }
        tx.commit().await
    }

    /// Returns watches by name and login.
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
        let rows: Vec<RawWatch> = self.db.fetch_all(Sql::dynamic(text), args).await?;
        let rows: Result<Vec<WatchRow>> = rows.into_iter().map(WatchRow::try_from).collect();
        let mut rows = rows?;
        let names: Vec<String> = rows.iter().map(|row| row.name.clone()).collect();
        let sql = one_of!(
            "SELECT b.name, COUNT(DISTINCT b.image_id) FROM image_bases b JOIN images i ON i.id = b.image_id \
             WHERE i.newest = 1 AND b.name",
            "$1",
            " GROUP BY b.name"
        );
        let counts: Vec<(String, i64)> = self.db.fetch_all(sql, args![names]).await?;
        let counts: HashMap<String, i64> = counts.into_iter().collect();
        for row in &mut rows {
            row.used_by = run_state::to_u64(counts.get(&row.name).copied().unwrap_or(0))?;
        }
        Ok(rows)
    }

    /// Returns the digest changes of a tag, newest first.
    pub async fn base_changes(&self, watch: i64, limit: u32) -> Result<Vec<BaseTagChange>> {
        let rows: Vec<RawChange> = self
            .db
            .fetch_all(
                "SELECT old, new, changed_at, moved_back, platforms FROM base_changes WHERE watch_id = $1 ORDER BY id DESC LIMIT $2",
                args![watch, limit],
            )
            .await?;
        rows.into_iter().map(BaseTagChange::try_from).collect()
    }

    /// Returns the known platforms of the current digest of a tag.
    pub async fn base_platforms(&self, watch: &WatchRow) -> Result<Platforms> {
        let row: Option<(Option<String>,)> = self
            .db
            .fetch_optional(
                "SELECT platforms FROM base_digests WHERE watch_id = $1 AND digest = $2",
                args![watch.id, watch.digest.as_ref().map(Digest::as_str)],
            )
            .await?;
        match row.and_then(|(platforms,)| platforms) {
            Some(json) => from_json(&json),
            None => Ok(Platforms::new()),
        }
    }

    /// Pauses or resumes the polling of a tag with every login. Returns the number of rows.
    pub async fn set_watch_paused(&self, name: &str, paused: bool, now: Ms) -> Result<u64> {
        self.db
            .exec(
                "UPDATE base_watches SET paused = $2, next_check_at = CASE WHEN $2 = 1 THEN next_check_at ELSE $3 END \
                 WHERE name = $1",
                args![name, i64::from(paused), now],
            )
            .await
    }

    /// Marks watches as due that are not paused: all, or those with these names. Returns their
    /// number.
    ///
    /// Also revokes the lease of a poll in progress, which may have read the previous digest.
    pub async fn mark_watches_due(&self, names: Option<Vec<String>>, now: Ms) -> Result<u64> {
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

    /// Marks all watches of a repository as due, as [`Store::mark_watches_due`] does.
    pub async fn mark_repository_due(&self, repository: &str, now: Ms) -> Result<u64> {
        self.db
            .exec(
                "UPDATE base_watches SET next_check_at = $3, lease_until = NULL WHERE paused = 0 \
                 AND (next_check_at > $3 OR lease_until IS NOT NULL) AND name > $1 AND name < $2",
                args![format!("{repository}:"), format!("{repository};"), now],
            )
            .await
    }
}
