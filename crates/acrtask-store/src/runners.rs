//! Runners and the one-use tokens that register them. A removed runner stays as a row, so that its runs keep its name.

use std::collections::BTreeMap;

use sqlx::FromRow;

use crate::{
    DEFAULT_POOL, Ms, Result, Store, StoreError,
    db::{Sql, args, locked},
    error::is_unique_violation,
    from_json, lives, to_json,
};

/// A token that registers one runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunnerTokenRow {
    /// Its id.
    pub id: String,
    /// What it is checked by.
    pub hash: Vec<u8>,
    /// The pool that the runner will be in.
    pub pool: Option<String>,
    /// The labels of the runner.
    pub labels: BTreeMap<String, String>,
    /// Most slots of the runner. `None`: as many as any runner may have.
    pub max_slots: Option<u32>,
    /// The only tasks whose runs the runner gets: a name, or a prefix with `*`. `None`: all runs of its pool.
    pub tasks: Option<String>,
    /// When it was made.
    pub created_at: Ms,
    /// When it ends.
    pub expires_at: Ms,
}

/// A runner that registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRunner {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What its key is checked by.
    pub key_hash: Vec<u8>,
}

/// What a runner says of itself when it connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelloFacts {
    /// Its pool: that of its registration token, else `default`; decided by the caller.
    pub pool: String,
    /// Its labels: those of its registration token; decided by the caller.
    pub labels: BTreeMap<String, String>,
    /// `linux/amd64` ...
    pub platforms: Vec<String>,
    /// Runs that it carries out at once.
    pub slots: u32,
    /// What its engine and builder are, and can do.
    pub features: BTreeMap<String, String>,
    /// The version of its program.
    pub version: String,
    /// Bytes that are free where it keeps its files.
    pub free_disk: u64,
}

/// A runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunnerRow {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What its key is checked by.
    pub key_hash: Vec<u8>,
    /// The pool that its registration token said.
    pub token_pool: Option<String>,
    /// The labels that its registration token said.
    pub token_labels: BTreeMap<String, String>,
    /// Most slots that its registration token allows.
    pub max_slots: Option<u32>,
    /// The only tasks whose runs it gets, as in [`RunnerTokenRow`].
    pub tasks: Option<String>,
    /// Its pool.
    pub pool: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// `linux/amd64` ...
    pub platforms: Vec<String>,
    /// Runs that it carries out at once.
    pub slots: u32,
    /// Runs that it holds now.
    pub busy: u32,
    /// What its engine and builder are, and can do.
    pub features: BTreeMap<String, String>,
    /// The version of its program.
    pub version: String,
    /// It takes nothing new.
    pub draining: bool,
    /// Bytes that are free where it keeps its files.
    pub free_disk: u64,
    /// When it was last heard of.
    pub last_seen_at: Option<Ms>,
    /// The server that it was last connected to.
    pub server_id: Option<String>,
    /// When it registered.
    pub registered_at: Ms,
    /// When it was removed.
    pub removed_at: Option<Ms>,
}

/// The columns of [`RawToken`].
macro_rules! select_tokens {
    () => {
        "SELECT id, hash, pool, labels, max_slots, tasks, created_at, expires_at FROM runner_tokens WHERE id = $1 AND used_at IS NULL"
    };
}

#[derive(Debug, FromRow)]
struct RawToken {
    id: String,
    hash: Vec<u8>,
    pool: Option<String>,
    labels: String,
    max_slots: Option<i64>,
    tasks: Option<String>,
    created_at: i64,
    expires_at: i64,
}

/// The columns of [`RawRunner`]; to be followed by conditions.
macro_rules! select_runners {
    () => {
        "SELECT id, name, key_hash, token_pool, token_labels, max_slots, tasks, pool, labels, platforms, slots, features, version, draining, \
         free_disk, last_seen_at, server_id, registered_at, removed_at, \
         (SELECT COUNT(*) FROM runs r WHERE r.runner_id = runners.id AND r.state IN ('leased', 'running')) AS busy \
         FROM runners "
    };
}

#[derive(Debug, FromRow)]
struct RawRunner {
    id: String,
    name: String,
    key_hash: Vec<u8>,
    token_pool: Option<String>,
    token_labels: String,
    max_slots: Option<i64>,
    tasks: Option<String>,
    pool: String,
    labels: String,
    platforms: String,
    slots: i64,
    features: String,
    version: String,
    draining: i64,
    free_disk: i64,
    last_seen_at: Option<i64>,
    server_id: Option<String>,
    registered_at: i64,
    removed_at: Option<i64>,
    busy: i64,
}

