//! Outline of an attempt, lines of its log, and search in it.

use std::time::Duration;

use acrtask_api::{
    admin::Problem,
    forms::{LineAddress, LineCursor, SearchText},
    outline::{LogLines, RunOutline, SearchItem},
};
use axum::{
    body::{Body, Bytes},
    extract::State,
    http::header,
    response::{IntoResponse as _, Response},
};
use futures::StreamExt as _;
use serde::Deserialize;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api, ApiError,
    extract::{Json, Path, Query},
    log::check_attempt,
    runs,
};
use crate::{
    auth::{self, Authenticated},
    logs::{
        self,
        index::Selection,
        reader::{MAX_LINES, WindowSize, WindowStart, read_window},
        search::{Pattern, Search},
    },
};

/// Number of lines by default.
const LINES: u64 = 500;
/// Number of hits by default, and at most.
const HITS: u64 = 100;
const MAX_HITS: u64 = 1000;
/// Longest text to search for, in characters.
const MAX_SEARCH_TEXT: usize = 500;
/// Longest address of a line, in characters.
const MAX_ADDRESS: usize = 1000;
/// Longest wait for other searches.
const SEARCH_WAIT: Duration = Duration::from_secs(10);

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(outline))
        .routes(routes!(lines))
        .routes(routes!(search))
}

/// Attempt of an outline.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct OutlineQuery {
    /// Number of the attempt. The current attempt by default.
    attempt: Option<u32>,
}

/// Returns the outline of an attempt: its steps, vertices, images and bases so far.
///
/// The outline is derived from the log. The first request for a large log waits until the log is
/// indexed.
#[utoipa::path(get, path = "/runs/{id}/outline", tag = "runs", params(("id" = String, Path, description = "Id of the run."), OutlineQuery),
    security(("token" = ["read"])), responses(
    (status = OK, body = RunOutline),
    (status = NOT_FOUND, body = Problem, description = "The run or the attempt does not exist."),
))]
async fn outline(
    by: Authenticated<auth::Read>,
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(input): Query<OutlineQuery>,
) -> Result<Json<RunOutline>, ApiError> {
    let row = runs::find(&api, &by.caller, &id).await?;
    let attempt = check_attempt(&row, input.attempt)?;
    let outline = logs::with_index(&api.app, &row, attempt, |index| index.outline()).await?;
    Ok(Json(outline))
}

/// Selection of lines.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct LinesQuery {
    /// Number of the attempt. The current attempt by default.
    attempt: Option<u32>,
    /// Only lines of this step. Empty: only lines of the run itself. All lines by default.
    step: Option<String>,
    /// Number of the first line of the step, from 1. Needs `step`.
    #[param(minimum = 1)]
    from: Option<u64>,
    /// Line in the middle of the response: `STEP:NUMBER`.
    #[param(value_type = Option<LineAddress>)]
    around: Option<String>,
    /// Number of lines before the end of the log.
    #[param(minimum = 1, maximum = 1000)]
    tail: Option<u64>,
    /// `next` or `previous` of a response with the same `step`.
    #[param(value_type = Option<LineCursor>)]
    cursor: Option<String>,
    /// Maximum number of lines. 500 by default.
    #[param(minimum = 1, maximum = 1000)]
    count: Option<u64>,
}

