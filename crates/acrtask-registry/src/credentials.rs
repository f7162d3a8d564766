//! Whose credentials go to which registry.
//!
//! Sources, in order: what the operator or the task file gave for exactly that host, then the Docker
//! configuration (`config.json`: `credHelpers`, `auths`, `credsStore`). Hosts match exactly, port included;
//! only Docker Hub goes by several names. The configuration is read at each look-up, so that a `docker login`
//! beside a long-lived process is seen.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use acrtask_model::{Digest, Secret, reference::DOCKER_HUB};
use docker_credential::{CredentialRetrievalError, DockerCredential};

use crate::manifest::Hasher;

/// What a registry wants to know.
#[derive(Debug, Clone)]
pub enum Credential {
    /// A user and a password.
    Password {
        /// The user.
        username: String,
        /// The password, or a token in its place.
        password: Secret,
    },
    /// An OAuth2 refresh token, as `az acr login` and Docker Hub's web login leave it.
    IdentityToken(Secret),
}

impl Credential {
    /// Returns a digest that only the same login has.
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

    /// Returns `true` if both are the same login.
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

/// Why a credential could not be looked up. Its text never has one in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// The configuration cannot be read or is not JSON of the expected form.
    #[error("cannot read the Docker configuration {}: {reason}", path.display())]
    Config {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A credential helper (`docker-credential-...`) failed, or there is no such program.
    #[error("the credential helper that {} names failed for {host}: {reason}", path.display())]
    Helper {
        /// The configuration that names it.
        path: PathBuf,
        /// The registry that was asked for.
        host: String,
        /// What happened.
        reason: String,
    },
}

/// Credentials by registry host.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    given: HashMap<String, Credential>,
    docker_config: Option<PathBuf>,
}

impl Credentials {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// With a user and a password for `host` (`registry.example.com`, `127.0.0.1:5000`, `docker.io`). The
    /// last one given for a host wins.
    #[must_use]
    pub fn with(mut self, host: &str, username: impl Into<String>, password: Secret) -> Self {
        let credential = Credential::Password {
            username: username.into(),
            password,
        };
        self.given.insert(canonical_host(host), credential);
        self
    }

    /// With the Docker configuration in the folder `path`, or, without one, in `$DOCKER_CONFIG` or
    /// `~/.docker`. There need not be a configuration.
    #[must_use]
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

    /// What was given explicitly for `host`, without a look at the Docker configuration.
    pub fn given(&self, host: &str) -> Option<&Credential> {
        self.given.get(&canonical_host(host))
    }

    /// The credential for `host`: a name as references have it, or one of Docker Hub's aliases.
    ///
    /// # Errors
    /// [`CredentialError`] where the Docker configuration or a helper that it names is broken. A helper
    /// that has nothing for the host is not an error.
    pub async fn for_host(&self, host: &str) -> Result<Option<Credential>, CredentialError> {
        if let Some(credential) = self.given(host) {
            return Ok(Some(credential.clone()));
        }
        let host = canonical_host(host);
        let Some(path) = self.docker_config.clone() else {
            return Ok(None);
        };
        // A helper is a process that may take its time.
        tokio::task::spawn_blocking(move || from_docker_config(&path, &host))
            .await
            .unwrap_or_else(|join| std::panic::resume_unwind(join.into_panic()))
    }
}

/// One name for each registry: Docker Hub's aliases and its key in `config.json` become `docker.io`, a
/// scheme and a trailing path drop out.
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
            // The helpers' protocol has no other way to say that there is nothing.
            Err(E::HelperFailure { stdout, stderr, .. })
                if [&stdout, &stderr]
                    .iter()
                    .any(|text| text.contains("credentials not found")) =>
            {
                continue;
            }
            // What a helper prints may hold a secret: only its error stream is shown.
            Err(E::HelperFailure { helper, stderr, .. }) => {
                let stderr = stderr.lines().next().unwrap_or_default();
                format!("{helper} ended with an error: {stderr}")
            }
            Err(E::HelperCommunicationError) => "the program cannot be started".into(),
            Err(E::MalformedHelperResponse) => "its answer is not what the protocol says".into(),
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

    fn shown(credential: Option<Credential>) -> String {
        match credential {
            None => "none".into(),
            Some(Credential::Password { username, password }) => {
                format!("{username}:{}", password.expose())
            }
            Some(Credential::IdentityToken(token)) => format!("token {}", token.expose()),
        }
    }

    async fn look_up(config: &str, host: &str) -> Result<String, CredentialError> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        Credentials::new()
            .with_docker_config(Some(folder.path()))
            .for_host(host)
            .await
            .map(shown)
    }

    #[tokio::test]
    async fn hosts_match_exactly_and_docker_hub_by_its_aliases() {
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
            assert_eq!(look_up(&config, host).await.unwrap(), expected, "{host}");
        }
    }

    #[tokio::test]
    async fn what_was_given_goes_before_the_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let config = r#"{"auths": {"r.example": {"username": "file", "password": "1"}}}"#;
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        let credentials = Credentials::new()
            .with("r.example", "given", Secret::new("2"))
            .with("index.docker.io", "hub", Secret::new("3"))
            .with_docker_config(Some(folder.path()));
        assert_eq!(
            shown(credentials.for_host("r.example").await.unwrap()),
            "given:2"
        );
        assert_eq!(
            shown(credentials.for_host("docker.io").await.unwrap()),
            "hub:3"
        );
    }

    #[tokio::test]
    async fn a_missing_configuration_is_none_and_a_broken_one_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let credentials = Credentials::new().with_docker_config(Some(folder.path()));
        assert_eq!(
            shown(credentials.for_host("r.example").await.unwrap()),
            "none"
        );
        let error = look_up("not json", "r.example").await.unwrap_err();
        assert!(error.to_string().contains("config.json"), "{error}");
        let error = look_up(r#"{"auths": {"r.example": {"auth": "%%%"}}}"#, "r.example")
            .await
            .unwrap_err();
        assert!(error.to_string().contains("USER:PASSWORD"), "{error}");
        let error = look_up(
            r#"{"credHelpers": {"r.example": "no-such-helper-here"}}"#,
            "r.example",
        )
        .await
        .unwrap_err();
        assert!(error.to_string().contains("cannot be started"), "{error}");
    }

    #[test]
    fn cannot_be_printed() {
        let credentials = Credentials::new().with("r.example", "u", Secret::new("hunter2"));
        assert!(!format!("{credentials:?}").contains("hunter2"));
    }
}
