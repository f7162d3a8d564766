//! Log of a run in pages of lines, as plain text, and followed while it grows.
//!
//! The index of the log finds a page. Memory is bounded by the page.

use std::time::Duration;

use acrtask_api::outline::{self, Outline};
use acrtask_model::{RunState, StepState};
use acrtask_page::{LogLine, LogPage, Section, StateBadge, encode_query};
use acrtask_store::RunRow;
use axum::{
    extract::{Path, Query, State},
    http::{HeaderValue, header},
    response::Response,
};
use serde::Deserialize;

use super::{
    PageError, Site,
    live::{self, LivePage, LiveQuery, NewLines, Update},
    render,
    run::describe_title,
    session::Visitor,
};
use crate::{
    api::{ApiError, log, log_lines, runs},
    auth::{self, Caller},
    logs::{
        self, Subscription,
        index::Selection,
        reader::{Window, WindowSize, WindowStart, read_window},
    },
};

/// Number of lines per page.
const PAGE: u64 = 500;
/// Maximum size of the lines of a page: 1 MiB of HTML, or a quarter of it of text.
pub(super) const SIZE: WindowSize = WindowSize {
    lines: PAGE,
    cost: 1 << 20,
    cost_of,
};
/// Maximum size of the lines of an update.
const NEW_SIZE: WindowSize = WindowSize {
    lines: 1000,
    ..SIZE
};
/// Maximum size of the HTML of a line in bytes: 2,000 escaped characters in 100 pieces.
const MAX_ROW: usize = 32 << 10;
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

/// Returns the size of the HTML of a line, or four times that of its text, in bytes.
fn cost_of(line: &outline::LogLine) -> usize {
    let text = 4 * line.text.len();
    if text >= MAX_ROW {
        return text;
    }
    parse_line(line).html_size().max(text)
}

fn parse_line(line: &outline::LogLine) -> LogLine {
    LogLine::new(&line.step, line.number, &line.text)
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
    let permit = site.app().log_reads.acquire(&by.caller).await?;
    let start = match (query.tail, query.at, query.from) {
        (Some(1), ..) => WindowStart::Tail,
        (_, Some(at), _) => {
            let (step, number) = log_lines::parse_address(&at)?;
            WindowStart::Around { step, number }
        }
        (.., from) => WindowStart::Line(from.unwrap_or(1).max(1)),
    };
    let window = load_window(&site, &row, attempt, query.step.as_deref(), start, SIZE).await?;
    let first = window.first;
    let next = window.next();
    let is_live = !row.state.is_final() && attempt == row.attempt && attempt > 0;
    let is_end = next.is_none() && (first == 1 || !window.lines.is_empty());
    let follows = is_live && is_end && query.step.is_none();
    let outline = load_outline(&site, &row, attempt).await?;
    let state: StateBadge = row.state.into();
    let mut frame = by.frame(&format!("Log of run {}", row.id), Section::Runs);
    frame.icon = state.page_icon();
    frame.live = follows.then(|| format!("/runs/{}/log/live?attempt={attempt}", row.id));
    let page = render(&LogPage {
        frame,
        id: row.id.to_string(),
        failure_url: failure_url(&row, attempt, &outline),
        state,
        attempt,
        attempts: (1..=row.attempt).collect(),
        step: query.step,
        first,
        previous: (first > 1).then(|| first.saturating_sub(PAGE).max(1)),
        next,
        is_live,
        follows,
        lines: to_rows(&window),
    })?;
    Ok(permit.keep_until_sent(page))
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
    let permit = site.app().log_reads.acquire(&by.caller).await?;
    let response = log::respond(&site.api, &row, attempt, log::Format::Text);
    let mut response = permit.keep_until_sent(response);
    response.headers_mut().insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(RAW_POLICY),
    );
    Ok(response)
}

/// Reads lines of a step, or of the whole log.
pub(super) async fn load_window(
    site: &Site,
    row: &RunRow,
    attempt: u32,
    step: Option<&str>,
    start: WindowStart,
    size: WindowSize,
) -> Result<Window, ApiError> {
    let step = step.map(str::to_owned);
    let selection = step.map_or(Selection::All, Selection::Step);
    read_window(site.app(), row, attempt, selection, start, size)
        .await?
        .ok_or_else(|| ApiError::not_found("the log has no such line or step"))
}

