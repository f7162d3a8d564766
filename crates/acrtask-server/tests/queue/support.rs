//! A server and simulated runners for each test.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use acrtask_api::{run::RunResult, spec::RunSpec, task::QueueOptions};
use acrtask_model::{RunId, RunState, TrustDomain};
use acrtask_proto::{
    MAX_MESSAGE,
    runner::{
        Accepted, Attempt, Declined, Finished, FromRunner, Heartbeat, Hello, Lease, LogChunk,
        RegisterRequest, Started, ToRunner, Welcome, from_runner::Message as From,
        runners_client::RunnersClient, to_runner::Message,
    },
};
use acrtask_server::{
    App, Config,
    runners::{RunnerGrant, new_runner_token},
    serve::Server,
};
use acrtask_store::{NewRun, RunRow, Store};
use sha2::{Digest as _, Sha256};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming, transport::Channel};

/// Longest time to wait for an expected event.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Creates one test per database from a function that takes a [`TestDb`](crate::test_db::TestDb).
macro_rules! on_both {
    ($($(#[$meta:meta])* $name:ident),+ $(,)?) => {
        mod sqlite {
            $($(#[$meta])* #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name($crate::test_db::TestDb::sqlite()).await;
            })+
        }
        mod postgres {
            $($(#[$meta])* #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if let Some(db) = $crate::test_db::TestDb::postgres() {
                    super::$name(db).await;
                }
            })+
        }
    };
}
pub(crate) use on_both;

/// Returns a configuration with short periods, so that a test can wait for them.
pub(crate) fn quick_config() -> Config {
    Config {
        lease: Duration::from_millis(2000),
        heartbeat: Duration::from_millis(300),
        accept: Duration::from_millis(800),
        poll: Duration::from_millis(100),
        ..Config::default()
    }
}

/// Calls `probe` until it returns `Some`. Panics after [`DEADLINE`].
pub(crate) async fn wait_until<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut probe: impl FnMut() -> F,
) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(started.elapsed() < DEADLINE, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Returns a run with an empty specification.
pub(crate) fn new_run(name: &str) -> NewRun {
    NewRun {
        id: RunId::new(name).unwrap(),
        task_id: None,
        task_name: None,
        spec: RunSpec::default(),
        queue: QueueOptions::default(),
        platform: String::new(),
        context_id: None,
        secrets: None,
        trigger: "manual".into(),
        requested_by: None,
        rerun_of: None,
        idempotency_key: None,
        timeout_secs: None,
        traceparent: String::new(),
        affinity_key: String::new(),
        max_attempts: 3,
        origin: Default::default(),
        trust_domain: TrustDomain::Local,
    }
}

/// Enqueues a run as the API does.
pub(crate) async fn enqueue(app: &App, run: NewRun) -> RunRow {
    let enqueued = app.store.enqueue(run, app.clock.now_ms()).await.unwrap();
    app.wake.notify_one();
    enqueued.into_row()
}

/// Waits until a run has the state `state`.
pub(crate) async fn wait_for_state(store: &Store, run: &RunId, state: RunState) -> RunRow {
    wait_until(&format!("{run} {state}"), || async {
        let row = store.run(run).await.unwrap();
        (row.state == state).then_some(row)
    })
    .await
}

pub(crate) async fn connect_client(server: &Server) -> RunnersClient<Channel> {
    let channel = Channel::from_shared(format!("http://{}", server.addr()))
        .unwrap()
        .connect()
        .await
        .unwrap();
    RunnersClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE + 64 * 1024)
        .max_encoding_message_size(MAX_MESSAGE)
}

pub(crate) async fn create_token(
    server: &Server,
    pool: Option<&str>,
    labels: &[(&str, &str)],
) -> String {
    let labels = labels
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    let grant = RunnerGrant {
        pool: pool.map(str::to_owned),
        labels,
        ..RunnerGrant::default()
    };
    create_token_with_grant(server, grant).await
}

pub(crate) async fn create_token_with_grant(server: &Server, grant: RunnerGrant) -> String {
    let ttl = Duration::from_secs(60);
    let token = new_runner_token(server.app(), grant, ttl).await;
    token.unwrap().expose().to_owned()
}

/// A registered simulated runner.
#[derive(Debug, Clone)]
pub(crate) struct FakeRunner {
    pub(crate) id: String,
    pub(crate) key: String,
    pub(crate) hello: Hello,
}

impl FakeRunner {
    /// Registers a runner with one slot in the pool `default`.
    pub(crate) async fn register(server: &Server, name: &str) -> Self {
        let token = create_token(server, None, &[]).await;
        Self::register_with_token(server, name, &token)
            .await
            .unwrap()
    }

