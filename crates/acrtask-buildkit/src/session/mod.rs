//! Session: the builder sends requests to this program, for files, credentials, secrets and
//! results.
//!
//! The session is a gRPC server on a connection that this program opened. For a Docker Engine, the
//! connection is a separate socket (`POST /session`), which is the fastest way. Otherwise it is
//! tunnelled through the stream of `Control.Session`.
//!
//! Invariant: closing or dropping the session ends all its services.

mod auth;
mod content;
mod filesend;
mod raw;
mod receive;
mod secrets;
mod ssh;
mod tunnel;

use std::convert::Infallible;
use std::pin::Pin;
use std::time::Duration;

use bollard_buildkit_proto::health::health_server::{Health, HealthServer};
use bollard_buildkit_proto::health::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
};
use bollard_buildkit_proto::moby::buildkit::secrets::v1::secrets_server::SecretsServer;
use bollard_buildkit_proto::moby::buildkit::v1::control_client::ControlClient;
use bollard_buildkit_proto::moby::filesync::v1::auth_server::AuthServer;
use bollard_buildkit_proto::moby::filesync::v1::file_sync_server::FileSyncServer;
use bollard_buildkit_proto::moby::sshforward::v1::ssh_server::SshServer;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;
use tonic::codegen::http;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tower::ServiceExt;

use crate::endpoint::Endpoint;
use crate::filesync::FileSyncService;
use crate::transport::{self, MAX_MESSAGE, UpgradeError, WINDOW};

pub(crate) use auth::AuthService;
pub use auth::{Anonymous, Credentials, RegistryCredential, registry_key};
pub(crate) use content::{ContentService, Layout, LayoutError, Store};
pub(crate) use filesend::{ByteSink, FileSendService, Target};
pub(crate) use secrets::SecretService;
pub use secrets::{BuildSecret, MAX_SECRET_BYTES, SecretError, SecretSource};
pub(crate) use ssh::SshService;
pub use ssh::SshSource;

const HEADER_ID: &str = "x-docker-expose-session-uuid";
const HEADER_NAME: &str = "x-docker-expose-session-name";
const HEADER_SHARED_KEY: &str = "x-docker-expose-session-sharedkey";
const HEADER_METHOD: &str = "x-docker-expose-session-grpc-method";
const SESSION_NAME: &str = "acrtask";
/// Size of the send buffer of one stream, in bytes.
const SEND_BUFFER: usize = 1024 * 1024;
/// Maximum size of the headers of one call, in bytes, as in a gRPC server in Go. Each pattern of a
/// `.dockerignore` has its own header.
const MAX_HEADERS: u32 = 16 * 1024 * 1024;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// Services of a session. Absent services are not announced.
pub(crate) struct Services {
    pub(crate) files: FileSyncService,
    pub(crate) auth: AuthService,
    pub(crate) secrets: Option<SecretService>,
    pub(crate) ssh: Option<SshService>,
    pub(crate) results: Option<FileSendService>,
    pub(crate) content: Option<ContentService>,
}

impl Services {
    fn into_routes(self) -> (Routes, Vec<&'static str>) {
        let mut methods = vec![
            "/grpc.health.v1.Health/Check",
            "/moby.filesync.v1.FileSync/DiffCopy",
            "/moby.filesync.v1.Auth/Credentials",
            "/moby.filesync.v1.Auth/FetchToken",
            "/moby.filesync.v1.Auth/GetTokenAuthority",
            "/moby.filesync.v1.Auth/VerifyTokenAuthority",
        ];
        let files = FileSyncServer::new(self.files)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let mut routes = Routes::new(HealthServer::new(Healthy))
            .add_service(files)
            .add_service(AuthServer::new(self.auth));
        if let Some(secrets) = self.secrets {
            methods.push("/moby.buildkit.secrets.v1.Secrets/GetSecret");
            routes = routes.add_service(SecretsServer::new(secrets));
        }
        if let Some(ssh) = self.ssh {
            methods.extend([
                "/moby.sshforward.v1.SSH/CheckAgent",
                "/moby.sshforward.v1.SSH/ForwardAgent",
            ]);
            routes = routes.add_service(SshServer::new(ssh));
        }
        if let Some(results) = self.results {
            methods.push(filesend::METHOD);
            routes = routes.add_service(results);
        }
        if let Some(content) = self.content {
            methods.extend(content::METHODS);
            routes = routes.add_service(content);
        }
        (routes.prepare(), methods)
    }
}

