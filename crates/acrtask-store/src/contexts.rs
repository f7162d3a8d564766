//! Uploaded contexts: ordered parts in blobs, and completeness.

use acrtask_api::quota::{QuotaKind, QuotaSubject};
use acrtask_model::{Digest, Principal, count};
use sqlx::FromRow;

use crate::{
    Ms, Result, Store, StoreError,
    db::{Tx, args, locked},
    error::is_unique_violation,
    from_json, quotas, run_state,
};

/// A part of a context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Position in the context, in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// Key of the blob.
    pub blob: String,
}

/// An uploaded context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextRow {
    /// Id of the context.
    pub id: String,
    /// Total size in bytes.
    pub size: u64,
    /// Digest of the whole context.
    pub digest: Digest,
    /// Number of stored bytes.
    pub received: u64,
    /// All bytes are stored and the digest is verified.
    pub complete: bool,
    /// Principal that uploads it. `None`: not recorded; only reruns can use the files.
    pub owner: Option<Principal>,
}

#[derive(Debug, FromRow)]
struct RawContext {
    id: String,
    size: i64,
    digest: String,
    received: i64,
    complete: i64,
    owner: String,
}

fn context(raw: RawContext) -> Result<ContextRow> {
    Ok(ContextRow {
        size: run_state::to_u64(raw.size)?,
        digest: raw.digest.parse().map_err(StoreError::corrupt)?,
        received: run_state::to_u64(raw.received)?,
        complete: raw.complete != 0,
        owner: match raw.owner.as_str() {
            "" => None,
            owner => Some(from_json(owner)?),
        },
        id: raw.id,
    })
}

fn missing(id: &str) -> StoreError {
    StoreError::not_found(format!("context {id}"))
}

/// Reads a context and locks it until the end of the transaction.
pub(crate) async fn lock_context(tx: &mut Tx, id: &str) -> Result<ContextRow> {
    let raw: Option<RawContext> = tx
        .fetch_optional(
            locked!(
                "SELECT id, size, digest, received, complete, owner FROM contexts WHERE id = $1"
            ),
            args![id],
        )
        .await?;
    context(raw.ok_or_else(|| missing(id))?)
}

impl Store {
    /// Creates a context of `owner`, or returns a complete one of the same owner with the same
    /// digest and size. Contexts of other owners are never returned: knowing a digest gives no
    /// access.
    pub async fn create_context(
        &self,
        id: &str,
        size: u64,
        digest: &Digest,
        owner: &Principal,
        now: Ms,
    ) -> Result<ContextRow> {
        self.create_context_within(id, size, digest, owner, None, now)
            .await
    }

    /// Creates a context as [`Store::create_context`] does, and counts it against the quotas of
    /// `charged_to`.
    pub async fn create_context_within(
        &self,
        id: &str,
        size: u64,
        digest: &Digest,
        owner: &Principal,
        charged_to: Option<&str>,
        now: Ms,
    ) -> Result<ContextRow> {
        let owner = owner.key();
        let mut tx = self.db.begin().await?;
        let existing: Option<(String,)> = tx
            .fetch_optional(
                locked!(
                    "SELECT id FROM contexts WHERE digest = $1 AND size = $2 AND owner = $3 AND complete = 1 \
                     ORDER BY id LIMIT 1"
                ),
                args![digest.as_str(), size, owner.as_str()],
            )
            .await?;
        let id = match existing {
            Some((existing,)) => {
                tx.exec(
                    "UPDATE contexts SET last_used_at = $2 WHERE id = $1",
                    args![existing.as_str(), now],
                )
                .await?;
                existing
            }
            None => {
                if let Some(by) = charged_to {
                    let by = [QuotaSubject::Token(by.to_owned())];
                    for (kind, more) in [
                        (QuotaKind::Contexts, 1),
                        (QuotaKind::ContextBytes, size.max(quotas::MIN_CONTEXT)),
                        (QuotaKind::UnfinishedContexts, 1),
                    ] {
                        quotas::check_quota(&mut tx, &by, kind, more, now).await?;
                    }
                }
                let made = tx
                    .exec(
                        "INSERT INTO contexts (id, size, digest, created_at, last_used_at, owner) \
                         VALUES ($1, $2, $3, $4, $4, $5)",
                        args![id, size, digest.as_str(), now, owner.as_str()],
                    )
                    .await;
                match made {
                    Err(error) if is_unique_violation(&error) => {
                        return Err(StoreError::conflict(format!(
                            "there is a context {id} already"
                        )));
                    }
                    other => other?,
                };
                id.to_owned()
            }
        };
        let row = lock_context(&mut tx, &id).await?;
        tx.commit().await?;
        Ok(row)
    }

