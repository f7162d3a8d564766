//! Facts about images from the control plane: the input of this crate.

use acrtask_model::{Digest, ImageRef, events::BaseRole};
use serde::{Deserialize, Serialize};

/// Bases whose digest changes make a task stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Policy {
    /// Bases of the final images.
    #[default]
    Runtime,
    /// Every image of the last run: all build stages, `COPY --from`, frontends and images of `cmd`
    /// steps.
    All,
    /// No base.
    None,
}

impl Policy {
    /// Returns `true` if a base in `role` can make the task stale.
    pub fn counts(self, role: BaseRole) -> bool {
        match self {
            Self::Runtime => role == BaseRole::Runtime,
            Self::All => true,
            Self::None => false,
        }
    }
}

/// Input of a [`Graph`](super::Graph).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Facts {
    /// Tasks, in any order.
    pub tasks: Vec<TaskFacts>,
    /// Current digests of tags, as far as they are available.
    ///
    /// A deleted or unreadable tag is missing here and makes no task stale.
    pub tags: Vec<TagFacts>,
}

/// A task and the result of its last successful run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TaskFacts {
    /// Name of the task.
    pub name: String,
    /// Bases that can make the task stale.
    #[serde(default)]
    pub policy: Policy,
    /// Images that the run pushed.
    #[serde(default)]
    pub images: Vec<TagFacts>,
    /// Bases that the run used.
    #[serde(default)]
    pub bases: Vec<BaseFacts>,
    /// Expected run time in milliseconds, from past runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_ms: Option<u64>,
}

/// A tag and its digest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TagFacts {
    /// Image with its tag; `latest` if no tag is written.
    pub image: ImageRef,
    /// Digest of the tag.
    pub digest: Digest,
}

/// A base that a run used.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BaseFacts {
    /// Image as written in the build. A reference by digest never moves and is left out of the
    /// graph.
    pub image: ImageRef,
    /// Role of the base in the build.
    pub role: BaseRole,
    /// Digest that the run used.
    pub digest: Digest,
}