/// Returns the rows of lines.
pub(super) fn to_rows(window: &Window) -> Vec<LogLine> {
    window.lines.iter().map(parse_line).collect()
}

/// Reads the outline of an attempt. Empty before the first attempt.
pub(super) async fn load_outline(
    site: &Site,
    row: &RunRow,
    attempt: u32,
) -> Result<Outline, ApiError> {
    if attempt == 0 {
        return Ok(Outline::default());
    }
    let outline = logs::with_index(site.app(), row, attempt, |index| index.outline()).await?;
    Ok(outline.outline)
}

/// Returns `true` for states of runs with a failure in the log.
pub(super) fn has_failure(state: RunState) -> bool {
    matches!(
        state,
        RunState::Failed | RunState::TimedOut | RunState::Error
    )
}

/// Returns `true` for states of steps that fail their run.
pub(super) fn is_failure(state: &StepState) -> bool {
    matches!(
        state,
        StepState::Failed { ignored: false, .. } | StepState::TimedOut { .. }
    )
}

/// Returns the path of the log at the last line of the failed step, or at the end of the log.
/// `None` if the attempt has not failed.
pub(super) fn failure_url(row: &RunRow, attempt: u32, outline: &Outline) -> Option<String> {
    if !has_failure(row.state) || attempt != row.attempt || attempt == 0 {
        return None;
    }
    let base = format!("/runs/{}/log?attempt={attempt}", row.id);
    let failed = outline.steps.iter().find(|step| is_failure(&step.state));
    let Some(step) = failed.filter(|step| step.lines > 0) else {
        return Some(format!("{base}&tail=1"));
    };
    let id = encode_query(step.id.as_str());
    let line = step.lines;
    Some(format!("{base}&at={id}:{line}#{id}%3AL{line}"))
}

/// Last line that a page has.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct FollowQuery {
    attempt: Option<u32>,
    after: u64,
}

/// Sends the lines of a growing log.
pub(super) async fn follow(
    by: Visitor<auth::Read>,
    State(site): State<Site>,
    Path(id): Path<String>,
    Query(query): Query<FollowQuery>,
    Query(form): Query<LiveQuery>,
) -> Result<Response, PageError> {
    let row = runs::find(&site.api, &by.caller, &id).await?;
    let page = LiveLog {
        changes: site.app().logs.subscribe(&row.id),
        attempt: log::check_attempt(&row, query.attempt)?,
        site: site.clone(),
        caller: by.caller,
        id,
        after: query.after,
    };
    live::respond(&site, &by.session, &form, page).await
}

/// A log that an open page follows.
struct LiveLog {
    site: Site,
    caller: Caller,
    id: String,
    attempt: u32,
    /// Number of the last line that the page has.
    after: u64,
    changes: Subscription,
}

impl LivePage for LiveLog {
    const INTERVAL: Duration = Duration::from_millis(50);

    async fn update(&mut self) -> Result<Update, ApiError> {
        let site = &self.site;
        // The state is read before the lines: the log of a final state is complete.
        let row = runs::find(&site.api, &self.caller, &self.id).await?;
        let start = WindowStart::Line(self.after.saturating_add(1));
        let window = load_window(site, &row, self.attempt, None, start, NEW_SIZE).await?;
        let is_end = window.next().is_none();
        let lines = to_rows(&window);
        self.after += lines.len() as u64;
        let lines = lines.iter().map(|line| {
            serde_json::json!({
                "id": line.id(),
                "fragment": line.fragment(),
                "label": line.label(),
                "pieces": line.pieces(),
            })
        });
        let new = NewLines {
            last: self.after,
            lines: lines.collect(),
        };
        let badge: StateBadge = row.state.into();
        Ok(Update::new(is_end && window.is_complete)
            .add("log-state", &badge)
            .titled(&describe_title(row.state, &row.id), &badge)
            .with_lines(new))
    }

    async fn changed(&mut self) {
        self.changes.changed().await;
    }
}
