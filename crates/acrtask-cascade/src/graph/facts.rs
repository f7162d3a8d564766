//! What the control plane knows of images: the input of everything here, as data.

use acrtask_model::{Digest, ImageRef, events::BaseRole};
use serde::{Deserialize, Serialize};

/// Which bases of a task make it stale when their digest changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Policy {
    /// Those that the finished images stand on.
    #[default]
    Runtime,
    /// Every image that its last run used: other stages, `COPY --from`, frontends, and what `cmd` steps ran.
    All,
    /// None.
    None,
}

impl Policy {
    /// True where a base in `role` counts.
    pub fn counts(self, role: BaseRole) -> bool {
        match self {
            Self::Runtime => role == BaseRole::Runtime,
            Self::All => true,
            Self::None => false,
        }
    }
}

/// All that is known.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Facts {
    /// The tasks, in any order.
    pub tasks: Vec<TaskFacts>,
    /// What tags point at now, as far as that is known. A tag that vanished, or that nobody may read, is missing
    /// here: nothing becomes stale because of it.
    pub tags: Vec<TagFacts>,
}

/// A task and what its last successful run did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TaskFacts {
    /// Its name.
    pub name: String,
    /// Which bases count.
    #[serde(default)]
    pub policy: Policy,
    /// The images that it pushed.
    #[serde(default)]
    pub images: Vec<TagFacts>,
    /// What it used.
    #[serde(default)]
    pub bases: Vec<BaseFacts>,
    /// How long a run of it takes, in milliseconds, as past runs show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_ms: Option<u64>,
}

/// A tag and a digest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TagFacts {
    /// The tag; `latest` where none is written.
    pub image: ImageRef,
    /// The digest.
    pub digest: Digest,
}

/// A base that a run used.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BaseFacts {
    /// The tag as it was asked for. One that names a digest never moves and is left out of the graph.
    pub image: ImageRef,
    /// What it is to the task.
    pub role: BaseRole,
    /// What was used of it.
    pub digest: Digest,
}
