//! One runner's stream, from its hello to its end.
//!
//! What a runner says goes to the recorder in the order in which it came; answers go back as the verdicts arrive. Chunks of
//! logs, and the end of a run behind them, take a lane of their own, since their bytes are put into blobs first: a
//! place for blobs that is slow holds up no heartbeat. Invariants: a bounded number of messages is under way, then the
//! stream is not read on; nothing is acknowledged before it is committed; what is said about a run that is not the
//! runner's is answered with Abandon, and none of its bytes are kept.

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
    chunks::{Acknowledged, Chunk, put},
    digest::Digests,
    facts::{bytes, cut, facts, printable},
    failed,
    hub::{Connection, End, Facts, Hold},
};
use crate::{
    App,
    auth::TaskLimit,
    recorder::{Receipt, Recorder, millis},
    scheduler::place::Profile,
};

/// How long a runner may take to say hello.
const HELLO: Duration = Duration::from_secs(15);
/// Runners that this process greets at once, which bounds what a thousand need that come back together.
static GREETINGS: Semaphore = Semaphore::const_new(32);
/// Messages of one runner that are under way at once.
const UNDER_WAY: usize = 64;
/// The largest chunk of a log that is taken, in bytes.
const CHUNK_LIMIT: usize = 4 * acrtask_proto::MAX_CHUNK;
/// Where a log ends at the latest, in bytes.
const LOG_LIMIT: u64 = 1 << 40;

/// Carries a runner's stream through to its end.
pub(super) async fn run(
    app: Arc<App>,
    recorder: Recorder,
    runner: RunnerRow,
    inbound: Streaming<FromRunner>,
    out: mpsc::Sender<ToRunner>,
    end: End,
) {
    let (id, name) = (runner.id.clone(), runner.name.clone());
    let session = Session {
        app: app.clone(),
        recorder,
        id: id.clone(),
        out,
        end: end.clone(),
        told: Acknowledged::default(),
        digests: Digests::default(),
    };
    let talk = session.talk(runner, inbound);
    tokio::select! {
        () = end.reached() => {}
        () = app.closing.cancelled() => end.now("the control plane is shutting down"),
        () = talk => {}
    }
    if let Some(connection) = app.hub.connection(&id, &end) {
        app.hub.disconnect(&id, &connection);
        let reason = end.status();
        let reason = reason.as_ref().map_or("it left", |status| status.message());
        tracing::info!(runner = id, name, reason, "a runner is gone");
        // Other servers would show it as online for a lease.
        if app.hub.runner(&id).is_none()
            && let Err(error) = app.store.runner_left(&id, &app.config.server_id).await
        {
            tracing::warn!(runner = id, %error, "cannot record that a runner left");
        }
    }
}

struct Session {
    app: Arc<App>,
    recorder: Recorder,
    id: String,
    out: mpsc::Sender<ToRunner>,
    end: End,
    told: Acknowledged,
    digests: Digests,
}

/// A report that has its turn.
struct Ready {
    of: Attempt,
    run: RunId,
    report: Report,
    /// What came with a chunk.
    data: bytes::Bytes,
}

/// What the lane gives.
enum Prepared {
    Report(Ready),
    Refused(Attempt, String),
    /// The database failed before it had its turn.
    Unwritten,
}

type Lane = FuturesOrdered<BoxFuture<'static, Prepared>>;
type Replies = FuturesUnordered<BoxFuture<'static, Vec<Message>>>;

impl Session {
    async fn talk(&self, runner: RunnerRow, mut inbound: Streaming<FromRunner>) {
        let first = tokio::time::timeout(HELLO, inbound.message()).await;
        let Ok(Ok(Some(FromRunner {
            message: Some(From::Hello(hello)),
        }))) = first
        else {
            self.end
                .now("the first message of a runner has to be its hello");
            return;
        };
        // What a greeting and a message need is large, and not there while a runner says nothing.
        let turn = GREETINGS.acquire().await;
        if let Err(reason) = Box::pin(self.welcome(runner, hello)).await {
            self.end.now(reason);
            return;
        }
        drop(turn);
        let mut lane = Lane::new();
        let mut replies = Replies::new();
        let mut open = true;
        while open || !lane.is_empty() || !replies.is_empty() {
            let room = lane.len() + replies.len() < UNDER_WAY;
            tokio::select! {
                Some(prepared) = lane.next(), if !lane.is_empty() => {
                    let reply = Box::pin(self.submit(prepared)).await;
                    replies.push(reply);
                }
                Some(messages) = replies.next(), if !replies.is_empty() => {
                    for message in messages {
                        self.send(message).await;
                    }
                }
                message = inbound.message(), if open && room => match message {
                    Ok(Some(FromRunner { message: Some(message) })) => {
                        self.app.hub.heard(&self.id);
                        Box::pin(self.hear(message, &mut lane, &mut replies)).await;
                    }
                    // A message of a newer program.
                    Ok(Some(FromRunner { message: None })) => {}
                    Ok(None) => open = false,
                    Err(status) => {
                        tracing::debug!(runner = self.id, %status, "a runner's stream broke off");
                        return;
                    }
                },
            }
        }
    }

