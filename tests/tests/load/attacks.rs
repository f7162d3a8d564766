//! Attacks on the server, one function each, limited in time and in the number of connections.

use std::{
    io,
    pin::Pin,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinSet,
    time::{sleep, timeout_at},
};

use crate::{
    target::Address,
    wire::{Io, PREFACE, Protocol, connect_tcp, frame, open, open_http2, open_with, request},
};

type Attacking = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Attack by anonymous clients.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    pub(crate) over_tls: bool,
    pub(crate) start: fn(Address, Instant) -> Attacking,
}

macro_rules! attacks {
    ($($name:ident $tls:literal),+ $(,)?) => {
        /// All attacks.
        pub(crate) const ATTACKS: &[Attack] = &[$(Attack {
            name: stringify!($name),
            over_tls: $tls,
            start: |address, until| Box::pin($name(address, until)),
        }),+];
    };
}

attacks!(
    silent_connections true,
    half_open_handshakes true,
    slow_heads true,
    slow_bodies true,
    large_bodies true,
    large_bodies_of_many_streams true,
    silent_streams true,
    silent_grpc_streams true,
    wrong_credentials true,
    large_deliveries true,
    unread_responses true,
    unread_streams false,
    rapid_resets false,
    pings_and_settings false,
    endless_headers false,
    empty_frames false,
);

const EXCHANGE: &str = "/api/v1/auth/exchange";
const REGISTER: &str = "/acrtask.runner.v1.Runners/Register";
const CONNECT: &str = "/acrtask.runner.v1.Runners/Connect";

/// Runs `count` attackers until `until`. An attacker starts again after a pause. So at most 1000
/// connections a second are opened, because the attackers share the machine with the server and its
/// clients.
async fn run_attackers<F>(
    address: Address,
    until: Instant,
    count: usize,
    attacker: impl Fn(Address, usize) -> F + Clone + Send + 'static,
) where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let pause = Duration::from_millis(count.max(50) as u64);
    let mut tasks = JoinSet::new();
    for number in 0..count {
        let (address, attacker) = (address.clone(), attacker.clone());
        tasks.spawn(async move {
            loop {
                let _ = attacker(address.clone(), number).await;
                sleep(pause).await;
            }
        });
        // Spreads the starts over half a second.
        if number % 64 == 63 {
            sleep(Duration::from_millis(2)).await;
        }
    }
    sleep(until.saturating_duration_since(Instant::now())).await;
    tasks.shutdown().await;
}

/// Waits until the server closes the connection.
async fn wait_for_close(stream: &mut (impl Io + ?Sized)) -> io::Result<()> {
    let mut bytes = [0; 4096];
    while stream.read(&mut bytes).await? > 0 {}
    Ok(())
}

/// Sends one byte a second until the server closes the connection.
async fn trickle(stream: &mut (impl Io + ?Sized)) -> io::Result<()> {
    let mut answer = [0; 4096];
    loop {
        stream.write_all(b"x").await?;
        let second = tokio::time::Instant::now() + Duration::from_secs(1);
        if let Ok(read) = timeout_at(second, stream.read(&mut answer)).await
            && read? == 0
        {
            return Ok(());
        }
    }
}

/// Returns the number of connections to open: the file limit of this process less a reserve, at
/// most 20 000.
fn connection_limit() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().nth(3));
    let files = soft
        .and_then(|soft| soft.parse::<usize>().ok())
        .unwrap_or(1024);
    files.saturating_sub(1000).min(20_000)
}

/// Opens as many connections as possible, sends nothing, and keeps them after the server closes
/// them.
async fn silent_connections(address: Address, until: Instant) {
    let each = connection_limit() / 8;
    let mut openers = JoinSet::new();
    for number in 0..8 {
        let address = address.clone();
        openers.spawn(async move {
            let mut open = Vec::new();
            while open.len() < each && Instant::now() < until {
                match connect_tcp(&address, number * 5 + open.len() % 5, None).await {
                    Ok(stream) => open.push(stream),
                    Err(_) => sleep(Duration::from_millis(20)).await,
                }
            }
            sleep(until.saturating_duration_since(Instant::now())).await;
        });
    }
    while openers.join_next().await.is_some() {}
}

/// Starts a TLS handshake and never continues it.
async fn half_open_handshakes(address: Address, until: Instant) {
    run_attackers(address, until, 2000, async |address, number| {
        let mut stream = connect_tcp(&address, number, None).await?;
        // A record that announces a ClientHello of 500 bytes.
        stream
            .write_all(&[22, 3, 1, 1, 252, 1, 0, 1, 248, 3, 3])
            .await?;
        wait_for_close(&mut stream).await
    })
    .await;
}

async fn slow_heads(address: Address, until: Instant) {
    run_attackers(address, until, 1500, async |address, number| {
        let mut stream = open(&address, number, Protocol::Http1).await?;
        stream
            .write_all(b"GET /api/v1/me HTTP/1.1\r\nhost: localhost\r\nx: ")
            .await?;
        trickle(&mut *stream).await
    })
    .await;
}

