//! Session of one runner's stream, from its hello to its end.
//!
//! Reports go to the recorder in their order of arrival, and responses follow the verdicts. Chunks
//! of logs and a final report behind them have a queue of their own, because their bytes go into
//! blobs first: slow blob storage delays no heartbeat.
//!
//! Invariants:
//! - The number of messages in flight is bounded. At the bound the session stops reading.
//! - The session acknowledges only committed reports.
//! - A report about a run of another runner is answered with Abandon, and its bytes are dropped.

use std::{collections::HashMap, sync::Arc, time::Duration};

use acrtask_api::run::RunResult;
use acrtask_model::{RunId, RunState};
use acrtask_proto::runner::{
    Abandon, Attempt, Drain, FenceAnswer, Finished, FinishedAck, FromRunner, Heartbeat, Hello,
    LogAck, LogChunk, Renewed, ToRunner, Welcome, from_runner::Message as From, to_runner::Message,
};
use acrtask_store::{Report, RunnerRow, Verdict};
use futures::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, join_all},
    stream::{FuturesOrdered, FuturesUnordered},
};
use tokio::sync::{Semaphore, mpsc};
use tonic::Streaming;

use super::{
    chunks::{AckedOffsets, Chunk, put_chunk},
    digest::LogDigests,
    facts::{check_hello, clamp_to_i64, replace_nul, truncate_reason},
    hub::{Connection, EndSignal, RunnerFacts, SlotLease},
    log_store_error,
};
use crate::{
    App,
    auth::TaskLimit,
    recorder::{Ack, Recorder, as_millis},
    scheduler::assignment::Profile,
};

/// Time limit for the runner's hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(15);
/// Permits for concurrent welcomes, which bound the memory when a thousand runners reconnect.
static WELCOME_PERMITS: Semaphore = Semaphore::const_new(32);
/// Maximum number of messages of one runner in flight.
const MAX_IN_FLIGHT: usize = 64;
/// Maximum size of a log chunk, in bytes.
const MAX_CHUNK_BYTES: usize = 4 * acrtask_proto::MAX_CHUNK;
/// Maximum size of a log, in bytes.
const MAX_LOG_BYTES: u64 = 1 << 40;

/// Runs a session until its stream ends.
pub(super) async fn run(
    app: Arc<App>,
    recorder: Recorder,
    runner: RunnerRow,
    inbound: Streaming<FromRunner>,
    out: mpsc::Sender<ToRunner>,
    end: EndSignal,
) {
    let (id, name) = (runner.id.clone(), runner.name.clone());
    let session = Session {
        app: app.clone(),
        recorder,
        id: id.clone(),
        out,
        end: end.clone(),
        acked: AckedOffsets::default(),
        digests: LogDigests::default(),
    };
    let serve = session.serve(runner, inbound);
    tokio::select! {
        () = end.wait() => {}
        () = app.closing.cancelled() => end.signal("the control plane is shutting down"),
        () = serve => {}
    }
    if let Some(connection) = app.hub.connection(&id, &end) {
        app.hub.disconnect(&id, &connection);
        let reason = end.status();
        let reason = reason
            .as_ref()
            .map_or("the runner left", |status| status.message());
        tracing::info!(runner = id, name, reason, "runner disconnected");
        // Otherwise other servers show the runner as online until its lease time is over.
        if app.hub.runner(&id).is_none()
            && let Err(error) = app.store.runner_left(&id, &app.config.server_id).await
        {
            tracing::warn!(runner = id, %error, "cannot record that a runner disconnected");
        }
    }
}

struct Session {
    app: Arc<App>,
    recorder: Recorder,
    id: String,
    out: mpsc::Sender<ToRunner>,
    end: EndSignal,
    acked: AckedOffsets,
    digests: LogDigests,
}

/// A report that is ready for the recorder.
struct ReadyReport {
    of: Attempt,
    run: RunId,
    report: Report,
    /// The bytes of a log chunk.
    data: bytes::Bytes,
}

/// Output of the queue of reports.
enum Prepared {
    Report(ReadyReport),
    Refused(Attempt, String),
    /// The database failed before the report was ready.
    Unwritten,
}

type PreparedQueue = FuturesOrdered<BoxFuture<'static, Prepared>>;
type Replies = FuturesUnordered<BoxFuture<'static, Vec<Message>>>;

