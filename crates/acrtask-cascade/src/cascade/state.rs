//! States of cascades and their nodes. A final state contains its reason.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use acrtask_model::{Digest, ImageRef};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Settings;

/// Number of a cascade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CascadeId(pub u64);

impl fmt::Display for CascadeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Hash of a task name and the digests of all its bases.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Key(String);

impl Key {
    /// Computes the key of a task and the digests of its bases.
    pub fn compute(task: &str, pins: &BTreeMap<ImageRef, Digest>) -> Self {
        let mut hash = Sha256::new();
        hash.update(task);
        for (image, digest) in pins {
            // No part contains a zero byte, so different lists never produce the same input.
            hash.update([0]);
            hash.update(image.to_string());
            hash.update([0]);
            hash.update(digest.as_str());
        }
        let bytes = hash.finalize();
        Self(
            bytes[..16]
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
        )
    }

    /// Returns the key as hexadecimal text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Last attempt of a cascade to build a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// Key of the digests that the task was built for.
    pub key: Key,
    /// Key of the digests that the task used before. The attempt is obsolete if another run changes
    /// them.
    pub from: Key,
    /// Result of the attempt.
    pub end: AttemptEnd,
    /// Number of consecutive final failures for these digests.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failed: u32,
    /// Time of the automatic retry, because the cause of a failure may be temporary. `None`: no
    /// retry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again: Option<Timestamp>,
}

/// Result of an [`Attempt`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AttemptEnd {
    /// The run succeeded.
    Succeeded,
    /// The run failed and its retries are used up.
    Failed,
    /// A user canceled the cascade before or during the run.
    Canceled,
    /// The task was not tried because a canary failed.
    CanaryFailed,
}

/// A plan that is carried out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cascade {
    /// Number of the cascade.
    pub id: CascadeId,
    /// Time when the first change was observed.
    pub created: Timestamp,
    /// Phase of the cascade.
    pub phase: Phase,
    /// `true` if no further runs are started.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// `true` if a user approved the cascade.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub approved: bool,
    /// Earlier cascade whose tasks this one rebuilds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follows: Option<CascadeId>,
    /// Bases that moved, with the digests to build on.
    pub changes: BTreeMap<ImageRef, Digest>,
    /// Nodes by task name.
    pub nodes: BTreeMap<String, Node>,
}

/// Phase of a cascade.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "camelCase")]
pub enum Phase {
    /// Collecting further changes.
    Settling {
        /// End of the settling time.
        until: Timestamp,
    },
    /// Building.
    Active,
    /// Waiting for the ends of the stopped runs.
    Canceling {
        /// Name of the user who canceled the cascade.
        by: String,
    },
    /// Every node has its final state.
    Finished {
        /// Time when the cascade finished.
        at: Timestamp,
    },
}

/// A task in a cascade.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// State of the node.
    #[serde(flatten)]
    pub state: NodeState,
    /// Bases of the node.
    pub bases: Vec<NodeBase>,
    /// Consent needed before the start.
    #[serde(default, skip_serializing_if = "Gate::is_open")]
    pub gate: Gate,
    /// Longest chain that begins with this node, in milliseconds. Longer chains start first.
    pub chain_ms: u64,
    /// Number of starts.
    pub attempts: u32,
    /// Number of failures with these bases.
    pub failures: u32,
    /// Number of moves to a following cascade.
    pub moved: u32,
    /// `true` if the running build uses digests that its bases no longer have. It is not retried if
    /// it fails.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub outdated: bool,
}

/// Consent needed before a node starts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Gate {
    /// No consent needed.
    #[default]
    Open,
    /// Approval by a person.
    Approval,
    /// Success of these tasks of the same cascade.
    Canary {
        /// Names of the canary tasks.
        first: BTreeSet<String>,
    },
}

impl Attempt {
    /// Creates an attempt for `key` of a task that used the digests of `from` before.
    pub(crate) fn new(key: Key, from: Key, end: AttemptEnd) -> Self {
        Self {
            key,
            from,
            end,
            failed: 0,
            again: None,
        }
    }

    /// Returns `true` if this attempt forbids building the same digests again at `now`.
    pub(crate) fn forbids_rebuild(&self, key: &Key, from: &Key, now: Timestamp) -> bool {
        self.is_for(key, from) && self.again.is_none_or(|again| again > now)
    }

    /// Creates the attempt of a finished run. `before` is the previous attempt of the task.
    pub(crate) fn from_end(
        key: Key,
        from: Key,
        end: AttemptEnd,
        before: Option<&Self>,
        settings: &Settings,
        now: Timestamp,
    ) -> Self {
        let mut attempt = Self::new(key, from, end);
        if end == AttemptEnd::Failed {
            let before = before.filter(|before| before.is_for(&attempt.key, &attempt.from));
            let failed = before.map_or(0, |before| before.failed).saturating_add(1);
            let wait = settings.retry_failed_after(failed);
            attempt.failed = failed;
            attempt.again = wait.map(|wait| now.saturating_add(wait).unwrap_or(now));
        }
        attempt
    }

    fn is_for(&self, key: &Key, from: &Key) -> bool {
        self.key == *key && self.from == *from
    }
}

