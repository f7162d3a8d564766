//! State of a run for the live frame and the summary, folded from events. Pure.
//!
//! Invariants: memory is bounded, regardless of the output of a step. A step that the first event
//! did not list is added when its first event arrives, so that a partial log is readable.

use std::collections::{HashMap, VecDeque};

use acrtask_model::{
    Digest, Event, EventKind, Outcome, RunId, StepId, StepState,
    events::{BaseRole, Evidence, StepSummary, Vertex},
};
use jiff::Timestamp;

use super::text;

/// Maximum number of last lines kept for each step and each vertex.
const TAIL_LINES: usize = 10;
/// Maximum width of each of these lines in columns.
const TAIL_WIDTH: usize = 400;

/// Current state of a run.
#[derive(Debug, Default)]
pub(crate) struct RunView {
    /// Run id; `None` before the first event.
    pub(crate) run: Option<RunId>,
    /// Time of the first event.
    pub(crate) started: Option<Timestamp>,
    /// Name and version of the engine.
    pub(crate) engine: String,
    /// Name and version of the builder.
    pub(crate) builder: String,
    /// Current preparation or cleanup; for a waiting run, the reason.
    pub(crate) progress: Option<String>,
    /// Set while the run waits for a runner.
    pub(crate) is_waiting: bool,
    /// Steps in file order.
    pub(crate) steps: Vec<StepView>,
    /// Images in the order of their creation.
    pub(crate) images: Vec<ImageView>,
    /// Bases, without duplicates.
    pub(crate) bases: Vec<BaseView>,
    /// Outcome of the run; `None` until it is finished.
    pub(crate) finished: Option<Finished>,
    by_id: HashMap<StepId, usize>,
}

/// Outcome of a run.
#[derive(Debug)]
pub(crate) struct Finished {
    /// State and reason.
    pub(crate) outcome: Outcome,
    /// Duration in milliseconds.
    pub(crate) elapsed_ms: u64,
    /// Resources that could not be removed.
    pub(crate) remaining: Vec<String>,
}

/// Current state of a step.
#[derive(Debug)]
pub(crate) struct StepView {
    /// Description from the run's first event.
    pub(crate) summary: StepSummary,
    /// State of the step.
    pub(crate) state: StepState,
    /// Current attempt, counted from 1; 0 before the first.
    pub(crate) attempt: u32,
    /// Start of the first attempt.
    pub(crate) started: Option<Timestamp>,
    /// Duration in milliseconds; `None` until the step is finished.
    pub(crate) elapsed_ms: Option<u64>,
    /// Reason for the next attempt while the step waits for it.
    pub(crate) retrying: Option<String>,
    /// Vertices of a build in the order of their arrival.
    pub(crate) vertices: Vec<VertexView>,
    /// Last lines of output.
    pub(crate) tail: VecDeque<String>,
    /// Last lines of a failed step, from its final event.
    pub(crate) log_tail: Vec<String>,
    /// Failing lines of the Dockerfile.
    pub(crate) excerpt: Option<String>,
    by_vertex: HashMap<String, usize>,
    /// Number of vertices that have started.
    started_vertices: usize,
}

/// Current state of a vertex.
#[derive(Debug)]
pub(crate) struct VertexView {
    /// Number in starting order, counted from 1 (`#5`); 0 before the start.
    pub(crate) number: usize,
    /// Latest state from BuildKit.
    pub(crate) vertex: Vertex,
    /// Last lines of output.
    pub(crate) tail: VecDeque<String>,
    /// Data transfers of the vertex.
    pub(crate) transfers: Vec<TransferView>,
}

/// Data transfer.
#[derive(Debug)]
pub(crate) struct TransferView {
    /// Identifier of the data.
    pub(crate) id: String,
    /// Bytes transferred.
    pub(crate) current: i64,
    /// Total bytes; 0 if unknown.
    pub(crate) total: i64,
    /// Set when the transfer is complete.
    pub(crate) done: bool,
}

/// Image that was built, and possibly pushed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ImageView {
    /// Full name.
    pub(crate) name: String,
    /// Digest; after a push, that of the manifest in the registry.
    pub(crate) digest: Digest,
    /// Set if the image is in a registry.
    pub(crate) pushed: bool,
    /// Set if the image is staged: pushed by digest only.
    pub(crate) staged: bool,
    /// Platform and digest of each manifest of an index.
    pub(crate) platforms: Vec<(String, Digest)>,
    /// Step that created the image.
    pub(crate) step: StepId,
}

/// Base image that a step used.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BaseView {
    /// Name as requested.
    pub(crate) name: String,
    /// Resolved digest.
    pub(crate) digest: Digest,
    /// Role of the base.
    pub(crate) role: BaseRole,
    /// Source of the digest.
    pub(crate) evidence: Evidence,
    /// Steps that used it.
    pub(crate) steps: Vec<StepId>,
}

