//! Shutdown of a database, and copies of a SQLite database while a server uses it.

use std::{path::Path, str::FromStr};

use sqlx::{ConnectOptions, Connection, sqlite::SqliteConnectOptions};

use super::{ACQUIRE_TIMEOUT, Db};
use crate::{Result, StoreError};

impl Db {
    /// Moves SQLite's write-ahead log into the database file and closes all connections. The file
    /// alone then contains all data. Later statements fail.
    pub(crate) async fn close(&self) -> Result<()> {
        match self {
            Self::Sqlite { read, write } => {
                let (busy, ..): (i64, i64, i64) = sqlx::query_as("PRAGMA wal_checkpoint(TRUNCATE)")
                    .fetch_one(write)
                    .await?;
                if busy != 0 {
                    tracing::warn!(
                        "cannot truncate the write-ahead log: another program is reading the database"
                    );
                }
                read.close().await;
                write.close().await;
            }
            Self::Postgres { pool, .. } => pool.close().await,
        }
        Ok(())
    }
}

/// Returns the options for an existing SQLite database.
pub(super) fn existing_database_options(url: &str) -> Result<SqliteConnectOptions> {
    let invalid = |what: String| StoreError::Invalid { what };
    let options = SqliteConnectOptions::from_str(url)
        .map_err(|error| {
            invalid(format!(
                "`{url}` is not a URL of a SQLite database: {error}"
            ))
        })?
        .create_if_missing(false)
        .busy_timeout(ACQUIRE_TIMEOUT);
    let file = options.get_filename();
    if file.is_file() {
        Ok(options)
    } else {
        Err(invalid(format!(
            "the database {} does not exist",
            file.display()
        )))
    }
}

/// Checks that the database of `url` exists if it is a file. Opening it would create an empty one.
///
/// # Errors
/// [`StoreError::Invalid`] if the file does not exist.
pub fn check_database_exists(url: &str) -> Result<()> {
    if url.starts_with("sqlite:") {
        existing_database_options(url)?;
    }
    Ok(())
}

/// Writes a consistent copy of the SQLite database of `url` to the new file `target`. Servers may
/// continue to use the database, and its tables stay at their version.
///
/// # Errors
/// [`StoreError::Invalid`] if `url` does not name an existing SQLite database.
pub async fn snapshot_sqlite(url: &str, target: &Path) -> Result<()> {
    let options = existing_database_options(url)?;
    let name = target.to_str().ok_or_else(|| {
        let what = format!("the name of the copy is not UTF-8: {}", target.display());
        StoreError::Invalid { what }
    })?;
    let mut connection = options.connect().await?;
    sqlx::query("VACUUM INTO $1")
        .bind(name.to_owned())
        .execute(&mut connection)
        .await?;
    connection.close().await?;
    Ok(())
}
