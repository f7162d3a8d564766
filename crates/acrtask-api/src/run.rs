//! Runs in requests and responses.

use std::collections::BTreeMap;

use acrtask_model::{
    Digest, RunId, RunState, StepId, StepState,
    events::{BaseRole, Evidence},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::forms::{
    ContentDigest, ContextPath, Host, NewRunId, SecretName, SecretValue, Username, VariableValue,
};

use crate::{
    spec::{ContextSource, RunSpec},
    task::QueueOptions,
};

/// Request to create a run without a stored task.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateRun {
    /// Id of the new run. If absent, the server chooses one. An existing id is a conflict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<NewRunId>)]
    pub id: Option<RunId>,
    /// Run specification.
    pub spec: RunSpec,
    /// Pool, labels, priority and concurrency group.
    #[serde(default)]
    pub queue: QueueOptions,
    /// Values of secrets for this run only. The server adds their names to `spec.secrets` and never
    /// returns the values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<SecretName, SecretValue>)]
    pub secrets: BTreeMap<String, SecretText>,
    /// Registry credentials for this run only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub credentials: Vec<RunCredential>,
}

/// Request to start a run of a stored task.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct StartTask {
    /// Values that override those of the task.
    #[schema(value_type = BTreeMap<String, VariableValue>)]
    pub set: BTreeMap<String, String>,
    /// Values of secrets for this run only.
    #[schema(value_type = BTreeMap<SecretName, SecretValue>)]
    pub secrets: BTreeMap<String, SecretText>,
    /// Context that replaces the one of the task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<ContextSource>,
    /// Path of a task file in the context that replaces the one of the task.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<ContextPath>)]
    pub file: Option<String>,
    /// Priority that replaces the one of the task.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = -10, maximum = 10)]
    pub priority: Option<i32>,
    /// Build and test, but push nothing.
    pub no_push: bool,
}

/// Secret in a request. Its `Debug` output is `[secret]`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct SecretText(pub String);

impl std::fmt::Debug for SecretText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[secret]")
    }
}

/// Registry credential for a single run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunCredential {
    /// Host, with or without a port.
    #[schema(value_type = Host)]
    pub host: String,
    /// User name.
    #[schema(value_type = Username)]
    pub username: String,
    /// Password or token.
    #[schema(value_type = SecretValue)]
    pub password: SecretText,
}

/// Run with its specification and result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// Id of the run.
    #[schema(value_type = String)]
    pub id: RunId,
    /// Name of the stored task. Absent if the run belongs to no task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// State of the run.
    #[schema(value_type = String)]
    pub state: RunState,
    /// Reason for the final state, or for waiting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Trigger: `manual`, `rerun`, `task` ...
    pub trigger: String,
    /// Name of the token that requested the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<String>,
    /// Id of the run that this run repeats.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub rerun_of: Option<RunId>,
    /// Number of the current attempt, from 1. 0 before the first lease.
    pub attempt: u32,
    /// Name of the runner of the current attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runner: Option<String>,
    /// Pool, labels, priority and concurrency group.
    pub queue: QueueOptions,
    /// Run specification.
    pub spec: RunSpec,
    /// Time of the request.
    #[schema(value_type = String)]
    pub created_at: Timestamp,
    /// Start of the current attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub started_at: Option<Timestamp>,
    /// End of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub finished_at: Option<Timestamp>,
    /// `true` if a user requested cancellation.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancel_requested: bool,
    /// Size of the log in bytes.
    pub log_length: u64,
    /// Result. Absent until the run ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<RunResult>,
    /// Trust domain, as a human-readable text. Only runs of the same domain share caches.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Approval of a commit from another repository. Absent if the run needs no approval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<Approval>,
    /// Name of the token that approved the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved_by: Option<String>,
    /// Timer firing that started the run. Only in the response for a single run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firing: Option<crate::timer::Firing>,
    /// Cascade that started the run, with the digest changes that made it necessary. Only in
    /// responses for single runs and lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cascade: Option<crate::cascade::CascadeOfRun>,
}

/// Run in a list, without its specification and result, which can be large. `GET /runs/{id}`
/// returns them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunSummary {
    /// Id of the run.
    #[schema(value_type = String)]
    pub id: RunId,
    /// Name of the stored task. Absent if the run belongs to no task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// State of the run.
    #[schema(value_type = String)]
    pub state: RunState,
    /// Reason for the final state, or for waiting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Trigger: `manual`, `rerun`, `task` ...
    pub trigger: String,
    /// Name of the token that requested the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<String>,
    /// Id of the run that this run repeats.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub rerun_of: Option<RunId>,
    /// Number of the current attempt, from 1. 0 before the first lease.
    pub attempt: u32,
    /// Name of the runner of the current attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runner: Option<String>,
    /// Pool, labels, priority and concurrency group.
    pub queue: QueueOptions,
    /// Time of the request.
    #[schema(value_type = String)]
    pub created_at: Timestamp,
    /// Start of the current attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub started_at: Option<Timestamp>,
    /// End of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub finished_at: Option<Timestamp>,
    /// `true` if a user requested cancellation.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancel_requested: bool,
    /// Size of the log in bytes.
    pub log_length: u64,
    /// Approval of a commit from another repository. Absent if the run needs no approval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<Approval>,
    /// Branch and tag of the commit, as a human-readable text. Present only while the run waits for
    /// approval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Name of the token that approved the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved_by: Option<String>,
    /// Cascade that started the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cascade: Option<crate::cascade::CascadeOfRun>,
}

