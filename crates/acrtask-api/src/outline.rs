//! Outline of an attempt, folded from the events of its log. Pure.
//!
//! [`Outline::apply`] is the only fold of events into the state of a run. The server serves its
//! result, and the program renders it while it follows a run.
//!
//! Invariants: the number of entries is bounded, whatever the log contains. A step that the first
//! event did not list is added when its first event arrives, so that a partial log is readable.

use std::collections::{BTreeMap, HashMap};

use acrtask_model::{
    Digest, Event, EventKind, Outcome, RunId, StepId, StepState,
    events::{BaseRole, Evidence, Vertex},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Maximum number of steps.
pub const MAX_STEPS: usize = 10_000;
/// Maximum number of vertices of all steps.
pub const MAX_VERTICES: usize = 5_000;
/// Maximum number of images, and of bases.
pub const MAX_IMAGES: usize = 1_000;
/// Maximum number of steps of a base.
const MAX_STEPS_OF_BASE: usize = 100;

/// State of an attempt: steps, vertices, images and bases.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Outline {
    /// Id of the run. Absent before the first event.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub run: Option<RunId>,
    /// Start of the steps, by the clock of the runner.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub started_at: Option<Timestamp>,
    /// Name and version of the container engine.
    pub engine: String,
    /// Name and version of the builder.
    pub builder: String,
    /// Current preparation or cleanup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// Steps in the order of the task file.
    pub steps: Vec<StepOutline>,
    /// Images in the order of their creation.
    pub images: Vec<ImageOutline>,
    /// Bases, without duplicates.
    pub bases: Vec<BaseOutline>,
    /// End of the run. Absent until the run has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished: Option<RunEnd>,
    /// `true` if the log has more steps, vertices, images or bases than an outline contains.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_truncated: bool,
    #[serde(skip)]
    by_id: HashMap<String, usize>,
    #[serde(skip)]
    vertices: usize,
}

/// End of a run.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunEnd {
    /// State and reason.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    pub outcome: Outcome,
    /// Duration in milliseconds.
    pub elapsed_ms: u64,
    /// Resources that could not be removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remaining: Vec<String>,
}

/// State of a step.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepOutline {
    /// Id of the step.
    #[schema(value_type = String)]
    pub id: StepId,
    /// `build`, `cmd` or `push`. Empty if the log does not contain the plan.
    pub r#type: String,
    /// Line as written, without secrets.
    pub line: String,
    /// Ids of the steps that must finish first.
    #[schema(value_type = Vec<String>)]
    pub after: Vec<StepId>,
    /// State with its own keys, as in the events of a run.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    pub state: StepState,
    /// Number of the current step attempt, from 1. 0 before the first one.
    pub attempt: u32,
    /// Start of the first step attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub started_at: Option<Timestamp>,
    /// End of the step.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub finished_at: Option<Timestamp>,
    /// Duration in milliseconds, including retries. Absent until the step is finished.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub elapsed_ms: Option<u64>,
    /// Reason of the next step attempt while the step waits for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retrying: Option<String>,
    /// Number of lines of the step in the log.
    pub lines: u64,
    /// Size of the step's output in bytes.
    pub bytes: u64,
    /// Vertices of the current step attempt, in the order of their arrival.
    pub vertices: Vec<VertexOutline>,
    /// Last lines of output of a failed step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log_tail: Vec<String>,
    /// Failing lines of the Dockerfile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excerpt: Option<String>,
    #[serde(skip)]
    by_vertex: HashMap<String, usize>,
    /// Number of vertices that have started.
    #[serde(skip)]
    started_vertices: usize,
}

/// State of a vertex: one instruction of a build, one transfer.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct VertexOutline {
    /// Digest of the vertex.
    pub id: String,
    /// Number in starting order, from 1. 0 before the start.
    pub number: usize,
    /// Name of BuildKit: `[2/3] RUN make`.
    pub name: String,
    /// Digests of the vertices whose results it needs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<String>,
    /// Start time.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub started_at: Option<Timestamp>,
    /// End time.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub completed_at: Option<Timestamp>,
    /// `true` if the result came from the cache.
    pub cached: bool,
    /// Reason of its failure. Empty if it did not fail.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
}

