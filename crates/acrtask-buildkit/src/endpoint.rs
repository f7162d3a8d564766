//! Address of a BuildKit.

use std::fmt;
use std::path::PathBuf;

const DEFAULT_DOCKER_SOCKET: &str = "/var/run/docker.sock";

/// Address of a BuildKit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// Buildkitd on a Unix socket.
    Unix(PathBuf),
    /// Buildkitd on TCP.
    Tcp {
        /// Address as `host:port`.
        address: String,
        /// Certificates. Without them the connection is neither private nor authenticated.
        tls: Option<TlsFiles>,
    },
    /// BuildKit inside a Docker Engine.
    DockerEngine {
        /// API socket of the engine.
        socket: PathBuf,
    },
}

/// PEM files for mutual TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate of the authority that signed the server's certificate.
    pub ca: PathBuf,
    /// Certificate of the client.
    pub cert: PathBuf,
    /// Private key of the client.
    pub key: PathBuf,
    /// Name in the server's certificate. `None`: the host of the address.
    pub server_name: Option<String>,
}

impl TlsFiles {
    /// Returns `ca.pem`, `cert.pem` and `key.pem` of a folder.
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

/// Error for a text that is not an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{url:?} is not a BuildKit endpoint: {why}; write unix:///path/to/buildkitd.sock, tcp://host:port or docker:///var/run/docker.sock"
)]
pub struct EndpointError {
    /// Invalid text.
    pub url: String,
    /// Description of the problem.
    pub why: &'static str,
}

impl Endpoint {
    /// Parses `unix:///run/buildkit/buildkitd.sock`, `tcp://host:1234`,
    /// `docker:///var/run/docker.sock`, or `docker://` for the default socket of the engine. TLS
    /// files are not part of the text.
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

    /// Adds TLS files to a TCP endpoint. A Unix socket needs none and stays unchanged.
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
    fn parse_and_display_round_trip() {
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
    fn parse_names_the_problem() {
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
