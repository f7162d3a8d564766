//! What the control plane knows, in SQLite or PostgreSQL; the only user of sqlx.
//!
//! One interface, [`Store`], and one file an entity. Invariants:
//! - The database is the only queue; nothing is kept in memory between two calls.
//! - Every change of a run is guarded by its state and attempt, so that of two writers one wins and the other is told.
//! - Times are given by the caller and stored as milliseconds since 1970 in UTC; no query asks the database's clock.
//! - A secret comes in and goes out encrypted; nothing here has the key.
//! - The same tests pass on both databases.
