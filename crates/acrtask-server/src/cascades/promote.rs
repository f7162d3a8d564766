//! Promotion and rollback of cascades: tags that move together.
//!
//! The staged images of a cascade get their tags after its tests have passed. A rollback restores
//! all previous tags. [`judge`] decides about promotions and [`tags`] moves tags. This module runs
//! both for every cascade, forever, from the database alone.
//!
//! Invariants:
//!
//! - A decision is stored before the first tag moves. Carrying it out is idempotent, so a server
//!   may stop anywhere.
//! - Only one server works on a cascade at a time.
//! - A tag that cannot be moved is retried and reported. It does not stop other tags.
//! - A tag that did not exist before, or that another push has moved since, is left unchanged and
//!   reported.

mod judge;
mod tags;

use std::time::Duration;

use acrtask_store::{Ms, PromotionRow, StoreError};

use self::judge::Verdict;
use super::{CommandError, commands::decline_results, settings};
use crate::App;

/// Maximum interval between two passes.
const MAX_INTERVAL: Duration = Duration::from_secs(30);
/// Minimum interval between two passes.
const MIN_INTERVAL: Duration = Duration::from_millis(200);
/// Time that a user's request waits for the tags to move. They continue to move afterwards.
const REQUEST_WAIT: Duration = Duration::from_secs(20);
/// First delay after a failure, in milliseconds. Later delays are half of the time since the
/// decision.
const FIRST_RETRY_MS: Ms = 5_000;
/// Maximum delay after a failure, in milliseconds.
const MAX_RETRY_MS: Ms = 300_000;

