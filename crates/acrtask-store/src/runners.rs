//! Runners and their single-use registration tokens. The row of a removed runner stays, so that its
//! runs keep its name.

use std::collections::BTreeMap;

use sqlx::FromRow;

use crate::{
    DEFAULT_POOL, Ms, Result, Store, StoreError,
    db::{Sql, args, locked},
    error::is_unique_violation,
    from_json, run_state, to_json,
};

/// A token that registers one runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunnerTokenRow {
    /// Id of the token.
    pub id: String,
    /// Hash that verifies the token.
    pub hash: Vec<u8>,
    /// Pool of the runner.
    pub pool: Option<String>,
    /// Labels of the runner.
    pub labels: BTreeMap<String, String>,
    /// Largest number of slots. `None`: the general limit of a runner.
    pub max_slots: Option<u32>,
    /// Tasks whose runs the runner may get: a name, or a prefix followed by `*`. `None`: all runs
    /// of its pool.
    pub tasks: Option<String>,
    /// Time of its creation.
    pub created_at: Ms,
    /// Time of its expiry.
    pub expires_at: Ms,
}

/// A runner to register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRunner {
    /// Id of the runner.
    pub id: String,
    /// Name of the runner.
    pub name: String,
    /// Hash that verifies its key.
    pub key_hash: Vec<u8>,
}

/// Properties that a runner sends when it connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunnerHello {
    /// Pool. The caller takes it from the registration token; otherwise `default`.
    pub pool: String,
    /// Labels. The caller takes them from the registration token.
    pub labels: BTreeMap<String, String>,
    /// Platforms such as `linux/amd64`.
    pub platforms: Vec<String>,
    /// Number of concurrent runs.
    pub slots: u32,
    /// Properties of its engine and builder.
    pub features: BTreeMap<String, String>,
    /// Version of its program.
    pub version: String,
    /// Free bytes on the disk of its files.
    pub free_disk: u64,
}

/// A stored runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunnerRow {
    /// Id of the runner.
    pub id: String,
    /// Name of the runner.
    pub name: String,
    /// Hash that verifies its key.
    pub key_hash: Vec<u8>,
    /// Pool of its registration token.
    pub token_pool: Option<String>,
    /// Labels of its registration token.
    pub token_labels: BTreeMap<String, String>,
    /// Largest number of slots of its registration token.
    pub max_slots: Option<u32>,
    /// Tasks whose runs it may get, as in [`RunnerTokenRow`].
    pub tasks: Option<String>,
    /// Pool of the runner.
    pub pool: String,
    /// Labels of the runner.
    pub labels: BTreeMap<String, String>,
    /// Platforms such as `linux/amd64`.
    pub platforms: Vec<String>,
    /// Number of concurrent runs.
    pub slots: u32,
    /// Number of currently leased runs.
    pub busy: u32,
    /// Properties of its engine and builder.
    pub features: BTreeMap<String, String>,
    /// Version of its program.
    pub version: String,
    /// The runner gets no new runs.
    pub draining: bool,
    /// Free bytes on the disk of its files.
    pub free_disk: u64,
    /// Time of its last message.
    pub last_seen_at: Option<Ms>,
    /// Server that it is connected to.
    pub server_id: Option<String>,
    /// Time of its registration.
    pub registered_at: Ms,
    /// Time of its removal.
    pub removed_at: Option<Ms>,
}

/// Selects the columns of [`RawToken`].
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

/// Selects the columns of [`RawRunner`]. The caller appends conditions.
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
            max_slots: raw.max_slots.map(run_state::to_u32).transpose()?,
            tasks: raw.tasks,
            pool: raw.pool,
            labels: from_json(&raw.labels)?,
            platforms: from_json(&raw.platforms)?,
            slots: run_state::to_u32(raw.slots)?,
            busy: run_state::to_u32(raw.busy)?,
            features: from_json(&raw.features)?,
            version: raw.version,
            draining: raw.draining != 0,
            free_disk: run_state::to_u64(raw.free_disk)?,
            last_seen_at: raw.last_seen_at,
            server_id: raw.server_id,
            registered_at: raw.registered_at,
            removed_at: raw.removed_at,
        })
    }
}

fn parse_token(raw: RawToken) -> Result<RunnerTokenRow> {
    Ok(RunnerTokenRow {
        labels: from_json(&raw.labels)?,
        id: raw.id,
        hash: raw.hash,
        pool: raw.pool,
        max_slots: raw.max_slots.map(run_state::to_u32).transpose()?,
        tasks: raw.tasks,
        created_at: raw.created_at,
        expires_at: raw.expires_at,
    })
}

fn missing(id: &str) -> StoreError {
    StoreError::not_found(format!("runner {id}"))
}

