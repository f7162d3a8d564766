//! Execution of one attempt, from its lease to the end of its log.
//!
//! The log always ends with `RunFinished`, with the same result as the final message. The only
//! exceptions are attempts whose lease is lost: the runner reports nothing about them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use acrtask_api::{
    run::TASK_FILE_REFUSED,
    spec::{RunSpec, Variables},
};
use acrtask_model::{
    CacheNamespace, CacheSealKey, Event, EventKind, Outcome, RunDomain, RunState, Secret,
    TrustDomain, mask::Patterns,
};
use acrtask_proto::runner::Lease;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    context::{self, ExpectedContext, Source},
    fence::{Answer, RunFence},
    id::AttemptId,
    records::RunRecords,
    results::Results,
    spool::{Finish, LogWriter, RunLog, event_of},
    work::{Ended, Job, Login, Work},
};

/// Capacity of the queue of events, each with up to 64 KiB of output. A full queue delays the run.
const EVENT_QUEUE: usize = 32;
/// Delay before a lease is declined, so that it does not return at once again and again.
const DECLINE_DELAY: Duration = Duration::from_secs(1);

/// Message of an attempt to the agent.
#[derive(Debug)]
pub(crate) enum Notice {
    /// The attempt accepts the lease.
    Accept(AttemptId),
    /// The attempt declines the lease.
    Decline(AttemptId, String),
    /// The plan is complete and the run starts.
    Started(AttemptId),
    /// The attempt asks for the permission to push.
    Fence(AttemptId, oneshot::Sender<Answer>),
}

/// Reason to stop an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StopReason {
    /// A user canceled the run.
    Canceled(String),
    /// The log cannot be stored.
    NoLog(String),
    /// The runner shuts down: the run returns to the queue.
    Drained,
    /// The lease is lost.
    Abandoned,
}

/// Stops an attempt. The first reason counts, except that a lost lease replaces any other reason.
#[derive(Debug, Default)]
pub(crate) struct CancelHandle {
    reason: Mutex<Option<StopReason>>,
    token: CancellationToken,
}

impl CancelHandle {
    /// Stops the attempt.
    pub(crate) fn stop(&self, stop: StopReason) {
        let mut reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        if reason.is_none() || stop == StopReason::Abandoned {
            *reason = Some(stop);
        }
        drop(reason);
        self.token.cancel();
    }

    /// Returns the reason if the attempt was stopped.
    pub(crate) fn reason(&self) -> Option<StopReason> {
        self.reason
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// An attempt that is leased to this runner.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) id: AttemptId,
    pub(crate) lease: Lease,
    pub(crate) log: Arc<RunLog>,
    pub(crate) cancel_handle: Arc<CancelHandle>,
    pub(crate) notices: mpsc::UnboundedSender<Notice>,
    pub(crate) work: Arc<dyn Work>,
    pub(crate) source: Source,
}

impl Attempt {
    /// Executes the attempt. Afterwards only its log is left on this machine.
    pub(crate) async fn carry_out(self) {
        if let Err(reason) = self.work.check().await {
            tracing::warn!(reason, "declining a lease");
            tokio::time::sleep(DECLINE_DELAY).await;
            let _ = self.notices.send(Notice::Decline(self.id, reason));
            return;
        }
        let _ = self.notices.send(Notice::Accept(self.id.clone()));
        let (events, taken) = mpsc::channel(EVENT_QUEUE);
        let recorder = Recorder {
            id: self.id.clone(),
            writer: LogWriter::new(Arc::clone(&self.log)),
            results: Results::default(),
            cancel_handle: Arc::clone(&self.cancel_handle),
            notices: self.notices.clone(),
            last: None,
        };
        let recording = tokio::spawn(recorder.record(taken));
        let began = Instant::now();
        let (id, notices, cancel_handle) = (
            self.id.clone(),
            self.notices.clone(),
            Arc::clone(&self.cancel_handle),
        );
        let masks = Patterns::new(&collect_secrets(&self.lease));
        let span = tracing::Span::current();
        // A panic fails the run, not the runner.
        let working = tokio::spawn(tracing::Instrument::instrument(self.work(events), span));
        let ended = working.await.unwrap_or_else(|error| {
            tracing::error!(%error, "executing a run panicked");
            Ended::NotBegun("the runner failed to execute the run; see the runner's own log".into())
        });
        let Ok(mut recorder) = recording.await else {
            // Without a log there is nothing to report: the lease expires, and the run is retried.
            tracing::error!("writing the log of a run panicked");
            return;
        };
        let last = recorder.last.take();
        let (outcome, refused, variables) = match ended {
            Ended::Ran(variables) => (None, false, variables),
            Ended::Refused(variables) => {
                let reason = Some(TASK_FILE_REFUSED.to_owned());
                let state = RunState::Failed;
                (Some(Outcome { state, reason }), true, variables)
            }
            Ended::Invalid(reason) => {
                let reason = Some(masks.mask(&reason));
                let state = RunState::Failed;
                (Some(Outcome { state, reason }), true, Variables::default())
            }
            Ended::NotBegun(reason) => {
                let reason = Some(masks.mask(&reason));
                let state = RunState::Error;
                (Some(Outcome { state, reason }), false, Variables::default())
            }
        };
        let (outcome, elapsed_ms, remaining) = match (outcome, last) {
            (
                None,
                Some(EventKind::RunFinished {
                    outcome,
                    elapsed_ms,
                    remaining,
                }),
            ) => (outcome, elapsed_ms, remaining),
            (outcome, _) => {
                let elapsed = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                let outcome = outcome.unwrap_or(Outcome {
                    state: RunState::Error,
                    reason: Some("the executor reported no result of the run".into()),
                });
                (outcome, elapsed, Vec::new())
            }
        };
        let outcome = match decide_end(cancel_handle.reason(), outcome) {
            AttemptEnd::Finished(outcome) => outcome,
            AttemptEnd::HandBack => {
                let reason = "the runner is shutting down".to_owned();
                let _ = notices.send(Notice::Decline(id, reason));
                return;
            }
            AttemptEnd::Silent => return,
        };
        tracing::info!(
            state = outcome.state.as_str(),
            reason = outcome.reason,
            "finished a run"
        );
        let finished = EventKind::RunFinished {
            outcome: outcome.clone(),
            elapsed_ms,
            remaining,
        };
        recorder.finish(outcome, finished, refused, variables).await;
    }

