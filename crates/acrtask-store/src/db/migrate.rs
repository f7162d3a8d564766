//! Copy of a SQLite database into PostgreSQL, for a service that outgrows one machine.
//!
//! Invariants: the copy is one transaction, so the target gets all rows or none; no server uses the
//! source meanwhile; a target with data is rejected. Left out: the opposite direction, blobs, and
//! the key file.

use std::collections::{BTreeMap, BTreeSet};

use futures::TryStreamExt as _;
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, Postgres, Row as _,
    SqlSafeStr as _, SqliteConnection,
    postgres::PgArguments,
    query::Query,
    sqlite::{SqliteLockingMode, SqliteRow},
};

use super::{
    POSTGRES, SQLITE, migration_error, postgres_options, snapshot::existing_database_options,
};
use crate::{Result, StoreError};

/// Largest number of rows in one statement.
const ROWS: usize = 1_000;
/// Largest size of the texts and binary values in one statement, in bytes. One row may exceed it.
const BYTES: usize = 8 << 20;
/// Tables that have rows if a database is in use.
const USED: [&str; 6] = ["tokens", "tasks", "runs", "runners", "deliveries", "images"];

/// Copies all rows of the SQLite database `from` into the PostgreSQL database `to` and creates its
/// tables. Calls `report` with the name and row count of each table.
///
/// # Errors
/// [`StoreError::Invalid`] if a URL is of another kind, a server uses `from`, or `to` has data;
/// otherwise the errors of both databases. The target is then unchanged except for empty tables.
pub async fn migrate_store(from: &str, to: &str, mut report: impl FnMut(&str, u64)) -> Result<()> {
    let mut source = open_source(from).await?;
    let mut target = PgConnection::connect_with(&postgres_options(to)?).await?;
    POSTGRES
        .run_direct(None, &mut target, false)
        .await
        .map_err(|error| migration_error(error, &POSTGRES))?;
    let tables = ordered_tables(&mut source).await?;
    let mut tx = target.begin().await?;
    for table in USED {
        let row = sqlx::query(statement(format!(
            "SELECT 1 FROM {} LIMIT 1",
            quote_name(table)
        )));
        if row.fetch_optional(&mut *tx).await?.is_some() {
            return Err(invalid(format!(
                "the PostgreSQL database has data: its table `{table}` is not empty; name an empty database"
            )));
        }
    }
    // Removes the initial rows that migrations insert.
    let all: Vec<String> = tables.iter().map(|table| quote_name(table)).collect();
    sqlx::query(statement(format!("TRUNCATE {}", all.join(", "))))
        .execute(&mut *tx)
        .await?;
    for table in &tables {
        let rows = copy_table(&mut source, &mut tx, table).await?;
        report(table, rows);
    }
    tx.commit().await?;
    sqlx::query("ANALYZE").execute(&mut target).await?;
    target.close().await?;
    source.close().await?;
    Ok(())
}

/// Opens the source exclusively and brings its tables up to date.
async fn open_source(url: &str) -> Result<SqliteConnection> {
    if !url.starts_with("sqlite:") {
        return Err(invalid(
            "the source is not a SQLite database: write `sqlite:PATH`".into(),
        ));
    }
    let options = existing_database_options(url)?.locking_mode(SqliteLockingMode::Exclusive);
    let in_use = |error: sqlx::Error| match &error {
        // SQLITE_BUSY
        sqlx::Error::Database(found) if found.code().as_deref() == Some("5") => {
            invalid("a program uses the SQLite database: stop the server first".into())
        }
        _ => error.into(),
    };
    let mut source = options.connect().await.map_err(in_use)?;
    // In exclusive mode the connection keeps the lock of this transaction.
    for statement in ["BEGIN EXCLUSIVE", "COMMIT"] {
        sqlx::query(statement)
            .execute(&mut source)
            .await
            .map_err(in_use)?;
    }
    SQLITE
        .run_direct(None, &mut source, false)
        .await
        .map_err(|error| migration_error(error, &SQLITE))?;
    Ok(source)
}

/// Returns the tables in an order in which each follows the tables that it refers to.
async fn ordered_tables(source: &mut SqliteConnection) -> Result<Vec<String>> {
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
        let next =
            next.ok_or_else(|| invalid("the tables refer to each other in a cycle".into()))?;
        waiting.remove(&next);
        ordered.push(next);
    }
    Ok(ordered)
}

/// Values of one column, in row order.
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

    /// Returns the array type that PostgreSQL gets for the column.
    fn array_type(&self) -> &'static str {
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

    /// Binds the values to a statement and empties the column.
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
async fn copy_table(
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
    let names: Vec<String> = described
        .iter()
        .map(|(name, ..)| quote_name(name))
        .collect();
    let names = names.join(", ");
    let mut columns = Vec::new();
    for (name, data_type, _) in &described {
        columns.push(Column::new(table, name, data_type)?);
    }
    let arrays: Vec<String> = std::iter::zip(1.., &columns)
        .map(|(number, column)| format!("${number}::{}", column.array_type()))
        .collect();
    let insert = format!(
        "INSERT INTO {} ({names}) OVERRIDING SYSTEM VALUE SELECT * FROM UNNEST({})",
        quote_name(table),
        arrays.join(", ")
    );
    let mut copied = 0;
    let mut waiting = (0, 0);
    let select = statement(format!("SELECT {names} FROM {}", quote_name(table)));
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
            let mut query = sqlx::query(statement(insert.clone()));
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
        advance_sequence(source, target, table, name).await?;
    }
    Ok(copied)
}

/// Sets the sequence of a column to the highest number that the source has assigned.
async fn advance_sequence(
    source: &mut SqliteConnection,
    target: &mut PgConnection,
    table: &str,
    column: &str,
) -> Result<()> {
    let given: Option<(i64,)> = sqlx::query_as("SELECT seq FROM sqlite_sequence WHERE name = $1")
        .bind(table)
        .fetch_optional(source)
        .await?;
    let text = format!(
        "SELECT setval(pg_get_serial_sequence($1, $2), GREATEST($3, MAX({0}), 1), GREATEST($3, MAX({0})) >= 1) FROM {1}",
        quote_name(column),
        quote_name(table)
    );
    sqlx::query(statement(text))
        .bind(table)
        .bind(column)
        .bind(given.map_or(0, |(given,)| given))
        .execute(target)
        .await?;
    Ok(())
}

fn quote_name(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Returns a statement that contains only names of the schema.
fn statement(text: String) -> sqlx::SqlStr {
    AssertSqlSafe(text).into_sql_str()
}

fn invalid(what: String) -> StoreError {
    StoreError::Invalid { what }
}
