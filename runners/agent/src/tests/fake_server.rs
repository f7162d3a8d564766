//! Fake control plane, which records messages and misbehaves on request.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use acrtask_model::Event;
use acrtask_proto::runner::{
    ContextChunk, Declined, Fence, FenceAnswer, FetchContextRequest, Finished, FinishedAck,
    FromRunner, Hello, Lease, LogAck, RegisterRequest, RegisterResponse, RegistryRecordChunk,
    RegistryRecordRequest, Renewed, ToRunner, Welcome,
    from_runner::Message,
    runners_server::{Runners, RunnersServer},
    to_runner,
};
use futures::{Stream, StreamExt as _};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use crate::id::AttemptId;

/// Key of every runner.
pub(super) const KEY: &str = "the-key-of-the-runner";
/// Registration token.
pub(super) const TOKEN: &str = "the-token";

type Out = mpsc::UnboundedSender<Result<ToRunner, Status>>;

/// Recorded messages and configured behavior.
pub(super) struct State {
    /// Configured behavior.
    pub(super) heartbeat: Duration,
    pub(super) lease: Duration,
    /// Leaves heartbeats unanswered.
    pub(super) mute: bool,
    /// Leaves questions of fences unanswered.
    pub(super) fence_mute: bool,
    /// Answer to questions of fences.
    pub(super) grants: bool,
    /// Cuts the stream once after this number of log messages.
    pub(super) cut_after: Option<usize>,
    /// Number of log messages to lose.
    pub(super) lose: usize,
    /// Forgets half of a log once, as if it had not been stored.
    pub(super) forgets_end: bool,
    /// Refuses streams with this status.
    pub(super) refuse: Option<Status>,
    /// Content of contexts, and the offset at which the first download breaks.
    pub(super) context: Vec<u8>,
    pub(super) context_breaks_at: Option<usize>,
    /// Stalls at that offset instead of breaking.
    pub(super) context_stalls: bool,

    /// Recorded messages.
    pub(super) hellos: Vec<Hello>,
    pub(super) accepted: Vec<AttemptId>,
    pub(super) started: Vec<AttemptId>,
    pub(super) declined: Vec<Declined>,
    pub(super) finished: BTreeMap<AttemptId, Finished>,
    pub(super) fences: Vec<Fence>,
    pub(super) draining: bool,
    pub(super) logs: BTreeMap<AttemptId, Vec<u8>>,
    pub(super) largest_chunk: usize,
    pub(super) context_offsets: Vec<u64>,
    /// Valid leases.
    pub(super) leases: Vec<AttemptId>,
    streams: u64,
    out: Option<(u64, Out)>,
}

/// A listening fake control plane.
#[derive(Clone)]
pub(super) struct FakeServer {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    pub(super) address: SocketAddr,
}