    async fn work(self, events: mpsc::Sender<Event>) -> Ended {
        let Self {
            id,
            lease,
            cancel_handle,
            notices,
            work,
            source,
            ..
        } = self;
        let spec: RunSpec = match serde_json::from_str(&lease.spec_json) {
            Ok(spec) => spec,
            Err(error) => {
                return Ended::NotBegun(format!(
                    "this runner, version {}, does not support the specification of the run: {error}; install \
                     the server's version",
                    env!("CARGO_PKG_VERSION")
                ));
            }
        };
        let domain = match parse_domain(&lease) {
            Ok(domain) => domain,
            Err(reason) => {
                return Ended::NotBegun(format!(
                    "this runner, version {}, cannot isolate the run: {reason}; install the server's \
                     version",
                    env!("CARGO_PKG_VERSION")
                ));
            }
        };
        let wanted = ExpectedContext {
            size: lease.context_size,
            digest: lease.context_digest,
        };
        let files = if wanted.digest.is_empty() {
            None
        } else {
            let fetching = context::fetch(&source, &id, &wanted);
            let fetched = tokio::select! {
                fetched = fetching => fetched,
                () = cancel_handle.token.cancelled() => return Ended::NotBegun("the run was stopped before it began".into()),
            };
            match fetched {
                Ok(files) => Some(files),
                Err(reason) => return Ended::NotBegun(reason),
            }
        };
        let logins = lease.credentials.into_iter().map(|login| Login {
            host: login.host,
            username: login.username,
            password: Secret::new(login.password),
        });
        let secrets = lease.secrets.into_iter();
        let job = Job {
            id: id.run.clone(),
            attempt: id.attempt,
            domain,
            spec,
            secrets: secrets
                .map(|(name, value)| (name, Secret::new(value)))
                .collect::<BTreeMap<_, _>>(),
            vault_task: Some(lease.vault_task).filter(|task| !task.is_empty()),
            logins: logins.collect(),
            upload: files.as_ref().map(|files| files.root.clone()),
            records: Arc::new(RunRecords::new(id.clone(), source)),
            fence: Arc::new(RunFence::new(id, notices)),
        };
        let ended = work
            .carry_out(job, events, cancel_handle.token.clone())
            .await;
        // The files are removed only after the run.
        drop(files);
        ended
    }
}

/// Parses the run's domain in its lease. A run without a domain does not begin.
fn parse_domain(lease: &Lease) -> Result<RunDomain, String> {
    Ok(RunDomain {
        trust: TrustDomain::parse(&lease.trust_domain).map_err(|error| error.to_string())?,
        cache_namespace: CacheNamespace::new(lease.cache_namespace.as_str())
            .map_err(|error| error.to_string())?,
        cache_seal_key: CacheSealKey::new(lease.cache_seal_key.as_str())
            .map_err(|error| error.to_string())?,
    })
}

fn collect_secrets(lease: &Lease) -> Vec<Secret> {
    let passwords = lease.credentials.iter().map(|login| &login.password);
    lease
        .secrets
        .values()
        .chain(passwords)
        .chain([&lease.cache_namespace, &lease.cache_seal_key])
        .map(Secret::new)
        .collect()
}

/// Outcome of an attempt that has ended.
#[derive(Debug, PartialEq, Eq)]
enum AttemptEnd {
    /// The run is finished.
    Finished(Outcome),
    /// The run returns to the queue.
    HandBack,
    /// The runner reports nothing.
    Silent,
}

/// Decides the outcome of an attempt from its result and the reason why it was stopped.
fn decide_end(stop: Option<StopReason>, outcome: Outcome) -> AttemptEnd {
    let finished = |state, reason| {
        AttemptEnd::Finished(Outcome {
            state,
            reason: Some(reason),
        })
    };
    match stop {
        None => AttemptEnd::Finished(outcome),
        Some(StopReason::Abandoned) => AttemptEnd::Silent,
        Some(StopReason::NoLog(reason)) => finished(RunState::Error, reason),
        // The run finished before it could be stopped, and its pushes are done.
        Some(StopReason::Canceled(_) | StopReason::Drained)
            if outcome.state == RunState::Succeeded =>
        {
            AttemptEnd::Finished(outcome)
        }
        Some(StopReason::Canceled(reason)) => finished(RunState::Canceled, reason),
        Some(StopReason::Drained) => match outcome.state {
            // The executor was interrupted or had not begun.
            RunState::Canceled | RunState::Error => AttemptEnd::HandBack,
            _ => AttemptEnd::Finished(outcome),
        },
    }
}

/// Writer of an attempt's events.
struct Recorder {
    id: AttemptId,
    writer: LogWriter,
    results: Results,
    cancel_handle: Arc<CancelHandle>,
    notices: mpsc::UnboundedSender<Notice>,
    /// The event `RunFinished`, delayed until the reason for a stop is certain.
    last: Option<EventKind>,
}

impl Recorder {
    async fn record(mut self, mut taken: mpsc::Receiver<Event>) -> Self {
        let mut events = Vec::with_capacity(EVENT_QUEUE);
        while taken.recv_many(&mut events, EVENT_QUEUE).await > 0 {
            for event in &events {
                self.results.apply(event);
                if matches!(event.kind, EventKind::RunStarted { .. }) {
                    let _ = self.notices.send(Notice::Started(self.id.clone()));
                }
            }
            let last = events.pop_if(|event| matches!(event.kind, EventKind::RunFinished { .. }));
            self.last = last.map(|event| event.kind).or(self.last);
            if let Err(reason) = self.writer.write(&events).await {
                tracing::error!(reason, "stopping a run whose log cannot be stored");
                self.cancel_handle.stop(StopReason::NoLog(reason));
            }
            events.clear();
        }
        self
    }

