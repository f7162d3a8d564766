//! Views of a log.

use askama::Template;

use super::Frame;
use crate::{Foreign, LogLine, StateBadge, encode_query};

/// Last lines of a step or of a run.
#[derive(Debug)]
pub struct LogExcerpt {
    /// Title: `step build failed`.
    pub title: Foreign,
    /// Path of the log at the last line.
    pub url: String,
    /// Set if the excerpt is of a failure.
    pub is_failure: bool,
    /// Lines without links.
    pub lines: Vec<LogLine>,
}

/// Page of the log of a run.
#[derive(Debug, Template)]
#[template(path = "log.html")]
pub struct LogPage {
    /// Frame of the page.
    pub frame: Frame,
    /// Id of the run.
    pub id: String,
    /// State of the run.
    pub state: StateBadge,
    /// Attempt of the log.
    pub attempt: u32,
    /// All attempts with a log.
    pub attempts: Vec<u32>,
    /// Step of the lines. `None`: all lines.
    pub step: Option<String>,
    /// Number of the first line of the page among these lines, from 1.
    pub first: u64,
    /// Number of the first line of the previous page.
    pub previous: Option<u64>,
    /// Number of the first line of the next page.
    pub next: Option<u64>,
    /// Set if the run may print more lines.
    pub is_live: bool,
    /// Set if a script appends new lines: the page shows the end of a growing log.
    pub follows: bool,
    /// Path of the log at the failure. `None` if there is none.
    pub failure_url: Option<String>,
    /// Lines of the page.
    pub lines: Vec<LogLine>,
}

impl LogPage {
    pub(super) fn last(&self) -> u64 {
        (self.first + self.lines.len() as u64).saturating_sub(1)
    }

    pub(super) fn start_url(&self) -> String {
        self.url(&1)
    }

    pub(super) fn url(&self, from: &u64) -> String {
        format!("{}&from={from}", self.base_url())
    }

    pub(super) fn end_url(&self) -> String {
        format!("{}&tail=1", self.base_url())
    }

    pub(super) fn all_url(&self) -> String {
        format!("/runs/{}/log?attempt={}", self.id, self.attempt)
    }

    fn base_url(&self) -> String {
        let step = self.step.as_ref();
        let step = step.map(|step| format!("&step={}", encode_query(step)));
        format!("{}{}", self.all_url(), step.unwrap_or_default())
    }

    pub(super) fn step_name(&self) -> Option<Foreign> {
        self.step.as_ref().map(Foreign::line)
    }
}
