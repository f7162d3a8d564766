//! Takes leases back that are over, and looks again at everything that a lost hint could have left lying.
//!
//! Invariants: a lease is not taken while this server itself may be why it was not renewed: for one lease period after its
//! start, and after a time without the database, the reaper only watches. Every page of expired leases is worked
//! through, so that no full page hides what is behind it.

use std::time::Duration;

use acrtask_model::RunState;
use acrtask_proto::runner::{Abandon, Attempt, Cancel, to_runner::Message};
use acrtask_store::{Hint, StoreError};
use tokio::time::Instant;

use crate::{App, hints::Outbox, recorder::millis};

/// Leases that are taken back in one transaction.
const PAGE: u32 = 200;
/// How often cancel requests are looked for.
pub(crate) const CANCELS: Duration = Duration::from_millis(300);
/// How often groups are looked at that have room.
pub(crate) const GROUPS: Duration = Duration::from_secs(3);
/// How often the books are checked.
pub(crate) const ACCOUNTS: Duration = Duration::from_secs(60);
/// How late a lease may be before the books call it an alarm, beside the grace of the reaper.
const SLACK: Duration = Duration::from_secs(30);

/// Whether silence of runners may be judged.
#[derive(Debug)]
pub(crate) struct Grace {
    lease: Duration,
    /// A longer time without the database counts as an absence.
    absence: Duration,
    until: Instant,
    last: Instant,
}

impl Grace {
    /// From the start of a server on.
    pub(crate) fn new(now: Instant, lease: Duration, poll: Duration) -> Self {
        Self {
            lease,
            absence: (lease / 3).max(poll * 3),
            until: now + lease,
            last: now,
        }
    }

    /// The database has answered at `now`: may leases be taken back?
    pub(crate) fn over(&mut self, now: Instant) -> bool {
        if now.duration_since(self.last) > self.absence {
            self.until = now + self.lease;
        }
        self.last = now;
        now >= self.until
    }
}

/// Takes leases back, for ever.
pub(crate) async fn run(app: &App, outbox: &Outbox, grace: &mut Grace) -> Result<(), StoreError> {
    loop {
        app.store.ping().await?;
        if grace.over(Instant::now()) {
            reap(app, outbox).await?;
        }
        tokio::time::sleep(app.config.poll).await;
    }
}

/// Takes all leases back that are over now.
async fn reap(app: &App, outbox: &Outbox) -> Result<(), StoreError> {
    loop {
        let reaped = app.store.reap(app.clock.now_ms(), PAGE).await?;
        for lost in &reaped {
            tracing::warn!(
                run = %lost.run,
                attempt = lost.attempt,
                runner = lost.runner_id,
                state = %lost.to,
                reason = lost.reason,
                "a lease was taken back"
            );
            app.metrics.lease_lost(lost.to);
            if lost.to != RunState::Queued {
                app.metrics.run_finished(lost.to);
            }
            let hold = app.hub.release(&lost.runner_id, &lost.run, lost.attempt);
            if hold.is_some_and(|hold| !hold.accepted) {
                // It would only get the same run again.
                app.hub.declined(&lost.runner_id);
            }
            let abandon = Abandon {
                of: Some(Attempt {
                    run: lost.run.to_string(),
                    attempt: lost.attempt,
                }),
                reason: lost.reason.clone(),
            };
            app.hub.tell(&lost.runner_id, Message::Abandon(abandon));
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

/// Tells runners which of their runs somebody wants to end.
pub(crate) async fn cancels(app: &App) -> Result<(), StoreError> {
    if app.hub.is_empty() {
        return Ok(());
    }
    for row in app.store.cancels().await? {
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
            tracing::info!(run = %row.run, runner = row.runner_id, reason = row.reason, "a runner was told to stop a run");
        }
    }
    Ok(())
}

/// Releases runs that wait for their group.
pub(crate) async fn groups(app: &App, outbox: &Outbox) -> Result<(), StoreError> {
    if app.store.release_groups(app.clock.now_ms()).await? > 0 {
        app.wake.notify_one();
        outbox.add(Hint::Enqueued);
    }
    Ok(())
}

/// Checks that every accepted trigger is accounted for.
pub(crate) async fn accounts(app: &App) -> Result<(), StoreError> {
    let slack = millis(app.config.lease * 2 + SLACK);
    let left = app.store.unaccounted(app.clock.now_ms(), slack).await?;
    for trigger in &left {
        let run = trigger.run.as_ref().map(ToString::to_string);
        tracing::error!(
            trigger = trigger.trigger,
            run,
            why = trigger.why,
            "a trigger is accounted for by nothing"
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
    async fn silence_is_not_judged_after_a_start_or_an_absence() {
        let lease = Duration::from_secs(30);
        let start = Instant::now();
        let mut grace = Grace::new(start, lease, Duration::from_secs(1));
        let at = |seconds| start + Duration::from_secs(seconds);
        for second in 1..30 {
            assert!(!grace.over(at(second)), "{second}");
        }
        assert!(grace.over(at(30)));
        assert!(grace.over(at(40)), "ten seconds are no absence");
        assert!(!grace.over(at(51)), "eleven are");
        for second in 52..81 {
            assert!(!grace.over(at(second)), "{second}");
        }
        assert!(grace.over(at(81)));
    }
}
