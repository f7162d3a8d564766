//! Promotion and rollback of the tags of a cascade: decisions and progress.
//!
//! `cascades.promotion` is the wanted state; `staged` means undecided. `promoted` and `rolledBack`
//! are complete if `promotion_next_at` is `NULL`; otherwise the work continues at that time.
//!
//! Invariants:
//! - One server at a time works on a cascade, until a deadline that each step extends. Another
//!   server continues after a crash.
//! - The previous digest of a tag is stored before the tag is changed.
//! - An image is recorded together with its tag, as at the end of its run. A rollback restores the
//!   previous record.
//!
//! Left out: registry requests and decisions, which `acrtask-server` makes.

use acrtask_model::{Digest, RunId};
use sqlx::FromRow;

use crate::{
    Ms, Result, Store, StoreError,
    db::{Tx, args, one_of},
    images::{self, digest},
    run_state, runs,
};

/// Promotion state of a cascade.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromotionRow {
    /// Number of the cascade.
    pub id: u64,
    /// `settling`, `active`, `canceling` or `finished`.
    pub phase: String,
    /// The cascade may change, or be retried.
    pub active: bool,
    /// The runs of the cascade push by digest only.
    pub stages_images: bool,
    /// Wanted state: `none`, `staged`, `promoted`, `rolledBack` or `discarded`.
    pub promotion: String,
    /// Time of the decision.
    pub at: Option<Ms>,
    /// Time at which the work continues. `None`: it is complete.
    pub next_at: Option<Ms>,
    /// Reason why the promotion is incomplete or undecided.
    pub error: Option<String>,
}

#[derive(Debug, FromRow)]
struct RawPromotion {
    id: i64,
    phase: String,
    active: i64,
    stages_images: Option<i64>,
    promotion: String,
    promotion_at: Option<i64>,
    promotion_next_at: Option<i64>,
    promotion_error: Option<String>,
}

impl TryFrom<RawPromotion> for PromotionRow {
    type Error = StoreError;

    fn try_from(raw: RawPromotion) -> Result<Self> {
        Ok(Self {
            id: run_state::to_u64(raw.id)?,
            phase: raw.phase,
            active: raw.active != 0,
            stages_images: raw.stages_images == Some(1),
            promotion: raw.promotion,
            at: raw.promotion_at,
            next_at: raw.promotion_next_at,
            error: raw.promotion_error,
        })
    }
}

macro_rules! select_promotions {
    () => {
        "SELECT id, phase, active, stages_images, promotion, promotion_at, promotion_next_at, promotion_error FROM cascades "
    };
}

impl Store {
    /// Returns cascades with an open decision or unfinished work, oldest first.
    pub async fn open_promotions(&self) -> Result<Vec<PromotionRow>> {
        let rows: Vec<RawPromotion> = self
            .db
            .fetch_all(
                concat!(
                    select_promotions!(),
                    "WHERE promotion_next_at IS NOT NULL OR (stages_images = 1 AND (promotion IN ('none', 'staged') \
                     OR (promotion = 'discarded' AND active = 1 AND phase <> 'finished') OR EXISTS (SELECT 1 \
                     FROM cascade_images h WHERE h.cascade_id = cascades.id AND h.state = 'staged'))) ORDER BY id"
                ),
                args![],
            )
            .await?;
        rows.into_iter().map(PromotionRow::try_from).collect()
    }

    /// Returns the promotion state of one cascade.
    pub async fn promotion(&self, id: u64) -> Result<PromotionRow> {
        let raw: Option<RawPromotion> = self
            .db
            .fetch_optional(concat!(select_promotions!(), "WHERE id = $1"), args![id])
            .await?;
        raw.ok_or_else(|| StoreError::not_found(format!("cascade {id}")))?
            .try_into()
    }

