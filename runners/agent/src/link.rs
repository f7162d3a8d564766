//! Link to the control plane: a stream that is opened, kept, and reopened without end.
//!
//! [`Link::run`] sends [`LinkEvent`]s. With each stream it hands out two queues: one for urgent
//! messages ([`Stream::control`]), which go first, and one for logs, which makes the sender wait.
//! Dropping `control` ends the stream in order; `close` ends it at once.

use std::{sync::Arc, task::Poll, time::Duration};

use acrtask_model::Secret;
use acrtask_proto::runner::{FromRunner, Hello, ToRunner, Welcome, from_runner, to_runner};
use futures::stream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status, transport::Channel};

use crate::{
    backoff::Backoff,
    error::chain,
    register::{CONNECT_TIMEOUT, Servers, new_client, with_key},
};

/// Maximum number of log messages that wait for the connection. Each has up to 256 KiB.
const LOG_QUEUE: usize = 2;
/// Lifetime after which a stream counts as stable: the next one is opened without a long pause.
const MIN_STABLE: Duration = Duration::from_secs(10);

/// Event of the link.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    /// A stream is being opened. The receiver sends the hello.
    Opening(oneshot::Sender<Hello>),
    /// A stream is open.
    Open(Stream, Welcome),
    /// The control plane has sent a message.
    Message(to_runner::Message),
    /// The stream has ended, and the link opens another one.
    Closed,
    /// A control plane rejects the key. The link opens no other stream.
    Refused {
        /// Address of the control plane.
        server: String,
        /// The reason of the refusal.
        status: Status,
    },
}

/// An open stream.
#[derive(Debug)]
pub(crate) struct Stream {
    /// Queue for small urgent messages.
    pub(crate) control: mpsc::UnboundedSender<FromRunner>,
    /// Queue for logs and the messages behind them.
    pub(crate) log: mpsc::Sender<FromRunner>,
    /// Ends the stream at once.
    pub(crate) close: CancellationToken,
}

/// Wraps a message.
pub(crate) fn wrap_message(message: from_runner::Message) -> FromRunner {
    FromRunner {
        message: Some(message),
    }
}

/// Connection settings and event queue of the link.
#[derive(Debug)]
pub(crate) struct Link {
    /// The control planes, of which one is used at a time.
    pub(crate) servers: Servers,
    /// The runner's key.
    pub(crate) key: Arc<Secret>,
    /// Receiver of the events.
    pub(crate) events: mpsc::Sender<LinkEvent>,
    /// The channel of the open stream, for other requests.
    pub(crate) channel: watch::Sender<Option<Channel>>,
}

impl Link {
    /// Keeps a stream open. After a stream ends it tries the next server, and pauses after a round
    /// of failures. Returns when the agent has stopped or the key was rejected.
    pub(crate) async fn run(mut self) {
        let mut backoff = Backoff::default();
        let mut has_warned = false;
        loop {
            let begun = tokio::time::Instant::now();
            let ended = self.run_stream().await;
            self.channel.send_replace(None);
            if self.events.send(LinkEvent::Closed).await.is_err() {
                return;
            }
            if let Err(status) = ended {
                if matches!(
                    status.code(),
                    Code::Unauthenticated | Code::PermissionDenied
                ) {
                    let server = self.servers.address().to_owned();
                    let _ = self
                        .events
                        .send(LinkEvent::Refused { server, status })
                        .await;
                    return;
                }
                let error = status.message();
                let server = self.servers.address();
                // One warning for each outage.
                if has_warned && begun.elapsed() < MIN_STABLE {
                    tracing::debug!(server, error, "no connection to the control plane yet");
                } else {
                    tracing::warn!(
                        server,
                        error,
                        "no connection to the control plane; runs continue, and the runner keeps trying"
                    );
                }
                has_warned = true;
            }
            if begun.elapsed() > MIN_STABLE {
                backoff.reset();
            }
            if self.servers.advance() {
                backoff.wait().await;
            }
        }
    }

