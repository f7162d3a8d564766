//! Listener for HTTP/1.1, HTTP/2 and gRPC, with or without TLS.
//!
//! Each connection is a task. Limits are checked in the order of their cost: open connections, TLS
//! handshake, request head, slots of anonymous requests, body, credential.
//!
//! Invariants: a client without a valid credential occupies bounded memory for a bounded time.
//! Connections with a valid credential have their own reserve.
//!
//! Left out: new certificates without a restart.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::{Router, body::Body, extract::ConnectInfo, response::IntoResponse as _};
use http::{HeaderValue, Request, header};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::OwnedSemaphorePermit,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use super::{
    ServeError, TlsFiles,
    admission::Evicted,
    client_address::{client_address, is_trusted},
    connection::{ConnectionState, Verdict, WatchedStream},
    gate::Gate,
    request_guard::{GuardedBody, RequestGuard, eviction_response},
};
use crate::{
    App,
    auth::{ClientAddress, network_of},
};

/// Most connections that the system queues until they are accepted.
const BACKLOG: u32 = 4096;
/// Timeout of a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of the head of an HTTP/1.1 request, and longest idle time of such a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// Interval between progress checks of a connection.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// Largest HTTP/1.1 buffer of a connection per direction, in bytes. Also the limit of a request
/// head.
const HTTP1_BUFFER: usize = 64 << 10;
/// Receive window of one HTTP/2 connection, in bytes.
const CONNECTION_WINDOW: u32 = 512 << 10;
/// Receive window of one HTTP/2 stream, in bytes.
const STREAM_WINDOW: u32 = 128 << 10;
/// Send buffer of one HTTP/2 stream, in bytes. Excludes the part that is being sent.
const SEND_BUFFER: usize = 64 << 10;
/// Most unsent bytes of a connection that the system buffers.
const MAX_UNSENT: u32 = 64 << 10;
/// Interval between pings of an idle HTTP/2 connection, and timeout of their responses.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Most concurrent HTTP/2 streams on one connection.
const MAX_STREAMS: u32 = 100;
/// Largest size of all headers of one request, in bytes.
const MAX_HEADERS: u32 = 16 << 10;
/// Most resets by a client before acceptance, and most resets after errors of the client.
const MAX_RESETS: usize = 20;
/// Pause after a failed accept, for example without free file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Loads the certificate and key, and creates a TLS acceptor.
pub(super) fn load_tls(files: &TlsFiles) -> Result<TlsAcceptor, ServeError> {
    let failed = |file: &Path, reason: String| ServeError::Tls {
        file: file.to_owned(),
        reason,
    };
    let file = &files.certificate;
    let certificates = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| failed(file, error.to_string()))?;
    if certificates.is_empty() {
        return Err(failed(file, "it contains no PEM certificate".into()));
    }
    let file = &files.key;
    let key =
        PrivateKeyDer::from_pem_file(file).map_err(|error| failed(file, error.to_string()))?;
    let mut config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .map_err(|error| failed(file, error.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Listens on an address, with a queue of [`BACKLOG`] connections.
pub(super) fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // `TcpListener::bind` sets this option too.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Shared state to serve connections with.
#[derive(Debug, Clone)]
pub(super) struct Service {
    pub(super) app: Arc<App>,
    pub(super) router: Router,
    pub(super) gate: Gate,
    pub(super) connections: TaskTracker,
    pub(super) cut: CancellationToken,
}

/// Accepts connections until the server shuts down.
pub(super) async fn accept_connections(
    socket: TcpListener,
    tls: Option<TlsAcceptor>,
    service: Service,
) {
    loop {
        let accepted = tokio::select! {
            () = service.app.closing.cancelled() => return,
            accepted = async {
                let permit = service.gate.all.clone().acquire_owned().await;
                (socket.accept().await, permit)
            } => accepted,
        };
        let (stream, peer) = match accepted.0 {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        service.serve(stream, peer, tls.clone(), accepted.1.ok());
    }
}

impl Service {
    fn serve(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        tls: Option<TlsAcceptor>,
        permit: Option<OwnedSemaphorePermit>,
    ) {
        let gate = &self.gate;
        let number = gate.accepted.fetch_add(1, Ordering::Relaxed);
        // Clients behind a proxy share its connections, so these are not counted by address.
        let slot = (!is_trusted(peer.ip(), &self.app.config.trusted_proxies))
            .then(|| gate.connections.admit(network_of(peer.ip()), number));
        let evicted = slot.as_ref().map(super::admission::Slot::evicted);
        let connection = Connection {
            state: ConnectionState::new(slot, gate.established.clone()),
            service: self.clone(),
            peer,
            number,
        };
        let cut = self.cut.clone();
        self.connections.spawn(async move {
            let connections = connection.service.app.metrics.connections.clone();
            connections.inc();
            tokio::select! {
                () = cut.cancelled() => {}
                () = wait_for_eviction(evicted) => {
                    tracing::debug!(%peer, "evicted the oldest anonymous connection of the heaviest address");
                }
                () = connection.serve(stream, tls) => {}
            }
            connections.dec();
            drop(permit);
        });
    }
}

async fn wait_for_eviction(evicted: Option<Evicted>) {
    match evicted {
        Some(evicted) => {
            evicted.wait().await;
        }
        None => std::future::pending().await,
    }
}

struct Connection {
    service: Service,
    state: Arc<ConnectionState>,
    peer: SocketAddr,
    /// Number of the connection in this process, from 0.
    number: u64,
}

impl Connection {
    async fn serve(self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        let peer = self.peer;
        // Send small messages of runners and readers without delay.
        let _ = stream.set_nodelay(true);
        // Bound the system's buffer for a peer that does not read.
        let _ = SockRef::from(&stream).set_tcp_notsent_lowat(MAX_UNSENT);
        let Some(tls) = tls else {
            return self.serve_http(stream).await;
        };
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
            Ok(Ok(stream)) => Box::pin(self.serve_http(stream)).await,
            Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
            Err(_) => tracing::debug!(%peer, "TLS handshake timed out"),
        }
    }

    async fn serve_http(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .max_buf_size(HTTP1_BUFFER)
            .header_read_timeout(HEAD_TIMEOUT);
        builder
            .http2()
            .timer(TokioTimer::new())
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_stream_window_size(STREAM_WINDOW)
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEADERS)
            .max_send_buf_size(SEND_BUFFER)
            .max_pending_accept_reset_streams(MAX_RESETS)
            .max_local_error_reset_streams(MAX_RESETS)
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE);
        let (peer, state) = (self.peer, self.state.clone());
        let closing = self.service.app.closing.clone();
        let stream = WatchedStream::new(stream, state.clone());
        let service = hyper::service::service_fn(move |request| self.handle_request(request));
        let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let mut served = std::pin::pin!(served);
        let mut check = tokio::time::interval(CHECK_INTERVAL);
        let mut ending = false;
        loop {
            let verdict = tokio::select! {
                result = served.as_mut() => {
                    if let Err(error) = result {
                        tracing::debug!(%peer, error, "a connection failed");
                    }
                    return;
                }
                () = closing.cancelled(), if !ending => Verdict::End,
                _ = check.tick() => state.verdict(),
            };
            match verdict {
                Verdict::Keep => {}
                Verdict::End if !ending => {
                    ending = true;
                    served.as_mut().graceful_shutdown();
                }
                // The last check ended the connection, and it is still idle.
                Verdict::End | Verdict::Close => {
                    tracing::debug!(%peer, "closed a connection without progress");
                    return;
                }
            }
        }
    }

    fn handle_request(
        &self,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<http::Response<Body>, std::convert::Infallible>> + use<> {
        let Service {
            app, router, gate, ..
        } = &self.service;
        let (app, router) = (app.clone(), router.clone());
        let open = self.state.start_request();
        let address = self.client_address(&request);
        // A recently valid credential needs no slot, so that a flood does not delay its check.
        let slot = (!app.limits.recognizes_header(request.headers()))
            .then(|| gate.requests.admit(address, self.number));
        let guard = RequestGuard::new(address, slot, self.state.clone(), gate.bodies.clone());
        let mut request = request.map(|body| Body::new(GuardedBody::new(body, guard.clone())));
        request.extensions_mut().insert(ConnectInfo(self.peer));
        request.extensions_mut().insert(ClientAddress(address));
        request.extensions_mut().insert(guard.clone());
        let grpc = request
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind: &HeaderValue| kind.as_bytes().starts_with(b"application/grpc"));
        let protocol = if grpc { "grpc" } else { "http" };
        async move {
            let response = match guard.evicted() {
                None => router.oneshot(request).await?,
                Some(slot) => tokio::select! {
                    response = router.oneshot(request) => response?,
                    cause = slot.wait() => {
                        let problem = eviction_response(cause);
                        if grpc {
                            let message = problem.problem().message.clone();
                            tonic::Status::unavailable(message).into_http()
                        } else {
                            problem.into_response()
                        }
                    }
                },
            };
            app.metrics.count_request(protocol, response.status());
            Ok(response.map(|body| open.watch(body)))
        }
    }

    fn client_address(&self, request: &Request<Incoming>) -> IpAddr {
        let trusted = &self.service.app.config.trusted_proxies;
        network_of(client_address(self.peer.ip(), request.headers(), trusted))
    }
}
