//! Views of cascades.

use askama::{Template, filters::HtmlSafe};

use super::{Frame, task_url};
use crate::{Foreign, Moment, StateBadge, StepGraph, encode_query};

/// A cascade in a list.
#[derive(Debug)]
pub struct CascadeRow {
    /// Number of the cascade.
    pub id: u64,
    /// Phase.
    pub state: StateBadge,
    /// Changed bases, separated by commas.
    pub bases: Foreign,
    /// Numbers of its nodes by state, as text.
    pub counts: String,
    /// Number of finished nodes.
    pub done: u32,
    /// Number of all nodes.
    pub total: u32,
    /// Time of the first change.
    pub created: Moment,
}

/// Stale tasks of one wave.
#[derive(Debug)]
pub struct WaveRow {
    /// Number of the wave, from 1.
    pub number: usize,
    /// Names of its tasks.
    pub tasks: Vec<String>,
}

impl WaveRow {
    pub(super) fn links(&self) -> Vec<(String, &str)> {
        let tasks = self.tasks.iter();
        tasks.map(|task| (task_url(task), task.as_str())).collect()
    }
}

/// A changed base.
#[derive(Debug)]
pub struct ChangeRow {
    /// Full name.
    pub name: Foreign,
    /// Digests before the change.
    pub from: Vec<String>,
    /// Digest after the change.
    pub to: String,
}

/// List of cascades with the plan of everything that is stale.
#[derive(Debug, Template)]
#[template(path = "cascades.html")]
pub struct CascadesPage {
    /// Frame of the page.
    pub frame: Frame,
    /// Set if only unfinished cascades are listed.
    pub active: bool,
    /// Cascades of the page, the newest first.
    pub cascades: Vec<CascadeRow>,
    /// Plan in one sentence. `None` if the session may not see it, or on further pages.
    pub plan: Option<String>,
    /// Changed bases of the plan.
    pub changes: Vec<ChangeRow>,
    /// Waves of the plan.
    pub waves: Vec<WaveRow>,
    /// Stale tasks that are not rebuilt, with the reasons.
    pub refused: Vec<Foreign>,
    /// Cursor of the next page.
    pub next: Option<String>,
    /// Set if the page continues an earlier one.
    pub is_continued: bool,
}

impl CascadesPage {
    pub(super) fn next_url(&self) -> Option<String> {
        let next = self.next.as_deref()?;
        let active = if self.active { "active=1&" } else { "" };
        Some(format!("/cascades?{active}before={}", encode_query(next)))
    }
}

/// A task in a cascade.
#[derive(Debug)]
pub struct NodeRow {
    /// Wave of the node, from 1.
    pub wave: u32,
    /// Name of the task.
    pub task: String,
    /// State of the node.
    pub state: StateBadge,
    /// Reason of the state.
    pub reason: Foreign,
    /// Last run.
    pub run: Option<String>,
    /// Duration, or the estimate of a node that has not started.
    pub duration: String,
    /// Start of a running node, in milliseconds since 1970.
    pub running_since: Option<i64>,
}

impl NodeRow {
    pub(super) fn task_url(&self) -> String {
        task_url(&self.task)
    }
}

/// The tag of an image that a cascade pushed.
#[derive(Debug)]
pub struct TagRow {
    /// Full name.
    pub name: Foreign,
    /// Digest before the push.
    pub before: Option<String>,
    /// Digest that was pushed.
    pub after: String,
    /// State of the tag.
    pub state: &'static str,
    /// Reason why the tag was not set or not restored.
    pub reason: Foreign,
}

/// State, sentence, graph and nodes of a cascade.
#[derive(Debug, Template)]
#[template(path = "cascade_status.html")]
pub struct CascadeStatus {
    /// Number of the cascade.
    pub id: u64,
    /// Phase.
    pub state: StateBadge,
    /// State in one sentence.
    pub sentence: Foreign,
    /// Number of finished nodes.
    pub done: u32,
    /// Number of all nodes.
    pub total: u32,
    /// Numbers of the nodes by state, as text.
    pub counts: String,
    /// Order of the nodes. `None` if the cascade has no nodes or too many.
    pub graph: Option<StepGraph>,
    /// Nodes by wave.
    pub nodes: Vec<NodeRow>,
    /// Number of nodes beyond the listed ones.
    pub more_nodes: usize,
    /// Tags before and after.
    pub tags: Vec<TagRow>,
    /// Number of tags beyond the listed ones.
    pub more_tags: usize,
}

impl HtmlSafe for CascadeStatus {}

/// Changes of a cascade that its state and the session allow: action, label, and a description if
/// the form asks for confirmation.
#[derive(Debug, Template)]
#[template(path = "cascade_actions.html")]
pub struct CascadeActions {
    /// Number of the cascade.
    pub id: u64,
    /// Actions.
    pub actions: Vec<(&'static str, &'static str, &'static str)>,
}

impl HtmlSafe for CascadeActions {}

/// Page of a cascade.
#[derive(Debug, Template)]
#[template(path = "cascade.html")]
pub struct CascadePage {
    /// Frame of the page.
    pub frame: Frame,
    /// Number of the cascade.
    pub id: u64,
    /// State, sentence, graph and nodes.
    pub status: CascadeStatus,
    /// Possible changes.
    pub actions: CascadeActions,
    /// Changed bases.
    pub changes: Vec<ChangeRow>,
    /// Time of the first change.
    pub created: Moment,
    /// Time of the end.
    pub finished: Option<Moment>,
    /// Number of the previous cascade.
    pub follows: Option<u64>,
}
