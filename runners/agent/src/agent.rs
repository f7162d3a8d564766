//! The agent: the single task that owns the state of this runner. It decides and never waits.
//!
//! The inputs are events of the control plane (through [`crate::link`]), notices of attempts
//! ([`Notice`]), timers, and the shutdown signal.

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
    active_attempts::{ActiveAttempts, Phase},
    clock,
    config::AgentConfig,
    context::{SILENCE, Source},
    disk,
    error::AgentError,
    fence::Fences,
    heartbeat::HeartbeatTracker,
    id::AttemptId,
    key::{Key, StateDir},
    link::{Link, LinkEvent, Stream, wrap_message},
    log_window::OffsetMismatch,
    pump::pump,
    register::Servers,
    run::{Attempt, CancelHandle, Notice, StopReason},
    spool::RunLog,
    trace,
    work::Work,
};

/// Interval between checks of deadlines and timeouts.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// Capacity of the queue of link events.
const LINK_EVENT_QUEUE: usize = 64;
/// Delay before a lease is declined, so that it does not return at once again and again.
const DECLINE_DELAY: Duration = Duration::from_secs(1);
/// Time after the drain deadline in which results may still be delivered ...
const DELIVERY_GRACE: Duration = Duration::from_secs(10);
/// ... and in which stopped attempts may clean up.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
/// Timeout for the last messages.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);
/// Time after which an unanswered question before a push is repeated.
const FENCE_RETRY: Duration = Duration::from_secs(2);
/// Minimum heartbeat interval and lease time, whatever the control plane sends.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// State of the runner.
#[derive(Debug)]
pub(crate) struct Agent {
    config: AgentConfig,
    state: StateDir,
    key: Key,
    work: Arc<dyn Work>,
    attempts: ActiveAttempts,
    fences: Fences,
    stream: Option<OpenStream>,
    /// Deadline of the drain: the remaining attempts are then handed back. `None` before a drain.
    drain: Option<Instant>,
    tasks: JoinSet<AttemptId>,
    notices: mpsc::UnboundedSender<Notice>,
    noticed: mpsc::UnboundedReceiver<Notice>,
    source: Source,
    channel: watch::Sender<Option<tonic::transport::Channel>>,
}

/// An open stream to the control plane.
#[derive(Debug)]
struct OpenStream {
    stream: Stream,
    heartbeats: HeartbeatTracker,
    heartbeat_timer: Interval,
    lease: Duration,
}

