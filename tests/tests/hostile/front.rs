//! HTTPS server that answers each request with a function of the test, or forwards it to a plain
//! HTTP server.
//!
//! Each connection serves one request, so that a client resolves and connects again for the next.
//! The server ends with its process.

use std::{
    io::{self, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use acrtask_tests::git_server::{Request, read_body, read_head};

/// Longest wait for a client.
const LIMIT: Duration = Duration::from_secs(20);

/// Response to a request.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Status 200 with these bytes.
    Bytes(Vec<u8>),
    /// Status 302 to this address.
    Redirect(String),
    /// Response of the server at this address.
    From(SocketAddr),
    /// Status 404.
    NotFound,
}

/// Starts the server at `address`. `answer` receives the host that the client named, and the
/// request.
pub(crate) fn start(
    address: SocketAddr,
    config: Arc<ServerConfig>,
    answer: impl Fn(&str, &Request) -> Answer + Send + Sync + 'static,
) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    let answer = Arc::new(answer);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (config, answer) = (Arc::clone(&config), Arc::clone(&answer));
            // A client may close the connection early.
            thread::spawn(move || serve(stream, config, &*answer).ok());
        }
    });
    Ok(())
}

fn serve(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    answer: &dyn Fn(&str, &Request) -> Answer,
) -> io::Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    let connection = ServerConnection::new(config).map_err(io::Error::other)?;
    let mut client = StreamOwned::new(connection, stream);
    let mut reader = BufReader::new(&mut client);
    let Some(request) = read_head(&mut reader)? else {
        return Ok(());
    };
    let body = read_body(&mut reader, &request)?;
    let host = request.headers.get("host").cloned().unwrap_or_default();
    match answer(&host, &request) {
        Answer::Bytes(bytes) => {
            let kind = "Content-Type: application/octet-stream";
            write_head(&mut client, "200 OK", kind, bytes.len())?;
            client.write_all(&bytes)?;
        }
        Answer::Redirect(to) => {
            write_head(&mut client, "302 Found", &format!("Location: {to}"), 0)?
        }
        Answer::NotFound => write_head(&mut client, "404 Not Found", "Cache-Control: no-store", 0)?,
        Answer::From(address) => forward(&mut client, address, &request, &body)?,
    }
    client.conn.send_close_notify();
    client.flush()
}

fn write_head(out: &mut impl Write, status: &str, header: &str, length: usize) -> io::Result<()> {
    write!(
        out,
        "HTTP/1.1 {status}\r\n{header}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )
}

fn forward(
    out: &mut impl Write,
    address: SocketAddr,
    request: &Request,
    body: &[u8],
) -> io::Result<()> {
    let mut server = TcpStream::connect(address)?;
    server.set_read_timeout(Some(LIMIT))?;
    let target = match request.query.as_str() {
        "" => request.path.clone(),
        query => format!("{}?{query}", request.path),
    };
    write!(server, "{} {target} HTTP/1.1\r\n", request.method)?;
    for (name, value) in &request.headers {
        if !["connection", "content-length", "transfer-encoding"].contains(&name.as_str()) {
            write!(server, "{name}: {value}\r\n")?;
        }
    }
    write!(
        server,
        "content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    )?;
    server.write_all(body)?;
    io::copy(&mut server, out).map(drop)
}
