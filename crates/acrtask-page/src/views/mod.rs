//! View models, one for each page. The fields are the texts and links that the template prints.

mod cascades;
mod frame;
mod images;
mod log;
mod overview;
mod run;
mod runs;
mod tasks;

use askama::Template;

use crate::{Foreign, Moment, StateBadge, encode_path};

pub use self::{
    cascades::{
        CascadeActions, CascadePage, CascadeRow, CascadeStatus, CascadesPage, ChangeRow, NodeRow,
        TagRow, WaveRow,
    },
    frame::{Frame, Section},
    images::{
        BaseChangeRow, BasePage, BaseWatchRow, BasesPage, DependentRow, ImageBaseRow,
        ImageBuildRow, ImageListRow, ImagePage, ImagesPage, NewerTagRow,
    },
    log::{LogExcerpt, LogPage},
    overview::{ApprovalRow, FailureRow, OverviewCounts, OverviewLists, OverviewPage, WaitRow},
    run::{
        BaseRow, ImageRow, RunActions, RunHead, RunOutcome, RunPage, RunSteps, StepRow, WaitPart,
    },
    runs::{RunFilters, RunRow, RunsPage},
    tasks::{TaskPage, TaskRow, TasksPage, TriggerRow},
};

/// Form to sign in with a token.
#[derive(Debug, Template)]
#[template(path = "sign_in.html")]
pub struct SignInPage {
    /// Frame of the page.
    pub frame: Frame,
    /// Path to continue at after the sign-in.
    pub next: String,
    /// Reason of a refused sign-in.
    pub problem: Option<Foreign>,
}

/// A refused request.
#[derive(Debug, Template)]
#[template(path = "problem.html")]
pub struct ProblemPage {
    /// Frame of the page.
    pub frame: Frame,
    /// Description of the problem.
    pub message: Foreign,
    /// Remedy.
    pub help: Option<Foreign>,
}

/// The user's own session.
#[derive(Debug, Template)]
#[template(path = "me.html")]
pub struct MePage {
    /// Frame of the page.
    pub frame: Frame,
    /// Name of the token.
    pub name: Foreign,
    /// Scopes of the token, separated by commas.
    pub scopes: String,
    /// Task limit of the token. `None`: all tasks.
    pub tasks: Option<Foreign>,
    /// End of the session at the latest.
    pub expires: Moment,
}

/// A runner in a list.
#[derive(Debug)]
pub struct RunnerRow {
    /// Name of the runner.
    pub name: Foreign,
    /// Online, draining or offline.
    pub state: StateBadge,
    /// Pool of the runner.
    pub pool: Foreign,
    /// Platforms, separated by commas.
    pub platforms: Foreign,
    /// Number of occupied slots.
    pub busy: u32,
    /// Number of slots.
    pub slots: u32,
    /// Labels as `NAME=VALUE`.
    pub labels: Foreign,
    /// Version of the program.
    pub version: Foreign,
    /// Time of the last contact.
    pub seen: Option<Moment>,
}

/// List of runners.
#[derive(Debug, Template)]
#[template(path = "runners.html")]
pub struct RunnersPage {
    /// Frame of the page.
    pub frame: Frame,
    /// Runners by name.
    pub runners: Vec<RunnerRow>,
}

/// A webhook delivery with its decisions.
#[derive(Debug)]
pub struct DeliveryRow {
    /// Id of the delivery.
    pub id: String,
    /// Time of arrival.
    pub received: Moment,
    /// Name of the webhook.
    pub webhook: Foreign,
    /// Description of the event.
    pub summary: Foreign,
    /// Reason if the delivery concerned no task.
    pub note: Option<Foreign>,
    /// Decision for each task.
    pub decisions: Vec<DecisionRow>,
    /// Base images that a registry reported, each with the cascade that rebuilds its dependents.
    pub bases: Vec<(Foreign, Option<u64>)>,
}

/// Decision about a trigger for one task.
#[derive(Debug)]
pub struct DecisionRow {
    /// Name of the task.
    pub task: String,
    /// Action: a run started, an existing run, or ignored.
    pub state: StateBadge,
    /// Id of the run.
    pub run: Option<String>,
    /// Reason in one sentence.
    pub reason: Foreign,
}

impl DecisionRow {
    fn task_url(&self) -> String {
        task_url(&self.task)
    }
}

/// Refused deliveries of a webhook with the same reason.
#[derive(Debug)]
pub struct RefusalRow {
    /// Name of the webhook.
    pub webhook: Foreign,
    /// Reason of the refusal.
    pub message: Foreign,
    /// Number of refusals.
    pub count: u64,
    /// Time of the last refusal.
    pub last: Moment,
}

/// List of webhook deliveries.
#[derive(Debug, Template)]
#[template(path = "deliveries.html")]
pub struct DeliveriesPage {
    /// Frame of the page.
    pub frame: Frame,
    /// Deliveries of the page, the newest first.
    pub deliveries: Vec<DeliveryRow>,
    /// Refused deliveries. Only on the first page.
    pub refusals: Vec<RefusalRow>,
    /// Cursor of the next page.
    pub next: Option<String>,
    /// Set if the page continues an earlier one.
    pub is_continued: bool,
}

impl DeliveriesPage {
    fn next_url(&self) -> Option<String> {
        let next = self.next.as_deref()?;
        Some(format!("/deliveries?before={}", crate::encode_query(next)))
    }
}

/// Path of the page of a task.
fn task_url(name: &str) -> String {
    format!("/tasks/{}", encode_path(name))
}

#[cfg(test)]
mod tests;