impl TryFrom<RawRunner> for RunnerRow {
    type Error = StoreError;

    fn try_from(raw: RawRunner) -> Result<Self> {
        Ok(Self {
            id: raw.id,
            name: raw.name,
            key_hash: raw.key_hash,
            token_pool: raw.token_pool,
            token_labels: from_json(&raw.token_labels)?,
            max_slots: raw.max_slots.map(lives::small).transpose()?,
            tasks: raw.tasks,
            pool: raw.pool,
            labels: from_json(&raw.labels)?,
            platforms: from_json(&raw.platforms)?,
            slots: lives::small(raw.slots)?,
            busy: lives::small(raw.busy)?,
            features: from_json(&raw.features)?,
            version: raw.version,
            draining: raw.draining != 0,
            free_disk: lives::size(raw.free_disk)?,
            last_seen_at: raw.last_seen_at,
            server_id: raw.server_id,
            registered_at: raw.registered_at,
            removed_at: raw.removed_at,
        })
    }
}

fn token(raw: RawToken) -> Result<RunnerTokenRow> {
    Ok(RunnerTokenRow {
        labels: from_json(&raw.labels)?,
        id: raw.id,
        hash: raw.hash,
        pool: raw.pool,
        max_slots: raw.max_slots.map(lives::small).transpose()?,
        tasks: raw.tasks,
        created_at: raw.created_at,
        expires_at: raw.expires_at,
    })
}

fn missing(id: &str) -> StoreError {
    StoreError::not_found(format!("runner {id}"))
}

const SEEN: Sql = Sql::of(
    "UPDATE runners SET free_disk = $2, last_seen_at = $3, server_id = $4 WHERE id = $1",
    "UPDATE runners SET free_disk = n.free_disk, last_seen_at = n.seen, server_id = n.server \
     FROM UNNEST($1::text[], $2::bigint[], $3::bigint[], $4::text[]) AS n (id, free_disk, seen, server) \
     WHERE runners.id = n.id",
);

impl Store {
    /// A new registration token.
    pub async fn create_runner_token(&self, token: &RunnerTokenRow) -> Result<()> {
        self.db
            .exec(
                "INSERT INTO runner_tokens (id, hash, pool, labels, created_at, expires_at, max_slots, tasks) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
                args![
                    token.id.as_str(),
                    token.hash.as_slice(),
                    token.pool.as_deref(),
                    to_json(&token.labels)?,
                    token.created_at,
                    token.expires_at,
                    token.max_slots,
                    token.tasks.as_deref(),
                ],
            )
            .await
            .map(drop)
    }

    /// A registration token that has not been used; whether it has ended is checked again by `register_runner`.
    pub async fn runner_token(&self, id: &str) -> Result<Option<RunnerTokenRow>> {
        let raw: Option<RawToken> = self.db.row(select_tokens!(), args![id]).await?;
        raw.map(token).transpose()
    }

    /// Registers a runner and uses its token up: `NotFound` where the token is used or has ended, `Conflict` where a
    /// runner that has not been removed has the name.
    pub async fn register_runner(
        &self,
        token_id: &str,
        runner: &NewRunner,
        now: Ms,
    ) -> Result<RunnerRow> {
        let mut tx = self.db.write().await?;
        let raw: Option<RawToken> = tx.row(locked!(select_tokens!()), args![token_id]).await?;
        let token = raw
            .map(token)
            .transpose()?
            .filter(|token| token.expires_at > now)
            .ok_or_else(|| {
                StoreError::not_found(
                    "registration token like this that is unused and has not ended",
                )
            })?;
        tx.exec(
            "UPDATE runner_tokens SET used_at = $2 WHERE id = $1",
            args![token_id, now],
        )
        .await?;
        let labels = to_json(&token.labels)?;
        let written = tx
            .exec(
                "INSERT INTO runners (id, name, key_hash, token_pool, token_labels, pool, labels, registered_at, max_slots, \
                 tasks) VALUES ($1, $2, $3, $4, $5, $6, $5, $7, $8, $9)",
                args![
                    runner.id.as_str(),
                    runner.name.as_str(),
                    runner.key_hash.as_slice(),
                    token.pool.as_deref(),
                    labels,
                    token.pool.as_deref().unwrap_or(DEFAULT_POOL),
                    now,
                    token.max_slots,
                    token.tasks.as_deref(),
                ],
            )
            .await;
        match written {
            Err(error) if is_unique_violation(&error) => {
                return Err(StoreError::conflict(format!(
                    "there is a runner {} already; remove it or take another name",
                    runner.name
                )));
            }
            other => other?,
        };
        tx.commit().await?;
        self.runner_by_id(&runner.id)
            .await?
            .ok_or_else(|| missing(&runner.id))
    }