impl Session {
    async fn serve(&self, runner: RunnerRow, mut inbound: Streaming<FromRunner>) {
        let first = tokio::time::timeout(HELLO_TIMEOUT, inbound.message()).await;
        let Ok(Ok(Some(FromRunner {
            message: Some(From::Hello(hello)),
        }))) = first
        else {
            self.end
                .signal("the first message of a runner must be a hello");
            return;
        };
        // Boxes these large futures so that an idle session stays small.
        let turn = WELCOME_PERMITS.acquire().await;
        if let Err(reason) = Box::pin(self.welcome(runner, hello)).await {
            self.end.signal(reason);
            return;
        }
        drop(turn);
        let mut queue = PreparedQueue::new();
        let mut replies = Replies::new();
        let mut open = true;
        while open || !queue.is_empty() || !replies.is_empty() {
            let has_capacity = queue.len() + replies.len() < MAX_IN_FLIGHT;
            tokio::select! {
                Some(prepared) = queue.next(), if !queue.is_empty() => {
                    let reply = Box::pin(self.submit(prepared)).await;
                    replies.push(reply);
                }
                Some(messages) = replies.next(), if !replies.is_empty() => {
                    for message in messages {
                        self.send(message).await;
                    }
                }
                message = inbound.message(), if open && has_capacity => match message {
                    Ok(Some(FromRunner { message: Some(message) })) => {
                        self.app.hub.touch(&self.id);
                        Box::pin(self.handle_message(message, &mut queue, &mut replies)).await;
                    }
                    // A message type of a newer runner.
                    Ok(Some(FromRunner { message: None })) => {}
                    Ok(None) => open = false,
                    Err(status) => {
                        tracing::debug!(runner = self.id, %status, "lost a runner's stream");
                        return;
                    }
                },
            }
        }
    }

    /// Welcomes a runner and confirms its leases. Only then it may get new ones.
    async fn welcome(&self, runner: RunnerRow, hello: Hello) -> Result<(), String> {
        let app = &*self.app;
        let facts =
            check_hello(&runner, &hello).inspect_err(|reason| self.end.refuse(reason.as_str()))?;
        let pause = |error| {
            log_store_error(error);
            "the database cannot be reached; connect again".to_owned()
        };
        let now = app.clock.now_ms();
        app.store
            .runner_hello(&self.id, &facts, &app.config.server_id, now)
            .await
            .map_err(pause)?;
        let mut claims = Vec::new();
        for of in hello.attempts {
            if let Ok(run) = RunId::new(of.run.clone()) {
                let ack = self.renew(&run, of.attempt).await;
                claims.push((of, run, ack));
            }
        }
        let mut leases = HashMap::new();
        let mut kept = Vec::new();
        let mut abandoned = Vec::new();
        for (of, run, ack) in claims {
            match ack.await {
                Ok(Verdict::Done | Verdict::LogAt(_) | Verdict::LogFull(_)) => {
                    let state = app.store.log_state(&run).await.map_err(pause)?;
                    let lease = SlotLease {
                        attempt: of.attempt,
                        accepted: true,
                        ..SlotLease::default()
                    };
                    leases.insert(run, lease);
                    kept.push(LogAck {
                        of: Some(of),
                        offset: state.length,
                    });
                }
                Ok(Verdict::Refused { reason }) => abandoned.push(abandon_message(of, reason)),
                Err(_) => return Err("the database failed; connect again".into()),
            }
        }
        let welcome = Welcome {
            runner_id: runner.id.clone(),
            name: runner.name.clone(),
            heartbeat_ms: u32::try_from(as_millis(app.config.heartbeat)).unwrap_or(u32::MAX),
            lease_ms: u32::try_from(as_millis(app.config.lease)).unwrap_or(u32::MAX),
            kept,
        };
        self.send(Message::Welcome(welcome)).await;
        for message in abandoned {
            self.send(message).await;
        }
        if runner.draining {
            self.send(Message::Drain(Drain {})).await;
        }
        tracing::info!(
            runner = runner.id,
            name = runner.name,
            pool = facts.pool,
            slots = facts.slots,
            leases = leases.len(),
            version = facts.version,
            "runner connected"
        );
        let (_, lost): (Connection, _) = app.hub.connect(
            RunnerFacts {
                id: runner.id,
                name: runner.name,
                profile: Arc::new(Profile {
                    pool: facts.pool,
                    platforms: facts.platforms,
                    labels: facts.labels,
                    tasks: TaskLimit::parse(runner.tasks.as_deref()),
                }),
                slots: facts.slots,
                features: facts.features,
                version: facts.version,
            },
            runner.draining,
            facts.free_disk,
            leases,
            self.out.clone(),
            self.end.clone(),
        );
        for (run, attempt) in lost {
            let reason = "the lease did not reach the runner".to_owned();
            let declined = Report::Declined { reason };
            drop(
                self.recorder
                    .submit(&self.id, &run, attempt, declined)
                    .await,
            );
        }
        app.wake.notify_one();
        app.cancels.notify_one();
        Ok(())
    }

