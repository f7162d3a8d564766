//! Credentials of registries.
//!
//! The sources, in this order: the credentials that the operator or the task file set for exactly
//! this host, then the Docker configuration (`config.json`: `credHelpers`, `auths`, `credsStore`).
//! Hosts match exactly, including the port. Only Docker Hub has several names. Each lookup reads
//! the configuration again. A long-running process therefore uses the result of a later `docker
//! login`.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use acrtask_model::{Digest, Secret, reference::DOCKER_HUB};
use docker_credential::{CredentialRetrievalError, DockerCredential};

use crate::manifest::Hasher;

/// Credential of a registry.
#[derive(Debug, Clone)]
pub enum Credential {
    /// User name and password.
    Password {
        /// User name.
        username: String,
        /// Password, or a token used as one.
        password: Secret,
    },
    /// OAuth2 refresh token, as `az acr login` and Docker Hub's web login store it.
    IdentityToken(Secret),
}

impl Credential {
    /// Returns a digest that identifies the login.
    pub fn fingerprint(&self) -> Digest {
        let (kind, username, secret) = match self {
            Self::Password { username, password } => ("password", username.as_str(), password),
            Self::IdentityToken(token) => ("token", "", token),
        };
        let mut hasher = Hasher::sha256();
        for part in [kind, username, secret.expose()] {
            hasher.update(&(part.len() as u64).to_be_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.finish()
    }

    /// Returns `true` if `other` is the same login.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Password { username, password },
                Self::Password {
                    username: other_name,
                    password: other_password,
                },
            ) => username == other_name && password.expose() == other_password.expose(),
            (Self::IdentityToken(token), Self::IdentityToken(other)) => {
                token.expose() == other.expose()
            }
            _ => false,
        }
    }
}

/// Failure to look up a credential. Its text never contains a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// The configuration is unreadable, or is not JSON of the expected form.
    #[error("cannot read the Docker configuration {}: {reason}", path.display())]
    Config {
        /// Path of the configuration.
        path: PathBuf,
        /// Description of the problem.
        reason: String,
    },
    /// A credential helper (`docker-credential-...`) failed or does not exist.
    #[error("the credential helper that {} names failed for {host}: {reason}", path.display())]
    Helper {
        /// Path of the configuration that names the helper.
        path: PathBuf,
        /// Host of the registry.
        host: String,
        /// Description of the failure.
        reason: String,
    },
}

/// Credentials by registry host.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    explicit: HashMap<String, Credential>,
    docker_config: Option<PathBuf>,
}

impl Credentials {
    /// Creates an empty set of credentials.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a user name and a password for `host` (`registry.example.com`, `127.0.0.1:5000`,
    /// `docker.io`). Replaces an earlier entry for the same host.
    #[must_use]
    pub fn with(mut self, host: &str, username: impl Into<String>, password: Secret) -> Self {
        let credential = Credential::Password {
            username: username.into(),
            password,
        };
        self.explicit.insert(canonical_host(host), credential);
        self
    }

    /// Adds the Docker configuration in the folder `path`. The default folder is `$DOCKER_CONFIG`,
    /// or else `~/.docker`. The configuration may be missing.
    #[must_use]
    #[allow(
        clippy::disallowed_methods,
        reason = "the variable belongs to a tool whose conventions apply here"
    )]
    pub fn with_docker_config(mut self, path: Option<&Path>) -> Self {
        let folder = path.map(Path::to_owned).or_else(|| {
            let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".docker"));
            std::env::var_os("DOCKER_CONFIG")
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
                .or_else(home)
        });
        self.docker_config = folder.map(|folder| folder.join("config.json"));
        self
    }

    /// Returns the credential that was set explicitly for `host`. Does not read the Docker
    /// configuration.
    pub fn explicit(&self, host: &str) -> Option<&Credential> {
        self.explicit.get(&canonical_host(host))
    }

    /// Returns the credential for `host`: a host as references name it, or one of Docker Hub's
    /// aliases.
    ///
    /// # Errors
    /// [`CredentialError`] if the Docker configuration is invalid, or a helper that it names fails.
    /// A helper without a credential for the host is not an error.
    pub async fn for_host(&self, host: &str) -> Result<Option<Credential>, CredentialError> {
        if let Some(credential) = self.explicit(host) {
            return Ok(Some(credential.clone()));
        }
        let host = canonical_host(host);
        let Some(path) = self.docker_config.clone() else {
            return Ok(None);
        };
        // A helper is a process, and may block for a long time.
        tokio::task::spawn_blocking(move || from_docker_config(&path, &host))
            .await
            .unwrap_or_else(|join| std::panic::resume_unwind(join.into_panic()))
    }
}

/// Returns the canonical name of a registry. Replaces Docker Hub's aliases and its key in
/// `config.json` by `docker.io`. Removes a scheme and a path.
pub fn canonical_host(host: &str) -> String {
    let bare = host
        .trim()
        .trim_start_matches("https://")
        .trim_start_matches("http://");
    let bare = bare.split('/').next().unwrap_or(bare).to_ascii_lowercase();
    match bare.as_str() {
        "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB.to_owned(),
        _ => bare,
    }
}

