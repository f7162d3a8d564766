//! Where a BuildKit is.

use std::fmt;
use std::path::PathBuf;

const DEFAULT_DOCKER_SOCKET: &str = "/var/run/docker.sock";

/// A BuildKit to talk to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A buildkitd on a Unix socket.
    Unix(PathBuf),
    /// A buildkitd on TCP.
    Tcp {
        /// `host:port`.
        address: String,
        /// Certificates; without them the connection is neither private nor authenticated.
        tls: Option<TlsFiles>,
    },
    /// The BuildKit inside a Docker Engine.
    DockerEngine {
        /// The engine's API socket.
        socket: PathBuf,
    },
}

/// PEM files for mutual TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Who signed the server's certificate.
    pub ca: PathBuf,
    /// Our certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The name in the server's certificate, where it is not the host of the address.
    pub server_name: Option<String>,
}

impl TlsFiles {
    /// `ca.pem`, `cert.pem` and `key.pem` of a folder.
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        let folder = folder.into();
        Self {
            ca: folder.join("ca.pem"),
            cert: folder.join("cert.pem"),
            key: folder.join("key.pem"),
            server_name: None,
        }
    }
}

/// The text names no endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{url:?} is not a BuildKit endpoint: {why}; write unix:///path/to/buildkitd.sock, tcp://host:port or docker:///var/run/docker.sock"
)]
pub struct EndpointError {
    /// What was given.
    pub url: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl Endpoint {
    /// Reads `unix:///run/buildkit/buildkitd.sock`, `tcp://host:1234`, `docker:///var/run/docker.sock`, or
    /// `docker://` for the engine's usual socket. TLS files are not part of the text.
    pub fn parse(url: &str) -> Result<Self, EndpointError> {
        let fail = |why| {
            Err(EndpointError {
                url: url.to_owned(),
                why,
            })
        };
        let Some((scheme, rest)) = url.split_once("://") else {
            return fail("it has no scheme");
        };
        match scheme {
            "unix" | "docker" if !rest.is_empty() && !rest.starts_with('/') => {
                fail("the socket's path must be absolute")
            }
            "unix" if rest.is_empty() => fail("it names no socket"),
            "unix" => Ok(Self::Unix(rest.into())),
            "docker" => Ok(Self::DockerEngine {
                socket: if rest.is_empty() {
                    DEFAULT_DOCKER_SOCKET
                } else {
                    rest
                }
                .into(),
            }),
            "tcp" => {
                let port = rest
                    .rsplit_once(':')
                    .map(|(host, port)| (!host.is_empty(), port.parse::<u16>().is_ok()));
                match port {
                    Some((true, true)) => Ok(Self::Tcp {
                        address: rest.to_owned(),
                        tls: None,
                    }),
                    _ => fail("it needs a host and a port"),
                }
            }
            _ => fail("its scheme is unknown"),
        }
    }

    /// The same endpoint with TLS files; a Unix socket needs none and stays as it is.
    pub fn with_tls(self, files: TlsFiles) -> Self {
        match self {
            Self::Tcp { address, .. } => Self::Tcp {
                address,
                tls: Some(files),
            },
            other => other,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp { address, .. } => write!(f, "tcp://{address}"),
            Self::DockerEngine { socket } => write!(f, "docker://{}", socket.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_read_and_print() {
        for url in [
            "unix:///run/buildkit/buildkitd.sock",
            "tcp://builder.example:1234",
            "tcp://[::1]:1234",
            "docker:///tmp/d.sock",
        ] {
            assert_eq!(Endpoint::parse(url).unwrap().to_string(), url);
        }
        assert_eq!(
            Endpoint::parse("docker://").unwrap().to_string(),
            "docker:///var/run/docker.sock"
        );
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (url, why) in [
            ("/run/x.sock", "it has no scheme"),
            ("unix://", "it names no socket"),
            ("unix://run/x.sock", "the socket's path must be absolute"),
            ("tcp://host", "it needs a host and a port"),
            ("tcp://:1234", "it needs a host and a port"),
            ("ssh://host", "its scheme is unknown"),
        ] {
            assert_eq!(Endpoint::parse(url).unwrap_err().why, why, "{url}");
        }
    }
}
