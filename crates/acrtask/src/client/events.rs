//! Live events of a run, across interrupted connections and server restarts.
//!
//! Invariants: each event is returned once and in order. After an interruption, the stream
//! continues behind the last complete event. Events that this version of the program does not know
//! are skipped.

use std::collections::VecDeque;

use acrtask_model::{Event, RunId};
use serde::Deserialize;

use super::{
    ApiError, Client,
    retry::{Backoff, Retry},
    sse::{Message, Parser},
};

/// Item of a run's event stream.
#[derive(Debug)]
pub(crate) enum StreamItem {
    /// An event of the run.
    Event(Box<Event>),
    /// A new attempt starts and replaces all previous events.
    Attempt(u32),
    /// The connection was interrupted; the next call reconnects.
    Disconnected(ApiError),
    /// The end of the stream.
    End,
}

/// Event stream of one run.
#[derive(Debug)]
pub(crate) struct EventStream {
    client: Client,
    run: RunId,
    /// Attempt of `offset`; 0 before the first one.
    attempt: u32,
    /// Bytes of the attempt's log that were returned.
    offset: u64,
    connection: Option<reqwest::Response>,
    /// Set once the connection has received data.
    has_data: bool,
    parser: Parser,
    ready: VecDeque<Message>,
    backoff: Backoff,
    finished: bool,
}

/// Data of an `attempt` event.
#[derive(Deserialize)]
struct AttemptData {
    attempt: u32,
}

impl Client {
    /// Returns the events of `run` from its beginning.
    pub(crate) fn events(&self, run: &RunId) -> EventStream {
        EventStream {
            client: self.clone().retrying(Retry {
                total: std::time::Duration::ZERO,
                ..Retry::default()
            }),
            run: run.clone(),
            attempt: 0,
            offset: 0,
            connection: None,
            has_data: false,
            parser: Parser::default(),
            ready: VecDeque::new(),
            backoff: Retry::PATIENT.start(),
            finished: false,
        }
    }
}

impl EventStream {
    /// Returns the stream with another retry policy.
    #[cfg(test)]
    #[must_use]
    pub(crate) fn retrying(mut self, retry: Retry) -> Self {
        self.backoff = retry.start();
        self
    }

    /// Returns the next item. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<StreamItem, ApiError> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                if let Some(item) = self.parse_message(&message) {
                    return Ok(item);
                }
                continue;
            }
            if self.finished {
                return Ok(StreamItem::End);
            }
            let read = match &mut self.connection {
                Some(connection) => connection.chunk().await,
                None => match self.connect().await {
                    Ok(()) => continue,
                    Err(error) => {
                        let Some(wait) = self.backoff.delay_after(&error, true) else {
                            return Err(error);
                        };
                        tokio::time::sleep(wait).await;
                        return Ok(StreamItem::Disconnected(error));
                    }
                },
            };
            match read {
                Ok(Some(bytes)) => {
                    let ready = &mut self.ready;
                    if self
                        .parser
                        .feed(&bytes, |message| ready.push_back(message))
                        .is_err()
                    {
                        self.connection = None;
                    }
                    self.has_data = true;
                    self.backoff.reset();
                }
                // A response without an `end` event: the server may be stopping.
                Ok(None) | Err(_) => {
                    self.connection = None;
                    if !self.has_data {
                        let url = self.client.url().clone();
                        let error = ApiError::EmptyStream { url };
                        let Some(wait) = self.backoff.next_delay(None) else {
                            return Err(error);
                        };
                        tokio::time::sleep(wait).await;
                        return Ok(StreamItem::Disconnected(error));
                    }
                }
            }
        }
    }

    async fn connect(&mut self) -> Result<(), ApiError> {
        self.parser = Parser::default();
        self.has_data = false;
        let mut query = vec![("offset", self.offset.to_string())];
        // An offset is valid for one attempt only.
        if self.attempt > 0 {
            query.push(("attempt", self.attempt.to_string()));
        }
        let path = ["runs", self.run.as_str(), "events"];
        self.connection = Some(self.client.stream(&path, &query).await?);
        Ok(())
    }

    fn parse_message(&mut self, message: &Message) -> Option<StreamItem> {
        match message.event.as_str() {
            "end" => {
                self.finished = true;
                self.connection = None;
                None
            }
            "attempt" => {
                let AttemptData { attempt } = serde_json::from_str(&message.data).ok()?;
                // The first attempt needs no item, nor does a repetition before its first event.
                let is_new = self.attempt != 0 && (self.attempt != attempt || self.offset > 0);
                self.attempt = attempt;
                self.offset = 0;
                is_new.then_some(StreamItem::Attempt(attempt))
            }
            _ => {
                if let Some(offset) = message.id.as_ref().and_then(|id| id.parse().ok()) {
                    self.offset = offset;
                }
                match serde_json::from_str(&message.data) {
                    Ok(event) => Some(StreamItem::Event(event)),
                    Err(error) => {
                        tracing::debug!(%error, "skipping an unknown event");
                        None
                    }
                }
            }
        }
    }
}
