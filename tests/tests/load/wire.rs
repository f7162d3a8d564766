//! Connections of attackers: from any loopback address, plain or over TLS, with arbitrary bytes.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};

use crate::target::Address;

/// Number of source addresses of attackers. The first is also that of the valid clients.
const SOURCES: usize = 40;

/// Connection of either kind.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// Protocol of a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

/// Opens a TCP connection from the source `number`. Source 0 is the address of the valid clients.
pub(crate) async fn connect_tcp(
    address: &Address,
    number: usize,
    receive_buffer: Option<u32>,
) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if let Some(bytes) = receive_buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    let last = u8::try_from(1 + number % SOURCES).unwrap_or(1);
    socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), 0)))?;
    let connected = tokio::time::timeout(Duration::from_secs(2), socket.connect(address.socket));
    connected.await.map_err(|_| io::ErrorKind::TimedOut)?
}

/// Opens a connection, with a TLS handshake if the server has TLS.
pub(crate) async fn open(
    address: &Address,
    number: usize,
    protocol: Protocol,
) -> io::Result<Box<dyn Io>> {
    open_with(address, number, protocol, None).await
}

/// Opens a connection with a limited kernel buffer for unread bytes.
pub(crate) async fn open_with(
    address: &Address,
    number: usize,
    protocol: Protocol,
    receive_buffer: Option<u32>,
) -> io::Result<Box<dyn Io>> {
    let stream = connect_tcp(address, number, receive_buffer).await?;
    let Some((http1, http2)) = &address.tls else {
        return Ok(Box::new(stream));
    };
    let connector = if protocol == Protocol::Http1 {
        http1
    } else {
        http2
    };
    let name = "localhost".try_into().expect("a valid DNS name");
    let handshake = tokio::time::timeout(Duration::from_secs(4), connector.connect(name, stream));
    let stream = handshake.await.map_err(|_| io::ErrorKind::TimedOut)??;
    Ok(Box::new(stream))
}

/// Bytes that start an HTTP/2 connection.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Encodes an HTTP/2 frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Encodes a block of headers without compression.
pub(crate) fn headers(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    block
}

/// Encodes the headers of a request.
pub(crate) fn request(method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let mut fields = vec![
        (":method", method),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
    ];
    fields.extend(more);
    headers(&fields)
}

/// Opens an HTTP/2 connection with these settings and reads nothing.
pub(crate) async fn open_http2(
    address: &Address,
    number: usize,
    settings: &[u8],
) -> io::Result<Box<dyn Io>> {
    let mut stream = open_with(address, number, Protocol::Http2, Some(4096)).await?;
    stream.write_all(PREFACE).await?;
    stream.write_all(&frame(4, 0, 0, settings)).await?;
    Ok(stream)
}
