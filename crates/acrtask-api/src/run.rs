//! Runs, as the API shows them.

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

/// A request for a run that belongs to no stored task.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateRun {
    /// The id that it is to have; nothing: one of the server's choice. One that is taken is a conflict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<NewRunId>)]
    pub id: Option<RunId>,
    /// What it is to do.
    pub spec: RunSpec,
    /// Where and when it may run.
    #[serde(default)]
    pub queue: QueueOptions,
    /// Values of secrets of this run alone; their names are added to `spec.secrets`. Never shown again.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<SecretName, SecretValue>)]
    pub secrets: BTreeMap<String, SecretText>,
    /// Logins for registries that hold for this run alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub credentials: Vec<RunCredential>,
}

/// A request for a run of a stored task.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct StartTask {
    /// Values that win over those of the task.
    #[schema(value_type = BTreeMap<String, VariableValue>)]
    pub set: BTreeMap<String, String>,
    /// Values of secrets of this run alone.
    #[schema(value_type = BTreeMap<SecretName, SecretValue>)]
    pub secrets: BTreeMap<String, SecretText>,
    /// Other files than the task's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<ContextSource>,
    /// Another task file than the task's own: a path in the context.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<ContextPath>)]
    pub file: Option<String>,
    /// Another priority than the task's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = -10, maximum = 10)]
    pub priority: Option<i32>,
    /// Build and test, but push nothing.
    pub no_push: bool,
}

/// A secret on its way to the server. Cannot be printed.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct SecretText(pub String);

impl std::fmt::Debug for SecretText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[secret]")
    }
}

/// A login for a registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunCredential {
    /// Host and port.
    #[schema(value_type = Host)]
    pub host: String,
    /// The user.
    #[schema(value_type = Username)]
    pub username: String,
    /// The password.
    #[schema(value_type = SecretValue)]
    pub password: SecretText,
}

/// A run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// Its id.
    #[schema(value_type = String)]
    pub id: RunId,
    /// The stored task that it is a run of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// Where it stands.
    #[schema(value_type = String)]
    pub state: RunState,
    /// Why it ended as it did, or why it is waiting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What started it: `manual`, `rerun`, `task` ...
    pub trigger: String,
    /// Who asked for it: the name of a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<String>,
    /// The run that this one repeats.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub rerun_of: Option<RunId>,
    /// The attempt that counts, from 1; 0 while it has not been leased.
    pub attempt: u32,
    /// The runner that holds or held it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runner: Option<String>,
    /// Where and when it may run.
    pub queue: QueueOptions,
    /// What it is to do.
    pub spec: RunSpec,
    /// When it was asked for.
    #[schema(value_type = String)]
    pub created_at: Timestamp,
    /// When its first step could start.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub finished_at: Option<Timestamp>,
    /// Somebody asked for its end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancel_requested: bool,
    /// Bytes of its log so far.
    pub log_length: u64,
    /// What came of it, once it is over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<RunResult>,
    /// Trust domain of the run, as a text for people: the runs that it shares caches with.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Whether a stranger's commit was approved; nothing: it needs no approval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<Approval>,
    /// Who approved it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved_by: Option<String>,
    /// The tick of a timer that started it; told where one run is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tick: Option<crate::timer::Tick>,
    /// The cascade that started it, and the bases that made that necessary; told where runs are shown or listed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cascade: Option<crate::cascade::CascadeOfRun>,
}

/// A run in a list: without its spec and its result, which may be large. `GET /runs/{id}` has them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunSummary {
    /// Id of the run.
    #[schema(value_type = String)]
    pub id: RunId,
    /// Name of the stored task. `None`: the run belongs to no task.
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
    /// Name of the token that asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<String>,
    /// Run that this one repeats.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub rerun_of: Option<RunId>,
    /// Number of the attempt that counts, from 1. 0 before the first lease.
    pub attempt: u32,
    /// Runner of that attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runner: Option<String>,
    /// Pool, labels and priority.
    pub queue: QueueOptions,
    /// Time of the request.
    #[schema(value_type = String)]
    pub created_at: Timestamp,
    /// Start of the attempt that counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub started_at: Option<Timestamp>,
    /// End of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub finished_at: Option<Timestamp>,
    /// A cancel was requested.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancel_requested: bool,
    /// Bytes of its log so far.
    pub log_length: u64,
    /// Approval of a commit from another repository. `None`: none is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<Approval>,
    /// Branch and tag of the commit, as a text for people. Only of a run that waits for its approval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Name of the token that approved it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved_by: Option<String>,
    /// Cascade that started it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cascade: Option<crate::cascade::CascadeOfRun>,
}

