//! View models, one for each page. The fields are the texts and links that the template prints.

use askama::Template;

use crate::{Foreign, LogLine, Moment, StateBadge, asset_url, encode_path, encode_query};

/// Section of the navigation that a page belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// Overview.
    Overview,
    /// Runs.
    Runs,
    /// Tasks.
    Tasks,
    /// Runners.
    Runners,
    /// Pages outside the sections: sign-in, own session, problems.
    Other,
}

/// Parts of a page outside its content: title, navigation, user.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Title of the page.
    pub title: String,
    /// Section of the navigation.
    pub section: Section,
    /// Name of the token of the session. `None` without a session.
    pub user: Option<Foreign>,
}

impl Frame {
    /// Creates the frame of a page. Hidden characters of the title are shown.
    pub fn new(title: &str, section: Section, user: Option<&str>) -> Self {
        Self {
            title: crate::show_hidden(title),
            section,
            user: user.map(Foreign::line),
        }
    }

    fn style_url(&self) -> String {
        asset_url("style.css")
    }

    fn icon_url(&self) -> String {
        asset_url("icon.svg")
    }

    fn sections(&self) -> [(&'static str, &'static str, bool); 4] {
        let section = |path, name, section| (path, name, self.section == section);
        [
            section("/", "Overview", Section::Overview),
            section("/runs", "Runs", Section::Runs),
            section("/tasks", "Tasks", Section::Tasks),
            section("/runners", "Runners", Section::Runners),
        ]
    }
}

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
}

impl RunRow {
    fn task_url(&self) -> String {
        task_url(self.task.as_deref().unwrap_or_default())
    }
}

fn task_url(name: &str) -> String {
    format!("/tasks/{}", encode_path(name))
}

/// Overview: counts that link to their lists, and the newest entries of two lists.
#[derive(Debug, Template)]
#[template(path = "overview.html")]
pub struct OverviewPage {
    /// Frame of the page.
    pub frame: Frame,
    /// Number of leased and running runs.
    pub running: u64,
    /// Number of queued runs.
    pub waiting: u64,
    /// Number of runs of the last day that did not succeed, without canceled ones.
    pub failed: u64,
    /// Start of that day, as `since` of the list of runs.
    pub failed_since: String,
    /// Number of connected runners.
    pub runners_online: usize,
    /// Number of registered runners.
    pub runners: usize,
    /// Number of occupied slots of connected runners.
    pub busy: u64,
    /// Number of slots of connected runners.
    pub slots: u64,
    /// Live runs, the newest first.
    pub live_runs: Vec<RunRow>,
    /// Failed runs of the last day, the newest first.
    pub failed_runs: Vec<RunRow>,
}