/// Image that was built, and possibly pushed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageOutline {
    /// Full name.
    pub name: String,
    /// Digest. After a push, that of the manifest in the registry.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// `true` if the image is in a registry.
    pub pushed: bool,
    /// `true` if the image was pushed by its digest only.
    pub staged: bool,
    /// Digest of each manifest of an index, by platform.
    #[schema(value_type = Object)]
    pub platforms: BTreeMap<String, Digest>,
    /// Step that created the image.
    #[schema(value_type = String)]
    pub step: StepId,
}

/// Base image that steps used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BaseOutline {
    /// Name as requested.
    pub name: String,
    /// Resolved digest.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// Role of the base.
    #[schema(value_type = String)]
    pub role: BaseRole,
    /// Source of the digest.
    #[schema(value_type = String)]
    pub evidence: Evidence,
    /// Steps that used it.
    #[schema(value_type = Vec<String>)]
    pub steps: Vec<StepId>,
}

impl Outline {
    /// Returns the step `id`.
    pub fn step(&self, id: &StepId) -> Option<&StepOutline> {
        self.steps.iter().find(|step| step.id == *id)
    }

    /// Returns the position of the step `id`. Adds the step if it is missing. `None` if `id` is
    /// invalid or the outline is full.
    pub fn step_index(&mut self, id: &str) -> Option<usize> {
        if let Some(&at) = self.by_id.get(id) {
            return Some(at);
        }
        if self.steps.len() == MAX_STEPS {
            self.is_truncated = true;
            return None;
        }
        let step = StepId::new(id).ok()?;
        self.by_id.insert(id.to_owned(), self.steps.len());
        self.steps.push(StepOutline::new(step));
        Some(self.steps.len() - 1)
    }

    /// Applies the next event.
    pub fn apply(&mut self, event: &Event) {
        if self.run.is_none() {
            self.run = Some(event.run.clone());
        }
        let time = event.time;
        match &event.kind {
            EventKind::RunStarted {
                steps,
                engine,
                builder,
            } => {
                self.started_at = Some(time);
                self.engine.clone_from(engine);
                self.builder.clone_from(builder);
                for summary in steps {
                    if let Some(step) = self.step_mut(&summary.id) {
                        step.r#type.clone_from(&summary.r#type);
                        step.line.clone_from(&summary.line);
                        step.after.clone_from(&summary.after);
                    }
                }
            }
            EventKind::Progress { message } => self.progress = Some(message.clone()),
            EventKind::StepStarted { step, attempt } => {
                self.progress = None;
                let mut replaced = 0;
                if let Some(step) = self.step_mut(step) {
                    step.state = StepState::Running;
                    step.attempt = *attempt;
                    step.retrying = None;
                    step.started_at.get_or_insert(time);
                    replaced = step.vertices.len();
                    step.vertices.clear();
                    step.by_vertex.clear();
                    step.started_vertices = 0;
                }
                self.vertices -= replaced;
            }
            EventKind::Output { step, .. } | EventKind::Transfer { step, .. } => {
                self.step_index(step.as_str());
            }
            EventKind::Vertex { step, vertex } => {
                let is_full = self.vertices >= MAX_VERTICES;
                let added = self.step_mut(step).map(|step| step.apply(vertex, is_full));
                match added {
                    Some(Added::New) => self.vertices += 1,
                    Some(Added::Existing) => {}
                    Some(Added::Full) | None => self.is_truncated = true,
                }
            }
            EventKind::StepRetrying { step, reason, .. } => {
                if let Some(step) = self.step_mut(step) {
                    step.retrying = Some(reason.clone());
                }
            }
            EventKind::StepFinished {
                step,
                state,
                elapsed_ms,
                log_tail,
                excerpt,
            } => {
                if let Some(step) = self.step_mut(step) {
                    step.state = state.clone();
                    step.finished_at = Some(time);
                    step.elapsed_ms = Some(*elapsed_ms);
                    step.log_tail.clone_from(log_tail);
                    step.excerpt.clone_from(excerpt);
                    step.retrying = None;
                }
            }
            EventKind::ImageBuilt {
                step,
                names,
                digest,
            } => {
                for name in names {
                    if let Some(image) = self.image_mut(name, step, digest) {
                        image.digest = digest.clone();
                    }
                }
            }
            EventKind::ImagePushed {
                step,
                name,
                digest,
                platforms,
                tag_deferred,
            } => {
                if let Some(image) = self.image_mut(name, step, digest) {
                    image.pushed = true;
                    image.staged = *tag_deferred;
                    image.digest = digest.clone();
                    // For a single image, the manifest equals the pushed image.
                    let manifests = platforms.iter().filter(|(_, of_one)| *of_one != digest);
                    image.platforms = manifests.map(|(p, d)| (p.clone(), d.clone())).collect();
                }
            }
            EventKind::BaseUsed {
                step,
                role,
                name,
                digest,
                evidence,
                ..
            } => self.add_base(BaseOutline {
                name: name.clone(),
                digest: digest.clone(),
                role: *role,
                evidence: *evidence,
                steps: vec![step.clone()],
            }),
            EventKind::Warning { .. } | EventKind::TaskFile { .. } => {}
            EventKind::RunFinished {
                outcome,
                elapsed_ms,
                remaining,
            } => {
                self.progress = None;
                self.finished = Some(RunEnd {
                    outcome: outcome.clone(),
                    elapsed_ms: *elapsed_ms,
                    remaining: remaining.clone(),
                });
            }
        }
    }

