//! Closing a database, and copies of a SQLite database that a server uses meanwhile.

use std::{path::Path, str::FromStr};

use sqlx::{ConnectOptions, Connection, sqlite::SqliteConnectOptions};

use super::{Db, WAIT};
use crate::{Result, StoreError};

impl Db {
    /// Moves SQLite's write-ahead log into the database file and closes all connections, so that the
    /// file alone holds all data. Statements fail afterwards.
    pub(crate) async fn close(&self) -> Result<()> {
        match self {
            Self::Sqlite { read, write } => {
                let (busy, ..): (i64, i64, i64) = sqlx::query_as("PRAGMA wal_checkpoint(TRUNCATE)")
                    .fetch_one(write)
                    .await?;
                if busy != 0 {
                    tracing::warn!(
                        "another program reads the database: its write-ahead log stays beside it"
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

/// Returns the options for a SQLite database that exists.
pub(super) fn existing(url: &str) -> Result<SqliteConnectOptions> {
    let invalid = |what: String| StoreError::Invalid { what };
    let options = SqliteConnectOptions::from_str(url)
        .map_err(|error| invalid(format!("`{url}` names no SQLite database: {error}")))?
        .create_if_missing(false)
        .busy_timeout(WAIT);
    let file = options.get_filename();
    if file.is_file() {
        Ok(options)
    } else {
        Err(invalid(format!("there is no database {}", file.display())))
    }
}

/// Checks that the database of `url` exists, if it is a file. Opening it would make an empty one.
///
/// # Errors
/// [`StoreError::Invalid`] if there is no such file.
pub fn check_database_exists(url: &str) -> Result<()> {
    if url.starts_with("sqlite:") {
        existing(url)?;
    }
    Ok(())
}

/// Writes a consistent copy of the SQLite database of `url` to the new file `target`. Servers may go
/// on using the database, and its tables stay at their version.
///
/// # Errors
/// [`StoreError::Invalid`] if `url` names no SQLite database that is there.
pub async fn snapshot_sqlite(url: &str, target: &Path) -> Result<()> {
    let options = existing(url)?;
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
