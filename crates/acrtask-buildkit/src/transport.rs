//! Connections: plain gRPC to a buildkitd, and the two ways into a Docker Engine (`POST /grpc` with
//! `Upgrade: h2c`, or gRPC on the socket itself where an engine no longer has that path).

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};

use crate::endpoint::{Endpoint, TlsFiles};
use crate::error::ConnectError;

/// Bytes of the largest message either side sends; containerd's and BuildKit's own limit.
pub(crate) const MAX_MESSAGE: usize = 16 * 1024 * 1024;
/// HTTP/2 window of a connection and of a stream. A small one makes a builder send thousands of tiny frames.
pub(crate) const WINDOW: u32 = 8 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the head of an engine's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes of an HTTP/1.1 answer that are read before giving up on its end.
const MAX_HTTP_HEAD: usize = 64 * 1024;

/// Opens a channel; it connects at once, so that an endpoint that is not there is known now.
pub(crate) async fn connect(endpoint: &Endpoint) -> Result<Channel, ConnectError> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| ConnectError::Unreachable {
        endpoint: endpoint.to_string(),
        source,
    };
    match endpoint {
        Endpoint::Unix(path) => {
            let stream = UnixStream::connect(path)
                .await
                .map_err(|e| failed(e.into()))?;
            over(path.clone(), Entry::Direct, Some(stream))
                .await
                .map_err(|e| failed(e.into()))
        }
        Endpoint::Tcp { address, tls } => tcp(address, tls.as_ref()).await.map_err(failed),
        Endpoint::DockerEngine { socket } => {
            // Asked first, because an engine that has the upgrade answers plain HTTP/2 with an error page.
            match upgrade(socket, "/grpc", &[]).await {
                Ok(stream) => over(socket.clone(), Entry::Upgrade, Some(stream))
                    .await
                    .map_err(|e| failed(e.into())),
                Err(UpgradeError::Refused { .. }) => over(socket.clone(), Entry::Direct, None)
                    .await
                    .map_err(|e| failed(e.into())),
                Err(UpgradeError::Io(e)) => Err(failed(e.into())),
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Entry {
    Direct,
    Upgrade,
}

/// A channel over a Unix socket, which starts with a stream that is open already.
async fn over(
    socket: PathBuf,
    entry: Entry,
    mut open: Option<UnixStream>,
) -> Result<Channel, tonic::transport::Error> {
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        let open = open.take();
        async move {
            let stream = match (open, entry) {
                (Some(stream), _) => stream,
                (None, Entry::Direct) => UnixStream::connect(&socket).await?,
                (None, Entry::Upgrade) => upgrade(&socket, "/grpc", &[])
                    .await
                    .map_err(io::Error::from)?,
            };
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    tuned(tonic::transport::Endpoint::from_static("http://buildkit"))
        .connect_with_connector(connector)
        .await
}

async fn tcp(
    address: &str,
    tls: Option<&TlsFiles>,
) -> Result<Channel, Box<dyn std::error::Error + Send + Sync>> {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let mut endpoint = tuned(tonic::transport::Endpoint::from_shared(format!(
        "{scheme}://{address}"
    ))?)
    .tcp_nodelay(true);
    if let Some(files) = tls {
        endpoint = endpoint.tls_config(tls_config(files).await?)?;
    }
    Ok(endpoint.connect().await?)
}

fn tuned(endpoint: tonic::transport::Endpoint) -> tonic::transport::Endpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .initial_connection_window_size(WINDOW)
        .initial_stream_window_size(WINDOW)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
}

async fn tls_config(files: &TlsFiles) -> io::Result<ClientTlsConfig> {
    let read = |path: &Path| {
        let path = path.to_owned();
        async move {
            tokio::fs::read(&path).await.map_err(|e| {
                io::Error::new(e.kind(), format!("cannot read {}: {e}", path.display()))
            })
        }
    };
    let ca = Certificate::from_pem(read(&files.ca).await?);
    let identity = Identity::from_pem(read(&files.cert).await?, read(&files.key).await?);
    let config = ClientTlsConfig::new().ca_certificate(ca).identity(identity);
    Ok(match &files.server_name {
        Some(name) => config.domain_name(name),
        None => config,
    })
}

/// An engine did not switch protocols.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpgradeError {
    #[error("the engine answered {status:?} to {path}")]
    Refused { path: String, status: String },
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<UpgradeError> for io::Error {
    fn from(error: UpgradeError) -> Self {
        match error {
            UpgradeError::Io(e) => e,
            refused @ UpgradeError::Refused { .. } => io::Error::other(refused),
        }
    }
}

/// Sends `POST path` with `Upgrade: h2c` and gives back the socket, on which HTTP/2 is spoken from here on.
pub(crate) async fn upgrade(
    socket: &Path,
    path: &str,
    headers: &[(&str, String)],
) -> Result<UnixStream, UpgradeError> {
    match tokio::time::timeout(ANSWER_TIMEOUT, ask_upgrade(socket, path, headers)).await {
        Ok(answer) => answer,
        Err(_) => Err(silent(path).into()),
    }
}

fn silent(path: &str) -> io::Error {
    let seconds = ANSWER_TIMEOUT.as_secs();
    io::Error::new(
        io::ErrorKind::TimedOut,
        format!("no answer to {path} within {seconds} s"),
    )
}

async fn ask_upgrade(
    socket: &Path,
    path: &str,
    headers: &[(&str, String)],
) -> Result<UnixStream, UpgradeError> {
    let mut stream = UnixStream::connect(socket).await?;
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n"
    );
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await?;
    // One byte at a time, because what follows the head is no longer ours to buffer.
    let mut head = Vec::with_capacity(256);
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > MAX_HTTP_HEAD {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the answer's head does not end",
            )
            .into());
        }
        head.push(stream.read_u8().await?);
    }
    let status = status_line(&head);
    if status.split(' ').nth(1) == Some("101") {
        Ok(stream)
    } else {
        Err(UpgradeError::Refused {
            path: path.to_owned(),
            status,
        })
    }
}

/// `GET path` over a Unix socket: the body of a 200.
pub(crate) async fn http_get(socket: &Path, path: &str) -> io::Result<Vec<u8>> {
    match tokio::time::timeout(ANSWER_TIMEOUT, ask_get(socket, path)).await {
        Ok(answer) => answer,
        Err(_) => Err(silent(path)),
    }
}

async fn ask_get(socket: &Path, path: &str) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket).await?;
    // HTTP/1.0 keeps the body free of chunks and ends it with the connection.
    stream
        .write_all(format!("GET {path} HTTP/1.0\r\nHost: docker\r\n\r\n").as_bytes())
        .await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let end = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("no complete answer to GET {path}"),
            )
        })?;
    let status = status_line(&answer);
    if status.split(' ').nth(1) != Some("200") {
        return Err(io::Error::other(format!("GET {path}: {status}")));
    }
    Ok(answer.split_off(end + 4))
}

fn status_line(head: &[u8]) -> String {
    let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
    String::from_utf8_lossy(line).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_engine_that_says_nothing_is_not_waited_for() {
        let folder = tempfile::TempDir::new().unwrap();
        let socket = folder.path().join("engine.sock");
        // Connections are taken by the system, and nobody answers.
        let _listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let error = http_get(&socket, "/version").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
        let error = upgrade(&socket, "/grpc", &[]).await.unwrap_err();
        assert!(error.to_string().contains("no answer to /grpc"), "{error}");
    }
}
