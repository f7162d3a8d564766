//! Hints that wake the other servers of a shared PostgreSQL database.
//!
//! Invariant: a hint only saves time. A timer repeats every check that a hint triggers early.
//! Outgoing hints are collected for [`COLLECT`], so that a busy server does not send a notification
//! for each log chunk.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use acrtask_model::RunId;
use acrtask_store::{Hint, StoreError};
use tokio::sync::Notify;

use crate::App;

/// Time for which hints are collected before they are sent together.
const COLLECT: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
struct Pending {
    enqueued: bool,
    logs: HashSet<RunId>,
    others: Vec<Hint>,
}

/// Hints that wait to be sent.
#[derive(Debug, Clone)]
pub(crate) struct Outbox {
    /// Collected hints. `None` if no other servers can share the database.
    pending: Option<Arc<(Mutex<Pending>, Notify)>>,
}

impl Outbox {
    /// Creates an outbox. Without `shared`, it drops all hints.
    pub(crate) fn new(shared: bool) -> Self {
        Self {
            pending: shared.then(Arc::default),
        }
    }

    /// Queues `hint`. It is sent within [`COLLECT`].
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

    /// Sends collected hints until the database fails.
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
                app.store.send_hints(&hints).await?;
            }
        }
    }
}

/// Wakes the background tasks that the hints of other servers concern, until the database fails.
pub(crate) async fn listen(app: &App) -> Result<(), StoreError> {
    if !app.store.is_postgres() {
        return std::future::pending().await;
    }
    let mut hints = app.store.listen_for_hints().await?;
    // Hints from before the subscription are lost: check everything now.
    app.wake.notify_one();
    app.cancels.notify_one();
    app.timers.notify_one();
    app.cascades.mark_facts_changed();
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
                app.cascades.mark_facts_changed();
            }
        }
    }
}
