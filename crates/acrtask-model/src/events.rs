//! The events of a run. `acrtask run -o json` prints one [`Event`] per line.
//!
//! The schema only grows: a reader must accept unknown keys and events. Text in `output` has been
//! masked (see [`crate::mask`]).

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    ids::{RunId, StepId},
    reference::Digest,
    state::{Outcome, StepState},
};

/// An event of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Time of the event, by the clock of the machine that executes the run.
    pub time: Timestamp,
    /// Id of the run.
    pub run: RunId,
    /// The event with its data.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// The kinds of events, with their data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// A runner has read the task file. Precedes the first event of the run itself, or replaces it
    /// if the file is refused. `acrtask run` on the user's own machine prints the same on standard
    /// error.
    TaskFile {
        /// Name of the file.
        name: String,
        /// Content of the file, as written.
        text: String,
        /// Errors and warnings, in the order of the file. If one is an error, nothing is started.
        problems: Vec<FileProblem>,
    },
    /// The run begins. This is the first event.
    RunStarted {
        /// Every step of the plan, in file order.
        steps: Vec<StepSummary>,
        /// The engine that runs containers, with its version.
        engine: String,
        /// The BuildKit endpoint that builds images, with its version if it reports one.
        builder: String,
    },
    /// Preparation or cleanup is in progress: a checkout of the context, the removal of orphans.
    Progress {
        /// Description of the activity, in one line.
        message: String,
    },
    /// A step begins an attempt.
    StepStarted {
        /// Id of the step.
        step: StepId,
        /// Number of the attempt, from 1.
        attempt: u32,
    },
    /// Output of a step: complete lines without their line end, and possibly an unfinished last
    /// one.
    Output {
        /// Id of the step.
        step: StepId,
        /// The stream of the output.
        stream: Stream,
        /// For a build: the vertex that printed it.
        #[serde(skip_serializing_if = "Option::is_none")]
        vertex: Option<String>,
        /// The text, masked. Bytes that are not UTF-8 are replaced.
        text: String,
    },
    /// The state of a build's vertex has changed.
    Vertex {
        /// Id of the step.
        step: StepId,
        /// The current state of the vertex.
        #[serde(flatten)]
        vertex: Vertex,
    },
    /// Progress of a transfer in a vertex: bytes of a layer or of the context.
    Transfer {
        /// Id of the step.
        step: StepId,
        /// The vertex of the transfer.
        vertex: String,
        /// Name of the transferred object.
        id: String,
        /// Number of bytes transferred so far.
        current: i64,
        /// Total number of bytes; 0 if unknown.
        total: i64,
        /// Set when the transfer is complete.
        done: bool,
    },
    /// An attempt failed, and another one follows.
    StepRetrying {
        /// Id of the step.
        step: StepId,
        /// Number of the failed attempt, from 1.
        attempt: u32,
        /// Delay before the next attempt, in seconds.
        delay_secs: u64,
        /// Reason of the failure.
        reason: String,
    },
    /// A step reached a final state.
    StepFinished {
        /// Id of the step.
        step: StepId,
        /// The final state.
        #[serde(flatten)]
        state: StepState,
        /// Duration of the step in milliseconds, including retries and delays.
        elapsed_ms: u64,
        /// For a failed step: its last lines of output.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        log_tail: Vec<String>,
        /// For a failed build: the lines of the Dockerfile, with the failing ones marked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        excerpt: Option<String>,
    },
    /// A build step built an image.
    ImageBuilt {
        /// Id of the step.
        step: StepId,
        /// The names of the image.
        names: Vec<String>,
        /// Digest of the manifest or index.
        digest: Digest,
    },
    /// An image reached its registry.
    ImagePushed {
        /// Id of the step.
        step: StepId,
        /// The full name with its tag. For a staged image, the tag that it receives at promotion.
        name: String,
        /// Digest of the manifest or index in the registry.
        digest: Digest,
        /// Digest of each platform's manifest. For a single image, its own digest. Empty if the
        /// platform is unknown.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        platforms: BTreeMap<String, Digest>,
        /// Set if the run pushed the image by its digest only and left the tag unchanged.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        tag_deferred: bool,
    },
    /// A base of a built image, or an image that a step ran.
    BaseUsed {
        /// Id of the step.
        step: StepId,
        /// The use of the image in the step.
        role: BaseRole,
        /// The name as the task wrote it.
        name: String,
        /// Digest of the used image.
        digest: Digest,
        /// Source of the digest.
        evidence: Evidence,
        /// Platforms for which it was used, sorted: `linux/arm64`. Empty if unknown.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        platforms: Vec<String>,
    },
    /// A warning that does not stop the run.
    Warning {
        /// Id of the affected step, if any.
        #[serde(skip_serializing_if = "Option::is_none")]
        step: Option<StepId>,
        /// The warning, in one sentence.
        message: String,
        /// A remedy.
        #[serde(skip_serializing_if = "Option::is_none")]
        help: Option<String>,
    },
    /// The run has ended. This is the last event.
    RunFinished {
        /// Final state of the run, with its reason.
        #[serde(flatten)]
        outcome: Outcome,
        /// Duration of the run in milliseconds.
        elapsed_ms: u64,
        /// Objects that could not be removed, or that the task asked to keep: `container NAME`,
        /// `network NAME` ...
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        remaining: Vec<String>,
    },
}

/// A problem of a task file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileProblem {
    /// Stable identifier of the kind of problem, such as `unknown-key`.
    pub code: String,
    /// Set if the problem prevents a run.
    pub error: bool,
    /// Description of the problem, in one sentence.
    pub message: String,
    /// The text to write instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// Locations of the problem, the most relevant one first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spans: Vec<SourceSpan>,
}

/// A range of bytes in a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceSpan {
    /// Offset of the first byte.
    pub start: usize,
    /// Offset after the last byte.
    pub end: usize,
    /// Label of the range. May be empty.
    pub text: String,
}

/// A step in the first event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepSummary {
    /// Id of the step.
    pub id: StepId,
    /// `build`, `cmd` or `push`.
    pub r#type: String,
    /// The line as written, without secrets.
    pub line: String,
    /// Ids of the steps that must finish first.
    pub after: Vec<StepId>,
}

/// The stream of a step's output.
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
    /// Digest of the vertex, which identifies it in later events.
    pub vertex: String,
    /// BuildKit's name of the vertex: `[2/3] RUN make`.
    pub name: String,
    /// Digests of the vertices whose results this one needs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<String>,
    /// Start time. `None` if the vertex has not started.
    pub started: Option<Timestamp>,
    /// End time. `None` if the vertex has not ended.
    pub completed: Option<Timestamp>,
    /// Set if its result came from the cache.
    pub cached: bool,
    /// Reason of its failure. Empty if it has not failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
}

/// The use of an image in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BaseRole {
    /// The base of the final stage of the built image.
    Runtime,
    /// The base of another stage, or an image in `COPY --from` or `RUN --mount=from`.
    BuildTime,
    /// The frontend in `# syntax`.
    Frontend,
    /// The image that a `cmd` step ran.
    Cmd,
}

/// The source of a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// BuildKit's own provenance contains the digest.
    Provenance,
    /// BuildKit resolved the name to this digest in the progress of the build.
    Resolved,
    /// The engine ran a container from this digest.
    Engine,
}
