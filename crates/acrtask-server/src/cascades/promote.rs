//! Tags that move together: what a cascade has held back gets its tags when its tests have passed, and all of them go back
//! at a word.
//!
//! Whether something is decided is said by [`judge`], and tags are moved by [`tags`]; here both are done for every cascade,
//! for ever, from what the database says alone. Invariants: a decision is written down before the first tag moves, and
//! what it comes to can be done any number of times, so that a server may end anywhere; of two servers one works on a
//! cascade; what cannot be moved is tried again and said, and keeps nothing else from moving. Nobody is asked for a tag
//! that did not exist before, or that somebody has moved since: it is left, and that is said.

mod judge;
mod tags;

use std::time::Duration;

use acrtask_store::{Ms, PromotionRow, StoreError};

use self::judge::Verdict;
use super::{CommandError, commands::decline, settings};
use crate::App;

/// Everything is looked at again at the latest after this.
const LONGEST: Duration = Duration::from_secs(30);
/// Looks have this between them at least.
const SPACING: Duration = Duration::from_millis(200);
/// How long somebody who asks for it waits until the tags have moved; they go on moving afterwards.
const PATIENCE: Duration = Duration::from_secs(20);
/// First wait after a failure. Later ones are half of the time that has passed since the decision.
const FIRST_WAIT: Ms = 5_000;
/// Longest wait after a failure.
const LONGEST_WAIT: Ms = 300_000;

