//! Images that runs pushed, what they stand on, and the base tags that are watched because of that.

use std::collections::BTreeMap;

use acrtask_model::{
    Digest, RunId,
    events::{BaseRole, Evidence},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{cascade::Rebuild, task::BaseTagRule};

/// An image that a run pushed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// Registry, repository and tag.
    pub name: String,
    /// What the run pushed.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// The task that builds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// The run that pushed it.
    #[schema(value_type = String)]
    pub run: RunId,
    /// When that run ended.
    #[schema(value_type = String)]
    pub built_at: Timestamp,
    /// The platforms that it is for; nothing where that is not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<String>,
    /// No later run of its task has pushed without it.
    pub newest: bool,
    /// Bases that have moved since it was built and count for its task; nothing: it is fresh.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stale: Vec<StaleBase>,
}

/// A base that has moved since an image was built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StaleBase {
    /// The base, with its tag.
    pub name: String,
    /// What it is to the image.
    #[schema(value_type = String)]
    pub role: BaseRole,
    /// What the image was built from.
    #[schema(value_type = String)]
    pub used: Digest,
    /// What the tag holds now.
    #[schema(value_type = String)]
    pub now: Digest,
}

/// An image with all that is known of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageDetail {
    /// The image.
    #[serde(flatten)]
    pub image: Image,
    /// Which bases make it stale for its task: `runtime`, `all` or `none`.
    pub policy: BasePolicy,
    /// What it was built from.
    pub bases: Vec<ImageBase>,
    /// Where it is stale: what cascades do about that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rebuild: Option<Rebuild>,
    /// What was pushed under its name before, the newest first.
    pub history: Vec<ImageBuild>,
}

/// Which bases of a task make its images stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum BasePolicy {
    /// What the finished image stands on.
    Runtime,
    /// Everything that its last run used.
    All,
    /// None: base images start no run of it.
    None,
}

impl BasePolicy {
    /// True where a base in `role` counts.
    pub fn counts(self, role: BaseRole) -> bool {
        match self {
            Self::Runtime => role == BaseRole::Runtime,
            Self::All => true,
            Self::None => false,
        }
    }
}

/// What an image was built from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageBase {
    /// The base, with its tag, or with a digest where it was named by one.
    pub name: String,
    /// What it is to the image.
    #[schema(value_type = String)]
    pub role: BaseRole,
    /// What was used of it.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// How that is known.
    #[schema(value_type = String)]
    pub evidence: Evidence,
    /// The platforms that it was used for: a new digest that has the same images for them changes nothing. Empty where that
    /// is not known; then they are those of the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<String>,
    /// What its tag holds now, as far as that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub now: Option<Digest>,
    /// What a new digest of it does to the image.
    pub effect: BaseEffect,
    /// The task that builds the base, where it is an image of our own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub built_by: Option<String>,
    /// A newer tag that a rule of the task allows in its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub newer: Option<NewerTag>,
}

/// A newer tag of a base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewerTag {
    /// The task whose rule allows it.
    pub task: String,
    /// The tag.
    pub tag: String,
    /// What became of it.
    pub state: TagState,
    /// The run that tried it last.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub run: Option<RunId>,
}

/// A rule of a task for newer tags of a base image, and what it found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BaseProposal {
    /// The task.
    pub task: String,
    /// The base image with its registry, without a tag.
    pub image: String,
    /// The tag in use; nothing: no newest image of the task stands on the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used: Option<String>,
    /// The newest tag that the rule allows in its place; nothing: there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub newest: Option<String>,
    /// The rule.
    pub rule: BaseTagRule,
    /// How it stands.
    pub state: TagState,
    /// Why, where that needs words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The run that tried the newest tag last.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub run: Option<RunId>,
    /// When the newest tag was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub found_at: Option<Timestamp>,
    /// When the image's tags were last listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub checked_at: Option<Timestamp>,
    /// When they are listed again.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub next_check_at: Option<Timestamp>,
}

