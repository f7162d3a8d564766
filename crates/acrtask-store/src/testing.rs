//! Database functions for tests and benchmarks only.

use std::{
    str::FromStr,
    time::{Duration, Instant},
};

use sqlx::{
    AssertSqlSafe, Connection, PgConnection, SqliteConnection,
    postgres::PgConnectOptions,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use crate::{Result, StoreError};

const TABLE: &str = "CREATE TABLE bare (id BIGINT PRIMARY KEY, state TEXT NOT NULL, runner TEXT)";
const INDEX: &str = "CREATE INDEX bare_queue ON bare (id) WHERE state = 'queued'";
const ROW: &str = "INSERT INTO bare (id, state) VALUES ($1, 'queued')";

/// Returns every row of every table of a PostgreSQL database as JSON, with bytes in hexadecimal.
///
/// # Errors
/// The server is unreachable or rejects a statement.
pub async fn dump(url: &str) -> Result<Vec<String>> {
    let mut connection = PgConnection::connect_with(&PgConnectOptions::from_str(url)?).await?;
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT table_name::text FROM information_schema.tables WHERE table_schema = 'public'",
    )
    .fetch_all(&mut connection)
    .await?;
    let mut rows = Vec::new();
    for table in tables {
        let query = format!("SELECT to_jsonb(t)::text FROM \"{table}\" t");
        let found: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(query))
            .fetch_all(&mut connection)
            .await?;
        rows.extend(found);
    }
    Ok(rows)
}

/// Creates the empty database `name` on the server of `url`, replacing an existing one. Returns its
/// URL.
///
/// # Errors
/// The server is unreachable or rejects a statement.
pub async fn create_database(url: &str, name: &str) -> Result<String> {
    let options = PgConnectOptions::from_str(url).map_err(StoreError::from)?;
    let mut connection = PgConnection::connect_with(&options).await?;
    for text in [
        format!("DROP DATABASE IF EXISTS \"{name}\" WITH (FORCE)"),
        format!("CREATE DATABASE \"{name}\""),
    ] {
        sqlx::query(AssertSqlSafe(text))
            .execute(&mut connection)
            .await?;
    }
    let server = url.rsplit_once('/').map_or(url, |(server, _)| server);
    Ok(format!("{server}/{name}"))
}

/// Completes the deferred work after filling a database: checkpoints its log, updates statistics,
/// and cleans up rows. A later benchmark then measures the database and not the filling.
///
/// # Errors
/// The database cannot be opened or written to.
pub async fn run_maintenance(url: &str) -> Result<()> {
    if url.starts_with("sqlite:") {
        let options = SqliteConnectOptions::from_str(url)?;
        let mut connection = SqliteConnection::connect_with(&options).await?;
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)")
            .execute(&mut connection)
            .await?;
        return Ok(());
    }
    let options = PgConnectOptions::from_str(url)?;
    let mut connection = PgConnection::connect_with(&options).await?;
    for text in ["VACUUM ANALYZE", "CHECKPOINT"] {
        sqlx::query(text).execute(&mut connection).await?;
    }
    Ok(())
}

/// Measures `claims` minimal claims: each updates one row of an indexed table in its own
/// transaction, as durably as the store does. Creates that table in `url`, which must not have one.
///
/// # Errors
/// The database cannot be opened or written to.
pub async fn bare_claims(url: &str, claims: u32) -> Result<Duration> {
    if url.starts_with("sqlite:") {
        let options = SqliteConnectOptions::from_str(url)?
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full);
        let mut connection = SqliteConnection::connect_with(&options).await?;
        let mut filling = connection.begin().await?;
        for text in [TABLE, INDEX] {
            sqlx::query(text).execute(&mut *filling).await?;
        }
        for id in 0..i64::from(claims) {
            sqlx::query(ROW).bind(id).execute(&mut *filling).await?;
        }
        filling.commit().await?;
        let begun = Instant::now();
        for _ in 0..claims {
            let mut claim = connection.begin_with("BEGIN IMMEDIATE").await?;
            sqlx::query(
                "UPDATE bare SET state = 'leased', runner = 'r' WHERE id = \
                 (SELECT id FROM bare WHERE state = 'queued' ORDER BY id LIMIT 1) RETURNING id",
            )
            .fetch_one(&mut *claim)
            .await?;
            claim.commit().await?;
        }
        return Ok(begun.elapsed());
    }
    let options = PgConnectOptions::from_str(url)?;
    let mut connection = PgConnection::connect_with(&options).await?;
    let mut filling = connection.begin().await?;
    for text in [TABLE, INDEX] {
        sqlx::query(text).execute(&mut *filling).await?;
    }
    for id in 0..i64::from(claims) {
        sqlx::query(ROW).bind(id).execute(&mut *filling).await?;
    }
    filling.commit().await?;
    let begun = Instant::now();
    for _ in 0..claims {
        sqlx::query(
            "UPDATE bare SET state = 'leased', runner = 'r' WHERE id = (SELECT id FROM bare \
             WHERE state = 'queued' ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING id",
        )
        .fetch_one(&mut connection)
        .await?;
    }
    Ok(begun.elapsed())
}
