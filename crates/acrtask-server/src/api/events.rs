//! Server-sent events of a run, from any offset, across attempts, until the run is finished.
//!
//! Each `data` is a log line. Its `id` is the offset after that line. An `attempt` event precedes
//! the first line of each attempt, and an `end` event follows the last one.
//!
//! Invariants: only complete lines are sent, each once and in order. A slow reader costs its
//! connection a few chunks of memory, and other connections nothing.

use acrtask_api::forms::EventId;
use std::{collections::VecDeque, sync::Arc, time::Duration};

use acrtask_api::admin::Problem;
use acrtask_model::{RunId, RunState};
use acrtask_store::StoreError;
use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use futures::{Stream, StreamExt as _, stream::BoxStream};
use serde::Deserialize;
use tokio::time::Instant;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api, ApiError,
    extract::{self, Path, Query},
    runs,
};
use crate::{
    App,
    auth::{self, Authenticated},
    logs::{self, LogError, MAX_EVENT, Subscription},
};

/// Interval between comments that keep the connection alive.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(events))
}

/// Start of an event stream.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct From {
    /// Offset in the attempt's log: the `id` of the last received event. 0 by default.
    offset: Option<u64>,
    /// Attempt of `offset`. The current attempt by default.
    attempt: Option<u32>,
}

/// Streams the events of a run.
///
/// `Last-Event-ID` replaces a missing `offset`. An `attempt` event (`{"attempt":2}`) precedes the
/// first line of each attempt and invalidates all previous events. An `end` event
/// (`{"state":"succeeded"}`) is the last one. Comments keep the connection alive.
#[utoipa::path(get, path = "/runs/{id}/events", tag = "runs",
    params(
        ("id" = String, Path, description = "Id of the run."),
        From,
        ("Last-Event-ID" = Option<EventId>, Header, description = "The `id` of the last event."),
    ),
    security(("token" = ["read"])), responses(
    (status = OK, content_type = "text/event-stream", body = String),
    (status = BAD_REQUEST, body = Problem),
    (status = NOT_FOUND, body = Problem),
))]
async fn events(
    by: Authenticated<auth::Read>,
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(from): Query<From>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let run = runs::find(&api, &by.caller, &id).await?.id;
    let last = extract::header(&headers, "last-event-id")?;
    let offset = match (from.offset, last) {
        (Some(offset), _) => offset,
        (None, None) => 0,
        (None, Some(last)) => last.parse().map_err(|_| {
            ApiError::invalid("`Last-Event-ID` must be the `id` of an event: a number")
        })?,
    };
    let follower = Follower::new(api.app.clone(), run, from.attempt, offset);
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        // Ask proxies not to buffer the response.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, Body::from_stream(follower.stream())).into_response())
}

/// A reader that follows a growing log.
struct Follower {
    app: Arc<App>,
    run: RunId,
    changes: Subscription,
    /// Current attempt. `None` before the first one.
    attempt: Option<u32>,
    /// `true` after the `attempt` event of the current attempt was queued, or if the reader started
    /// at an offset.
    announced: bool,
    /// Offset of the next line in the log.
    offset: u64,
    /// Bytes after `offset` without a line end yet.
    partial: Vec<u8>,
    log: Option<BoxStream<'static, Result<Bytes, LogError>>>,
    ready: VecDeque<Bytes>,
    last_sent: Instant,
    keep_alive: Duration,
    is_finished: bool,
}

impl Follower {
    fn new(app: Arc<App>, run: RunId, attempt: Option<u32>, offset: u64) -> Self {
        Self {
            // Subscribe before the first read, so that no change is missed.
            changes: app.logs.subscribe(&run),
            app,
            run,
            attempt: attempt.filter(|attempt| *attempt > 0),
            announced: offset > 0,
            offset,
            partial: Vec::new(),
            log: None,
            ready: VecDeque::new(),
            last_sent: Instant::now(),
            keep_alive: KEEP_ALIVE,
            is_finished: false,
        }
    }