    /// Runs one stream to its end.
    async fn run_stream(&mut self) -> Result<(), Status> {
        let late = |_| Status::deadline_exceeded("the control plane did not respond in time");
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, self.servers.endpoint().connect());
        let channel = connecting
            .await
            .map_err(late)?
            .map_err(|error| Status::unavailable(chain(&error)))?;
        let (control, control_queue) = mpsc::unbounded_channel();
        let (log, log_queue) = mpsc::channel(LOG_QUEUE);
        let (ask, hello) = oneshot::channel();
        let gone = |_| Status::cancelled("the runner is stopping");
        if self.events.send(LinkEvent::Opening(ask)).await.is_err() {
            return Ok(());
        }
        let hello = hello.await.map_err(gone)?;
        let _ = control.send(wrap_message(from_runner::Message::Hello(hello)));
        let request = with_key(
            Request::new(merge_outgoing(control_queue, log_queue)),
            &self.key,
        );
        let mut client = new_client(channel.clone());
        let opening = async {
            let mut incoming = client.connect(request).await?.into_inner();
            Ok((incoming.message().await?, incoming))
        };
        let (first, mut incoming) = tokio::time::timeout(CONNECT_TIMEOUT, opening)
            .await
            .map_err(late)?
            .map_err(|status: Status| status)?;
        let Some(ToRunner {
            message: Some(to_runner::Message::Welcome(welcome)),
        }) = first
        else {
            return Err(Status::internal("the control plane did not send a welcome"));
        };
        let close = CancellationToken::new();
        let stream = Stream {
            control,
            log,
            close: close.clone(),
        };
        self.channel.send_replace(Some(channel));
        self.servers.reached();
        let server = self.servers.address();
        tracing::info!(
            name = welcome.name,
            server,
            "connected to the control plane"
        );
        if self
            .events
            .send(LinkEvent::Open(stream, welcome))
            .await
            .is_err()
        {
            return Ok(());
        }
        loop {
            let next = tokio::select! {
                next = incoming.message() => next?,
                () = close.cancelled() => return Err(Status::aborted("the runner closed the stream")),
            };
            match next {
                Some(ToRunner {
                    message: Some(message),
                }) => {
                    if self.events.send(LinkEvent::Message(message)).await.is_err() {
                        return Ok(());
                    }
                }
                // A message type of a newer control plane.
                Some(ToRunner { message: None }) => {}
                None => return Ok(()),
            }
        }
    }
}

/// Merges both queues. Control messages go first, and the end of their queue ends the stream.
fn merge_outgoing(
    mut control: mpsc::UnboundedReceiver<FromRunner>,
    mut log: mpsc::Receiver<FromRunner>,
) -> impl futures::Stream<Item = FromRunner> + Send + 'static {
    let mut log_open = true;
    stream::poll_fn(move |context| {
        if let Poll::Ready(next) = control.poll_recv(context) {
            return Poll::Ready(next);
        }
        if log_open {
            match log.poll_recv(context) {
                Poll::Ready(Some(next)) => return Poll::Ready(Some(next)),
                Poll::Ready(None) => log_open = false,
                Poll::Pending => {}
            }
        }
        Poll::Pending
    })
}

#[cfg(test)]
mod tests {
    use acrtask_proto::runner::{Draining, LogChunk, from_runner::Message};
    use futures::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn control_messages_precede_logs() {
        let (control, control_queue) = mpsc::unbounded_channel();
        let (log, log_queue) = mpsc::channel(LOG_QUEUE);
        let mut out = Box::pin(merge_outgoing(control_queue, log_queue));
        log.send(wrap_message(Message::Log(LogChunk::default())))
            .await
            .unwrap();
        control
            .send(wrap_message(Message::Draining(Draining {})))
            .unwrap();
        let first = out.next().await.unwrap().message.unwrap();
        assert!(matches!(first, Message::Draining(_)));
        let second = out.next().await.unwrap().message.unwrap();
        assert!(matches!(second, Message::Log(_)));
        drop(log);
        control
            .send(wrap_message(Message::Draining(Draining {})))
            .unwrap();
        assert!(out.next().await.is_some());
        drop(control);
        assert!(out.next().await.is_none());
    }
}
