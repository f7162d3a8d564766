//! Uploaded contexts: parts that are blobs, in order, and whether all of them are there.

use acrtask_api::quota::{QuotaKind, QuotaSubject};
use acrtask_model::{Digest, Principal, count};
use sqlx::FromRow;

use crate::{
    Ms, Result, Store, StoreError,
    db::{Tx, args, locked},
    error::is_unique_violation,
    from_json, lives, quotas,
};

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
    /// The principal that uploads it. `None`: that is not recorded, and the files serve only reruns.
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

type RawPart = (i64, i64, String);

const PARTS: &str =
    "SELECT begins, length, blob FROM context_parts WHERE context_id = $1 ORDER BY begins";

fn context(raw: RawContext, parts: Vec<RawPart>) -> Result<ContextRow> {
    let parts = parts.into_iter().map(|(offset, length, blob)| {
        Ok(Part {
            offset: lives::size(offset)?,
            length: lives::size(length)?,
            blob,
        })
    });
    Ok(ContextRow {
        size: lives::size(raw.size)?,
        digest: raw.digest.parse().map_err(StoreError::corrupt)?,
        received: lives::size(raw.received)?,
        complete: raw.complete != 0,
        owner: match raw.owner.as_str() {
            "" => None,
            owner => Some(from_json(owner)?),
        },
        parts: parts.collect::<Result<_>>()?,
        id: raw.id,
    })
}

fn missing(id: &str) -> StoreError {
    StoreError::not_found(format!("context {id}"))
}

/// A context, locked until the end of the transaction.
async fn lock(tx: &mut Tx, id: &str) -> Result<ContextRow> {
    let raw: Option<RawContext> = tx
        .row(
            locked!(
                "SELECT id, size, digest, received, complete, owner FROM contexts WHERE id = $1"
            ),
            args![id],
        )
        .await?;
    let raw = raw.ok_or_else(|| missing(id))?;
    let parts = tx.rows(PARTS, args![id]).await?;
    context(raw, parts)
}

impl Store {
    /// Creates a context of `owner`, or returns the complete one of the same owner that has this digest and size. Those of
    /// others are not found: their digests say nothing, and give nothing.
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

    /// Creates a context as [`Store::create_context`] does, and counts it against the quotas of `charged_to`.
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
        let mut tx = self.db.write().await?;
        let same: Option<(String,)> = tx
            .row(
                locked!(
                    "SELECT id FROM contexts WHERE digest = $1 AND size = $2 AND owner = $3 AND complete = 1 \
                     ORDER BY id LIMIT 1"
                ),
                args![digest.as_str(), size, owner.as_str()],
            )
            .await?;
        let id = match same {
            Some((same,)) => {
                tx.exec(
                    "UPDATE contexts SET last_used_at = $2 WHERE id = $1",
                    args![same.as_str(), now],
                )
                .await?;
                same
            }
            None => {
                if let Some(by) = charged_to {
                    let by = [QuotaSubject::Token(by.to_owned())];
                    for (kind, more) in [
                        (QuotaKind::Contexts, 1),
                        (QuotaKind::ContextBytes, size),
                        (QuotaKind::UnfinishedContexts, 1),
                    ] {
                        quotas::need(&mut tx, &by, kind, more, now).await?;
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
        let row = lock(&mut tx, &id).await?;
        tx.commit().await?;
        Ok(row)
    }

    /// A context.
    pub async fn context(&self, id: &str) -> Result<ContextRow> {
        let raw: Option<RawContext> = self
            .db
            .row(
                "SELECT id, size, digest, received, complete, owner FROM contexts WHERE id = $1",
                args![id],
            )
            .await?;
        let raw = raw.ok_or_else(|| missing(id))?;
        let parts = self.db.rows(PARTS, args![id]).await?;
        context(raw, parts)
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
        let mut tx = self.db.write().await?;
        let there = lock(&mut tx, id).await?;
        if there.complete {
            return Err(StoreError::conflict(format!("context {id} is complete")));
        }
        if offset != there.received {
            return Err(StoreError::conflict(format!(
                "the next part of context {id} begins at {}, not at {offset}",
                there.received
            )));
        }
        let end = offset.checked_add(length).filter(|end| *end <= there.size);
        let Some(end) = end else {
            return Err(StoreError::Invalid {
                what: format!(
                    "a part of {} at {offset} goes beyond the {} of context {id}",
                    count(length, "byte"),
                    count(there.size, "byte")
                ),
            });
        };
        tx.exec(
            "INSERT INTO context_parts (context_id, begins, length, blob) VALUES ($1, $2, $3, $4)",
            args![id, offset, length, blob],
        )
        .await?;
        tx.exec(
            "UPDATE contexts SET received = $2, last_used_at = $3 WHERE id = $1",
            args![id, end, now],
        )
        .await?;
        let row = lock(&mut tx, id).await?;
        tx.commit().await?;
        Ok(row)
    }

    /// Says that all of it is there and that its digest was right; `Conflict` unless every byte is there.
    pub async fn complete_context(&self, id: &str, now: Ms) -> Result<ContextRow> {
        let mut tx = self.db.write().await?;
        let there = lock(&mut tx, id).await?;
        if there.received != there.size {
            return Err(StoreError::conflict(format!(
                "context {id} has {} of its {}",
                there.received,
                count(there.size, "byte")
            )));
        }
        tx.exec(
            "UPDATE contexts SET complete = 1, last_used_at = $2 WHERE id = $1",
            args![id, now],
        )
        .await?;
        let row = lock(&mut tx, id).await?;
        tx.commit().await?;
        Ok(row)
    }

    /// Its digest was wrong: it begins anew. Gives the blobs to delete.
    pub async fn reset_context(&self, id: &str) -> Result<Vec<String>> {
        let mut tx = self.db.write().await?;
        let there = lock(&mut tx, id).await?;
        if there.complete {
            return Err(StoreError::conflict(format!("context {id} is complete")));
        }
        tx.exec("DELETE FROM context_parts WHERE context_id = $1", args![id])
            .await?;
        tx.exec("UPDATE contexts SET received = 0 WHERE id = $1", args![id])
            .await?;
        tx.commit().await?;
        Ok(there.parts.into_iter().map(|part| part.blob).collect())
    }
}
