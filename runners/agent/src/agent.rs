//! The one task that knows what this runner holds. It is told things, decides, and never waits for any of them.
//!
//! Told by the control plane (through [`crate::link`]), by the attempts that it started ([`Notice`]), by time, and by
//! whoever shuts it down.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use acrtask_proto::runner::{
    Accepted, Attempt as ProtoAttempt, Declined, Draining, Fence, FinishedAck, Heartbeat, Hello,
    Lease, LogAck, Renewed, Started, Welcome, from_runner::Message, to_runner,
};
use futures::FutureExt as _;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, Interval, MissedTickBehavior},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::{Code, Status};
use tracing::Instrument as _;

use crate::{
    beats::Beats,
    clock,
    config::AgentConfig,
    context::{SILENCE, Source},
    disk,
    error::AgentError,
    fence::Fences,
    held::{Held, Phase},
    id::AttemptId,
    key::{Key, StateDir},
    link::{Link, Stream, Told, say},
    pump::pump,
    register::Servers,
    run::{Attempt, Notice, Stop, Stopper},
    spool::RunLog,
    trace,
    window::Misfit,
    work::Work,
};

/// How often is looked at what time has brought.
const LOOK: Duration = Duration::from_millis(500);
/// Things that the link may be ahead with.
const TOLD: usize = 64;
/// A lease that cannot be taken is held for this long, so that it does not come back at once for ever.
const PAUSE: Duration = Duration::from_secs(1);
/// How long after the deadline of a drain results may still be delivered ...
const DELIVER: Duration = Duration::from_secs(10);
/// ... and what is stopped may take to be removed.
const STOPPING: Duration = Duration::from_secs(60);
/// How long the last messages may take.
const GOODBYE: Duration = Duration::from_secs(3);
/// A question before a push that was not answered for this long is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// Shortest heartbeat and lease, whatever the control plane says.
const SHORTEST: Duration = Duration::from_millis(100);

/// The agent.
#[derive(Debug)]
pub(crate) struct Agent {
    config: AgentConfig,
    state: StateDir,
    key: Key,
    work: Arc<dyn Work>,
    held: Held,
    fences: Fences,
    stream: Option<Open>,
    /// The runner is leaving: when what is left then is handed back.
    drain: Option<Instant>,
    tasks: JoinSet<AttemptId>,
    notices: mpsc::UnboundedSender<Notice>,
    noticed: mpsc::UnboundedReceiver<Notice>,
    source: Source,
    channel: watch::Sender<Option<tonic::transport::Channel>>,
}

/// The stream that is open.
#[derive(Debug)]
struct Open {
    stream: Stream,
    beats: Beats,
    beat: Interval,
    lease: Duration,
}

impl Agent {
    /// A runner that holds nothing.
    pub(crate) fn new(config: AgentConfig, state: StateDir, key: Key, work: Arc<dyn Work>) -> Self {
        let (notices, noticed) = mpsc::unbounded_channel();
        let (channel, channels) = watch::channel(None);
        Self {
            source: Source {
                channel: channels,
                key: Arc::new(key.key.clone()),
                work: state.work(),
                silence: SILENCE,
            },
            config,
            state,
            key,
            work,
            held: Held::default(),
            fences: Fences::default(),
            stream: None,
            drain: None,
            tasks: JoinSet::new(),
            notices,
            noticed,
            channel,
        }
    }

    /// Runs until it has drained, or the control plane does not know its key.
    pub(crate) async fn run(
        mut self,
        servers: Servers,
        shutdown: CancellationToken,
    ) -> Result<(), AgentError> {
        let (told, mut tells) = mpsc::channel(TOLD);
        let link = Link {
            servers,
            key: Arc::clone(&self.source.key),
            told,
            channel: self.channel.clone(),
        };
        let _link = AbortOnDropHandle::new(tokio::spawn(link.keep()));
        let mut look = interval(LOOK);
        while !self.may_leave() {
            tokio::select! {
                // What the control plane has said is heard before it is judged by what it has not said.
                biased;
                Some(told) = tells.recv() => {
                    if let Some((server, status)) = self.told(told) {
                        return self.refused(server, status).await;
                    }
                }
                Some(notice) = self.noticed.recv() => self.notice(notice),
                Some(ended) = self.tasks.join_next() => self.ended(ended),
                () = beat(&mut self.stream) => self.beat(),
                _ = look.tick() => self.look(),
                () = shutdown.cancelled(), if self.drain.is_none() => {
                    self.drain(Instant::now() + self.config.drain);
                }
            }
        }
        // The stream ends behind the last message, and the control plane ends its side when it has read that.
        self.stream = None;
        let goodbye = async { while !matches!(tells.recv().await, Some(Told::Closed) | None) {} };
        let _ = tokio::time::timeout(GOODBYE, goodbye).await;
        tracing::info!("the runner leaves");
        Ok(())
    }

