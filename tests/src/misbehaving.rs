//! Server that responds wrongly on purpose. Each response is a value, so that a scenario is one
//! line of a test's table.
//!
//! Invariants:
//! - Each connection serves one request, so that a client resolves and connects again for the next.
//! - All requests are recorded, so that a test can assert what was not sent.
//! - The server ends with its process.

use std::{
    io::{self, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::git_server::{Request, read_body, read_head};

/// Longest wait for a client.
const LIMIT: Duration = Duration::from_secs(30);

/// Response to one request.
#[derive(Debug, Clone)]
pub enum Reply {
    /// Status, headers and body of a correct response.
    Complete(u16, Vec<(String, String)>, Vec<u8>),
    /// Status, headers, and bytes repeated until the client closes the connection.
    Endless(u16, Vec<(String, String)>, Vec<u8>),
    /// Announced length, headers, and a shorter body.
    Truncated(u64, Vec<(String, String)>, Vec<u8>),
    /// Bytes in place of HTTP.
    Raw(Vec<u8>),
    /// Bytes in place of HTTP: the first sent once, the second repeated until the client closes.
    RawEndless(Vec<u8>, Vec<u8>),
}

impl Reply {
    /// Returns a response with a status and headers.
    pub fn status(status: u16, headers: &[(&str, &str)]) -> Self {
        Self::Complete(status, owned_headers(headers), Vec::new())
    }

    /// Returns status 200 with a body of this media type.
    pub fn body(media_type: &str, body: impl Into<Vec<u8>>) -> Self {
        Self::Complete(
            200,
            owned_headers(&[("Content-Type", media_type)]),
            body.into(),
        )
    }

    /// Returns status 307 to this address.
    pub fn redirect(to: &str) -> Self {
        Self::status(307, &[("Location", to)])
    }

    /// Adds a header, if this kind of response has headers.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        if let Self::Complete(_, headers, _)
        | Self::Endless(_, headers, _)
        | Self::Truncated(_, headers, _) = &mut self
        {
            headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }
}

/// Converts headers into the form that [`Reply`] stores.
pub fn owned_headers(headers: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    headers.iter().map(owned).collect()
}

/// Request that a server received.
#[derive(Debug, Clone)]
pub struct ReceivedRequest {
    /// Host that the client named, without its port.
    pub host: String,
    /// Method, path and headers.
    pub request: Request,
    /// Body, empty if there is none.
    pub body: Vec<u8>,
}

impl ReceivedRequest {
    /// Returns the header `Authorization`.
    pub fn authorization(&self) -> Option<&str> {
        self.request
            .headers
            .get("authorization")
            .map(String::as_str)
    }
}

/// Server with the requests it received. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Misbehaving {
    requests: Arc<Mutex<Vec<ReceivedRequest>>>,
}

impl Misbehaving {
    /// Responds to each connection of `listener` with the result of `answer`. Uses TLS if `tls` is
    /// given.
    pub fn start(
        listener: TcpListener,
        tls: Option<Arc<ServerConfig>>,
        answer: impl Fn(&ReceivedRequest) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let server = Self::default();
        let (serving, answer) = (server.clone(), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (server, tls, answer) = (serving.clone(), tls.clone(), Arc::clone(&answer));
                // Most scenarios are about a client that closes early.
                thread::spawn(move || server.serve(stream, tls, &*answer).ok());
            }
        });
        server
    }

    /// Returns the requests received so far.
    pub fn requests(&self) -> Vec<ReceivedRequest> {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.clone()
    }

    fn serve(
        &self,
        stream: TcpStream,
        tls: Option<Arc<ServerConfig>>,
        answer: &dyn Fn(&ReceivedRequest) -> Reply,
    ) -> io::Result<()> {
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        match tls {
            None => self.respond(stream, answer).map(drop),
            Some(config) => {
                let connection = ServerConnection::new(config).map_err(io::Error::other)?;
                let stream = StreamOwned::new(connection, stream);
                let mut stream = self.respond(stream, answer)?;
                stream.conn.send_close_notify();
                stream.flush()
            }
        }
    }

    fn respond<S: Read + Write>(
        &self,
        stream: S,
        answer: &dyn Fn(&ReceivedRequest) -> Reply,
    ) -> io::Result<S> {
        let mut reader = BufReader::new(stream);
        let request = match read_head(&mut reader) {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(reader.into_inner()),
            // An engine that tries TLS first falls back to plain HTTP after this response.
            Err(error) => {
                let mut out = reader.into_inner();
                write_reply(&mut out, &Reply::status(400, &[]), false)?;
                return Err(error);
            }
        };
        let body = read_body(&mut reader, &request)?;
        let host = request.headers.get("host").map(String::as_str);
        let host = host.unwrap_or_default();
        let received = ReceivedRequest {
            host: host.split(':').next().unwrap_or_default().to_owned(),
            request,
            body,
        };
        let reply = answer(&received);
        let head_only = received.request.method == "HEAD";
        let requests = self.requests.lock();
        requests
            .unwrap_or_else(PoisonError::into_inner)
            .push(received);
        let mut out = reader.into_inner();
        write_reply(&mut out, &reply, head_only)?;
        out.flush()?;
        Ok(out)
    }
}

fn write_reply(out: &mut impl Write, reply: &Reply, head_only: bool) -> io::Result<()> {
    match reply {
        Reply::Complete(status, headers, body) => {
            let sized = headers
                .iter()
                .any(|(name, _)| name.eq_ignore_ascii_case("content-length"));
            let length = (!sized).then_some(body.len() as u64);
            write_head(out, *status, headers, length)?;
            match head_only {
                true => Ok(()),
                false => out.write_all(body),
            }
        }
        Reply::Endless(status, headers, piece) => {
            write_head(out, *status, headers, None)?;
            loop {
                out.write_all(piece)?;
            }
        }
        Reply::Truncated(length, headers, body) => {
            write_head(out, 200, headers, Some(*length))?;
            out.write_all(body)
        }
        Reply::Raw(bytes) => out.write_all(bytes),
        Reply::RawEndless(start, piece) => {
            out.write_all(start)?;
            loop {
                out.write_all(piece)?;
            }
        }
    }
}

fn write_head(
    out: &mut impl Write,
    status: u16,
    headers: &[(String, String)],
    length: Option<u64>,
) -> io::Result<()> {
    write!(out, "HTTP/1.1 {status} X\r\nConnection: close\r\n")?;
    for (name, value) in headers {
        write!(out, "{name}: {value}\r\n")?;
    }
    if let Some(length) = length {
        write!(out, "Content-Length: {length}\r\n")?;
    }
    write!(out, "\r\n")
}
