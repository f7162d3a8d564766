//! Images that runs pushed, their bases, and base watches.

use std::collections::BTreeMap;

use acrtask_model::{
    Digest, RunId,
    events::{BaseRole, Evidence},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{cascade::Rebuild, task::BaseTagRule};

/// Image that a run pushed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// Registry, repository and tag.
    pub name: String,
    /// Digest that the run pushed.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// Name of the task that builds the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// Id of the run that pushed the image.
    #[schema(value_type = String)]
    pub run: RunId,
    /// End of that run.
    #[schema(value_type = String)]
    pub built_at: Timestamp,
    /// Platforms of the image. Empty if they are unknown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<String>,
    /// `true` if the last push of the task included this image.
    pub newest: bool,
    /// Changed bases that make the image stale. Empty if the image is fresh.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stale: Vec<StaleBase>,
}

/// Base that changed after the build of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StaleBase {
    /// Reference of the base, with its tag.
    pub reference: String,
    /// Role of the base in the build of the image.
    #[schema(value_type = String)]
    pub role: BaseRole,
    /// Digest that the image was built from.
    #[schema(value_type = String)]
    pub from: Digest,
    /// Current digest of the tag.
    #[schema(value_type = String)]
    pub to: Digest,
}

/// Image with its bases and history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageDetail {
    /// Image.
    #[serde(flatten)]
    pub image: Image,
    /// Policy of the task: `runtime`, `all` or `none`.
    pub policy: BasePolicy,
    /// Bases that the image was built from.
    pub bases: Vec<ImageBase>,
    /// Rebuild by cascades. Present if the image is stale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rebuild: Option<Rebuild>,
    /// Previous pushes with the same name, newest first.
    pub history: Vec<ImageBuild>,
}

/// Policy of a task: the roles of bases that make its images stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum BasePolicy {
    /// Bases of final stages only.
    Runtime,
    /// All images that the last run used.
    All,
    /// None: base images start no runs.
    None,
}

impl BasePolicy {
    /// Returns `true` if the policy includes `role`.
    pub fn counts(self, role: BaseRole) -> bool {
        match self {
            Self::Runtime => role == BaseRole::Runtime,
            Self::All => true,
            Self::None => false,
        }
    }
}

/// Base of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageBase {
    /// Reference of the base, with its tag, or with its digest if the build names one.
    pub name: String,
    /// Role of the base in the build of the image.
    #[schema(value_type = String)]
    pub role: BaseRole,
    /// Digest that was used.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// Evidence for the digest.
    #[schema(value_type = String)]
    pub evidence: Evidence,
    /// Platforms that the base was used for. A new digest with the same images for these platforms
    /// has no effect. If empty, the platforms are unknown, and those of the image apply.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<String>,
    /// Current digest of the tag, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub current_digest: Option<Digest>,
    /// Effect of a new digest on the image.
    pub effect: BaseEffect,
    /// Name of the task that builds the base, if it is an image of this server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub built_by: Option<String>,
    /// Newer tag that a rule of the task allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub newer: Option<NewerTag>,
}

/// Newer tag of a base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewerTag {
    /// Name of the task with the rule.
    pub task: String,
    /// Newer tag.
    pub tag: String,
    /// State of the tag.
    pub state: TagState,
    /// Id of the last run that tried the tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub run: Option<RunId>,
}

/// Rule of a task for newer tags of a base image, and its result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BaseProposal {
    /// Name of the task.
    pub task: String,
    /// Base image with its registry, without a tag.
    pub image: String,
    /// Current tag. Absent if no current image of the task was built from this base image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used: Option<String>,
    /// Newest tag that the rule allows. Absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub newest: Option<String>,
    /// Rule.
    pub rule: BaseTagRule,
    /// State of the rule.
    pub state: TagState,
    /// Reason for the state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Id of the last run that tried the newest tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub run: Option<RunId>,
    /// Time at which the newest tag was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub found_at: Option<Timestamp>,
    /// Time of the last list of tags.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub checked_at: Option<Timestamp>,
    /// Time of the next list of tags.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub next_check_at: Option<Timestamp>,
}

/// State of a rule for newer tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum TagState {
    /// Unknown: the tags were not listed yet, or no image of the task was built from this base
    /// image.
    Waiting,
    /// The current tag is the newest.
    Current,
    /// A user can adopt a newer tag.
    Proposed,
    /// The run with the newer tag could not start.
    Blocked,
    /// The run with the newer tag is active.
    Building,
    /// The run with the newer tag failed. It is not repeated automatically.
    Failed,
    /// The run with the newer tag succeeded, but its images do not use the tag.
    Unused,
    /// The server cannot list the tags.
    Unlisted,
}

