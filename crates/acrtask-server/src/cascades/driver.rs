//! Carries cascades out, for ever: ends of runs are taken at once, facts are reread when something they are read from has
//! changed, at most about once a second, and all of it again at an interval, so that a lost wake costs time and nothing else.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use acrtask_store::StoreError;
use jiff::Timestamp;
use tokio::sync::{Mutex, Notify};

use super::work::{self, Kept, Looked};
use crate::App;

/// Everything is compared again at the latest after this.
const LONGEST: Duration = Duration::from_secs(30);
/// Facts are reread at most so often.
const SPACING: Duration = Duration::from_secs(1);
/// Rereading takes a quarter of the time at most.
const SHARE: u32 = 4;

/// Wakes whoever carries cascades out, and holds what is kept between two looks.
#[derive(Debug, Default)]
pub struct Driver {
    woken: Notify,
    /// Something that facts are read from has changed.
    changed: AtomicBool,
    /// Wakes whoever moves tags.
    pub(super) promotions: Notify,
    pub(super) kept: Mutex<Kept>,
}

impl Driver {
    /// A run may have ended. It would have been looked for anyway.
    pub(crate) fn wake(&self) {
        self.woken.notify_one();
    }

    /// Something that facts are read from has changed: images, bases, tasks, settings.
    pub(crate) fn facts(&self) {
        self.changed.store(true, Ordering::Release);
        self.woken.notify_one();
    }
}

/// Carries cascades out, for ever.
pub(crate) async fn run(app: &App) -> Result<(), StoreError> {
    // When facts were last reread, and how long that took.
    let mut reread: Option<(Instant, Duration)> = None;
    loop {
        let mut looked = look(app, false).await?;
        if looked.ends {
            app.cascades.changed.store(true, Ordering::Release);
        }
        let changed = app.cascades.changed.load(Ordering::Acquire);
        let wait = reread.map_or(Duration::ZERO, |(at, took)| {
            let spacing = if changed {
                SPACING.max(took * SHARE)
            } else {
                LONGEST
            };
            spacing.saturating_sub(at.elapsed())
        });
        if wait.is_zero() {
            // Before facts are read: what changes from now on is looked at once more.
            app.cascades.changed.store(false, Ordering::Release);
            let begun = Instant::now();
            let ends = look(app, true).await.inspect_err(|_| {
                app.cascades.changed.store(true, Ordering::Release);
            })?;
            reread = Some((Instant::now(), begun.elapsed()));
            looked = ends;
            if looked.ends {
                app.cascades.changed.store(true, Ordering::Release);
            }
        }
        sleep(app, &looked, reread).await;
    }
}

async fn sleep(app: &App, looked: &Looked, reread: Option<(Instant, Duration)>) {
    let mut wait = LONGEST;
    if let Some((at, took)) = reread {
        let spacing = if app.cascades.changed.load(Ordering::Acquire) {
            SPACING.max(took * SHARE)
        } else {
            LONGEST
        };
        wait = wait.min(spacing.saturating_sub(at.elapsed()));
    }
    if let Some(at) = looked.wake {
        wait = wait.min(until(app.clock.now(), at));
    }
    if looked.running {
        // Runs end on other servers too.
        wait = wait.min(app.config.poll);
    }
    tokio::select! {
        () = app.cascades.woken.notified() => {}
        () = tokio::time::sleep(wait) => {}
    }
}

fn until(now: Timestamp, at: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO)
}

/// Looks once: at ends of runs and at the clock; `facts`: at everything that is known too. Says when the clock has something
/// to do.
///
/// # Errors
/// When the database cannot be used.
pub async fn pass(app: &App, facts: bool) -> Result<Option<Timestamp>, StoreError> {
    Ok(look(app, facts).await?.wake)
}

async fn look(app: &App, facts: bool) -> Result<Looked, StoreError> {
    let mut kept = app.cascades.kept.lock().await;
    let looked = work::look(app, &mut kept, facts).await?;
    if looked.changed {
        app.cascades.promotions.notify_one();
    }
    Ok(looked)
}
