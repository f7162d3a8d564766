//! A control plane of a test's own, and runners that say what they are told to say.

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

/// How long anything that must happen may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Runs the same test on both databases.
macro_rules! on_both {
    ($($(#[$meta:meta])* $name:ident),+ $(,)?) => {
        mod sqlite {
            $($(#[$meta])* #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name($crate::place::Place::sqlite()).await;
            })+
        }
        mod postgres {
            $($(#[$meta])* #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if let Some(place) = $crate::place::Place::postgres() {
                    super::$name(place).await;
                }
            })+
        }
    };
}
pub(crate) use on_both;

/// Times that a test can wait for.
pub(crate) fn quick() -> Config {
    Config {
        lease: Duration::from_millis(2000),
        heartbeat: Duration::from_millis(300),
        accept: Duration::from_millis(800),
        poll: Duration::from_millis(100),
        ..Config::default()
    }
}

/// Waits until `ask` gives something.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut ask: impl FnMut() -> F,
) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = ask().await {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A run that does nothing in particular.
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
        warm_key: String::new(),
        max_attempts: 3,
        origin: Default::default(),
        trust_domain: TrustDomain::Local,
    }
}

/// Asks for a run, as the API does.
pub(crate) async fn enqueue(app: &App, run: NewRun) -> RunRow {
    let enqueued = app.store.enqueue(run, app.clock.now_ms()).await.unwrap();
    app.wake.notify_one();
    enqueued.into_row()
}

/// Waits until a run is in a state.
pub(crate) async fn reaches(store: &Store, run: &RunId, state: RunState) -> RunRow {
    eventually(&format!("{run} {state}"), || async {
        let row = store.run(run).await.unwrap();
        (row.state == state).then_some(row)
    })
    .await
}

pub(crate) async fn client(server: &Server) -> RunnersClient<Channel> {
    let channel = Channel::from_shared(format!("http://{}", server.addr()))
        .unwrap()
        .connect()
        .await
        .unwrap();
    RunnersClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE + 64 * 1024)
        .max_encoding_message_size(MAX_MESSAGE)
}

pub(crate) async fn token(server: &Server, pool: Option<&str>, labels: &[(&str, &str)]) -> String {
    let labels = labels
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    let grant = RunnerGrant {
        pool: pool.map(str::to_owned),
        labels,
        ..RunnerGrant::default()
    };
    granted(server, grant).await
}

pub(crate) async fn granted(server: &Server, grant: RunnerGrant) -> String {
    let ttl = Duration::from_secs(60);
    let token = new_runner_token(server.app(), grant, ttl).await;
    token.unwrap().expose().to_owned()
}

/// A registered runner.
#[derive(Debug, Clone)]
pub(crate) struct FakeRunner {
    pub(crate) id: String,
    pub(crate) key: String,
    pub(crate) hello: Hello,
}

impl FakeRunner {
    /// With one slot, in the pool `default`.
    pub(crate) async fn register(server: &Server, name: &str) -> Self {
        let token = token(server, None, &[]).await;
        Self::register_with(server, name, &token).await.unwrap()
    }

    pub(crate) async fn register_with(
        server: &Server,
        name: &str,
        token: &str,
    ) -> Result<Self, Status> {
        let request = RegisterRequest {
            token: token.to_owned(),
            name: name.to_owned(),
            ..RegisterRequest::default()
        };
        let response = client(server).await.register(request).await?.into_inner();
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

    pub(crate) fn slots(mut self, slots: u32) -> Self {
        self.hello.slots = slots;
        self
    }

    pub(crate) fn holding(mut self, held: &[&Attempt]) -> Self {
        self.hello.held = held.iter().copied().cloned().collect();
        self
    }

    /// Connects and says hello.
    pub(crate) async fn connect(&self, server: &Server) -> Line {
        let mut line = self.dial(server).await.unwrap();
        line.say(From::Hello(self.hello.clone())).await;
        line.welcome = line
            .until("a welcome", |message| match message {
                Message::Welcome(welcome) => Some(welcome.clone()),
                _ => None,
            })
            .await;
        // The hub knows it a moment after its welcome.
        let id = self.id.clone();
        eventually("the runner is known", || async {
            server.app().hub.runner(&id)
        })
        .await;
        line
    }

    /// Connects and says nothing.
    pub(crate) async fn dial(&self, server: &Server) -> Result<Line, Status> {
        let (out, messages) = mpsc::channel(64);
        let mut request = Request::new(ReceiverStream::new(messages));
        let bearer = format!("Bearer {}", self.key).parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
        let inbound = client(server).await.connect(request).await?.into_inner();
        Ok(Line {
            out,
            inbound,
            welcome: Welcome::default(),
            passed: Vec::new(),
            held: Arc::default(),
            heart: None,
        })
    }
}

/// A runner's stream.
pub(crate) struct Line {
    out: mpsc::Sender<FromRunner>,
    inbound: Streaming<ToRunner>,
    pub(crate) welcome: Welcome,
    /// What came while something else was waited for.
    passed: Vec<Message>,
    held: Arc<Mutex<Vec<Attempt>>>,
    heart: Option<JoinHandle<()>>,
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(heart) = &self.heart {
            heart.abort();
        }
    }
}

impl Line {
    /// Says hello as `runner`.
    pub(crate) async fn hello(&mut self, runner: &FakeRunner) {
        self.say(From::Hello(runner.hello.clone())).await;
    }

    pub(crate) async fn say(&self, message: From) {
        let message = Some(message);
        let _ = self.out.send(FromRunner { message }).await;
    }

    /// A message whose content this version does not know.
    pub(crate) async fn say_nothing(&self) {
        let _ = self.out.send(FromRunner::default()).await;
    }

