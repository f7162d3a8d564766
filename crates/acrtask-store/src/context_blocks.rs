//! Uploads of unannounced size: blocks in any order, then a list that completes the context.
//!
//! Invariants:
//! - The size of an incomplete context is the size of its stored blocks, so that quotas count them.
//! - A completed context has no blocks. Its parts are the blocks of the list.

use acrtask_api::quota::{QuotaKind, QuotaSubject};
use acrtask_model::{Digest, Principal};
use sqlx::FromRow;

use crate::{
    ContextRow, Ms, Part, Result, Store, StoreError,
    contexts::lock_context,
    db::{Tx, args},
    quotas, run_state,
};

/// Most blocks of one upload.
const MAX_BLOCKS: i64 = 10_000;
/// Digest of no bytes, until the upload is complete.
const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// A stored block of an upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockRow {
    /// Id that the client chose.
    pub block: String,
    /// Length in bytes.
    pub length: u64,
    /// Key of the blob.
    pub blob: String,
}

#[derive(Debug, FromRow)]
struct RawBlock {
    block: String,
    length: i64,
    blob: String,
}

async fn list_blocks(tx: &mut Tx, id: &str) -> Result<Vec<BlockRow>> {
    let rows: Vec<RawBlock> = tx
        .fetch_all(
            "SELECT block, length, blob FROM context_blocks WHERE context_id = $1 ORDER BY block",
            args![id],
        )
        .await?;
    rows.into_iter()
        .map(|raw| {
            Ok(BlockRow {
                length: run_state::to_u64(raw.length)?,
                block: raw.block,
                blob: raw.blob,
            })
        })
        .collect()
}

impl Store {
    /// Creates a context of unannounced size.
    pub async fn create_upload(
        &self,
        id: &str,
        owner: &Principal,
        charged_to: Option<&str>,
        now: Ms,
    ) -> Result<()> {
        let mut tx = self.db.begin().await?;
        if let Some(by) = charged_to {
            let by = [QuotaSubject::Token(by.to_owned())];
            for kind in [QuotaKind::Contexts, QuotaKind::UnfinishedContexts] {
                quotas::check_quota(&mut tx, &by, kind, 1, now).await?;
            }
        }
        tx.exec(
            "INSERT INTO contexts (id, size, digest, created_at, last_used_at, owner) VALUES ($1, 0, $2, $3, $3, $4)",
            args![id, EMPTY, now, owner.key()],
        )
        .await?;
        tx.commit().await
    }

    /// Checks that `more` bytes fit into an incomplete upload and into the quotas of `charged_to`.
    /// Fails with `Conflict` if the upload is complete.
    pub async fn check_block(
        &self,
        id: &str,
        more: u64,
        limit: u64,
        charged_to: Option<&str>,
        now: Ms,
    ) -> Result<()> {
        let mut tx = self.db.begin().await?;
        check_block(&mut tx, id, more, limit, charged_to, now).await?;
        tx.commit().await
    }

    /// Adds a stored block to an incomplete upload. Returns the blob of the block that it replaces.
    pub async fn add_block(
        &self,
        id: &str,
        block: &BlockRow,
        limit: u64,
        charged_to: Option<&str>,
        now: Ms,
    ) -> Result<Option<String>> {
        let mut tx = self.db.begin().await?;
        let size = check_block(&mut tx, id, block.length, limit, charged_to, now).await?;
        let existing: Option<(i64, String)> = tx
            .fetch_optional(
                "SELECT length, blob FROM context_blocks WHERE context_id = $1 AND block = $2",
                args![id, block.block.as_str()],
            )
            .await?;
        let replaced = match &existing {
            Some((length, _)) => run_state::to_u64(*length)?,
            None => 0,
        };
        tx.exec(
            "INSERT INTO context_blocks (context_id, block, length, blob) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (context_id, block) DO UPDATE SET length = excluded.length, blob = excluded.blob",
            args![id, block.block.as_str(), block.length, block.blob.as_str()],
        )
        .await?;
        tx.exec(
            "UPDATE contexts SET size = $2, last_used_at = $3 WHERE id = $1",
            args![id, size + block.length - replaced, now],
        )
        .await?;
        tx.commit().await?;
        Ok(existing.map(|(_, blob)| blob))
    }

