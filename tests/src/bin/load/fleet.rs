//! Fake runners that execute nothing.

use std::{
    io::Read,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use acrtask_proto::runner::{
    Accepted, Attempt, Finished, FromRunner, Heartbeat, Hello, LogChunk, RegisterRequest, Started,
    from_runner, runners_client::RunnersClient, to_runner,
};
use sha2::{Digest, Sha256};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use crate::api::Api;

/// Number of runners that share one TCP connection. The benchmark does not measure a thousand
/// sockets.
const SHARED: usize = 50;

/// Log of every fake run.
const LOG: &[u8] = br#"{"time":"2026-01-02T03:04:05Z","run":"load","event":"run_finished","state":"succeeded","reason":null,"elapsed_ms":1}
"#;

async fn connect_channel(server: &str) -> Channel {
    Endpoint::from_shared(server.to_owned())
        .unwrap()
        .initial_connection_window_size(1 << 20)
        .connect()
        .await
        .unwrap()
}

/// Registers `count` runners and returns their keys.
pub(crate) async fn register(server: &str, token: &str, count: usize) -> Vec<String> {
    let api = Arc::new(Api::new(server, token));
    let mut client = RunnersClient::new(connect_channel(server).await);
    let mut keys = Vec::new();
    for i in 0..count {
        let token = api.create_runner_token().await;
        let registered = client
            .register(RegisterRequest {
                token,
                name: format!("fake-{}-{i}", std::process::id()),
                ..RegisterRequest::default()
            })
            .await
            .unwrap();
        keys.push(registered.into_inner().key);
    }
    keys
}

/// Measures the time of `runs` leases that follow the `first` ones.
pub(crate) async fn measure_dispatch(
    server: &str,
    keys: Vec<String>,
    first: usize,
    runs: usize,
) -> Duration {
    let counter = Arc::new(LeaseCounter {
        leases: AtomicUsize::new(0),
        skipped: first,
        wanted: runs,
        first: std::sync::OnceLock::new(),
        done: Notify::new(),
    });
    let mut runners = start_runners(server, keys, &counter).await;
    let done = counter.done.notified();
    tokio::select! {
        () = done => {}
        ended = runners.join_next() => panic!("a runner ended: {ended:?}"),
    }
    counter.first.get().unwrap().elapsed()
}

/// Keeps the connections open until standard input ends.
pub(crate) async fn run_idle(server: &str, keys: Vec<String>) {
    let counter = Arc::new(LeaseCounter {
        leases: AtomicUsize::new(0),
        skipped: 0,
        wanted: usize::MAX,
        first: std::sync::OnceLock::new(),
        done: Notify::new(),
    });
    let runners = start_runners(server, keys, &counter).await;
    println!("{}", serde_json::json!({ "connected": runners.len() }));
    tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0]))
        .await
        .unwrap()
        .unwrap();
}

struct LeaseCounter {
    leases: AtomicUsize,
    skipped: usize,
    wanted: usize,
    first: std::sync::OnceLock<Instant>,
    done: Notify,
}

impl LeaseCounter {
    fn count_lease(&self) {
        let count = self.leases.fetch_add(1, Ordering::SeqCst);
        if count < self.skipped {
            return;
        }
        self.first.get_or_init(Instant::now);
        if count + 1 - self.skipped == self.wanted {
            self.done.notify_one();
        }
    }
}

/// Connects all runners and waits until the server has welcomed each of them.
async fn start_runners(
    server: &str,
    keys: Vec<String>,
    counter: &Arc<LeaseCounter>,
) -> JoinSet<()> {
    let mut runners = JoinSet::new();
    let (welcomed, mut welcomes) = mpsc::channel(keys.len().max(1));
    let count = keys.len();
    for keys in keys.chunks(SHARED) {
        let shared = connect_channel(server).await;
        for key in keys {
            runners.spawn(run_fake_runner(
                RunnersClient::new(shared.clone()),
                key.clone(),
                Arc::clone(counter),
                welcomed.clone(),
            ));
        }
    }
    for _ in 0..count {
        welcomes.recv().await.unwrap();
    }
    runners
}

/// Acts as one runner with one slot.
async fn run_fake_runner(
    mut client: RunnersClient<Channel>,
    key: String,
    counter: Arc<LeaseCounter>,
    welcomed: mpsc::Sender<()>,
) {
    let (out, messages) = mpsc::channel(16);
    let send = |message| {
        let out = out.clone();
        async move {
            let message = FromRunner {
                message: Some(message),
            };
            out.send(message).await.unwrap();
        }
    };
    send(from_runner::Message::Hello(Hello {
        version: "load".into(),
        platforms: vec!["linux/amd64".into()],
        slots: 1,
        free_disk: 1 << 40,
        ..Hello::default()
    }))
    .await;
    let mut request = tonic::Request::new(ReceiverStream::new(messages));
    let bearer = format!("Bearer {key}").parse().unwrap();
    request.metadata_mut().insert("authorization", bearer);
    let mut answers = client.connect(request).await.unwrap().into_inner();
    let mut active: Vec<Attempt> = Vec::new();
    let mut heartbeat = tokio::time::interval(Duration::from_secs(10));
    heartbeat.reset();
    loop {
        let answer = tokio::select! {
            answer = answers.message() => answer.unwrap().unwrap(),
            _ = heartbeat.tick() => {
                send(from_runner::Message::Heartbeat(Heartbeat {
                    attempts: active.clone(),
                    free_disk: 1 << 40,
                }))
                .await;
                continue;
            }
        };
        match answer.message {
            Some(to_runner::Message::Welcome(_)) => welcomed.send(()).await.unwrap(),
            Some(to_runner::Message::Lease(lease)) => {
                counter.count_lease();
                let of = lease.of.unwrap();
                active.push(of.clone());
                send(from_runner::Message::Accepted(Accepted {
                    of: Some(of.clone()),
                }))
                .await;
                send(from_runner::Message::Started(Started {
                    of: Some(of.clone()),
                }))
                .await;
                send(from_runner::Message::Log(LogChunk {
                    of: Some(of.clone()),
                    offset: 0,
                    data: LOG.into(),
                }))
                .await;
                send(from_runner::Message::Finished(Finished {
                    of: Some(of),
                    state: "succeeded".into(),
                    reason: String::new(),
                    result_json: "{}".into(),
                    log_length: LOG.len() as u64,
                    log_sha256: hex(&Sha256::digest(LOG)),
                }))
                .await;
            }
            Some(to_runner::Message::FinishedAck(ack)) => {
                active.retain(|of| Some(of) != ack.of.as_ref())
            }
            _ => {}
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
