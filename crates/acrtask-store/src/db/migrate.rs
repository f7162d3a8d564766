//! Copies of a SQLite database into PostgreSQL, for a service that grows beyond one machine.
//!
//! Invariants: the copy is one transaction, so the target has all rows or none; no server uses the source meanwhile; a
//! target with data of its own is refused. Left out: the way back, blobs, and the key file.

use std::collections::{BTreeMap, BTreeSet};

use futures::TryStreamExt as _;
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, Postgres, Row as _,
    SqlSafeStr as _, SqliteConnection,
    postgres::PgArguments,
    query::Query,
    sqlite::{SqliteLockingMode, SqliteRow},
};

use super::{POSTGRES, SQLITE, postgres_options, refused, snapshot::existing};
use crate::{Result, StoreError};

/// Rows of one statement.
const ROWS: usize = 1_000;
/// Bytes of texts and binary values of one statement. One row may have more.
const BYTES: usize = 8 << 20;
/// The tables that a database in use has rows in.
const USED: [&str; 6] = ["tokens", "tasks", "runs", "runners", "deliveries", "images"];

/// Copies all rows of the SQLite database `from` into the PostgreSQL database `to`, whose tables are created. Calls
/// `report` with the name of each table and the number of its rows.
///
/// # Errors
/// [`StoreError::Invalid`] if a URL is of another kind, a server uses `from`, or `to` has data; the errors of both
/// databases. The target is then as before, but may have empty tables.
pub async fn migrate_store(from: &str, to: &str, mut report: impl FnMut(&str, u64)) -> Result<()> {
    let mut source = open_source(from).await?;
    let mut target = PgConnection::connect_with(&postgres_options(to)?).await?;
    POSTGRES
        .run_direct(None, &mut target, false)
        .await
        .map_err(|error| refused(error, &POSTGRES))?;
    let tables = tables(&mut source).await?;
    let mut tx = target.begin().await?;
    for table in USED {
        let row = sqlx::query(sql(format!("SELECT 1 FROM {} LIMIT 1", quoted(table))));
        if row.fetch_optional(&mut *tx).await?.is_some() {
            return Err(invalid(format!(
                "the PostgreSQL database has data: its table `{table}` is not empty; name an empty database"
            )));
        }
    }
    // Migrations store first rows.
    let all: Vec<String> = tables.iter().map(|table| quoted(table)).collect();
    sqlx::query(sql(format!("TRUNCATE {}", all.join(", "))))
        .execute(&mut *tx)
        .await?;
    for table in &tables {
        let rows = copy(&mut source, &mut tx, table).await?;
        report(table, rows);
    }
    tx.commit().await?;
    sqlx::query("ANALYZE").execute(&mut target).await?;
    target.close().await?;
    source.close().await?;
    Ok(())
}

/// Opens the source for this program alone, with its tables up to date.
async fn open_source(url: &str) -> Result<SqliteConnection> {
    if !url.starts_with("sqlite:") {
        return Err(invalid(
            "the source is not a SQLite database: write `sqlite:PATH`".into(),
        ));
    }
    let options = existing(url)?.locking_mode(SqliteLockingMode::Exclusive);
    let in_use = |error: sqlx::Error| match &error {
        // SQLITE_BUSY
        sqlx::Error::Database(found) if found.code().as_deref() == Some("5") => {
            invalid("a program uses the SQLite database: stop the server first".into())
        }
        _ => error.into(),
    };
    let mut source = options.connect().await.map_err(in_use)?;
    // In this mode the connection keeps the lock that the transaction takes.
    for statement in ["BEGIN EXCLUSIVE", "COMMIT"] {
        sqlx::query(statement)
            .execute(&mut source)
            .await
            .map_err(in_use)?;
    }
    SQLITE
        .run_direct(None, &mut source, false)
        .await
        .map_err(|error| refused(error, &SQLITE))?;
    Ok(source)
}

/// Returns the tables, each after those that it refers to.
async fn tables(source: &mut SqliteConnection) -> Result<Vec<String>> {
    let names: Vec<(String,)> = sqlx::query_as(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' \
         AND name <> '_sqlx_migrations' ORDER BY name",
    )
    .fetch_all(&mut *source)
    .await?;
    let mut waiting: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name,) in names {
        let others: Vec<(String,)> =
            sqlx::query_as("SELECT \"table\" FROM pragma_foreign_key_list($1)")
                .bind(name.clone())
                .fetch_all(&mut *source)
                .await?;
        let others = others.into_iter().map(|(other,)| other);
        let others = others.filter(|other| *other != name).collect();
        waiting.insert(name, others);
    }
    let mut ordered: Vec<String> = Vec::new();
    while !waiting.is_empty() {
        let ready = |others: &BTreeSet<String>| others.iter().all(|other| ordered.contains(other));
        let next = waiting.iter().find(|(_, others)| ready(others));
        let next = next.map(|(name, _)| name.clone());
        let next = next.ok_or_else(|| invalid("tables refer to each other in a circle".into()))?;
        waiting.remove(&next);
        ordered.push(next);
    }
    Ok(ordered)
}

