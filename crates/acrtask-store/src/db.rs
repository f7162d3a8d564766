//! The two databases behind one set of words: a statement has one text for both, or one for each where they differ; its
//! arguments and rows are the same. Everything above this file is written once.
//!
//! Invariants: SQLite has one connection that writes, and each of its transactions begins by taking the lock for
//! writing, so that none finds the database busy half-way. PostgreSQL gives up a transaction whose server sleeps in it, so
//! that no lock is held for ever; and nobody waits for ever for a PostgreSQL that has gone without a word.

mod migrate;
mod private_files;
mod snapshot;

use std::{borrow::Cow, str::FromStr, time::Duration};

use sqlx::{
    AssertSqlSafe, Connection, FromRow, PgConnection, Postgres, SqlSafeStr, SqlStr, Sqlite,
    Transaction,
    migrate::{MigrateError, Migrator},
    postgres::{PgArguments, PgConnectOptions, PgPool, PgPoolOptions, PgRow},
    query::Query,
    sqlite::{
        SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
        SqliteRow, SqliteSynchronous,
    },
};

pub use self::migrate::migrate_store;
pub use self::snapshot::{check_database_exists, snapshot_sqlite};
use crate::{Result, StoreError};

static SQLITE: Migrator = sqlx::migrate!("migrations/sqlite");
static POSTGRES: Migrator = sqlx::migrate!("migrations/postgres");

/// How long a call waits for a connection, or for another writer.
const WAIT: Duration = Duration::from_secs(5);
/// How long PostgreSQL may take for a statement. A machine that is switched off, or a network that is cut, tells no end of
/// a connection, and who waits there would wait for ever.
const ANSWER: Duration = Duration::from_secs(60);
/// Rows of one statement of [`Tx::each`] on PostgreSQL.
const ROWS: usize = 5_000;

/// A database that is open.
#[derive(Debug, Clone)]
pub(crate) enum Db {
    /// Many that read and one that writes.
    Sqlite { read: SqlitePool, write: SqlitePool },
    /// The options serve those who need a connection of their own.
    Postgres {
        pool: PgPool,
        options: Box<PgConnectOptions>,
        /// What takes longer has failed.
        answer: Duration,
    },
}

/// A statement's text for each database.
#[derive(Debug, Clone)]
pub(crate) struct Sql {
    pub(crate) sqlite: Cow<'static, str>,
    pub(crate) postgres: Cow<'static, str>,
}

impl From<&'static str> for Sql {
    fn from(text: &'static str) -> Self {
        Self::of(text, text)
    }
}

impl Sql {
    pub(crate) const fn of(sqlite: &'static str, postgres: &'static str) -> Self {
        Self {
            sqlite: Cow::Borrowed(sqlite),
            postgres: Cow::Borrowed(postgres),
        }
    }

    /// Returns both texts followed by a text that was put together from texts of this crate.
    pub(crate) fn with(&self, rest: &str) -> Self {
        Self {
            sqlite: Cow::Owned(format!("{}{rest}", self.sqlite)),
            postgres: Cow::Owned(format!("{}{rest}", self.postgres)),
        }
    }

    /// A text that was put together from texts of this crate.
    pub(crate) fn built(text: String) -> Self {
        Self {
            sqlite: Cow::Owned(text.clone()),
            postgres: Cow::Owned(text),
        }
    }
}

fn text(sql: Cow<'static, str>) -> SqlStr {
    match sql {
        Cow::Borrowed(text) => text.into_sql_str(),
        Cow::Owned(text) => AssertSqlSafe(text).into_sql_str(),
    }
}

/// A text with `BEFORE is one of the list PARAMETER AFTER`; what follows `lock` is for PostgreSQL alone.
macro_rules! one_of {
    ($before:expr, $parameter:literal, $after:literal $(, lock $lock:literal)?) => {
        $crate::db::Sql::of(
            concat!($before, " IN (SELECT value FROM json_each(", $parameter, "))", $after),
            concat!($before, " = ANY(", $parameter, ")", $after $(, " ", $lock)?),
        )
    };
}
pub(crate) use one_of;

