//! The events of a run as they come, across cut connections and servers that start again.
//!
//! Invariants: each event is given once and in order; after a cut the stream goes on behind the last whole event. An
//! event that this version of the program does not know is left out.

use std::collections::VecDeque;

use acrtask_model::{Event, RunId};
use serde::Deserialize;

use super::{
    ApiError, Client,
    retry::{Retry, Waits},
    sse::{Message, Parser},
};

/// What comes of a run.
#[derive(Debug)]
pub(crate) enum Item {
    /// Something happened in it.
    Event(Box<Event>),
    /// Another attempt begins: what came before is of no account.
    Attempt(u32),
    /// The connection was cut, and is being made again.
    Cut(ApiError),
    /// There is nothing more.
    End,
}

/// The events of one run.
#[derive(Debug)]
pub(crate) struct Events {
    client: Client,
    run: RunId,
    /// The attempt that `offset` is in; 0 before one is known.
    attempt: u32,
    /// Bytes of its log that have been given.
    offset: u64,
    connection: Option<reqwest::Response>,
    /// Something came over it.
    fed: bool,
    parser: Parser,
    ready: VecDeque<Message>,
    waits: Waits,
    over: bool,
}

/// The data of an `attempt` event.
#[derive(Deserialize)]
struct Attempt {
    attempt: u32,
}

impl Client {
    /// The events of `run`, from its beginning.
    pub(crate) fn events(&self, run: &RunId) -> Events {
        Events {
            client: self.clone().retrying(Retry {
                total: std::time::Duration::ZERO,
                ..Retry::default()
            }),
            run: run.clone(),
            attempt: 0,
            offset: 0,
            connection: None,
            fed: false,
            parser: Parser::default(),
            ready: VecDeque::new(),
            waits: Retry::PATIENT.begin(),
            over: false,
        }
    }
}

impl Events {
    /// The same, asking again for as long as `retry` says.
    #[cfg(test)]
    #[must_use]
    pub(crate) fn retrying(mut self, retry: Retry) -> Self {
        self.waits = retry.begin();
        self
    }

    /// What comes next. Safe to drop and to call again.
    pub(crate) async fn next(&mut self) -> Result<Item, ApiError> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                if let Some(item) = self.understand(&message) {
                    return Ok(item);
                }
                continue;
            }
            if self.over {
                return Ok(Item::End);
            }
            let read = match &mut self.connection {
                Some(connection) => connection.chunk().await,
                None => match self.connect().await {
                    Ok(()) => continue,
                    Err(error) => {
                        let Some(wait) = self.waits.after(&error, true) else {
                            return Err(error);
                        };
                        tokio::time::sleep(wait).await;
                        return Ok(Item::Cut(error));
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
                    self.fed = true;
                    self.waits.reset();
                }
                // The server ended the answer without a word of the end: it is being stopped, perhaps.
                Ok(None) | Err(_) => {
                    self.connection = None;
                    if !self.fed {
                        let url = self.client.url().clone();
                        let error = ApiError::CutOff { url };
                        let Some(wait) = self.waits.next(None) else {
                            return Err(error);
                        };
                        tokio::time::sleep(wait).await;
                        return Ok(Item::Cut(error));
                    }
                }
            }
        }
    }

    async fn connect(&mut self) -> Result<(), ApiError> {
        self.parser = Parser::default();
        self.fed = false;
        let mut query = vec![("offset", self.offset.to_string())];
        // An offset belongs to one attempt.
        if self.attempt > 0 {
            query.push(("attempt", self.attempt.to_string()));
        }
        let path = ["runs", self.run.as_str(), "events"];
        self.connection = Some(self.client.stream(&path, &query).await?);
        Ok(())
    }

    fn understand(&mut self, message: &Message) -> Option<Item> {
        match message.event.as_str() {
            "end" => {
                self.over = true;
                self.connection = None;
                None
            }
            "attempt" => {
                let Attempt { attempt } = serde_json::from_str(&message.data).ok()?;
                // That there is a first one is no news, and neither is the same one before anything was told of it.
                let again = self.attempt != 0 && (self.attempt != attempt || self.offset > 0);
                self.attempt = attempt;
                self.offset = 0;
                again.then_some(Item::Attempt(attempt))
            }
            _ => {
                if let Some(offset) = message.id.as_ref().and_then(|id| id.parse().ok()) {
                    self.offset = offset;
                }
                match serde_json::from_str(&message.data) {
                    Ok(event) => Some(Item::Event(event)),
                    Err(error) => {
                        tracing::debug!(%error, "an event that is not known here");
                        None
                    }
                }
            }
        }
    }
}
