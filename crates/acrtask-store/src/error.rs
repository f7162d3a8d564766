//! Why the store could not do what it was asked for. Callers tell apart what they can answer for themselves (not found,
//! conflict, invalid) from what may pass (unavailable) and from what is a fault (database).

use sqlx::error::{DatabaseError, ErrorKind};

use crate::QuotaExceeded;

/// Why the store could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// There is no such thing.
    #[error("there is no {what}")]
    NotFound {
        /// What was looked for: `run rabc`.
        what: String,
    },
    /// Something that is there already, or was changed meanwhile, is in the way.
    #[error("{what}")]
    Conflict {
        /// In one sentence without a full stop.
        what: String,
    },
    /// What the caller gave can mean nothing.
    #[error("{what}")]
    Invalid {
        /// In one sentence without a full stop.
        what: String,
    },
    /// A quota is used up.
    #[error(transparent)]
    Quota(Box<QuotaExceeded>),
    /// The database was made by a newer program.
    #[error(
        "the database is newer than this program: it has the migration {found}, this program ends at {known}; \
         start the program that made it, or a newer one"
    )]
    Newer {
        /// The first migration that this program does not know.
        found: i64,
        /// The last one that it does know.
        known: i64,
    },
    /// The database cannot be reached now; it may be again later.
    #[error("the database cannot be reached")]
    Unavailable(#[source] sqlx::Error),
    /// The database refused, or holds what this program cannot read.
    #[error("the database failed")]
    Database(#[source] sqlx::Error),
}

/// What the store's functions return.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

impl StoreError {
    pub(crate) fn not_found(what: impl Into<String>) -> Self {
        Self::NotFound { what: what.into() }
    }

    pub(crate) fn conflict(what: impl Into<String>) -> Self {
        Self::Conflict { what: what.into() }
    }

    /// A row that holds what nothing of this program wrote.
    pub(crate) fn corrupt(what: impl std::fmt::Display) -> Self {
        Self::Database(sqlx::Error::Decode(what.to_string().into()))
    }

    /// True where the same call may succeed later without anybody's help.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}

impl From<QuotaExceeded> for StoreError {
    fn from(exceeded: QuotaExceeded) -> Self {
        Self::Quota(Box::new(exceeded))
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let passing = match &error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => true,
            sqlx::Error::Database(error) => is_passing(error.as_ref()),
            _ => false,
        };
        if passing {
            Self::Unavailable(error)
        } else {
            Self::Database(error)
        }
    }
}

/// PostgreSQL: connections (08), resources (53), shutting down or starting (57P0x), a deadlock (40), a lock that another
/// server holds for too long (55P03), a transaction that was given up because we slept in it (25P03).
/// SQLite: busy, locked, out of space.
fn is_passing(error: &dyn DatabaseError) -> bool {
    let Some(code) = error.code() else {
        return false;
    };
    match code.len() {
        5 => ["08", "25P03", "40", "53", "55P03", "57P0"]
            .iter()
            .any(|class| code.starts_with(class)),
        _ => code
            .parse::<u32>()
            .is_ok_and(|code| matches!(code & 0xff, 5 | 6 | 13)),
    }
}

/// True where a row with the same unique key is there already.
pub(crate) fn is_unique_violation(error: &StoreError) -> bool {
    matches!(error, StoreError::Database(sqlx::Error::Database(error))
        if error.kind() == ErrorKind::UniqueViolation)
}
