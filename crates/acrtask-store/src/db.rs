//! SQLite and PostgreSQL behind one interface. A statement has one text for both, or one per
//! database where they differ. Its arguments and rows are the same, so that the modules above are
//! written once.
//!
//! Invariants:
//! - SQLite has one writing connection. Each of its transactions starts by acquiring the write
//!   lock, so that none finds the database busy halfway.
//! - PostgreSQL ends a transaction whose server is idle in it, so that no lock is kept forever.
//! - Every wait for PostgreSQL has a time limit, also if the server disappears without closing its
//!   connections.

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

/// Longest wait for a connection or for another writer.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest duration of a statement on PostgreSQL. A machine that is switched off, or a network that
/// is cut, does not close its connections; without the limit a call would wait forever.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest number of rows in one statement of [`Tx::exec_each`] on PostgreSQL.
const ROWS: usize = 5_000;

/// An open database.
#[derive(Debug, Clone)]
pub(crate) enum Db {
    /// Several reading connections and one writing connection.
    Sqlite { read: SqlitePool, write: SqlitePool },
    /// The options open additional connections, for example for listeners.
    Postgres {
        pool: PgPool,
        options: Box<PgConnectOptions>,
        /// Time limit of a statement.
        statement_timeout: Duration,
    },
}

/// Text of a statement, per database.
#[derive(Debug, Clone)]
pub(crate) struct Sql {
    pub(crate) sqlite: Cow<'static, str>,
    pub(crate) postgres: Cow<'static, str>,
}

impl From<&'static str> for Sql {
    fn from(text: &'static str) -> Self {
        Self::new(text, text)
    }
}

impl Sql {
    pub(crate) const fn new(sqlite: &'static str, postgres: &'static str) -> Self {
        Self {
            sqlite: Cow::Borrowed(sqlite),
            postgres: Cow::Borrowed(postgres),
        }
    }

    /// Returns both texts followed by `rest`, which consists only of texts of this crate.
    pub(crate) fn append(&self, rest: &str) -> Self {
        Self {
            sqlite: Cow::Owned(format!("{}{rest}", self.sqlite)),
            postgres: Cow::Owned(format!("{}{rest}", self.postgres)),
        }
    }

    /// Returns a statement from `text`, which consists only of texts of this crate.
    pub(crate) fn dynamic(text: String) -> Self {
        Self {
            sqlite: Cow::Owned(text.clone()),
            postgres: Cow::Owned(text),
        }
    }
}

fn into_sql_str(sql: Cow<'static, str>) -> SqlStr {
    match sql {
        Cow::Borrowed(text) => text.into_sql_str(),
        Cow::Owned(text) => AssertSqlSafe(text).into_sql_str(),
    }
}

/// Builds a text of the form `BEFORE is one of the list PARAMETER AFTER`. The part after `lock`
/// applies to PostgreSQL only.
macro_rules! one_of {
    ($before:expr, $parameter:literal, $after:literal $(, lock $lock:literal)?) => {
        $crate::db::Sql::new(
            concat!($before, " IN (SELECT value FROM json_each(", $parameter, "))", $after),
            concat!($before, " = ANY(", $parameter, ")", $after $(, " ", $lock)?),
        )
    };
}
pub(crate) use one_of;

/// Builds a text that locks its rows until the end of the transaction. SQLite needs no lock: it has
/// one writer.
macro_rules! locked {
    ($text:expr) => {
        $crate::db::Sql::new($text, concat!($text, " FOR UPDATE"))
    };
}
pub(crate) use locked;