/// Running session.
pub(crate) struct Session {
    pub(crate) id: String,
    task: AbortHandle,
}

impl Session {
    pub(crate) async fn start(
        endpoint: &Endpoint,
        channel: &Channel,
        shared_key: &str,
        services: Services,
    ) -> Result<Self, Status> {
        let id = crate::random_id();
        let (routes, methods) = services.into_routes();
        let mut headers = vec![
            (HEADER_ID, id.clone()),
            (HEADER_NAME, SESSION_NAME.to_owned()),
            (HEADER_SHARED_KEY, shared_key.to_owned()),
        ];
        headers.extend(
            methods
                .iter()
                .map(|method| (HEADER_METHOD, (*method).to_owned())),
        );
        if let Endpoint::DockerEngine { socket } = endpoint {
            match transport::upgrade(socket, "/session", &headers).await {
                Ok(stream) => {
                    return Ok(Self {
                        id,
                        task: serve(stream, routes),
                    });
                }
                // A newer engine does not have this path, and accepts the session like a buildkitd.
                Err(UpgradeError::Refused { .. }) => {}
                Err(UpgradeError::Io(e)) => {
                    return Err(Status::unavailable(format!("cannot open a session: {e}")));
                }
            }
        }
        let (outgoing, stream) = tunnel::outgoing_channel();
        let mut request = Request::new(stream);
        for (name, value) in headers {
            let value = value
                .parse()
                .map_err(|_| Status::invalid_argument(format!("{value:?} cannot be a header")))?;
            request.metadata_mut().append(name, value);
        }
        let mut control = ControlClient::new(channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        // The head of the response arrives only with the first message of the builder. The call is
        // therefore part of the tunnel.
        let incoming = async move { control.session(request).await.map(Response::into_inner) };
        Ok(Self {
            id,
            task: serve(tunnel::Tunnel::new(incoming, outgoing), routes),
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves HTTP/2 on the connection until it ends or the task is aborted.
fn serve(
    connection: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    routes: Routes,
) -> AbortHandle {
    let service =
        hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let routes = routes.clone();
            async move {
                let response = match routes.oneshot(request.map(tonic::body::Body::new)).await {
                    Ok(response) => response,
                    Err(never) => match never {},
                };
                Ok::<_, Infallible>(response)
            }
        });
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_connection_window_size(WINDOW)
        .initial_stream_window_size(WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_concurrent_streams(None)
        .max_header_list_size(MAX_HEADERS)
        .keep_alive_interval(KEEPALIVE_INTERVAL);
    let serving = builder.serve_connection(TokioIo::new(connection), service);
    tokio::spawn(async move {
        if let Err(error) = serving.await {
            tracing::debug!(%error, "a session ended");
        }
    })
    .abort_handle()
}

/// Health service. The builder checks every few seconds that this program is alive.
struct Healthy;

#[tonic::async_trait]
impl Health for Healthy {
    type WatchStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        use bollard_buildkit_proto::health::health_check_response::ServingStatus;
        Ok(Response::new(HealthCheckResponse {
            status: ServingStatus::Serving.into(),
        }))
    }

    async fn list(
        &self,
        _: Request<HealthListRequest>,
    ) -> Result<Response<HealthListResponse>, Status> {
        Err(Status::unimplemented("List"))
    }

    async fn watch(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("Watch"))
    }
}