impl OverviewPage {
    fn failed_url(&self) -> String {
        format!(
            "/runs?state=failed,timed_out,error&since={}",
            encode_query(&self.failed_since)
        )
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
    fn is_active(&self) -> bool {
        self.state.is_some() || self.task.is_some() || self.since.is_some()
    }

    /// Returns the task for the field of the form. No task name has hidden characters.
    fn task_text(&self) -> String {
        crate::show_hidden(self.task.as_deref().unwrap_or_default())
    }

    fn parts(&self) -> Vec<(&'static str, Foreign, String)> {
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

    fn url(&self, before: Option<&str>) -> String {
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

    fn states(&self) -> Vec<(&'static str, &'static str, bool)> {
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
    fn is_other_state(&self) -> bool {
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
    fn next_url(&self) -> Option<String> {
        self.next
            .as_deref()
            .map(|next| self.filters.url(Some(next)))
    }
}

/// A step with its result.
#[derive(Debug)]
pub struct StepRow {
    /// Id of the step.
    pub id: Foreign,
    /// State of the step.
    pub state: StateBadge,
    /// Reason of the state. Empty if the step succeeded.
    pub reason: Foreign,
    /// Duration with retries.
    pub duration: String,
}

/// An image that a run pushed or built.
#[derive(Debug)]
pub struct ImageRow {
    /// Full name.
    pub name: Foreign,
    /// Digest of the manifest or index.
    pub digest: String,
    /// Step that produced it.
    pub step: Foreign,
    /// Result: `pushed`, `staged` or `built, not pushed`.
    pub result: &'static str,
}

/// A base of an image, or an image that a step ran.
#[derive(Debug)]
pub struct BaseRow {
    /// Reference as requested.
    pub name: Foreign,
    /// Digest that was used.
    pub digest: String,
    /// Role of the base.
    pub role: &'static str,
    /// Step that used it.
    pub step: Foreign,
}

/// Verdict of one runner about a waiting run.
#[derive(Debug)]
pub struct WaitPart {
    /// Name of the runner.
    pub runner: Foreign,
    /// Obstacle.
    pub reason: Foreign,
}

/// Page of a run.
#[derive(Debug, Template)]
#[template(path = "run.html")]
pub struct RunPage {
    /// Frame of the page.
    pub frame: Frame,
    /// Id of the run.
    pub id: String,
    /// State of the run.
    pub state: StateBadge,
    /// Result in one sentence.
    pub sentence: Foreign,
    /// Name of its task.
    pub task: Option<String>,
    /// Cause of the run, one sentence each.
    pub causes: Vec<Foreign>,
    /// Run that this one repeats.
    pub rerun_of: Option<String>,
    /// Time of the request.
    pub created: Moment,
    /// Start of the current attempt.
    pub started: Option<Moment>,
    /// End of the run.
    pub finished: Option<Moment>,
    /// Name of the runner.
    pub runner: Option<Foreign>,
    /// Number of the attempt. 0 before the first lease.
    pub attempt: u32,
    /// Further facts: name and value.
    pub facts: Vec<(&'static str, Foreign)>,
    /// Verdicts of the runners about a waiting run.
    pub waits: Vec<WaitPart>,
    /// Steps in the order of the task file.
    pub steps: Vec<StepRow>,
    /// Images that the run built or pushed.
    pub images: Vec<ImageRow>,
    /// Bases of these images, and images that steps ran.
    pub bases: Vec<BaseRow>,
    /// Set if the run is finished.
    pub is_final: bool,
    /// Set if the end of the log is the interesting part.
    pub opens_at_end: bool,
}

impl RunPage {
    fn task_url(&self) -> String {
        task_url(self.task.as_deref().unwrap_or_default())
    }

    fn log_url(&self) -> String {
        let tail = if self.opens_at_end { "?tail=1" } else { "" };
        format!("/runs/{}/log{tail}", self.id)
    }
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
    /// Lines of the page.
    pub lines: Vec<LogLine>,
}

impl LogPage {
    fn last(&self) -> u64 {
        (self.first + self.lines.len() as u64).saturating_sub(1)
    }

    fn start_url(&self) -> String {
        self.url(&1)
    }

    fn url(&self, from: &u64) -> String {
        format!("{}&from={from}", self.base_url())
    }

    fn end_url(&self) -> String {
        format!("{}&tail=1", self.base_url())
    }

    fn all_url(&self) -> String {
        format!("/runs/{}/log?attempt={}", self.id, self.attempt)
    }

    fn base_url(&self) -> String {
        let step = self.step.as_ref();
        let step = step.map(|step| format!("&step={}", encode_query(step)));
        format!("{}{}", self.all_url(), step.unwrap_or_default())
    }

    fn step_name(&self) -> Option<Foreign> {
        self.step.as_ref().map(Foreign::line)
    }
}

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
    fn url(&self) -> String {
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
    fn next_url(&self) -> Option<String> {
        let next = self.next.as_deref()?;
        Some(format!("/tasks?after={}", encode_query(next)))
    }
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
}

impl TaskPage {
    fn runs_url(&self) -> String {
        format!("/runs?task={}", encode_query(&self.name))
    }
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

#[cfg(test)]
#[path = "views_tests.rs"]
mod tests;
