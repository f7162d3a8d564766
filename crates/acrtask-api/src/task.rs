//! Stored tasks: definitions as the API and the files of `acrtask task apply` contain them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::forms::{
    AliasName, ContextPath, ContextUrl, GroupName, Host, LabelValue, NotBlank, Platform,
    SecretName, ShortName, TaskName, VariableName, VariableValue,
};

use crate::spec::BuildSpec;

/// Task: what its runs do and where they may run. Format of the files for `acrtask task apply`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TaskDefinition {
    /// Name: letters, digits, `-`, `_`, `.` and `/`, at most 100 characters.
    #[schema(value_type = TaskName)]
    pub name: String,
    /// Short description.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Allow triggers and users to start runs.
    #[serde(default = "default_true", skip_serializing_if = "is_true")]
    pub enabled: bool,
    /// Source of the files: a git URL (`URL#ref:folder`), the URL of a tarball, or
    /// `oci://REFERENCE`. If absent, the workspace is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<ContextUrl>)]
    pub context: Option<String>,
    /// Fetch all submodules recursively. For git repositories only.
    #[serde(default = "default_true", skip_serializing_if = "is_true")]
    pub submodules: bool,
    /// Download the files stored in Git LFS. For git repositories only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lfs: bool,
    /// Path of the task file in the context. Set at most one of `file`, `text`, `cmd` and `build`.
    /// Without any of them, the task file is `acr-task.yaml`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<ContextPath>)]
    pub file: Option<String>,
    /// Text of a task file, instead of a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<NotBlank>)]
    pub text: Option<String>,
    /// Single container, instead of a task file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<NotBlank>)]
    pub cmd: Option<String>,
    /// Single image to build, instead of a task file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<BuildSpec>,
    /// Registry for images without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Host>)]
    pub registry: Option<String>,
    /// Values for `{{.Values.KEY}}`.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object)]
    pub values: Map<String, Value>,
    /// Secrets: from the name in the task file to the name in the secret store.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<SecretName, SecretName>)]
    pub secrets: BTreeMap<String, String>,
    /// Environment variables of all steps.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<VariableName, VariableValue>)]
    pub env: BTreeMap<String, String>,
    /// Images for the aliases `acr`, `az`, `bash`, `curl` and `cssc`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<AliasName, String>)]
    pub alias_images: BTreeMap<String, String>,
    /// Platform of the runs: `linux/amd64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Platform>)]
    pub platform: Option<String>,
    /// Maximum duration of a run: `90s`, `1h30m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// Build and test, but push nothing: neither images nor the layer cache.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_push: bool,
    /// Share a layer cache in the registry between all runs of the task.
    #[serde(default = "default_true", skip_serializing_if = "is_true")]
    pub cache: bool,
    /// Pool, labels, priority and concurrency group of the runs.
    #[serde(default)]
    pub queue: QueueOptions,
    /// Triggers that start runs.
    #[serde(default, skip_serializing_if = "Triggers::is_empty")]
    pub triggers: Triggers,
    /// Notifications about results.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notify: Vec<Notify>,
}

/// Notification about results: a request to a URL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Notify {
    /// Name of the stored secret that contains the URL.
    #[schema(value_type = SecretName)]
    pub url: String,
    /// Format of the notification.
    #[serde(default, skip_serializing_if = "is_default")]
    pub template: NotifyTemplate,
    /// Results to notify about. If empty, all except `canceled`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub on: Vec<NotifyResult>,
    /// Name of the stored secret that signs notifications, as the Standard Webhooks specification
    /// defines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<SecretName>)]
    pub sign_with: Option<String>,
}

/// Format of a notification.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema,
)]
#[serde(rename_all = "camelCase")]
pub enum NotifyTemplate {
    /// Run as JSON.
    #[default]
    Generic,
    /// Message for Slack, Mattermost and compatible services.
    Slack,
}

/// Result of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum NotifyResult {
    /// All steps succeeded.
    Succeeded,
    /// A step failed.
    Failed,
    /// A user or a newer run canceled the run.
    Canceled,
    /// The run exceeded its time limit.
    TimedOut,
    /// The run could not be executed.
    Error,
}

/// Options that decide where and when a run may start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct QueueOptions {
    /// Priority, -10 to 10. One step equals a head start of ten minutes.
    #[serde(skip_serializing_if = "is_default")]
    #[schema(minimum = -10, maximum = 10)]
    pub priority: i32,
    /// Runner pool. If absent, `default`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<ShortName>)]
    pub pool: Option<String>,
    /// Labels that the runner must have.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<ShortName, LabelValue>)]
    pub labels: BTreeMap<String, String>,
    /// Limit on concurrent runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Concurrency>,
}

