//! A minimal HTTP client for a Docker engine's socket and a registry on loopback.
//!
//! Requests are HTTP/1.0, so a response is never chunked and ends with the connection. TLS,
//! redirects and keep-alive are left out: these two servers need none of them.

use std::fmt;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Address that a server listens at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
}

impl Address {
    /// Parses the value of `DOCKER_HOST`.
    pub(crate) fn from_docker_host(text: &str) -> Result<Self> {
        if let Some(path) = text.strip_prefix("unix://") {
            return Ok(Self::Unix(path.into()));
        }
        if let Some(host) = text.strip_prefix("tcp://") {
            return Ok(Self::Tcp(host.trim_end_matches('/').to_owned()));
        }
        bail!("`{text}` is not a supported address; write unix:///PATH or tcp://HOST:PORT")
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(host) => write!(f, "tcp://{host}"),
        }
    }
}

/// Response of a server.
#[derive(Debug)]
pub(crate) struct Response {
    /// The status code.
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    /// The whole body.
    pub(crate) body: Vec<u8>,
}

impl Response {
    /// Returns a header. The case of its name does not matter.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// Returns the body as text, for error messages.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim().to_owned()
    }
}

/// Sends one request on a new connection. `timeout` limits each read and write, not the exchange.
pub(crate) fn request(
    address: &Address,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
    timeout: Duration,
) -> Result<Response> {
    exchange(address, method, path, headers, body, timeout)
        .with_context(|| format!("{method} {path} at {address} failed"))
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

fn exchange(
    address: &Address,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
    timeout: Duration,
) -> Result<Response> {
    let (mut stream, host): (Box<dyn Stream>, &str) = match address {
        Address::Unix(socket) => {
            let stream = UnixStream::connect(socket)?;
            stream.set_read_timeout(Some(timeout))?;
            (Box::new(stream), "localhost")
        }
        Address::Tcp(host) => {
            let stream = TcpStream::connect(host)?;
            stream.set_read_timeout(Some(timeout))?;
            (Box::new(stream), host)
        }
    };
    let mut head = format!("{method} {path} HTTP/1.0\r\nHost: {host}\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    parse(&answer)
}

fn parse(answer: &[u8]) -> Result<Response> {
    let end = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .context("the answer is not HTTP")?;
    let head = std::str::from_utf8(&answer[..end]).context("the answer's head is not text")?;
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1)?.parse().ok())
        .context("the answer has no status code")?;
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    Ok(Response {
        status,
        headers,
        body: answer[end + 4..].to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_apart() {
        let answer =
            parse(b"HTTP/1.0 202 Accepted\r\nLocation: /v2/x\r\n\r\nbody\r\n\r\n").unwrap();
        assert_eq!(answer.status, 202);
        assert_eq!(answer.header("location"), Some("/v2/x"));
        assert_eq!(answer.body, b"body\r\n\r\n");
        assert!(parse(b"SSH-2.0").is_err());
    }

    #[test]
    fn addresses_are_those_of_docker_host() {
        let unix = Address::from_docker_host("unix:///run/docker.sock").unwrap();
        assert_eq!(unix, Address::Unix("/run/docker.sock".into()));
        assert_eq!(unix.to_string(), "unix:///run/docker.sock");
        let tcp = Address::from_docker_host("tcp://127.0.0.1:2375").unwrap();
        assert_eq!(tcp, Address::Tcp("127.0.0.1:2375".into()));
        assert!(Address::from_docker_host("ssh://host").is_err());
    }
}
