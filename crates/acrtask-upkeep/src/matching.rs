//! Matching of filters away from the threads of the async runtime.
//!
//! Invariant: a purge that is stopped or dropped ends its matches within [`WATCH_INTERVAL`] and one
//! match, because all its filters share a budget.

use std::{sync::Arc, time::Duration};

use acrtask_purge::Budget;

use crate::Permission;

/// Interval between checks whether a command was stopped.
const WATCH_INTERVAL: Duration = Duration::from_millis(200);

/// Stops a budget when it is dropped, so that no thread continues to match.
#[derive(Debug, Default)]
pub(crate) struct BudgetGuard(pub(crate) Arc<Budget>);

impl Drop for BudgetGuard {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Runs `work` on a thread for blocking work.
pub(crate) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| error.to_string())?
}

/// Awaits `work`. Stops the budget as soon as the command was stopped.
pub(crate) async fn watch<T>(
    budget: &Budget,
    permission: &dyn Permission,
    work: impl Future<Output = T>,
) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        match tokio::time::timeout(WATCH_INTERVAL, &mut work).await {
            Ok(done) => return done,
            Err(_) if permission.is_stopped() => budget.stop(),
            Err(_) => {}
        }
    }
}
