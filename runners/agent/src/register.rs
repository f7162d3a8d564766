//! The way to the control plane, and registering with it.

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
                reason: "there is no address; write https://HOST:PORT".into(),
            });
        }
        Ok(Self {
            all,
            current: 0,
            failed: 0,
        })
    }

    /// Returns the address of the server that is used now.
    pub(crate) fn address(&self) -> &str {
        &self.all[self.current].0
    }

    /// Returns the connection settings of the server that is used now.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.all[self.current].1
    }

    /// Notes that the current server was reached.
    pub(crate) fn reached(&mut self) {
        self.failed = 0;
    }

    /// Goes on to the next server. Returns `true` if all of them failed since one was reached: it is time to wait.
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

/// Returns how `server` is reached. Connects when it is used.
fn endpoint(config: &AgentConfig, server: &Uri) -> Result<Endpoint, AgentError> {
    config.check_server(server)?;
    let uri = server.clone();
    let server = server.to_string();
    let fail = |source: Box<dyn std::error::Error + Send + Sync>| AgentError::Tls {
        server: server.clone(),
        source,
    };
    let mut endpoint = Endpoint::from(uri.clone())
        .connect_timeout(CONNECT)
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
        let status = match tokio::time::timeout(2 * CONNECT, asking).await {
            Ok(Ok(key)) => {
                state.write_key(&key)?;
                servers.reached();
                tracing::info!(runner = key.runner, name = key.name, "registered");
                return Ok(key);
            }
            Ok(Err(status)) => status,
            Err(_) => Status::deadline_exceeded("it did not answer in time"),
        };
        if !may_pass(&status) {
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
    let given = client(channel).register(request).await?.into_inner();
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
    fn servers_are_tried_in_turn_and_a_round_of_failures_ends_with_a_wait() {
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
