//! What a run tells while it runs. `acrtask run -o json` prints one [`Event`] a line.
//!
//! The schema only grows: a reader must accept keys and events that it does not know. Text in
//! `output` has been masked (see [`crate::mask`]).

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    ids::{RunId, StepId},
    reference::Digest,
    state::{Outcome, StepState},
};

/// One thing that happened in a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When, by the clock of the machine that runs it.
    pub time: Timestamp,
    /// Which run.
    pub run: RunId,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// What was found in the task file, where a runner read it: before the first event of the run itself, or in its
    /// place where the file is refused. `acrtask run` on one's own machine says the same on standard error.
    TaskFile {
        /// The file's name.
        name: String,
        /// What it holds, as written.
        text: String,
        /// Errors and warnings, in the order of the file; with an error among them nothing is started.
        problems: Vec<FileProblem>,
    },
    /// The run begins. The first event.
    RunStarted {
        /// Every step of the plan, in file order.
        steps: Vec<StepSummary>,
        /// The engine that runs containers, with its version.
        engine: String,
        /// The BuildKit endpoint that builds, with its version where it tells one.
        builder: String,
    },
    /// Something is being prepared or cleaned up: the context checked out, leftovers removed.
    Progress {
        /// What, in one line.
        message: String,
    },
    /// A step begins an attempt.
    StepStarted {
        /// The step.
        step: StepId,
        /// From 1; higher for retries.
        attempt: u32,
    },
    /// A step printed something: whole lines without their line end, except for a last unfinished one.
    Output {
        /// The step.
        step: StepId,
        /// Where it printed it.
        stream: Stream,
        /// For a build: the vertex that printed it.
        #[serde(skip_serializing_if = "Option::is_none")]
        vertex: Option<String>,
        /// The text, masked; bytes that are not UTF-8 are replaced.
        text: String,
    },
    /// A vertex of a build changed.
    Vertex {
        /// The step.
        step: StepId,
        /// The vertex.
        #[serde(flatten)]
        vertex: Vertex,
    },
    /// A part of a vertex moved on: bytes of a layer or of the context.
    Transfer {
        /// The step.
        step: StepId,
        /// The vertex that it belongs to.
        vertex: String,
        /// What is moved.
        id: String,
        /// Bytes so far.
        current: i64,
        /// Bytes in all; 0 where unknown.
        total: i64,
        /// True when it is done.
        done: bool,
    },
    /// An attempt failed, and another one follows.
    StepRetrying {
        /// The step.
        step: StepId,
        /// The number of the attempt that failed, from 1.
        attempt: u32,
        /// The wait before the next one, in seconds.
        delay_secs: u64,
        /// Why it failed.
        reason: String,
    },
    /// A step reached a final state.
    StepFinished {
        /// The step.
        step: StepId,
        /// Its state.
        #[serde(flatten)]
        state: StepState,
        /// How long it took, retries and delays included, in milliseconds.
        elapsed_ms: u64,
        /// For a failed step: its last lines of output.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        log_tail: Vec<String>,
        /// For a failed build: the lines of the Dockerfile with the failing ones marked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        excerpt: Option<String>,
    },
    /// A build step made an image.
    ImageBuilt {
        /// The step.
        step: StepId,
        /// The names that it was given.
        names: Vec<String>,
        /// The digest of its manifest or index.
        digest: Digest,
    },
    /// An image reached its registry.
    ImagePushed {
        /// The step.
        step: StepId,
        /// The full name with its tag; where it is held, with the tag that it is to get.
        name: String,
        /// The digest of the manifest or index in the registry.
        digest: Digest,
        /// The digest of each platform's manifest; of a single image, its own. Empty where its platform is not known.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        platforms: BTreeMap<String, Digest>,
        /// It is there by its digest alone; the tag is as it was.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        held: bool,
    },
    /// An image that was built stands on, or a step ran, this other one.
    BaseUsed {
        /// The step.
        step: StepId,
        /// What it is to the image.
        role: BaseRole,
        /// Its name as it was asked for.
        name: String,
        /// What was used of it.
        digest: Digest,
        /// How this is known.
        evidence: Evidence,
        /// The platforms that it was used for, sorted: `linux/arm64`. Empty where that is not known.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        platforms: Vec<String>,
    },
    /// Something that the user should know but that stops nothing.
    Warning {
        /// The step that it is about, if any.
        #[serde(skip_serializing_if = "Option::is_none")]
        step: Option<StepId>,
        /// What.
        message: String,
        /// What to do about it.
        #[serde(skip_serializing_if = "Option::is_none")]
        help: Option<String>,
    },
    /// The run is over. The last event.
    RunFinished {
        /// How it ended.
        #[serde(flatten)]
        outcome: Outcome,
        /// How long it took, in milliseconds.
        elapsed_ms: u64,
        /// What could not be removed, or was kept because the task said so: `container NAME`, `network NAME` ...
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        left: Vec<String>,
    },
}

/// A problem of a task file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileProblem {
    /// Which kind: stable, like `unknown-key`.
    pub code: String,
    /// It stands in the way of a run.
    pub error: bool,
    /// What is wrong, in one sentence.
    pub message: String,
    /// What to write instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// Where. The first is the place to go to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub places: Vec<Place>,
}

/// A place in a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its first byte.
    pub start: usize,
    /// The byte after its last one.
    pub end: usize,
    /// What is there; may be empty.
    pub text: String,
}

/// A step as the first event lists it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepSummary {
    /// Its id.
    pub id: StepId,
    /// `build`, `cmd` or `push`.
    pub r#type: String,
    /// The line as written, without secrets.
    pub line: String,
    /// The steps that must finish first.
    pub after: Vec<StepId>,
}

/// Where a step printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A vertex of a build: one instruction, one transfer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Vertex {
    /// Its digest: the key that later events of the same vertex carry.
    pub vertex: String,
    /// What it does, as BuildKit says it: `[2/3] RUN make`.
    pub name: String,
    /// When it began, if it did.
    pub started: Option<Timestamp>,
    /// When it ended, if it did.
    pub completed: Option<Timestamp>,
    /// True where its result came from the cache.
    pub cached: bool,
    /// Why it failed; empty otherwise.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
}

/// What an image is to what was made or run with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BaseRole {
    /// The base of the final stage: what the built image stands on.
    Runtime,
    /// The base of another stage, or an image that `COPY --from` or `RUN --mount=from` names.
    BuildTime,
    /// The frontend that `# syntax` names.
    Frontend,
    /// The image that a `cmd` step ran.
    Ran,
}

/// How a digest is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// BuildKit's own provenance says so.
    Provenance,
    /// BuildKit resolved the name to this digest in the progress of the build.
    Resolved,
    /// The engine ran a container from this digest.
    Engine,
}
