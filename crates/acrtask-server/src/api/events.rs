//! The events of a run as they come: server-sent events from any offset, on over new attempts, until the run is over.
//!
//! Each `data` is a line of the log, its `id` the offset behind that line. Before the first line of each attempt comes an
//! `attempt` event, after the last one of the run an `end` event. Invariants: whole lines only, each once and in order; a
//! slow reader costs its own connection a few chunks of memory and nobody anything else.

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
    auth::{self, By},
    logs::{self, LogError, Subscription},
};

/// How often a comment shows that the connection is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Longest line that is kept together, in bytes; a longer one cannot be an event.
pub(super) const MAX_LINE: usize = 64 << 20;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(events))
}

/// From where on.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct From {
    /// Bytes of the attempt's log that are known already: the `id` of the last event.
    offset: Option<u64>,
    /// The attempt that `offset` belongs to; nothing: the one that counts now.
    attempt: Option<u32>,
}

/// The events of a run, as they come.
///
/// `Last-Event-ID` stands for `offset` where that is absent. An `attempt` event (`{"attempt":2}`) comes before the first
/// line of each attempt, and what came before it is of no account; an `end` event (`{"state":"succeeded"}`) after all
/// others. Comments keep the connection alive.
#[utoipa::path(get, path = "/runs/{id}/events", tag = "runs",
    params(
        ("id" = String, Path, description = "The run's id."),
        From,
        ("Last-Event-ID" = Option<EventId>, Header, description = "The `id` of the last event."),
    ),
    security(("token" = ["read"])), responses(
    (status = OK, content_type = "text/event-stream", body = String),
    (status = BAD_REQUEST, body = Problem),
    (status = NOT_FOUND, body = Problem),
))]
async fn events(
    by: By<auth::Read>,
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
        // Proxies that would collect the answer first are asked not to.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, Body::from_stream(follower.stream())).into_response())
}

/// Follows a log.
struct Follower {
    app: Arc<App>,
    run: RunId,
    changes: Subscription,
    /// The attempt that is read; nothing before there is one.
    attempt: Option<u32>,
    /// The reader knows which attempt it is.
    announced: bool,
    /// Where the next line begins.
    offset: u64,
    /// What was read behind it, without its line end yet.
    partial: Vec<u8>,
    log: Option<BoxStream<'static, Result<Bytes, LogError>>>,
    ready: VecDeque<Bytes>,
    spoken: Instant,
    keep_alive: Duration,
    over: bool,
}

impl Follower {
    fn new(app: Arc<App>, run: RunId, attempt: Option<u32>, offset: u64) -> Self {
        Self {
            // Before anything is looked at, so that no change is missed.
            changes: app.logs.subscribe(&run),
            app,
            run,
            attempt: attempt.filter(|attempt| *attempt > 0),
            announced: offset > 0,
            offset,
            partial: Vec::new(),
            log: None,
            ready: VecDeque::new(),
            spoken: Instant::now(),
            keep_alive: KEEP_ALIVE,
            over: false,
        }
    }

    fn stream(self) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
        futures::stream::try_unfold(self, |mut follower| async move {
            let next = follower.next().await.map_err(std::io::Error::other)?;
            Ok(next.map(|bytes| (bytes, follower)))
        })
    }

    /// What is sent next; nothing at the end. An error cuts the connection, and the reader asks again.
    async fn next(&mut self) -> Result<Option<Bytes>, LogError> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                self.spoken = Instant::now();
                return Ok(Some(bytes));
            }
            if self.over {
                return Ok(None);
            }
            if let Some(log) = &mut self.log {
                match log.next().await {
                    Some(Ok(bytes)) => self.take(&bytes)?,
                    Some(Err(error)) => return Err(error),
                    None => self.log = None,
                }
                continue;
            }
            if self.look().await? {
                continue;
            }
            let rest = self.keep_alive.saturating_sub(self.spoken.elapsed());
            tokio::select! {
                () = self.changes.changed() => {}
                () = tokio::time::sleep(rest) => self.ready.push_back(Bytes::from_static(b": alive\n\n")),
                // A server that stops ends its streams; readers go on at the next one.
                () = self.app.closing.cancelled() => self.over = true,
            }
        }
    }

    /// Looks for more; false where there is nothing to do but to wait.
    async fn look(&mut self) -> Result<bool, LogError> {
        let state = match self.app.store.log_state(&self.run).await {
            Ok(state) => state,
            // Retention has removed it.
            Err(StoreError::NotFound { .. }) => {
                self.over = true;
                return Ok(true);
            }
            Err(error) => return Err(error.into()),
        };
        let final_ = state.state.is_final();
        let attempt = match self.attempt {
            // Nobody has begun yet.
            None if state.attempt == 0 => return self.end_if(final_, state.state).await,
            None => state.attempt,
            Some(attempt) if attempt > state.attempt => {
                return self.end_if(final_, state.state).await;
            }
            Some(attempt) => attempt,
        };
        self.attempt = Some(attempt);
        if !self.announced {
            self.begin(attempt);
            return Ok(true);
        }
        let known = self.offset + self.partial.len() as u64;
        // The bytes of an attempt that is over are all there.
        let length = if attempt == state.attempt {
            state.length
        } else {
            self.length_of(attempt).await?
        };
        if known < length {
            let log = logs::read_log(self.app.clone(), self.run.clone(), attempt, known);
            self.log = Some(log.boxed());
            return Ok(true);
        }
        if attempt < state.attempt {
            self.begin(attempt + 1);
            return Ok(true);
        }
        if known > length {
            // The offset was one of another attempt.
            self.begin(attempt);
            return Ok(true);
        }
        self.end_if(final_, state.state).await
    }

    async fn length_of(&mut self, attempt: u32) -> Result<u64, StoreError> {
        let attempts = self.app.store.attempts(&self.run).await?;
        Ok(attempts
            .iter()
            .find(|row| row.attempt == attempt)
            .map_or(0, |row| row.log_length))
    }

    fn begin(&mut self, attempt: u32) {
        self.attempt = Some(attempt);
        self.announced = true;
        self.offset = 0;
        self.partial.clear();
        self.ready.push_back(Bytes::from(format!(
            "event: attempt\nid: 0\ndata: {{\"attempt\":{attempt}}}\n\n"
        )));
    }

    /// Ends the stream where the run is over; there is something to do then.
    async fn end_if(&mut self, over: bool, state: RunState) -> Result<bool, LogError> {
        if over {
            self.end(state).await?;
        }
        Ok(over)
    }

    async fn end(&mut self, state: RunState) -> Result<(), LogError> {
        let reason = match self.app.store.run(&self.run).await {
            Ok(row) => row.reason,
            Err(StoreError::NotFound { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let data = serde_json::json!({ "state": state, "reason": reason });
        self.ready
            .push_back(Bytes::from(format!("event: end\ndata: {data}\n\n")));
        self.over = true;
        Ok(())
    }

    /// Takes bytes of the log and makes events of the whole lines among them.
    fn take(&mut self, bytes: &[u8]) -> Result<(), LogError> {
        let mut out = Vec::with_capacity(bytes.len() + bytes.len() / 8);
        self.offset = frame(&mut self.partial, self.offset, bytes, &mut out);
        if self.partial.len() > MAX_LINE {
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

/// Writes an event for each line that ends in `bytes`, after what is left of earlier ones in `partial`. Gives the offset
/// behind the last whole line.
fn frame(partial: &mut Vec<u8>, mut offset: u64, bytes: &[u8], out: &mut Vec<u8>) -> u64 {
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
