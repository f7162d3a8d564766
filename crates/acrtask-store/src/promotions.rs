//! Tags that move together, or back: what is decided of a cascade, and how far that has come.
//!
//! `cascades.promotion` says what is wanted: `held` is wanted by nobody yet; `promoted` and `rolledBack` are done once
//! `promotion_next_at` is nothing, which until then says when somebody is to go on. Invariants: one server at a time works
//! on a cascade, until a moment that it puts off with each thing done, so that one that has died is followed by another;
//! what a tag held is written down before it is moved; an image is recorded with the move of its tag, as the end of its
//! run would have done it, and gets back what was recorded before with the way back. Left out: the registry, and when
//! something is decided, which `acrtask-server` does.

use acrtask_model::{Digest, RunId};
use sqlx::FromRow;

use crate::{
    Ms, Result, Store, StoreError,
    db::{Tx, args, one_of},
    images::{self, digest},
    lives, runs,
};

/// What is decided of what a cascade pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromotionRow {
    /// The cascade.
    pub id: u64,
    /// `settling`, `active`, `canceling` or `over`.
    pub phase: String,
    /// It may still change, or be tried again.
    pub active: bool,
    /// Its runs push without tags.
    pub holds: bool,
    /// What is wanted: `none`, `held`, `promoted`, `rolledBack` or `dropped`.
    pub promotion: String,
    /// When that was decided.
    pub at: Option<Ms>,
    /// When somebody is to go on with it; nothing: it is done.
    pub next_at: Option<Ms>,
    /// Why it is not done, or is not decided.
    pub error: Option<String>,
}

#[derive(Debug, FromRow)]
struct Raw {
    id: i64,
    phase: String,
    active: i64,
    holds: Option<i64>,
    promotion: String,
    promotion_at: Option<i64>,
    promotion_next_at: Option<i64>,
    promotion_error: Option<String>,
}

impl TryFrom<Raw> for PromotionRow {
    type Error = StoreError;

    fn try_from(raw: Raw) -> Result<Self> {
        Ok(Self {
            id: lives::size(raw.id)?,
            phase: raw.phase,
            active: raw.active != 0,
            holds: raw.holds == Some(1),
            promotion: raw.promotion,
            at: raw.promotion_at,
            next_at: raw.promotion_next_at,
            error: raw.promotion_error,
        })
    }
}

macro_rules! select {
    () => {
        "SELECT id, phase, active, holds, promotion, promotion_at, promotion_next_at, promotion_error FROM cascades "
    };
}

impl Store {
    /// Cascades of which something is to be decided or done, the oldest first.
    pub async fn open_promotions(&self) -> Result<Vec<PromotionRow>> {
        let rows: Vec<Raw> = self
            .db
            .rows(
                concat!(
                    select!(),
                    "WHERE promotion_next_at IS NOT NULL OR (holds = 1 AND (promotion IN ('none', 'held') \
                     OR (promotion = 'dropped' AND active = 1 AND phase <> 'over') OR EXISTS (SELECT 1 \
                     FROM cascade_images h WHERE h.cascade_id = cascades.id AND h.state = 'held'))) ORDER BY id"
                ),
                args![],
            )
            .await?;
        rows.into_iter().map(PromotionRow::try_from).collect()
    }

    /// What is decided of one cascade.
    pub async fn promotion(&self, id: u64) -> Result<PromotionRow> {
        let raw: Option<Raw> = self
            .db
            .row(concat!(select!(), "WHERE id = $1"), args![id])
            .await?;
        raw.ok_or_else(|| StoreError::not_found(format!("cascade {id}")))?
            .try_into()
    }

