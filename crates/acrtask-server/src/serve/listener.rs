//! One listener for HTTP/1.1, HTTP/2 and gRPC, with TLS or without.
//!
//! Each connection is a task of its own. Limits are checked in the order of their cost: open connections,
//! TLS handshake, head of a request, slots of anonymous requests, body, credential. Invariants: what a client
//! without a valid credential can occupy is bounded in memory and in time; connections with one have a
//! reserve of their own. Left out: new certificates without a restart.

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
    request_guard::{GuardedBody, RequestGuard, evicted},
};
use crate::{
    App,
    auth::{ClientAddress, network_of},
};

/// Connections that the system keeps until they are accepted.
const BACKLOG: u32 = 4096;
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long the head of an HTTP/1.1 request may take, and how long such a connection may be idle.
const HEAD: Duration = Duration::from_secs(15);
/// How often a connection is checked for progress.
const CHECK: Duration = Duration::from_secs(2);
/// Bytes that HTTP/1.1 buffers of a connection in each direction; also the limit of a request's head.
const BUFFER: usize = 64 << 10;
/// Bytes that may wait for us on one HTTP/2 connection.
const CONNECTION_WINDOW: u32 = 512 << 10;
/// Bytes that may wait for us in one call.
const STREAM_WINDOW: u32 = 128 << 10;
/// Bytes that may wait for the client in one call, beside the part that is being sent.
const SEND_BUFFER: usize = 64 << 10;
/// Bytes that may wait in the system until the peer has room for them.
const UNSENT: u32 = 64 << 10;
/// How often a silent HTTP/2 connection is pinged, and how long it may take to respond.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Calls at once on one connection.
const STREAMS: u32 = 100;
/// Bytes of all headers of one request.
const HEADERS: u32 = 16 << 10;
/// Calls that a client may reset before they were accepted, and resets that its mistakes may cause.
const RESETS: usize = 20;
/// The pause after an error of the listener: no file descriptors are left, for one.
const PAUSE: Duration = Duration::from_millis(100);

/// What TLS needs.
pub(super) fn tls(files: &TlsFiles) -> Result<TlsAcceptor, ServeError> {
    let failed = |file: &Path, reason: String| ServeError::Tls {
        file: file.to_owned(),
        reason,
    };
    let file = &files.certificate;
    let certificates = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| failed(file, error.to_string()))?;
    if certificates.is_empty() {
        return Err(failed(file, "it holds no certificate in PEM form".into()));
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

/// Listens at an address, with a queue that holds a flood for as long as it takes to accept it.
pub(super) fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // As `TcpListener::bind` does.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// What a connection is served with.
#[derive(Debug, Clone)]
pub(super) struct Service {
    pub(super) app: Arc<App>,
    pub(super) router: Router,
    pub(super) gate: Gate,
    pub(super) connections: TaskTracker,
    pub(super) cut: CancellationToken,
}

/// Accepts connections until the control plane shuts down.
pub(super) async fn accept(socket: TcpListener, tls: Option<TlsAcceptor>, service: Service) {
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
                tracing::warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(PAUSE).await;
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
        // The clients behind a proxy share its connections, so these are not counted by address.
        let slot = (!is_trusted(peer.ip(), &self.app.config.trusted_proxies))
            .then(|| gate.connections.enter(network_of(peer.ip()), number));
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
                () = eviction(evicted) => {
                    tracing::debug!(%peer, "closed the oldest anonymous connection to make room");
                }
                () = connection.serve(stream, tls) => {}
            }
            connections.dec();
            drop(permit);
        });
    }
}

async fn eviction(evicted: Option<Evicted>) {
    match evicted {
        Some(evicted) => {
            evicted.reached().await;
        }
        None => std::future::pending().await,
    }
}

struct Connection {
    service: Service,
    state: Arc<ConnectionState>,
    peer: SocketAddr,
    /// Counts the connections of this process.
    number: u64,
}

impl Connection {
    async fn serve(self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        let peer = self.peer;
        // Small messages of runners and readers must not wait for one another.
        let _ = stream.set_nodelay(true);
        // A peer that reads nothing fills little memory of the system.
        let _ = SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT);
        let Some(tls) = tls else {
            return self.talk(stream).await;
        };
        match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
            Ok(Ok(stream)) => Box::pin(self.talk(stream)).await,
            Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS handshake"),
            Err(_) => tracing::debug!(%peer, "no TLS handshake in time"),
        }
    }

    async fn talk(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .max_buf_size(BUFFER)
            .header_read_timeout(HEAD);
        builder
            .http2()
            .timer(TokioTimer::new())
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_stream_window_size(STREAM_WINDOW)
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(HEADERS)
            .max_send_buf_size(SEND_BUFFER)
            .max_pending_accept_reset_streams(RESETS)
            .max_local_error_reset_streams(RESETS)
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE);
        let (peer, state) = (self.peer, self.state.clone());
        let closing = self.service.app.closing.clone();
        let stream = WatchedStream::new(stream, state.clone());
        let service = hyper::service::service_fn(move |request| self.answer(request));
        let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let mut served = std::pin::pin!(served);
        let mut check = tokio::time::interval(CHECK);
        let mut ending = false;
        loop {
            let verdict = tokio::select! {
                result = served.as_mut() => {
                    if let Err(error) = result {
                        tracing::debug!(%peer, error, "a connection broke off");
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
                // It was to end at the last check, and is idle still.
                Verdict::End | Verdict::Close => {
                    tracing::debug!(%peer, "closed a connection that makes no progress");
                    return;
                }
            }
        }
    }

    fn answer(
        &self,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<http::Response<Body>, std::convert::Infallible>> + use<> {
        let Service {
            app, router, gate, ..
        } = &self.service;
        let (app, router) = (app.clone(), router.clone());
        let open = self.state.request();
        let address = self.client_address(&request);
        // What was valid a moment ago is checked without a slot, so that no flood delays it.
        let slot = (!app.limits.recognizes_header(request.headers()))
            .then(|| gate.requests.enter(address, self.number));
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
                    why = slot.reached() => {
                        let problem = evicted(why);
                        if grpc {
                            let message = problem.problem().message.clone();
                            tonic::Status::unavailable(message).into_http()
                        } else {
                            problem.into_response()
                        }
                    }
                },
            };
            app.metrics.answered(protocol, response.status());
            Ok(response.map(|body| open.watch(body)))
        }
    }

    fn client_address(&self, request: &Request<Incoming>) -> IpAddr {
        let trusted = &self.service.app.config.trusted_proxies;
        network_of(client_address(self.peer.ip(), request.headers(), trusted))
    }
}
