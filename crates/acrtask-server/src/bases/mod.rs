//! Images and their bases: stale images ([`staleness`]), polls of base tags ([`poller`]) and newer
//! tags ([`tags`]).
//!
//! Each server claims due tags, polls each one once within the budget of its registry and login
//! ([`budget`]), and records the results.
//!
//! Invariants:
//!
//! - The set of watched tags is recomputed regularly from the bases of the newest images and the
//!   policies of their tasks.
//! - A registry notification only makes a tag due. A forged or lost notification changes nothing
//!   but the time of a poll.
//! - A tag that cannot be polled has a status and a time for its next poll. It is not retried in a
//!   loop.

mod budget;
mod poller;
pub(crate) mod staleness;
pub(crate) mod tags;

use std::{collections::BTreeSet, time::Duration};

use acrtask_model::ImageRef;
use acrtask_store::{StoreError, WatchFilter, WatchRow};
use futures::StreamExt as _;

pub(crate) use self::poller::Poller;
use crate::{App, recorder::as_millis};

/// Interval between recomputations of the watched tags.
const COMPARE_INTERVAL: Duration = Duration::from_secs(30);
/// A server claims the polls of this many seconds at once, within [`BATCH`]. A tag that becomes
/// due during that time waits.
const BATCH_SECS: u32 = 5;
const BATCH: std::ops::RangeInclusive<u32> = 256..=2048;
/// Maximum time in milliseconds that a server may keep a claimed tag.
const MAX_LEASE_MS: i64 = 180_000;
/// Maximum lease of a claimed tag as a multiple of the run lease. A server killed during a poll
/// delays its tags no longer than that.
const MAX_LEASES: i64 = 4;

/// Polls tags, lists newer ones and updates the set of watched tags, forever.
pub(crate) async fn run(app: &App) -> Result<(), StoreError> {
    tokio::try_join!(poll_bases(app), keep_watches_current(app), tags::run(app)).map(drop)
}

async fn poll_bases(app: &App) -> Result<(), StoreError> {
    // The next batch is claimed while the last polls of this batch are in progress.
    let due = futures::stream::try_unfold((), |()| async { Ok(Some((claim_due(app).await?, ()))) });
    app.poller.poll_due(app, due.boxed()).await
}

/// Claims due tags. Waits until there are some.
async fn claim_due(app: &App) -> Result<Vec<WatchRow>, StoreError> {
    let seconds = app.config.base_rate.saturating_mul(BATCH_SECS);
    let batch = seconds.clamp(*BATCH.start(), *BATCH.end());
    loop {
        let now = app.clock.now_ms();
        let due = app
            .store
            .claim_watches(now, claim_lease_ms(app), batch)
            .await?;
        if !due.is_empty() {
            return Ok(due);
        }
        tokio::select! {
            () = app.bases.notified() => {}
            () = tokio::time::sleep(app.config.poll) => {}
        }
    }
}

/// Runs next to the polls, because a comparison of very many images takes longer than many polls.
async fn keep_watches_current(app: &App) -> Result<(), StoreError> {
    loop {
        update_watches(app).await?;
        tokio::select! {
            () = app.poller.images.notified() => {}
            () = tokio::time::sleep(COMPARE_INTERVAL) => {}
        }
    }
}

/// Returns the time in milliseconds that a server may keep a claimed tag.
fn claim_lease_ms(app: &App) -> i64 {
    MAX_LEASE_MS.min(as_millis(app.config.lease).saturating_mul(MAX_LEASES))
}

/// Watches exactly the bases that can make an image stale.
pub(crate) async fn update_watches(app: &App) -> Result<(), StoreError> {
    let wanted = app.store.wanted_bases().await?;
    let policies = staleness::read_policies(app).await?;
    let wanted: BTreeSet<(String, String)> = wanted
        .into_iter()
        .filter(|(.., task, role)| {
            policies
                .get(task)
                .is_some_and(|policy| policy.counts(*role))
        })
        .map(|(name, scope, ..)| (name, scope))
        .collect();
    let added = app.store.set_watches(&wanted, app.clock.now_ms()).await?;
    if added > 0 {
        tracing::info!(added, "added watches for base tags");
        app.bases.notify_one();
    }
    Ok(())
}

/// Makes a pushed tag due. Without a tag, makes all tags of the repository due.
pub(crate) async fn mark_push_due(
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
            app.store.mark_watches_due(names, now).await?
        }
        Some(Err(_)) => 0,
        None => {
            app.store
                .mark_repository_due(&reference.name(), now)
                .await?
        }
    };
    if due > 0 {
        app.bases.notify_one();
    }
    tags::mark_lists_due(app, Some(vec![reference.name()])).await
}

/// Returns the name of the watch of a pushed tag, if there is one.
pub(crate) async fn find_watch(
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
