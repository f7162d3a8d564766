//! Log of a run in pages of lines, and as plain text.
//!
//! A page is found by reading the log from its start, because no index of lines exists. Memory is
//! bounded by the page.

use std::{collections::VecDeque, pin::pin};

use acrtask_model::RunId;
use acrtask_page::{LogLine, LogLines, LogPage, Section};
use axum::{
    extract::{Path, Query, State},
    http::{HeaderValue, header},
    response::Response,
};
use futures::StreamExt as _;
use serde::Deserialize;

use super::{PageError, Site, render, session::Visitor};
use crate::{
    api::{ApiError, log, log_text::Lines, runs},
    auth,
    logs::{self, LogError},
};

/// Number of lines per page.
const PAGE: usize = 500;
/// Largest part of a line that is kept for a page, in bytes.
const MAX_KEPT: usize = 32 << 10;
/// Policy of raw logs. Browsers must not execute or embed the output of a build.
const RAW_POLICY: &str = "default-src 'none'; sandbox; frame-ancestors 'none'";

/// Attempt and position, as in the URL.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct LogQuery {
    attempt: Option<u32>,
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
    let window = match (query.tail, query.from) {
        (Some(1), _) => Window::tail(),
        (_, from) => Window::from_line(from.unwrap_or(1).max(1)),
    };
    let window = read_window(&site, row.id.clone(), attempt, window).await?;
    let first = window.first;
    render(&LogPage {
        frame: by.frame(&format!("Log of run {}", row.id), Section::Runs),
        id: row.id.to_string(),
        state: row.state.into(),
        attempt,
        attempts: (1..=row.attempt).collect(),
        first,
        previous: (first > 1).then(|| first.saturating_sub(PAGE as u64).max(1)),
        next: window.has_more.then_some(first.saturating_add(PAGE as u64)),
        is_live: !row.state.is_final() && attempt == row.attempt && attempt > 0,
        lines: window.parse(),
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

async fn read_window(
    site: &Site,
    run: RunId,
    attempt: u32,
    mut window: Window,
) -> Result<Window, ApiError> {
    let mut chunks = pin!(logs::read_log(site.app().clone(), run, attempt, 0));
    let mut lines = Lines::default();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| match error {
            LogError::Store(error) => error.into(),
            LogError::Blob(error) => error.into(),
            error @ LogError::Damaged { .. } => ApiError::internal(&error),
        })?;
        window.push_text(&lines.push(&chunk));
        if window.has_more {
            return Ok(window);
        }
    }
    window.push_text(&lines.finish());
    Ok(window)
}

/// Lines of one page, collected while the log is read from its start.
#[derive(Debug)]
struct Window {
    /// Number of the first kept line, from 1.
    first: u64,
    /// Set if the last lines are wanted.
    is_tail: bool,
    /// Set if the log has lines after the page.
    has_more: bool,
    read: u64,
    numbers: LogLines,
    /// Kept lines with their numbers within their steps.
    kept: VecDeque<(String, u64)>,
}

impl Window {
    fn tail() -> Self {
        Self {
            is_tail: true,
            ..Self::from_line(1)
        }
    }

    fn from_line(first: u64) -> Self {
        Self {
            first,
            is_tail: false,
            has_more: false,
            read: 0,
            numbers: LogLines::default(),
            kept: VecDeque::new(),
        }
    }

    fn push_text(&mut self, text: &str) {
        for line in text.split_terminator('\n') {
            if self.has_more {
                return;
            }
            self.push_line(line);
        }
    }

    fn push_line(&mut self, line: &str) {
        self.read += 1;
        let number = self.numbers.count(line);
        if self.read < self.first {
            return;
        }
        if self.kept.len() == PAGE {
            if !self.is_tail {
                self.has_more = true;
                return;
            }
            self.kept.pop_front();
            self.first += 1;
        }
        let end = line.floor_char_boundary(MAX_KEPT);
        self.kept.push_back((line[..end].to_owned(), number));
    }

    fn parse(self) -> Vec<LogLine> {
        let lines = self.kept.iter();
        lines
            .map(|(line, number)| LogLines::parse(line, *number))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(mut window: Window, lines: usize) -> (u64, bool, Vec<String>) {
        let text: String = (1..=lines).map(|line| format!("a | {line}\n")).collect();
        window.push_text(&text);
        let (first, more) = (window.first, window.has_more);
        let ids: Vec<String> = window.parse().iter().map(LogLine::id).collect();
        let ends = [ids.first(), ids.last()];
        let ends = ends.into_iter().flatten().cloned().collect();
        (first, more, ends)
    }

    #[test]
    fn pages_have_500_lines_and_the_tail_has_the_last_ones() {
        let ends = |first: &str, last: &str| vec![first.to_owned(), last.to_owned()];
        assert_eq!(read(Window::from_line(1), 0), (1, false, vec![]));
        assert_eq!(
            read(Window::from_line(1), 500),
            (1, false, ends("a:L1", "a:L500"))
        );
        assert_eq!(
            read(Window::from_line(501), 1200),
            (501, true, ends("a:L501", "a:L1000"))
        );
        assert_eq!(
            read(Window::tail(), 1200),
            (701, false, ends("a:L701", "a:L1200"))
        );
        assert_eq!(read(Window::tail(), 3), (1, false, ends("a:L1", "a:L3")));
    }
}