/// Concurrency group: limits how many of its runs execute at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Concurrency {
    /// Name of the group. If absent, the name of the stored task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<GroupName>)]
    pub group: Option<String>,
    /// Maximum number of concurrent runs of the group, at least 1.
    #[serde(default = "default_max")]
    #[schema(minimum = 1)]
    pub max: u32,
    /// Let a new run cancel all older runs of its group.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancel_superseded: bool,
}

/// Triggers that start runs automatically.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Triggers {
    /// Commits to the repository of the context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<CommitTrigger>,
    /// Pushes of images to a registry with a webhook.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry_push: Option<RegistryPushTrigger>,
    /// New digests of base images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_image: Option<BaseImageTrigger>,
    /// Timers by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<ShortName, Timer>)]
    pub timers: BTreeMap<String, Timer>,
    /// Requests to the URL from `acrtask task trigger-url create`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<UrlTrigger>,
}

impl Triggers {
    /// Returns `true` if no trigger is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Trigger that starts runs for commits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CommitTrigger {
    /// Enable this trigger.
    pub enabled: bool,
    /// Globs of branches: `main`, `release/*`. `*` stays within one segment, `**` does not.
    /// `!pattern` excludes what earlier patterns included. If all patterns start with `!`, every
    /// other branch is included. For a pull request, the target branch is compared. If empty: the
    /// branch in `context`, otherwise the default branch of the repository.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub branches: Vec<String>,
    /// Globs of tags, with the same syntax as `branches`. If empty and `events` contains `tag`, all
    /// tags.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Files whose changes start a run. If the changed files are unknown, a run starts.
    #[serde(skip_serializing_if = "PathFilter::is_empty")]
    pub paths: PathFilter,
    /// Events that start a run. If empty: `push`, and also `tag` if `tags` is set.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<CommitEvent>,
    /// Texts that prevent a run, in the message of the newest commit or in the title of a pull
    /// request. Upper and lower case are equal. If absent: `[skip ci]`, `[ci skip]`, `[no ci]`,
    /// `[skip acrtask]` and `***NO_CI***`. An empty list disables the check.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip_messages: Option<Vec<String>>,
    /// Handling of pull requests from forks.
    #[serde(skip_serializing_if = "is_default")]
    pub forks: Forks,
    /// Let a newer commit of the same branch, tag or pull request cancel the runs of older commits.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub newest_wins: bool,
}

impl Default for CommitTrigger {
    fn default() -> Self {
        Self {
            enabled: true,
            branches: Vec::new(),
            tags: Vec::new(),
            paths: PathFilter::default(),
            events: Vec::new(),
            skip_messages: None,
            forks: Forks::default(),
            newest_wins: false,
        }
    }
}

/// Handling of pull requests whose commits come from another repository and from untrusted authors.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema,
)]
#[serde(rename_all = "camelCase")]
pub enum Forks {
    /// The run of each commit waits until a user approves the commit.
    #[default]
    Approve,
    /// Pull requests from forks start no runs.
    Ignore,
}

/// Filter for changed files. A file matches if `include` matches it, or is empty, and `exclude`
/// does not match it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PathFilter {
    /// Globs of paths from the root of the repository: `services/api/**`, `**/*.rs`. The name of a
    /// folder includes everything in it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,
    /// Globs of excluded paths: `docs/**`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
}

impl PathFilter {
    /// Returns `true` if the filter accepts every file.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Event in a repository.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema, ToSchema,
)]
#[serde(rename_all = "camelCase")]
pub enum CommitEvent {
    /// New commits on a branch.
    Push,
    /// New or moved tag.
    Tag,
    /// Opened or updated pull request (merge request).
    PullRequest,
}

/// Trigger that starts runs for pushes of images. The run has these values: `pushedImage`,
/// `pushedRegistry`, `pushedRepository`, `pushedTag` and `pushedDigest`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RegistryPushTrigger {
    /// Enable this trigger.
    #[serde(default = "default_true")]
    pub enabled: bool,
    /// Globs of repositories with their registry: `registry.example.com/base/*`,
    /// `docker.io/library/alpine`. `*` stays within one segment, `**` does not.
    #[schema(min_items = 1)]
    pub repositories: Vec<String>,
    /// Globs of tags. If empty, all pushes, even without a tag.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
}