/// A text whose rows are locked until the end of the transaction; SQLite's writer is alone anyway.
macro_rules! locked {
    ($text:expr) => {
        $crate::db::Sql::of($text, concat!($text, " FOR UPDATE"))
    };
}
pub(crate) use locked;

/// A text about runs that SQLite answers from this index; PostgreSQL, which keeps counts, chooses it by itself.
macro_rules! runs_by {
    ($index:literal, $columns:literal, $conditions:literal) => {
        $crate::db::Sql::of(
            concat!(
                "SELECT ",
                $columns,
                " FROM runs INDEXED BY ",
                $index,
                " WHERE ",
                $conditions
            ),
            concat!("SELECT ", $columns, " FROM runs WHERE ", $conditions),
        )
    };
}
pub(crate) use runs_by;

/// Arguments of a statement, in order.
macro_rules! args {
    ($($value:expr),* $(,)?) => { vec![$($crate::db::Arg::from($value)),*] };
}
pub(crate) use args;

/// An argument of a statement.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Arg {
    Int(Option<i64>),
    Text(Option<String>),
    Blob(Option<Vec<u8>>),
    Ints(Vec<i64>),
    Texts(Vec<String>),
}

macro_rules! arg {
    ($kind:ident: $($type:ty => |$value:ident| $into:expr),* $(,)?) => {
        $(
            impl From<$type> for Arg {
                fn from($value: $type) -> Self {
                    Self::$kind(Some($into))
                }
            }
            impl From<Option<$type>> for Arg {
                fn from(value: Option<$type>) -> Self {
                    Self::$kind(value.map(|$value| $into))
                }
            }
        )*
    };
}
arg!(Int: i64 => |value| value, u32 => |value| value.into(), bool => |value| value.into(),
    // No size or offset of ours comes near the end of the range.
    u64 => |value| i64::try_from(value).unwrap_or(i64::MAX));
arg!(Text: &str => |value| storable(value.to_owned()), String => |value| storable(value),
    &String => |value| storable(value.clone()));
arg!(Blob: &[u8] => |value| value.to_vec(), Vec<u8> => |value| value);

/// Without the one character that PostgreSQL stores in no text and takes in no argument: what people and forges send may
/// hold it.
fn storable(text: String) -> String {
    if text.contains('\0') {
        text.replace('\0', "\u{fffd}")
    } else {
        text
    }
}

impl From<&acrtask_model::RunId> for Arg {
    fn from(id: &acrtask_model::RunId) -> Self {
        Self::Text(Some(id.to_string()))
    }
}

impl From<Vec<i64>> for Arg {
    fn from(list: Vec<i64>) -> Self {
        Self::Ints(list)
    }
}

impl From<Vec<String>> for Arg {
    fn from(list: Vec<String>) -> Self {
        Self::Texts(list.into_iter().map(storable).collect())
    }
}

type SqliteQuery = Query<'static, Sqlite, SqliteArguments>;
type PostgresQuery = Query<'static, Postgres, PgArguments>;

impl Arg {
    fn bind_sqlite(self, query: SqliteQuery) -> SqliteQuery {
        match self {
            Self::Int(value) => query.bind(value),
            Self::Text(value) => query.bind(value),
            Self::Blob(value) => query.bind(value),
            Self::Ints(list) => query.bind(serde_json::Value::from(list).to_string()),
            Self::Texts(list) => query.bind(serde_json::Value::from(list).to_string()),
        }
    }

    fn bind_postgres(self, query: PostgresQuery) -> PostgresQuery {
        match self {
            Self::Int(value) => query.bind(value),
            Self::Text(value) => query.bind(value),
            Self::Blob(value) => query.bind(value),
            Self::Ints(list) => query.bind(list),
            Self::Texts(list) => query.bind(list),
        }
    }
}

fn sqlite_query(sql: Cow<'static, str>, args: Vec<Arg>) -> SqliteQuery {
    args.into_iter()
        .fold(sqlx::query(text(sql)), |query, arg| arg.bind_sqlite(query))
}

