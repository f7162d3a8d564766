//! One listener for HTTP/1.1, HTTP/2 and gRPC, with TLS or without.
//!
//! Each connection is a task of its own. What a connection may cost before it has asked for anything is bounded: so many at once,
//! a handshake within seconds, a first request soon after. Left out: new certificates without a restart.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::ConnectInfo};
use http::{HeaderValue, Request, header};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use super::{ServeError, TlsFiles};
use crate::App;

/// Connections that may be open at once.
const CONNECTIONS: usize = 20_000;
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a connection may be open before its first request.
const FIRST_REQUEST: Duration = Duration::from_secs(30);
/// How long the head of an HTTP/1.1 request may take.
const HEAD: Duration = Duration::from_secs(15);
/// Bytes that may be under way to us on a connection: logs of many runs share one.
const CONNECTION_WINDOW: u32 = 8 << 20;
/// Bytes that may be under way to us in one call.
const STREAM_WINDOW: u32 = 2 << 20;
/// How often a silent HTTP/2 connection is asked whether it is alive, and how long it may take to say so.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Calls at once on one connection.
const STREAMS: u32 = 1024;
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

/// Accepts connections until the control plane shuts down.
pub(super) async fn accept(
    socket: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    app: Arc<App>,
    connections: TaskTracker,
    cut: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = app.closing.cancelled() => return,
            accepted = async {
                let room = room.clone().acquire_owned().await;
                (socket.accept().await, room)
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
        let connection = Connection {
            app: app.clone(),
            router: router.clone(),
            peer,
            asked: Arc::default(),
        };
        let (tls, cut, room) = (tls.clone(), cut.clone(), accepted.1);
        connections.spawn(async move {
            let connections = connection.app.metrics.connections.clone();
            connections.inc();
            tokio::select! {
                () = cut.cancelled() => {}
                () = connection.serve(stream, tls) => {}
            }
            connections.dec();
            drop(room);
        });
    }
}

struct Connection {
    app: Arc<App>,
    router: Router,
    peer: SocketAddr,
    /// There was a request.
    asked: Arc<AtomicBool>,
}

impl Connection {
    async fn serve(self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        let peer = self.peer;
        // Small messages of runners and readers must not wait for one another.
        let _ = stream.set_nodelay(true);
        let Some(tls) = tls else {
            return self.talk(stream).await;
        };
        match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
            Ok(Ok(stream)) => self.talk(stream).await,
            Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS handshake"),
            Err(_) => tracing::debug!(%peer, "no TLS handshake in time"),
        }
    }

    async fn talk(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD);
        builder
            .http2()
            .timer(TokioTimer::new())
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_stream_window_size(STREAM_WINDOW)
            .max_concurrent_streams(STREAMS)
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE);
        let (peer, asked, closing) = (self.peer, self.asked.clone(), self.app.closing.clone());
        let service = hyper::service::service_fn(move |request| self.answer(request));
        let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let mut served = std::pin::pin!(served);
        let (mut closed, mut waited) = (false, false);
        let first = tokio::time::sleep(FIRST_REQUEST);
        let mut first = std::pin::pin!(first);
        loop {
            tokio::select! {
                result = served.as_mut() => {
                    if let Err(error) = result {
                        tracing::debug!(%peer, error, "a connection broke off");
                    }
                    return;
                }
                () = closing.cancelled(), if !closed => {
                    closed = true;
                    served.as_mut().graceful_shutdown();
                }
                () = first.as_mut(), if !waited => {
                    waited = true;
                    if !asked.load(Ordering::Relaxed) {
                        tracing::debug!(%peer, "a connection that asks for nothing is closed");
                        return;
                    }
                }
            }
        }
    }

    fn answer(
        &self,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<http::Response<Body>, std::convert::Infallible>> + use<> {
        self.asked.store(true, Ordering::Relaxed);
        let (app, router) = (self.app.clone(), self.router.clone());
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(self.peer));
        let grpc = request
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind: &HeaderValue| kind.as_bytes().starts_with(b"application/grpc"));
        let protocol = if grpc { "grpc" } else { "http" };
        async move {
            let response = router.oneshot(request).await?;
            app.metrics.answered(protocol, response.status());
            Ok(response)
        }
    }
}