/// Builds a query of runs with a fixed index for SQLite. PostgreSQL collects statistics and chooses
/// the index automatically.
macro_rules! runs_by {
    ($index:literal, $columns:literal, $conditions:literal) => {
        $crate::db::Sql::new(
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

/// Builds the arguments of a statement, in order.
macro_rules! args {
    ($($value:expr),* $(,)?) => { vec![$($crate::db::Arg::from($value)),*] };
}
pub(crate) use args;

/// Argument of a statement.
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
    // No size or offset of this crate reaches the end of the range.
    u64 => |value| i64::try_from(value).unwrap_or(i64::MAX));
arg!(Text: &str => |value| replace_nul(value.to_owned()), String => |value| replace_nul(value),
    &String => |value| replace_nul(value.clone()));
arg!(Blob: &[u8] => |value| value.to_vec(), Vec<u8> => |value| value);

/// Replaces the NUL character, which PostgreSQL rejects in texts and arguments. Input from users
/// and forges may contain it.
fn replace_nul(text: String) -> String {
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
        Self::Texts(list.into_iter().map(replace_nul).collect())
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
        .fold(sqlx::query(into_sql_str(sql)), |query, arg| {
            arg.bind_sqlite(query)
        })
}

fn postgres_query(sql: Cow<'static, str>, args: Vec<Arg>) -> PostgresQuery {
    args.into_iter()
        .fold(sqlx::query(into_sql_str(sql)), |query, arg| {
            arg.bind_postgres(query)
        })
}

/// Row of either database.
pub(crate) trait Row:
    for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin
{
}

impl<T> Row for T where T: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin
{}

fn parse_rows<T, R>(rows: Vec<R>) -> Result<Vec<T>>
where
    T: for<'r> FromRow<'r, R>,
    R: sqlx::Row,
{
    rows.iter()
        .map(|row| T::from_row(row).map_err(StoreError::from))
        .collect()
}

/// Writing transaction. Rolled back when dropped before `commit`.
pub(crate) enum Tx {
    Sqlite(Transaction<'static, Sqlite>),
    /// The duration is the time limit of a statement.
    Postgres(Transaction<'static, Postgres>, Duration),
}

/// Waits for a PostgreSQL statement, at most `limit`.
pub(crate) async fn with_timeout<T>(
    limit: Duration,
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T> {
    let result = tokio::time::timeout(limit, statement).await;
    Ok(result.unwrap_or_else(|_| Err(timeout_error(limit)))?)
}

fn timeout_error(limit: Duration) -> sqlx::Error {
    let what = format!("the database has not responded for {} s", limit.as_secs());
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, what))
}

impl Tx {
    pub(crate) fn is_postgres(&self) -> bool {
        matches!(self, Self::Postgres(..))
    }

    /// Executes a statement. Returns the number of changed rows.
    pub(crate) async fn exec(&mut self, sql: impl Into<Sql>, args: Vec<Arg>) -> Result<u64> {
        let sql = sql.into();
        Ok(match self {
            Self::Sqlite(tx) => sqlite_query(sql.sqlite, args)
                .execute(&mut **tx)
                .await?
                .rows_affected(),
            Self::Postgres(tx, limit) => {
                let query = postgres_query(sql.postgres, args);
                let done = with_timeout(*limit, query.execute(&mut **tx)).await?;
                done.rows_affected()
            }
        })
    }

    pub(crate) async fn fetch_all<T: Row>(
        &mut self,
        sql: impl Into<Sql>,
        args: Vec<Arg>,
    ) -> Result<Vec<T>> {
        let sql = sql.into();
        match self {
            Self::Sqlite(tx) => {
                parse_rows(sqlite_query(sql.sqlite, args).fetch_all(&mut **tx).await?)
            }
            Self::Postgres(tx, limit) => {
                let query = postgres_query(sql.postgres, args);
                parse_rows(with_timeout(*limit, query.fetch_all(&mut **tx)).await?)
            }
        }
    }

    pub(crate) async fn fetch_optional<T: Row>(
        &mut self,
        sql: impl Into<Sql>,
        args: Vec<Arg>,
    ) -> Result<Option<T>> {
        Ok(self.fetch_all(sql, args).await?.into_iter().next())
    }

    /// Executes a statement for each row of arguments. Returns the number of changed rows.
    ///
    /// SQLite executes it once per row, which is fast there. PostgreSQL gets the columns as arrays,
    /// which the text has to unnest.
    pub(crate) async fn exec_each(&mut self, sql: Sql, rows: Vec<Vec<Arg>>) -> Result<u64> {
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
                    let query = bind_columns(sql.postgres.clone(), rows);
                    let done = with_timeout(*limit, query.execute(&mut **tx)).await?;
                    changed += done.rows_affected();
                }
            }
        }
        Ok(changed)
    }

    pub(crate) async fn commit(self) -> Result<()> {
        match self {
            Self::Sqlite(tx) => tx.commit().await?,
            Self::Postgres(tx, limit) => with_timeout(limit, tx.commit()).await?,
        }
        Ok(())
    }
}

fn bind_columns(sql: Cow<'static, str>, rows: &[Vec<Arg>]) -> PostgresQuery {
    let mut query = sqlx::query(into_sql_str(sql));
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
            Some(("postgres" | "postgresql", _)) => open_postgres(url, STATEMENT_TIMEOUT).await,
            _ => Err(StoreError::Invalid {
                what: "a database is `sqlite:PATH` or `postgres://USER@HOST/NAME`".into(),
            }),
        }
    }

    pub(crate) async fn begin(&self) -> Result<Tx> {
        Ok(match self {
            Self::Sqlite { write, .. } => Tx::Sqlite(write.begin_with("BEGIN IMMEDIATE").await?),
            Self::Postgres {
                pool,
                statement_timeout,
                ..
            } => Tx::Postgres(
                with_timeout(*statement_timeout, pool.begin()).await?,
                *statement_timeout,
            ),
        })
    }

    /// Executes one reading statement.
    pub(crate) async fn fetch_all<T: Row>(
        &self,
        sql: impl Into<Sql>,
        args: Vec<Arg>,
    ) -> Result<Vec<T>> {
        let sql = sql.into();
        match self {
            Self::Sqlite { read, .. } => {
                parse_rows(sqlite_query(sql.sqlite, args).fetch_all(read).await?)
            }
            Self::Postgres {
                pool,
                statement_timeout,
                ..
            } => {
                let query = postgres_query(sql.postgres, args);
                parse_rows(with_timeout(*statement_timeout, query.fetch_all(pool)).await?)
            }
        }
    }

    pub(crate) async fn fetch_optional<T: Row>(
        &self,
        sql: impl Into<Sql>,
        args: Vec<Arg>,
    ) -> Result<Option<T>> {
        Ok(self.fetch_all(sql, args).await?.into_iter().next())
    }

    /// Executes one writing statement in its own transaction. Returns the number of changed rows.
    pub(crate) async fn exec(&self, sql: impl Into<Sql>, args: Vec<Arg>) -> Result<u64> {
        let mut tx = self.begin().await?;
        let changed = tx.exec(sql, args).await?;
        tx.commit().await?;
        Ok(changed)
    }
}

