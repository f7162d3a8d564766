//! Scheduler that leases queued runs to runners.
//!
//! A hint, a free slot or a timer wakes its loop. Each pass reads the free runners and the ready
//! runs, and passes continue until nothing more can be assigned. [`assignment`] decides which
//! runner gets which run; the database makes the leases. A lease that does not reach its runner
//! returns to the queue at once.
//!
//! The work of a pass is bounded by the batch and the number of free runners, not by the length of
//! the queue.

pub mod assignment;
mod lease;

use std::sync::Arc;

use acrtask_api::{run::RunResult, spec::ContextSource};
use acrtask_model::RunState;
use acrtask_proto::{
    MAX_MESSAGE,
    runner::{Attempt, Credential, Lease, to_runner::Message},
};
use acrtask_store::{Report, RunRow, StoreError};
use futures::StreamExt as _;
use prost::Message as _;

use self::assignment::Assignment;
pub(crate) use self::lease::RENAMED;
pub use self::lease::{LeaseError, LeasePayload, load_lease_payload};
use crate::{
    App,
    recorder::{Recorder, as_millis},
    runners::hub::SlotLease,
};

/// Maximum number of leases in one transaction.
const BATCH: u32 = 256;
/// Number of leases that are prepared and sent concurrently.
const MAX_CONCURRENT: usize = 16;
/// SHA-256 of the empty string.
const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Leases runs, forever.
pub(crate) async fn run(app: &Arc<App>, recorder: &Recorder) -> Result<(), StoreError> {
    loop {
        // Leases that were returned in this round wait for the next one, which prevents a busy
        // loop.
        while !app.closing.is_cancelled()
            && lease_batch(app, recorder).await? == BatchOutcome::Continue
        {}
        tokio::select! {
            () = app.wake.notified() => {}
            () = tokio::time::sleep(app.config.poll) => {}
        }
    }
}

/// Result of a pass.
#[derive(Debug, PartialEq, Eq)]
enum BatchOutcome {
    Continue,
    Wait,
}

/// Leases one batch of runs.
async fn lease_batch(app: &Arc<App>, recorder: &Recorder) -> Result<BatchOutcome, StoreError> {
    let free = app.hub.free_runners(app.config.lease * 2 / 3);
    if free.is_empty() {
        return Ok(BatchOutcome::Wait);
    }
    let requirements = app.store.ready_requirements().await?;
    let assignment = Assignment::new(free, &requirements);
    let requirements = assignment.claimable_requirements();
    if requirements.is_empty() {
        return Ok(BatchOutcome::Wait);
    }
    let limit = assignment.free_slots().min(BATCH);
    let leased = app
        .store
        .claim(
            &requirements,
            limit,
            app.clock.now_ms(),
            as_millis(app.config.lease),
            as_millis(app.config.accept),
            move |candidates| assignment.assign(candidates),
        )
        .await?;
    let leased_any = !leased.is_empty();
    let delivered = futures::stream::iter(leased)
        .map(|run| deliver_lease(app, recorder, run))
        .buffer_unordered(MAX_CONCURRENT)
        .fold(true, async |all, one| all && one)
        .await;
    Ok(if leased_any && delivered {
        BatchOutcome::Continue
    } else {
        BatchOutcome::Wait
    })
}

/// Sends a lease. Returns `false` if it was returned to the queue.
async fn deliver_lease(app: &Arc<App>, recorder: &Recorder, run: RunRow) -> bool {
    let (id, attempt) = (run.id.clone(), run.attempt);
    let runner = run.runner_id.clone().unwrap_or_default();
    let slot_lease = SlotLease {
        attempt,
        created_at: Some(run.created_at),
        ..SlotLease::default()
    };
    let returned = match build_lease(app, &run).await {
        Ok(lease) => match app
            .hub
            .deliver(&runner, &id, slot_lease, Message::Lease(lease))
        {
            Ok(()) => {
                app.metrics.leases.inc();
                tracing::info!(run = %id, attempt, runner, "leased a run");
                return true;
            }
            Err(undelivered) => Report::Declined {
                reason: undelivered.to_string(),
            },
        },
        Err(LeaseError::Store(error)) => {
            tracing::error!(run = %id, error = acrtask_model::error_chain(&error), "failed to prepare a lease");
            Report::Declined {
                reason: "the database failed while preparing the lease".into(),
            }
        }
        Err(error) => {
            let reason = acrtask_model::error_chain(&error);
            tracing::error!(run = %id, reason, "a run can never be leased");
            Report::Finished {
                state: RunState::Error,
                reason: Some(reason),
                result: Box::new(RunResult::default()),
                log_length: 0,
                log_sha256: EMPTY_SHA256.into(),
            }
        }
    };
    let ended = matches!(returned, Report::Finished { .. });
    drop(recorder.submit(&runner, &id, attempt, returned).await);
    ended
}

/// Builds the lease message of a run.
async fn build_lease(app: &App, run: &RunRow) -> Result<Lease, LeaseError> {
    let payload = load_lease_payload(app, run).await?;
    let (context_size, context_digest) = match (&run.spec.context, &run.context_id) {
        (ContextSource::Upload { .. }, Some(id)) => match app.store.context(id).await {
            Ok(context) => (context.size, context.digest.to_string()),
            Err(StoreError::NotFound { what }) => {
                return Err(LeaseError::Permanent(format!("{what} no longer exists")));
            }
            Err(error) => return Err(error.into()),
        },
        _ => (0, String::new()),
    };
    let lease = Lease {
        of: Some(Attempt {
            run: run.id.to_string(),
            attempt: run.attempt,
        }),
        spec_json: payload.spec_json,
        secrets: payload
            .secrets
            .iter()
            .map(|(name, value)| (name.clone(), value.expose().to_owned()))
            .collect(),
        credentials: payload
            .credentials
            .into_iter()
            .map(|credential| Credential {
                host: credential.host,
                username: credential.username,
                password: credential.password.0,
            })
            .collect(),
        traceparent: run.traceparent.clone(),
        context_size,
        context_digest,
        trust_domain: run.trust_domain.key(),
        vault_task: payload.vault_task.unwrap_or_default(),
        cache_namespace: app
            .vault
            .cache_namespace(&run.trust_domain)
            .expose()
            .to_owned(),
        cache_seal_key: app
            .vault
            .cache_seal_key(&run.trust_domain)
            .expose()
            .to_owned(),
    };
    let size = lease.encoded_len();
    if size > MAX_MESSAGE - 1024 {
        return Err(LeaseError::Permanent(format!(
            "the definition and secrets of the run have {size} bytes; a lease may have at most {MAX_MESSAGE}"
        )));
    }
    Ok(lease)
}
