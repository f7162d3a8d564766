//! Configuration of a runner, and the check of its server's address.

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc, time::Duration};

use acrtask_model::Secret;
use acrtask_vaults::{Settings, Vaults};
use tonic::transport::Uri;

use crate::error::AgentError;

/// Configuration of a runner.
#[derive(Clone)]
pub struct AgentConfig {
    /// Addresses `https://HOST:PORT` of control planes with one database, at least one. `http://`
    /// is for loopback, or requires `allow_plaintext`. The runner connects to one of them at a
    /// time.
    pub servers: Vec<Uri>,
    /// PEM file with the certificates that verify the control plane. `None`: those of the system.
    pub ca: Option<PathBuf>,
    /// Allows connections to the server without TLS.
    pub allow_plaintext: bool,
    /// The runner's name, unique in the control plane. Used for the registration.
    pub name: String,
    /// Folder of the key, the logs of runs and their files. One running runner owns it.
    pub state_dir: PathBuf,
    /// Maximum number of concurrent runs.
    pub slots: u32,
    /// The pool. `None`: the pool of the registration token.
    pub pool: Option<String>,
    /// Labels that runs may select.
    pub labels: BTreeMap<String, String>,
    /// Execution of runs: engine, builder, the operator's credentials, permissions. Scratch files
    /// always go into `state_dir`.
    pub executor: acrtask_executor::Options,
    /// Vaults whose secrets tasks may read, with the operator's rules.
    pub vaults: Arc<Vaults>,
    /// Allows contexts of runs at private addresses.
    pub allow_private_addresses: bool,
    /// Single-use token that registers this runner. Required while `state_dir` contains no key.
    pub token: Option<Secret>,
    /// Time that active runs get to finish after a shutdown request. The remaining ones are handed
    /// back to the queue.
    pub drain: Duration,
    /// Minimum number of free bytes in `state_dir` to accept a run.
    pub min_free_disk: u64,
    /// Age at which pulled images are removed from the engine. The age is one hour while less than
    /// `min_free_disk` is free.
    pub keep_images: Duration,
    /// Time after which an unused entry of BuildKit's cache is removed. `None`: BuildKit decides.
    /// This includes entries of other users of the builder.
    pub keep_build_cache: Option<Duration>,
    /// Maximum size of BuildKit's cache in bytes. `None`: BuildKit decides.
    pub build_cache_limit: Option<u64>,
}

impl AgentConfig {
    /// Returns defaults: one slot, no labels, no vaults, 5 minutes to drain, 1 GiB of disk, images
    /// for 7 days.
    pub fn new(
        servers: impl IntoIterator<Item = Uri>,
        name: impl Into<String>,
        state_dir: impl Into<PathBuf>,
        executor: acrtask_executor::Options,
    ) -> Self {
        Self {
            servers: servers.into_iter().collect(),
            ca: None,
            allow_plaintext: false,
            name: name.into(),
            state_dir: state_dir.into(),
            slots: 1,
            pool: None,
            labels: BTreeMap::new(),
            executor,
            vaults: Arc::new(Vaults::new(Settings::default(), Vec::new())),
            allow_private_addresses: false,
            token: None,
            drain: Duration::from_secs(300),
            min_free_disk: 1 << 30,
            keep_images: Duration::from_secs(7 * 24 * 3600),
            keep_build_cache: None,
            build_cache_limit: None,
        }
    }

    /// Checks that the runner may connect to `server`.
    pub(crate) fn check_server(&self, server: &Uri) -> Result<(), AgentError> {
        let refuse = |reason: &str| AgentError::Server {
            server: server.to_string(),
            reason: reason.into(),
        };
        let Some(host) = server.host().filter(|host| !host.is_empty()) else {
            return Err(refuse("it names no host; write https://HOST:PORT"));
        };
        match server.scheme_str() {
            Some("https") => Ok(()),
            Some("http") if self.allow_plaintext || is_loopback(host) => Ok(()),
            Some("http") => Err(refuse(
                "keys and secrets would cross the network in clear; write https://, or allow plain text by name",
            )),
            _ => Err(refuse("write https://HOST:PORT")),
        }
    }
}

/// Omits the secrets.
impl fmt::Debug for AgentConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentConfig")
            .field("servers", &self.servers)
            .field("name", &self.name)
            .field("state_dir", &self.state_dir)
            .field("slots", &self.slots)
            .field("pool", &self.pool)
            .field("labels", &self.labels)
            .finish_non_exhaustive()
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || bare
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use acrtask_executor::{DockerEndpoint, Options};

    use super::*;

    #[test]
    fn plain_text_is_allowed_for_loopback_or_on_request() {
        let check = |server: &str, allow: bool| {
            let docker = DockerEndpoint::from_env(|_| None);
            let mut config = AgentConfig::new(
                [server.parse().unwrap()],
                "a",
                "/nowhere",
                Options::new(docker),
            );
            config.allow_plaintext = allow;
            config.check_server(&config.servers[0])
        };
        for good in [
            "https://acrtask.example.com",
            "http://127.0.0.1:8080",
            "http://[::1]:8080",
            "http://localhost:1",
        ] {
            check(good, false).unwrap();
        }
        for bad in [
            "http://10.0.0.1:8080",
            "http://localhost.example.com",
            "/x",
            "ftp://a",
        ] {
            assert!(check(bad, false).is_err(), "{bad}");
        }
        check("http://10.0.0.1:8080", true).unwrap();
    }
}
