//! The events of a run, folded into what stands on the screen and in the summary. Pure.
//!
//! Invariants: bounded memory, however much a step prints; an event of a step that the first event
//! did not name is accepted and makes one, so that a log that begins in the middle still reads.

use std::collections::{HashMap, VecDeque};

use acrtask_model::{
    Digest, Event, EventKind, Outcome, RunId, StepId, StepState,
    events::{BaseRole, Evidence, StepSummary, Vertex},
};
use jiff::Timestamp;

use super::text;

/// Last lines kept of each step and of each vertex.
const TAIL_LINES: usize = 10;
/// Characters kept of each of those.
const TAIL_WIDTH: usize = 400;

/// A run so far.
#[derive(Debug, Default)]
pub(crate) struct RunView {
    /// Its id, once an event said it.
    pub(crate) run: Option<RunId>,
    /// When it began.
    pub(crate) started: Option<Timestamp>,
    /// The engine, with its version.
    pub(crate) engine: String,
    /// The builder, with its version.
    pub(crate) builder: String,
    /// What is being prepared or cleaned up just now; of a run that waits, why it does.
    pub(crate) progress: Option<String>,
    /// It waits for a runner.
    pub(crate) waits: bool,
    /// The steps, in file order.
    pub(crate) steps: Vec<StepView>,
    /// Images, in the order in which they were made.
    pub(crate) images: Vec<ImageView>,
    /// Bases, each once.
    pub(crate) bases: Vec<BaseView>,
    /// How it ended.
    pub(crate) finished: Option<Finished>,
    by_id: HashMap<StepId, usize>,
}

/// The end of a run.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Its state and reason.
    pub(crate) outcome: Outcome,
    /// Milliseconds.
    pub(crate) elapsed_ms: u64,
    /// What was not removed.
    pub(crate) left: Vec<String>,
}

/// A step so far.
#[derive(Debug)]
pub(crate) struct StepView {
    /// As the run's first event lists it.
    pub(crate) summary: StepSummary,
    /// Where it stands.
    pub(crate) state: StepState,
    /// The attempt that runs, from 1; 0 before the first.
    pub(crate) attempt: u32,
    /// When the first attempt began.
    pub(crate) started: Option<Timestamp>,
    /// Milliseconds, once it is over.
    pub(crate) elapsed_ms: Option<u64>,
    /// While it waits for its next attempt: why.
    pub(crate) retrying: Option<String>,
    /// A build's vertices, in the order in which they came.
    pub(crate) vertices: Vec<VertexView>,
    /// Its last lines.
    pub(crate) tail: VecDeque<String>,
    /// What it ended with, for a failed one.
    pub(crate) log_tail: Vec<String>,
    /// The failing lines of the Dockerfile.
    pub(crate) excerpt: Option<String>,
    by_vertex: HashMap<String, usize>,
    /// Vertices that began.
    begun: usize,
}

/// A vertex so far.
#[derive(Debug)]
pub(crate) struct VertexView {
    /// From 1, in the order in which they began: `#5`; 0 before that.
    pub(crate) number: usize,
    /// As BuildKit last told it.
    pub(crate) vertex: Vertex,
    /// Its last lines.
    pub(crate) tail: VecDeque<String>,
    /// What it moves: id, bytes so far, bytes in all (0 where unknown), whether that is done.
    pub(crate) transfers: Vec<TransferView>,
}

/// Bytes on their way.
#[derive(Debug)]
pub(crate) struct TransferView {
    /// What is moved.
    pub(crate) id: String,
    /// Bytes so far.
    pub(crate) current: i64,
    /// Bytes in all, or 0.
    pub(crate) total: i64,
    /// Over.
    pub(crate) done: bool,
}

/// An image that was built, and perhaps pushed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ImageView {
    /// Its full name.
    pub(crate) name: String,
    /// Its digest: of the registry's manifest once it is pushed.
    pub(crate) digest: Digest,
    /// Whether a registry has it.
    pub(crate) pushed: bool,
    /// Whether it is there by its digest alone.
    pub(crate) held: bool,
    /// Platform and digest of each manifest, where it is an index.
    pub(crate) platforms: Vec<(String, Digest)>,
    /// The step that made it.
    pub(crate) step: StepId,
}

/// A base that was used.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BaseView {
    /// Its name, as it was asked for.
    pub(crate) name: String,
    /// What it was.
    pub(crate) digest: Digest,
    /// What for.
    pub(crate) role: BaseRole,
    /// How that is known.
    pub(crate) evidence: Evidence,
    /// The steps that used it.
    pub(crate) steps: Vec<StepId>,
}