impl RunView {
    /// Returns the width of the longest step id, at most `most` columns.
    pub(crate) fn id_width(&self, most: usize) -> usize {
        self.steps
            .iter()
            .map(|s| text::display_width(s.summary.id.as_str()))
            .max()
            .unwrap_or(0)
            .min(most)
    }

    /// Returns the step `id`.
    pub(crate) fn step(&self, id: &StepId) -> Option<&StepView> {
        self.by_id.get(id).map(|&at| &self.steps[at])
    }

    /// Applies an event to the state.
    pub(crate) fn apply(&mut self, event: &Event) {
        if self.run.is_none() {
            self.run = Some(event.run.clone());
        }
        // The first event ends the wait for a runner.
        if std::mem::take(&mut self.is_waiting) {
            self.progress = None;
        }
        let time = event.time;
        match &event.kind {
            EventKind::RunStarted {
                steps,
                engine,
                builder,
            } => {
                self.started = Some(time);
                self.engine.clone_from(engine);
                self.builder.clone_from(builder);
                for step in steps {
                    let at = self.step_index(&step.id);
                    self.steps[at].summary = step.clone();
                }
            }
            EventKind::Progress { message } => self.progress = Some(message.clone()),
            EventKind::StepStarted { step, attempt } => {
                self.progress = None;
                let step = self.step_mut(step);
                step.state = StepState::Running;
                step.attempt = *attempt;
                step.retrying = None;
                step.started.get_or_insert(time);
                step.vertices.clear();
                step.by_vertex.clear();
                step.started_vertices = 0;
                step.tail.clear();
            }
            EventKind::Output {
                step, vertex, text, ..
            } => {
                let step = self.step_mut(step);
                let lines: Vec<String> = text
                    .lines()
                    .map(|line| text::truncate(&text::printed_line(line, false), TAIL_WIDTH))
                    .collect();
                if let Some(&at) = vertex.as_ref().and_then(|v| step.by_vertex.get(v)) {
                    push_tail(&mut step.vertices[at].tail, &lines);
                }
                push_tail(&mut step.tail, &lines);
            }
            EventKind::Vertex { step, vertex } => self.step_mut(step).apply_vertex(vertex),
            EventKind::Transfer {
                step,
                vertex,
                id,
                current,
                total,
                done,
            } => {
                let step = self.step_mut(step);
                if let Some(&at) = step.by_vertex.get(vertex) {
                    let transfers = &mut step.vertices[at].transfers;
                    let now = TransferView {
                        id: id.clone(),
                        current: *current,
                        total: *total,
                        done: *done,
                    };
                    match transfers.iter_mut().find(|t| t.id == *id) {
                        Some(transfer) => *transfer = now,
                        None => transfers.push(now),
                    }
                }
            }
            EventKind::StepRetrying { step, reason, .. } => {
                self.step_mut(step).retrying = Some(reason.clone())
            }
            EventKind::StepFinished {
                step,
                state,
                elapsed_ms,
                log_tail,
                excerpt,
            } => {
                let step = self.step_mut(step);
                step.state = state.clone();
                step.elapsed_ms = Some(*elapsed_ms);
                step.log_tail.clone_from(log_tail);
                step.excerpt.clone_from(excerpt);
                step.retrying = None;
                // Only the display of a running step needs these.
                step.vertices = Vec::new();
                step.by_vertex = HashMap::new();
                step.tail = VecDeque::new();
            }
            EventKind::ImageBuilt {
                step,
                names,
                digest,
            } => {
                for name in names {
                    self.image_entry(name)
                        .get_or_insert_image(step, digest, &[]);
                }
            }
            EventKind::ImagePushed {
                step,
                name,
                digest,
                platforms,
                tag_deferred,
            } => {
                // For a single image, the manifest equals the pushed image.
                let platforms: Vec<_> = platforms
                    .iter()
                    .filter(|(_, of_one)| *of_one != digest)
                    .map(|(p, d)| (p.clone(), d.clone()))
                    .collect();
                let image = self
                    .image_entry(name)
                    .get_or_insert_image(step, digest, &platforms);
                image.pushed = true;
                image.staged = *tag_deferred;
                image.digest = digest.clone();
                image.platforms = platforms;
            }
            EventKind::BaseUsed {
                step,
                role,
                name,
                digest,
                evidence,
                ..
            } => {
                let is_same =
                    |b: &&mut BaseView| b.name == *name && b.digest == *digest && b.role == *role;
                match self.bases.iter_mut().find(is_same) {
                    Some(base) if base.steps.contains(step) => {}
                    Some(base) => base.steps.push(step.clone()),
                    None => self.bases.push(BaseView {
                        name: name.clone(),
                        digest: digest.clone(),
                        role: *role,
                        evidence: *evidence,
                        steps: vec![step.clone()],
                    }),
                }
            }
            EventKind::Warning { .. } | EventKind::TaskFile { .. } => {}
            EventKind::RunFinished {
                outcome,
                elapsed_ms,
                remaining,
            } => {
                self.progress = None;
                self.finished = Some(Finished {
                    outcome: outcome.clone(),
                    elapsed_ms: *elapsed_ms,
                    remaining: remaining.clone(),
                });
            }
        }
    }

