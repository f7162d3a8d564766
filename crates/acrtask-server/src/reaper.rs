//! Reaper of expired leases, and regular checks for everything that a lost hint could have left
//! undone.
//!
//! Invariants:
//!
//! - A lease is not taken back while this server itself may be the reason for a missing renewal.
//!   For one lease period after its start, and after a time without the database, the reaper only
//!   observes.
//! - All pages of expired leases are processed, so a full page never hides the next one.

use std::time::Duration;

use acrtask_model::RunState;
use acrtask_proto::runner::{Abandon, Attempt, Cancel, to_runner::Message};
use acrtask_store::{Hint, StoreError};
use tokio::time::Instant;

use crate::{App, hints::Outbox, recorder::as_millis};

/// Number of leases to take back per transaction.
const PAGE: u32 = 200;
/// Interval between checks for cancel requests.
pub(crate) const CANCEL_INTERVAL: Duration = Duration::from_millis(300);
/// Interval between checks for concurrency groups with free places.
pub(crate) const GROUP_INTERVAL: Duration = Duration::from_secs(3);
/// Interval between audits of triggers.
pub(crate) const AUDIT_INTERVAL: Duration = Duration::from_secs(60);
/// Delay of a lease, beyond the grace period of the reaper, before the audit reports it.
const AUDIT_SLACK: Duration = Duration::from_secs(30);

/// Grace period in which missing renewals do not count.
#[derive(Debug)]
pub(crate) struct Grace {
    lease: Duration,
    /// A longer time without the database starts a new grace period.
    outage: Duration,
    until: Instant,
    last: Instant,
}

impl Grace {
    /// Starts the grace period of a new server.
    pub(crate) fn new(now: Instant, lease: Duration, poll: Duration) -> Self {
        Self {
            lease,
            outage: (lease / 3).max(poll * 3),
            until: now + lease,
            last: now,
        }
    }

    /// Records a response of the database at `now`. Returns `true` if leases may be taken back.
    pub(crate) fn allows_reaping(&mut self, now: Instant) -> bool {
        if now.duration_since(self.last) > self.outage {
            self.until = now + self.lease;
        }
        self.last = now;
        now >= self.until
    }
}

/// Takes back expired leases, forever.
pub(crate) async fn run(app: &App, outbox: &Outbox, grace: &mut Grace) -> Result<(), StoreError> {
    loop {
        app.store.ping().await?;
        if grace.allows_reaping(Instant::now()) {
            reap_expired(app, outbox).await?;
        }
        tokio::time::sleep(app.config.poll).await;
    }
}

/// Takes back all leases that are expired now.
async fn reap_expired(app: &App, outbox: &Outbox) -> Result<(), StoreError> {
    loop {
        let reaped = app.store.expire_leases(app.clock.now_ms(), PAGE).await?;
        for lost in &reaped {
            tracing::warn!(
                run = %lost.run,
                attempt = lost.attempt,
                runner = lost.runner_id,
                state = %lost.to,
                reason = lost.reason,
                "took back an expired lease"
            );
            app.metrics.count_lost_lease(lost.to);
            if lost.to != RunState::Queued {
                app.metrics.count_finished_run(lost.to);
            }
            let lease = app.hub.release(&lost.runner_id, &lost.run, lost.attempt);
            if lease.is_some_and(|lease| !lease.accepted) {
                // The runner would only get the same run again.
                app.hub.mark_declined(&lost.runner_id);
            }
            let abandon = Abandon {
                of: Some(Attempt {
                    run: lost.run.to_string(),
                    attempt: lost.attempt,
                }),
                reason: lost.reason.clone(),
            };
            app.hub.send(&lost.runner_id, Message::Abandon(abandon));
            app.logs.wake(&lost.run);
            outbox.add(Hint::Log(lost.run.clone()));
        }
        if !reaped.is_empty() {
            app.cascades.wake();
            app.wake.notify_one();
            outbox.add(Hint::Enqueued);
        }
        if reaped.len() < PAGE as usize {
            return Ok(());
        }
    }
}

/// Sends cancel requests to the runners.
pub(crate) async fn send_cancels(app: &App) -> Result<(), StoreError> {
    if app.hub.is_empty() {
        return Ok(());
    }
    for row in app.store.cancel_requests().await? {
        let cancel = Cancel {
            of: Some(Attempt {
                run: row.run.to_string(),
                attempt: row.attempt,
            }),
            reason: row.reason.clone(),
        };
        let message = Message::Cancel(cancel);
        if app
            .hub
            .cancel(&row.runner_id, &row.run, row.attempt, message)
        {
            tracing::info!(run = %row.run, runner = row.runner_id, reason = row.reason, "sent a cancel request to a runner");
        }
    }
    Ok(())
}

/// Releases runs that are blocked by their concurrency group.
pub(crate) async fn release_groups(app: &App, outbox: &Outbox) -> Result<(), StoreError> {
    if app.store.release_blocked_runs(app.clock.now_ms()).await? > 0 {
        app.wake.notify_one();
        outbox.add(Hint::Enqueued);
    }
    Ok(())
}

/// Reports accepted triggers that led to nothing.
pub(crate) async fn audit_triggers(app: &App) -> Result<(), StoreError> {
    let slack = as_millis(app.config.lease * 2 + AUDIT_SLACK);
    let left = app
        .store
        .unaccounted_triggers(app.clock.now_ms(), slack)
        .await?;
    for trigger in &left {
        let run = trigger.run.as_ref().map(ToString::to_string);
        tracing::error!(
            trigger = trigger.trigger,
            run,
            why = trigger.why,
            "a trigger has no outcome"
        );
    }
    let count = i64::try_from(left.len()).unwrap_or(i64::MAX);
    app.metrics.unaccounted.set(count);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn no_lease_expires_after_a_start_or_a_database_outage() {
        let lease = Duration::from_secs(30);
        let start = Instant::now();
        let mut grace = Grace::new(start, lease, Duration::from_secs(1));
        let at = |seconds| start + Duration::from_secs(seconds);
        for second in 1..30 {
            assert!(!grace.allows_reaping(at(second)), "{second}");
        }
        assert!(grace.allows_reaping(at(30)));
        assert!(
            grace.allows_reaping(at(40)),
            "ten seconds count as an outage"
        );
        assert!(
            !grace.allows_reaping(at(51)),
            "eleven seconds do not count as an outage"
        );
        for second in 52..81 {
            assert!(!grace.allows_reaping(at(second)), "{second}");
        }
        assert!(grace.allows_reaping(at(81)));
    }
}
