//! How a runner is set up, and whether its server's address may be used.

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc, time::Duration};

use acrtask_model::Secret;
use acrtask_vaults::{Settings, Vaults};
use tonic::transport::Uri;

use crate::error::AgentError;

/// How a runner is set up.
#[derive(Clone)]
pub struct AgentConfig {
    /// Addresses of control planes with one database: `https://HOST:PORT`. `http://` is for loopback, or with
    /// `allow_plaintext`. The runner is connected to one of them at a time. At least one.
    pub servers: Vec<Uri>,
    /// The certificates that the control plane's is checked against, instead of the system's: a PEM file.
    pub ca: Option<PathBuf>,
    /// Lets the server be spoken to without TLS.
    pub allow_plaintext: bool,
    /// The runner's name, unique in the control plane. Used when it registers.
    pub name: String,
    /// Where the key, the logs of runs and their files are. One running runner has it for itself.
    pub state_dir: PathBuf,
    /// How many runs are carried out at once.
    pub slots: u32,
    /// The pool; nothing: what the registration token says.
    pub pool: Option<String>,
    /// Labels that runs may ask for.
    pub labels: BTreeMap<String, String>,
    /// How runs are executed: engine, builder, the operator's own credentials, what is allowed. The place for scratch
    /// files is `state_dir`, whatever is said here.
    pub executor: acrtask_executor::Options,
    /// The vaults that tasks may read secrets of, with the operator's rules.
    pub vaults: Arc<Vaults>,
    /// Lets the contexts of runs be at private addresses.
    pub allow_private_addresses: bool,
    /// The one-use token that registers this runner; needed while `state_dir` holds no key.
    pub token: Option<Secret>,
    /// How long runs that are under way may go on once the runner is told to stop. What is left then is handed back
    /// to the queue.
    pub drain: Duration,
    /// Bytes that must be free in `state_dir` for a run to be taken.
    pub min_free_disk: u64,
    /// Age at which pulled images are removed from the engine. They go after an hour where less than `min_free_disk`
    /// is free.
    pub keep_images: Duration,
    /// Time after which an unused entry of BuildKit's cache is removed. `None`: BuildKit decides. Entries of other users
    /// of the builder count too.
    pub keep_build_cache: Option<Duration>,
    /// Bytes that BuildKit's cache may take. `None`: BuildKit decides.
    pub build_cache_limit: Option<u64>,
}

impl AgentConfig {
    /// One slot, no labels, no vaults, five minutes to drain, 1 GiB of disk, images for seven days.
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

    /// Checks that the runner may connect to `server` as its address says.
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

/// The secrets of it are left out.
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
    fn plain_text_is_for_loopback_or_by_name() {
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
