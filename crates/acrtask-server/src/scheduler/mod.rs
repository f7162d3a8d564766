//! Hands queued runs to runners.
//!
//! A loop that takes no input: it is woken by a hint, a free slot or a timer, asks who has free slots and what is ready, and
//! goes on until nothing more can be placed. The database leases; [`place`] only says who takes what. A lease that does
//! not reach its runner goes back to the queue at once. The work of a pass is bounded by the batch and by the runners
//! that are free, not by the length of the queue.

pub mod place;

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

use self::place::Board;
use crate::{
    App,
    recorder::{Recorder, millis},
    runners::hub::Hold,
    submit::{LeaseError, lease_payload},
};

/// Leases of one transaction.
const BATCH: u32 = 256;
/// Leases that are made ready for their runners at once.
const AT_ONCE: usize = 16;
/// The SHA-256 of nothing.
const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Hands out runs, for ever.
pub(crate) async fn run(app: &Arc<App>, recorder: &Recorder) -> Result<(), StoreError> {
    loop {
        // What was given back in this round waits for the next one, so that nothing goes round and round.
        while !app.closing.is_cancelled() && pass(app, recorder).await? == Pass::GoOn {}
        tokio::select! {
            () = app.wake.notified() => {}
            () = tokio::time::sleep(app.config.poll) => {}
        }
    }
}

/// Whether it makes sense to look again at once.
#[derive(Debug, PartialEq, Eq)]
enum Pass {
    GoOn,
    Rest,
}

/// One batch.
async fn pass(app: &Arc<App>, recorder: &Recorder) -> Result<Pass, StoreError> {
    let free = app.hub.free(app.config.lease * 2 / 3);
    if free.is_empty() {
        return Ok(Pass::Rest);
    }
    let classes = app.store.ready_classes().await?;
    let board = Board::new(free, &classes);
    let classes = board.classes();
    if classes.is_empty() {
        return Ok(Pass::Rest);
    }
    let limit = board.slots().min(BATCH);
    let leased = app
        .store
        .claim(
            &classes,
            limit,
            app.clock.now_ms(),
            millis(app.config.lease),
            millis(app.config.accept),
            move |candidates| board.place(candidates),
        )
        .await?;
    let some = !leased.is_empty();
    let delivered = futures::stream::iter(leased)
        .map(|run| deliver(app, recorder, run))
        .buffer_unordered(AT_ONCE)
        .fold(true, async |all, one| all && one)
        .await;
    Ok(if some && delivered {
        Pass::GoOn
    } else {
        Pass::Rest
    })
}

/// Sends a lease; false where it was given back.
async fn deliver(app: &Arc<App>, recorder: &Recorder, run: RunRow) -> bool {
    let (id, attempt) = (run.id.clone(), run.attempt);
    let runner = run.runner_id.clone().unwrap_or_default();
    let hold = Hold {
        attempt,
        created_at: Some(run.created_at),
        ..Hold::default()
    };
    let back = match lease(app, &run).await {
        Ok(lease) => match app.hub.deliver(&runner, &id, hold, Message::Lease(lease)) {
            Ok(()) => {
                app.metrics.leases.inc();
                tracing::info!(run = %id, attempt, runner, "a run was handed to a runner");
                return true;
            }
            Err(undelivered) => Report::Declined {
                reason: undelivered.to_string(),
            },
        },
        Err(LeaseError::Store(error)) => {
            tracing::error!(run = %id, error = acrtask_model::chain(&error), "a lease cannot be made");
            Report::Declined {
                reason: "the database failed while the lease was made".into(),
            }
        }
        Err(error) => {
            let reason = acrtask_model::chain(&error);
            tracing::error!(run = %id, reason, "a run cannot be handed to any runner");
            Report::Finished {
                state: RunState::Error,
                reason: Some(reason),
                result: Box::new(RunResult::default()),
                log_length: 0,
                log_sha256: EMPTY_SHA256.into(),
            }
        }
    };
    let ended = matches!(back, Report::Finished { .. });
    drop(recorder.submit(&runner, &id, attempt, back).await);
    ended
}

/// All that a runner needs for a run.
async fn lease(app: &App, run: &RunRow) -> Result<Lease, LeaseError> {
    let payload = lease_payload(app, run).await?;
    let (context_size, context_digest) = match (&run.spec.context, &run.context_id) {
        (ContextSource::Upload { .. }, Some(id)) => match app.store.context(id).await {
            Ok(context) => (context.size, context.digest.to_string()),
            Err(StoreError::NotFound { what }) => {
                return Err(LeaseError::Hopeless(format!("there is no {what} any more")));
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
        return Err(LeaseError::Hopeless(format!(
            "what the run is to do and its secrets are {size} bytes, and a lease holds {MAX_MESSAGE}"
        )));
    }
    Ok(lease)
}