fn from_docker_config(path: &Path, host: &str) -> Result<Option<Credential>, CredentialError> {
    let config_error = |reason: String| CredentialError::Config {
        path: path.to_owned(),
        reason,
    };
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(config_error(error.to_string())),
    };
    let names: &[&str] = if host == DOCKER_HUB {
        // The first is the key that `docker login` writes.
        &[
            "https://index.docker.io/v1/",
            "docker.io",
            "index.docker.io",
            "registry-1.docker.io",
        ]
    } else {
        &[host]
    };
    for name in names {
        use CredentialRetrievalError as E;
        let reason = match docker_credential::get_credential_from_reader(text.as_slice(), name) {
            Ok(DockerCredential::UsernamePassword(username, password))
                if username.is_empty() && password.is_empty() =>
            {
                continue;
            }
            Ok(DockerCredential::UsernamePassword(username, password)) => {
                return Ok(Some(Credential::Password {
                    username,
                    password: Secret::new(password),
                }));
            }
            Ok(DockerCredential::IdentityToken(token)) => {
                return Ok(Some(Credential::IdentityToken(Secret::new(token))));
            }
            Err(E::NoCredentialConfigured | E::ConfigNotFound) => continue,
            // The protocol of the helpers has no other response for a missing credential.
            Err(E::HelperFailure { stdout, stderr, .. })
                if [&stdout, &stderr]
                    .iter()
                    .any(|text| text.contains("credentials not found")) =>
            {
                continue;
            }
            // The output of a helper may contain a secret. The error shows only its error stream.
            Err(E::HelperFailure { helper, stderr, .. }) => {
                let stderr = stderr.lines().next().unwrap_or_default();
                format!("{helper} failed: {stderr}")
            }
            Err(E::HelperCommunicationError) => "the program cannot be started".into(),
            Err(E::MalformedHelperResponse) => "its response does not follow the protocol".into(),
            Err(E::CredentialDecodingError) => {
                return Err(config_error(format!(
                    "`auth` of {host} is not base 64 of USER:PASSWORD"
                )));
            }
            Err(E::CredentialMismatchError) => {
                return Err(config_error(format!(
                    "`auth` and `username` of {host} disagree"
                )));
            }
            Err(E::ConfigReadError) => {
                return Err(config_error("it is not a Docker configuration".into()));
            }
        };
        return Err(CredentialError::Helper {
            path: path.to_owned(),
            host: host.to_owned(),
            reason,
        });
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};

    use super::*;

    fn describe_credential(credential: Option<Credential>) -> String {
        match credential {
            None => "none".into(),
            Some(Credential::Password { username, password }) => {
                format!("{username}:{}", password.expose())
            }
            Some(Credential::IdentityToken(token)) => format!("token {}", token.expose()),
        }
    }

    async fn find_credential(config: &str, host: &str) -> Result<String, CredentialError> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        Credentials::new()
            .with_docker_config(Some(folder.path()))
            .for_host(host)
            .await
            .map(describe_credential)
    }

    #[tokio::test]
    async fn for_host_matches_hosts_exactly_and_docker_hub_by_its_aliases() {
        let auth = |text: &str| STANDARD.encode(text);
        let config = format!(
            r#"{{"auths": {{
                "registry.example.com": {{"auth": "{}"}},
                "127.0.0.1:5000": {{"auth": "{}"}},
                "https://index.docker.io/v1/": {{"auth": "{}"}},
                "acr.example": {{"auth": "{}", "identitytoken": "refresh"}},
                "empty.example": {{}},
                "https://full.example/v2/": {{"username": "u", "password": "p"}}
            }}}}"#,
            auth("a:1"),
            auth("b:2:3"),
            auth("hub:4"),
            auth("00000000-0000-0000-0000-000000000000:"),
        );
        for (host, expected) in [
            ("registry.example.com", "a:1"),
            ("REGISTRY.example.com", "a:1"),
            ("registry.example.com:443", "none"),
            ("example.com", "none"),
            ("registry.example.com.evil.example", "none"),
            ("127.0.0.1:5000", "b:2:3"),
            ("127.0.0.1", "none"),
            ("docker.io", "hub:4"),
            ("index.docker.io", "hub:4"),
            ("registry-1.docker.io", "hub:4"),
            ("https://index.docker.io/v1/", "hub:4"),
            ("acr.example", "token refresh"),
            ("empty.example", "none"),
            ("full.example", "u:p"),
        ] {
            assert_eq!(
                find_credential(&config, host).await.unwrap(),
                expected,
                "{host}"
            );
        }
    }

    #[tokio::test]
    async fn explicit_credentials_precede_the_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let config = r#"{"auths": {"r.example": {"username": "file", "password": "1"}}}"#;
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        let credentials = Credentials::new()
            .with("r.example", "given", Secret::new("2"))
            .with("index.docker.io", "hub", Secret::new("3"))
            .with_docker_config(Some(folder.path()));
        assert_eq!(
            describe_credential(credentials.for_host("r.example").await.unwrap()),
            "given:2"
        );
        assert_eq!(
            describe_credential(credentials.for_host("docker.io").await.unwrap()),
            "hub:3"
        );
    }

    #[tokio::test]
    async fn for_host_ignores_a_missing_configuration_and_refuses_a_broken_one() {
        let folder = tempfile::tempdir().unwrap();
        let credentials = Credentials::new().with_docker_config(Some(folder.path()));
        assert_eq!(
            describe_credential(credentials.for_host("r.example").await.unwrap()),
            "none"
        );
        let error = find_credential("not json", "r.example").await.unwrap_err();
        assert!(error.to_string().contains("config.json"), "{error}");
        let error = find_credential(r#"{"auths": {"r.example": {"auth": "%%%"}}}"#, "r.example")
            .await
            .unwrap_err();
        assert!(error.to_string().contains("USER:PASSWORD"), "{error}");
        let error = find_credential(
            r#"{"credHelpers": {"r.example": "no-such-helper-here"}}"#,
            "r.example",
        )
        .await
        .unwrap_err();
        assert!(error.to_string().contains("cannot be started"), "{error}");
    }

    #[test]
    fn debug_output_contains_no_password() {
        let credentials = Credentials::new().with("r.example", "u", Secret::new("hunter2"));
        assert!(!format!("{credentials:?}").contains("hunter2"));
    }
}
