//! One attempt at a run, from its lease to the end of its log.
//!
//! Whatever happens, the log ends with `RunFinished`, and that says the same as the message that the run is over. The
//! exceptions are attempts that are not ours any more, about which nothing is said.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use acrtask_api::{
    run::TASK_FILE_REFUSED,
    spec::{Facts, RunSpec},
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
    context::{self, Source, Wanted},
    fence::{Answer, RunFence},
    id::AttemptId,
    results::Results,
    spool::{Finish, LogWriter, RunLog, event_of},
    work::{Ended, Job, Login, Work},
};

/// Events that wait for the disk, each with up to 64 KiB of output; more make the run wait.
const EVENTS: usize = 32;
/// A lease that cannot be taken is held for this long, so that it does not come back at once for ever.
const PAUSE: Duration = Duration::from_secs(1);

/// What an attempt tells the agent.
#[derive(Debug)]
pub(crate) enum Notice {
    /// It takes the lease.
    Accept(AttemptId),
    /// It gives the lease back.
    Decline(AttemptId, String),
    /// Its plan is made and it begins.
    Started(AttemptId),
    /// May it push?
    Fence(AttemptId, oneshot::Sender<Answer>),
}

/// Why an attempt is stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Somebody canceled the run.
    Canceled(String),
    /// Its log cannot be kept.
    NoLog(String),
    /// This runner leaves: the run goes back to the queue.
    Drained,
    /// It is not ours any more.
    Abandoned,
}

/// Stops an attempt, once: what was said first counts, but that it is not ours any more always does.
#[derive(Debug, Default)]
pub(crate) struct Stopper {
    why: Mutex<Option<Stop>>,
    token: CancellationToken,
}

impl Stopper {
    /// Stops the attempt.
    pub(crate) fn stop(&self, stop: Stop) {
        let mut why = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        if why.is_none() || stop == Stop::Abandoned {
            *why = Some(stop);
        }
        drop(why);
        self.token.cancel();
    }

    /// Why it is stopped, if it is.
    pub(crate) fn why(&self) -> Option<Stop> {
        self.why
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// An attempt that was leased to this runner.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) id: AttemptId,
    pub(crate) lease: Lease,
    pub(crate) log: Arc<RunLog>,
    pub(crate) stopper: Arc<Stopper>,
    pub(crate) notices: mpsc::UnboundedSender<Notice>,
    pub(crate) work: Arc<dyn Work>,
    pub(crate) source: Source,
}

impl Attempt {
    /// Carries it out. When this returns, everything of it on this machine is removed but its log.
    pub(crate) async fn carry_out(self) {
        if let Err(reason) = self.work.check().await {
            tracing::warn!(reason, "a lease is given back");
            tokio::time::sleep(PAUSE).await;
            let _ = self.notices.send(Notice::Decline(self.id, reason));
            return;
        }
        let _ = self.notices.send(Notice::Accept(self.id.clone()));
        let (events, taken) = mpsc::channel(EVENTS);
        let recorder = Recorder {
            id: self.id.clone(),
            writer: LogWriter::new(Arc::clone(&self.log)),
            results: Results::default(),
            stopper: Arc::clone(&self.stopper),
            notices: self.notices.clone(),
            last: None,
        };
        let recording = tokio::spawn(recorder.record(taken));
        let began = Instant::now();
        let (id, notices, stopper) = (
            self.id.clone(),
            self.notices.clone(),
            Arc::clone(&self.stopper),
        );
        let masks = Patterns::new(&secrets_of(&self.lease));
        let span = tracing::Span::current();
        // A panic is the run's, not the runner's.
        let working = tokio::spawn(tracing::Instrument::instrument(self.work(events), span));
        let ended = working.await.unwrap_or_else(|error| {
            tracing::error!(%error, "carrying out a run has failed");
            Ended::NotBegun("the runner failed at carrying it out; its own log says more".into())
        });
        let Ok(mut recorder) = recording.await else {
            // Without a record there is nothing to say; the lease ends, and the run is tried elsewhere.
            tracing::error!("writing the log of a run has failed");
            return;
        };
        let last = recorder.last.take();
        let (outcome, refused, facts) = match ended {
            Ended::Ran(facts) => (None, false, facts),
            Ended::Refused(facts) => {
                let reason = Some(TASK_FILE_REFUSED.to_owned());
                let state = RunState::Failed;
                (Some(Outcome { state, reason }), true, facts)
            }
            Ended::Invalid(reason) => {
                let reason = Some(masks.mask(&reason));
                let state = RunState::Failed;
                (Some(Outcome { state, reason }), true, Facts::default())
            }
            Ended::NotBegun(reason) => {
                let reason = Some(masks.mask(&reason));
                let state = RunState::Error;
                (Some(Outcome { state, reason }), false, Facts::default())
            }
        };
        let (outcome, elapsed_ms, left) = match (outcome, last) {
            (
                None,
                Some(EventKind::RunFinished {
                    outcome,
                    elapsed_ms,
                    left,
                }),
            ) => (outcome, elapsed_ms, left),
            (outcome, _) => {
                let elapsed = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                let outcome = outcome.unwrap_or(Outcome {
                    state: RunState::Error,
                    reason: Some("the run did not say how it ended".into()),
                });
                (outcome, elapsed, Vec::new())
            }
        };
        let outcome = match judge(stopper.why(), outcome) {
            Judged::Over(outcome) => outcome,
            Judged::HandBack => {
                let reason = "the runner was told to stop".to_owned();
                let _ = notices.send(Notice::Decline(id, reason));
                return;
            }
            Judged::Silent => return,
        };
        tracing::info!(
            state = outcome.state.as_str(),
            reason = outcome.reason,
            "a run is over"
        );
        let finished = EventKind::RunFinished {
            outcome: outcome.clone(),
            elapsed_ms,
            left,
        };
        recorder.end(outcome, finished, refused, facts).await;
    }