impl Node {
    /// Returns the key of the digests that the task used last.
    pub(crate) fn used_key(&self, task: &str) -> Key {
        let bases = self.bases.iter();
        let used = bases.map(|base| (base.image.clone(), base.used.clone()));
        Key::compute(task, &used.collect())
    }
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

impl NodeBase {
    /// Returns the digest to use. `parent` is the settled state of the task that builds this base.
    pub fn resolved_digest<'b>(&'b self, parent: Option<&'b NodeState>) -> &'b Digest {
        match (&self.pin, parent) {
            (NodePin::Digest(digest), _) => digest,
            (NodePin::Output { otherwise, .. }, Some(NodeState::Succeeded { digests })) => {
                digests.get(&self.image).unwrap_or(otherwise)
            }
            (NodePin::Output { otherwise, .. }, _) => otherwise,
        }
    }
}

impl Gate {
    fn is_open(&self) -> bool {
        *self == Self::Open
    }
}

/// Base of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeBase {
    /// Image of the base.
    pub image: ImageRef,
    /// `true` if the base can make the task stale.
    pub counted: bool,
    /// Digest that the last run used.
    pub used: Digest,
    /// Digest or output to use.
    pub pin: NodePin,
}

/// Pin of a [`NodeBase`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NodePin {
    /// A digest.
    Digest(Digest),
    /// The output of a task.
    Output {
        /// Name of the task.
        task: String,
        /// Cascade that builds the task.
        cascade: CascadeId,
        /// Current digest of the image. It stays in use if the task pushes nothing.
        otherwise: Digest,
    },
}

/// State of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "camelCase")]
pub enum NodeState {
    /// Waits for its bases.
    Pending,
    /// Waits for a free slot, a start time or an approval.
    Ready {
        /// Digest of each base.
        pins: BTreeMap<ImageRef, Digest>,
        /// Key of `pins`.
        key: Key,
        /// Earliest start after a failure.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        not_before: Option<Timestamp>,
    },
    /// Started.
    Running {
        /// Digest of each base.
        pins: BTreeMap<ImageRef, Digest>,
        /// Key of `pins`.
        key: Key,
        /// Start time.
        since: Timestamp,
    },
    /// Built.
    Succeeded {
        /// Digests of the pushed images.
        digests: BTreeMap<ImageRef, Digest>,
    },
    /// Failed, with all retries used up.
    Failed {
        /// Reason in one line.
        reason: String,
        /// Time of the automatic retry in another cascade.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        again: Option<Timestamp>,
    },
    /// Not built; still uses old digests.
    Stale {
        /// Reason.
        cause: StaleCause,
    },
    /// Needed no build.
    Skipped {
        /// Reason.
        cause: SkipCause,
    },
    /// Canceled with its cascade.
    Canceled {
        /// Name of the user who canceled the cascade.
        by: String,
    },
}

/// Reason why a node was not built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum StaleCause {
    /// A task it depends on was not built.
    Below {
        /// Name of that task.
        task: String,
    },
    /// A canary task was not built.
    Canary {
        /// Name of the canary task.
        task: String,
    },
    /// The task was run for these digests before.
    Tried {
        /// Result of that run.
        end: AttemptEnd,
    },
    /// The task must not be built: it is in a loop or pushes an image of another task.
    Refused,
}

/// Reason why a node needed no build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum SkipCause {
    /// The rebuilt bases have the digests that the task was built from.
    Unchanged,
    /// The task became fresh in the meantime.
    Fresh,
    /// The task is built in a following cascade.
    Moved {
        /// Number of the following cascade.
        to: CascadeId,
    },
}

impl NodeState {
    /// Returns `true` if the state may still change.
    pub fn is_open(&self) -> bool {
        matches!(
            self,
            Self::Pending | Self::Ready { .. } | Self::Running { .. }
        )
    }

    /// Returns `true` before the start.
    pub(crate) fn is_waiting(&self) -> bool {
        matches!(self, Self::Pending | Self::Ready { .. })
    }

    /// Returns `true` if the node provides its images to its dependents, now or soon.
    pub(crate) fn was_started(&self) -> bool {
        matches!(self, Self::Running { .. } | Self::Succeeded { .. })
    }

    /// Returns `true` if the task is still to be built.
    pub(crate) fn is_unbuilt(&self) -> bool {
        matches!(
            self,
            Self::Failed { .. } | Self::Stale { .. } | Self::Canceled { .. }
        )
    }
}

impl Cascade {
    /// Returns `true` if every node has its final state.
    pub fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Finished { .. })
    }

    /// Returns the state of the node of this cascade that builds `base`, if there is one.
    pub fn parent_of(&self, base: &NodeBase) -> Option<&NodeState> {
        match &base.pin {
            NodePin::Output { task, cascade, .. } if *cascade == self.id => {
                self.nodes.get(task).map(|node| &node.state)
            }
            _ => None,
        }
    }

    /// Returns the tasks that this cascade built, each with the keys of the new and of the
    /// previously used digests.
    pub fn built_tasks(&self) -> Vec<(String, Key, Key)> {
        let built = |node: &&Node| matches!(node.state, NodeState::Succeeded { .. });
        let nodes = self.nodes.iter().filter(|(_, node)| built(node));
        nodes
            .map(|(task, node)| {
                let pins = node.bases.iter().map(|base| {
                    let digest = base.resolved_digest(self.parent_of(base));
                    (base.image.clone(), digest.clone())
                });
                (
                    task.clone(),
                    Key::compute(task, &pins.collect()),
                    node.used_key(task),
                )
            })
            .collect()
    }

    /// Returns `true` if the cascade cannot continue without an approval.
    pub fn is_awaiting_approval(&self) -> bool {
        !self.approved
            && self.phase == Phase::Active
            && self.nodes.values().all(|node| match node.state {
                NodeState::Ready { .. } => node.gate == Gate::Approval,
                NodeState::Running { .. } => false,
                _ => true,
            })
            && self
                .nodes
                .values()
                .any(|node| matches!(node.state, NodeState::Ready { .. }))
    }
}