    fn step_mut(&mut self, id: &StepId) -> Option<&mut StepOutline> {
        let at = self.step_index(id.as_str())?;
        self.steps.get_mut(at)
    }

    fn image_mut(
        &mut self,
        name: &str,
        step: &StepId,
        digest: &Digest,
    ) -> Option<&mut ImageOutline> {
        let at = match self.images.iter().position(|image| image.name == name) {
            Some(at) => at,
            None if self.images.len() == MAX_IMAGES => {
                self.is_truncated = true;
                return None;
            }
            None => {
                self.images.push(ImageOutline {
                    name: name.to_owned(),
                    digest: digest.clone(),
                    pushed: false,
                    staged: false,
                    platforms: BTreeMap::new(),
                    step: step.clone(),
                });
                self.images.len() - 1
            }
        };
        self.images.get_mut(at)
    }

    fn add_base(&mut self, base: BaseOutline) {
        let is_same = |other: &&mut BaseOutline| {
            other.name == base.name && other.digest == base.digest && other.role == base.role
        };
        let is_full = self.bases.len() == MAX_IMAGES;
        match self.bases.iter_mut().find(is_same) {
            Some(same) => {
                for step in base.steps {
                    if !same.steps.contains(&step) && same.steps.len() < MAX_STEPS_OF_BASE {
                        same.steps.push(step);
                    }
                }
            }
            None if is_full => self.is_truncated = true,
            None => self.bases.push(base),
        }
    }
}

/// Effect of a vertex event.
enum Added {
    New,
    Existing,
    /// The outline is full.
    Full,
}

impl StepOutline {
    fn new(id: StepId) -> Self {
        Self {
            id,
            r#type: String::new(),
            line: String::new(),
            after: Vec::new(),
            state: StepState::Pending,
            attempt: 0,
            started_at: None,
            finished_at: None,
            elapsed_ms: None,
            retrying: None,
            lines: 0,
            bytes: 0,
            vertices: Vec::new(),
            log_tail: Vec::new(),
            excerpt: None,
            by_vertex: HashMap::new(),
            started_vertices: 0,
        }
    }

