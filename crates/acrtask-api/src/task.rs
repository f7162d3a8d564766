//! Stored tasks, as the API and declarative files have them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::forms::{
    AliasName, ContextPath, ContextUrl, GroupName, Host, LabelValue, NotBlank, Platform,
    SecretName, TaskName, VariableName, VariableValue, Word,
};

use crate::spec::BuildSpec;

/// A task: what runs of it do, and where they may run. The form of a file of `acrtask task apply`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TaskDefinition {
    /// Its name: letters, digits, `-`, `_`, `.` and `/`, at most 100 characters.
    #[schema(value_type = TaskName)]
    pub name: String,
    /// A few words about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Off: nothing starts a run of it.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub enabled: bool,
    /// Where the files come from: a git URL (`URL#ref:folder`), a tarball's URL, `oci://REFERENCE`; nothing: no files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<ContextUrl>)]
    pub context: Option<String>,
    /// Of a git repository: with its submodules, and theirs.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub submodules: bool,
    /// Of a git repository: with the files that stand in Git LFS.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lfs: bool,
    /// The task file in the context. One of `file`, `text`, `cmd` and `build`; none of them: `acr-task.yaml`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<ContextPath>)]
    pub file: Option<String>,
    /// The text of a task file, in place of a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<NotBlank>)]
    pub text: Option<String>,
    /// One container, in place of a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<NotBlank>)]
    pub cmd: Option<String>,
    /// One image, in place of a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<BuildSpec>,
    /// The registry that images without one belong to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Host>)]
    pub registry: Option<String>,
    /// Values for `{{.Values.KEY}}`.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object)]
    pub values: Map<String, Value>,
    /// Secrets by the name that the task file uses: the name in the secret store.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<SecretName, SecretName>)]
    pub secrets: BTreeMap<String, String>,
    /// Variables of every step.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<VariableName, VariableValue>)]
    pub env: BTreeMap<String, String>,
    /// The images behind `acr`, `az`, `bash`, `curl`, `cssc`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<AliasName, String>)]
    pub alias_images: BTreeMap<String, String>,
    /// `linux/amd64` ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Platform>)]
    pub platform: Option<String>,
    /// Limit of a run: `90s`, `1h30m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// Its runs build, and push nothing: neither images nor the layer cache.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_push: bool,
    /// The layer cache that the runs of the task share in the registry.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub cache: bool,
    /// Where and when runs of it may run.
    #[serde(default)]
    pub queue: QueueOptions,
    /// What starts runs of it.
    #[serde(default, skip_serializing_if = "Triggers::is_empty")]
    pub triggers: Triggers,
    /// Who is told of results.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notify: Vec<Notify>,
}

/// Tells somebody of results, by a request to a URL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Notify {
    /// The stored secret that holds the URL.
    #[schema(value_type = SecretName)]
    pub url: String,
    /// The form of what is sent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub template: NotifyTemplate,
    /// The results that are told. Nothing: all but a run that was canceled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub on: Vec<NotifyResult>,
    /// The stored secret that what is sent is signed with, after the Standard Webhooks specification.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<SecretName>)]
    pub sign_with: Option<String>,
}

/// The form of what is sent.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema,
)]
#[serde(rename_all = "camelCase")]
pub enum NotifyTemplate {
    /// The run, as JSON.
    #[default]
    Generic,
    /// What Slack, Mattermost and those like them take.
    Slack,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum NotifyResult {
    /// All steps succeeded.
    Succeeded,
    /// A step failed.
    Failed,
    /// Somebody asked for its end.
    Canceled,
    /// It ran past its limit.
    TimedOut,
    /// It could not be carried out.
    Error,
}

/// Where and when a run may run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct QueueOptions {
    /// -10 to 10; each step up is ten minutes of a head start over what waits beside it.
    #[serde(skip_serializing_if = "is_default")]
    #[schema(minimum = -10, maximum = 10)]
    pub priority: i32,
    /// The pool of runners; nothing: `default`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Word>)]
    pub pool: Option<String>,
    /// Labels that a runner must have.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<Word, LabelValue>)]
    pub labels: BTreeMap<String, String>,
    /// Runs that must not run side by side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Concurrency>,
}

