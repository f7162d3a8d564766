//! Download of the log of a run, as stored events or as text.

use acrtask_api::admin::Problem;
use acrtask_store::RunRow;
use axum::{
    body::{Body, Bytes},
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use futures::{Stream, TryStreamExt as _};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api, ApiError,
    extract::{Path, Query},
    runs,
};
use crate::{
    auth::{self, Authenticated},
    logs::{self, text::Lines},
};

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(log))
}

/// Format of a log.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// Events, one JSON object per line.
    Json,
    /// Readable lines: `step | text`.
    #[default]
    Text,
}

/// Format and attempt of a downloaded log.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct LogQuery {
    /// `json`: events, one JSON object per line. `text` (default): readable lines.
    #[param(inline)]
    format: Format,
    /// Number of the attempt. The current attempt by default.
    attempt: Option<u32>,
}

/// Returns the stored log of a run.
#[utoipa::path(get, path = "/runs/{id}/log", tag = "runs", params(("id" = String, Path, description = "Id of the run."), LogQuery),
    security(("token" = ["read"])), responses(
    (status = OK, content((String = "text/plain"), (String = "application/x-ndjson"))),
    (status = NOT_FOUND, body = Problem, description = "The run or the attempt does not exist."),
    (status = TOO_MANY_REQUESTS, body = Problem, description = "The token downloads too many logs at once."),
))]
async fn log(
    by: Authenticated<auth::Read>,
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(input): Query<LogQuery>,
) -> Result<Response, ApiError> {
    let row = runs::find(&api, &by.caller, &id).await?;
    let attempt = check_attempt(&row, input.attempt)?;
    let permit = api.app.log_reads.acquire(&by.caller).await?;
    let response = respond(&api, &row, attempt, input.format);
    Ok(permit.keep_until_sent(response))
}

/// Returns the number of the requested attempt, by default the current one.
pub(crate) fn check_attempt(row: &RunRow, requested: Option<u32>) -> Result<u32, ApiError> {
    let attempt = requested.unwrap_or(row.attempt);
    if attempt > row.attempt || (attempt == 0 && row.attempt > 0) {
        return Err(
            ApiError::not_found(format!("the run {} has no attempt {attempt}", row.id))
                .help(format!("write an attempt from 1 to {}", row.attempt)),
        );
    }
    Ok(attempt)
}

/// Returns the response with the log of an attempt.
pub(crate) fn respond(api: &Api, row: &RunRow, attempt: u32, format: Format) -> Response {
    let log =
        logs::read_log(api.app.clone(), row.id.clone(), attempt, 0).map_err(std::io::Error::other);
    let (kind, name, body) = match format {
        Format::Json => (
            "application/x-ndjson",
            format!("{}.jsonl", row.id),
            Body::from_stream(log),
        ),
        Format::Text => (
            "text/plain; charset=utf-8",
            format!("{}.log", row.id),
            Body::from_stream(convert_to_text(log)),
        ),
    };
    let headers = [
        (header::CONTENT_TYPE, kind.to_owned()),
        (
            header::CONTENT_DISPOSITION,
            format!("inline; filename=\"{name}\""),
        ),
        // Browsers must not interpret the output of a build as a page.
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
    ];
    (headers, body).into_response()
}

fn convert_to_text(
    log: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    let start = (Box::pin(log), Lines::default(), false);
    futures::stream::try_unfold(start, async |(mut log, mut lines, mut has_ended)| {
        loop {
            if let Some(text) = lines.next_piece() {
                return Ok(Some((Bytes::from(text), (log, lines, has_ended))));
            }
            if has_ended {
                return Ok(None);
            }
            match log.try_next().await? {
                Some(bytes) => lines.push(bytes),
                None => {
                    lines.finish();
                    has_ended = true;
                }
            }
        }
    })
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