    async fn renew(&self, run: &RunId, attempt: u32) -> Ack {
        self.recorder
            .submit(&self.id, run, attempt, Report::Renewed)
            .await
    }

    async fn send(&self, message: Message) {
        let message = ToRunner {
            message: Some(message),
        };
        let _ = self.out.send(message).await;
    }

    async fn handle_message(
        &self,
        message: From,
        queue: &mut PreparedQueue,
        replies: &mut Replies,
    ) {
        match message {
            From::Hello(_) => tracing::warn!(runner = self.id, "ignored a second hello"),
            From::Heartbeat(heartbeat) => {
                let reply = self.heartbeat(heartbeat).await;
                replies.push(reply);
            }
            From::Accepted(accepted) => {
                self.submit_report(accepted.of, Report::Accepted, replies)
                    .await;
            }
            From::Started(started) => {
                self.submit_report(started.of, Report::Started, replies)
                    .await
            }
            From::Declined(declined) => {
                self.app.hub.mark_declined(&self.id);
                let reason = truncate_reason(replace_nul(declined.reason));
                let report = Report::Declined { reason };
                self.submit_report(declined.of, report, replies).await;
            }
            From::Draining(_) => {
                self.app.hub.mark_draining(&self.id);
                tracing::info!(runner = self.id, "runner accepts no new leases");
            }
            From::Fence(fence) => {
                let reply = self.fence(fence.of.unwrap_or_default(), fence.nonce).await;
                replies.push(reply);
            }
            From::Log(chunk) => queue.push_back(self.chunk(chunk)),
            From::Finished(finished) => queue.push_back(self.finished(finished)),
        }
    }

    /// Submits a report that gets a response only if it is refused.
    async fn submit_report(&self, of: Option<Attempt>, report: Report, replies: &mut Replies) {
        let of = of.unwrap_or_default();
        let Ok(run) = RunId::new(of.run.clone()) else {
            replies.push(std::future::ready(vec![unknown_run(of)]).boxed());
            return;
        };
        let ack = self
            .recorder
            .submit(&self.id, &run, of.attempt, report)
            .await;
        let end = self.end.clone();
        replies.push(
            async move {
                match ack.await {
                    Ok(Verdict::Done | Verdict::LogAt(_) | Verdict::LogFull(_)) => Vec::new(),
                    Ok(Verdict::Refused { reason }) => vec![abandon_message(of, reason)],
                    Err(_) => end_unwritten(&end),
                }
            }
            .boxed(),
        );
    }