/// Runs that share a group take turns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Concurrency {
    /// The group's name; for a stored task its own name where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<GroupName>)]
    pub group: Option<String>,
    /// Runs of the group that may run at once; at least 1.
    #[serde(default = "one")]
    #[schema(minimum = 1)]
    pub max: u32,
    /// A new run cancels those of its group that came before it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancel_superseded: bool,
}

/// What starts runs of a task, beside people and the API.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Triggers {
    /// A commit to the context's repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<CommitTrigger>,
    /// A push of an image to a registry that tells of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry_push: Option<RegistryPushTrigger>,
    /// A base image with a new digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_image: Option<BaseImageTrigger>,
    /// Timers, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<Word, Timer>)]
    pub timers: BTreeMap<String, Timer>,
    /// A call of the URL that `acrtask task trigger-url create` makes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<UrlTrigger>,
}

impl Triggers {
    /// Nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Runs at commits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CommitTrigger {
    /// On.
    pub enabled: bool,
    /// Branches that count, as globs: `main`, `release/*` (`*` stays within one part, `**` does not). `!pattern` takes
    /// out what earlier ones let in; where all have a `!`, every other branch counts. Of a pull request it is the
    /// branch that it asks to change. Nothing: the branch that `context` names, else the repository's default branch.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub branches: Vec<String>,
    /// Tags that count, as globs like those of `branches`. Nothing: all, where `events` has `tag`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Files that count. Where it is not known which files changed, a run starts.
    #[serde(skip_serializing_if = "PathFilter::is_empty")]
    pub paths: PathFilter,
    /// What counts. Nothing: `push`, and `tag` too where `tags` says which.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<CommitEvent>,
    /// Texts in the message of the newest commit, or in the title of a pull request, that keep a run from starting, in
    /// upper or lower case. Nothing: `[skip ci]`, `[ci skip]`, `[no ci]`, `[skip acrtask]` and `***NO_CI***`; an empty
    /// list: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip_messages: Option<Vec<String>>,
    /// What becomes of pull requests whose commits come from another repository.
    #[serde(skip_serializing_if = "is_default")]
    pub forks: Forks,
    /// A newer commit of the same branch, tag or pull request cancels the runs of older ones.
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

/// What becomes of pull requests whose commits come from another repository, whose people need not be trusted.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema,
)]
#[serde(rename_all = "camelCase")]
pub enum Forks {
    /// A run of each commit waits until somebody has approved that commit.
    #[default]
    Approve,
    /// They start nothing.
    Ignore,
}

/// Files that count for a run: those that `include` matches (all, where it is empty) and `exclude` does not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PathFilter {
    /// Globs of paths from the repository's root: `services/api/**`, `**/*.rs`. A folder's name stands for all in it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,
    /// Globs of paths that never count: `docs/**`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
}

impl PathFilter {
    /// Nothing is said: every file counts.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What can happen to a repository.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema, ToSchema,
)]
#[serde(rename_all = "camelCase")]
pub enum CommitEvent {
    /// Commits came to a branch.
    Push,
    /// A tag was made or moved.
    Tag,
    /// A pull request (merge request) was opened, or has new commits.
    PullRequest,
}

/// Runs at pushes of images. The run has what was pushed in its values: `pushedImage`, `pushedRegistry`,
/// `pushedRepository`, `pushedTag` and `pushedDigest`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RegistryPushTrigger {
    /// On.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Repositories with their registry, as globs: `registry.example.com/base/*`, `docker.io/library/alpine`. `*` stays
    /// within one part, `**` does not.
    #[schema(min_items = 1)]
    pub repositories: Vec<String>,
    /// Tags, as globs. Nothing: all, and pushes without a tag too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
}

