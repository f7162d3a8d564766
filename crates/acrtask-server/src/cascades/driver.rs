//! Driver that carries cascades out, forever.
//!
//! Ends of runs are applied at once. Facts are reread when one of their sources has changed, about
//! once per second at most, and at an interval. A lost wake-up therefore only causes a delay.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use acrtask_store::StoreError;
use jiff::Timestamp;
use tokio::sync::{Mutex, Notify};

use super::reconcile::{self, PassOutcome, StateCache};
use crate::App;

/// Maximum interval between two reconciliations with fresh facts.
const MAX_INTERVAL: Duration = Duration::from_secs(30);
/// Minimum interval between two reads of the facts.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// Minimum interval between two reads, as a multiple of the last read's duration.
const READ_TIME_FACTOR: u32 = 4;

/// Wake-ups of the driver, and the state that is cached between two passes.
#[derive(Debug, Default)]
pub struct Driver {
    woken: Notify,
    /// `true` if a source of the facts has changed.
    changed: AtomicBool,
    /// Wakes the task that moves tags.
    pub(super) promotions: Notify,
    pub(super) cache: Mutex<StateCache>,
}

impl Driver {
    /// Wakes the driver because a run may have ended. A lost call only causes a delay.
    pub(crate) fn wake(&self) {
        self.woken.notify_one();
    }

    /// Wakes the driver because a source of the facts has changed: images, bases, tasks or
    /// settings.
    pub(crate) fn mark_facts_changed(&self) {
        self.changed.store(true, Ordering::Release);
        self.woken.notify_one();
    }
}

/// Carries cascades out, forever.
pub(crate) async fn run(app: &App) -> Result<(), StoreError> {
    // Time of the last read of the facts, and its duration.
    let mut reread: Option<(Instant, Duration)> = None;
    loop {
        let mut outcome = locked_pass(app, false).await?;
        if outcome.ends {
            app.cascades.changed.store(true, Ordering::Release);
        }
        let changed = app.cascades.changed.load(Ordering::Acquire);
        let wait = reread.map_or(Duration::ZERO, |(at, took)| {
            let spacing = if changed {
                MIN_INTERVAL.max(took * READ_TIME_FACTOR)
            } else {
                MAX_INTERVAL
            };
            spacing.saturating_sub(at.elapsed())
        });
        if wait.is_zero() {
            // The flag is cleared before the facts are read, so that a change during the read
            // causes another one.
            app.cascades.changed.store(false, Ordering::Release);
            let begun = Instant::now();
            let outcome_with_facts = locked_pass(app, true).await.inspect_err(|_| {
                app.cascades.changed.store(true, Ordering::Release);
            })?;
            reread = Some((Instant::now(), begun.elapsed()));
            outcome = outcome_with_facts;
            if outcome.ends {
                app.cascades.changed.store(true, Ordering::Release);
            }
        }
        sleep_until_next_pass(app, &outcome, reread).await;
    }
}

async fn sleep_until_next_pass(
    app: &App,
    outcome: &PassOutcome,
    reread: Option<(Instant, Duration)>,
) {
    let mut wait = MAX_INTERVAL;
    if let Some((at, took)) = reread {
        let spacing = if app.cascades.changed.load(Ordering::Acquire) {
            MIN_INTERVAL.max(took * READ_TIME_FACTOR)
        } else {
            MAX_INTERVAL
        };
        wait = wait.min(spacing.saturating_sub(at.elapsed()));
    }
    if let Some(at) = outcome.wake {
        wait = wait.min(time_until(app.clock.now(), at));
    }
    if outcome.running {
        // Runs also end on other servers, which do not wake this one.
        wait = wait.min(app.config.poll);
    }
    tokio::select! {
        () = app.cascades.woken.notified() => {}
        () = tokio::time::sleep(wait) => {}
    }
}

fn time_until(now: Timestamp, at: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO)
}

/// Runs one pass over the ends of runs and the clock, and over all facts if `facts` is set.
///
/// Returns the time of the next pass.
///
/// # Errors
/// The database failed.
pub async fn run_pass(app: &App, facts: bool) -> Result<Option<Timestamp>, StoreError> {
    Ok(locked_pass(app, facts).await?.wake)
}

async fn locked_pass(app: &App, facts: bool) -> Result<PassOutcome, StoreError> {
    let mut cache = app.cascades.cache.lock().await;
    let outcome = reconcile::reconcile(app, &mut cache, facts).await?;
    if outcome.changed {
        app.cascades.promotions.notify_one();
    }
    Ok(outcome)
}