/// Approval of a run whose commit comes from another repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Approval {
    /// The run waits for the approval of its commit.
    Pending,
    /// A user approved the commit.
    Approved,
}

/// Reason of a run with a rejected task file. The log of the run contains the diagnostics.
pub const TASK_FILE_REFUSED: &str = "the task file was refused";

/// Result of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RunResult {
    /// `true` if the task file or the run specification was rejected and nothing started.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub refused: bool,
    /// Steps in the order of the task file.
    pub steps: Vec<StepResult>,
    /// Images that builds produced.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub built: Vec<BuiltResult>,
    /// Images that the run pushed.
    pub images: Vec<ImageResult>,
    /// Base images of builds, and images that steps ran.
    pub bases: Vec<BaseResult>,
    /// Number of build vertices that came from a cache.
    pub cached_vertices: u64,
    /// Number of all build vertices.
    pub vertices: u64,
    /// Run variables with the values that the runner found: commit, branch ...
    pub variables: crate::spec::Variables,
}

/// Finished step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepResult {
    /// Id of the step.
    #[schema(value_type = String)]
    pub id: StepId,
    /// Final state.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    pub state: StepState,
    /// Start of the first attempt. Absent if the step never started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub started_at: Option<Timestamp>,
    /// Duration in milliseconds, including retries.
    pub elapsed_ms: u64,
}

/// Image that a step built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BuiltResult {
    /// Id of the step.
    #[schema(value_type = String)]
    pub step: StepId,
    /// Names of the image, with their tags.
    pub names: Vec<String>,
    /// Digest of the manifest or index.
    #[schema(value_type = String)]
    pub digest: Digest,
}

/// Image that a step pushed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageResult {
    /// Id of the step.
    #[schema(value_type = String)]
    pub step: StepId,
    /// Full name with the tag.
    pub name: String,
    /// Digest in the registry.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// Digests by platform. A single-platform image has its own digest here. Empty if the platform
    /// is unknown.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = Object)]
    pub platforms: BTreeMap<String, Digest>,
    /// `true` if the run pushed the image by its digest only and left the tag unchanged.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub staged: bool,
}

/// Base image of a build, or image that a step ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BaseResult {
    /// Id of the step.
    #[schema(value_type = String)]
    pub step: StepId,
    /// Role of the base.
    #[schema(value_type = String)]
    pub role: BaseRole,
    /// Reference as requested.
    pub name: String,
    /// Digest that was used.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// Evidence for the digest.
    #[schema(value_type = String)]
    pub evidence: Evidence,
    /// Platforms that the base was used for: `linux/arm64`. Empty if they are unknown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<String>,
}

/// Request to cancel a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CancelRun {
    /// Reason. If absent, the reason names the token of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 500)]
    pub reason: Option<String>,
}

/// Attempt: one lease of a run by a runner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// Number of the attempt, from 1.
    pub attempt: u32,
    /// Name of the runner.
    pub runner: String,
    /// Start of the lease.
    #[schema(value_type = String)]
    pub leased_at: Timestamp,
    /// Start of the steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub started_at: Option<Timestamp>,
    /// End of the attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub ended_at: Option<Timestamp>,
    /// Outcome: a final run state, `declined` or `lost`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// Size of the log of this attempt in bytes.
    pub log_length: u64,
}

/// Explanation why a run waits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    /// Number of runs ahead in the queue. Absent if the run does not wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ahead: Option<u64>,
    /// Explanation in one sentence.
    pub summary: String,
    /// Verdict for each runner.
    pub runners: Vec<RunnerVerdict>,
    /// Run that occupies the concurrency group.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub blocked_by: Option<RunId>,
}

/// Verdict whether a runner can execute a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunnerVerdict {
    /// Name of the runner.
    pub runner: String,
    /// `true` if the runner meets all requirements of the run, even if it is busy now.
    pub matches: bool,
    /// Obstacle: `offline`, `no free slot`, `pool is x`, `lacks the label a=b`, `is linux/arm64`.
    /// `free` if there is none.
    pub reason: String,
}

/// Page of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Page<T> {
    /// Entries of this page.
    pub items: Vec<T>,
    /// Cursor of the next page. Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Upload of a context.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Context {
    /// Id for `context.id` in a run specification.
    pub id: String,
    /// Number of received bytes. The next part starts at this offset.
    pub received: u64,
    /// Total size in bytes.
    pub size: u64,
    /// `true` if all bytes arrived and their digest is correct.
    pub complete: bool,
    /// Maximum size of one part in bytes.
    pub part_limit: u64,
}

impl Context {
    /// Maximum number of parts.
    pub const MAX_PARTS: u64 = 10_000;
    /// Minimum size of a part that is not the last, in bytes, unless `part_limit` is less.
    pub const MIN_PART: u64 = 1 << 20;

    /// Returns the minimum size of a part that is not the last, in bytes.
    pub fn min_part(&self) -> u64 {
        let even = self.size.div_ceil(Self::MAX_PARTS);
        Self::MIN_PART.max(even).min(self.part_limit)
    }
}

/// Request to start an upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateContext {
    /// Total size in bytes.
    #[schema(minimum = 1)]
    pub size: u64,
    /// Digest of the whole content: `sha256:...`. If the server already stores this content, the
    /// upload completes immediately.
    #[schema(value_type = ContentDigest)]
    pub digest: Digest,
}
