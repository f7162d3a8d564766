//! Connection to the control plane, and registration.

use std::time::Duration;

use acrtask_model::Secret;
use acrtask_proto::{
    MAX_MESSAGE,
    runner::{RegisterRequest, runners_client::RunnersClient},
};
use tonic::{
    Code, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Uri},
};

use crate::{
    backoff::Backoff,
    config::AgentConfig,
    error::{AgentError, chain},
    key::{Key, StateDir},
};

/// Timeout of a connection attempt and of a short request.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time without traffic after which a connection sends a ping ...
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// ... and timeout of its response, after which the connection is closed.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(6);
/// Flow control windows towards this runner, in bytes. Contexts are large.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

pub(crate) type Client = RunnersClient<Channel>;

/// Control planes with one database, of which the runner uses one at a time.
#[derive(Debug)]
pub(crate) struct Servers {
    /// Address and connection settings of each. Not empty.
    all: Vec<(String, Endpoint)>,
    current: usize,
    /// Servers that failed since one was reached.
    failed: usize,
}

impl Servers {
    /// Checks the addresses. Connects to none of them.
    pub(crate) fn new(config: &AgentConfig) -> Result<Self, AgentError> {
        let servers = config.servers.iter();
        let all = servers
            .map(|server| Ok((server.to_string(), endpoint(config, server)?)))
            .collect::<Result<Vec<_>, _>>()?;
        if all.is_empty() {
            return Err(AgentError::Server {
                server: String::new(),
                reason: "the list of addresses is empty; write https://HOST:PORT".into(),
            });
        }
        Ok(Self {
            all,
            current: 0,
            failed: 0,
        })
    }

    /// Returns the address of the current server.
    pub(crate) fn address(&self) -> &str {
        &self.all[self.current].0
    }

    /// Returns the connection settings of the current server.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.all[self.current].1
    }

    /// Records that the current server was reached.
    pub(crate) fn reached(&mut self) {
        self.failed = 0;
    }

    /// Selects the next server. Returns `true` after a round of failures: it is time to wait.
    pub(crate) fn advance(&mut self) -> bool {
        self.current = (self.current + 1) % self.all.len();
        self.failed += 1;
        let round = self.failed >= self.all.len();
        if round {
            self.failed = 0;
        }
        round
    }
}

/// Returns the connection settings of `server`, without connecting.
fn endpoint(config: &AgentConfig, server: &Uri) -> Result<Endpoint, AgentError> {
    config.check_server(server)?;
    let uri = server.clone();
    let server = server.to_string();
    let fail = |source: Box<dyn std::error::Error + Send + Sync>| AgentError::Tls {
        server: server.clone(),
        source,
    };
    let mut endpoint = Endpoint::from(uri.clone())
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    if uri.scheme_str() == Some("https") {
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

/// Creates a client on a channel.
pub(crate) fn new_client(channel: Channel) -> Client {
    RunnersClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

/// Adds the runner's key to a request.
pub(crate) fn with_key<T>(mut request: tonic::Request<T>, key: &Secret) -> tonic::Request<T> {
    // The server refuses a key that is not valid in a header like any wrong key.
    if let Ok(mut value) = format!("Bearer {}", key.expose())
        .parse::<tonic::metadata::MetadataValue<tonic::metadata::Ascii>>()
    {
        value.set_sensitive(true);
        request.metadata_mut().insert("authorization", value);
    }
    request
}

/// Returns `true` if a later attempt may succeed.
pub(crate) fn is_transient(status: &Status) -> bool {
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

/// Returns the key of this runner: the stored one, or a new one in exchange for the token.
pub(crate) async fn load_or_register(
    config: &AgentConfig,
    servers: &mut Servers,
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
        let asking = register(servers.endpoint(), token, config);
        let status = match tokio::time::timeout(2 * CONNECT_TIMEOUT, asking).await {
            Ok(Ok(key)) => {
                state.write_key(&key)?;
                servers.reached();
                tracing::info!(runner = key.runner, name = key.name, "registered");
                return Ok(key);
            }
            Ok(Err(status)) => status,
            Err(_) => Status::deadline_exceeded("the server did not respond in time"),
        };
        if !is_transient(&status) {
            return Err(AgentError::Registration {
                server: servers.address().to_owned(),
                message: status.message().to_owned(),
            });
        }
        tracing::warn!(
            server = servers.address(),
            error = status.message(),
            "cannot register yet; trying again"
        );
        if servers.advance() {
            backoff.wait().await;
        }
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
    let given = new_client(channel).register(request).await?.into_inner();
    Ok(Key {
        runner: given.runner_id,
        name: config.name.clone(),
        key: Secret::new(given.key),
    })
}

#[cfg(test)]
mod tests {
    use acrtask_executor::{DockerEndpoint, Options};

    use super::*;

    #[test]
    fn servers_are_tried_in_turn_with_a_wait_per_round() {
        let addresses = ["http://127.0.0.1:1", "http://127.0.0.1:2", "http://[::1]:3"];
        let docker = DockerEndpoint::from_env(|_| None);
        let servers = addresses.map(|address| address.parse().unwrap());
        let mut config = AgentConfig::new(servers, "a", "/nowhere", Options::new(docker));
        let mut servers = Servers::new(&config).unwrap();
        let mut tried = Vec::new();
        for _ in 0..4 {
            let address = servers.address().to_owned();
            tried.push((address, servers.advance()));
        }
        let port = |address: &str| address.trim_end_matches('/').chars().last();
        let tried: Vec<_> = tried.iter().map(|(at, wait)| (port(at), *wait)).collect();
        let expected = [('1', false), ('2', false), ('3', true), ('1', false)];
        assert_eq!(tried, expected.map(|(port, wait)| (Some(port), wait)));
        servers.reached();
        assert!(!servers.advance() && !servers.advance() && servers.advance());
        config.servers.clear();
        assert!(Servers::new(&config).is_err());
    }
}