/// Decides about promotions and moves tags, forever.
pub(crate) async fn run(app: &App) -> Result<(), StoreError> {
    loop {
        let next = run_pass(app).await?;
        let wait = next.map_or(MAX_INTERVAL, |at| {
            let ms = at.saturating_sub(app.clock.now_ms());
            MAX_INTERVAL.min(Duration::from_millis(u64::try_from(ms).unwrap_or(0)))
        });
        tokio::time::sleep(MIN_INTERVAL).await;
        tokio::select! {
            () = app.cascades.promotions.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Makes all possible decisions and moves the due tags. Returns the time of the next pass.
///
/// # Errors
/// The database failed.
pub async fn run_pass(app: &App) -> Result<Option<Ms>, StoreError> {
    loop {
        decide_promotions(app).await?;
        let mut next: Option<Ms> = None;
        let mut done = false;
        for row in app.store.open_promotions().await? {
            let Some(due) = row.next_at else { continue };
            let again = if due <= app.clock.now_ms() {
                carry_out(app, &row).await?
            } else {
                Some(due)
            };
            done |= again.is_none();
            next = match (next, again) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
        // Another cascade may wait for the tags that have just moved.
        if !done {
            return Ok(next);
        }
    }
}

async fn decide_promotions(app: &App) -> Result<(), StoreError> {
    let rows = app.store.open_promotions().await?;
    let undecided: Vec<&PromotionRow> = rows.iter().filter(|row| row.next_at.is_none()).collect();
    if undecided.is_empty() {
        return Ok(());
    }
    let wanted = settings::read_settings(app)
        .await?
        .promotion
        .unwrap_or_default();
    for row in undecided {
        let id = row.id;
        // A discarded cascade that is retried stages its images again.
        if matches!(row.promotion.as_str(), "none" | "discarded")
            && store_decision(app, row, "staged", None).await?
        {
            tracing::info!(cascade = id, "cascade stages its images");
        }
        if row.phase != "finished" {
            continue;
        }
        if matches!(row.promotion.as_str(), "rolledBack") {
            for image in staged_images(app, id).await? {
                let why = "its cascade was rolled back";
                app.store.discard_staged_image(id, &image, why).await?;
            }
            continue;
        }
        match judge::judge(app, row, &wanted.tests).await? {
            Verdict::Promote => {
                let row = app.store.promotion(id).await?;
                if store_decision(app, &row, "promoted", None).await? {
                    tracing::info!(cascade = id, "promoting a cascade");
                }
            }
            Verdict::Discard(why) => {
                for image in staged_images(app, id).await? {
                    app.store.set_image_error(id, &image, Some(&why)).await?;
                }
                let row = app.store.promotion(id).await?;
                if store_decision(app, &row, "discarded", None).await? {
                    tracing::info!(
                        cascade = id,
                        why,
                        "discarded the staged images of a cascade"
                    );
                }
            }
            Verdict::Wait(why) => discard_superseded(app, row, &why).await?,
        }
    }
    Ok(())
}

async fn staged_images(app: &App, id: u64) -> Result<Vec<String>, StoreError> {
    let images = app.store.cascade_images(id).await?;
    Ok(images
        .into_iter()
        .filter(|image| image.state == "staged")
        .map(|image| image.name)
        .collect())
}

/// Discards staged images that newer pushes replace. Discards the promotion if none remain.
async fn discard_superseded(app: &App, row: &PromotionRow, why: &str) -> Result<(), StoreError> {
    let id = row.id;
    let names = app.store.superseded_images(id).await?;
    for name in &names {
        app.store
            .discard_staged_image(id, name, tags::SUPERSEDED)
            .await?;
    }
    if !names.is_empty() {
        app.cascades.mark_facts_changed();
        if staged_images(app, id).await?.is_empty() {
            let row = app.store.promotion(id).await?;
            store_decision(app, &row, "discarded", None).await?;
        }
    }
    if row.error.as_deref() != Some(why) {
        let now = app.clock.now_ms();
        app.store
            .release_promotion(id, "staged", Some(why), None, now)
            .await?;
    }
    Ok(())
}

/// Stores a decision. Returns `false` if another one was stored in the meantime.
async fn store_decision(
    app: &App,
    row: &PromotionRow,
    to: &str,
    by: Option<&str>,
) -> Result<bool, StoreError> {
    if matches!(to, "discarded" | "rolledBack") {
        // The results are declined before any tag changes, because a changed tag is a reason to
        // build.
        decline_results(app, row.id).await?;
    }
    let now = app.clock.now_ms();
    let from = [row.promotion.as_str()];
    let stored = app
        .store
        .decide_promotion(row.id, &from, to, by, now)
        .await?;
    if stored {
        app.cascades.mark_facts_changed();
    }
    Ok(stored)
}

/// Carries out the decision about a cascade, unless another server does. Returns the time of the
/// next attempt.
async fn carry_out(app: &App, row: &PromotionRow) -> Result<Option<Ms>, StoreError> {
    let (id, wanted) = (row.id, row.promotion.as_str());
    let now = app.clock.now_ms();
    let lease = tags::lease_end(now);
    if !app.store.claim_promotion(id, wanted, lease, now).await? {
        return Ok(Some(lease));
    }
    let failures = match wanted {
        "promoted" => tags::promote(app, id).await?,
        "rolledBack" => tags::roll_back(app, id).await?,
        _ => Vec::new(),
    };
    let now = app.clock.now_ms();
    let (error, next) = match failures.split_first() {
        None => (None, None),
        Some((first, others)) => {
            let passed = now.saturating_sub(row.at.unwrap_or(now));
            let wait = (passed / 2).clamp(FIRST_RETRY_MS, MAX_RETRY_MS);
            let text = match others.len() {
                0 => first.clone(),
                more => format!("{first}; and {more} more"),
            };
            tracing::warn!(cascade = id, wanted, error = text, "failed to move tags");
            (Some(text), Some(now.saturating_add(wait)))
        }
    };
    app.store
        .release_promotion(id, wanted, error.as_deref(), next, now)
        .await?;
    if next.is_none() {
        tracing::info!(cascade = id, wanted, "moved the tags of a cascade");
    }
    app.cascades.mark_facts_changed();
    Ok(next)
}

/// Returns the cascade if a user may decide about it.
async fn require_finished(app: &App, id: u64) -> Result<PromotionRow, CommandError> {
    let row = match app.store.promotion(id).await {
        Ok(row) => row,
        Err(StoreError::NotFound { .. }) => return Err(CommandError::Unknown(id)),
        Err(error) => return Err(error.into()),
    };
    if row.phase == "finished" {
        return Ok(row);
    }
    Err(CommandError::Invalid(format!(
        "cascade {id} is still building; wait until it finishes, or cancel the rest: `acrtask cascade cancel {id}`"
    )))
}

/// Moves the tags of the staged images of a cascade, regardless of its tests.
///
/// # Errors
/// There is nothing to move, the cascade depends on staged images of another cascade, or
/// the database failed.
pub async fn promote(app: &App, id: u64, by: &str) -> Result<(), CommandError> {
    let row = require_finished(app, id).await?;
    if !row.stages_images && row.promotion != "rolledBack" {
        return Err(CommandError::Invalid(format!(
            "cascade {id} has staged no images: each of its pushes moved its tag at once"
        )));
    }
    if let Some(why) = judge::promotion_obstacle(app, id).await? {
        return Err(CommandError::Invalid(format!(
            "cascade {id} cannot be promoted: {why}"
        )));
    }
    decide_and_carry_out(app, &row, "promoted", by).await
}

/// Restores the tags from before a cascade. Discards its staged images.
///
/// # Errors
/// No tag has moved, or the database failed.
pub async fn rollback(app: &App, id: u64, by: &str) -> Result<(), CommandError> {
    let row = require_finished(app, id).await?;
    let images = app.store.cascade_images(id).await?;
    let any = |state: &str| images.iter().any(|image| image.state == state);
    let moves = row.promotion == "promoted" && any("staged");
    if any("promoted") || moves || row.promotion == "rolledBack" {
        return decide_and_carry_out(app, &row, "rolledBack", by).await;
    }
    if !any("staged") {
        return Err(CommandError::Invalid(format!(
            "cascade {id} has moved no tag; there is nothing to roll back"
        )));
    }
    for image in images.iter().filter(|image| image.state == "staged") {
        let why = format!("discarded by {by}");
        app.store
            .set_image_error(id, &image.name, Some(&why))
            .await?;
    }
    decide_by_user(app, &row, "discarded", by).await
}

/// Stores the decision of a user.
async fn decide_by_user(
    app: &App,
    row: &PromotionRow,
    to: &str,
    by: &str,
) -> Result<(), CommandError> {
    if !store_decision(app, row, to, Some(by)).await? {
        return Err(CommandError::Invalid(format!(
            "the state of cascade {} has just changed; check it with `acrtask cascade show {}`",
            row.id, row.id
        )));
    }
    tracing::info!(
        cascade = row.id,
        by,
        to,
        "user decided about the tags of a cascade"
    );
    Ok(())
}

async fn decide_and_carry_out(
    app: &App,
    row: &PromotionRow,
    to: &str,
    by: &str,
) -> Result<(), CommandError> {
    decide_by_user(app, row, to, by).await?;
    let row = app.store.promotion(row.id).await?;
    // After the timeout, the background task continues.
    match tokio::time::timeout(REQUEST_WAIT, carry_out(app, &row)).await {
        Ok(done) => drop(done?),
        Err(_) => app.cascades.promotions.notify_one(),
    }
    Ok(())
}
