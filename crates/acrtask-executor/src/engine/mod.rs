//! The Docker engine: one connection, and the properties of the engine.
//!
//! Each module handles one kind of object. Every object that it creates has the labels of its run
//! ([`crate::owner`]).

pub(crate) mod containers;
pub(crate) mod images;
pub(crate) mod networks;
pub(crate) mod volumes;

use std::{collections::HashMap, path::PathBuf};

use bollard::{API_DEFAULT_VERSION, Docker};

use crate::{
    error::{ConnectError, EngineError},
    owner::{OWNER_LABEL, Owner, RUN_LABEL},
    scope::RunScope,
};

/// Time limit of one request, in seconds. The limit is long, because the upload of a large
/// workspace is one request. Requests that need a shorter limit set their own.
const REQUEST_TIMEOUT_SECS: u64 = 6 * 3600;

/// Time limit of the first request to an engine, in seconds.
const CONNECT_TIMEOUT_SECS: u64 = 15;

/// The address of a Docker engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerEndpoint {
    /// `unix:///path`, `tcp://host:port`, `https://host:port`.
    pub host: String,
    /// Folder with `ca.pem`, `cert.pem` and `key.pem` for mutual TLS. `None`: no TLS.
    pub certificates: Option<PathBuf>,
}

impl DockerEndpoint {
    /// Returns the engine that Docker's own tools would use.
    ///
    /// The address is `DOCKER_HOST`, else `/var/run/docker.sock`. If `DOCKER_TLS_VERIFY` is set,
    /// the certificates come from `DOCKER_CERT_PATH`, else from the folder of Docker's
    /// configuration. `var` returns the value of a variable.
    pub fn from_env(var: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| var(name).filter(|value| !value.is_empty());
        Self {
            host: set("DOCKER_HOST").unwrap_or_else(|| "unix:///var/run/docker.sock".into()),
            certificates: set("DOCKER_TLS_VERIFY").and_then(|_| {
                let beside = || Some(PathBuf::from(set("HOME")?).join(".docker"));
                let named = set("DOCKER_CERT_PATH").or_else(|| set("DOCKER_CONFIG"));
                named.map(PathBuf::from).or_else(beside)
            }),
        }
    }

    fn connect(&self, timeout: u64) -> Result<Docker, bollard::errors::Error> {
        if let Some(path) = self.host.strip_prefix("unix://") {
            return Docker::connect_with_unix(path, timeout, API_DEFAULT_VERSION);
        }
        match &self.certificates {
            Some(folder) => Docker::connect_with_ssl(
                &self.host,
                &folder.join("key.pem"),
                &folder.join("cert.pem"),
                &folder.join("ca.pem"),
                timeout,
                API_DEFAULT_VERSION,
            ),
            None => Docker::connect_with_http(&self.host, timeout, API_DEFAULT_VERSION),
        }
    }

    fn connect_error(&self, source: bollard::errors::Error) -> ConnectError {
        ConnectError {
            what: "the Docker engine",
            address: self.host.clone(),
            help: "start the engine, or name another one with DOCKER_HOST or --docker-host; \
                   `docker version` with the same DOCKER_HOST shows whether it responds"
                .into(),
            source: source.into(),
        }
    }
}

/// Properties that an engine reports about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineFacts {
    /// Version of the engine, or `unknown`.
    pub version: String,
    /// Platform of the engine: `linux/amd64`.
    pub platform: String,
    /// Set if images are in containerd's store. The engine can then run and push BuildKit's images
    /// directly.
    pub containerd_store: bool,
    /// Major and minor version of the API that both sides use.
    pub api: (usize, usize),
}

/// A connected engine.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    pub(crate) docker: Docker,
    pub(crate) facts: EngineFacts,
    pub(crate) endpoint: DockerEndpoint,
}