    async fn finish(
        mut self,
        mut outcome: Outcome,
        finished: EventKind,
        refused: bool,
        variables: Variables,
    ) {
        let event = event_of(&self.id.run, finished);
        if let Err(reason) = self.writer.write(&[event]).await {
            // The log keeps its outcome; the final message reports that the log is incomplete.
            outcome = Outcome {
                state: RunState::Error,
                reason: Some(reason),
            };
        }
        let result = self.results.into_result(refused, variables);
        let result = serde_json::to_string(&result).unwrap_or_else(|error| {
            tracing::error!(%error, "cannot serialize the result of a run");
            "{}".into()
        });
        self.writer.finish(Finish {
            state: outcome.state,
            reason: outcome.reason,
            result,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(state: RunState) -> Outcome {
        Outcome {
            state,
            reason: Some("its own".into()),
        }
    }

    #[test]
    fn stop_reason_decides_the_outcome() {
        use RunState::{Canceled, Error, Failed, Succeeded, TimedOut};
        let own = |state| AttemptEnd::Finished(outcome(state));
        let finished = |state, reason: &str| {
            AttemptEnd::Finished(Outcome {
                state,
                reason: Some(reason.into()),
            })
        };
        let canceled = || Some(StopReason::Canceled("by jo".into()));
        let table = [
            (None, Failed, own(Failed)),
            (canceled(), Canceled, finished(Canceled, "by jo")),
            (canceled(), Error, finished(Canceled, "by jo")),
            (canceled(), Succeeded, own(Succeeded)),
            (Some(StopReason::Drained), Canceled, AttemptEnd::HandBack),
            (Some(StopReason::Drained), Error, AttemptEnd::HandBack),
            (Some(StopReason::Drained), Failed, own(Failed)),
            (Some(StopReason::Drained), TimedOut, own(TimedOut)),
            (Some(StopReason::Drained), Succeeded, own(Succeeded)),
            (
                Some(StopReason::NoLog("full".into())),
                Succeeded,
                finished(Error, "full"),
            ),
            (Some(StopReason::Abandoned), Succeeded, AttemptEnd::Silent),
        ];
        for (stop, state, expected) in table {
            assert_eq!(
                decide_end(stop.clone(), outcome(state)),
                expected,
                "{stop:?} {state}"
            );
        }
    }

    #[test]
    fn first_stop_reason_counts_unless_the_lease_is_lost() {
        let cancel_handle = CancelHandle::default();
        cancel_handle.stop(StopReason::Canceled("first".into()));
        cancel_handle.stop(StopReason::Drained);
        assert_eq!(
            cancel_handle.reason(),
            Some(StopReason::Canceled("first".into()))
        );
        cancel_handle.stop(StopReason::Abandoned);
        cancel_handle.stop(StopReason::Canceled("late".into()));
        assert_eq!(cancel_handle.reason(), Some(StopReason::Abandoned));
        assert!(cancel_handle.token.is_cancelled());
    }
}
