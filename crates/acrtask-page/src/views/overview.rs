//! Views of the overview.

use askama::{Template, filters::HtmlSafe};

use super::{CascadeRow, Frame, RunRow, task_url};
use crate::{Foreign, Moment, StateBadge, encode_query};

/// Counts that link to their lists.
#[derive(Debug, Template)]
#[template(path = "overview_counts.html")]
pub struct OverviewCounts {
    /// Number of leased and running runs.
    pub running: u64,
    /// Number of queued runs.
    pub waiting: u64,
    /// Number of runs of the last day that did not succeed, without canceled ones.
    pub failed: u64,
    /// Start of that day, as `since` of the list of runs.
    pub failed_since: String,
    /// Number of stale images.
    pub stale: usize,
    /// Number of unfinished cascades.
    pub cascades: usize,
    /// Number of connected runners.
    pub runners_online: usize,
    /// Number of registered runners.
    pub runners: usize,
    /// Number of occupied slots of connected runners.
    pub busy: u64,
    /// Number of slots of connected runners.
    pub slots: u64,
}

impl HtmlSafe for OverviewCounts {}

impl OverviewCounts {
    pub(super) fn failed_url(&self) -> String {
        format!(
            "/runs?state=failed,timed_out,error&since={}",
            encode_query(&self.failed_since)
        )
    }
}

/// A run that waits, with the reason.
#[derive(Debug)]
pub struct WaitRow {
    /// The run.
    pub run: RunRow,
    /// Reason in one sentence.
    pub reason: Foreign,
}

/// A run or a cascade that waits for an approval.
#[derive(Debug)]
pub struct ApprovalRow {
    /// Path of its page.
    pub url: String,
    /// Name of the run or the cascade.
    pub name: String,
    /// Commit or change to approve.
    pub about: Foreign,
    /// Time of the request.
    pub created: Moment,
}

/// Failed runs of one task in the last day.
#[derive(Debug)]
pub struct FailureRow {
    /// Name of the task. `None` for runs without a task.
    pub task: Option<String>,
    /// State of the newest failed run.
    pub state: StateBadge,
    /// Id of the newest failed run.
    pub run: String,
    /// Reason of the newest failed run.
    pub reason: Foreign,
    /// Time of the newest failed run.
    pub last: Moment,
    /// Number of failed runs.
    pub count: usize,
    /// Id and time of the first failed run, if there are several.
    pub first: Option<(String, Moment)>,
}

impl FailureRow {
    pub(super) fn task_url(&self) -> String {
        task_url(self.task.as_deref().unwrap_or_default())
    }

    /// Returns the number of the newest failure as a word: `third`.
    pub(super) fn ordinal(&self) -> String {
        match self.count {
            2 => "second".into(),
            3 => "third".into(),
            4 => "fourth".into(),
            5 => "fifth".into(),
            count => format!("{count}th"),
        }
    }
}

/// Lists of the overview.
#[derive(Debug, Template)]
#[template(path = "overview_lists.html")]
pub struct OverviewLists {
    /// Runs and cascades that wait for an approval.
    pub approvals: Vec<ApprovalRow>,
    /// Running runs, the newest first.
    pub running: Vec<RunRow>,
    /// Waiting runs, the newest first.
    pub waiting: Vec<WaitRow>,
    /// Failed runs of the last day by task.
    pub failures: Vec<FailureRow>,
    /// Unfinished cascades.
    pub cascades: Vec<CascadeRow>,
}

impl HtmlSafe for OverviewLists {}

/// Overview: counts that link to their lists, and the newest entries of these.
#[derive(Debug, Template)]
#[template(path = "overview.html")]
pub struct OverviewPage {
    /// Frame of the page.
    pub frame: Frame,
    /// Counts.
    pub counts: OverviewCounts,
    /// Lists.
    pub lists: OverviewLists,
}