    /// Greets a runner: what it is, what of its leases it keeps, and only then may it be given new ones.
    async fn welcome(&self, runner: RunnerRow, hello: Hello) -> Result<(), String> {
        let app = &*self.app;
        let facts =
            facts(&runner, &hello).inspect_err(|reason| self.end.refuse(reason.as_str()))?;
        let pause = |error| {
            failed(error);
            "the database cannot be reached; connect again".to_owned()
        };
        let now = app.clock.now_ms();
        app.store
            .runner_hello(&self.id, &facts, &app.config.server_id, now)
            .await
            .map_err(pause)?;
        let mut claims = Vec::new();
        for of in hello.held {
            if let Ok(run) = RunId::new(of.run.clone()) {
                let receipt = self.renew(&run, of.attempt).await;
                claims.push((of, run, receipt));
            }
        }
        let mut held = HashMap::new();
        let mut kept = Vec::new();
        let mut abandoned = Vec::new();
        for (of, run, receipt) in claims {
            match receipt.await {
                Ok(Verdict::Done | Verdict::LogAt(_) | Verdict::LogFull(_)) => {
                    let state = app.store.log_state(&run).await.map_err(pause)?;
                    let hold = Hold {
                        attempt: of.attempt,
                        accepted: true,
                        ..Hold::default()
                    };
                    held.insert(run, hold);
                    kept.push(LogAck {
                        of: Some(of),
                        offset: state.length,
                    });
                }
                Ok(Verdict::Refused { reason }) => abandoned.push(abandon(of, reason)),
                Err(_) => return Err("the database failed; connect again".into()),
            }
        }
        let welcome = Welcome {
            runner_id: runner.id.clone(),
            name: runner.name.clone(),
            heartbeat_ms: u32::try_from(millis(app.config.heartbeat)).unwrap_or(u32::MAX),
            lease_ms: u32::try_from(millis(app.config.lease)).unwrap_or(u32::MAX),
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
            held = held.len(),
            version = facts.version,
            "a runner is connected"
        );
        let (_, lost): (Connection, _) = app.hub.connect(
            Facts {
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
            held,
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

    async fn renew(&self, run: &RunId, attempt: u32) -> Receipt {
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

    async fn hear(&self, message: From, lane: &mut Lane, replies: &mut Replies) {
        match message {
            From::Hello(_) => tracing::warn!(runner = self.id, "a second hello is ignored"),
            From::Heartbeat(heartbeat) => {
                let reply = self.heartbeat(heartbeat).await;
                replies.push(reply);
            }
            From::Accepted(accepted) => {
                self.note(accepted.of, Report::Accepted, replies).await;
            }
            From::Started(started) => self.note(started.of, Report::Started, replies).await,
            From::Declined(declined) => {
                self.app.hub.declined(&self.id);
                let reason = cut(printable(declined.reason));
                let report = Report::Declined { reason };
                self.note(declined.of, report, replies).await;
            }
            From::Draining(_) => {
                self.app.hub.leaves(&self.id);
                tracing::info!(runner = self.id, "a runner takes nothing more");
            }
            From::Fence(fence) => {
                let reply = self.fence(fence.of.unwrap_or_default(), fence.nonce).await;
                replies.push(reply);
            }
            From::Log(chunk) => lane.push_back(self.chunk(chunk)),
            From::Finished(finished) => lane.push_back(self.finished(finished)),
        }
    }

    /// A report that needs no answer but where it is refused.
    async fn note(&self, of: Option<Attempt>, report: Report, replies: &mut Replies) {
        let of = of.unwrap_or_default();
        let Ok(run) = RunId::new(of.run.clone()) else {
            replies.push(std::future::ready(vec![unknown(of)]).boxed());
            return;
        };
        let receipt = self
            .recorder
            .submit(&self.id, &run, of.attempt, report)
            .await;
        let end = self.end.clone();
        replies.push(
            async move {
                match receipt.await {
                    Ok(Verdict::Done | Verdict::LogAt(_) | Verdict::LogFull(_)) => Vec::new(),
                    Ok(Verdict::Refused { reason }) => vec![abandon(of, reason)],
                    Err(_) => unwritten(&end),
                }
            }
            .boxed(),
        );
    }

    async fn heartbeat(&self, heartbeat: Heartbeat) -> BoxFuture<'static, Vec<Message>> {
        let mut claims = Vec::new();
        let mut messages = Vec::new();
        let mut named = HashMap::new();
        for of in heartbeat.held {
            match RunId::new(of.run.clone()) {
                Ok(run) => {
                    named.insert(run.clone(), of.attempt);
                    let receipt = self.renew(&run, of.attempt).await;
                    claims.push(receipt.map(|verdict| (of, verdict)));
                }
                Err(_) => messages.push(unknown(of)),
            }
        }
        let config = &self.app.config;
        let patience = config.accept.max(config.heartbeat * 2);
        let hub = &self.app.hub;
        if hub.beat(&self.id, bytes(heartbeat.free_disk), &named, patience) > 0 {
            self.app.wake.notify_one();
        }
        let end = self.end.clone();
        async move {
            let mut held = Vec::new();
            for (of, verdict) in join_all(claims).await {
                match verdict {
                    Ok(Verdict::Done | Verdict::LogAt(_) | Verdict::LogFull(_)) => held.push(of),
                    Ok(Verdict::Refused { reason }) => messages.push(abandon(of, reason)),
                    Err(_) => return unwritten(&end),
                }
            }
            messages.push(Message::Renewed(Renewed { held }));
            messages
        }
        .boxed()
    }

    /// May the attempt push? Only while its lease holds and nobody wants its end.
    async fn fence(&self, of: Attempt, nonce: u64) -> BoxFuture<'static, Vec<Message>> {
        let answer = move |granted| Message::Fence(FenceAnswer { nonce, granted });
        let Ok(run) = RunId::new(of.run.clone()) else {
            return std::future::ready(vec![answer(false), unknown(of)]).boxed();
        };
        let receipt = self.renew(&run, of.attempt).await;
        let (app, end) = (self.app.clone(), self.end.clone());
        async move {
            match receipt.await {
                // What the runner was told is not enough to go by: that may be behind, and forgets with each connection.
                Ok(Verdict::Done | Verdict::LogAt(_) | Verdict::LogFull(_)) => {
                    match app.store.is_cancel_requested(&run).await {
                        Ok(canceled) => vec![answer(!canceled)],
                        Err(error) => {
                            failed(error);
                            unwritten(&end)
                        }
                    }
                }
                Ok(Verdict::Refused { reason }) => vec![answer(false), abandon(of, reason)],
                Err(_) => unwritten(&end),
            }
        }
        .boxed()
    }

    /// Puts a chunk's bytes into a blob, however long that takes.
    fn chunk(&self, chunk: LogChunk) -> BoxFuture<'static, Prepared> {
        let of = chunk.of.unwrap_or_default();
        let Ok(run) = RunId::new(of.run.clone()) else {
            return refused(of, "there is no such run");
        };
        if chunk.data.is_empty() || chunk.data.len() > CHUNK_LIMIT || chunk.offset > LOG_LIMIT {
            return refused(
                of,
                "a chunk of a log has 1 byte to 1 MiB, and a log ends at 1 TiB",
            );
        }
        let (app, recorder, id) = (self.app.clone(), self.recorder.clone(), self.id.clone());
        async move {
            // Bytes of a run that is not the runner's are not kept.
            if !app.hub.holds(&id, &run, of.attempt) {
                let receipt = recorder
                    .submit(&id, &run, of.attempt, Report::Renewed)
                    .await;
                match receipt.await {
                    Ok(Verdict::Refused { reason }) => return Prepared::Refused(of, reason),
                    Ok(_) => {}
                    Err(_) => return Prepared::Unwritten,
                }
            }
            let report = put(&app, &run, of.attempt, chunk.offset, &chunk.data).await;
            Prepared::Report(Ready {
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
            return refused(of, "there is no such run");
        };
        if finished.log_length > LOG_LIMIT {
            return refused(of, "a log ends at 1 TiB");
        }
        let reason = cut(printable(finished.reason));
        let mut reason = Some(reason).filter(|reason| !reason.is_empty());
        let state = RunState::parse(&finished.state)
            .filter(|state| state.is_final())
            .unwrap_or_else(|| {
                reason = Some(format!(
                    "the runner said that it ended as `{}`, which this server does not know",
                    printable(finished.state)
                ));
                RunState::Error
            });
        let result = serde_json::from_str(&printable(finished.result_json));
        let result: RunResult = result.unwrap_or_else(|error| {
            tracing::error!(%run, runner = self.id, %error, "the result of a run cannot be read");
            RunResult::default()
        });
        let report = Report::Finished {
            state,
            reason,
            result: Box::new(result),
            log_length: finished.log_length,
            log_sha256: printable(finished.log_sha256),
        };
        let ready = Ready {
            of,
            run,
            report,
            data: bytes::Bytes::new(),
        };
        std::future::ready(Prepared::Report(ready)).boxed()
    }

    /// Hands over that a run is over, once its log is known to be the runner's.
    fn end_of(&self, ready: Ready) -> impl Future<Output = Vec<Message>> + use<> {
        let (app, recorder, id) = (self.app.clone(), self.recorder.clone(), self.id.clone());
        let (told, digests, end) = (self.told.clone(), self.digests.clone(), self.end.clone());
        async move {
            let Ready {
                of, run, report, ..
            } = ready;
            let (whole, known) = match &report {
                Report::Finished {
                    log_length,
                    log_sha256,
                    ..
                } => {
                    let known = digests.is(&run, of.attempt, *log_length, log_sha256);
                    (*log_length, known)
                }
                _ => (0, true),
            };
            let ack = |of, log_offset| {
                vec![Message::FinishedAck(FinishedAck {
                    of: Some(of),
                    log_offset,
                })]
            };
            let report = if known {
                report
            } else {
                // When this is written, so is every chunk before it.
                let before = recorder.submit(&id, &run, of.attempt, Report::Renewed);
                if before.await.await.is_err() {
                    return unwritten(&end);
                }
                match digests.check(&app, &run, of.attempt, report).await {
                    Ok(report) => report,
                    Err(stored) => return ack(of, stored),
                }
            };
            let receipt = recorder.submit(&id, &run, of.attempt, report).await;
            let log_offset = match receipt.await {
                Ok(Verdict::Done) => whole,
                Ok(Verdict::LogAt(offset)) => offset,
                Ok(Verdict::LogFull(_)) => 0,
                Ok(Verdict::Refused { reason }) => {
                    told.forget(&run);
                    digests.forget(&run);
                    return vec![abandon(of, reason)];
                }
                Err(_) => return unwritten(&end),
            };
            if log_offset >= whole {
                told.forget(&run);
                digests.forget(&run);
            }
            ack(of, log_offset)
        }
    }

    /// Hands over what the lane gave, and waits for the verdict elsewhere.
    async fn submit(&self, prepared: Prepared) -> BoxFuture<'static, Vec<Message>> {
        let ready = match prepared {
            Prepared::Report(ready) => ready,
            Prepared::Refused(of, reason) => {
                self.app.metrics.refused.inc();
                return std::future::ready(vec![abandon(of, reason)]).boxed();
            }
            Prepared::Unwritten => return std::future::ready(unwritten(&self.end)).boxed(),
        };
        if let Report::Finished { .. } = ready.report {
            return self.end_of(ready).boxed();
        }
        if let Report::LogChunk { offset, .. } = ready.report {
            let attempt = ready.of.attempt;
            self.digests.add(&ready.run, attempt, offset, &ready.data);
        }
        let receipt = self
            .recorder
            .submit(&self.id, &ready.run, ready.of.attempt, ready.report.clone())
            .await;
        let end = self.end.clone();
        match ready.report {
            Report::LogChunk { offset, .. } => {
                let chunk = Chunk {
                    app: self.app.clone(),
                    recorder: self.recorder.clone(),
                    told: self.told.clone(),
                    id: self.id.clone(),
                    of: ready.of,
                    run: ready.run,
                    offset,
                    data: ready.data,
                    report: ready.report,
                };
                chunk.stored(receipt, end).boxed()
            }
            _ => std::future::ready(Vec::new()).boxed(),
        }
    }
}

fn refused(of: Attempt, reason: &str) -> BoxFuture<'static, Prepared> {
    std::future::ready(Prepared::Refused(of, reason.to_owned())).boxed()
}

pub(super) fn abandon(of: Attempt, reason: String) -> Message {
    Message::Abandon(Abandon {
        of: Some(of),
        reason,
    })
}

fn unknown(of: Attempt) -> Message {
    abandon(of, "there is no such run".into())
}

/// A report could not be written: the runner says it again on its next connection.
pub(super) fn unwritten(end: &End) -> Vec<Message> {
    end.now("the database failed; connect again and say it again");
    Vec::new()
}