    async fn work(self, events: mpsc::Sender<Event>) -> Ended {
        let Self {
            id,
            lease,
            stopper,
            notices,
            work,
            source,
            ..
        } = self;
        let spec: RunSpec = match serde_json::from_str(&lease.spec_json) {
            Ok(spec) => spec,
            Err(error) => {
                return Ended::NotBegun(format!(
                    "this runner, which is version {}, does not understand what the run is to do: {error}; give it \
                     the control plane's version",
                    env!("CARGO_PKG_VERSION")
                ));
            }
        };
        let domain = match domain_of(&lease) {
            Ok(domain) => domain,
            Err(reason) => {
                return Ended::NotBegun(format!(
                    "this runner, which is version {}, cannot isolate the run: {reason}; give it the control plane's \
                     version",
                    env!("CARGO_PKG_VERSION")
                ));
            }
        };
        let wanted = Wanted {
            size: lease.context_size,
            digest: lease.context_digest,
        };
        let files = if wanted.digest.is_empty() {
            None
        } else {
            let fetching = context::fetch(&source, &id, &wanted);
            let fetched = tokio::select! {
                fetched = fetching => fetched,
                () = stopper.token.cancelled() => return Ended::NotBegun("it was stopped".into()),
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
            fence: Arc::new(RunFence::new(id, notices)),
        };
        let ended = work.carry_out(job, events, stopper.token.clone()).await;
        // What was fetched is removed only now.
        drop(files);
        ended
    }
}

/// Reads the run's domain from its lease. Without one a run does not begin.
fn domain_of(lease: &Lease) -> Result<RunDomain, String> {
    Ok(RunDomain {
        trust: TrustDomain::parse(&lease.trust_domain).map_err(|error| error.to_string())?,
        cache_namespace: CacheNamespace::new(lease.cache_namespace.as_str())
            .map_err(|error| error.to_string())?,
        cache_seal_key: CacheSealKey::new(lease.cache_seal_key.as_str())
            .map_err(|error| error.to_string())?,
    })
}

fn secrets_of(lease: &Lease) -> Vec<Secret> {
    let passwords = lease.credentials.iter().map(|login| &login.password);
    lease
        .secrets
        .values()
        .chain(passwords)
        .chain([&lease.cache_namespace, &lease.cache_seal_key])
        .map(Secret::new)
        .collect()
}

/// What is said of an attempt that has ended.
#[derive(Debug, PartialEq, Eq)]
enum Judged {
    /// The run is over.
    Over(Outcome),
    /// The run goes back to the queue.
    HandBack,
    /// Nothing.
    Silent,
}

/// What the end of an attempt means, with what stopped it.
fn judge(stop: Option<Stop>, outcome: Outcome) -> Judged {
    let said = |state, reason| {
        Judged::Over(Outcome {
            state,
            reason: Some(reason),
        })
    };
    match stop {
        None => Judged::Over(outcome),
        Some(Stop::Abandoned) => Judged::Silent,
        Some(Stop::NoLog(reason)) => said(RunState::Error, reason),
        // It was through before it could be stopped: what it pushed is pushed.
        Some(Stop::Canceled(_) | Stop::Drained) if outcome.state == RunState::Succeeded => {
            Judged::Over(outcome)
        }
        Some(Stop::Canceled(reason)) => said(RunState::Canceled, reason),
        Some(Stop::Drained) => match outcome.state {
            // The executor was interrupted, or had not begun.
            RunState::Canceled | RunState::Error => Judged::HandBack,
            _ => Judged::Over(outcome),
        },
    }
}

/// Writes an attempt's events down.
struct Recorder {
    id: AttemptId,
    writer: LogWriter,
    results: Results,
    stopper: Arc<Stopper>,
    notices: mpsc::UnboundedSender<Notice>,
    /// `RunFinished`, held back until it is known what stopped the run.
    last: Option<EventKind>,
}

impl Recorder {
    async fn record(mut self, mut taken: mpsc::Receiver<Event>) -> Self {
        let mut events = Vec::with_capacity(EVENTS);
        while taken.recv_many(&mut events, EVENTS).await > 0 {
            for event in &events {
                self.results.see(&event.kind);
                if matches!(event.kind, EventKind::RunStarted { .. }) {
                    let _ = self.notices.send(Notice::Started(self.id.clone()));
                }
            }
            let last = events.pop_if(|event| matches!(event.kind, EventKind::RunFinished { .. }));
            self.last = last.map(|event| event.kind).or(self.last);
            if let Err(reason) = self.writer.write(&events).await {
                tracing::error!(reason, "a run is stopped");
                self.stopper.stop(Stop::NoLog(reason));
            }
            events.clear();
        }
        self
    }