fn postgres_query(sql: Cow<'static, str>, args: Vec<Arg>) -> PostgresQuery {
    args.into_iter().fold(sqlx::query(text(sql)), |query, arg| {
        arg.bind_postgres(query)
    })
}

/// A row of either database.
pub(crate) trait Row:
    for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin
{
}

impl<T> Row for T where T: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin
{}

fn parsed<T, R>(rows: Vec<R>) -> Result<Vec<T>>
where
    T: for<'r> FromRow<'r, R>,
    R: sqlx::Row,
{
    rows.iter()
        .map(|row| T::from_row(row).map_err(StoreError::from))
        .collect()
}

/// A transaction that writes. Dropped before its end, it leaves nothing.
pub(crate) enum Tx {
    Sqlite(Transaction<'static, Sqlite>),
    /// With the time that a statement may take.
    Postgres(Transaction<'static, Postgres>, Duration),
}

/// Waits for PostgreSQL, but no longer than that.
pub(crate) async fn answered<T>(
    limit: Duration,
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T> {
    let answer = tokio::time::timeout(limit, statement).await;
    Ok(answer.unwrap_or_else(|_| Err(silent(limit)))?)
}

fn silent(limit: Duration) -> sqlx::Error {
    let what = format!("it has not answered for {} s", limit.as_secs());
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, what))
}

impl Tx {
    pub(crate) fn is_postgres(&self) -> bool {
        matches!(self, Self::Postgres(..))
    }

    /// Carries a statement out. Says how many rows it changed.
    pub(crate) async fn exec(&mut self, sql: impl Into<Sql>, args: Vec<Arg>) -> Result<u64> {
        let sql = sql.into();
        Ok(match self {
            Self::Sqlite(tx) => sqlite_query(sql.sqlite, args)
                .execute(&mut **tx)
                .await?
                .rows_affected(),
            Self::Postgres(tx, limit) => {
                let query = postgres_query(sql.postgres, args);
                let done = answered(*limit, query.execute(&mut **tx)).await?;
                done.rows_affected()
            }
        })
    }

    pub(crate) async fn rows<T: Row>(
        &mut self,
        sql: impl Into<Sql>,
        args: Vec<Arg>,
    ) -> Result<Vec<T>> {
        let sql = sql.into();
        match self {
            Self::Sqlite(tx) => parsed(sqlite_query(sql.sqlite, args).fetch_all(&mut **tx).await?),
            Self::Postgres(tx, limit) => {
                let query = postgres_query(sql.postgres, args);
                parsed(answered(*limit, query.fetch_all(&mut **tx)).await?)
            }
        }
    }

    pub(crate) async fn row<T: Row>(
        &mut self,
        sql: impl Into<Sql>,
        args: Vec<Arg>,
    ) -> Result<Option<T>> {
        Ok(self.rows(sql, args).await?.into_iter().next())
    }

    /// Carries a statement out for each of these rows of arguments: one by one on SQLite, where that is quick; on
    /// PostgreSQL with its columns as arrays, which the text is to unnest. Says how many rows were changed.
    pub(crate) async fn each(&mut self, sql: Sql, rows: Vec<Vec<Arg>>) -> Result<u64> {
        let mut changed = 0;
        match self {
            Self::Sqlite(tx) => {
                for row in rows {
                    changed += sqlite_query(sql.sqlite.clone(), row)
                        .execute(&mut **tx)
                        .await?
                        .rows_affected();
                }
            }
            Self::Postgres(tx, limit) => {
                for rows in rows.chunks(ROWS) {
                    let query = columns(sql.postgres.clone(), rows);
                    let done = answered(*limit, query.execute(&mut **tx)).await?;
                    changed += done.rows_affected();
                }
            }
        }
        Ok(changed)
    }