/// Whether a run of a stranger's commit may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Approval {
    /// It waits for somebody to approve that commit.
    Pending,
    /// Somebody has.
    Approved,
}

/// Reason of a run whose task file was refused. The log of the run shows the mistakes.
pub const TASK_FILE_REFUSED: &str = "the task file was refused";

/// What came of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RunResult {
    /// The task file, or what the run is to do, was refused: nothing was started.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub refused: bool,
    /// Each step in file order.
    pub steps: Vec<StepResult>,
    /// What builds made.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub built: Vec<BuiltResult>,
    /// What reached a registry.
    pub images: Vec<ImageResult>,
    /// What images were made from, and which images ran.
    pub bases: Vec<BaseResult>,
    /// Vertices of builds that came from a cache, and all of them.
    pub cached_vertices: u64,
    /// As above.
    pub vertices: u64,
    /// The facts that were found out for it: commit, branch ...
    pub facts: crate::spec::Facts,
}

/// A step that is over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepResult {
    /// Its id.
    #[schema(value_type = String)]
    pub id: StepId,
    /// Its final state.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    pub state: StepState,
    /// Milliseconds, retries included.
    pub elapsed_ms: u64,
}

/// An image that a step built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BuiltResult {
    /// The step.
    #[schema(value_type = String)]
    pub step: StepId,
    /// The names that it was given, with their tags.
    pub names: Vec<String>,
    /// Of its manifest or index.
    #[schema(value_type = String)]
    pub digest: Digest,
}

/// An image that reached its registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageResult {
    /// The step.
    #[schema(value_type = String)]
    pub step: StepId,
    /// Full name with tag.
    pub name: String,
    /// As the registry has it.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// The digest for each platform; of a single image, its own. Empty where its platform is not known.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = Object)]
    pub platforms: BTreeMap<String, Digest>,
    /// It is in the registry by its digest alone; the tag is as it was.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
}

/// An image that another one was made from, or that a step ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BaseResult {
    /// The step.
    #[schema(value_type = String)]
    pub step: StepId,
    /// What it was to the step.
    #[schema(value_type = String)]
    pub role: BaseRole,
    /// As it was asked for.
    pub name: String,
    /// What was used.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// How that is known.
    #[schema(value_type = String)]
    pub evidence: Evidence,
    /// The platforms that it was used for: `linux/arm64`. Empty where that is not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<String>,
}

/// Asks for the end of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CancelRun {
    /// Why; nothing: who asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 500)]
    pub reason: Option<String>,
}

/// An attempt at a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// Its number, from 1.
    pub attempt: u32,
    /// The runner that it was handed to.
    pub runner: String,
    /// When it was handed out.
    #[schema(value_type = String)]
    pub leased_at: Timestamp,
    /// When its first step could start.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub ended_at: Option<Timestamp>,
    /// How it ended: a final state of a run, `declined`, `lost`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// Bytes of its log.
    pub log_length: u64,
}

/// Why a run waits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    /// Runs that come before it, from 0; nothing for one that does not wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ahead: Option<u64>,
    /// In one sentence.
    pub summary: String,
    /// What each runner lacks for it.
    pub runners: Vec<RunnerVerdict>,
    /// The run that holds its concurrency group.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub behind: Option<RunId>,
}

/// Whether a runner would take a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunnerVerdict {
    /// Its name.
    pub runner: String,
    /// It would.
    pub would_do: bool,
    /// Why it does not take it now, or ever: `offline`, `no free slot`, `pool is x`, `lacks the label a=b`, `is linux/arm64`.
    pub why: String,
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Page<T> {
    /// The entries.
    pub items: Vec<T>,
    /// Given as `cursor`, it leads to the next page; nothing on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// An upload of a context: begun, or complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Context {
    /// Its id: what `context.id` of a run's spec names.
    pub id: String,
    /// Bytes that the server has; the next part goes to this offset.
    pub received: u64,
    /// Bytes in all.
    pub size: u64,
    /// All of it is there, and its digest is right.
    pub complete: bool,
    /// The largest part that the server takes at once, in bytes.
    pub part_limit: u64,
}

/// Begins an upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateContext {
    /// Bytes in all.
    #[schema(minimum = 1)]
    pub size: u64,
    /// `sha256:...` of all of it; where the server has that already, the upload is complete at once.
    #[schema(value_type = ContentDigest)]
    pub digest: Digest,
}