impl TagState {
    /// Returns the name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Current => "current",
            Self::Proposed => "proposed",
            Self::Blocked => "blocked",
            Self::Building => "building",
            Self::Failed => "failed",
            Self::Unused => "unused",
            Self::Unlisted => "unlisted",
        }
    }
}

/// Effect of a new digest of a base on an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum BaseEffect {
    /// A new digest would make the image stale.
    WouldRebuild,
    /// The digest changed, and the image is stale.
    Stale,
    /// The digest changed, but only for other platforms.
    OtherPlatform,
    /// The policy of the task ignores the role of the base.
    Ignored,
    /// The build names the base by digest. It cannot change.
    Pinned,
    /// The image belongs to no task, or to a deleted one. It is not rebuilt.
    NoTask,
}

/// Previous push with the same name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageBuild {
    /// Digest that the run pushed.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// Id of the run.
    #[schema(value_type = String)]
    pub run: RunId,
    /// Name of the task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// End of the run.
    #[schema(value_type = String)]
    pub built_at: Timestamp,
}

/// Image with its direct dependents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageTree {
    /// Registry, repository and tag.
    pub name: String,
    /// Name of the task that builds the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// `true` if a base of the image changed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stale: bool,
    /// `true` if the dependents are listed at another place of the tree.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub repeated: bool,
    /// Direct dependents, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(no_recursion)]
    pub images: Vec<ImageTree>,
}

/// Blast radius of a base: all its dependents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BlastRadius {
    /// Reference of the base.
    pub base: String,
    /// Direct and indirect dependents, by distance and name.
    pub images: Vec<BlastImage>,
}

/// Dependent of a base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BlastImage {
    /// Registry, repository and tag.
    pub name: String,
    /// Name of the task that builds the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// Distance from the base. A direct dependent has distance 1.
    pub distance: u32,
    /// Bases of the image that connect it to the base, with their roles.
    #[schema(value_type = Object)]
    pub through: BTreeMap<String, Vec<BaseRole>>,
    /// `true` if a new digest of the base would rebuild the image.
    pub rebuilt: bool,
}

/// Base watch: an observed base tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Base {
    /// Registry, repository and tag.
    pub name: String,
    /// Name of the task, or prefix of tasks followed by `*`, whose login is used. Absent if the poll
    /// uses a login for all tasks, or none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub login_of: Option<String>,
    /// Status of the watch.
    pub status: BaseStatus,
    /// Reason for an error status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// `true` if a user paused the watch.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// Last known digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub digest: Option<Digest>,
    /// Digests by platform.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = Object)]
    pub platforms: BTreeMap<String, Digest>,
    /// Time of the last poll.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub checked_at: Option<Timestamp>,
    /// Time of the last digest change.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub changed_at: Option<Timestamp>,
    /// Time of the next poll.
    #[schema(value_type = String)]
    pub next_check_at: Timestamp,
    /// Number of images that were built from this base.
    pub used_by: u64,
    /// Newer tags that rules of tasks allow. Not in lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub newer: Vec<NewerTag>,
    /// Digest changes, newest first. Not in lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<BaseTagChange>,
}

/// Status of a base watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum BaseStatus {
    /// The base was not polled yet.
    New,
    /// The digest is known.
    Ok,
    /// The registry no longer has the tag.
    Vanished,
    /// The registry denies access.
    Denied,
    /// The registry does not respond correctly.
    Unreachable,
    /// The registry limits the request rate.
    Limited,
}

impl BaseStatus {
    /// Returns the name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Ok => "ok",
            Self::Vanished => "vanished",
            Self::Denied => "denied",
            Self::Unreachable => "unreachable",
            Self::Limited => "limited",
        }
    }

    /// Parses the output of [`Self::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        [
            Self::New,
            Self::Ok,
            Self::Vanished,
            Self::Denied,
            Self::Unreachable,
            Self::Limited,
        ]
        .into_iter()
        .find(|status| status.as_str() == text)
    }
}

/// Digest change of an observed base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BaseTagChange {
    /// Digest before the change.
    #[schema(value_type = String)]
    pub from: Digest,
    /// Digest after the change.
    #[schema(value_type = String)]
    pub to: Digest,
    /// Time of the poll that found the change.
    #[schema(value_type = String)]
    pub changed_at: Timestamp,
    /// `true` if the tag had the new digest before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub moved_back: bool,
    /// Platforms with a different image. Empty if they are unknown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<String>,
}

/// Request to poll bases immediately.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CheckBases {
    /// Reference of the base. If absent, all bases.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1)]
    pub name: Option<String>,
    /// Seconds to wait for the polls before the response, at most 60.
    #[schema(maximum = 60)]
    pub wait_secs: u64,
}