/// Runs at new digests of base images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BaseImageTrigger {
    /// On.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Which bases count.
    #[serde(default)]
    pub r#type: BaseImageTriggerType,
    /// Newer tags that may take the place of the ones in use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<BaseTagRule>,
}

/// Newer tags of a base image that may take the place of the one in use: those that `semver` or `pattern` allows, of the
/// same kind (`3.20-slim` is followed by `3.21-slim`, not by `3.21` or `4-slim`). Without `buildArg` and `value` the
/// newest is proposed: `acrtask base proposals`. With one of them it starts one run, which gets the tag in it; once such
/// a run has succeeded, all runs of the task get that tag, until a newer one has succeeded or the rule allows it no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BaseTagRule {
    /// The image with its registry and without a tag: `docker.io/library/alpine`.
    pub image: String,
    /// Versions, as Cargo writes ranges of them: `^3.20`, `~3.20`, `>=3.18, <4`. One of `semver` and `pattern`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub semver: Option<String>,
    /// A regular expression that a tag has to match as a whole. What its first group, or the one named `order`, matched
    /// says which tag is newer: numbers by their value, the rest as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// The build argument of `build` that takes the tag, without the image's name: `FROM alpine:$ALPINE_TAG`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_arg: Option<String>,
    /// For a task file: the value that takes the tag, `{{.Values.alpineTag}}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

impl BaseTagRule {
    /// A newer tag starts a run.
    pub fn starts_runs(&self) -> bool {
        self.build_arg.is_some() || self.value.is_some()
    }
}

/// Which bases count.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema,
)]
pub enum BaseImageTriggerType {
    /// What the image stands on.
    #[default]
    Runtime,
    /// Those of build stages too.
    All,
    /// None of them, as where the trigger is off. Rules for newer tags go on to count.
    None,
}

/// Runs at calls of the task's own URL.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct UrlTrigger {
    /// Values that a call may set. Nothing: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<NotBlank>)]
    pub allow_set: Vec<String>,
}

/// A timer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Timer {
    /// Five fields of cron: minute, hour, day of the month, month, day of the week. In UTC, or in `timezone`.
    pub schedule: String,
    /// On.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// The IANA time zone of `schedule`, like `Europe/Berlin`; nothing: UTC. A time that a change of the clocks leaves
    /// out runs at the first instant after it; one that happens twice runs once, the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// Each run starts later by a part of this, always the same one for the same timer: `5m`. At most a day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter: Option<String>,
    /// What becomes of ticks that nobody could handle in time.
    #[serde(default, skip_serializing_if = "is_default")]
    pub missed: MissedTicks,
}

impl Timer {
    /// A timer that is on, in UTC, without jitter.
    pub fn new(schedule: impl Into<String>) -> Self {
        Self {
            schedule: schedule.into(),
            enabled: true,
            timezone: None,
            jitter: None,
            missed: MissedTicks::default(),
        }
    }
}

/// What becomes of ticks that nobody could handle within five minutes, because no server ran.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema,
)]
#[serde(rename_all = "camelCase")]
pub enum MissedTicks {
    /// One run stands for all of them.
    #[default]
    RunOnce,
    /// None of them runs.
    Skip,
}

/// A stored task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Task {
    /// Its id, which stays when it is renamed.
    pub id: String,
    /// What it is.
    #[serde(flatten)]
    pub definition: TaskDefinition,
    /// Grows with each change.
    pub generation: i64,
    /// Tags of base images that its runs get because of `triggers.baseImage.tags`: from the image to the tag that a run has
    /// succeeded with.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub base_tags: BTreeMap<String, String>,
    /// The file that it came from; nothing for one that was made through the API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// When it was made.
    #[schema(value_type = String)]
    pub created_at: Timestamp,
    /// When it was last changed.
    #[schema(value_type = String)]
    pub updated_at: Timestamp,
}

fn yes() -> bool {
    true
}

fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_true(value: &bool) -> bool {
    *value
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
