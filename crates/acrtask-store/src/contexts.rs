//! Uploaded contexts: parts that are blobs, in order, and whether all of them are there.

use acrtask_model::Digest;

use crate::{Ms, Result, Store, StoreError};

/// A part of a context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Where it begins.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// The blob that holds it.
    pub blob: String,
}

/// An uploaded context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextRow {
    /// Its id.
    pub id: String,
    /// Bytes in all.
    pub size: u64,
    /// Of all of it.
    pub digest: Digest,
    /// Bytes that are there.
    pub received: u64,
    /// All of it is there and its digest is right.
    pub complete: bool,
    /// Its parts, in order.
    pub parts: Vec<Part>,
}

impl Store {
    /// A new context; or, where a complete one has this digest and size, that one.
    pub async fn create_context(
        &self,
        id: &str,
        size: u64,
        digest: &Digest,
        now: Ms,
    ) -> Result<ContextRow> {
        let _ = (size, digest, now);
        Err(StoreError::not_found(format!("context {id}")))
    }

    /// A context.
    pub async fn context(&self, id: &str) -> Result<ContextRow> {
        Err(StoreError::not_found(format!("context {id}")))
    }

    /// Adds a part; `Conflict` unless it begins where the last one ended.
    pub async fn add_part(
        &self,
        id: &str,
        offset: u64,
        length: u64,
        blob: &str,
        now: Ms,
    ) -> Result<ContextRow> {
        let _ = (offset, length, blob, now);
        Err(StoreError::not_found(format!("context {id}")))
    }

    /// Says that all of it is there and that its digest was right; `Conflict` unless every byte is there.
    pub async fn complete_context(&self, id: &str, now: Ms) -> Result<ContextRow> {
        let _ = now;
        Err(StoreError::not_found(format!("context {id}")))
    }

    /// Its digest was wrong: it begins anew. Gives the blobs to delete.
    pub async fn reset_context(&self, id: &str) -> Result<Vec<String>> {
        Err(StoreError::not_found(format!("context {id}")))
    }
}
