//! The way to the control plane, and registering with it.

use std::time::Duration;

use acrtask_model::Secret;
use acrtask_proto::{
    MAX_MESSAGE,
    runner::{RegisterRequest, runners_client::RunnersClient},
};
use tonic::{
    Code, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use crate::{
    backoff::Backoff,
    config::AgentConfig,
    error::{AgentError, chain},
    key::{Key, StateDir},
};

/// Limit of a connection attempt, and of a short request.
pub(crate) const CONNECT: Duration = Duration::from_secs(10);
/// A connection without any sign of life for this long is asked for one ...
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// ... and given up when none comes within this.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(6);
/// Bytes under way towards this runner: contexts come this way.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

pub(crate) type Client = RunnersClient<Channel>;

/// How the server is reached; connects when it is used.
pub(crate) fn endpoint(config: &AgentConfig) -> Result<Endpoint, AgentError> {
    config.check_server()?;
    let server = config.server.to_string();
    let fail = |source: Box<dyn std::error::Error + Send + Sync>| AgentError::Tls {
        server: server.clone(),
        source,
    };
    let mut endpoint = Endpoint::from(config.server.clone())
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    if config.server.scheme_str() == Some("https") {
        let tls = match &config.ca {
            Some(path) => {
                let pem = std::fs::read(path).map_err(|error| {
                    fail(format!("cannot read {}: {error}", path.display()).into())
                })?;
                ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem))
            }
            None => ClientTlsConfig::new().with_native_roots(),
        };
        endpoint = endpoint
            .tls_config(tls)
            .map_err(|error| fail(error.into()))?;
    }
    Ok(endpoint)
}

/// A client on a channel.
pub(crate) fn client(channel: Channel) -> Client {
    RunnersClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

/// Adds the runner's key to a request.
pub(crate) fn with_key<T>(mut request: tonic::Request<T>, key: &Secret) -> tonic::Request<T> {
    // A key that is no header is refused by the server as any wrong one.
    if let Ok(mut value) = format!("Bearer {}", key.expose())
        .parse::<tonic::metadata::MetadataValue<tonic::metadata::Ascii>>()
    {
        value.set_sensitive(true);
        request.metadata_mut().insert("authorization", value);
    }
    request
}

/// Whether trying again later may help.
pub(crate) fn may_pass(status: &Status) -> bool {
    !matches!(
        status.code(),
        Code::Unauthenticated
            | Code::PermissionDenied
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::Unimplemented
            | Code::OutOfRange
            | Code::DataLoss
    )
}

/// The key of this runner: the one it has, or a new one for the token.
pub(crate) async fn key(
    config: &AgentConfig,
    endpoint: &Endpoint,
    state: &StateDir,
) -> Result<Key, AgentError> {
    if let Some(key) = state.read_key()? {
        return Ok(key);
    }
    let Some(token) = &config.token else {
        return Err(AgentError::NotRegistered {
            path: state.path().to_owned(),
        });
    };
    let mut backoff = Backoff::default();
    loop {
        let asking = register(endpoint, token, config);
        let status = match tokio::time::timeout(2 * CONNECT, asking).await {
            Ok(Ok(key)) => {
                state.write_key(&key)?;
                tracing::info!(runner = key.runner, name = key.name, "registered");
                return Ok(key);
            }
            Ok(Err(status)) => status,
            Err(_) => Status::deadline_exceeded("it did not answer in time"),
        };
        if !may_pass(&status) {
            return Err(AgentError::Registration {
                server: config.server.to_string(),
                message: status.message().to_owned(),
            });
        }
        tracing::warn!(
            error = status.message(),
            "cannot register yet; trying again"
        );
        backoff.wait().await;
    }
}

async fn register(
    endpoint: &Endpoint,
    token: &Secret,
    config: &AgentConfig,
) -> Result<Key, Status> {
    let channel = endpoint
        .connect()
        .await
        .map_err(|error| Status::unavailable(chain(&error)))?;
    let request = RegisterRequest {
        token: token.expose().to_owned(),
        name: config.name.clone(),
        pool: config.pool.clone().unwrap_or_default(),
        labels: config.labels.clone().into_iter().collect(),
        slots: config.slots,
    };
    let given = client(channel).register(request).await?.into_inner();
    Ok(Key {
        runner: given.runner_id,
        name: config.name.clone(),
        key: Secret::new(given.key),
    })
}
