//! Connections. A buildkitd uses plain gRPC. For a Docker Engine there are two methods: `POST
//! /grpc` with `Upgrade: h2c`, or gRPC on the socket itself if the engine does not have this path.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};

use crate::endpoint::{Endpoint, TlsFiles};
use crate::error::ConnectError;

/// Maximum size of a message in both directions, in bytes. Same limit as in containerd and
/// BuildKit.
pub(crate) const MAX_MESSAGE: usize = 16 * 1024 * 1024;
/// HTTP/2 window of a connection and of a stream, in bytes. A small one makes a builder send
/// thousands of tiny frames.
pub(crate) const WINDOW: u32 = 8 * 1024 * 1024;
/// Maximum size of the headers of a response, in bytes. BuildKit sends the whole Dockerfile in the
/// trailers of a failed build. Beyond the limit the connection ends, with the builds of all runs.
const MAX_HEADERS: u32 = 16 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum wait for the head of an engine's response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Maximum size of the head of an HTTP/1.1 response, in bytes.
const MAX_HTTP_HEAD: usize = 64 * 1024;

/// Opens a channel. Connects immediately, to detect a missing endpoint.
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
            connect_socket(path.clone(), SocketMode::Direct, Some(stream))
                .await
                .map_err(|e| failed(e.into()))
        }
        Endpoint::Tcp { address, tls } => connect_tcp(address, tls.as_ref()).await.map_err(failed),
        Endpoint::DockerEngine { socket } => {
            // Tries the upgrade first, because an engine that supports it responds to plain HTTP/2
            // with an error page.
            match upgrade(socket, "/grpc", &[]).await {
                Ok(stream) => connect_socket(socket.clone(), SocketMode::Upgrade, Some(stream))
                    .await
                    .map_err(|e| failed(e.into())),
                Err(UpgradeError::Refused { .. }) => {
                    connect_socket(socket.clone(), SocketMode::Direct, None)
                        .await
                        .map_err(|e| failed(e.into()))
                }
                Err(UpgradeError::Io(e)) => Err(failed(e.into())),
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum SocketMode {
    Direct,
    Upgrade,
}

/// Creates a channel over a Unix socket. Its first stream may be open already.
async fn connect_socket(
    socket: PathBuf,
    mode: SocketMode,
    mut open: Option<UnixStream>,
) -> Result<Channel, tonic::transport::Error> {
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        let open = open.take();
        async move {
            let stream = match (open, mode) {
                (Some(stream), _) => stream,
                (None, SocketMode::Direct) => UnixStream::connect(&socket).await?,
                (None, SocketMode::Upgrade) => upgrade(&socket, "/grpc", &[])
                    .await
                    .map_err(io::Error::from)?,
            };
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    configure(tonic::transport::Endpoint::from_static("http://buildkit"))
        .connect_with_connector(connector)
        .await
}

async fn connect_tcp(
    address: &str,
    tls: Option<&TlsFiles>,
) -> Result<Channel, Box<dyn std::error::Error + Send + Sync>> {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let mut endpoint = configure(tonic::transport::Endpoint::from_shared(format!(
        "{scheme}://{address}"
    ))?)
    .tcp_nodelay(true);
    if let Some(files) = tls {
        endpoint = endpoint.tls_config(tls_config(files).await?)?;
    }
    Ok(endpoint.connect().await?)
}

fn configure(endpoint: tonic::transport::Endpoint) -> tonic::transport::Endpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .initial_connection_window_size(WINDOW)
        .initial_stream_window_size(WINDOW)
        .http2_max_header_list_size(MAX_HEADERS)
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

/// Error of an upgrade: the engine did not switch protocols.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpgradeError {
    #[error("the engine responded with {status:?} to {path}")]
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

/// Sends `POST path` with `Upgrade: h2c`. Returns the socket for HTTP/2.
pub(crate) async fn upgrade(
    socket: &Path,
    path: &str,
    headers: &[(&str, String)],
) -> Result<UnixStream, UpgradeError> {
    match tokio::time::timeout(RESPONSE_TIMEOUT, request_upgrade(socket, path, headers)).await {
        Ok(response) => response,
        Err(_) => Err(timeout_error(path).into()),
    }
}

fn timeout_error(path: &str) -> io::Error {
    let seconds = RESPONSE_TIMEOUT.as_secs();
    io::Error::new(
        io::ErrorKind::TimedOut,
        format!("no response to {path} within {seconds} s"),
    )
}

async fn request_upgrade(
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
    // Reads single bytes, because the bytes after the head belong to HTTP/2.
    let mut head = Vec::with_capacity(256);
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > MAX_HTTP_HEAD {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the head of the response is too large",
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

/// Sends `GET path` over a Unix socket. Returns the body of a 200.
pub(crate) async fn http_get(socket: &Path, path: &str) -> io::Result<Vec<u8>> {
    match tokio::time::timeout(RESPONSE_TIMEOUT, request_get(socket, path)).await {
        Ok(response) => response,
        Err(_) => Err(timeout_error(path)),
    }
}

async fn request_get(socket: &Path, path: &str) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket).await?;
    // With HTTP/1.0, the body has no chunks and ends with the connection.
    stream
        .write_all(format!("GET {path} HTTP/1.0\r\nHost: docker\r\n\r\n").as_bytes())
        .await?;
    let mut response = Vec::new();
    stream.read_to_end(&mut response).await?;
    let end = response
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("no complete response to GET {path}"),
            )
        })?;
    let status = status_line(&response);
    if status.split(' ').nth(1) != Some("200") {
        return Err(io::Error::other(format!("GET {path}: {status}")));
    }
    Ok(response.split_off(end + 4))
}

fn status_line(head: &[u8]) -> String {
    let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
    String::from_utf8_lossy(line).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silent_engine_causes_a_timeout() {
        let folder = tempfile::TempDir::new().unwrap();
        let socket = folder.path().join("engine.sock");
        // The system accepts connections, but no program responds.
        let _listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let error = http_get(&socket, "/version").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
        let error = upgrade(&socket, "/grpc", &[]).await.unwrap_err();
        assert!(
            error.to_string().contains("no response to /grpc"),
            "{error}"
        );
    }
}
