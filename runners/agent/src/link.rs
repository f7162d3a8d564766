//! The stream to the control plane: opened, kept, and opened again for ever.
//!
//! [`keep`] tells [`Told`] and is told nothing but by what it hands out with each stream: a way for what must not
//! wait ([`Stream::control`]), which goes first, and one for logs, which makes the sender wait. Dropping `control` ends
//! the stream in good order, `close` at once.

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
    register::{CONNECT, Servers, client, with_key},
};

/// Log messages that wait for the connection; each has up to 256 KiB.
const LOG_QUEUE: usize = 2;
/// A stream that lived for this long was a good one: the next one is tried soon.
const GOOD: Duration = Duration::from_secs(10);

/// What [`keep`] tells.
#[derive(Debug)]
pub(crate) enum Told {
    /// A stream is being opened: what does it begin with?
    Opening(oneshot::Sender<Hello>),
    /// A stream is open.
    Open(Stream, Welcome),
    /// The control plane says this.
    Message(to_runner::Message),
    /// The stream is gone; another one is tried.
    Closed,
    /// A control plane does not accept the key. No other stream is tried.
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
    /// For what is small and must not stand behind logs.
    pub(crate) control: mpsc::UnboundedSender<FromRunner>,
    /// For logs and what comes behind them.
    pub(crate) log: mpsc::Sender<FromRunner>,
    /// Ends it at once.
    pub(crate) close: CancellationToken,
}

/// Wraps a message.
pub(crate) fn say(message: from_runner::Message) -> FromRunner {
    FromRunner {
        message: Some(message),
    }
}

/// How streams are opened.
#[derive(Debug)]
pub(crate) struct Link {
    /// The control planes, of which one is connected.
    pub(crate) servers: Servers,
    /// The runner's key.
    pub(crate) key: Arc<Secret>,
    /// Who is told.
    pub(crate) told: mpsc::Sender<Told>,
    /// The channel of the open stream, for other requests.
    pub(crate) channel: watch::Sender<Option<Channel>>,
}

impl Link {
    /// Keeps a stream open. After each end it goes on to the next server, and waits once all of them failed. Returns
    /// when the agent is gone, or the key was refused.
    pub(crate) async fn keep(mut self) {
        let mut backoff = Backoff::default();
        let mut told_why = false;
        loop {
            let begun = tokio::time::Instant::now();
            let ended = self.stream().await;
            self.channel.send_replace(None);
            if self.told.send(Told::Closed).await.is_err() {
                return;
            }
            if let Err(status) = ended {
                if matches!(
                    status.code(),
                    Code::Unauthenticated | Code::PermissionDenied
                ) {
                    let server = self.servers.address().to_owned();
                    let _ = self.told.send(Told::Refused { server, status }).await;
                    return;
                }
                let error = status.message();
                let server = self.servers.address();
                // Once for each time that it is away.
                if told_why && begun.elapsed() < GOOD {
                    tracing::debug!(server, error, "no connection to the control plane yet");
                } else {
                    tracing::warn!(
                        server,
                        error,
                        "no connection to the control plane; runs go on, and it is tried again until there is one"
                    );
                }
                told_why = true;
            }
            if begun.elapsed() > GOOD {
                backoff.reset();
            }
            if self.servers.advance() {
                backoff.wait().await;
            }
        }
    }

    /// One stream, to its end.
    async fn stream(&mut self) -> Result<(), Status> {
        let late = |_| Status::deadline_exceeded("the control plane did not answer in time");
        let connecting = tokio::time::timeout(CONNECT, self.servers.endpoint().connect());
        let channel = connecting
            .await
            .map_err(late)?
            .map_err(|error| Status::unavailable(chain(&error)))?;
        let (control, control_queue) = mpsc::unbounded_channel();
        let (log, log_queue) = mpsc::channel(LOG_QUEUE);
        let (ask, hello) = oneshot::channel();
        let gone = |_| Status::cancelled("the runner is stopping");
        if self.told.send(Told::Opening(ask)).await.is_err() {
            return Ok(());
        }
        let hello = hello.await.map_err(gone)?;
        let _ = control.send(say(from_runner::Message::Hello(hello)));
        let request = with_key(Request::new(outgoing(control_queue, log_queue)), &self.key);
        let mut client = client(channel.clone());
        let opening = async {
            let mut incoming = client.connect(request).await?.into_inner();
            Ok((incoming.message().await?, incoming))
        };
        let (first, mut incoming) = tokio::time::timeout(CONNECT, opening)
            .await
            .map_err(late)?
            .map_err(|status: Status| status)?;
        let Some(ToRunner {
            message: Some(to_runner::Message::Welcome(welcome)),
        }) = first
        else {
            return Err(Status::internal("the control plane did not say welcome"));
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
        if self.told.send(Told::Open(stream, welcome)).await.is_err() {
            return Ok(());
        }
        loop {
            let next = tokio::select! {
                next = incoming.message() => next?,
                () = close.cancelled() => return Err(Status::aborted("the stream was given up")),
            };
            match next {
                Some(ToRunner {
                    message: Some(message),
                }) => {
                    if self.told.send(Told::Message(message)).await.is_err() {
                        return Ok(());
                    }
                }
                // A message of a newer control plane.
                Some(ToRunner { message: None }) => {}
                None => return Ok(()),
            }
        }
    }
}

/// What goes out: everything of the first queue before anything of the second; ends when the first one does.
fn outgoing(
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
    async fn what_must_not_wait_goes_first() {
        let (control, control_queue) = mpsc::unbounded_channel();
        let (log, log_queue) = mpsc::channel(LOG_QUEUE);
        let mut out = Box::pin(outgoing(control_queue, log_queue));
        log.send(say(Message::Log(LogChunk::default())))
            .await
            .unwrap();
        control.send(say(Message::Draining(Draining {}))).unwrap();
        let first = out.next().await.unwrap().message.unwrap();
        assert!(matches!(first, Message::Draining(_)));
        let second = out.next().await.unwrap().message.unwrap();
        assert!(matches!(second, Message::Log(_)));
        drop(log);
        control.send(say(Message::Draining(Draining {}))).unwrap();
        assert!(out.next().await.is_some());
        drop(control);
        assert!(out.next().await.is_none());
    }
}