    /// Writes down that a cascade is to be `to`, if it was one of `from`. False: it was not. What is to be moved is held
    /// from then on, and what is not to be moved is dropped. What is on its way counts as having arrived, so that it is
    /// fetched back.
    pub async fn decide_promotion(
        &self,
        id: u64,
        from: &[&str],
        to: &str,
        by: Option<&str>,
        now: Ms,
    ) -> Result<bool> {
        let mut tx = self.db.write().await?;
        let from: Vec<String> = from.iter().map(|word| (*word).to_owned()).collect();
        let works = matches!(to, "promoted" | "rolledBack");
        // Whoever works on it has until then; nobody begins before that.
        let sql = one_of!(
            "UPDATE cascades SET promotion = $2, promotion_by = $3, promotion_at = $4, promotion_error = NULL, \
             promotion_next_at = CASE WHEN $5 = 0 THEN NULL WHEN promotion_next_at > $4 THEN promotion_next_at ELSE $4 END \
             WHERE id = $1 AND promotion",
            "$6",
            ""
        );
        let won = tx
            .exec(sql, args![id, to, by.map(str::to_owned), now, works, from])
            .await?;
        if won == 0 {
            return Ok(false);
        }
        // Of a tag that is on its way, only looking at it tells where it is.
        let sql = match to {
            // One that went back goes forward from here, whatever has been recorded since.
            "promoted" => {
                "UPDATE cascade_images SET at = CASE WHEN state = 'rolledBack' THEN $2 ELSE at END, state = 'held', \
                 error = NULL WHERE cascade_id = $1 AND (state IN ('dropped', 'rolledBack') \
                 OR (state = 'moved' AND moving = 1))"
            }
            "held" => {
                "UPDATE cascade_images SET state = 'held', error = NULL WHERE cascade_id = $1 AND state = 'dropped' \
                 AND $2 = $2"
            }
            _ => {
                "UPDATE cascade_images SET state = CASE WHEN moving = 1 THEN 'moved' ELSE 'dropped' END \
                 WHERE cascade_id = $1 AND state = 'held' AND $2 = $2"
            }
        };
        tx.exec(sql, args![id, now]).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Takes a cascade to work on until `until`. False: somebody else does, or something else is wanted by now.
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

    /// Lets a cascade go: what is wanted is done (`next`: nothing), or is gone on with then. Where something else is
    /// wanted by now, that is begun at once.
    pub async fn release_promotion(
        &self,
        id: u64,
        wanted: &str,
        error: Option<&str>,
        next: Option<Ms>,
        now: Ms,
    ) -> Result<()> {
        let mut tx = self.db.write().await?;
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

    /// Says, before a held image's tag is moved, what the tag holds; nothing where it holds the image already. False:
    /// it is not to be moved any more.
    pub async fn will_move(
        &self,
        id: u64,
        name: &str,
        after: &Digest,
        before: Option<Option<&Digest>>,
        until: Ms,
    ) -> Result<bool> {
        let mut tx = self.db.write().await?;
        let wanted = tx
            .exec(
                "UPDATE cascades SET promotion_next_at = $2 WHERE id = $1 AND promotion = 'promoted' \
                 AND promotion_next_at IS NOT NULL",
                args![id, until],
            )
            .await?;
        let keep = before.is_none();
        let before = before.flatten().map(|digest| digest.as_str().to_owned());
        let there = tx
            .exec(
                "UPDATE cascade_images SET moving = 1, before_digest = CASE WHEN $5 = 1 THEN before_digest ELSE $4 END \
                 WHERE cascade_id = $1 AND name = $2 AND after_digest = $3 AND state = 'held'",
                args![id, name, after.as_str(), before, keep],
            )
            .await?;
        if wanted == 0 || there == 0 {
            return Ok(false);
        }
        tx.commit().await?;
        Ok(true)
    }

    /// A tag was moved to what was held back. When the run that pushed it holds nothing back any more, its images are
    /// recorded as at the end of a run.
    pub async fn tag_moved(&self, id: u64, name: &str, after: &Digest, now: Ms) -> Result<()> {
        let mut tx = self.db.write().await?;
        images::lock(&mut tx).await?;
        let held: Option<(String, i64)> = tx
            .row(
                "SELECT run_id, at FROM cascade_images WHERE cascade_id = $1 AND name = $2 AND after_digest = $3 \
                 AND state = 'held'",
                args![id, name, after.as_str()],
            )
            .await?;
        if let Some((run, at)) = held {
            tx.exec(
                "UPDATE cascade_images SET state = 'moved', moving = 0, at = $3, error = NULL WHERE cascade_id = $1 \
                 AND name = $2",
                args![id, name, now],
            )
            .await?;
            record_run(&mut tx, id, runs::id(run)?, at).await?;
            holds(&mut tx, name, after, now).await?;
        }
        tx.commit().await
    }

    /// A held image is not moved, and why.
    pub async fn drop_held(&self, id: u64, name: &str, why: &str) -> Result<()> {
        let mut tx = self.db.write().await?;
        images::lock(&mut tx).await?;
        let dropped: Option<(String, i64)> = tx
            .row(
                "UPDATE cascade_images SET state = 'dropped', error = $3 WHERE cascade_id = $1 AND name = $2 \
                 AND state = 'held' RETURNING run_id, at",
                args![id, name, why],
            )
            .await?;
        if let Some((run, at)) = dropped {
            record_run(&mut tx, id, runs::id(run)?, at).await?;
        }
        tx.commit().await
    }

    /// Asks, before tags go back, whether they still are to. `moving`: the one that goes back now.
    pub async fn will_go_back(&self, id: u64, moving: Option<&str>, until: Ms) -> Result<bool> {
        let mut tx = self.db.write().await?;
        let wanted = tx
            .exec(
                "UPDATE cascades SET promotion_next_at = $2 WHERE id = $1 AND promotion = 'rolledBack' \
                 AND promotion_next_at IS NOT NULL",
                args![id, until],
            )
            .await?;
        if let Some(name) = moving {
            tx.exec(
                "UPDATE cascade_images SET moving = 1 WHERE cascade_id = $1 AND name = $2 AND state = 'moved'",
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

    /// A tag holds again what it held before. The image gets back what was recorded of it then, as far as that run is
    /// still known.
    pub async fn tag_went_back(&self, id: u64, name: &str, before: &Digest, now: Ms) -> Result<()> {
        let mut tx = self.db.write().await?;
        images::lock(&mut tx).await?;
        let back = tx
            .exec(
                "UPDATE cascade_images SET state = 'rolledBack', moving = 0, at = $3, error = NULL WHERE cascade_id = $1 \
                 AND name = $2 AND state = 'moved'",
                args![id, name, now],
            )
            .await?;
        if back == 1 {
            restore(&mut tx, name, before).await?;
            holds(&mut tx, name, before, now).await?;
        }
        tx.commit().await
    }

    /// Why an image is not yet what it is to be, or is left as it is.
    pub async fn image_error(&self, id: u64, name: &str, error: Option<&str>) -> Result<()> {
        self.db
            .exec(
                "UPDATE cascade_images SET error = $3 WHERE cascade_id = $1 AND name = $2",
                args![id, name, error.map(str::to_owned)],
            )
            .await
            .map(drop)
    }

    /// Held images of a cascade under whose names something else was pushed and recorded since: names.
    pub async fn superseded_images(&self, id: u64) -> Result<Vec<String>> {
        let rows: Vec<(String,)> = self
            .db
            .rows(
                "SELECT h.name FROM cascade_images h JOIN images i ON i.name = h.name WHERE h.cascade_id = $1 \
                 AND h.state = 'held' AND i.built_at > h.at AND i.run_id <> h.run_id ORDER BY h.name",
                args![id],
            )
            .await?;
        Ok(rows.into_iter().map(|(name,)| name).collect())
    }

    /// What holding cascades have not put under its tag, by name and digest: the cascade, and whether it was dropped.
    pub async fn unpromoted_images(&self) -> Result<Vec<(String, Digest, u64, bool)>> {
        let rows: Vec<(String, String, i64, String)> = self
            .db
            .rows(
                "SELECT h.name, h.after_digest, h.cascade_id, h.state FROM cascade_images h \
                 WHERE h.state IN ('held', 'dropped') AND NOT EXISTS (SELECT 1 FROM images i WHERE i.name = h.name \
                 AND i.digest = h.after_digest) ORDER BY h.cascade_id, h.name",
                args![],
            )
            .await?;
        rows.into_iter()
            .map(|(name, after, id, state)| {
                Ok((name, digest(&after)?, lives::size(id)?, state == "dropped"))
            })
            .collect()
    }
}

/// Records a run's images once none of them is held back any more, if a tag of it has moved.
/// `at`: when it ended. Of two, the one that ended later is the newer one, whenever its tags have moved.
async fn record_run(tx: &mut Tx, id: u64, run: RunId, at: Ms) -> Result<()> {
    let row: Option<(i64, i64)> = tx
        .row(
            "SELECT COALESCE(SUM(CASE WHEN state = 'held' THEN 1 ELSE 0 END), 0), \
             COALESCE(SUM(CASE WHEN state = 'moved' THEN 1 ELSE 0 END), 0) FROM cascade_images \
             WHERE cascade_id = $1 AND run_id = $2",
            args![id, &run],
        )
        .await?;
    if let Some((0, 1..)) = row
        && !images::record_stored(tx, &run, at).await?
    {
        tracing::warn!(cascade = id, %run, "a run whose tags have moved is gone: what it built from is not known");
    }
    Ok(())
}

/// Where a tag is watched: it holds this now. Whoever is looking at it has seen what was there before.
async fn holds(tx: &mut Tx, name: &str, digest: &Digest, now: Ms) -> Result<()> {
    tx.exec(
        "UPDATE base_watches SET digest = $2, etag = NULL, checked_at = $3, next_check_at = $3, lease_until = NULL \
         WHERE name = $1 AND digest IS NOT NULL",
        args![name, digest.as_str(), now],
    )
    .await
    .map(drop)
}

/// Gives an image back what was recorded of it when `before` was pushed.
async fn restore(tx: &mut Tx, name: &str, before: &Digest) -> Result<()> {
    let build: Option<(i64, String, i64)> = tx
        .row(
            "SELECT i.id, b.run_id, b.built_at FROM images i JOIN image_builds b ON b.image_id = i.id \
             WHERE i.name = $1 AND b.digest = $2 ORDER BY b.built_at DESC, b.run_id LIMIT 1",
            args![name, before.as_str()],
        )
        .await?;
    if let Some((_, run, built_at)) = &build
        && images::record_stored(tx, &runs::id(run.clone())?, *built_at).await?
    {
        return Ok(());
    }
    // Of which bases it is, nobody knows any more.
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
