//! Hints between servers that share a PostgreSQL: what one has done wakes the others.
//!
//! Invariant: a hint only saves time; everything that it speeds up is looked at again by a timer. What is to be sent is
//! collected for a moment, so that a busy server sends a few notifications a second and not one for each chunk of a log.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use acrtask_model::RunId;
use acrtask_store::{Hint, StoreError};
use tokio::sync::Notify;

use crate::App;

/// How long hints are collected.
const COLLECT: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
struct Pending {
    enqueued: bool,
    logs: HashSet<RunId>,
    others: Vec<Hint>,
}

/// Hints that are to be sent.
#[derive(Debug, Clone)]
pub(crate) struct Outbox {
    /// Nothing where there are no other servers.
    pending: Option<Arc<(Mutex<Pending>, Notify)>>,
}

impl Outbox {
    /// One for servers that share a database; without `shared`, nothing is collected or sent.
    pub(crate) fn new(shared: bool) -> Self {
        Self {
            pending: shared.then(Arc::default),
        }
    }

    /// Sends `hint` soon.
    pub(crate) fn add(&self, hint: Hint) {
        let Some(pending) = &self.pending else { return };
        let (lock, wake) = &**pending;
        let mut pending = lock.lock().unwrap_or_else(PoisonError::into_inner);
        match hint {
            Hint::Enqueued => pending.enqueued = true,
            Hint::Log(run) => {
                pending.logs.insert(run);
            }
            other => pending.others.push(other),
        }
        drop(pending);
        wake.notify_one();
    }

    /// Sends what is collected, for ever.
    pub(crate) async fn run(&self, app: &App) -> Result<(), StoreError> {
        let Some(pending) = &self.pending else {
            return std::future::pending().await;
        };
        let (lock, wake) = &**pending;
        loop {
            wake.notified().await;
            tokio::time::sleep(COLLECT).await;
            let taken = std::mem::take(&mut *lock.lock().unwrap_or_else(PoisonError::into_inner));
            let mut hints = taken.others;
            hints.extend(taken.enqueued.then_some(Hint::Enqueued));
            hints.extend(taken.logs.into_iter().map(Hint::Log));
            if !hints.is_empty() {
                app.store.hint(&hints).await?;
            }
        }
    }
}

/// Wakes whom other servers' hints concern, for ever.
pub(crate) async fn listen(app: &App) -> Result<(), StoreError> {
    if !app.store.is_postgres() {
        return std::future::pending().await;
    }
    let mut hints = app.store.hints().await?;
    // What was missed while nobody listened is looked for at once.
    app.wake.notify_one();
    app.cancels.notify_one();
    app.timers.notify_one();
    app.cascades.facts();
    loop {
        match hints.next().await {
            Hint::Enqueued => app.wake.notify_one(),
            Hint::Cancel(run) => {
                app.cancels.notify_one();
                app.logs.wake(&run);
            }
            Hint::Log(run) => app.logs.wake(&run),
            Hint::Tasks => {
                app.timers.notify_one();
                app.cascades.facts();
            }
        }
    }
}