async fn open_sqlite(url: &str) -> Result<Db> {
    let options = SqliteConnectOptions::from_str(url)
        .map_err(|error| StoreError::Invalid {
            what: format!("`{url}` is not a URL of a SQLite database: {error}"),
        })?
        .create_if_missing(true)
        .foreign_keys(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(ACQUIRE_TIMEOUT);
    let in_memory = url.contains(":memory:");
    if !in_memory {
        private_files::restrict_permissions(options.get_filename()).map_err(|error| {
            StoreError::Invalid {
                what: format!("the database of `{url}` cannot be opened: {error}"),
            }
        })?;
    }
    // Moves pages from the log to the database in large batches, because consecutive claims touch
    // the same pages.
    let writer = options
        .clone()
        .pragma("cache_size", "-16000")
        .pragma("wal_autocheckpoint", "8000")
        .pragma("journal_size_limit", "67108864");
    // If several processes open an empty database at once, one creates the tables and the others
    // find them incomplete.
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
            Err(error) => return Err(migration_error(error, &SQLITE)),
        }
    };
    let read = if in_memory {
        write.clone()
    } else {
        SqlitePoolOptions::new()
            .max_connections(4)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_with(options.pragma("query_only", "ON"))
            .await?
    };
    Ok(Db::Sqlite { read, write })
}

async fn sqlite_writer(options: SqliteConnectOptions) -> Result<SqlitePool, MigrateError> {
    let pool = SqlitePoolOptions::new()
        .max_connections(1)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_with(options)
        .await?;
    let mut connection = pool.acquire().await?;
    SQLITE.run_direct(None, &mut *connection, false).await?;
    drop(connection);
    Ok(pool)
}

/// Parses the options of a PostgreSQL URL.
fn postgres_options(url: &str) -> Result<PgConnectOptions> {
    let options = PgConnectOptions::from_str(url)
        .map_err(|error| StoreError::Invalid {
            // Omits the URL because it may contain a password.
            what: format!("this is not a PostgreSQL URL: {error}"),
        })?
        .application_name("acrtask");
    check_tls_mode(url, &options)?;
    Ok(options)
}

async fn open_postgres(url: &str, statement_timeout: Duration) -> Result<Db> {
    let options = postgres_options(url)?;
    let mut connection = PgConnection::connect_with(&options).await?;
    POSTGRES
        .run_direct(None, &mut connection, false)
        .await
        .map_err(|error| migration_error(error, &POSTGRES))?;
    connection.close().await?;
    let pool = PgPoolOptions::new()
        .max_connections(10)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        // The pool's own check of a returned connection has no time limit. A dead connection would
        // occupy its slot forever.
        .after_release(|connection, _| {
            Box::pin(async move {
                let alive = tokio::time::timeout(ACQUIRE_TIMEOUT, connection.ping()).await;
                alive.unwrap_or_else(|_| Err(timeout_error(ACQUIRE_TIMEOUT)))?;
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
        statement_timeout,
    })
}

/// Rejects the URL of a remote database that does not set `sslmode`. By default PostgreSQL
/// continues in clear text if the server, or an attacker on the way, does not offer TLS.
#[allow(
    clippy::disallowed_methods,
    reason = "the variable belongs to a tool whose conventions apply here"
)]
fn check_tls_mode(url: &str, options: &PgConnectOptions) -> Result<()> {
    let named = ["sslmode=", "ssl-mode="]
        .iter()
        .any(|key| url.contains(key))
        || std::env::var_os("PGSSLMODE").is_some();
    let host = options.get_host();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let is_local = options.get_socket().is_some()
        || host.starts_with('/')
        || host.eq_ignore_ascii_case("localhost")
        || address
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    if named || is_local {
        return Ok(());
    }
    Err(StoreError::Invalid {
        what: format!(
            "the PostgreSQL URL does not set the TLS mode of the connection to {host}; append `?sslmode=verify-full`, \
             or `?sslmode=disable` if the network is trusted"
        ),
    })
}

fn migration_error(error: MigrateError, migrator: &Migrator) -> StoreError {
    match error {
        MigrateError::VersionMissing(found) => StoreError::Newer {
            found,
            supported: migrator
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
