//! Connection over messages: the stream of `Control.Session` as bytes.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bollard_buildkit_proto::moby::buildkit::v1::BytesMessage;
use futures::{FutureExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::PollSender;
use tonic::{Status, Streaming};

/// Number of messages that wait for the wire.
const MESSAGES_IN_FLIGHT: usize = 16;
/// Size of one message, in bytes.
const CHUNK: usize = 64 * 1024;

type Opening = Pin<Box<dyn Future<Output = Result<Streaming<BytesMessage>, Status>> + Send>>;

/// Creates the channel for outgoing messages.
pub(super) fn outgoing_channel() -> (mpsc::Sender<BytesMessage>, ReceiverStream<BytesMessage>) {
    let (sender, receiver) = mpsc::channel(MESSAGES_IN_FLIGHT);
    (sender, ReceiverStream::new(receiver))
}

enum Incoming {
    /// The call has started, but the builder has not responded.
    Opening(Opening),
    Open(Box<Streaming<BytesMessage>>),
    Ended,
}

pub(super) struct Tunnel {
    incoming: Incoming,
    /// Last message.
    /// Number of bytes of `rest` that are already read.
    rest: Vec<u8>,
    read: usize,
    outgoing: PollSender<BytesMessage>,
}

impl Tunnel {
    pub(super) fn new(
        opening: impl Future<Output = Result<Streaming<BytesMessage>, Status>> + Send + 'static,
        outgoing: mpsc::Sender<BytesMessage>,
    ) -> Self {
        Self {
            incoming: Incoming::Opening(Box::pin(opening)),
            rest: Vec::new(),
            read: 0,
            outgoing: PollSender::new(outgoing),
        }
    }
}

fn stream_error(status: &Status) -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionAborted,
        format!("the session's stream broke: {}", status.message()),
    )
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.read < this.rest.len() {
                let n = out.remaining().min(this.rest.len() - this.read);
                out.put_slice(&this.rest[this.read..this.read + n]);
                this.read += n;
                return Poll::Ready(Ok(()));
            }
            match &mut this.incoming {
                Incoming::Opening(opening) => match ready!(opening.poll_unpin(cx)) {
                    Ok(stream) => this.incoming = Incoming::Open(Box::new(stream)),
                    Err(status) => {
                        this.incoming = Incoming::Ended;
                        return Poll::Ready(Err(stream_error(&status)));
                    }
                },
                Incoming::Open(stream) => match ready!(stream.poll_next_unpin(cx)) {
                    Some(Ok(message)) => {
                        this.rest = message.data;
                        this.read = 0;
                    }
                    Some(Err(status)) => {
                        this.incoming = Incoming::Ended;
                        return Poll::Ready(Err(stream_error(&status)));
                    }
                    None => this.incoming = Incoming::Ended,
                },
                Incoming::Ended => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(self.outgoing.poll_reserve(cx)).map_err(|_| gone())?;
        let n = data.len().min(CHUNK);
        self.outgoing
            .send_item(BytesMessage {
                data: data[..n].to_vec(),
            })
            .map_err(|_| gone())?;
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outgoing.close();
        Poll::Ready(Ok(()))
    }
}
