//! Work of a test: it does what the test tells it, when the test tells it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use acrtask_api::spec::Facts;
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

/// What a run of the script does next.
#[derive(Debug)]
pub(super) enum Act {
    /// Prints so many lines of 100 bytes.
    Print(usize),
    /// Asks the fence; the answer is given to the test.
    Push(oneshot::Sender<Result<(), String>>),
    /// Ends so.
    End(RunState),
    /// Ends before it began.
    Invalid(String),
    NotBegun(String),
    /// Its task file is refused.
    Refused,
    /// Goes down.
    Panic,
}

/// The other end of a run of the script.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) job: Seen,
    pub(super) acts: mpsc::UnboundedSender<Act>,
    pub(super) cancel: CancellationToken,
    /// Notified when the run is allowed to end after it was stopped.
    pub(super) let_go: Arc<Notify>,
}

/// What a run was given.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) secrets: BTreeMap<String, String>,
    pub(super) password: Option<String>,
    pub(super) upload: Option<Vec<String>>,
}

impl Running {
    pub(super) fn act(&self, act: Act) {
        self.acts.send(act).unwrap();
    }
}

/// Carries runs out by script.
#[derive(Debug)]
pub(super) struct Script {
    begun: mpsc::UnboundedSender<Running>,
    /// Why no run can begin.
    pub(super) broken: Mutex<Option<String>>,
    /// A run that is stopped waits to be let go.
    pub(super) slow_stop: bool,
}

impl Script {
    pub(super) fn new(slow_stop: bool) -> (Arc<Self>, mpsc::UnboundedReceiver<Running>) {
        let (begun, begins) = mpsc::unbounded_channel();
        let script = Self {
            begun,
            broken: Mutex::default(),
            slow_stop,
        };
        (Arc::new(script), begins)
    }
}

impl Work for Script {
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

impl Script {
    async fn follow(
        &self,
        job: Job,
        events: mpsc::Sender<Event>,
        cancel: CancellationToken,
    ) -> Ended {
        let (acts, mut to_do) = mpsc::unbounded_channel();
        let let_go = Arc::new(Notify::new());
        let secrets = job.secrets.iter();
        let upload = job.upload.as_ref().map(|folder| {
            let entries = std::fs::read_dir(folder).unwrap();
            entries
                .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
                .collect()
        });
        let running = Running {
            job: Seen {
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
            let_go: Arc::clone(&let_go),
        };
        self.begun.send(running).unwrap();
        let step = StepId::new("s").unwrap();
        let tell = |kind| events.send(event_of(&job.id, kind));
        let mut begun = false;
        loop {
            let act = tokio::select! {
                act = to_do.recv() => act.unwrap_or(Act::End(RunState::Canceled)),
                () = cancel.cancelled() => {
                    if self.slow_stop {
                        let_go.notified().await;
                    }
                    Act::End(RunState::Canceled)
                }
            };
            if !begun && !matches!(act, Act::Invalid(_) | Act::NotBegun(_) | Act::Refused) {
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
                tell(started).await.unwrap();
            }
            match act {
                Act::Print(lines) => {
                    for number in 0..lines {
                        let output = EventKind::Output {
                            step: step.clone(),
                            stream: Stream::Stdout,
                            vertex: None,
                            text: format!("{number:0>100}"),
                        };
                        tell(output).await.unwrap();
                    }
                }
                Act::Push(answer) => {
                    let pushed = tokio::select! {
                        pushed = job.fence.may_push() => pushed,
                        () = cancel.cancelled() => Err("stopped".into()),
                    };
                    let _ = answer.send(pushed);
                }
                Act::End(state) => {
                    let finished = EventKind::RunFinished {
                        outcome: Outcome {
                            state,
                            reason: (state != RunState::Succeeded).then(|| "by script".into()),
                        },
                        elapsed_ms: 1,
                        left: Vec::new(),
                    };
                    tell(finished).await.unwrap();
                    return Ended::Ran(Facts {
                        commit: "c0ffee".into(),
                        ..Facts::default()
                    });
                }
                Act::Invalid(reason) => return Ended::Invalid(reason),
                Act::NotBegun(reason) => return Ended::NotBegun(reason),
                Act::Refused => return Ended::Refused(Facts::default()),
                Act::Panic => panic!("by script"),
            }
        }
    }
}