    pub(crate) async fn register_with_token(
        server: &Server,
        name: &str,
        token: &str,
    ) -> Result<Self, Status> {
        let request = RegisterRequest {
            token: token.to_owned(),
            name: name.to_owned(),
            ..RegisterRequest::default()
        };
        let response = connect_client(server)
            .await
            .register(request)
            .await?
            .into_inner();
        Ok(Self {
            id: response.runner_id,
            key: response.key,
            hello: Hello {
                version: "test".into(),
                platforms: vec!["linux/amd64".into()],
                slots: 1,
                ..Hello::default()
            },
        })
    }

    pub(crate) fn with_slots(mut self, slots: u32) -> Self {
        self.hello.slots = slots;
        self
    }

    pub(crate) fn with_active(mut self, attempts: &[&Attempt]) -> Self {
        self.hello.attempts = attempts.iter().copied().cloned().collect();
        self
    }

    /// Opens a stream, sends the hello and waits for the welcome.
    pub(crate) async fn connect(&self, server: &Server) -> RunnerStream {
        let mut stream = self.open_stream(server).await.unwrap();
        stream.send(From::Hello(self.hello.clone())).await;
        stream.welcome = stream
            .receive("a welcome", |message| match message {
                Message::Welcome(welcome) => Some(welcome.clone()),
                _ => None,
            })
            .await;
        // The hub adds the runner shortly after the welcome.
        let id = self.id.clone();
        wait_until("the hub lists the runner", || async {
            server.app().hub.runner(&id)
        })
        .await;
        stream
    }

    /// Opens a stream without sending a message.
    pub(crate) async fn open_stream(&self, server: &Server) -> Result<RunnerStream, Status> {
        let (out, messages) = mpsc::channel(64);
        let mut request = Request::new(ReceiverStream::new(messages));
        let bearer = format!("Bearer {}", self.key).parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
        let inbound = connect_client(server)
            .await
            .connect(request)
            .await?
            .into_inner();
        Ok(RunnerStream {
            out,
            inbound,
            welcome: Welcome::default(),
            unread: Vec::new(),
            active: Arc::default(),
            heartbeats: None,
        })
    }
}

/// The stream of a connected runner.
pub(crate) struct RunnerStream {
    out: mpsc::Sender<FromRunner>,
    inbound: Streaming<ToRunner>,
    pub(crate) welcome: Welcome,
    /// Messages that arrived before the one that the test waited for.
    unread: Vec<Message>,
    active: Arc<Mutex<Vec<Attempt>>>,
    heartbeats: Option<JoinHandle<()>>,
}

impl Drop for RunnerStream {
    fn drop(&mut self) {
        if let Some(heartbeats) = &self.heartbeats {
            heartbeats.abort();
        }
    }
}

impl RunnerStream {
    /// Sends the hello of `runner`.
    pub(crate) async fn send_hello(&mut self, runner: &FakeRunner) {
        self.send(From::Hello(runner.hello.clone())).await;
    }

    pub(crate) async fn send(&self, message: From) {
        let message = Some(message);
        let _ = self.out.send(FromRunner { message }).await;
    }

    /// Sends a message without content, as an unknown message of a newer version.
    pub(crate) async fn send_unknown(&self) {
        let _ = self.out.send(FromRunner::default()).await;
    }

    /// Returns the next message, or the status that ended the stream.
    pub(crate) async fn next(&mut self) -> Result<Message, Status> {
        let next = tokio::time::timeout(DEADLINE, self.inbound.message());
        match next.await.expect("a message arrives in time")? {
            Some(ToRunner { message }) => Ok(message.expect("a message of this version")),
            None => Err(Status::ok("the stream ended")),
        }
    }

    /// Returns the first result of `pick`, for unread messages first and then for new ones.
    pub(crate) async fn receive<T>(
        &mut self,
        what: &str,
        pick: impl Fn(&Message) -> Option<T>,
    ) -> T {
        if let Some(at) = self
            .unread
            .iter()
            .position(|message| pick(message).is_some())
        {
            return pick(&self.unread.remove(at)).unwrap();
        }
        loop {
            let message = self
                .next()
                .await
                .unwrap_or_else(|status| panic!("did not receive {what}: {status}"));
            if let Some(found) = pick(&message) {
                return found;
            }
            self.unread.push(message);
        }
    }

    /// Returns the status that ends the stream. Skips all messages before it.
    pub(crate) async fn receive_end(&mut self) -> Status {
        loop {
            if let Err(status) = self.next().await {
                return status;
            }
        }
    }

    /// Returns the next lease. Panics after [`DEADLINE`].
    pub(crate) async fn receive_lease(&mut self) -> Lease {
        self.receive("a lease", |message| match message {
            Message::Lease(lease) => Some(lease.clone()),
            _ => None,
        })
        .await
    }