    /// Decides that a cascade changes from one of the states `from` to `to`. Returns `false` if it
    /// has another state.
    ///
    /// Stages the images to promote and drops those that stay without a tag. An image whose tag is
    /// being changed counts as changed, so that a rollback restores it.
    pub async fn decide_promotion(
        &self,
        id: u64,
        from: &[&str],
        to: &str,
        by: Option<&str>,
        now: Ms,
    ) -> Result<bool> {
        let mut tx = self.db.begin().await?;
        let from: Vec<String> = from.iter().map(|word| (*word).to_owned()).collect();
        let has_work = matches!(to, "promoted" | "rolledBack");
        // The server that works on the cascade keeps its deadline. No other server starts before
        // it.
        let sql = one_of!(
            "UPDATE cascades SET promotion = $2, promotion_by = $3, promotion_at = $4, promotion_error = NULL, \
             promotion_next_at = CASE WHEN $5 = 0 THEN NULL WHEN promotion_next_at > $4 THEN promotion_next_at ELSE $4 END \
             WHERE id = $1 AND promotion",
            "$6",
            ""
        );
        let won = tx
            .exec(
                sql,
                args![id, to, by.map(str::to_owned), now, has_work, from],
            )
            .await?;
        if won == 0 {
            return Ok(false);
        }
        // The position of a tag that is being changed is unknown until the registry is queried.
        let sql = match to {
            // A new promotion after a rollback replaces anything that was recorded since.
            "promoted" => {
                "UPDATE cascade_images SET changed_at = CASE WHEN state = 'rolledBack' THEN $2 ELSE changed_at END, state = 'staged', \
                 error = NULL WHERE cascade_id = $1 AND (state IN ('discarded', 'rolledBack') \
                 OR (state = 'promoted' AND moving = 1))"
            }
            "staged" => {
                "UPDATE cascade_images SET state = 'staged', error = NULL WHERE cascade_id = $1 AND state = 'discarded' \
                 AND $2 = $2"
            }
            _ => {
                "UPDATE cascade_images SET state = CASE WHEN moving = 1 THEN 'promoted' ELSE 'discarded' END \
                 WHERE cascade_id = $1 AND state = 'staged' AND $2 = $2"
            }
        };
        tx.exec(sql, args![id, now]).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Leases a cascade for its promotion until `until`. Returns `false` if another server has
    /// leased it or the wanted state has changed.
    pub async fn claim_promotion(&self, id: u64, wanted: &str, until: Ms, now: Ms) -> Result<bool> {
        let won = self
            .db
            .exec(
                "UPDATE cascades SET promotion_next_at = $3 WHERE id = $1 AND promotion = $2 AND promotion_next_at <= $4",
                args![id, wanted, until, now],
            )
            .await?;
        Ok(won == 1)
    }

    /// Releases a cascade. The work is complete if `next` is `None`; otherwise it continues then.
    /// If the wanted state has changed, that work starts immediately.
    pub async fn release_promotion(
        &self,
        id: u64,
        wanted: &str,
        error: Option<&str>,
        next: Option<Ms>,
        now: Ms,
    ) -> Result<()> {
        let mut tx = self.db.begin().await?;
        let done = tx
            .exec(
                "UPDATE cascades SET promotion_error = $3, promotion_next_at = $4 WHERE id = $1 AND promotion = $2",
                args![id, wanted, error.map(str::to_owned), next],
            )
            .await?;
        if done == 0 {
            tx.exec(
                "UPDATE cascades SET promotion_next_at = $2 WHERE id = $1 AND promotion_next_at IS NOT NULL",
                args![id, now],
            )
            .await?;
        }
        tx.commit().await
    }

    /// Stores the previous digest of a staged image's tag before the tag is changed. `before` is
    /// `None` if the tag has the image's digest already. Returns `false` if the image must not be
    /// promoted anymore.
    pub async fn store_previous_digest(
        &self,
        id: u64,
        name: &str,
        after: &Digest,
        before: Option<Option<&Digest>>,
        until: Ms,
    ) -> Result<bool> {
        let mut tx = self.db.begin().await?;
        let wanted = tx
            .exec(
                "UPDATE cascades SET promotion_next_at = $2 WHERE id = $1 AND promotion = 'promoted' \
                 AND promotion_next_at IS NOT NULL",
                args![id, until],
            )
            .await?;
        let keep = before.is_none();
        let before = before.flatten().map(|digest| digest.as_str().to_owned());
        let updated = tx
            .exec(
                "UPDATE cascade_images SET moving = 1, before_digest = CASE WHEN $5 = 1 THEN before_digest ELSE $4 END \
                 WHERE cascade_id = $1 AND name = $2 AND after_digest = $3 AND state = 'staged'",
                args![id, name, after.as_str(), before, keep],
            )
            .await?;
        if wanted == 0 || updated == 0 {
            return Ok(false);
        }
        tx.commit().await?;
        Ok(true)
    }

    /// Records that a tag was set to a staged image. Records the images of the run when none of
    /// them is staged anymore.
    pub async fn record_promoted_tag(
        &self,
        id: u64,
        name: &str,
        after: &Digest,
        now: Ms,
    ) -> Result<()> {
        let mut tx = self.db.begin().await?;
        images::lock_images(&mut tx).await?;
        let staged: Option<(String, i64)> = tx
            .fetch_optional(
                "SELECT run_id, changed_at FROM cascade_images WHERE cascade_id = $1 AND name = $2 AND after_digest = $3 \
                 AND state = 'staged'",
                args![id, name, after.as_str()],
            )
            .await?;
        if let Some((run, at)) = staged {
            tx.exec(
                "UPDATE cascade_images SET state = 'promoted', moving = 0, changed_at = $3, error = NULL WHERE cascade_id = $1 \
                 AND name = $2",
                args![id, name, now],
            )
            .await?;
            record_promoted_run(&mut tx, id, runs::parse_run_id(run)?, at).await?;
            set_watched_digest(&mut tx, name, after, now).await?;
        }
        tx.commit().await
    }

    /// Discards a staged image, with the reason.
    pub async fn discard_staged_image(&self, id: u64, name: &str, why: &str) -> Result<()> {
        let mut tx = self.db.begin().await?;
        images::lock_images(&mut tx).await?;
        let dropped: Option<(String, i64)> = tx
            .fetch_optional(
                "UPDATE cascade_images SET state = 'discarded', error = $3 WHERE cascade_id = $1 AND name = $2 \
                 AND state = 'staged' RETURNING run_id, changed_at",
                args![id, name, why],
            )
            .await?;
        if let Some((run, at)) = dropped {
            record_promoted_run(&mut tx, id, runs::parse_run_id(run)?, at).await?;
        }
        tx.commit().await
    }

    /// Extends the lease of a rollback before its tags are restored. `moving` names the image whose
    /// tag is restored next. Returns `false` if the rollback is not wanted anymore.
    pub async fn prepare_rollback(&self, id: u64, moving: Option<&str>, until: Ms) -> Result<bool> {
        let mut tx = self.db.begin().await?;
        let wanted = tx
            .exec(
                "UPDATE cascades SET promotion_next_at = $2 WHERE id = $1 AND promotion = 'rolledBack' \
                 AND promotion_next_at IS NOT NULL",
                args![id, until],
            )
            .await?;
        if let Some(name) = moving {
            tx.exec(
                "UPDATE cascade_images SET moving = 1 WHERE cascade_id = $1 AND name = $2 AND state = 'promoted'",
                args![id, name],
            )
            .await?;
        }
        if wanted == 0 {
            return Ok(false);
        }
        tx.commit().await?;
        Ok(true)
    }

    /// Records that a tag was restored to its previous digest. Restores the record of the image if
    /// its run still exists.
    pub async fn record_restored_tag(
        &self,
        id: u64,
        name: &str,
        before: &Digest,
        now: Ms,
    ) -> Result<()> {
        let mut tx = self.db.begin().await?;
        images::lock_images(&mut tx).await?;
        let back = tx
            .exec(
                "UPDATE cascade_images SET state = 'rolledBack', moving = 0, changed_at = $3, error = NULL WHERE cascade_id = $1 \
                 AND name = $2 AND state = 'promoted'",
                args![id, name, now],
            )
            .await?;
        if back == 1 {
            restore_image(&mut tx, name, before).await?;
            set_watched_digest(&mut tx, name, before, now).await?;
        }
        tx.commit().await
    }

    /// Stores the reason why an image does not have the wanted state.
    pub async fn set_image_error(&self, id: u64, name: &str, error: Option<&str>) -> Result<()> {
        self.db
            .exec(
                "UPDATE cascade_images SET error = $3 WHERE cascade_id = $1 AND name = $2",
                args![id, name, error.map(str::to_owned)],
            )
            .await
            .map(drop)
    }

    /// Returns the names of a cascade's staged images that a later push has replaced.
    pub async fn superseded_images(&self, id: u64) -> Result<Vec<String>> {
        let rows: Vec<(String,)> = self
            .db
            .fetch_all(
                "SELECT h.name FROM cascade_images h JOIN images i ON i.name = h.name WHERE h.cascade_id = $1 \
                 AND h.state = 'staged' AND i.built_at > h.changed_at AND i.run_id <> h.run_id ORDER BY h.name",
                args![id],
            )
            .await?;
        Ok(rows.into_iter().map(|(name,)| name).collect())
    }

    /// Returns images without their tag, by name and digest, with the cascade, and `true` if the
    /// image was dropped.
    pub async fn unpromoted_images(&self) -> Result<Vec<(String, Digest, u64, bool)>> {
        let rows: Vec<(String, String, i64, String)> = self
            .db
            .fetch_all(
                "SELECT h.name, h.after_digest, h.cascade_id, h.state FROM cascade_images h \
                 WHERE h.state IN ('staged', 'discarded') AND NOT EXISTS (SELECT 1 FROM images i WHERE i.name = h.name \
                 AND i.digest = h.after_digest) ORDER BY h.cascade_id, h.name",
                args![],
            )
            .await?;
        rows.into_iter()
            .map(|(name, after, id, state)| {
                Ok((
                    name,
                    digest(&after)?,
                    run_state::to_u64(id)?,
                    state == "discarded",
                ))
            })
            .collect()
    }
}

/// Records the images of a run when none of them is staged anymore, if at least one tag was set.
///
/// `at` is the end of the run. Of two runs the one that ended later is newer, regardless of the
/// order of their tags.
async fn record_promoted_run(tx: &mut Tx, id: u64, run: RunId, at: Ms) -> Result<()> {
    let row: Option<(i64, i64)> = tx
        .fetch_optional(
            "SELECT COALESCE(SUM(CASE WHEN state = 'staged' THEN 1 ELSE 0 END), 0), \
             COALESCE(SUM(CASE WHEN state = 'promoted' THEN 1 ELSE 0 END), 0) FROM cascade_images \
             WHERE cascade_id = $1 AND run_id = $2",
            args![id, &run],
        )
        .await?;
    if let Some((0, 1..)) = row
        && !images::record_images_of_run(tx, &run, at).await?
    {
        tracing::warn!(cascade = id, %run, "cannot record the bases of promoted images: their run does not exist anymore");
    }
    Ok(())
}

/// Stores the digest of a tag in its watches. Revokes poll leases, because a poll in progress may
/// have read the previous digest.
async fn set_watched_digest(tx: &mut Tx, name: &str, digest: &Digest, now: Ms) -> Result<()> {
    tx.exec(
        "UPDATE base_watches SET digest = $2, etag = NULL, checked_at = $3, next_check_at = $3, lease_until = NULL \
         WHERE name = $1 AND digest IS NOT NULL",
        args![name, digest.as_str(), now],
    )
    .await
    .map(drop)
}

/// Restores the record of an image as of the push of `before`.
async fn restore_image(tx: &mut Tx, name: &str, before: &Digest) -> Result<()> {
    let build: Option<(i64, String, i64)> = tx
        .fetch_optional(
            "SELECT i.id, b.run_id, b.built_at FROM images i JOIN image_builds b ON b.image_id = i.id \
             WHERE i.name = $1 AND b.digest = $2 ORDER BY b.built_at DESC, b.run_id LIMIT 1",
            args![name, before.as_str()],
        )
        .await?;
    if let Some((_, run, built_at)) = &build
        && images::record_images_of_run(tx, &runs::parse_run_id(run.clone())?, *built_at).await?
    {
        return Ok(());
    }
    // The bases of the previous digest are unknown.
    tx.exec(
        "DELETE FROM image_bases WHERE image_id IN (SELECT id FROM images WHERE name = $1)",
        args![name],
    )
    .await?;
    tx.exec(
        "UPDATE images SET digest = $2 WHERE name = $1",
        args![name, before.as_str()],
    )
    .await
    .map(drop)
}