/// Returns lines of the log of an attempt, at most 4 MiB of text.
///
/// At most one of `from`, `around`, `tail` and `cursor` selects the first line. The start of the
/// log by default.
#[utoipa::path(get, path = "/runs/{id}/lines", tag = "runs", params(("id" = String, Path, description = "Id of the run."), LinesQuery),
    security(("token" = ["read"])), responses(
    (status = OK, body = LogLines),
    (status = NOT_FOUND, body = Problem, description = "The run, the attempt, the step or the line does not exist."),
))]
async fn lines(
    by: Authenticated<auth::Read>,
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(input): Query<LinesQuery>,
) -> Result<Json<LogLines>, ApiError> {
    let count = check_count("count", input.count)?;
    let tail = check_count("tail", input.tail)?;
    let start = parse_start(&input)?;
    let row = runs::find(&api, &by.caller, &id).await?;
    let attempt = check_attempt(&row, input.attempt)?;
    let count = count.or(tail).unwrap_or(LINES);
    let missing = missing_lines(input.step.as_deref(), &start);
    let selection = input.step.map_or(Selection::All, Selection::Step);
    let size = WindowSize::lines(count);
    let window = read_window(&api.app, &row, attempt, selection, start, size)
        .await?
        .ok_or(missing)?;
    Ok(Json(LogLines {
        attempt,
        is_complete: window.is_complete,
        next: window.next().map(|next| next.to_string()),
        previous: (window.first > 1).then(|| window.first.saturating_sub(count).max(1).to_string()),
        lines: window.lines,
    }))
}

/// Checks that a number of lines is from 1 to [`MAX_LINES`].
fn check_count(name: &str, count: Option<u64>) -> Result<Option<u64>, ApiError> {
    match count {
        Some(count) if count == 0 || count > MAX_LINES => Err(ApiError::invalid(format!(
            "`{name}` is {count}: write a number from 1 to {MAX_LINES}"
        ))),
        count => Ok(count),
    }
}

fn parse_start(input: &LinesQuery) -> Result<WindowStart, ApiError> {
    let given = [
        input.from.is_some(),
        input.around.is_some(),
        input.tail.is_some(),
        input.cursor.is_some(),
    ];
    if input.from == Some(0) {
        return Err(ApiError::invalid("`from` is 0: lines count from 1"));
    }
    let around = input.around.as_deref().map(parse_address).transpose()?;
    let cursor = input.cursor.as_deref().map(parse_cursor).transpose()?;
    if given.into_iter().filter(|given| *given).count() > 1 {
        return Err(
            ApiError::unprocessable("the request has several first lines")
                .help("use one of `from`, `around`, `tail` and `cursor`"),
        );
    }
    if input.tail.is_some() && input.count.is_some() {
        return Err(
            ApiError::unprocessable("`tail` is the number of lines").help("leave out `count`")
        );
    }
    if input.from.is_some() && input.step.is_none() {
        return Err(ApiError::unprocessable(
            "`from` is the number of a line within its step, and the request names no step",
        )
        .help("add `step`, or use `around=STEP:NUMBER`"));
    }
    Ok(match (around, input.tail) {
        (Some((step, number)), _) => WindowStart::Around { step, number },
        (None, Some(_)) => WindowStart::Tail,
        (None, None) => WindowStart::Line(input.from.or(cursor).unwrap_or(1)),
    })
}

/// Parses the address of a line, `STEP:NUMBER`.
pub(crate) fn parse_address(text: &str) -> Result<(String, u64), ApiError> {
    let address = text
        .rsplit_once(':')
        .filter(|_| text.chars().count() <= MAX_ADDRESS);
    let parsed = address.and_then(|(step, number)| {
        let number = parse_number(number).filter(|_| !step.contains(char::is_whitespace))?;
        Some((step.to_owned(), number))
    });
    parsed.ok_or_else(|| {
        ApiError::invalid(format!(
            "`{}` is not the address of a line",
            text.escape_debug()
        ))
        .help("write STEP:NUMBER, for example build:120")
    })
}

fn parse_cursor(text: &str) -> Result<u64, ApiError> {
    parse_number(text).ok_or_else(|| {
        ApiError::invalid("`cursor` must be `next` or `previous` of another response")
    })
}

/// Parses a number from 1 on.
fn parse_number(text: &str) -> Option<u64> {
    let is_number = text.len() <= 18 && text.bytes().all(|b| b.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|_| is_number && !text.starts_with('0'))
}

