//! Images and their bases: what is stale ([`known`]), the tags that are looked at because images stand on them, and
//! newer tags that may take the place of these ([`tags`]).
//!
//! Each server takes tags that are due, looks at each once ([`look`]) inside the budget of its registry and login
//! ([`budget`]), and writes down what it saw. Invariants: which tags are watched is compared anew all the time with what the
//! newest images stand on and what counts for their tasks; a notification of a registry only makes a tag due, so that
//! a forged or a lost one changes nothing but the time of a look; a tag that cannot be looked at is a state with a time
//! of its own for the next look, and no loop.

mod budget;
pub(crate) mod known;
mod look;
pub(crate) mod tags;

use std::{collections::BTreeSet, time::Duration};

use acrtask_model::ImageRef;
use acrtask_store::{StoreError, WatchFilter, WatchRow};
use futures::StreamExt as _;

pub(crate) use self::look::Watcher;
use crate::{App, recorder::millis};

/// How often what is watched is compared with what images stand on.
const COMPARE: Duration = Duration::from_secs(30);
/// Tags that a server takes at once: what it may look at in a few seconds, and within these bounds. What becomes due
/// meanwhile waits that long.
const BATCH_SECS: u32 = 5;
const BATCH: std::ops::RangeInclusive<u32> = 256..=2048;
/// A server that does not come back from a look has it taken away after this long, in milliseconds.
const LEASE_MS: i64 = 180_000;
/// The same in leases of runs, where these are short: a server that was killed in a look costs no more than that.
const LEASES: i64 = 4;

/// Looks at tags and for newer ones, and compares which are watched, for ever.
pub(crate) async fn run(app: &App) -> Result<(), StoreError> {
    tokio::try_join!(looks(app), comparisons(app), tags::run(app)).map(drop)
}

async fn looks(app: &App) -> Result<(), StoreError> {
    // The next are taken while the last of these are still looked at.
    let due = futures::stream::try_unfold((), |()| async { Ok(Some((due(app).await?, ()))) });
    app.watcher.look_at(app, due.boxed()).await
}

/// Takes tags that are due, as soon as there are some.
async fn due(app: &App) -> Result<Vec<WatchRow>, StoreError> {
    let seconds = app.config.base_rate.saturating_mul(BATCH_SECS);
    let batch = seconds.clamp(*BATCH.start(), *BATCH.end());
    loop {
        let now = app.clock.now_ms();
        let due = app.store.claim_watches(now, lease(app), batch).await?;
        if !due.is_empty() {
            return Ok(due);
        }
        tokio::select! {
            () = app.bases.notified() => {}
            () = tokio::time::sleep(app.config.poll) => {}
        }
    }
}

/// Beside the looks: among very many images a comparison takes longer than many of these.
async fn comparisons(app: &App) -> Result<(), StoreError> {
    loop {
        compare(app).await?;
        tokio::select! {
            () = app.watcher.images.notified() => {}
            () = tokio::time::sleep(COMPARE) => {}
        }
    }
}

/// How long a server may take for a look, in milliseconds.
fn lease(app: &App) -> i64 {
    LEASE_MS.min(millis(app.config.lease).saturating_mul(LEASES))
}

/// Watches what counts for the tasks whose images stand on it, and nothing else.
pub(crate) async fn compare(app: &App) -> Result<(), StoreError> {
    let wanted = app.store.wanted_bases().await?;
    let policies = known::policies(app).await?;
    let wanted: BTreeSet<(String, String)> = wanted
        .into_iter()
        .filter(|(.., task, role)| {
            policies
                .get(task)
                .is_some_and(|policy| policy.counts(*role))
        })
        .map(|(name, scope, ..)| (name, scope))
        .collect();
    let made = app.store.set_watches(&wanted, app.clock.now_ms()).await?;
    if made > 0 {
        tracing::info!(made, "more base tags are watched");
        app.bases.notify_one();
    }
    Ok(())
}

/// A registry says that an image was pushed: its tag is looked at now. Without a tag, every tag of the repository is.
pub(crate) async fn pushed(
    app: &App,
    registry: &str,
    repository: &str,
    tag: Option<&str>,
) -> Result<(), StoreError> {
    let name = format!("{registry}/{repository}");
    let Ok(reference) = name.parse::<ImageRef>() else {
        return Ok(());
    };
    let now = app.clock.now_ms();
    let due = match tag.map(|tag| reference.with_tag(tag)) {
        Some(Ok(tagged)) => {
            let names = Some(vec![tagged.to_string()]);
            app.store.hurry_watches(names, now).await?
        }
        Some(Err(_)) => 0,
        None => app.store.hurry_repository(&reference.name(), now).await?,
    };
    if due > 0 {
        app.bases.notify_one();
    }
    tags::hurry(app, Some(vec![reference.name()])).await
}

/// Returns the name of the watch of a tag that was pushed, if there is one.
pub(crate) async fn watched(
    app: &App,
    registry: &str,
    repository: &str,
    tag: Option<&str>,
) -> Result<Option<String>, StoreError> {
    let reference = format!("{registry}/{repository}").parse::<ImageRef>();
    let (Ok(reference), Some(tag)) = (reference, tag) else {
        return Ok(None);
    };
    let Ok(tagged) = reference.with_tag(tag) else {
        return Ok(None);
    };
    let filter = WatchFilter {
        name: Some(tagged.to_string()),
        after: None,
        limit: 1,
    };
    let found = app.store.watches(filter).await?;
    Ok(found.into_iter().next().map(|watch| watch.name))
}

#[cfg(test)]
mod tests;