    /// Asserts that no lease arrives within 400 milliseconds.
    pub(crate) async fn assert_no_lease(&mut self) {
        let lease = tokio::time::timeout(Duration::from_millis(400), self.receive_lease()).await;
        assert!(lease.is_err(), "{:?}", lease.unwrap().of);
    }

    pub(crate) async fn receive_abandon(&mut self, attempt: &Attempt) -> String {
        self.receive("an abandon", |message| match message {
            Message::Abandon(abandon) if abandon.of.as_ref() == Some(attempt) => {
                Some(abandon.reason.clone())
            }
            _ => None,
        })
        .await
    }

    /// Sends a heartbeat in each interval, with the attempts of [`Self::set_active`].
    pub(crate) fn start_heartbeats(&mut self, interval: Duration) {
        let (out, active) = (self.out.clone(), self.active.clone());
        self.heartbeats = Some(tokio::spawn(async move {
            loop {
                tokio::time::sleep(interval).await;
                let heartbeat = Heartbeat {
                    attempts: active.lock().unwrap().clone(),
                    free_disk: 1 << 40,
                };
                let message = Some(From::Heartbeat(heartbeat));
                if out.send(FromRunner { message }).await.is_err() {
                    return;
                }
            }
        }));
    }

    /// Stops the heartbeats. The stream stays open.
    pub(crate) fn stop_heartbeats(&mut self) {
        self.heartbeats.take().unwrap().abort();
    }

    pub(crate) fn set_active(&self, attempts: &[&Attempt]) {
        *self.active.lock().unwrap() = attempts.iter().copied().cloned().collect();
    }

    pub(crate) async fn send_accepted(&self, attempt: &Attempt) {
        self.send(From::Accepted(Accepted {
            of: Some(attempt.clone()),
        }))
        .await;
    }

    pub(crate) async fn send_declined(&self, attempt: &Attempt, reason: &str) {
        self.send(From::Declined(Declined {
            of: Some(attempt.clone()),
            reason: reason.into(),
        }))
        .await;
    }

    pub(crate) async fn send_started(&self, attempt: &Attempt) {
        self.send_accepted(attempt).await;
        self.send(From::Started(Started {
            of: Some(attempt.clone()),
        }))
        .await;
    }

    pub(crate) async fn send_log(&self, attempt: &Attempt, offset: u64, data: &[u8]) {
        self.send(From::Log(LogChunk {
            of: Some(attempt.clone()),
            offset,
            data: data.to_vec().into(),
        }))
        .await;
    }

    /// Returns the offset up to which the server has stored the log.
    pub(crate) async fn receive_log_ack(&mut self, attempt: &Attempt) -> u64 {
        self.receive("an acknowledgement of the log", |message| match message {
            Message::LogAck(ack) if ack.of.as_ref() == Some(attempt) => Some(ack.offset),
            _ => None,
        })
        .await
    }

    /// Reports the end of a run.
    pub(crate) async fn send_finished(&self, attempt: &Attempt, state: RunState, log: &[u8]) {
        self.send(From::Finished(finished_message(attempt, state, log)))
            .await;
    }

    /// Reports the end of a run. Returns the length of the stored log.
    pub(crate) async fn finish_attempt(
        &mut self,
        attempt: &Attempt,
        state: RunState,
        log: &[u8],
    ) -> u64 {
        self.send_finished(attempt, state, log).await;
        self.receive("an acknowledgement of the end", |message| match message {
            Message::FinishedAck(ack) if ack.of.as_ref() == Some(attempt) => Some(ack.log_offset),
            _ => None,
        })
        .await
    }

    /// Leases the next run and finishes it at once, successfully.
    pub(crate) async fn execute_next_lease(&mut self) -> Attempt {
        let attempt = self.receive_lease().await.of.unwrap();
        self.send_started(&attempt).await;
        assert_eq!(
            self.finish_attempt(&attempt, RunState::Succeeded, b"")
                .await,
            0
        );
        attempt
    }
}

pub(crate) fn finished_message(attempt: &Attempt, state: RunState, log: &[u8]) -> Finished {
    let sha256: String = Sha256::digest(log)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Finished {
        of: Some(attempt.clone()),
        state: state.as_str().into(),
        reason: if state == RunState::Succeeded {
            String::new()
        } else {
            format!("it {state}")
        },
        result_json: serde_json::to_string(&RunResult {
            vertices: 4,
            cached_vertices: 3,
            ..RunResult::default()
        })
        .unwrap(),
        log_length: log.len() as u64,
        log_sha256: sha256,
    }
}

/// Converts labels to the map of a [`Hello`].
pub(crate) fn to_labels(labels: &[(&str, &str)]) -> HashMap<String, String> {
    labels
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

/// Returns the value of a metric of `/metrics`. `None` if the metric is missing.
pub(crate) async fn read_metric(server: &Server, name: &str) -> Option<f64> {
    let text = server.app().metrics.encode_text().unwrap();
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}
