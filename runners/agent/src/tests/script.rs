//! Scripted execution of runs, step by step under control of the test.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use acrtask_api::spec::Variables;
use acrtask_model::{
    Event, EventKind, Outcome, RunState, StepId,
    events::{StepSummary, Stream},
};
use futures::future::BoxFuture;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    spool::event_of,
    work::{Abilities, Ended, Job, Work},
};

/// Next action of a scripted run.
#[derive(Debug)]
pub(super) enum Action {
    /// Prints this number of lines of 100 bytes.
    Print(usize),
    /// Asks the fence and sends the answer to the test.
    Push(oneshot::Sender<Result<(), String>>),
    /// Ends the run with this state.
    End(RunState),
    /// Ends before the run begins.
    Invalid(String),
    NotBegun(String),
    /// Refuses the task file.
    Refused,
    /// Panics.
    Panic,
}

/// Control handle of a scripted run.
#[derive(Debug)]
pub(super) struct ScriptedRun {
    pub(super) job: ReceivedJob,
    pub(super) acts: mpsc::UnboundedSender<Action>,
    pub(super) cancel: CancellationToken,
    /// Permits a stopped run to end.
    pub(super) may_end: Arc<Notify>,
}

/// Parts of the job that the run received.
#[derive(Debug)]
pub(super) struct ReceivedJob {
    pub(super) secrets: BTreeMap<String, String>,
    pub(super) password: Option<String>,
    pub(super) upload: Option<Vec<String>>,
}

impl ScriptedRun {
    pub(super) fn send(&self, act: Action) {
        self.acts.send(act).unwrap();
    }
}

/// Execution by script.
#[derive(Debug)]
pub(super) struct ScriptedWork {
    begun: mpsc::UnboundedSender<ScriptedRun>,
    /// Reason why no run can begin.
    pub(super) broken: Mutex<Option<String>>,
    /// A stopped run waits for `may_end`.
    pub(super) slow_stop: bool,
}

impl ScriptedWork {
    pub(super) fn new(slow_stop: bool) -> (Arc<Self>, mpsc::UnboundedReceiver<ScriptedRun>) {
        let (begun, begins) = mpsc::unbounded_channel();
        let script = Self {
            begun,
            broken: Mutex::default(),
            slow_stop,
        };
        (Arc::new(script), begins)
    }
}

impl Work for ScriptedWork {
    fn abilities(&self) -> Abilities {
        Abilities {
            platforms: vec!["linux/amd64".into()],
            features: BTreeMap::from([("engine".into(), "a script".into())]),
        }
    }

    fn check(&self) -> BoxFuture<'_, Result<(), String>> {
        let broken = self.broken.lock().unwrap().clone();
        Box::pin(async move { broken.map_or(Ok(()), Err) })
    }

    fn carry_out(
        &self,
        job: Job,
        events: mpsc::Sender<Event>,
        cancel: CancellationToken,
    ) -> BoxFuture<'_, Ended> {
        Box::pin(self.follow(job, events, cancel))
    }
}

impl ScriptedWork {
    async fn follow(
        &self,
        job: Job,
        events: mpsc::Sender<Event>,
        cancel: CancellationToken,
    ) -> Ended {
        let (acts, mut to_do) = mpsc::unbounded_channel();
        let may_end = Arc::new(Notify::new());
        let secrets = job.secrets.iter();
        let upload = job.upload.as_ref().map(|folder| {
            let entries = std::fs::read_dir(folder).unwrap();
            entries
                .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
                .collect()
        });
        let running = ScriptedRun {
            job: ReceivedJob {
                secrets: secrets
                    .map(|(name, value)| (name.clone(), value.expose().to_owned()))
                    .collect(),
                password: job
                    .logins
                    .first()
                    .map(|login| login.password.expose().into()),
                upload,
            },
            acts,
            cancel: cancel.clone(),
            may_end: Arc::clone(&may_end),
        };
        self.begun.send(running).unwrap();
        let step = StepId::new("s").unwrap();
        let emit = |kind| events.send(event_of(&job.id, kind));
        let mut begun = false;
        loop {
            let act = tokio::select! {
                act = to_do.recv() => act.unwrap_or(Action::End(RunState::Canceled)),
                () = cancel.cancelled() => {
                    if self.slow_stop {
                        may_end.notified().await;
                    }
                    Action::End(RunState::Canceled)
                }
            };
            if !begun
                && !matches!(
                    act,
                    Action::Invalid(_) | Action::NotBegun(_) | Action::Refused
                )
            {
                begun = true;
                let summary = StepSummary {
                    id: step.clone(),
                    r#type: "cmd".into(),
                    line: "script".into(),
                    after: Vec::new(),
                };
                let started = EventKind::RunStarted {
                    steps: vec![summary],
                    engine: "script".into(),
                    builder: "script".into(),
                };
                emit(started).await.unwrap();
            }
            match act {
                Action::Print(lines) => {
                    for number in 0..lines {
                        let output = EventKind::Output {
                            step: step.clone(),
                            stream: Stream::Stdout,
                            vertex: None,
                            text: format!("{number:0>100}"),
                        };
                        emit(output).await.unwrap();
                    }
                }
                Action::Push(answer) => {
                    let pushed = tokio::select! {
                        pushed = job.fence.may_push() => pushed,
                        () = cancel.cancelled() => Err("stopped".into()),
                    };
                    let _ = answer.send(pushed);
                }
                Action::End(state) => {
                    let finished = EventKind::RunFinished {
                        outcome: Outcome {
                            state,
                            reason: (state != RunState::Succeeded).then(|| "by script".into()),
                        },
                        elapsed_ms: 1,
                        remaining: Vec::new(),
                    };
                    emit(finished).await.unwrap();
                    return Ended::Ran(Variables {
                        commit: "c0ffee".into(),
                        ..Variables::default()
                    });
                }
                Action::Invalid(reason) => return Ended::Invalid(reason),
                Action::NotBegun(reason) => return Ended::NotBegun(reason),
                Action::Refused => return Ended::Refused(Variables::default()),
                Action::Panic => panic!("by script"),
            }
        }
    }
}