    async fn heartbeat(&self, heartbeat: Heartbeat) -> BoxFuture<'static, Vec<Message>> {
        let mut claims = Vec::new();
        let mut messages = Vec::new();
        let mut named = HashMap::new();
        for of in heartbeat.attempts {
            match RunId::new(of.run.clone()) {
                Ok(run) => {
                    named.insert(run.clone(), of.attempt);
                    let ack = self.renew(&run, of.attempt).await;
                    claims.push(ack.map(|verdict| (of, verdict)));
                }
                Err(_) => messages.push(unknown_run(of)),
            }
        }
        let config = &self.app.config;
        let patience = config.accept.max(config.heartbeat * 2);
        let hub = &self.app.hub;
        if hub.record_heartbeat(
            &self.id,
            clamp_to_i64(heartbeat.free_disk),
            &named,
            patience,
        ) > 0
        {
            self.app.wake.notify_one();
        }
        let end = self.end.clone();
        async move {
            let mut renewed = Vec::new();
            for (of, verdict) in join_all(claims).await {
                match verdict {
                    Ok(Verdict::Done | Verdict::LogAt(_) | Verdict::LogFull(_)) => renewed.push(of),
                    Ok(Verdict::Refused { reason }) => messages.push(abandon_message(of, reason)),
                    Err(_) => return end_unwritten(&end),
                }
            }
            messages.push(Message::Renewed(Renewed { attempts: renewed }));
            messages
        }
        .boxed()
    }

    /// Decides whether the attempt may push: only with a valid lease and without a cancel request.
    async fn fence(&self, of: Attempt, nonce: u64) -> BoxFuture<'static, Vec<Message>> {
        let answer = move |granted| Message::Fence(FenceAnswer { nonce, granted });
        let Ok(run) = RunId::new(of.run.clone()) else {
            return std::future::ready(vec![answer(false), unknown_run(of)]).boxed();
        };
        let ack = self.renew(&run, of.attempt).await;
        let (app, end) = (self.app.clone(), self.end.clone());
        async move {
            match ack.await {
                // The cancel flag of the hub may be outdated and is lost with each connection.
                Ok(Verdict::Done | Verdict::LogAt(_) | Verdict::LogFull(_)) => {
                    match app.store.is_cancel_requested(&run).await {
                        Ok(canceled) => vec![answer(!canceled)],
                        Err(error) => {
                            log_store_error(error);
                            end_unwritten(&end)
                        }
                    }
                }
                Ok(Verdict::Refused { reason }) => vec![answer(false), abandon_message(of, reason)],
                Err(_) => end_unwritten(&end),
            }
        }
        .boxed()
    }

    /// Puts the bytes of a chunk into a blob. The future has no time limit.
    fn chunk(&self, chunk: LogChunk) -> BoxFuture<'static, Prepared> {
        let of = chunk.of.unwrap_or_default();
        let Ok(run) = RunId::new(of.run.clone()) else {
            return refused_report(of, "the run does not exist");
        };
        if chunk.data.is_empty()
            || chunk.data.len() > MAX_CHUNK_BYTES
            || chunk.offset > MAX_LOG_BYTES
        {
            return refused_report(
                of,
                "a log chunk has 1 byte to 1 MiB, and a log has at most 1 TiB",
            );
        }
        let (app, recorder, id) = (self.app.clone(), self.recorder.clone(), self.id.clone());
        async move {
            // Bytes of another runner's run are dropped.
            if !app.hub.has_lease(&id, &run, of.attempt) {
                let ack = recorder
                    .submit(&id, &run, of.attempt, Report::Renewed)
                    .await;
                match ack.await {
                    Ok(Verdict::Refused { reason }) => return Prepared::Refused(of, reason),
                    Ok(_) => {}
                    Err(_) => return Prepared::Unwritten,
                }
            }
            let report = put_chunk(&app, &run, of.attempt, chunk.offset, &chunk.data).await;
            Prepared::Report(ReadyReport {
                of,
                run,
                report,
                data: chunk.data,
            })
        }
        .boxed()
    }

    fn finished(&self, finished: Finished) -> BoxFuture<'static, Prepared> {
        let of = finished.of.unwrap_or_default();
        let Ok(run) = RunId::new(of.run.clone()) else {
            return refused_report(of, "the run does not exist");
        };
        if finished.log_length > MAX_LOG_BYTES {
            return refused_report(of, "a log has at most 1 TiB");
        }
        let reason = truncate_reason(replace_nul(finished.reason));
        let mut reason = Some(reason).filter(|reason| !reason.is_empty());
        let state = RunState::parse(&finished.state)
            .filter(|state| state.is_final())
            .unwrap_or_else(|| {
                reason = Some(format!(
                    "the runner reported the state `{}`, which this server does not support",
                    replace_nul(finished.state)
                ));
                RunState::Error
            });
        let result = serde_json::from_str(&replace_nul(finished.result_json));
        let result: RunResult = result.unwrap_or_else(|error| {
            tracing::error!(%run, runner = self.id, %error, "cannot parse the result of a run");
            RunResult::default()
        });
        let report = Report::Finished {
            state,
            reason,
            result: Box::new(result),
            log_length: finished.log_length,
            log_sha256: replace_nul(finished.log_sha256),
        };
        let ready = ReadyReport {
            of,
            run,
            report,
            data: bytes::Bytes::new(),
        };
        std::future::ready(Prepared::Report(ready)).boxed()
    }

    /// Submits a final report after the stored log was verified.
    fn submit_finished(&self, ready: ReadyReport) -> impl Future<Output = Vec<Message>> + use<> {
        let (app, recorder, id) = (self.app.clone(), self.recorder.clone(), self.id.clone());
        let (acked, digests, end) = (self.acked.clone(), self.digests.clone(), self.end.clone());
        async move {
            let ReadyReport {
                of, run, report, ..
            } = ready;
            let (length, is_verified) = match &report {
                Report::Finished {
                    log_length,
                    log_sha256,
                    ..
                } => {
                    let is_verified = digests.matches(&run, of.attempt, *log_length, log_sha256);
                    (*log_length, is_verified)
                }
                _ => (0, true),
            };
            let finished_ack = |of, log_offset| {
                vec![Message::FinishedAck(FinishedAck {
                    of: Some(of),
                    log_offset,
                })]
            };
            let report = if is_verified {
                report
            } else {
                // This report is committed after all earlier chunks.
                let before = recorder.submit(&id, &run, of.attempt, Report::Renewed);
                if before.await.await.is_err() {
                    return end_unwritten(&end);
                }
                match digests.check(&app, &run, of.attempt, report).await {
                    Ok(report) => report,
                    Err(stored) => return finished_ack(of, stored),
                }
            };
            let ack = recorder.submit(&id, &run, of.attempt, report).await;
            let log_offset = match ack.await {
                Ok(Verdict::Done) => length,
                Ok(Verdict::LogAt(offset)) => offset,
                Ok(Verdict::LogFull(_)) => 0,
                Ok(Verdict::Refused { reason }) => {
                    acked.forget(&run);
                    digests.forget(&run);
                    return vec![abandon_message(of, reason)];
                }
                Err(_) => return end_unwritten(&end),
            };
            if log_offset >= length {
                acked.forget(&run);
                digests.forget(&run);
            }
            finished_ack(of, log_offset)
        }
    }

    /// Submits an output of the queue. The returned future waits for the verdict.
    async fn submit(&self, prepared: Prepared) -> BoxFuture<'static, Vec<Message>> {
        let ready = match prepared {
            Prepared::Report(ready) => ready,
            Prepared::Refused(of, reason) => {
                self.app.metrics.refused.inc();
                return std::future::ready(vec![abandon_message(of, reason)]).boxed();
            }
            Prepared::Unwritten => return std::future::ready(end_unwritten(&self.end)).boxed(),
        };
        if let Report::Finished { .. } = ready.report {
            return self.submit_finished(ready).boxed();
        }
        if let Report::LogChunk { offset, .. } = ready.report {
            let attempt = ready.of.attempt;
            self.digests.add(&ready.run, attempt, offset, &ready.data);
        }
        let ack = self
            .recorder
            .submit(&self.id, &ready.run, ready.of.attempt, ready.report.clone())
            .await;
        let end = self.end.clone();
        match ready.report {
            Report::LogChunk { offset, .. } => {
                let chunk = Chunk {
                    app: self.app.clone(),
                    recorder: self.recorder.clone(),
                    acked: self.acked.clone(),
                    id: self.id.clone(),
                    of: ready.of,
                    run: ready.run,
                    offset,
                    data: ready.data,
                    report: ready.report,
                };
                chunk.store(ack, end).boxed()
            }
            _ => std::future::ready(Vec::new()).boxed(),
        }
    }
}

fn refused_report(of: Attempt, reason: &str) -> BoxFuture<'static, Prepared> {
    std::future::ready(Prepared::Refused(of, reason.to_owned())).boxed()
}

pub(super) fn abandon_message(of: Attempt, reason: String) -> Message {
    Message::Abandon(Abandon {
        of: Some(of),
        reason,
    })
}

fn unknown_run(of: Attempt) -> Message {
    abandon_message(of, "the run does not exist".into())
}

/// Ends the connection because a report was not stored. The runner repeats the report.
pub(super) fn end_unwritten(end: &EndSignal) -> Vec<Message> {
    end.signal("the database failed; connect again and repeat the report");
    Vec::new()
}