impl FakeServer {
    /// Starts a control plane.
    pub(super) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            state: Arc::new(Mutex::new(State {
                heartbeat: Duration::from_millis(200),
                lease: Duration::from_secs(2),
                mute: false,
                fence_mute: false,
                grants: true,
                cut_after: None,
                lose: 0,
                forgets_end: false,
                refuse: None,
                context: Vec::new(),
                context_breaks_at: None,
                context_stalls: false,
                hellos: Vec::new(),
                accepted: Vec::new(),
                started: Vec::new(),
                declined: Vec::new(),
                finished: BTreeMap::new(),
                fences: Vec::new(),
                draining: false,
                logs: BTreeMap::new(),
                largest_chunk: 0,
                context_offsets: Vec::new(),
                leases: Vec::new(),
                streams: 0,
                out: None,
            })),
            changed: watch::channel(0).0,
            address: listener.local_addr().unwrap(),
        };
        let service = tonic::transport::Server::builder()
            .add_service(RunnersServer::new(server.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(service);
        server
    }

    /// Reads or changes the state.
    pub(super) fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let result = f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.send_modify(|count| *count += 1);
        result
    }

    /// Waits until `find` returns a value.
    pub(super) async fn until<T>(
        &self,
        what: &str,
        mut find: impl FnMut(&mut State) -> Option<T>,
    ) -> T {
        let mut changes = self.changed.subscribe();
        let waiting = async {
            loop {
                let found = find(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
                if let Some(found) = found {
                    return found;
                }
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waiting)
            .await
            .unwrap_or_else(|_| panic!("this did not happen: {what}"))
    }

    /// Waits for a stream.
    pub(super) async fn wait_connected(&self) {
        self.until("the runner is connected", |state| {
            state.out.as_ref().map(drop)
        })
        .await;
    }

    /// Sends a message to the runner.
    pub(super) fn send(&self, message: to_runner::Message) {
        let out = self.with(|state| state.out.clone());
        let (_, out) = out.expect("no runner is connected");
        let _ = out.send(Ok(ToRunner {
            message: Some(message),
        }));
    }

    /// Leases an attempt.
    pub(super) fn lease(&self, id: &AttemptId, lease: Lease) {
        self.with(|state| state.leases.push(id.clone()));
        self.send(to_runner::Message::Lease(Lease {
            of: Some(id.to_proto()),
            ..lease
        }));
    }

    /// Revokes a lease, as if another runner had got it.
    pub(super) fn revoke_lease(&self, id: &AttemptId) {
        self.with(|state| state.leases.retain(|leased| leased != id));
    }

    /// Cuts the stream.
    pub(super) fn cut_stream(&self) {
        let out = self.with(|state| state.out.take());
        if let Some((_, out)) = out {
            let _ = out.send(Err(Status::unavailable("cut")));
        }
    }

    /// Waits for the final message and the whole log of an attempt. Returns both.
    pub(super) async fn wait_finished(&self, id: &AttemptId) -> (Finished, Vec<Event>) {
        let what = format!("{id} is finished");
        let (finished, log) = self
            .until(&what, |state| {
                let finished = state.finished.get(id)?.clone();
                Some((finished, state.logs.get(id).cloned().unwrap_or_default()))
            })
            .await;
        assert_eq!(finished.log_length, log.len() as u64);
        let digest: String = <sha2::Sha256 as sha2::Digest>::digest(&log)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(finished.log_sha256, digest);
        let events = log
            .split_inclusive(|byte| *byte == b'\n')
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect();
        (finished, events)
    }

    fn handle(&self, stream: u64, message: Message) {
        let answer = self.with(|state| {
            let open = state.out.as_ref().map(|(open, _)| *open);
            if open != Some(stream) {
                return None;
            }
            state.respond(message)
        });
        if let Some(answer) = answer {
            self.send(answer);
        }
        let cut = self.with(|state| {
            let cut = state.cut_after == Some(0);
            if cut {
                state.cut_after = None;
            }
            cut
        });
        if cut {
            self.cut_stream();
        }
    }
}

impl State {
    fn respond(&mut self, message: Message) -> Option<to_runner::Message> {
        let parse = AttemptId::parse;
        match message {
            Message::Hello(_) => None,
            Message::Heartbeat(beat) => {
                let named = beat.attempts.into_iter();
                let renewed = named
                    .filter(|of| {
                        parse(Some(of.clone())).is_some_and(|id| self.leases.contains(&id))
                    })
                    .collect();
                (!self.mute).then_some(to_runner::Message::Renewed(Renewed { attempts: renewed }))
            }
            Message::Accepted(accepted) => {
                self.accepted.extend(parse(accepted.of));
                None
            }
            Message::Started(started) => {
                self.started.extend(parse(started.of));
                None
            }
            Message::Log(chunk) => {
                let id = parse(chunk.of.clone())?;
                self.cut_after = self.cut_after.map(|left| left.saturating_sub(1));
                if self.lose > 0 {
                    self.lose -= 1;
                    return None;
                }
                self.largest_chunk = self.largest_chunk.max(chunk.data.len());
                let log = self.logs.entry(id).or_default();
                let offset = usize::try_from(chunk.offset).unwrap();
                if offset <= log.len() {
                    let skip = log.len() - offset;
                    log.extend_from_slice(chunk.data.get(skip..).unwrap_or_default());
                }
                Some(to_runner::Message::LogAck(LogAck {
                    of: chunk.of,
                    offset: log.len() as u64,
                }))
            }
            Message::Fence(fence) => {
                self.fences.push(fence.clone());
                (!self.fence_mute).then_some(to_runner::Message::Fence(FenceAnswer {
                    nonce: fence.nonce,
                    granted: self.grants,
                }))
            }
            Message::Finished(finished) => {
                let id = parse(finished.of.clone())?;
                let log = self.logs.entry(id.clone()).or_default();
                if self.forgets_end {
                    self.forgets_end = false;
                    log.truncate(log.len() / 2);
                }
                let log_offset = log.len() as u64;
                let of = finished.of.clone();
                if log_offset == finished.log_length {
                    self.leases.retain(|leased| *leased != id);
                    self.finished.insert(id, finished);
                }
                Some(to_runner::Message::FinishedAck(FinishedAck {
                    of,
                    log_offset,
                }))
            }
            Message::Draining(_) => {
                self.draining = true;
                None
            }
            Message::Declined(declined) => {
                if let Some(id) = parse(declined.of.clone()) {
                    self.leases.retain(|leased| *leased != id);
                }
                self.declined.push(declined);
                None
            }
        }
    }
}

fn check_key<T>(request: &Request<T>) -> Result<(), Status> {
    let key = request.metadata().get("authorization");
    let expected = format!("Bearer {KEY}");
    if key.is_none_or(|key| key.as_bytes() != expected.as_bytes()) {
        return Err(Status::unauthenticated("this key is not known"));
    }
    Ok(())
}

#[tonic::async_trait]
impl Runners for FakeServer {
    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterResponse>, Status> {
        if request.into_inner().token != TOKEN {
            return Err(Status::unauthenticated("the token has been used"));
        }
        Ok(Response::new(RegisterResponse {
            runner_id: "runner-1".into(),
            key: KEY.into(),
        }))
    }

    type ConnectStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<ToRunner, Status>> + Send + 'static>>;

    async fn connect(
        &self,
        request: Request<Streaming<FromRunner>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        check_key(&request)?;
        if let Some(status) = self.with(|state| state.refuse.clone()) {
            return Err(status);
        }
        let mut incoming = request.into_inner();
        let first = incoming.message().await?.and_then(|first| first.message);
        let Some(Message::Hello(hello)) = first else {
            return Err(Status::invalid_argument("the first message is a hello"));
        };
        let (out, answers) = mpsc::unbounded_channel();
        let stream = self.with(|state| {
            let kept = hello.attempts.iter().filter_map(|of| {
                let id = AttemptId::parse(Some(of.clone()))?;
                state.leases.contains(&id).then(|| LogAck {
                    of: Some(of.clone()),
                    offset: state.logs.get(&id).map_or(0, Vec::len) as u64,
                })
            });
            let welcome = Welcome {
                runner_id: "runner-1".into(),
                name: "a".into(),
                heartbeat_ms: u32::try_from(state.heartbeat.as_millis()).unwrap(),
                lease_ms: u32::try_from(state.lease.as_millis()).unwrap(),
                kept: kept.collect(),
            };
            let _ = out.send(Ok(ToRunner {
                message: Some(to_runner::Message::Welcome(welcome)),
            }));
            state.hellos.push(hello);
            state.streams += 1;
            state.out = Some((state.streams, out));
            state.streams
        });
        let server = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(message)) = incoming.message().await {
                if let Some(message) = message.message {
                    server.handle(stream, message);
                }
            }
            server.with(|state| {
                if state.out.as_ref().is_some_and(|(open, _)| *open == stream) {
                    state.out = None;
                }
            });
        });
        Ok(Response::new(UnboundedReceiverStream::new(answers).boxed()))
    }

    type FetchContextStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<ContextChunk, Status>> + Send + 'static>>;

    async fn fetch_context(
        &self,
        request: Request<FetchContextRequest>,
    ) -> Result<Response<Self::FetchContextStream>, Status> {
        check_key(&request)?;
        let offset = request.into_inner().offset;
        let (rest, breaks, stalls) = self.with(|state| {
            state.context_offsets.push(offset);
            let start = usize::try_from(offset).unwrap();
            let end = state.context_breaks_at.take();
            let rest = &state.context[start..end.unwrap_or(state.context.len())];
            (rest.to_vec(), end.is_some(), state.context_stalls)
        });
        let mut chunks: Vec<Result<ContextChunk, Status>> = rest
            .chunks(1000)
            .map(|data| {
                Ok(ContextChunk {
                    data: data.to_vec().into(),
                })
            })
            .collect();
        if breaks && stalls {
            let chunks = futures::stream::iter(chunks).chain(futures::stream::pending());
            return Ok(Response::new(chunks.boxed()));
        }
        if breaks {
            chunks.push(Err(Status::unavailable("broken")));
        }
        Ok(Response::new(futures::stream::iter(chunks).boxed()))
    }

    type FetchRegistryRecordStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<RegistryRecordChunk, Status>> + Send + 'static>>;

    async fn fetch_registry_record(
        &self,
        request: Request<RegistryRecordRequest>,
    ) -> Result<Response<Self::FetchRegistryRecordStream>, Status> {
        check_key(&request)?;
        let repository = request.into_inner().repository;
        let json = serde_json::json!({"tags": [], "needed": [], "cacheTags": [repository]});
        let json = json.to_string().into_bytes();
        let chunks: Vec<_> = json
            .chunks(10)
            .map(|data| {
                Ok(RegistryRecordChunk {
                    data: data.to_vec().into(),
                })
            })
            .collect();
        Ok(Response::new(futures::stream::iter(chunks).boxed()))
    }
}