    /// Returns one context.
    pub async fn context(&self, id: &str) -> Result<ContextRow> {
        let raw: Option<RawContext> = self
            .db
            .fetch_optional(
                "SELECT id, size, digest, received, complete, owner FROM contexts WHERE id = $1",
                args![id],
            )
            .await?;
        context(raw.ok_or_else(|| missing(id))?)
    }

    /// Returns the parts of a context in order.
    pub async fn context_parts(&self, id: &str) -> Result<Vec<Part>> {
        let parts: Vec<(i64, i64, String)> = self
            .db
            .fetch_all(
                "SELECT offset_bytes, length, blob FROM context_parts WHERE context_id = $1 \
                 ORDER BY offset_bytes",
                args![id],
            )
            .await?;
        let parts = parts.into_iter().map(|(offset, length, blob)| {
            Ok(Part {
                offset: run_state::to_u64(offset)?,
                length: run_state::to_u64(length)?,
                blob,
            })
        });
        parts.collect()
    }

    /// Adds a part. Fails with `Conflict` unless the part starts at the end of the last one.
    pub async fn add_part(
        &self,
        id: &str,
        offset: u64,
        length: u64,
        blob: &str,
        now: Ms,
    ) -> Result<ContextRow> {
        let mut tx = self.db.begin().await?;
        let existing = lock_context(&mut tx, id).await?;
        if existing.complete {
            return Err(StoreError::conflict(format!("context {id} is complete")));
        }
        if offset != existing.received {
            return Err(StoreError::conflict(format!(
                "the next part of context {id} starts at {}, not at {offset}",
                existing.received
            )));
        }
        let end = offset
            .checked_add(length)
            .filter(|end| *end <= existing.size);
        let Some(end) = end else {
            return Err(StoreError::Invalid {
                what: format!(
                    "a part of {} at {offset} ends after the {} of context {id}",
                    count(length, "byte"),
                    count(existing.size, "byte")
                ),
            });
        };
        tx.exec(
            "INSERT INTO context_parts (context_id, offset_bytes, length, blob) VALUES ($1, $2, $3, $4)",
            args![id, offset, length, blob],
        )
        .await?;
        tx.exec(
            "UPDATE contexts SET received = $2, last_used_at = $3 WHERE id = $1",
            args![id, end, now],
        )
        .await?;
        tx.commit().await?;
        Ok(ContextRow {
            received: end,
            ..existing
        })
    }

    /// Marks a context as complete after its digest was verified. Fails with `Conflict` if bytes
    /// are missing.
    pub async fn complete_context(&self, id: &str, now: Ms) -> Result<ContextRow> {
        let mut tx = self.db.begin().await?;
        let existing = lock_context(&mut tx, id).await?;
        if existing.received != existing.size {
            return Err(StoreError::conflict(format!(
                "context {id} has {} of its {}",
                existing.received,
                count(existing.size, "byte")
            )));
        }
        tx.exec(
            "UPDATE contexts SET complete = 1, last_used_at = $2 WHERE id = $1",
            args![id, now],
        )
        .await?;
        let row = lock_context(&mut tx, id).await?;
        tx.commit().await?;
        Ok(row)
    }

    /// Removes all parts after a digest mismatch, so that the upload can restart. Returns the blobs
    /// to delete.
    pub async fn reset_context(&self, id: &str) -> Result<Vec<String>> {
        let mut tx = self.db.begin().await?;
        let existing = lock_context(&mut tx, id).await?;
        if existing.complete {
            return Err(StoreError::conflict(format!("context {id} is complete")));
        }
        let blobs: Vec<(String,)> = tx
            .fetch_all(
                "SELECT blob FROM context_parts WHERE context_id = $1 ORDER BY offset_bytes",
                args![id],
            )
            .await?;
        tx.exec("DELETE FROM context_parts WHERE context_id = $1", args![id])
            .await?;
        tx.exec("UPDATE contexts SET received = 0 WHERE id = $1", args![id])
            .await?;
        tx.commit().await?;
        Ok(blobs.into_iter().map(|(blob,)| blob).collect())
    }
}