/// Decides and moves tags, for ever.
pub(crate) async fn run(app: &App) -> Result<(), StoreError> {
    loop {
        let next = pass(app).await?;
        let wait = next.map_or(LONGEST, |at| {
            let ms = at.saturating_sub(app.clock.now_ms());
            LONGEST.min(Duration::from_millis(u64::try_from(ms).unwrap_or(0)))
        });
        tokio::time::sleep(SPACING).await;
        tokio::select! {
            () = app.cascades.promotions.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Decides what can be decided, and moves what is to be moved. Says when something is to be done again.
///
/// # Errors
/// When the database cannot be used.
pub async fn pass(app: &App) -> Result<Option<Ms>, StoreError> {
    loop {
        decide(app).await?;
        let mut next: Option<Ms> = None;
        let mut done = false;
        for row in app.store.open_promotions().await? {
            let Some(due) = row.next_at else { continue };
            let again = if due <= app.clock.now_ms() {
                work(app, &row).await?
            } else {
                Some(due)
            };
            done |= again.is_none();
            next = match (next, again) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
        // What has moved may be what another cascade has waited for.
        if !done {
            return Ok(next);
        }
    }
}

async fn decide(app: &App) -> Result<(), StoreError> {
    let rows = app.store.open_promotions().await?;
    let undecided: Vec<&PromotionRow> = rows.iter().filter(|row| row.next_at.is_none()).collect();
    if undecided.is_empty() {
        return Ok(());
    }
    let wanted = settings::settings(app).await?.promotion.unwrap_or_default();
    for row in undecided {
        let id = row.id;
        // One that was dropped and is tried again is held again.
        if matches!(row.promotion.as_str(), "none" | "dropped")
            && set(app, row, "held", None).await?
        {
            tracing::info!(cascade = id, "a cascade holds its pushes back");
        }
        if row.phase != "over" {
            continue;
        }
        if matches!(row.promotion.as_str(), "rolledBack") {
            for image in held(app, id).await? {
                let why = "its cascade was rolled back";
                app.store.drop_held(id, &image, why).await?;
            }
            continue;
        }
        match judge::judge(app, row, &wanted.tests).await? {
            Verdict::Promote => {
                let row = app.store.promotion(id).await?;
                if set(app, &row, "promoted", None).await? {
                    tracing::info!(cascade = id, "the tags of a cascade are moved");
                }
            }
            Verdict::Drop(why) => {
                for image in held(app, id).await? {
                    app.store.image_error(id, &image, Some(&why)).await?;
                }
                let row = app.store.promotion(id).await?;
                if set(app, &row, "dropped", None).await? {
                    tracing::info!(
                        cascade = id,
                        why,
                        "what a cascade has held back is given up"
                    );
                }
            }
            Verdict::Wait(why) => drop_superseded(app, row, &why).await?,
        }
    }
    Ok(())
}

async fn held(app: &App, id: u64) -> Result<Vec<String>, StoreError> {
    let images = app.store.cascade_images(id).await?;
    Ok(images
        .into_iter()
        .filter(|image| image.state == "held")
        .map(|image| image.name)
        .collect())
}

/// Gives up what something newer has been pushed in place of. When that is all, there is nothing to wait for.
async fn drop_superseded(app: &App, row: &PromotionRow, why: &str) -> Result<(), StoreError> {
    let id = row.id;
    let names = app.store.superseded_images(id).await?;
    for name in &names {
        app.store.drop_held(id, name, tags::SUPERSEDED).await?;
    }
    if !names.is_empty() {
        app.cascades.facts();
        if held(app, id).await?.is_empty() {
            let row = app.store.promotion(id).await?;
            set(app, &row, "dropped", None).await?;
        }
    }
    if row.error.as_deref() != Some(why) {
        let now = app.clock.now_ms();
        app.store
            .release_promotion(id, "held", Some(why), None, now)
            .await?;
    }
    Ok(())
}

/// Writes a decision down, if nobody has written another one meanwhile.
async fn set(
    app: &App,
    row: &PromotionRow,
    to: &str,
    by: Option<&str>,
) -> Result<bool, StoreError> {
    if matches!(to, "dropped" | "rolledBack") {
        // Before any tag is another one, which would be a reason to build.
        decline(app, row.id).await?;
    }
    let now = app.clock.now_ms();
    let from = [row.promotion.as_str()];
    let set = app
        .store
        .decide_promotion(row.id, &from, to, by, now)
        .await?;
    if set {
        app.cascades.facts();
    }
    Ok(set)
}

/// Does what is wanted of a cascade, unless another server does. Says when it is gone on with.
async fn work(app: &App, row: &PromotionRow) -> Result<Option<Ms>, StoreError> {
    let (id, wanted) = (row.id, row.promotion.as_str());
    let now = app.clock.now_ms();
    let lease = tags::lease(now);
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
            let wait = (passed / 2).clamp(FIRST_WAIT, LONGEST_WAIT);
            let text = match others.len() {
                0 => first.clone(),
                more => format!("{first}; and {more} more"),
            };
            tracing::warn!(
                cascade = id,
                wanted,
                error = text,
                "tags could not be moved"
            );
            (Some(text), Some(now.saturating_add(wait)))
        }
    };
    app.store
        .release_promotion(id, wanted, error.as_deref(), next, now)
        .await?;
    if next.is_none() {
        tracing::info!(cascade = id, wanted, "the tags of a cascade have moved");
    }
    app.cascades.facts();
    Ok(next)
}

/// The cascade, if it can be decided about by a person.
async fn settled(app: &App, id: u64) -> Result<PromotionRow, CommandError> {
    let row = match app.store.promotion(id).await {
        Ok(row) => row,
        Err(StoreError::NotFound { .. }) => return Err(CommandError::Unknown(id)),
        Err(error) => return Err(error.into()),
    };
    if row.phase == "over" {
        return Ok(row);
    }
    Err(CommandError::Invalid(format!(
        "cascade {id} is still building; wait for its end, or cancel what is left of it: `acrtask cascade cancel {id}`"
    )))
}

/// Moves the tags of what a cascade has held back, whatever its tests say.
///
/// # Errors
/// When there is nothing to move, or what it would move stands on images that another cascade has not promoted, or the
/// database cannot be used.
pub async fn promote(app: &App, id: u64, by: &str) -> Result<(), CommandError> {
    let row = settled(app, id).await?;
    if !row.holds && row.promotion != "rolledBack" {
        return Err(CommandError::Invalid(format!(
            "cascade {id} holds nothing back: each of its pushes moved its tag at once"
        )));
    }
    if let Some(why) = judge::ungrounded(app, id).await? {
        return Err(CommandError::Invalid(format!(
            "cascade {id} cannot be promoted: {why}"
        )));
    }
    carry_out(app, &row, "promoted", by).await
}

/// Puts back what the tags held before a cascade. What it still holds back is given up.
///
/// # Errors
/// When nothing has moved, or the database cannot be used.
pub async fn rollback(app: &App, id: u64, by: &str) -> Result<(), CommandError> {
    let row = settled(app, id).await?;
    let images = app.store.cascade_images(id).await?;
    let any = |state: &str| images.iter().any(|image| image.state == state);
    let moves = row.promotion == "promoted" && any("held");
    if any("moved") || moves || row.promotion == "rolledBack" {
        return carry_out(app, &row, "rolledBack", by).await;
    }
    if !any("held") {
        return Err(CommandError::Invalid(format!(
            "no tag has moved because of cascade {id}; there is nothing to put back"
        )));
    }
    for image in images.iter().filter(|image| image.state == "held") {
        let why = format!("it was given up by {by}");
        app.store.image_error(id, &image.name, Some(&why)).await?;
    }
    say(app, &row, "dropped", by).await
}

/// Writes down what a person has decided.
async fn say(app: &App, row: &PromotionRow, to: &str, by: &str) -> Result<(), CommandError> {
    if !set(app, row, to, Some(by)).await? {
        return Err(CommandError::Invalid(format!(
            "something else was decided about cascade {} just now; look at it again: `acrtask cascade show {}`",
            row.id, row.id
        )));
    }
    tracing::info!(
        cascade = row.id,
        by,
        to,
        "somebody decided about the tags of a cascade"
    );
    Ok(())
}

async fn carry_out(app: &App, row: &PromotionRow, to: &str, by: &str) -> Result<(), CommandError> {
    say(app, row, to, by).await?;
    let row = app.store.promotion(row.id).await?;
    // What is not done by then is gone on with by whoever does that for ever.
    match tokio::time::timeout(PATIENCE, work(app, &row)).await {
        Ok(done) => drop(done?),
        Err(_) => app.cascades.promotions.notify_one(),
    }
    Ok(())
}
