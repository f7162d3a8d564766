//! Runners that carry nothing out.

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

/// Runners that share one TCP connection: a thousand sockets are not what is measured.
const SHARED: usize = 50;

/// What every fake run prints.
const LOG: &[u8] = br#"{"time":"2026-01-02T03:04:05Z","run":"load","event":"run_finished","state":"succeeded","reason":null,"elapsed_ms":1}
"#;

async fn channel(server: &str) -> Channel {
    Endpoint::from_shared(server.to_owned())
        .unwrap()
        .initial_connection_window_size(1 << 20)
        .connect()
        .await
        .unwrap()
}

/// Registers so many runners; their keys.
pub(crate) async fn register(server: &str, token: &str, count: usize) -> Vec<String> {
    let api = Arc::new(Api::new(server, token));
    let mut client = RunnersClient::new(channel(server).await);
    let mut keys = Vec::new();
    for i in 0..count {
        let token = api.runner_token().await;
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

/// Time that `runs` leases took, behind the first ones.
pub(crate) async fn dispatch(
    server: &str,
    keys: Vec<String>,
    first: usize,
    runs: usize,
) -> Duration {
    let counted = Arc::new(Counted {
        leases: AtomicUsize::new(0),
        skipped: first,
        wanted: runs,
        first: std::sync::OnceLock::new(),
        done: Notify::new(),
    });
    let mut runners = start(server, keys, &counted).await;
    let done = counted.done.notified();
    tokio::select! {
        () = done => {}
        ended = runners.join_next() => panic!("a runner ended: {ended:?}"),
    }
    counted.first.get().unwrap().elapsed()
}

/// Holds the connections until standard input ends.
pub(crate) async fn idle(server: &str, keys: Vec<String>) {
    let counted = Arc::new(Counted {
        leases: AtomicUsize::new(0),
        skipped: 0,
        wanted: usize::MAX,
        first: std::sync::OnceLock::new(),
        done: Notify::new(),
    });
    let runners = start(server, keys, &counted).await;
    println!("{}", serde_json::json!({ "connected": runners.len() }));
    tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0]))
        .await
        .unwrap()
        .unwrap();
}

struct Counted {
    leases: AtomicUsize,
    skipped: usize,
    wanted: usize,
    first: std::sync::OnceLock<Instant>,
    done: Notify,
}

impl Counted {
    fn lease(&self) {
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

/// Connects all of them, and waits until each was welcomed.
async fn start(server: &str, keys: Vec<String>, counted: &Arc<Counted>) -> JoinSet<()> {
    let mut runners = JoinSet::new();
    let (welcomed, mut welcomes) = mpsc::channel(keys.len().max(1));
    let count = keys.len();
    for keys in keys.chunks(SHARED) {
        let shared = channel(server).await;
        for key in keys {
            runners.spawn(one(
                RunnersClient::new(shared.clone()),
                key.clone(),
                Arc::clone(counted),
                welcomed.clone(),
            ));
        }
    }
    for _ in 0..count {
        welcomes.recv().await.unwrap();
    }
    runners
}

/// One runner with one slot.
async fn one(
    mut client: RunnersClient<Channel>,
    key: String,
    counted: Arc<Counted>,
    welcomed: mpsc::Sender<()>,
) {
    let (out, messages) = mpsc::channel(16);
    let say = |message| {
        let out = out.clone();
        async move {
            let message = FromRunner {
                message: Some(message),
            };
            out.send(message).await.unwrap();
        }
    };
    say(from_runner::Message::Hello(Hello {
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
    let mut held: Vec<Attempt> = Vec::new();
    let mut beat = tokio::time::interval(Duration::from_secs(10));
    beat.reset();
    loop {
        let answer = tokio::select! {
            answer = answers.message() => answer.unwrap().unwrap(),
            _ = beat.tick() => {
                say(from_runner::Message::Heartbeat(Heartbeat {
                    held: held.clone(),
                    free_disk: 1 << 40,
                }))
                .await;
                continue;
            }
        };
        match answer.message {
            Some(to_runner::Message::Welcome(_)) => welcomed.send(()).await.unwrap(),
            Some(to_runner::Message::Lease(lease)) => {
                counted.lease();
                let of = lease.of.unwrap();
                held.push(of.clone());
                say(from_runner::Message::Accepted(Accepted {
                    of: Some(of.clone()),
                }))
                .await;
                say(from_runner::Message::Started(Started {
                    of: Some(of.clone()),
                }))
                .await;
                say(from_runner::Message::Log(LogChunk {
                    of: Some(of.clone()),
                    offset: 0,
                    data: LOG.into(),
                }))
                .await;
                say(from_runner::Message::Finished(Finished {
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
                held.retain(|of| Some(of) != ack.of.as_ref())
            }
            _ => {}
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
