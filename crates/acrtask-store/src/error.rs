//! Errors of the store. Callers can handle some of them: not found, conflict and invalid.
//! "Unavailable" errors may disappear on a retry; "database" errors are faults.

use sqlx::error::{DatabaseError, ErrorKind};

use crate::QuotaExceeded;

/// Error of a store operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The requested entity does not exist.
    #[error("there is no {what}")]
    NotFound {
        /// Kind and name of the entity, such as `run rabc`.
        what: String,
    },
    /// An existing entity or a concurrent change prevents the operation.
    #[error("{what}")]
    Conflict {
        /// Message: one sentence without a full stop.
        what: String,
    },
    /// An argument is invalid.
    #[error("{what}")]
    Invalid {
        /// Message: one sentence without a full stop.
        what: String,
    },
    /// A quota is exceeded.
    #[error(transparent)]
    Quota(Box<QuotaExceeded>),
    /// A newer program created the database.
    #[error(
        "the database is newer than this program: it has the migration {found}, this program ends at {supported}; \
         start the program that made it, or a newer one"
    )]
    Newer {
        /// First migration that this program does not have.
        found: i64,
        /// Last migration of this program.
        supported: i64,
    },
    /// The database is unreachable. A later call may succeed.
    #[error("the database cannot be reached")]
    Unavailable(#[source] sqlx::Error),
    /// The database rejected the operation, or contains a value that this program cannot read.
    #[error("the database failed")]
    Database(#[source] sqlx::Error),
}

/// Result of a store operation.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

impl StoreError {
    pub(crate) fn not_found(what: impl Into<String>) -> Self {
        Self::NotFound { what: what.into() }
    }

    pub(crate) fn conflict(what: impl Into<String>) -> Self {
        Self::Conflict { what: what.into() }
    }

    /// Returns the error for a stored value that this program cannot have written.
    pub(crate) fn corrupt(what: impl std::fmt::Display) -> Self {
        Self::Database(sqlx::Error::Decode(what.to_string().into()))
    }

    /// Returns `true` if the same call may succeed later without intervention.
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
        let is_temporary = match &error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => true,
            sqlx::Error::Database(error) => is_temporary(error.as_ref()),
            _ => false,
        };
        if is_temporary {
            Self::Unavailable(error)
        } else {
            Self::Database(error)
        }
    }
}

/// Returns `true` for errors that may disappear on a retry.
///
/// PostgreSQL: connections (08), resources (53), shutdown or startup (57P0x), a deadlock (40), a
/// lock that another server keeps too long (55P03), and a transaction that the database ended
/// because this server was idle in it (25P03). SQLite: busy, locked, out of space.
fn is_temporary(error: &dyn DatabaseError) -> bool {
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

/// Returns `true` if a row with the same unique key exists.
pub(crate) fn is_unique_violation(error: &StoreError) -> bool {
    matches!(error, StoreError::Database(sqlx::Error::Database(error))
        if error.kind() == ErrorKind::UniqueViolation)
}