    async fn end(mut self, mut outcome: Outcome, finished: EventKind, refused: bool, facts: Facts) {
        let event = event_of(&self.id.run, finished);
        if let Err(reason) = self.writer.write(&[event]).await {
            // The log has the outcome that it had; what counts says that the log is not whole.
            outcome = Outcome {
                state: RunState::Error,
                reason: Some(reason),
            };
        }
        let result = self.results.result(refused, facts);
        let result = serde_json::to_string(&result).unwrap_or_else(|error| {
            tracing::error!(%error, "the result of a run cannot be written");
            "{}".into()
        });
        self.writer.end(Finish {
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
    fn what_stopped_a_run_decides_how_it_ended() {
        use RunState::{Canceled, Error, Failed, Succeeded, TimedOut};
        let own = |state| Judged::Over(outcome(state));
        let said = |state, reason: &str| {
            Judged::Over(Outcome {
                state,
                reason: Some(reason.into()),
            })
        };
        let canceled = || Some(Stop::Canceled("by jo".into()));
        let table = [
            (None, Failed, own(Failed)),
            (canceled(), Canceled, said(Canceled, "by jo")),
            (canceled(), Error, said(Canceled, "by jo")),
            (canceled(), Succeeded, own(Succeeded)),
            (Some(Stop::Drained), Canceled, Judged::HandBack),
            (Some(Stop::Drained), Error, Judged::HandBack),
            (Some(Stop::Drained), Failed, own(Failed)),
            (Some(Stop::Drained), TimedOut, own(TimedOut)),
            (Some(Stop::Drained), Succeeded, own(Succeeded)),
            (
                Some(Stop::NoLog("full".into())),
                Succeeded,
                said(Error, "full"),
            ),
            (Some(Stop::Abandoned), Succeeded, Judged::Silent),
        ];
        for (stop, state, expected) in table {
            assert_eq!(
                judge(stop.clone(), outcome(state)),
                expected,
                "{stop:?} {state}"
            );
        }
    }

    #[test]
    fn the_first_word_counts_but_for_the_last_one() {
        let stopper = Stopper::default();
        stopper.stop(Stop::Canceled("first".into()));
        stopper.stop(Stop::Drained);
        assert_eq!(stopper.why(), Some(Stop::Canceled("first".into())));
        stopper.stop(Stop::Abandoned);
        stopper.stop(Stop::Canceled("late".into()));
        assert_eq!(stopper.why(), Some(Stop::Abandoned));
        assert!(stopper.token.is_cancelled());
    }
}