/// Trigger that starts runs for new digests of base images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BaseImageTrigger {
    /// Enable this trigger.
    #[serde(default = "default_true")]
    pub enabled: bool,
    /// Bases that are observed.
    #[serde(default)]
    pub r#type: BaseImageTriggerType,
    /// Rules for newer tags that may replace the current ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<BaseTagRule>,
}

/// Rule for newer tags of a base image that may replace the current tag. A newer tag must match
/// `semver` or `pattern` and be of the same kind: `3.21-slim` may replace `3.20-slim`, but `3.21`
/// and `4-slim` may not.
///
/// Without `buildArg` and `value` the newest tag is proposed: `acrtask base proposals`. With one of
/// them, the newest tag starts one run that uses it. After such a run succeeds, all runs of the
/// task use that tag. This ends when a newer tag succeeds or the rule no longer allows the tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BaseTagRule {
    /// Image with its registry and without a tag: `docker.io/library/alpine`.
    pub image: String,
    /// Version range in Cargo syntax: `^3.20`, `~3.20`, `>=3.18, <4`. Set either `semver` or
    /// `pattern`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub semver: Option<String>,
    /// Regular expression that must match the whole tag. Its group `order`, otherwise its first
    /// group, decides which tag is newer: numbers are compared by value, the rest as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// Build argument in `build` that receives the tag, without the name of the image: `FROM
    /// alpine:$ALPINE_TAG`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_arg: Option<String>,
    /// Value that receives the tag, for a task file with `{{.Values.alpineTag}}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

impl BaseTagRule {
    /// Returns `true` if a newer tag starts a run.
    pub fn starts_runs(&self) -> bool {
        self.build_arg.is_some() || self.value.is_some()
    }
}

/// Bases that are observed.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema,
)]
pub enum BaseImageTriggerType {
    /// Base of the final stage.
    #[default]
    Runtime,
    /// All images that the last run used, including those of build stages.
    All,
    /// No bases, as if the trigger were disabled. Rules for newer tags still apply.
    None,
}

/// Trigger that starts runs for requests to the URL of the task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct UrlTrigger {
    /// Values that a request may set.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<NotBlank>)]
    pub allow_set: Vec<String>,
}

/// Timer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Timer {
    /// Cron schedule with five fields: minute, hour, day of the month, month, day of the week. In
    /// UTC, or in `timezone`.
    pub schedule: String,
    /// Enable this timer.
    #[serde(default = "default_true")]
    pub enabled: bool,
    /// IANA time zone of `schedule`, for example `Europe/Berlin`. If absent, UTC. If a clock change
    /// skips the time, the timer fires at the first instant after the gap. If the time occurs
    /// twice, it fires the first time only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// Maximum delay of each run: `5m`. Each timer always uses the same fraction of it. At most one
    /// day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter: Option<String>,
    /// Handling of missed firings.
    #[serde(default, skip_serializing_if = "is_default")]
    pub missed: MissedFirings,
}

impl Timer {
    /// Returns an enabled timer in UTC, without jitter.
    pub fn new(schedule: impl Into<String>) -> Self {
        Self {
            schedule: schedule.into(),
            enabled: true,
            timezone: None,
            jitter: None,
            missed: MissedFirings::default(),
        }
    }
}

/// Handling of missed firings: no server handled them within five minutes.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema,
)]
#[serde(rename_all = "camelCase")]
pub enum MissedFirings {
    /// A single run replaces all missed firings.
    #[default]
    RunOnce,
    /// Missed firings start no runs.
    Skip,
}

/// Stored task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Task {
    /// Id. It stays the same when the task is renamed.
    pub id: String,
    /// Definition of the task.
    #[serde(flatten)]
    pub definition: TaskDefinition,
    /// Generation. It grows with each change.
    pub generation: i64,
    /// Base image tags that the runs use because of `triggers.baseImage.tags`: from the image to
    /// the last tag with a successful run.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub base_tags: BTreeMap<String, String>,
    /// File that `acrtask task apply` read. Absent if the task was created through the API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Time of creation.
    #[schema(value_type = String)]
    pub created_at: Timestamp,
    /// Time of the last change.
    #[schema(value_type = String)]
    pub updated_at: Timestamp,
}

fn default_true() -> bool {
    true
}

fn default_max() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_true(value: &bool) -> bool {
    *value
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