impl Engine {
    /// Connects and reads the properties of the engine.
    pub(crate) async fn connect(endpoint: &DockerEndpoint) -> Result<Self, ConnectError> {
        let error = |source| endpoint.connect_error(source);
        let docker = endpoint
            .connect(CONNECT_TIMEOUT_SECS)
            .map_err(error)?
            .negotiate_version()
            .await
            .map_err(error)?;
        let (version, info) = tokio::try_join!(docker.version(), docker.info()).map_err(error)?;
        let containerd_store = info.driver_status.iter().flatten().any(|row| {
            matches!(row.as_slice(), [key, value]
                if key == "driver-type" && value.starts_with("io.containerd.snapshotter"))
        });
        let spoken = docker.client_version();
        let facts = EngineFacts {
            version: version.version.unwrap_or_else(|| "unknown".into()),
            platform: format!(
                "{}/{}",
                version.os.as_deref().unwrap_or("linux"),
                version.arch.as_deref().unwrap_or("amd64")
            ),
            containerd_store,
            api: (spoken.major_version, spoken.minor_version),
        };
        Ok(Self {
            docker: docker.with_timeout(std::time::Duration::from_secs(REQUEST_TIMEOUT_SECS)),
            facts,
            endpoint: endpoint.clone(),
        })
    }

    /// Returns a one-line description for the first event of a run.
    pub(crate) fn describe(&self) -> String {
        let store = if self.facts.containerd_store {
            "containerd store"
        } else {
            "classic store"
        };
        format!(
            "Docker {} ({store}, {})",
            self.facts.version, self.endpoint.host
        )
    }
}

/// The labels of all objects that a run creates.
#[derive(Debug, Clone)]
pub(crate) struct Labels {
    pub(crate) scope: RunScope,
    owner: Owner,
}

impl Labels {
    pub(crate) fn new(scope: RunScope, owner: Owner) -> Self {
        Self { scope, owner }
    }

    /// Returns the labels in the form of the engine's API.
    pub(crate) fn to_map(&self) -> HashMap<String, String> {
        HashMap::from([
            (RUN_LABEL.into(), self.scope.to_string()),
            (OWNER_LABEL.into(), self.owner.to_string()),
        ])
    }

    /// Returns `key=value` of the run's label.
    pub(crate) fn run_label(&self) -> String {
        format!("{RUN_LABEL}={}", self.scope)
    }

    /// Returns `true` if `labels` are those of an object of this run that this process created.
    pub(crate) fn match_object(&self, labels: &HashMap<String, String>) -> bool {
        self.to_map()
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
    }

    /// Returns a filter that matches the objects of this run.
    pub(crate) fn to_filter(&self) -> HashMap<String, Vec<String>> {
        label_filter(&self.run_label())
    }
}

/// Returns a filter on one label.
pub(crate) fn label_filter(label: &str) -> HashMap<String, Vec<String>> {
    HashMap::from([("label".into(), vec![label.into()])])
}

/// Ignores the error for an object that does not exist.
pub(crate) fn ignore_not_found(result: Result<(), EngineError>) -> Result<(), EngineError> {
    match result {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoint_follows_the_environment() {
        let from = |vars: &[(&str, &str)]| {
            let vars: HashMap<String, String> = vars
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect();
            DockerEndpoint::from_env(|name| vars.get(name).cloned())
        };
        assert_eq!(from(&[]).host, "unix:///var/run/docker.sock");
        assert_eq!(
            from(&[("DOCKER_HOST", "")]).host,
            "unix:///var/run/docker.sock"
        );
        let tls = from(&[
            ("DOCKER_HOST", "tcp://h:2376"),
            ("DOCKER_TLS_VERIFY", "1"),
            ("DOCKER_CERT_PATH", "/c"),
        ]);
        assert_eq!(tls.host, "tcp://h:2376");
        assert_eq!(tls.certificates, Some("/c".into()));
        let usual = from(&[("DOCKER_TLS_VERIFY", "1"), ("HOME", "/h")]);
        assert_eq!(usual.certificates, Some("/h/.docker".into()));
        let configured = from(&[
            ("DOCKER_TLS_VERIFY", "1"),
            ("DOCKER_CONFIG", "/d"),
            ("HOME", "/h"),
        ]);
        assert_eq!(configured.certificates, Some("/d".into()));
        let plain = from(&[("DOCKER_HOST", "tcp://h:2375"), ("DOCKER_CERT_PATH", "/c")]);
        assert_eq!(plain.certificates, None);
    }
}