const UPDATE_SEEN: Sql = Sql::new(
    "UPDATE runners SET free_disk = $2, last_seen_at = $3, server_id = $4 WHERE id = $1",
    "UPDATE runners SET free_disk = n.free_disk, last_seen_at = n.seen, server_id = n.server \
     FROM UNNEST($1::text[], $2::bigint[], $3::bigint[], $4::text[]) AS n (id, free_disk, seen, server) \
     WHERE runners.id = n.id",
);

impl Store {
    /// Creates a registration token.
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

    /// Returns an unused registration token. `register_runner` checks its expiry.
    pub async fn runner_token(&self, id: &str) -> Result<Option<RunnerTokenRow>> {
        let raw: Option<RawToken> = self.db.fetch_optional(select_tokens!(), args![id]).await?;
        raw.map(parse_token).transpose()
    }

    /// Registers a runner and uses up its token. Fails with `NotFound` if the token is used or
    /// expired, and with `Conflict` if another runner has the name.
    pub async fn register_runner(
        &self,
        token_id: &str,
        runner: &NewRunner,
        now: Ms,
    ) -> Result<RunnerRow> {
        let mut tx = self.db.begin().await?;
        let raw: Option<RawToken> = tx
            .fetch_optional(locked!(select_tokens!()), args![token_id])
            .await?;
        let token = raw
            .map(parse_token)
            .transpose()?
            .filter(|token| token.expires_at > now)
            .ok_or_else(|| {
                StoreError::not_found(
                    "registration token like this that is unused and has not expired",
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

    /// Returns a runner, including removed ones.
    pub async fn runner_by_id(&self, id: &str) -> Result<Option<RunnerRow>> {
        let raw: Option<RawRunner> = self
            .db
            .fetch_optional(concat!(select_runners!(), "WHERE id = $1"), args![id])
            .await?;
        raw.map(RunnerRow::try_from).transpose()
    }

    /// Returns a runner by name, excluding removed ones.
    pub async fn runner_by_name(&self, name: &str) -> Result<Option<RunnerRow>> {
        let raw: Option<RawRunner> = self
            .db
            .fetch_optional(
                concat!(select_runners!(), "WHERE name = $1 AND removed_at IS NULL"),
                args![name],
            )
            .await?;
        raw.map(RunnerRow::try_from).transpose()
    }

    /// Returns all runners by name, excluding removed ones.
    pub async fn runners(&self) -> Result<Vec<RunnerRow>> {
        let rows: Vec<RawRunner> = self
            .db
            .fetch_all(
                concat!(select_runners!(), "WHERE removed_at IS NULL ORDER BY name"),
                args![],
            )
            .await?;
        rows.into_iter().map(RunnerRow::try_from).collect()
    }

    /// Stores the properties of a runner that has connected to the server `server_id`.
    pub async fn runner_hello(
        &self,
        id: &str,
        hello: &RunnerHello,
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
                    hello.pool.as_str(),
                    to_json(&hello.labels)?,
                    to_json(&hello.platforms)?,
                    hello.slots,
                    to_json(&hello.features)?,
                    hello.version.as_str(),
                    hello.free_disk,
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

    /// Records that these runners are connected to the server `server`, with their free disk space.
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
        let mut tx = self.db.begin().await?;
        if tx.is_postgres() {
            // A fixed order prevents two servers from waiting for each other.
            let sql = "SELECT id FROM runners WHERE id = ANY($1) ORDER BY id FOR UPDATE";
            tx.exec(sql, args![ids]).await?;
        }
        tx.exec_each(UPDATE_SEEN, rows).await?;
        tx.commit().await
    }

    /// Records that a runner has disconnected from the server `server`, unless it has connected to
    /// another one.
    pub async fn runner_left(&self, id: &str, server: &str) -> Result<()> {
        let sql = "UPDATE runners SET server_id = NULL WHERE id = $1 AND server_id = $2";
        self.db.exec(sql, args![id, server]).await.map(drop)
    }

    /// Starts or stops draining a runner. A draining runner gets no new runs.
    pub async fn set_draining(&self, id: &str, draining: bool) -> Result<()> {
        let sql = "UPDATE runners SET draining = $2 WHERE id = $1 AND removed_at IS NULL";
        match self.db.exec(sql, args![id, draining]).await? {
            0 => Err(missing(id)),
            _ => Ok(()),
        }
    }

    /// Removes a runner. Its key becomes invalid, and its name is available again.
    pub async fn remove_runner(&self, id: &str, now: Ms) -> Result<()> {
        let sql = "UPDATE runners SET removed_at = $2 WHERE id = $1 AND removed_at IS NULL";
        match self.db.exec(sql, args![id, now]).await? {
            0 => Err(missing(id)),
            _ => Ok(()),
        }
    }
}