impl Agent {
    /// Creates a runner without leases.
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
            attempts: ActiveAttempts::default(),
            fences: Fences::default(),
            stream: None,
            drain: None,
            tasks: JoinSet::new(),
            notices,
            noticed,
            channel,
        }
    }

    /// Runs until the runner has drained, or the control plane rejects its key.
    pub(crate) async fn run(
        mut self,
        servers: Servers,
        shutdown: CancellationToken,
    ) -> Result<(), AgentError> {
        let (events, mut link_events) = mpsc::channel(LINK_EVENT_QUEUE);
        let link = Link {
            servers,
            key: Arc::clone(&self.source.key),
            events,
            channel: self.channel.clone(),
        };
        let _link = AbortOnDropHandle::new(tokio::spawn(link.run()));
        let mut check_timer = interval(CHECK_INTERVAL);
        while !self.can_exit() {
            tokio::select! {
                // Received messages are handled before timeouts.
                biased;
                Some(event) = link_events.recv() => {
                    if let Some((server, status)) = self.handle_link_event(event) {
                        return self.exit_refused(server, status).await;
                    }
                }
                Some(notice) = self.noticed.recv() => self.handle_notice(notice),
                Some(ended) = self.tasks.join_next() => self.handle_stopped(ended),
                () = next_heartbeat(&mut self.stream) => self.send_heartbeat(),
                _ = check_timer.tick() => self.check_deadlines(),
                () = shutdown.cancelled(), if self.drain.is_none() => {
                    self.start_drain(Instant::now() + self.config.drain);
                }
            }
        }
        // Dropping the stream sends its end behind the last message; the server closes its side
        // then.
        self.stream = None;
        let closing =
            async { while !matches!(link_events.recv().await, Some(LinkEvent::Closed) | None) {} };
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, closing).await;
        tracing::info!("the runner exits");
        Ok(())
    }

    fn send(&self, message: Message) {
        if let Some(open) = &self.stream {
            // If the stream has just ended, a link event follows.
            let _ = open.stream.control.send(wrap_message(message));
        }
    }

    fn free_disk(&self) -> u64 {
        disk::free_bytes(self.state.path()).unwrap_or_default()
    }

    /// Handles an event of the link. Returns the server and the reason if the key was refused.
    fn handle_link_event(&mut self, event: LinkEvent) -> Option<(String, Status)> {
        match event {
            LinkEvent::Opening(answer) => {
                let _ = answer.send(self.build_hello());
            }
            LinkEvent::Open(stream, welcome) => self.handle_open(stream, welcome),
            LinkEvent::Closed => {
                self.stream = None;
                self.attempts.disconnect();
            }
            LinkEvent::Message(message) => self.handle_message(message),
            LinkEvent::Refused { server, status } => return Some((server, status)),
        }
        None
    }

    fn build_hello(&self) -> Hello {
        let abilities = self.work.abilities();
        Hello {
            version: env!("CARGO_PKG_VERSION").into(),
            platforms: abilities.platforms,
            slots: self.config.slots,
            labels: self.config.labels.clone().into_iter().collect(),
            pool: self.config.pool.clone().unwrap_or_default(),
            features: abilities.features.into_iter().collect(),
            free_disk: self.free_disk(),
            attempts: to_protos(&self.attempts.ids_from(Phase::Offered)),
        }
    }

    fn handle_open(&mut self, stream: Stream, welcome: Welcome) {
        let length = |millis: u32| Duration::from_millis(u64::from(millis)).max(MIN_INTERVAL);
        let lease = length(welcome.lease_ms);
        self.stream = Some(OpenStream {
            stream,
            heartbeats: HeartbeatTracker::new(lease, clock::now()),
            heartbeat_timer: interval(length(welcome.heartbeat_ms)),
            lease,
        });
        let kept: BTreeMap<AttemptId, u64> = welcome
            .kept
            .into_iter()
            .filter_map(|LogAck { of, offset }| Some((AttemptId::parse(of)?, offset)))
            .collect();
        for id in self.attempts.find_lost(&kept) {
            self.abandon(&id, "the control plane has leased it to another runner");
        }
        for (id, offset) in kept {
            self.resume(&id, offset);
        }
        self.resend_fences(Duration::ZERO);
        if self.drain.is_some() {
            self.send(Message::Draining(Draining {}));
        }
    }

    /// Repeats questions before pushes that have been unanswered for `ago`.
    fn resend_fences(&mut self, ago: Duration) {
        for (nonce, id) in self.fences.take_overdue(clock::now(), ago) {
            let of = Some(id.to_proto());
            self.send(Message::Fence(Fence { of, nonce }));
        }
    }

    /// Connects a leased attempt to a new stream, where the control plane has `offset` bytes of its
    /// log.
    fn resume(&mut self, id: &AttemptId, offset: u64) {
        let Some(entry) = self.attempts.leased_mut(id) else {
            // The attempt has ended here, and its lease expires without renewals.
            return;
        };
        let phase = entry.phase;
        // The message may have been lost with the previous stream.
        match phase {
            Phase::Offered => {}
            Phase::Accepted => self.send_accepted(id),
            Phase::Started | Phase::Finished => self.send_started(id),
        }
        if let Err(error) = self.start_pump(id, offset) {
            self.reject_log(id, &error);
        }
    }

    fn start_pump(&mut self, id: &AttemptId, offset: u64) -> Result<(), OffsetMismatch> {
        if let (Some(entry), Some(open)) = (self.attempts.leased_mut(id), &self.stream) {
            let stream = entry.log.connect(offset)?;
            tokio::spawn(pump(
                Arc::clone(&entry.log),
                stream,
                open.stream.log.clone(),
            ));
        }
        Ok(())
    }

    fn send_accepted(&self, id: &AttemptId) {
        let of = Some(id.to_proto());
        self.send(Message::Accepted(Accepted { of }));
    }

    fn send_started(&self, id: &AttemptId) {
        let of = Some(id.to_proto());
        self.send(Message::Started(Started { of }));
    }

    fn send_declined(&self, of: Option<ProtoAttempt>, reason: String) {
        tracing::info!(?of, reason, "declined a lease");
        self.send(Message::Declined(Declined { of, reason }));
    }

    fn abandon(&mut self, id: &AttemptId, reason: &str) {
        if self.attempts.abandon(id) {
            tracing::warn!(%id, reason, "stopping a run whose lease was lost");
            self.fences.forget(id);
        }
    }

    fn reject_log(&mut self, id: &AttemptId, error: &OffsetMismatch) {
        tracing::error!(%id, %error, "the local log does not match the control plane's");
        self.abandon(id, "its log is incomplete");
    }

    fn handle_message(&mut self, message: to_runner::Message) {
        match message {
            to_runner::Message::Lease(lease) => self.handle_lease(lease),
            to_runner::Message::Renewed(Renewed { attempts }) => {
                let renewed = attempts
                    .into_iter()
                    .filter_map(|of| AttemptId::parse(Some(of)))
                    .collect();
                let lost = match &mut self.stream {
                    Some(open) => open.heartbeats.record_response(&renewed, clock::now()),
                    None => Vec::new(),
                };
                for id in lost {
                    self.abandon(&id, "its lease was not renewed");
                }
            }
            to_runner::Message::LogAck(LogAck { of, offset }) => {
                let Some(id) = AttemptId::parse(of) else {
                    return;
                };
                let fits = match self.attempts.leased_mut(&id) {
                    Some(entry) => entry.log.acknowledge(offset, clock::now()),
                    None => Ok(()),
                };
                if let Err(error) = fits {
                    self.reject_log(&id, &error);
                }
            }
            to_runner::Message::Fence(answer) => {
                if let Some(open) = &self.stream {
                    self.fences.answer(answer.nonce, answer.granted, open.lease);
                }
            }
            to_runner::Message::FinishedAck(FinishedAck { of, log_offset }) => {
                let Some(id) = AttemptId::parse(of) else {
                    return;
                };
                let over = self
                    .attempts
                    .leased_mut(&id)
                    .filter(|entry| entry.phase == Phase::Finished);
                match over.map(|entry| entry.log.acknowledge_finish(log_offset)) {
                    None | Some(Ok(false)) => {}
                    Some(Ok(true)) => self.attempts.release(&id),
                    Some(Err(error)) => self.reject_log(&id, &error),
                }
            }
            to_runner::Message::Cancel(cancel) => {
                if let Some(id) = AttemptId::parse(cancel.of)
                    && let Some(entry) = self.attempts.leased_mut(&id)
                {
                    entry
                        .cancel_handle
                        .stop(StopReason::Canceled(cancel.reason));
                }
            }
            to_runner::Message::Abandon(abandon) => {
                if let Some(id) = AttemptId::parse(abandon.of) {
                    self.abandon(&id, &abandon.reason);
                }
            }
            // The control plane decides about new leases. The runner stays and may be resumed.
            to_runner::Message::Drain(_) => {
                tracing::info!(
                    "the control plane has drained this runner and leases it no new runs"
                );
            }
            to_runner::Message::Welcome(_) => {}
        }
    }

    fn handle_lease(&mut self, lease: Lease) {
        let Some(id) = AttemptId::parse(lease.of.clone()) else {
            self.send_declined(lease.of, "the id of the run is not valid".into());
            return;
        };
        if let Some(entry) = self.attempts.leased_mut(&id) {
            // The response to an earlier copy of the lease may have been lost.
            match entry.phase {
                Phase::Offered => {}
                Phase::Accepted => self.send_accepted(&id),
                Phase::Started | Phase::Finished => self.send_started(&id),
            }
            return;
        }
        for earlier in self.attempts.other_attempts(&id) {
            self.abandon(&earlier, "a later attempt was leased");
        }
        let taken = self.attempts.ids_from(Phase::Offered).len();
        if self.drain.is_some() {
            self.send_declined(lease.of, "the runner is leaving".into());
        } else if taken >= usize::try_from(self.config.slots).unwrap_or(usize::MAX)
            || self.attempts.contains(&id)
        {
            self.send_declined(lease.of, "the runner has no free slot".into());
        } else if self.free_disk() < self.config.min_free_disk.saturating_add(lease.context_size) {
            let reason = format!(
                "the runner has too little free disk: less than {} MiB beside the files of the run",
                self.config.min_free_disk >> 20
            );
            self.decline_later(id, reason);
        } else {
            match RunLog::create(&self.state.spool(), id.clone()) {
                Ok(log) => self.start_attempt(id, lease, log),
                Err(error) => {
                    self.decline_later(id, format!("the runner cannot store a log: {error}"));
                }
            }
        }
    }

    fn decline_later(&self, id: AttemptId, reason: String) {
        let notices = self.notices.clone();
        tokio::spawn(async move {
            tokio::time::sleep(DECLINE_DELAY).await;
            let _ = notices.send(Notice::Decline(id, reason));
        });
    }

    fn start_attempt(&mut self, id: AttemptId, lease: Lease, log: Arc<RunLog>) {
        let cancel_handle = Arc::new(CancelHandle::default());
        self.attempts
            .offer(id.clone(), Arc::clone(&log), Arc::clone(&cancel_handle));
        let span = tracing::info_span!(
            "run",
            run = %id.run,
            attempt = id.attempt,
            runner = self.key.runner,
        );
        trace::set_parent(&span, &lease.traceparent);
        let attempt = Attempt {
            id: id.clone(),
            lease,
            log,
            cancel_handle,
            notices: self.notices.clone(),
            work: Arc::clone(&self.work),
            source: self.source.clone(),
        };
        if let Err(error) = self.start_pump(&id, 0) {
            tracing::error!(%error, "a new log does not start at offset 0");
        }
        let work = async move {
            // A panic affects only this attempt: its lease expires and the run is tried again.
            if AssertUnwindSafe(attempt.carry_out())
                .catch_unwind()
                .await
                .is_err()
            {
                tracing::error!("an attempt panicked inside the runner");
            }
            id
        };
        self.tasks.spawn(work.instrument(span));
    }

    fn handle_notice(&mut self, notice: Notice) {
        match notice {
            Notice::Accept(id) => {
                if let Some(entry) = self.attempts.leased_mut(&id) {
                    entry.phase = Phase::Accepted;
                    self.send_accepted(&id);
                }
            }
            Notice::Started(id) => {
                if let Some(entry) = self.attempts.leased_mut(&id) {
                    entry.phase = Phase::Started;
                    self.send_started(&id);
                }
            }
            Notice::Decline(id, reason) => {
                // A lease that was declined before it was added is not present.
                if self.attempts.leased_mut(&id).is_some() || !self.attempts.contains(&id) {
                    self.send_declined(Some(id.to_proto()), reason);
                    self.attempts.release(&id);
                }
            }
            Notice::Fence(id, answer) => {
                // Without a lease the sender is dropped, and the attempt does not push.
                if self.attempts.leased_mut(&id).is_some() {
                    let nonce = self.fences.ask(id.clone(), answer, clock::now());
                    let of = Some(id.to_proto());
                    self.send(Message::Fence(Fence { of, nonce }));
                }
            }
        }
    }

    fn handle_stopped(&mut self, ended: Result<AttemptId, tokio::task::JoinError>) {
        match ended {
            Ok(id) => {
                // The last notices of an attempt precede its end.
                while let Ok(notice) = self.noticed.try_recv() {
                    self.handle_notice(notice);
                }
                let over = self
                    .attempts
                    .leased_mut(&id)
                    .is_some_and(|entry| entry.log.is_finished());
                self.attempts.mark_stopped(&id, over);
                self.fences.forget(&id);
            }
            Err(error) => tracing::error!(%error, "an attempt panicked inside the runner"),
        }
    }

    fn send_heartbeat(&mut self) {
        let named = self.attempts.ids_from(Phase::Accepted);
        self.send(Message::Heartbeat(Heartbeat {
            attempts: to_protos(&named),
            free_disk: self.free_disk(),
        }));
        if let Some(open) = &mut self.stream {
            open.heartbeats.record_sent(named, clock::now());
        }
    }

    fn check_deadlines(&mut self) {
        if let Some(open) = &mut self.stream
            && open.heartbeats.is_overdue(clock::now())
        {
            tracing::warn!("the control plane does not respond to heartbeats; closing the stream");
            open.stream.close.cancel();
        }
        if self.stream.is_some() {
            self.resend_fences(FENCE_RETRY);
        }
        let Some(deadline) = self.drain else {
            return;
        };
        if Instant::now() >= deadline {
            for id in self.attempts.ids_from(Phase::Offered) {
                if let Some(entry) = self.attempts.leased_mut(&id)
                    && entry.phase != Phase::Finished
                {
                    entry.cancel_handle.stop(StopReason::Drained);
                }
            }
        }
        if Instant::now() >= deadline + DELIVERY_GRACE {
            for id in self.attempts.ids_from(Phase::Finished) {
                self.abandon(&id, "its result could not be delivered in time");
            }
        }
    }

    fn start_drain(&mut self, deadline: Instant) {
        tracing::info!("draining: the runner accepts no new leases and exits after its runs");
        self.drain = Some(deadline);
        self.send(Message::Draining(Draining {}));
    }

    fn can_exit(&self) -> bool {
        let Some(deadline) = self.drain else {
            return false;
        };
        self.attempts.is_empty() || Instant::now() >= deadline + STOP_TIMEOUT
    }

    /// Stops all attempts after the control plane rejected the key, and returns the error.
    async fn exit_refused(mut self, server: String, status: Status) -> Result<(), AgentError> {
        for id in self.attempts.ids_from(Phase::Offered) {
            self.abandon(&id, "the runner was removed");
        }
        let stopping = async { while self.tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(STOP_TIMEOUT, stopping).await;
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

/// Waits for the next heartbeat. Never returns without a stream.
async fn next_heartbeat(stream: &mut Option<OpenStream>) {
    match stream {
        Some(open) => {
            open.heartbeat_timer.tick().await;
        }
        None => std::future::pending().await,
    }
}

/// Creates a timer that fires at once and skips missed ticks.
fn interval(period: Duration) -> Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

fn to_protos(ids: &BTreeSet<AttemptId>) -> Vec<ProtoAttempt> {
    ids.iter().map(AttemptId::to_proto).collect()
}