impl RunView {
    /// The longest step id, in columns; at most `most`.
    pub(crate) fn id_width(&self, most: usize) -> usize {
        self.steps
            .iter()
            .map(|s| text::width(s.summary.id.as_str()))
            .max()
            .unwrap_or(0)
            .min(most)
    }

    /// The step `id`.
    pub(crate) fn step(&self, id: &StepId) -> Option<&StepView> {
        self.by_id.get(id).map(|&at| &self.steps[at])
    }

    /// Takes in what happened.
    pub(crate) fn apply(&mut self, event: &Event) {
        if self.run.is_none() {
            self.run = Some(event.run.clone());
        }
        // Something happens: it waits no longer.
        if std::mem::take(&mut self.waits) {
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
                    let at = self.at(&step.id);
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
                step.begun = 0;
                step.tail.clear();
            }
            EventKind::Output {
                step, vertex, text, ..
            } => {
                let step = self.step_mut(step);
                let lines: Vec<String> = text
                    .lines()
                    .map(|line| text::cut(&text::printed(line, false), TAIL_WIDTH))
                    .collect();
                if let Some(&at) = vertex.as_ref().and_then(|v| step.by_vertex.get(v)) {
                    keep(&mut step.vertices[at].tail, &lines);
                }
                keep(&mut step.tail, &lines);
            }
            EventKind::Vertex { step, vertex } => self.step_mut(step).vertex(vertex),
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
                        Some(known) => *known = now,
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
                // Only a running step shows these.
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
                    self.image(name).get_or_insert_image(step, digest, &[]);
                }
            }
            EventKind::ImagePushed {
                step,
                name,
                digest,
                platforms,
                held,
            } => {
                // The one of a single image is that image.
                let platforms: Vec<_> = platforms
                    .iter()
                    .filter(|(_, of_one)| *of_one != digest)
                    .map(|(p, d)| (p.clone(), d.clone()))
                    .collect();
                let image = self
                    .image(name)
                    .get_or_insert_image(step, digest, &platforms);
                image.pushed = true;
                image.held = *held;
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
                let same =
                    |b: &&mut BaseView| b.name == *name && b.digest == *digest && b.role == *role;
                match self.bases.iter_mut().find(same) {
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
                left,
            } => {
                self.progress = None;
                self.finished = Some(Finished {
                    outcome: outcome.clone(),
                    elapsed_ms: *elapsed_ms,
                    left: left.clone(),
                });
            }
        }
    }

    /// `run` has not begun: `why`.
    pub(crate) fn wait(&mut self, run: &RunId, why: &str) {
        if self.started.is_none() {
            self.run = Some(run.clone());
            self.waits = true;
            self.progress = Some(why.to_owned());
        }
    }

    fn image<'a>(&'a mut self, name: &'a str) -> ImageEntry<'a> {
        ImageEntry {
            images: &mut self.images,
            name,
        }
    }

    fn step_mut(&mut self, id: &StepId) -> &mut StepView {
        let at = self.at(id);
        &mut self.steps[at]
    }

    fn at(&mut self, id: &StepId) -> usize {
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
            begun: 0,
        });
        self.steps.len() - 1
    }
}

/// The place of an image in the list.
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
                    held: false,
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
    /// Milliseconds so far, or in all.
    pub(crate) fn elapsed_ms(&self, now: Timestamp) -> Option<u64> {
        self.elapsed_ms
            .or_else(|| self.started.map(|started| millis(started, now)))
    }

    /// The vertex with this digest.
    pub(crate) fn vertex_of(&self, digest: &str) -> Option<&VertexView> {
        self.by_vertex.get(digest).map(|&at| &self.vertices[at])
    }

    fn vertex(&mut self, vertex: &Vertex) {
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
        let known = &mut self.vertices[at];
        known.vertex = vertex.clone();
        let begun = vertex.started.is_some() || vertex.completed.is_some();
        if begun && known.number == 0 {
            self.begun += 1;
            known.number = self.begun;
        }
    }
}

impl VertexView {
    /// Runs now.
    pub(crate) fn is_running(&self) -> bool {
        self.vertex.started.is_some() && self.vertex.completed.is_none()
    }

    /// Milliseconds so far, or in all.
    pub(crate) fn elapsed_ms(&self, now: Timestamp) -> u64 {
        self.vertex.started.map_or(0, |started| {
            millis(started, self.vertex.completed.unwrap_or(now))
        })
    }
}

/// Milliseconds between two times; none where the clock went back.
pub(crate) fn millis(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.duration_since(from).as_millis()).unwrap_or(0)
}

fn keep(tail: &mut VecDeque<String>, lines: &[String]) {
    for line in lines {
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(line.clone());
    }
}