    /// Returns the duration in milliseconds, so far or in total.
    pub fn elapsed_ms(&self, now: Timestamp) -> Option<u64> {
        self.elapsed_ms
            .or_else(|| Some(millis_between(self.started_at?, now)))
    }

    /// Returns the vertex with this digest. Use it only for an outline that was folded, not parsed.
    pub fn find_vertex(&self, digest: &str) -> Option<&VertexOutline> {
        self.by_vertex.get(digest).map(|&at| &self.vertices[at])
    }

    fn apply(&mut self, vertex: &Vertex, is_full: bool) -> Added {
        let position = self.by_vertex.get(&vertex.vertex).copied();
        let mut state = VertexOutline {
            id: vertex.vertex.clone(),
            number: position.map_or(0, |at| self.vertices[at].number),
            name: vertex.name.clone(),
            inputs: vertex.inputs.clone(),
            started_at: vertex.started,
            completed_at: vertex.completed,
            cached: vertex.cached,
            error: vertex.error.clone(),
        };
        if position.is_none() && is_full {
            return Added::Full;
        }
        let has_started = vertex.started.is_some() || vertex.completed.is_some();
        if has_started && state.number == 0 {
            self.started_vertices += 1;
            state.number = self.started_vertices;
        }
        match position {
            Some(at) => {
                self.vertices[at] = state;
                Added::Existing
            }
            None => {
                self.by_vertex
                    .insert(vertex.vertex.clone(), self.vertices.len());
                self.vertices.push(state);
                Added::New
            }
        }
    }
}

impl VertexOutline {
    /// Returns `true` while the vertex runs.
    pub fn is_running(&self) -> bool {
        self.started_at.is_some() && self.completed_at.is_none()
    }

    /// Returns the duration in milliseconds, so far or in total.
    pub fn elapsed_ms(&self, now: Timestamp) -> u64 {
        self.started_at.map_or(0, |started| {
            millis_between(started, self.completed_at.unwrap_or(now))
        })
    }
}

/// Returns the milliseconds between two times; 0 if the clock went back.
pub fn millis_between(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.duration_since(from).as_millis()).unwrap_or(0)
}

/// Outline of an attempt, as the API returns it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunOutline {
    /// Number of the attempt.
    pub attempt: u32,
    /// `true` if the log of the attempt cannot grow any more.
    pub is_complete: bool,
    /// Number of lines of the log, with the lines of the run itself.
    pub lines: u64,
    /// Size of the log in bytes.
    pub bytes: u64,
    /// Steps, vertices, images and bases.
    #[serde(flatten)]
    pub outline: Outline,
}

/// Lines of the log of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LogLines {
    /// Number of the attempt.
    pub attempt: u32,
    /// `true` if the log of the attempt cannot grow any more.
    pub is_complete: bool,
    /// Lines in the order of the log.
    pub lines: Vec<LogLine>,
    /// `cursor` of the lines after these. Absent if the log has no more lines yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// `cursor` of the lines before these. Absent at the start of the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
}

/// A line of a log. Its address is `STEP:NUMBER` within its attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LogLine {
    /// Step of the line. Empty for a line of the run itself.
    pub step: String,
    /// Number of the line among those of its step, from 1.
    pub number: u64,
    /// Time of the event that contains the line. Absent if the log has no valid time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub time: Option<Timestamp>,
    /// Text, masked, with the escape sequences of the step.
    pub text: String,
    /// `true` if the text was cut. The log has the whole line.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_cut: bool,
}

/// Item of the result of a search, one JSON object per line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum SearchItem {
    /// A line that matches.
    Hit(LogLine),
    /// End of the result.
    End(SearchEnd),
}

/// Counts of a search that has read the whole log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SearchEnd {
    /// Number of lines that match. The result contains at most `limit` of them.
    pub hits: u64,
    /// Number of lines that match, by step. The key of the run itself is empty.
    pub steps: BTreeMap<String, u64>,
    /// `true` if the log of the attempt cannot grow any more.
    pub is_complete: bool,
}