/// How a rule for newer tags stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum TagState {
    /// Nothing is known yet: the tags were not listed, or no image of the task stands on the image.
    Waiting,
    /// The tag in use is the newest.
    Current,
    /// A newer tag is there, for a person to take.
    Proposed,
    /// A run with the newer tag could not be started.
    Blocked,
    /// A run with the newer tag is under way.
    Building,
    /// The run with the newer tag did not succeed. It is not repeated by itself.
    Failed,
    /// A run with the newer tag has succeeded, but what it pushed does not stand on it.
    Unused,
    /// The tags cannot be listed.
    Unlisted,
}

impl TagState {
    /// As it is written.
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

/// What a new digest of a base does to an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum BaseEffect {
    /// It would make the image stale.
    WouldRebuild,
    /// It has moved, and the image is stale because of it.
    Stale,
    /// It has moved, but not for the platforms of the image.
    OtherPlatform,
    /// Its role does not count for the task.
    DoesNotCount,
    /// It was named by its digest and cannot move.
    Pinned,
    /// The image belongs to no task, or to one that is gone: nobody builds it again.
    NoTask,
}

/// What was pushed under a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageBuild {
    /// The digest.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// The run.
    #[schema(value_type = String)]
    pub run: RunId,
    /// Its task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// When the run ended.
    #[schema(value_type = String)]
    pub built_at: Timestamp,
}

/// A base and what stands on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageTree {
    /// The image.
    pub name: String,
    /// The task that builds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// A base of it has moved.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stale: bool,
    /// What stands on it is shown elsewhere in the tree.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub repeated: bool,
    /// What stands on it, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(no_recursion)]
    pub images: Vec<ImageTree>,
}

/// Everything that stands on a base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BlastRadius {
    /// The base.
    pub base: String,
    /// What stands on it, through any number of our own images, by distance and name.
    pub images: Vec<BlastImage>,
}

/// An image that stands on a base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BlastImage {
    /// The image.
    pub name: String,
    /// The task that builds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// Images between: 1 stands on the base itself.
    pub distance: u32,
    /// Those of its bases that lead there, with what they are to it.
    #[schema(value_type = Object)]
    pub through: BTreeMap<String, Vec<BaseRole>>,
    /// A new digest of the base would build it again.
    pub rebuilt: bool,
}

/// A base tag that is watched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Base {
    /// Registry, repository and tag.
    pub name: String,
    /// The task whose own login it is looked at with; nothing: that of all tasks, or none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub login_of: Option<String>,
    /// How it stands.
    pub status: BaseStatus,
    /// Why, where it is not well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Somebody has paused it: it is not looked at.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// What it held when that was last known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub digest: Option<Digest>,
    /// The digest for each platform.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = Object)]
    pub platforms: BTreeMap<String, Digest>,
    /// When it was last looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub checked_at: Option<Timestamp>,
    /// When it was found to have moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub changed_at: Option<Timestamp>,
    /// When it is looked at again.
    #[schema(value_type = String)]
    pub next_check_at: Timestamp,
    /// Images that were built from it.
    pub used_by: u64,
    /// Newer tags that rules of tasks allow in its place; not in lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub newer: Vec<NewerTag>,
    /// How it moved, the newest first; not in lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<BaseChange>,
}

/// How a watched tag stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum BaseStatus {
    /// It has not been looked at yet.
    New,
    /// Its digest is known.
    Ok,
    /// The registry does not have it any more.
    Vanished,
    /// The registry does not let us see it.
    Denied,
    /// The registry does not answer as it should.
    Unreachable,
    /// The registry asked to wait.
    Limited,
}

impl BaseStatus {
    /// As it is written.
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

    /// From what [`Self::as_str`] gave.
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

/// A move of a tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BaseChange {
    /// What it held.
    #[schema(value_type = String)]
    pub old: Digest,
    /// What it held then.
    #[schema(value_type = String)]
    pub new: Digest,
    /// When that was found.
    #[schema(value_type = String)]
    pub at: Timestamp,
    /// It had held that before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub moved_back: bool,
    /// The platforms that it is another image for; nothing where that is not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<String>,
}

/// Asks for a look at base tags now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CheckBases {
    /// This tag; nothing: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1)]
    pub name: Option<String>,
    /// The answer comes when they were looked at, or after so many seconds; 60 at most.
    #[schema(maximum = 60)]
    pub wait_secs: u64,
}