    /// A runner, a removed one too.
    pub async fn runner_by_id(&self, id: &str) -> Result<Option<RunnerRow>> {
        let raw: Option<RawRunner> = self
            .db
            .row(concat!(select_runners!(), "WHERE id = $1"), args![id])
            .await?;
        raw.map(RunnerRow::try_from).transpose()
    }

    /// A runner that has not been removed, by name.
    pub async fn runner_by_name(&self, name: &str) -> Result<Option<RunnerRow>> {
        let raw: Option<RawRunner> = self
            .db
            .row(
                concat!(select_runners!(), "WHERE name = $1 AND removed_at IS NULL"),
                args![name],
            )
            .await?;
        raw.map(RunnerRow::try_from).transpose()
    }

    /// All runners that have not been removed, by name.
    pub async fn runners(&self) -> Result<Vec<RunnerRow>> {
        let rows: Vec<RawRunner> = self
            .db
            .rows(
                concat!(select_runners!(), "WHERE removed_at IS NULL ORDER BY name"),
                args![],
            )
            .await?;
        rows.into_iter().map(RunnerRow::try_from).collect()
    }

    /// A runner has connected to this server.
    pub async fn runner_hello(
        &self,
        id: &str,
        facts: &HelloFacts,
        server_id: &str,
        now: Ms,
    ) -> Result<()> {
        let changed = self
            .db
            .exec(
                "UPDATE runners SET pool = $2, labels = $3, platforms = $4, slots = $5, features = $6, version = $7, \
                 free_disk = $8, server_id = $9, last_seen_at = $10 WHERE id = $1 AND removed_at IS NULL",
                args![
                    id,
                    facts.pool.as_str(),
                    to_json(&facts.labels)?,
                    to_json(&facts.platforms)?,
                    facts.slots,
                    to_json(&facts.features)?,
                    facts.version.as_str(),
                    facts.free_disk,
                    server_id,
                    now,
                ],
            )
            .await?;
        if changed == 0 {
            return Err(missing(id));
        }
        Ok(())
    }

    /// Records that these runners are connected to the server `server`, with their free disks.
    pub async fn runners_seen(&self, seen: &[(String, u64)], server: &str, now: Ms) -> Result<()> {
        if seen.is_empty() {
            return Ok(());
        }
        let seen: BTreeMap<&String, u64> = seen.iter().map(|(id, disk)| (id, *disk)).collect();
        let ids: Vec<String> = seen.keys().map(|id| (*id).clone()).collect();
        let rows = seen
            .into_iter()
            .map(|(id, disk)| args![id, disk, now, server])
            .collect();
        let mut tx = self.db.write().await?;
        if tx.is_postgres() {
            // In one order, so that two servers never wait for each other.
            let sql = "SELECT id FROM runners WHERE id = ANY($1) ORDER BY id FOR UPDATE";
            tx.exec(sql, args![ids]).await?;
        }
        tx.each(SEEN, rows).await?;
        tx.commit().await
    }

    /// Records that a runner has left the server `server`, unless it is connected to another one by now.
    pub async fn runner_left(&self, id: &str, server: &str) -> Result<()> {
        let sql = "UPDATE runners SET server_id = NULL WHERE id = $1 AND server_id = $2";
        self.db.exec(sql, args![id, server]).await.map(drop)
    }

    /// Whether a runner takes nothing new.
    pub async fn set_draining(&self, id: &str, draining: bool) -> Result<()> {
        let sql = "UPDATE runners SET draining = $2 WHERE id = $1 AND removed_at IS NULL";
        match self.db.exec(sql, args![id, draining]).await? {
            0 => Err(missing(id)),
            _ => Ok(()),
        }
    }

    /// Removes a runner: its key is worth nothing from now on, and its name is free.
    pub async fn remove_runner(&self, id: &str, now: Ms) -> Result<()> {
        let sql = "UPDATE runners SET removed_at = $2 WHERE id = $1 AND removed_at IS NULL";
        match self.db.exec(sql, args![id, now]).await? {
            0 => Err(missing(id)),
            _ => Ok(()),
        }
    }
}