async fn slow_bodies(address: Address, until: Instant) {
    run_attackers(address, until, 1500, async |address, number| {
        let path = [
            "/api/v1/auth/exchange",
            "/trigger/acrtu_x",
            "/nothing",
            "/api/v1/runs",
        ];
        let path = path[number % path.len()];
        let mut stream = open(&address, number, Protocol::Http1).await?;
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             content-length: 32000\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&vec![b' '; 31_000]).await?;
        trickle(&mut *stream).await
    })
    .await;
}

/// Sends a request head and `length` bytes of a body that never completes.
async fn send_endless(
    address: &Address,
    number: usize,
    head: &str,
    length: usize,
) -> io::Result<()> {
    let mut stream = open(address, number, Protocol::Http1).await?;
    stream.write_all(head.as_bytes()).await?;
    let chunk = vec![b' '; 64 << 10];
    for _ in 0..length / chunk.len() {
        stream.write_all(&chunk).await?;
    }
    wait_for_close(&mut *stream).await
}

async fn large_bodies(address: Address, until: Instant) {
    run_attackers(address, until, 128, async |address, number| {
        let head = format!(
            "POST {EXCHANGE} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            8 << 20
        );
        send_endless(&address, number, &head, 7 << 20).await
    })
    .await;
}

/// Sends deliveries of 25 MiB without a valid signature to an existing webhook.
async fn large_deliveries(address: Address, until: Instant) {
    run_attackers(address, until, 64, async |address, number| {
        let head = format!(
            "POST /hooks/load HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             x-github-event: push\r\nx-github-delivery: {number}\r\nx-hub-signature-256: sha256={}\r\n\
             content-length: {}\r\n\r\n",
            "0".repeat(64),
            25 << 20
        );
        send_endless(&address, number, &head, 24 << 20).await
    })
    .await;
}

fn post_request(path: &str, kind: &str) -> http::Request<()> {
    http::Request::post(format!("http://localhost{path}"))
        .header("content-type", kind)
        .body(())
        .unwrap()
}

/// Opens 100 calls on one HTTP/2 connection. Each sends `first` once and then `chunk` repeatedly.
async fn open_streams(
    address: &Address,
    number: usize,
    paths: &[&str],
    first: Bytes,
    chunk: Option<Bytes>,
) -> io::Result<()> {
    let stream = open(address, number, Protocol::Http2).await?;
    let (client, connection) = h2::client::handshake(stream)
        .await
        .map_err(io::Error::other)?;
    let mut calls = JoinSet::new();
    for call in 0..100 {
        let path = paths[call % paths.len()];
        let grpc = path.contains("Runners/");
        let kind = if grpc {
            "application/grpc"
        } else {
            "application/json"
        };
        let (client, first, chunk) = (client.clone(), first.clone(), chunk.clone());
        let head = post_request(path, kind);
        calls.spawn(async move {
            let mut client = client.ready().await?;
            let (answer, mut body) = client.send_request(head, false)?;
            if !first.is_empty() {
                body.send_data(first, false)?;
            }
            while let Some(chunk) = &chunk {
                body.reserve_capacity(chunk.len());
                match std::future::poll_fn(|context| body.poll_capacity(context)).await {
                    Some(Ok(capacity)) => {
                        body.send_data(chunk.slice(..capacity.min(chunk.len())), false)?
                    }
                    _ => break,
                }
            }
            answer.await.map(drop)
        });
    }
    connection.await.map_err(io::Error::other)
}

async fn large_bodies_of_many_streams(address: Address, until: Instant) {
    run_attackers(address, until, 16, async |address, number| {
        let chunk = Bytes::from(vec![b' '; 16 << 10]);
        let paths = [
            EXCHANGE,
            "/api/v1/runs",
            REGISTER,
            "/hooks/load",
            "/hooks/none",
        ];
        // Header of a gRPC message of 8 MiB.
        let first = Bytes::from_static(&[0, 0, 0x80, 0, 0]);
        open_streams(&address, number, &paths, first, Some(chunk)).await
    })
    .await;
}

async fn silent_streams(address: Address, until: Instant) {
    run_attackers(address, until, 400, async |address, number| {
        let paths = [EXCHANGE, "/trigger/acrtu_x", "/hooks/load", "/nothing"];
        let first = Bytes::from(vec![b' '; 600]);
        open_streams(&address, number, &paths, first, None).await
    })
    .await;
}

async fn silent_grpc_streams(address: Address, until: Instant) {
    run_attackers(address, until, 400, async |address, number| {
        let first = Bytes::from_static(&[0, 0, 0x7f, 0xff, 0xff]);
        open_streams(&address, number, &[REGISTER, CONNECT], first, None).await
    })
    .await;
}

