//! Views of tasks.

use askama::Template;

use super::{Frame, RunRow, task_url};
use crate::{DurationChart, Foreign, Moment, StateBadge, encode_query};

/// A task in a list.
#[derive(Debug)]
pub struct TaskRow {
    /// Name of the task.
    pub name: String,
    /// Kind of its steps: `task file`, `build` or `container`.
    pub kind: &'static str,
    /// Enabled or disabled.
    pub state: StateBadge,
    /// Kinds of its triggers, separated by commas.
    pub triggers: String,
    /// Time of the last change.
    pub updated: Moment,
}

impl TaskRow {
    pub(super) fn url(&self) -> String {
        task_url(&self.name)
    }
}

/// List of tasks.
#[derive(Debug, Template)]
#[template(path = "tasks.html")]
pub struct TasksPage {
    /// Frame of the page.
    pub frame: Frame,
    /// Tasks of the page, by name.
    pub tasks: Vec<TaskRow>,
    /// Cursor of the next page.
    pub next: Option<String>,
    /// Set if the page continues an earlier one.
    pub is_continued: bool,
}

impl TasksPage {
    pub(super) fn next_url(&self) -> Option<String> {
        let next = self.next.as_deref()?;
        Some(format!("/tasks?after={}", encode_query(next)))
    }
}

/// A trigger of a task with its decision.
#[derive(Debug)]
pub struct TriggerRow {
    /// Kind of the trigger.
    pub kind: Foreign,
    /// Time of arrival.
    pub received: Moment,
    /// Delivery that contained it. `None` if there is none or the session may not see it.
    pub delivery: Option<String>,
    /// Action: a run started, an existing run, or ignored.
    pub state: StateBadge,
    /// Id of the run.
    pub run: Option<String>,
    /// Reason in one sentence.
    pub reason: Foreign,
}

/// Page of a task.
#[derive(Debug, Template)]
#[template(path = "task.html")]
pub struct TaskPage {
    /// Frame of the page.
    pub frame: Frame,
    /// Name of the task.
    pub name: String,
    /// Description of the task.
    pub description: Option<Foreign>,
    /// Enabled or disabled.
    pub state: StateBadge,
    /// Time of the last change.
    pub updated: Moment,
    /// File that defines the task.
    pub source: Option<Foreign>,
    /// Text of the task file, if the task contains it.
    pub text: Option<Foreign>,
    /// Definition without that text, as JSON.
    pub definition: Foreign,
    /// Triggers: kind and details.
    pub triggers: Vec<(&'static str, Foreign)>,
    /// Last runs of the task, the newest first.
    pub runs: Vec<RunRow>,
    /// Durations of these runs.
    pub durations: Option<DurationChart>,
    /// Last triggers with their decisions, the newest first.
    pub decisions: Vec<TriggerRow>,
    /// Set if the session may start the task.
    pub may_start: bool,
}

impl TaskPage {
    pub(super) fn url(&self) -> String {
        task_url(&self.name)
    }

    pub(super) fn runs_url(&self) -> String {
        format!("/runs?task={}", encode_query(&self.name))
    }
}