    fn say(&self, message: Message) {
        if let Some(open) = &self.stream {
            // A stream that has just ended is told of soon.
            let _ = open.stream.control.send(say(message));
        }
    }

    fn free_disk(&self) -> u64 {
        disk::free(self.state.path()).unwrap_or_default()
    }

    /// Takes in what the link tells; returns why the key was refused, if it was.
    fn told(&mut self, told: Told) -> Option<(String, Status)> {
        match told {
            Told::Opening(answer) => {
                let _ = answer.send(self.hello());
            }
            Told::Open(stream, welcome) => self.open(stream, welcome),
            Told::Closed => {
                self.stream = None;
                self.held.disconnect();
            }
            Told::Message(message) => self.message(message),
            Told::Refused { server, status } => return Some((server, status)),
        }
        None
    }

    fn hello(&self) -> Hello {
        let abilities = self.work.abilities();
        Hello {
            version: env!("CARGO_PKG_VERSION").into(),
            platforms: abilities.platforms,
            slots: self.config.slots,
            labels: self.config.labels.clone().into_iter().collect(),
            pool: self.config.pool.clone().unwrap_or_default(),
            features: abilities.features.into_iter().collect(),
            free_disk: self.free_disk(),
            held: protos(&self.held.all(Phase::Offered)),
        }
    }

    fn open(&mut self, stream: Stream, welcome: Welcome) {
        let length = |millis: u32| Duration::from_millis(u64::from(millis)).max(SHORTEST);
        let lease = length(welcome.lease_ms);
        self.stream = Some(Open {
            stream,
            beats: Beats::new(lease, clock::now()),
            beat: interval(length(welcome.heartbeat_ms)),
            lease,
        });
        let kept: BTreeMap<AttemptId, u64> = welcome
            .kept
            .into_iter()
            .filter_map(|LogAck { of, offset }| Some((AttemptId::read(of)?, offset)))
            .collect();
        for id in self.held.lost(&kept) {
            self.abandon(&id, "the control plane has given it to another runner");
        }
        for (id, offset) in kept {
            self.go_on(&id, offset);
        }
        self.ask_again(Duration::ZERO);
        if self.drain.is_some() {
            self.say(Message::Draining(Draining {}));
        }
    }

    /// Asks again what was asked so long ago and not answered.
    fn ask_again(&mut self, ago: Duration) {
        for (nonce, id) in self.fences.again(clock::now(), ago) {
            let of = Some(id.proto());
            self.say(Message::Fence(Fence { of, nonce }));
        }
    }

    /// The attempt goes on with a new stream, on the other side of which its log is known up to `offset`.
    fn go_on(&mut self, id: &AttemptId, offset: u64) {
        let Some(entry) = self.held.ours(id) else {
            // It has come to its end here, and the lease ends when nobody renews it.
            return;
        };
        let phase = entry.phase;
        // It may have been lost with the stream before.
        match phase {
            Phase::Offered => {}
            Phase::Accepted => self.accept(id),
            Phase::Started | Phase::Over => self.start(id),
        }
        if let Err(error) = self.pump(id, offset) {
            self.misfit(id, &error);
        }
    }

    fn pump(&mut self, id: &AttemptId, offset: u64) -> Result<(), Misfit> {
        if let (Some(entry), Some(open)) = (self.held.ours(id), &self.stream) {
            let stream = entry.log.connect(offset)?;
            tokio::spawn(pump(
                Arc::clone(&entry.log),
                stream,
                open.stream.log.clone(),
            ));
        }
        Ok(())
    }

    fn accept(&self, id: &AttemptId) {
        let of = Some(id.proto());
        self.say(Message::Accepted(Accepted { of }));
    }

    fn start(&self, id: &AttemptId) {
        let of = Some(id.proto());
        self.say(Message::Started(Started { of }));
    }

    fn decline(&self, of: Option<ProtoAttempt>, reason: String) {
        tracing::info!(?of, reason, "a lease is given back");
        self.say(Message::Declined(Declined { of, reason }));
    }

    fn abandon(&mut self, id: &AttemptId, reason: &str) {
        if self.held.abandon(id) {
            tracing::warn!(%id, reason, "a run is not this runner's any more and is stopped");
            self.fences.forget(id);
        }
    }

    fn misfit(&mut self, id: &AttemptId, error: &Misfit) {
        tracing::error!(%id, %error, "a log does not fit what the control plane has of it");
        self.abandon(id, "its log cannot be made whole");
    }