    /// Records why `run` has not started yet.
    pub(crate) fn set_waiting(&mut self, run: &RunId, why: &str) {
        if self.started.is_none() {
            self.run = Some(run.clone());
            self.is_waiting = true;
            self.progress = Some(why.to_owned());
        }
    }

    fn image_entry<'a>(&'a mut self, name: &'a str) -> ImageEntry<'a> {
        ImageEntry {
            images: &mut self.images,
            name,
        }
    }

    fn step_mut(&mut self, id: &StepId) -> &mut StepView {
        let at = self.step_index(id);
        &mut self.steps[at]
    }

    fn step_index(&mut self, id: &StepId) -> usize {
        if let Some(&at) = self.by_id.get(id) {
            return at;
        }
        self.by_id.insert(id.clone(), self.steps.len());
        self.steps.push(StepView {
            summary: StepSummary {
                id: id.clone(),
                r#type: String::new(),
                line: String::new(),
                after: Vec::new(),
            },
            state: StepState::Pending,
            attempt: 0,
            started: None,
            elapsed_ms: None,
            retrying: None,
            vertices: Vec::new(),
            tail: VecDeque::new(),
            log_tail: Vec::new(),
            excerpt: None,
            by_vertex: HashMap::new(),
            started_vertices: 0,
        });
        self.steps.len() - 1
    }
}

/// Slot of an image in the list.
struct ImageEntry<'a> {
    images: &'a mut Vec<ImageView>,
    name: &'a str,
}

impl<'a> ImageEntry<'a> {
    fn get_or_insert_image(
        self,
        step: &StepId,
        digest: &Digest,
        platforms: &[(String, Digest)],
    ) -> &'a mut ImageView {
        let at = self
            .images
            .iter()
            .position(|i| i.name == self.name)
            .unwrap_or_else(|| {
                self.images.push(ImageView {
                    name: self.name.to_owned(),
                    digest: digest.clone(),
                    pushed: false,
                    staged: false,
                    platforms: platforms.to_vec(),
                    step: step.clone(),
                });
                self.images.len() - 1
            });
        let image = &mut self.images[at];
        image.digest = digest.clone();
        image
    }
}

impl StepView {
    /// Returns the duration in milliseconds, so far or in total.
    pub(crate) fn elapsed_ms(&self, now: Timestamp) -> Option<u64> {
        self.elapsed_ms
            .or_else(|| self.started.map(|started| millis_between(started, now)))
    }

    /// Returns the vertex with this digest.
    pub(crate) fn find_vertex(&self, digest: &str) -> Option<&VertexView> {
        self.by_vertex.get(digest).map(|&at| &self.vertices[at])
    }

    fn apply_vertex(&mut self, vertex: &Vertex) {
        let at = *self
            .by_vertex
            .entry(vertex.vertex.clone())
            .or_insert_with(|| {
                self.vertices.push(VertexView {
                    number: 0,
                    vertex: vertex.clone(),
                    tail: VecDeque::new(),
                    transfers: Vec::new(),
                });
                self.vertices.len() - 1
            });
        let view = &mut self.vertices[at];
        view.vertex = vertex.clone();
        let has_started = vertex.started.is_some() || vertex.completed.is_some();
        if has_started && view.number == 0 {
            self.started_vertices += 1;
            view.number = self.started_vertices;
        }
    }
}

impl VertexView {
    /// Returns `true` while the vertex runs.
    pub(crate) fn is_running(&self) -> bool {
        self.vertex.started.is_some() && self.vertex.completed.is_none()
    }

    /// Returns the duration in milliseconds, so far or in total.
    pub(crate) fn elapsed_ms(&self, now: Timestamp) -> u64 {
        self.vertex.started.map_or(0, |started| {
            millis_between(started, self.vertex.completed.unwrap_or(now))
        })
    }
}

/// Returns the milliseconds between two times; 0 if the clock went back.
pub(crate) fn millis_between(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.duration_since(from).as_millis()).unwrap_or(0)
}

fn push_tail(tail: &mut VecDeque<String>, lines: &[String]) {
    for line in lines {
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(line.clone());
    }
}