    /// Returns all blocks of an upload by id.
    pub async fn context_blocks(&self, id: &str) -> Result<Vec<BlockRow>> {
        let mut tx = self.db.begin().await?;
        let blocks = list_blocks(&mut tx, id).await?;
        tx.commit().await?;
        Ok(blocks)
    }

    /// Completes an upload with `blocks` in this order. Fails with `Conflict` if one of them was
    /// replaced meanwhile. Returns the context and the blobs of the other blocks.
    pub async fn complete_blocks(
        &self,
        id: &str,
        blocks: &[BlockRow],
        digest: &Digest,
        now: Ms,
    ) -> Result<(ContextRow, Vec<String>)> {
        let mut tx = self.db.begin().await?;
        let context = lock_context(&mut tx, id).await?;
        let stored = list_blocks(&mut tx, id).await?;
        if context.complete || !blocks.iter().all(|block| stored.contains(block)) {
            return Err(StoreError::conflict(format!(
                "context {id} was changed meanwhile"
            )));
        }
        let mut parts = Vec::with_capacity(blocks.len());
        let mut offset = 0;
        for block in blocks {
            parts.push(Part {
                offset,
                length: block.length,
                blob: block.blob.clone(),
            });
            offset += block.length;
        }
        tx.exec(
            "DELETE FROM context_blocks WHERE context_id = $1",
            args![id],
        )
        .await?;
        tx.exec("DELETE FROM context_parts WHERE context_id = $1", args![id])
            .await?;
        for part in &parts {
            tx.exec(
                "INSERT INTO context_parts (context_id, offset_bytes, length, blob) VALUES ($1, $2, $3, $4)",
                args![id, part.offset, part.length, part.blob.as_str()],
            )
            .await?;
        }
        tx.exec(
            "UPDATE contexts SET size = $2, received = $2, digest = $3, complete = 1, last_used_at = $4 WHERE id = $1",
            args![id, offset, digest.as_str(), now],
        )
        .await?;
        let row = lock_context(&mut tx, id).await?;
        tx.commit().await?;
        let unused = stored.into_iter().filter(|block| !blocks.contains(block));
        Ok((row, unused.map(|block| block.blob).collect()))
    }
}

/// Checks that `more` bytes fit. Returns the size of the stored blocks.
async fn check_block(
    tx: &mut Tx,
    id: &str,
    more: u64,
    limit: u64,
    charged_to: Option<&str>,
    now: Ms,
) -> Result<u64> {
    if let Some(by) = charged_to {
        let by = [QuotaSubject::Token(by.to_owned())];
        quotas::check_quota(tx, &by, QuotaKind::ContextBytes, more, now).await?;
    }
    let context = lock_context(tx, id).await?;
    if context.complete || context.received > 0 {
        return Err(StoreError::conflict(format!("context {id} is complete")));
    }
    let count: Option<(i64,)> = tx
        .fetch_optional(
            "SELECT COUNT(*) FROM context_blocks WHERE context_id = $1",
            args![id],
        )
        .await?;
    if count.is_some_and(|(count,)| count >= MAX_BLOCKS) {
        return Err(StoreError::Invalid {
            what: format!("context {id} has {MAX_BLOCKS} blocks: send larger blocks"),
        });
    }
    match context.size.checked_add(more) {
        Some(size) if size <= limit => Ok(context.size),
        _ => Err(StoreError::Invalid {
            what: format!(
                "context {id} is larger than {limit} bytes, the `context-limit` of this server"
            ),
        }),
    }
}