    fn message(&mut self, message: to_runner::Message) {
        match message {
            to_runner::Message::Lease(lease) => self.lease(lease),
            to_runner::Message::Renewed(Renewed { held }) => {
                let renewed = held
                    .into_iter()
                    .filter_map(|of| AttemptId::read(Some(of)))
                    .collect();
                let lost = match &mut self.stream {
                    Some(open) => open.beats.answered(&renewed, clock::now()),
                    None => Vec::new(),
                };
                for id in lost {
                    self.abandon(&id, "its lease was not renewed");
                }
            }
            to_runner::Message::LogAck(LogAck { of, offset }) => {
                let Some(id) = AttemptId::read(of) else {
                    return;
                };
                let fits = match self.held.ours(&id) {
                    Some(entry) => entry.log.acknowledge(offset, clock::now()),
                    None => Ok(()),
                };
                if let Err(error) = fits {
                    self.misfit(&id, &error);
                }
            }
            to_runner::Message::Fence(answer) => {
                if let Some(open) = &self.stream {
                    self.fences.answer(answer.nonce, answer.granted, open.lease);
                }
            }
            to_runner::Message::FinishedAck(FinishedAck { of, log_offset }) => {
                let Some(id) = AttemptId::read(of) else {
                    return;
                };
                let over = self
                    .held
                    .ours(&id)
                    .filter(|entry| entry.phase == Phase::Over);
                match over.map(|entry| entry.log.finished(log_offset)) {
                    None | Some(Ok(false)) => {}
                    Some(Ok(true)) => self.held.let_go(&id),
                    Some(Err(error)) => self.misfit(&id, &error),
                }
            }
            to_runner::Message::Cancel(cancel) => {
                if let Some(id) = AttemptId::read(cancel.of)
                    && let Some(entry) = self.held.ours(&id)
                {
                    entry.stopper.stop(Stop::Canceled(cancel.reason));
                }
            }
            to_runner::Message::Abandon(abandon) => {
                if let Some(id) = AttemptId::read(abandon.of) {
                    self.abandon(&id, &abandon.reason);
                }
            }
            // Whether it is given anything is the control plane's to decide; it stays, and may be resumed.
            to_runner::Message::Drain(_) => {
                tracing::info!(
                    "the control plane has drained this runner and gives it nothing new"
                );
            }
            to_runner::Message::Welcome(_) => {}
        }
    }

    fn lease(&mut self, lease: Lease) {
        let Some(id) = AttemptId::read(lease.of.clone()) else {
            self.decline(lease.of, "this is no run that a runner could name".into());
            return;
        };
        if let Some(entry) = self.held.ours(&id) {
            // Said again: the answer may have been lost.
            match entry.phase {
                Phase::Offered => {}
                Phase::Accepted => self.accept(&id),
                Phase::Started | Phase::Over => self.start(&id),
            }
            return;
        }
        for earlier in self.held.rivals(&id) {
            self.abandon(&earlier, "a later attempt was leased");
        }
        let taken = self.held.all(Phase::Offered).len();
        if self.drain.is_some() {
            self.decline(lease.of, "the runner is leaving".into());
        } else if taken >= usize::try_from(self.config.slots).unwrap_or(usize::MAX)
            || self.held.knows(&id)
        {
            self.decline(lease.of, "the runner has no free slot".into());
        } else if self.free_disk() < self.config.min_free_disk.saturating_add(lease.context_size) {
            let reason = format!(
                "the runner has too little disk: less than {} MiB beside the run's own files",
                self.config.min_free_disk >> 20
            );
            self.decline_later(id, reason);
        } else {
            match RunLog::create(&self.state.spool(), id.clone()) {
                Ok(log) => self.take(id, lease, log),
                Err(error) => {
                    self.decline_later(id, format!("the runner cannot keep a log: {error}"));
                }
            }
        }
    }

    fn decline_later(&self, id: AttemptId, reason: String) {
        let notices = self.notices.clone();
        tokio::spawn(async move {
            tokio::time::sleep(PAUSE).await;
            let _ = notices.send(Notice::Decline(id, reason));
        });
    }

    fn take(&mut self, id: AttemptId, lease: Lease, log: Arc<RunLog>) {
        let stopper = Arc::new(Stopper::default());
        self.held
            .offer(id.clone(), Arc::clone(&log), Arc::clone(&stopper));
        let span = tracing::info_span!(
            "run",
            run = %id.run,
            attempt = id.attempt,
            runner = self.key.runner,
        );
        trace::adopt(&span, &lease.traceparent);
        let attempt = Attempt {
            id: id.clone(),
            lease,
            log,
            stopper,
            notices: self.notices.clone(),
            work: Arc::clone(&self.work),
            source: self.source.clone(),
        };
        if let Err(error) = self.pump(&id, 0) {
            tracing::error!(%error, "an empty log does not begin at its beginning");
        }
        let work = async move {
            // A panic is this attempt's; its lease ends and it is tried again.
            if AssertUnwindSafe(attempt.carry_out())
                .catch_unwind()
                .await
                .is_err()
            {
                tracing::error!("an attempt has failed inside the runner");
            }
            id
        };
        self.tasks.spawn(work.instrument(span));
    }

    fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::Accept(id) => {
                if let Some(entry) = self.held.ours(&id) {
                    entry.phase = Phase::Accepted;
                    self.accept(&id);
                }
            }
            Notice::Started(id) => {
                if let Some(entry) = self.held.ours(&id) {
                    entry.phase = Phase::Started;
                    self.start(&id);
                }
            }
            Notice::Decline(id, reason) => {
                // One that was never taken in is not known here at all.
                if self.held.ours(&id).is_some() || !self.held.knows(&id) {
                    self.decline(Some(id.proto()), reason);
                    self.held.let_go(&id);
                }
            }
            Notice::Fence(id, answer) => {
                // Whoever is not ours any more hears that nobody answers.
                if self.held.ours(&id).is_some() {
                    let nonce = self.fences.ask(id.clone(), answer, clock::now());
                    let of = Some(id.proto());
                    self.say(Message::Fence(Fence { of, nonce }));
                }
            }
        }
    }

    fn ended(&mut self, ended: Result<AttemptId, tokio::task::JoinError>) {
        match ended {
            Ok(id) => {
                // What it said last comes before its end.
                while let Ok(notice) = self.noticed.try_recv() {
                    self.notice(notice);
                }
                let over = self.held.ours(&id).is_some_and(|entry| entry.log.is_over());
                self.held.ended(&id, over);
                self.fences.forget(&id);
            }
            Err(error) => tracing::error!(%error, "an attempt has failed inside the runner"),
        }
    }

    fn beat(&mut self) {
        let held = self.held.all(Phase::Accepted);
        self.say(Message::Heartbeat(Heartbeat {
            held: protos(&held),
            free_disk: self.free_disk(),
        }));
        if let Some(open) = &mut self.stream {
            open.beats.sent(held, clock::now());
        }
    }

    fn look(&mut self) {
        if let Some(open) = &mut self.stream
            && open.beats.overdue(clock::now())
        {
            tracing::warn!("the control plane does not answer heartbeats; the stream is given up");
            open.stream.close.cancel();
        }
        if self.stream.is_some() {
            self.ask_again(ASK_AGAIN);
        }
        let Some(deadline) = self.drain else {
            return;
        };
        if Instant::now() >= deadline {
            for id in self.held.all(Phase::Offered) {
                if let Some(entry) = self.held.ours(&id)
                    && entry.phase != Phase::Over
                {
                    entry.stopper.stop(Stop::Drained);
                }
            }
        }
        if Instant::now() >= deadline + DELIVER {
            for id in self.held.all(Phase::Over) {
                self.abandon(&id, "its result could not be delivered in time");
            }
        }
    }

    fn drain(&mut self, deadline: Instant) {
        tracing::info!("the runner takes nothing new and leaves when what it holds is finished");
        self.drain = Some(deadline);
        self.say(Message::Draining(Draining {}));
    }

    fn may_leave(&self) -> bool {
        let Some(deadline) = self.drain else {
            return false;
        };
        self.held.is_empty() || Instant::now() >= deadline + STOPPING
    }

    /// The control plane does not know this runner: what it held is not its any more.
    async fn refused(mut self, server: String, status: Status) -> Result<(), AgentError> {
        for id in self.held.all(Phase::Offered) {
            self.abandon(&id, "the runner was removed");
        }
        let stopping = async { while self.tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(STOPPING, stopping).await;
        let message = status.message().to_owned();
        let path = self.state.key_path();
        Err(match status.code() {
            Code::PermissionDenied => AgentError::NotRegisteredFor {
                server,
                message,
                path,
            },
            _ => AgentError::KeyRefused {
                server,
                message,
                path,
            },
        })
    }
}

/// The next heartbeat; never, where there is no stream.
async fn beat(stream: &mut Option<Open>) {
    match stream {
        Some(open) => {
            open.beat.tick().await;
        }
        None => std::future::pending().await,
    }
}

/// From now on; what was missed is not made up for.
fn interval(period: Duration) -> Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

fn protos(ids: &BTreeSet<AttemptId>) -> Vec<ProtoAttempt> {
    ids.iter().map(AttemptId::proto).collect()
}
