//! Log of a run in pages of lines, and as plain text.
//!
//! The index of the log finds a page. Memory is bounded by the page.

use acrtask_page::{LogLine, LogPage, Section};
use axum::{
    extract::{Path, Query, State},
    http::{HeaderValue, header},
    response::Response,
};
use serde::Deserialize;

use super::{PageError, Site, render, session::Visitor};
use crate::{
    api::{ApiError, log, log_lines, runs},
    auth,
    logs::{
        index::Selection,
        reader::{WindowStart, read_window},
    },
};

/// Number of lines per page.
const PAGE: u64 = 500;
/// Policy of raw logs. Browsers must not execute or embed the output of a build.
const RAW_POLICY: &str = "default-src 'none'; sandbox; frame-ancestors 'none'";

/// Attempt and position, as in the URL.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct LogQuery {
    attempt: Option<u32>,
    /// Only lines of this step. `from` counts these lines then.
    step: Option<String>,
    /// Address of a line in the middle of the page: `STEP:NUMBER`.
    at: Option<String>,
    from: Option<u64>,
    tail: Option<u32>,
}

/// Shows a page of the log.
pub(super) async fn show(
    by: Visitor<auth::Read>,
    State(site): State<Site>,
    Path(id): Path<String>,
    Query(query): Query<LogQuery>,
) -> Result<Response, PageError> {
    let row = runs::find(&site.api, &by.caller, &id).await?;
    let attempt = log::check_attempt(&row, query.attempt)?;
    let start = match (query.tail, query.at, query.from) {
        (Some(1), ..) => WindowStart::Tail,
        (_, Some(at), _) => {
            let (step, number) = log_lines::parse_address(&at)?;
            WindowStart::Around { step, number }
        }
        (.., from) => WindowStart::Line(from.unwrap_or(1).max(1)),
    };
    let selection = query.step.clone().map_or(Selection::All, Selection::Step);
    let window = read_window(site.app(), &row, attempt, selection, start, PAGE)
        .await
        .map_err(ApiError::from)?
        .ok_or_else(|| ApiError::not_found("the log has no such line or step"))?;
    let first = window.first;
    render(&LogPage {
        frame: by.frame(&format!("Log of run {}", row.id), Section::Runs),
        id: row.id.to_string(),
        state: row.state.into(),
        attempt,
        attempts: (1..=row.attempt).collect(),
        step: query.step,
        first,
        previous: (first > 1).then(|| first.saturating_sub(PAGE).max(1)),
        next: window.next(),
        is_live: !row.state.is_final() && attempt == row.attempt && attempt > 0,
        lines: window
            .lines
            .iter()
            .map(|line| LogLine::new(&line.step, line.number, &line.text))
            .collect(),
    })
}

/// Returns the whole log as plain text.
pub(super) async fn raw(
    by: Visitor<auth::Read>,
    State(site): State<Site>,
    Path(id): Path<String>,
    Query(query): Query<LogQuery>,
) -> Result<Response, PageError> {
    let row = runs::find(&site.api, &by.caller, &id).await?;
    let attempt = log::check_attempt(&row, query.attempt)?;
    let mut response = log::respond(&site.api, &row, attempt, log::Format::Text);
    response.headers_mut().insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(RAW_POLICY),
    );
    Ok(response)
}