    fn stream(self) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
        futures::stream::try_unfold(self, |mut follower| async move {
            let next = follower.next_bytes().await.map_err(std::io::Error::other)?;
            Ok(next.map(|bytes| (bytes, follower)))
        })
    }

    /// Returns the next bytes to send, `None` at the end. An error closes the connection, and the
    /// reader reconnects.
    async fn next_bytes(&mut self) -> Result<Option<Bytes>, LogError> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                self.last_sent = Instant::now();
                return Ok(Some(bytes));
            }
            if self.is_finished {
                return Ok(None);
            }
            if let Some(log) = &mut self.log {
                match log.next().await {
                    Some(Ok(bytes)) => self.push_bytes(&bytes)?,
                    Some(Err(error)) => return Err(error),
                    None => self.log = None,
                }
                continue;
            }
            if self.poll_log().await? {
                continue;
            }
            let rest = self.keep_alive.saturating_sub(self.last_sent.elapsed());
            tokio::select! {
                () = self.changes.changed() => {}
                () = tokio::time::sleep(rest) => self.ready.push_back(Bytes::from_static(b": alive\n\n")),
                // A server that shuts down ends its streams. Readers continue at another server.
                () = self.app.closing.cancelled() => self.is_finished = true,
            }
        }
    }

    /// Reads the log state. Returns `false` if there is nothing new to send.
    async fn poll_log(&mut self) -> Result<bool, LogError> {
        let state = match self.app.store.log_state(&self.run).await {
            Ok(state) => state,
            // Retention has removed the run.
            Err(StoreError::NotFound { .. }) => {
                self.is_finished = true;
                return Ok(true);
            }
            Err(error) => return Err(error.into()),
        };
        let final_ = state.state.is_final();
        let attempt = match self.attempt {
            // No attempt has started yet.
            None if state.attempt == 0 => return self.end_if_finished(final_, state.state).await,
            None => state.attempt,
            Some(attempt) if attempt > state.attempt => {
                return self.end_if_finished(final_, state.state).await;
            }
            Some(attempt) => attempt,
        };
        self.attempt = Some(attempt);
        if !self.announced {
            self.start_attempt(attempt);
            return Ok(true);
        }
        let read = self.offset + self.partial.len() as u64;
        // The log of an earlier attempt no longer grows.
        let length = if attempt == state.attempt {
            state.length
        } else {
            self.length_of(attempt).await?
        };
        if read < length {
            let log = logs::read_log(self.app.clone(), self.run.clone(), attempt, read);
            self.log = Some(log.boxed());
            return Ok(true);
        }
        if attempt < state.attempt {
            self.start_attempt(attempt + 1);
            return Ok(true);
        }
        if read > length {
            // The offset belongs to another attempt.
            self.start_attempt(attempt);
            return Ok(true);
        }
        self.end_if_finished(final_, state.state).await
    }

    async fn length_of(&mut self, attempt: u32) -> Result<u64, StoreError> {
        let attempts = self.app.store.attempts(&self.run).await?;
        Ok(attempts
            .iter()
            .find(|row| row.attempt == attempt)
            .map_or(0, |row| row.log_length))
    }

    fn start_attempt(&mut self, attempt: u32) {
        self.attempt = Some(attempt);
        self.announced = true;
        self.offset = 0;
        self.partial.clear();
        self.ready.push_back(Bytes::from(format!(
            "event: attempt\nid: 0\ndata: {{\"attempt\":{attempt}}}\n\n"
        )));
    }

    /// Ends the stream if the run is finished. Returns `true` if it did.
    async fn end_if_finished(
        &mut self,
        is_finished: bool,
        state: RunState,
    ) -> Result<bool, LogError> {
        if is_finished {
            self.push_end(state).await?;
        }
        Ok(is_finished)
    }

    async fn push_end(&mut self, state: RunState) -> Result<(), LogError> {
        let reason = match self.app.store.run(&self.run).await {
            Ok(row) => row.reason,
            Err(StoreError::NotFound { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let data = serde_json::json!({ "state": state, "reason": reason });
        self.ready
            .push_back(Bytes::from(format!("event: end\ndata: {data}\n\n")));
        self.is_finished = true;
        Ok(())
    }

    /// Splits bytes of the log into lines, and queues their events.
    fn push_bytes(&mut self, bytes: &[u8]) -> Result<(), LogError> {
        let mut out = Vec::with_capacity(bytes.len() + bytes.len() / 8);
        self.offset = write_events(&mut self.partial, self.offset, bytes, &mut out);
        if self.partial.len() > MAX_EVENT {
            return Err(LogError::Damaged {
                run: self.run.clone(),
                offset: self.offset,
            });
        }
        if !out.is_empty() {
            self.ready.push_back(out.into());
        }
        Ok(())
    }
}

/// Writes an event for each line that ends in `bytes`. `partial` has the beginning of the first
/// line. Returns the offset after the last complete line.
fn write_events(partial: &mut Vec<u8>, mut offset: u64, bytes: &[u8], out: &mut Vec<u8>) -> u64 {
    for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
        let Some(line) = piece.strip_suffix(b"\n") else {
            partial.extend_from_slice(piece);
            break;
        };
        offset += (partial.len() + piece.len()) as u64;
        if !(partial.is_empty() && line.is_empty()) {
            out.extend_from_slice(b"id: ");
            out.extend_from_slice(offset.to_string().as_bytes());
            out.extend_from_slice(b"\ndata: ");
            out.extend_from_slice(partial);
            out.extend_from_slice(line);
            out.extend_from_slice(b"\n\n");
        }
        partial.clear();
    }
    offset
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