fn missing_lines(step: Option<&str>, start: &WindowStart) -> ApiError {
    let message = match (step, start) {
        (Some(selected), WindowStart::Around { step, .. }) if selected != step => {
            format!("the line {step} of `around` does not belong to the step {selected}")
        }
        (_, WindowStart::Around { step, number }) => {
            format!("the log has no line {step}:{number}")
        }
        (step, _) => format!("the log has no step {}", step.unwrap_or_default()),
    };
    ApiError::not_found(message).help("`GET /runs/{id}/outline` lists the steps and their lines")
}

/// Pattern of a search.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
struct SearchQuery {
    /// Text to search for. Escape sequences of terminals in the log are ignored.
    #[param(value_type = SearchText)]
    q: String,
    /// Number of the attempt. The current attempt by default.
    attempt: Option<u32>,
    /// Only lines of this step. Empty: only lines of the run itself. All lines by default.
    step: Option<String>,
    /// Ignores upper and lower case.
    #[serde(default)]
    ignore_case: bool,
    /// `q` is a regular expression in the syntax of the Rust crate `regex`.
    #[serde(default)]
    regex: bool,
    /// Maximum number of lines in the result. 100 by default. All are counted.
    #[param(minimum = 0, maximum = 1000)]
    limit: Option<u64>,
}

/// Searches the log of an attempt.
///
/// The result is one JSON object per line: a `hit` for each line that matches, as soon as it is
/// found, and an `end` with the true counts. A result without an `end` is incomplete.
#[utoipa::path(get, path = "/runs/{id}/search", tag = "runs", params(("id" = String, Path, description = "Id of the run."), SearchQuery),
    security(("token" = ["read"])), responses(
    (status = OK, content_type = "application/x-ndjson", body = SearchItem),
    (status = NOT_FOUND, body = Problem, description = "The run or the attempt does not exist."),
))]
async fn search(
    by: Authenticated<auth::Read>,
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(input): Query<SearchQuery>,
) -> Result<Response, ApiError> {
    let limit = input.limit.unwrap_or(HITS);
    if limit > MAX_HITS {
        return Err(ApiError::invalid(format!(
            "`limit` is {limit}: write a number from 0 to {MAX_HITS}"
        )));
    }
    let length = input.q.chars().count();
    if length == 0 || length > MAX_SEARCH_TEXT || input.q.contains(['\n', '\r', '\0']) {
        return Err(ApiError::invalid(format!(
            "`q` must be one line of 1 to {MAX_SEARCH_TEXT} characters"
        )));
    }
    let pattern = Pattern::new(&input.q, input.regex, input.ignore_case).map_err(|reason| {
        ApiError::unprocessable(format!("`q` is not a regular expression: {reason}"))
            .help("leave out `regex` to search for the text itself")
    })?;
    let row = runs::find(&api, &by.caller, &id).await?;
    let attempt = check_attempt(&row, input.attempt)?;
    let searches = api.app.log_indexes.searches.clone();
    let permit = tokio::time::timeout(SEARCH_WAIT, searches.acquire_owned()).await;
    let Ok(Ok(permit)) = permit else {
        return Err(ApiError::unavailable(
            "the server executes as many searches as it can; send the request again",
        ));
    };
    let search = Search {
        app: api.app.clone(),
        row,
        attempt,
        selection: input.step.map_or(Selection::All, Selection::Step),
        pattern,
        limit,
    };
    let items = ReceiverStream::new(search.start(permit)).map(|item| {
        let item = item.map_err(std::io::Error::other)?;
        let mut line = serde_json::to_vec(&item)?;
        line.push(b'\n');
        Ok::<_, std::io::Error>(Bytes::from(line))
    });
    let headers = [
        (header::CONTENT_TYPE, "application/x-ndjson"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    Ok((headers, Body::from_stream(items)).into_response())
}

#[cfg(test)]
#[path = "log_lines_tests.rs"]
mod tests;