/// Sends wrong tokens, keys, URLs and signatures, also from the address of the valid clients.
async fn wrong_credentials(address: Address, until: Instant) {
    run_attackers(address, until, 24, async |address, number| {
        let mut stream = open(&address, number / 6, Protocol::Http1).await?;
        let mut answer = vec![0; 16 << 10];
        let secret = "A".repeat(43);
        let mut count = 0;
        loop {
            count += 1;
            let id = format!("x{number}x{count}");
            let post = |path: &str, more: &str, body: &str| {
                format!(
                    "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{more}\
                     content-length: {}\r\n\r\n{body}",
                    body.len()
                )
            };
            let request = match number % 6 {
                0 | 1 => format!(
                    "GET /api/v1/me HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer acrt_{id}_{secret}\r\n\r\n"
                ),
                2 => post(&format!("/trigger/acrtu_{id}_{secret}"), "", ""),
                3 => post(EXCHANGE, "", r#"{"token":"e30.e30.e30"}"#),
                4 => post("/hooks/load", "x-github-event: ping\r\nx-github-delivery: 1\r\n", "{}"),
                _ => post("/hooks/none", "", "{}"),
            };
            stream.write_all(request.as_bytes()).await?;
            if stream.read(&mut answer).await? == 0 {
                return Ok(());
            }
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// Requests the largest public document many times and reads nothing.
async fn unread_responses(address: Address, until: Instant) {
    run_attackers(address, until, 600, async |address, number| {
        let mut stream = open_with(&address, number, Protocol::Http1, Some(4096)).await?;
        let request = "GET /api/v1/openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n";
        stream.write_all(request.repeat(100).as_bytes()).await?;
        std::future::pending().await
    })
    .await;
}

/// Requests documents over HTTP/2 with a window of 0 bytes.
async fn unread_streams(address: Address, until: Instant) {
    run_attackers(address, until, 400, async |address, number| {
        let mut stream = open_http2(&address, number, &[0, 4, 0, 0, 0, 0]).await?;
        for call in 0..100 {
            let path = [
                "/api/v1/openapi.json",
                "/metrics",
                "/api/v1/schemas/task.json",
            ];
            let head = request("GET", path[call % path.len()], &[]);
            let id = u32::try_from(call * 2 + 1).unwrap();
            stream.write_all(&frame(1, 5, id, &head)).await?;
        }
        std::future::pending().await
    })
    .await;
}

/// Opens calls and resets them at once.
async fn rapid_resets(address: Address, until: Instant) {
    run_attackers(address, until, 16, async |address, number| {
        let mut stream = open_http2(&address, number, &[]).await?;
        let head = request("POST", EXCHANGE, &[("content-type", "application/json")]);
        let mut id = 1;
        loop {
            let mut bytes = Vec::new();
            for _ in 0..50 {
                bytes.extend(frame(1, 4, id, &head));
                bytes.extend(frame(3, 0, id, &[0, 0, 0, 8]));
                id += 2;
            }
            stream.write_all(&bytes).await?;
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Sends frames that require a response, and never reads the responses.
async fn pings_and_settings(address: Address, until: Instant) {
    run_attackers(address, until, 32, async |address, number| {
        let mut stream = open_http2(&address, number, &[]).await?;
        let message = if number % 2 == 0 {
            frame(6, 0, 0, &[0; 8])
        } else {
            frame(4, 0, 0, &[])
        };
        let many = message.repeat(500);
        loop {
            stream.write_all(&many).await?;
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Sends headers that never end.
async fn endless_headers(address: Address, until: Instant) {
    run_attackers(address, until, 64, async |address, number| {
        let mut stream = open_with(&address, number, Protocol::Http2, None).await?;
        stream.write_all(PREFACE).await?;
        stream.write_all(&frame(4, 0, 0, &[])).await?;
        stream
            .write_all(&frame(1, 0, 1, &request("GET", "/", &[])))
            .await?;
        let value = "v".repeat(100);
        let more: Vec<(String, &str)> = (0..120)
            .map(|number| (format!("x-{number}"), value.as_str()))
            .collect();
        let more: Vec<(&str, &str)> = more.iter().map(|(k, v)| (k.as_str(), *v)).collect();
        let block = crate::wire::headers(&more);
        loop {
            stream.write_all(&frame(9, 0, 1, &block)).await?;
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Sends empty body frames.
async fn empty_frames(address: Address, until: Instant) {
    run_attackers(address, until, 16, async |address, number| {
        let mut stream = open_http2(&address, number, &[]).await?;
        let head = request("POST", EXCHANGE, &[("content-type", "application/json")]);
        stream.write_all(&frame(1, 4, 1, &head)).await?;
        let many = frame(0, 0, 1, &[]).repeat(500);
        loop {
            stream.write_all(&many).await?;
            tokio::task::yield_now().await;
        }
    })
    .await;
}