    pub(crate) async fn commit(self) -> Result<()> {
        match self {
            Self::Sqlite(tx) => tx.commit().await?,
            Self::Postgres(tx, limit) => answered(limit, tx.commit()).await?,
        }
        Ok(())
    }
}

fn columns(sql: Cow<'static, str>, rows: &[Vec<Arg>]) -> PostgresQuery {
    let mut query = sqlx::query(text(sql));
    let Some(first) = rows.first() else {
        return query;
    };
    for (column, kind) in first.iter().enumerate() {
        let cells = rows.iter().map(|row| &row[column]);
        query = match kind {
            Arg::Text(_) => query.bind(
                cells
                    .map(|arg| match arg {
                        Arg::Text(value) => value.clone(),
                        _ => None,
                    })
                    .collect::<Vec<_>>(),
            ),
            Arg::Blob(_) => query.bind(
                cells
                    .map(|arg| match arg {
                        Arg::Blob(value) => value.clone(),
                        _ => None,
                    })
                    .collect::<Vec<_>>(),
            ),
            Arg::Int(_) | Arg::Ints(_) | Arg::Texts(_) => query.bind(
                cells
                    .map(|arg| match arg {
                        Arg::Int(value) => *value,
                        _ => None,
                    })
                    .collect::<Vec<_>>(),
            ),
        };
    }
    query
}

impl Db {
    pub(crate) async fn open(url: &str) -> Result<Self> {
        match url.split_once(':') {
            Some(("sqlite", _)) => open_sqlite(url).await,
            Some(("postgres" | "postgresql", _)) => open_postgres(url, ANSWER).await,
            _ => Err(StoreError::Invalid {
                what: "a database is `sqlite:PATH` or `postgres://USER@HOST/NAME`".into(),
            }),
        }
    }

    pub(crate) async fn write(&self) -> Result<Tx> {
        Ok(match self {
            Self::Sqlite { write, .. } => Tx::Sqlite(write.begin_with("BEGIN IMMEDIATE").await?),
            Self::Postgres { pool, answer, .. } => {
                Tx::Postgres(answered(*answer, pool.begin()).await?, *answer)
            }
        })
    }

    /// One statement that reads.
    pub(crate) async fn rows<T: Row>(&self, sql: impl Into<Sql>, args: Vec<Arg>) -> Result<Vec<T>> {
        let sql = sql.into();
        match self {
            Self::Sqlite { read, .. } => {
                parsed(sqlite_query(sql.sqlite, args).fetch_all(read).await?)
            }
            Self::Postgres { pool, answer, .. } => {
                let query = postgres_query(sql.postgres, args);
                parsed(answered(*answer, query.fetch_all(pool)).await?)
            }
        }
    }

    pub(crate) async fn row<T: Row>(
        &self,
        sql: impl Into<Sql>,
        args: Vec<Arg>,
    ) -> Result<Option<T>> {
        Ok(self.rows(sql, args).await?.into_iter().next())
    }

