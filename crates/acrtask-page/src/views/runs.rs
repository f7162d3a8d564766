//! Views of the list of runs.

use askama::Template;

use super::{Frame, task_url};
use crate::{Foreign, Moment, StateBadge, encode_query};

/// A run in a list.
#[derive(Debug)]
pub struct RunRow {
    /// Id of the run.
    pub id: String,
    /// State of the run.
    pub state: StateBadge,
    /// Name of its task.
    pub task: Option<String>,
    /// Trigger and requester.
    pub trigger: Foreign,
    /// Time of the request.
    pub created: Moment,
    /// Duration so far. Empty before the start.
    pub duration: String,
    /// Start of a running run, in milliseconds since 1970, so that a script can count on.
    pub running_since: Option<i64>,
}

impl RunRow {
    pub(super) fn task_url(&self) -> String {
        task_url(self.task.as_deref().unwrap_or_default())
    }
}

/// Filters of the list of runs, as written in the URL.
#[derive(Debug, Clone, Default)]
pub struct RunFilters {
    /// States, separated by commas.
    pub state: Option<String>,
    /// Name of a task, or a prefix with `*`.
    pub task: Option<String>,
    /// Earliest time of the request.
    pub since: Option<String>,
}

impl RunFilters {
    pub(super) fn is_active(&self) -> bool {
        self.state.is_some() || self.task.is_some() || self.since.is_some()
    }

    /// Returns the task for the field of the form. No task name has hidden characters.
    pub(super) fn task_text(&self) -> String {
        crate::show_hidden(self.task.as_deref().unwrap_or_default())
    }

    pub(super) fn parts(&self) -> Vec<(&'static str, Foreign, String)> {
        let all = [
            ("state", &self.state),
            ("task", &self.task),
            ("since", &self.since),
        ];
        let active = all.into_iter().filter_map(|(name, value)| {
            let value = value.as_ref()?;
            let mut rest = self.clone();
            match name {
                "state" => rest.state = None,
                "task" => rest.task = None,
                _ => rest.since = None,
            }
            Some((name, Foreign::line(value), rest.url(None)))
        });
        active.collect()
    }

    pub(super) fn url(&self, before: Option<&str>) -> String {
        let all = [
            ("state", self.state.as_deref()),
            ("task", self.task.as_deref()),
            ("since", self.since.as_deref()),
            ("before", before),
        ];
        let query: Vec<String> = all
            .into_iter()
            .filter_map(|(name, value)| Some(format!("{name}={}", encode_query(value?))))
            .collect();
        if query.is_empty() {
            "/runs".to_owned()
        } else {
            format!("/runs?{}", query.join("&"))
        }
    }

    pub(super) fn states(&self) -> Vec<(&'static str, &'static str, bool)> {
        let current = self.state.as_deref().unwrap_or_default();
        [
            ("", "all states"),
            ("queued", "waiting"),
            ("leased,running", "running"),
            ("succeeded", "succeeded"),
            ("failed,timed_out,error", "failed, timed out or error"),
            ("canceled", "canceled"),
        ]
        .into_iter()
        .map(|(value, name)| (value, name, value == current))
        .collect()
    }

    /// Returns `true` if the form has no choice for the state of the URL.
    pub(super) fn is_other_state(&self) -> bool {
        self.state.is_some() && !self.states().iter().any(|(_, _, current)| *current)
    }
}

/// List of runs.
#[derive(Debug, Template)]
#[template(path = "runs.html")]
pub struct RunsPage {
    /// Frame of the page.
    pub frame: Frame,
    /// Active filters.
    pub filters: RunFilters,
    /// Set if the page continues an earlier one.
    pub is_continued: bool,
    /// Runs of the page, the newest first.
    pub runs: Vec<RunRow>,
    /// Cursor of the next page.
    pub next: Option<String>,
}

impl RunsPage {
    pub(super) fn next_url(&self) -> Option<String> {
        self.next
            .as_deref()
            .map(|next| self.filters.url(Some(next)))
    }
}
