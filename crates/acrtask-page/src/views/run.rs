//! Views of one run. A live run replaces its parts while it executes.

use askama::{Template, filters::HtmlSafe};

use super::{Frame, LogExcerpt, task_url};
use crate::{Foreign, Moment, StateBadge, StepGraph, encode_path};

/// A step with its state.
#[derive(Debug)]
pub struct StepRow {
    /// Id of the step.
    pub id: Foreign,
    /// Path of the lines of the step in the log. Empty if the step has no lines.
    pub log_url: String,
    /// State of the step.
    pub state: StateBadge,
    /// Line of the task file. Empty if unknown.
    pub line: Foreign,
    /// Reason of the state. Empty if the step succeeded.
    pub reason: Foreign,
    /// Duration with retries. Empty before the start.
    pub duration: String,
    /// Start of a running step, in milliseconds since 1970, so that a script can count on.
    pub running_since: Option<i64>,
    /// Cached vertices of a build: `3 of 7`. Empty if there are none.
    pub cached: String,
    /// Start and width of the step in the timeline, in thousandths of its length.
    pub bar: Option<(u32, u32)>,
}

/// An image that a run pushed or built.
#[derive(Debug)]
pub struct ImageRow {
    /// Full name.
    pub name: Foreign,
    /// Digest of the manifest or index.
    pub digest: String,
    /// Name with the digest, for a pull of exactly this image. `None` if it was not pushed.
    pub pull: Option<String>,
    /// Path of the page of the image. `None` if it was not pushed.
    pub url: Option<String>,
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

/// Head of a run: state, sentence and facts.
#[derive(Debug, Template)]
#[template(path = "run_head.html")]
pub struct RunHead {
    /// Id of the run.
    pub id: String,
    /// State of the run.
    pub state: StateBadge,
    /// Result in one sentence.
    pub sentence: Foreign,
    /// Name of its task.
    pub task: Option<String>,
    /// Time of the request.
    pub created: Moment,
    /// Start of the current attempt.
    pub started: Option<Moment>,
    /// End of the run.
    pub finished: Option<Moment>,
    /// Duration so far. Empty before the start.
    pub duration: String,
    /// Start of a running run, in milliseconds since 1970.
    pub running_since: Option<i64>,
    /// Name of the runner.
    pub runner: Option<Foreign>,
    /// Number of the attempt. 0 before the first lease.
    pub attempt: u32,
    /// Cached vertices of all builds: `3 of 7`. Empty if there are none.
    pub cached: String,
    /// Further facts: name and value.
    pub facts: Vec<(&'static str, Foreign)>,
}

impl HtmlSafe for RunHead {}

impl RunHead {
    pub(super) fn task_url(&self) -> String {
        task_url(self.task.as_deref().unwrap_or_default())
    }
}

/// Changes of a run that its state and the session allow.
#[derive(Debug, Template)]
#[template(path = "run_actions.html")]
pub struct RunActions {
    /// Id of the run.
    pub id: String,
    /// Set if the run can be canceled.
    pub cancel: bool,
    /// Set if the run can be repeated.
    pub rerun: bool,
    /// Set if the run waits for an approval that the session may give.
    pub approve: bool,
    /// Commit to approve.
    pub commit: Foreign,
    /// Set if the run has a log.
    pub log: bool,
    /// Path of the log at the failure. `None` if there is none.
    pub failure_url: Option<String>,
}

impl HtmlSafe for RunActions {}

/// Steps of a run, the reason to wait, and the interesting part of its log.
#[derive(Debug, Template)]
#[template(path = "run_steps.html")]
pub struct RunSteps {
    /// Id of the run.
    pub id: String,
    /// Verdicts of the runners about a waiting run.
    pub waits: Vec<WaitPart>,
    /// Failed step with its last lines, or the last lines of a live run.
    pub excerpt: Option<LogExcerpt>,
    /// Dependencies of the steps. `None` if the steps form a chain.
    pub graph: Option<StepGraph>,
    /// Steps in the order of the task file.
    pub steps: Vec<StepRow>,
    /// Set if the run is finished.
    pub is_final: bool,
}

impl HtmlSafe for RunSteps {}

/// Images and bases of a run.
#[derive(Debug, Template)]
#[template(path = "run_outcome.html")]
pub struct RunOutcome {
    /// Images that the run built or pushed.
    pub images: Vec<ImageRow>,
    /// Bases of these images, and images that steps ran.
    pub bases: Vec<BaseRow>,
}

impl HtmlSafe for RunOutcome {}

/// Page of a run.
#[derive(Debug, Template)]
#[template(path = "run.html")]
pub struct RunPage {
    /// Frame of the page.
    pub frame: Frame,
    /// State, sentence and facts.
    pub head: RunHead,
    /// Possible changes.
    pub actions: RunActions,
    /// Cause of the run, one sentence each.
    pub causes: Vec<Foreign>,
    /// Delivery that started the run. `None` if it is unknown or hidden.
    pub delivery: Option<String>,
    /// Cascade that started the run.
    pub cascade: Option<u64>,
    /// Run that this one repeats.
    pub rerun_of: Option<String>,
    /// Steps and the interesting part of the log.
    pub steps: RunSteps,
    /// Images and bases.
    pub outcome: RunOutcome,
    /// Set if a script can notify the user of the end of the run.
    pub is_live: bool,
}

/// Returns the path of the page of an image.
pub(super) fn image_url(name: &str) -> String {
    format!("/images/{}", encode_path(name))
}