    /// One statement that writes, as a transaction. Says how many rows it changed.
    pub(crate) async fn exec(&self, sql: impl Into<Sql>, args: Vec<Arg>) -> Result<u64> {
        let mut tx = self.write().await?;
        let changed = tx.exec(sql, args).await?;
        tx.commit().await?;
        Ok(changed)
    }
}

async fn open_sqlite(url: &str) -> Result<Db> {
    let options = SqliteConnectOptions::from_str(url)
        .map_err(|error| StoreError::Invalid {
            what: format!("`{url}` names no SQLite database: {error}"),
        })?
        .create_if_missing(true)
        .foreign_keys(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(WAIT);
    let in_memory = url.contains(":memory:");
    if !in_memory {
        private_files::keep_private(options.get_filename()).map_err(|error| {
            StoreError::Invalid {
                what: format!("the database of `{url}` cannot be opened: {error}"),
            }
        })?;
    }
    // Pages go from the log to the database in large batches: a claim touches some that the next one touches again.
    let writer = options
        .clone()
        .pragma("cache_size", "-16000")
        .pragma("wal_autocheckpoint", "8000")
        .pragma("journal_size_limit", "67108864");
    // Of several that open an empty database at once, one makes the tables and the others find them half made.
    let mut attempts = 0;
    let write = loop {
        attempts += 1;
        match sqlite_writer(writer.clone()).await {
            Ok(pool) => break pool,
            Err(MigrateError::Execute(_) | MigrateError::ExecuteMigration(..))
                if attempts < 20 && !in_memory =>
            {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(error) => return Err(refused(error, &SQLITE)),
        }
    };
    let read = if in_memory {
        write.clone()
    } else {
        SqlitePoolOptions::new()
            .max_connections(4)
            .acquire_timeout(WAIT)
            .connect_with(options.pragma("query_only", "ON"))
            .await?
    };
    Ok(Db::Sqlite { read, write })
}

async fn sqlite_writer(options: SqliteConnectOptions) -> Result<SqlitePool, MigrateError> {
    let pool = SqlitePoolOptions::new()
        .max_connections(1)
        .acquire_timeout(WAIT)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_with(options)
        .await?;
    let mut connection = pool.acquire().await?;
    SQLITE.run_direct(None, &mut *connection, false).await?;
    drop(connection);
    Ok(pool)
}

/// Returns the options of a PostgreSQL URL.
fn postgres_options(url: &str) -> Result<PgConnectOptions> {
    let options = PgConnectOptions::from_str(url)
        .map_err(|error| StoreError::Invalid {
            // Not the URL itself: it may hold a password.
            what: format!("this is not a PostgreSQL URL: {error}"),
        })?
        .application_name("acrtask");
    check_protection(url, &options)?;
    Ok(options)
}

async fn open_postgres(url: &str, answer: Duration) -> Result<Db> {
    let options = postgres_options(url)?;
    let mut connection = PgConnection::connect_with(&options).await?;
    POSTGRES
        .run_direct(None, &mut connection, false)
        .await
        .map_err(|error| refused(error, &POSTGRES))?;
    connection.close().await?;
    let pool = PgPoolOptions::new()
        .max_connections(10)
        .acquire_timeout(WAIT)
        // The pool itself asks a connection that comes back whether it lives, and waits for the answer for ever: the place
        // of a dead one would be lost.
        .after_release(|connection, _| {
            Box::pin(async move {
                let alive = tokio::time::timeout(WAIT, connection.ping()).await;
                alive.unwrap_or_else(|_| Err(silent(WAIT)))?;
                Ok(true)
            })
        })
        .connect_with(options.clone().options([
            ("lock_timeout", "5s"),
            ("idle_in_transaction_session_timeout", "10s"),
        ]))
        .await?;
    Ok(Db::Postgres {
        pool,
        options: Box::new(options),
        answer,
    })
}

/// Refuses a database on another machine whose URL leaves it to that machine, and to whoever is between, whether the
/// connection is encrypted: PostgreSQL's default is to go on in clear where TLS is not offered.
fn check_protection(url: &str, options: &PgConnectOptions) -> Result<()> {
    let named = ["sslmode=", "ssl-mode="]
        .iter()
        .any(|key| url.contains(key))
        || std::env::var_os("PGSSLMODE").is_some();
    let host = options.get_host();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let here = options.get_socket().is_some()
        || host.starts_with('/')
        || host.eq_ignore_ascii_case("localhost")
        || address
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    if named || here {
        return Ok(());
    }
    Err(StoreError::Invalid {
        what: format!(
            "the PostgreSQL URL does not say how the connection to {host} is protected; append `?sslmode=verify-full`, \
             or `?sslmode=disable` where the network is trusted"
        ),
    })
}

fn refused(error: MigrateError, migrator: &Migrator) -> StoreError {
    match error {
        MigrateError::VersionMissing(found) => StoreError::Newer {
            found,
            known: migrator
                .iter()
                .map(|migration| migration.version)
                .max()
                .unwrap_or(0),
        },
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => error.into(),
        other => StoreError::Database(sqlx::Error::Migrate(Box::new(other))),
    }
}

#[cfg(test)]
#[path = "db_tests.rs"]
mod tests;