/// The values of one column, in the order of the rows.
enum Column {
    Text(Vec<Option<String>>),
    Number(Vec<Option<i64>>),
    Binary(Vec<Option<Vec<u8>>>),
}

impl Column {
    fn new(table: &str, name: &str, data_type: &str) -> Result<Self> {
        match data_type {
            "text" => Ok(Self::Text(Vec::new())),
            "bigint" => Ok(Self::Number(Vec::new())),
            "bytea" => Ok(Self::Binary(Vec::new())),
            other => Err(invalid(format!(
                "the column {table}.{name} has the type {other}"
            ))),
        }
    }

    /// The type of the array that the column is sent as.
    fn array(&self) -> &'static str {
        match self {
            Self::Text(_) => "text[]",
            Self::Number(_) => "bigint[]",
            Self::Binary(_) => "bytea[]",
        }
    }

    /// Adds the value of a row. Returns its size in bytes.
    fn add(&mut self, row: &SqliteRow, index: usize) -> Result<usize> {
        Ok(match self {
            Self::Text(values) => {
                let value: Option<String> = row.try_get_unchecked(index)?;
                let size = value.as_ref().map_or(0, String::len);
                values.push(value);
                size
            }
            Self::Number(values) => {
                values.push(row.try_get_unchecked(index)?);
                size_of::<i64>()
            }
            Self::Binary(values) => {
                let value: Option<Vec<u8>> = row.try_get_unchecked(index)?;
                let size = value.as_ref().map_or(0, Vec::len);
                values.push(value);
                size
            }
        })
    }

    /// Binds the values to a statement, and leaves none.
    fn bind<'q>(
        &mut self,
        query: Query<'q, Postgres, PgArguments>,
    ) -> Query<'q, Postgres, PgArguments> {
        match self {
            Self::Text(values) => query.bind(std::mem::take(values)),
            Self::Number(values) => query.bind(std::mem::take(values)),
            Self::Binary(values) => query.bind(std::mem::take(values)),
        }
    }
}

/// Copies the rows of a table. Returns their number.
async fn copy(
    source: &mut SqliteConnection,
    target: &mut PgConnection,
    table: &str,
) -> Result<u64> {
    let described: Vec<(String, String, String)> = sqlx::query_as(
        "SELECT column_name::text, data_type::text, is_identity::text FROM information_schema.columns \
         WHERE table_schema = current_schema() AND table_name = $1 ORDER BY ordinal_position",
    )
    .bind(table)
    .fetch_all(&mut *target)
    .await?;
    let names: Vec<String> = described.iter().map(|(name, ..)| quoted(name)).collect();
    let names = names.join(", ");
    let mut columns = Vec::new();
    for (name, data_type, _) in &described {
        columns.push(Column::new(table, name, data_type)?);
    }
    let arrays: Vec<String> = std::iter::zip(1.., &columns)
        .map(|(number, column)| format!("${number}::{}", column.array()))
        .collect();
    let insert = format!(
        "INSERT INTO {} ({names}) OVERRIDING SYSTEM VALUE SELECT * FROM UNNEST({})",
        quoted(table),
        arrays.join(", ")
    );
    let mut copied = 0;
    let mut waiting = (0, 0);
    let select = sql(format!("SELECT {names} FROM {}", quoted(table)));
    let mut rows = sqlx::query(select).fetch(&mut *source);
    loop {
        let row = rows.try_next().await?;
        if let Some(row) = &row {
            waiting.0 += 1;
            for (index, column) in columns.iter_mut().enumerate() {
                waiting.1 += column.add(row, index)?;
            }
        }
        let (count, bytes) = waiting;
        if count >= ROWS || bytes >= BYTES || row.is_none() && count > 0 {
            let mut query = sqlx::query(sql(insert.clone()));
            for column in &mut columns {
                query = column.bind(query);
            }
            let written = query.execute(&mut *target).await?;
            copied += written.rows_affected();
            waiting = (0, 0);
        }
        if row.is_none() {
            break;
        }
    }
    drop(rows);
    for (name, ..) in described.iter().filter(|(.., identity)| identity == "YES") {
        continue_numbers(source, target, table, name).await?;
    }
    Ok(copied)
}

/// Makes the next number of a column greater than every one that the source has given out.
async fn continue_numbers(
    source: &mut SqliteConnection,
    target: &mut PgConnection,
    table: &str,
    column: &str,
) -> Result<()> {
    let given: Option<(i64,)> = sqlx::query_as("SELECT seq FROM sqlite_sequence WHERE name = $1")
        .bind(table)
        .fetch_optional(source)
        .await?;
    let statement = format!(
        "SELECT setval(pg_get_serial_sequence($1, $2), GREATEST($3, MAX({0}), 1), GREATEST($3, MAX({0})) >= 1) FROM {1}",
        quoted(column),
        quoted(table)
    );
    sqlx::query(sql(statement))
        .bind(table)
        .bind(column)
        .bind(given.map_or(0, |(given,)| given))
        .execute(target)
        .await?;
    Ok(())
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A statement with names of the schema alone.
fn sql(text: String) -> sqlx::SqlStr {
    AssertSqlSafe(text).into_sql_str()
}

fn invalid(what: String) -> StoreError {
    StoreError::Invalid { what }
}
