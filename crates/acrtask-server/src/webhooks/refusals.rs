//! Counts of refused deliveries, which show operators why a sender's deliveries have no effect.
//!
//! Invariant: senders without a proof cause at most one write per second for each webhook and kind
//! of refusal. The next refusal, or a request for the list, writes the pending counts.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use acrtask_store::{RefusalRow, StoreError};
use tokio::time::Instant;

use crate::{App, api::ApiError};

/// Minimum time between two writes for the same webhook and kind.
const MIN_WRITE_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Pending {
    row: RefusalRow,
    /// `None` before the first write.
    written: Option<Instant>,
}

/// Refusals that are not written yet, by webhook and kind. Only existing webhooks have entries.
#[derive(Debug, Default)]
pub struct Refusals {
    pending: Mutex<HashMap<(String, String), Pending>>,
}

impl Refusals {
    /// Counts a refusal. Writes the pending count of its kind if the last write is older than
    /// [`MIN_WRITE_INTERVAL`].
    pub(super) async fn add(&self, app: &App, webhook: &str, refusal: &ApiError, address: IpAddr) {
        let now = app.clock.now_ms();
        let problem = refusal.problem();
        let row = {
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            let key = (webhook.to_owned(), problem.code.to_string());
            let one = pending
                .entry(key)
                .or_insert_with_key(|(webhook, code)| Pending {
                    row: RefusalRow {
                        webhook: webhook.clone(),
                        code: code.clone(),
                        message: String::new(),
                        address: String::new(),
                        refusals: 0,
                        first_at: now,
                        last_at: now,
                    },
                    written: None,
                });
            one.row.message.clone_from(&problem.message);
            one.row.address = address.to_string();
            one.row.refusals += 1;
            one.row.last_at = now;
            one.written
                .is_none_or(|written| written.elapsed() >= MIN_WRITE_INTERVAL)
                .then(|| take_row(one))
        };
        if let Some(row) = row
            && let Err(error) = app.store.add_refusals(&row).await
        {
            tracing::debug!(webhook, %error, "cannot record a refused delivery");
        }
    }

    /// Writes all pending counts.
    ///
    /// # Errors
    /// If the database is unavailable.
    pub(crate) async fn flush(&self, app: &App) -> Result<(), StoreError> {
        let rows: Vec<RefusalRow> = {
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            let pending = pending.values_mut().filter(|one| one.row.refusals > 0);
            pending.map(take_row).collect()
        };
        for row in rows {
            app.store.add_refusals(&row).await?;
        }
        Ok(())
    }
}

fn take_row(pending: &mut Pending) -> RefusalRow {
    let row = pending.row.clone();
    pending.row.refusals = 0;
    pending.written = Some(Instant::now());
    row
}