    /// The next message, or how the stream ended.
    pub(crate) async fn next(&mut self) -> Result<Message, Status> {
        let next = tokio::time::timeout(PATIENCE, self.inbound.message());
        match next.await.expect("a message came in time")? {
            Some(ToRunner { message }) => Ok(message.expect("a message of this version")),
            None => Err(Status::ok("the stream ended")),
        }
    }

    /// The first message, of those that came already and those that come, for which `pick` gives something.
    pub(crate) async fn until<T>(&mut self, what: &str, pick: impl Fn(&Message) -> Option<T>) -> T {
        if let Some(at) = self
            .passed
            .iter()
            .position(|message| pick(message).is_some())
        {
            return pick(&self.passed.remove(at)).unwrap();
        }
        loop {
            let message = self
                .next()
                .await
                .unwrap_or_else(|status| panic!("{what} did not come: {status}"));
            if let Some(found) = pick(&message) {
                return found;
            }
            self.passed.push(message);
        }
    }

    /// How the stream ends, whatever comes before.
    pub(crate) async fn end(&mut self) -> Status {
        loop {
            if let Err(status) = self.next().await {
                return status;
            }
        }
    }

    /// The next lease, within the time that anything may take.
    pub(crate) async fn lease(&mut self) -> Lease {
        self.until("a lease", |message| match message {
            Message::Lease(lease) => Some(lease.clone()),
            _ => None,
        })
        .await
    }

    /// No lease comes for a moment.
    pub(crate) async fn no_lease(&mut self) {
        let lease = tokio::time::timeout(Duration::from_millis(400), self.lease()).await;
        assert!(lease.is_err(), "{:?}", lease.unwrap().of);
    }

    pub(crate) async fn abandoned(&mut self, of: &Attempt) -> String {
        self.until("an abandon", |message| match message {
            Message::Abandon(abandon) if abandon.of.as_ref() == Some(of) => {
                Some(abandon.reason.clone())
            }
            _ => None,
        })
        .await
    }

    /// Renews what [`Self::holds`] says, from now on.
    pub(crate) fn beat(&mut self, every: Duration) {
        let (out, held) = (self.out.clone(), self.held.clone());
        self.heart = Some(tokio::spawn(async move {
            loop {
                tokio::time::sleep(every).await;
                let heartbeat = Heartbeat {
                    held: held.lock().unwrap().clone(),
                    free_disk: 1 << 40,
                };
                let message = Some(From::Heartbeat(heartbeat));
                if out.send(FromRunner { message }).await.is_err() {
                    return;
                }
            }
        }));
    }

    /// Its heart stops, and it goes on talking.
    pub(crate) fn faint(&mut self) {
        self.heart.take().unwrap().abort();
    }

    pub(crate) fn holds(&self, held: &[&Attempt]) {
        *self.held.lock().unwrap() = held.iter().copied().cloned().collect();
    }

    pub(crate) async fn accept(&self, of: &Attempt) {
        self.say(From::Accepted(Accepted {
            of: Some(of.clone()),
        }))
        .await;
    }

    pub(crate) async fn decline(&self, of: &Attempt, reason: &str) {
        self.say(From::Declined(Declined {
            of: Some(of.clone()),
            reason: reason.into(),
        }))
        .await;
    }

    pub(crate) async fn start(&self, of: &Attempt) {
        self.accept(of).await;
        self.say(From::Started(Started {
            of: Some(of.clone()),
        }))
        .await;
    }

    pub(crate) async fn log(&self, of: &Attempt, offset: u64, data: &[u8]) {
        self.say(From::Log(LogChunk {
            of: Some(of.clone()),
            offset,
            data: data.to_vec().into(),
        }))
        .await;
    }

    /// Everything below this offset of a run's log is stored, says the control plane.
    pub(crate) async fn log_ack(&mut self, of: &Attempt) -> u64 {
        self.until("an acknowledgement of the log", |message| match message {
            Message::LogAck(ack) if ack.of.as_ref() == Some(of) => Some(ack.offset),
            _ => None,
        })
        .await
    }

    /// Says that a run is over.
    pub(crate) async fn say_finished(&self, of: &Attempt, state: RunState, log: &[u8]) {
        self.say(From::Finished(finished(of, state, log))).await;
    }

    /// Says that a run is over, and gives how much of its log is stored.
    pub(crate) async fn finish(&mut self, of: &Attempt, state: RunState, log: &[u8]) -> u64 {
        self.say_finished(of, state, log).await;
        self.until("an acknowledgement of the end", |message| match message {
            Message::FinishedAck(ack) if ack.of.as_ref() == Some(of) => Some(ack.log_offset),
            _ => None,
        })
        .await
    }

    /// Takes the next lease, and carries it out at once.
    pub(crate) async fn work(&mut self) -> Attempt {
        let of = self.lease().await.of.unwrap();
        self.start(&of).await;
        assert_eq!(self.finish(&of, RunState::Succeeded, b"").await, 0);
        of
    }
}

pub(crate) fn finished(of: &Attempt, state: RunState, log: &[u8]) -> Finished {
    let sha256: String = Sha256::digest(log)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Finished {
        of: Some(of.clone()),
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

/// What [`Hello`] says of labels.
pub(crate) fn labels(of: &[(&str, &str)]) -> HashMap<String, String> {
    of.iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

/// One of `acrtask_...` of `/metrics`.
pub(crate) async fn metric(server: &Server, line: &str) -> Option<f64> {
    let text = server.app().metrics.text().unwrap();
    text.lines()
        .find_map(|found| found.strip_prefix(line)?.trim().parse().ok())
}
