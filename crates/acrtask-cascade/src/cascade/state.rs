//! The states of a cascade and of its nodes. A final state holds its own reason.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use acrtask_model::{Digest, ImageRef};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Settings;

/// A cascade's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CascadeId(pub u64);

impl fmt::Display for CascadeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A task and the digests of all its bases, in one word.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Key(String);

impl Key {
    /// The key of a task and what its bases are pinned to.
    pub fn of(task: &str, pins: &BTreeMap<ImageRef, Digest>) -> Self {
        let mut hash = Sha256::new();
        hash.update(task);
        for (image, digest) in pins {
            // No part can hold a zero byte, so that no two lists are written alike.
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

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a task was last run for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// The digests, in one word.
    pub key: Key,
    /// Those that it stood on before, in one word: what another run changed since makes this one count no more.
    pub from: Key,
    /// How it ended.
    pub end: AttemptEnd,
    /// How often in a row it has failed for good for these digests.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failed: u32,
    /// From then on it is tried again by itself: what has failed may have had reasons that are gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again: Option<Timestamp>,
}

/// See [`Attempt`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AttemptEnd {
    /// Well.
    Succeeded,
    /// Badly, for good.
    Failed,
    /// Somebody canceled the cascade, before or while it ran.
    Canceled,
    /// It was not tried, because those that go first failed.
    Held,
}

/// A plan being carried out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cascade {
    /// Its number.
    pub id: CascadeId,
    /// When its first change was seen.
    pub created: Timestamp,
    /// Where it stands.
    pub phase: Phase,
    /// Nothing is started.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// Somebody agreed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub approved: bool,
    /// The one before it, whose tasks it builds again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follows: Option<CascadeId>,
    /// The bases that moved, with the digests that it builds on.
    pub changes: BTreeMap<ImageRef, Digest>,
    /// By task.
    pub nodes: BTreeMap<String, Node>,
}

/// Where a cascade stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "camelCase")]
pub enum Phase {
    /// Waits for further changes.
    Settling {
        /// Until then.
        until: Timestamp,
    },
    /// Builds.
    Active,
    /// Waits for the ends of runs that it stopped.
    Canceling {
        /// Who canceled it.
        by: String,
    },
    /// Every node has its final state.
    Over {
        /// Since then.
        at: Timestamp,
    },
}

/// A task in a cascade.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Where it stands.
    #[serde(flatten)]
    pub state: NodeState,
    /// What it stands on.
    pub bases: Vec<NodeBase>,
    /// Who has to agree first.
    #[serde(default, skip_serializing_if = "Gate::is_open")]
    pub gate: Gate,
    /// The longest chain that begins with it, in milliseconds: what is started first.
    pub chain_ms: u64,
    /// How often it was started.
    pub attempts: u32,
    /// How often it failed for these bases.
    pub failures: u32,
    /// How often it was moved to a cascade that follows.
    pub moved: u32,
    /// It runs with digests that are not those of its bases any more: where it fails, it is not tried again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub outdated: bool,
}

/// Who has to agree first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Gate {
    /// Nobody.
    #[default]
    Open,
    /// A person.
    Approval,
    /// These tasks of the same cascade, by succeeding.
    Canary {
        /// Their names.
        first: BTreeSet<String>,
    },
}

impl Attempt {
    /// How a task that stands on `from` was left for `key`.
    pub(crate) fn new(key: Key, from: Key, end: AttemptEnd) -> Self {
        Self {
            key,
            from,
            end,
            failed: 0,
            again: None,
        }
    }

    /// True where it says that a task which stands on `from` was tried for `key`, and is not to be tried again yet.
    pub(crate) fn holds(&self, key: &Key, from: &Key, now: Timestamp) -> bool {
        self.is_for(key, from) && self.again.is_none_or(|again| again > now)
    }

    /// The same of a run that has ended; `before` is what was known of the task until then.
    pub(crate) fn ended(
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
            let wait = settings.heal_after(failed);
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
    /// What the task stands on, in one word.
    pub(crate) fn from(&self, task: &str) -> Key {
        let bases = self.bases.iter();
        let used = bases.map(|base| (base.image.clone(), base.used.clone()));
        Key::of(task, &used.collect())
    }
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

impl NodeBase {
    /// The digest that it comes to, where the task that it waits for, if any, is at rest and stands so.
    pub fn fixed_by<'b>(&'b self, parent: Option<&'b NodeState>) -> &'b Digest {
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

/// A base of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeBase {
    /// The image.
    pub image: ImageRef,
    /// It can make the task stale.
    pub counted: bool,
    /// What was used last time.
    pub used: Digest,
    /// What is to be used.
    pub pin: NodePin,
}

/// See [`NodeBase`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NodePin {
    /// This digest.
    Digest(Digest),
    /// What a task pushes.
    Output {
        /// The task.
        task: String,
        /// The cascade in which it does.
        cascade: CascadeId,
        /// What the image has until then, and keeps where the task pushes nothing.
        otherwise: Digest,
    },
}

/// Where a node stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "camelCase")]
pub enum NodeState {
    /// Waits for the tasks that it stands on.
    Pending,
    /// Waits for a free place, for its hour, or for somebody's consent.
    Ready {
        /// What its bases are fixed to.
        pins: BTreeMap<ImageRef, Digest>,
        /// The same in one word.
        key: Key,
        /// After a failure: not before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        not_before: Option<Timestamp>,
    },
    /// Has been started.
    Running {
        /// What its bases are fixed to.
        pins: BTreeMap<ImageRef, Digest>,
        /// The same in one word.
        key: Key,
        /// When.
        since: Timestamp,
    },
    /// Was built.
    Succeeded {
        /// What it pushed.
        digests: BTreeMap<ImageRef, Digest>,
    },
    /// Could not be built, for good.
    Failed {
        /// Why, in one line.
        reason: String,
        /// When it is tried again by itself, in another cascade.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        again: Option<Timestamp>,
    },
    /// Left behind: still stands on old digests.
    Stale {
        /// Why.
        because: StaleBecause,
    },
    /// Needed no build.
    Skipped {
        /// Why.
        because: SkippedBecause,
    },
    /// Somebody canceled the cascade.
    Canceled {
        /// Who.
        by: String,
    },
}

/// Why a node was left behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "camelCase")]
pub enum StaleBecause {
    /// A task that it stands on was not built.
    Below {
        /// That task.
        task: String,
    },
    /// A task that goes first was not built.
    Canary {
        /// That task.
        task: String,
    },
    /// It was run for these very digests before.
    Tried {
        /// How that ended.
        end: AttemptEnd,
    },
    /// It may not be built: a loop, or another task's image.
    Refused,
}

/// Why a node needed no build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "camelCase")]
pub enum SkippedBecause {
    /// What it stands on came out with the digests that it was built from.
    Unchanged,
    /// Meanwhile it is not stale any more.
    Fresh,
    /// It is built in a cascade that follows.
    Moved {
        /// Which.
        to: CascadeId,
    },
}

impl NodeState {
    /// True for a state that may still change.
    pub fn is_open(&self) -> bool {
        matches!(
            self,
            Self::Pending | Self::Ready { .. } | Self::Running { .. }
        )
    }

    /// True before the start.
    pub(crate) fn waits(&self) -> bool {
        matches!(self, Self::Pending | Self::Ready { .. })
    }

    /// True where it gives its images to those below it, now or soon.
    pub(crate) fn was_started(&self) -> bool {
        matches!(self, Self::Running { .. } | Self::Succeeded { .. })
    }

    /// True where a task has to be built by somebody still.
    pub(crate) fn left_undone(&self) -> bool {
        matches!(
            self,
            Self::Failed { .. } | Self::Stale { .. } | Self::Canceled { .. }
        )
    }
}

impl Cascade {
    /// True where nothing of it changes any more.
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over { .. })
    }

    /// Where the task of this cascade stands that a base waits for, if it waits for one.
    pub fn parent_of(&self, base: &NodeBase) -> Option<&NodeState> {
        match &base.pin {
            NodePin::Output { task, cascade, .. } if *cascade == self.id => {
                self.nodes.get(task).map(|node| &node.state)
            }
            _ => None,
        }
    }

    /// The tasks that it has built: each with the digests that it was built from, and those of before, in one word.
    pub fn built_for(&self) -> Vec<(String, Key, Key)> {
        let built = |node: &&Node| matches!(node.state, NodeState::Succeeded { .. });
        let nodes = self.nodes.iter().filter(|(_, node)| built(node));
        nodes
            .map(|(task, node)| {
                let pins = node.bases.iter().map(|base| {
                    let digest = base.fixed_by(self.parent_of(base));
                    (base.image.clone(), digest.clone())
                });
                (
                    task.clone(),
                    Key::of(task, &pins.collect()),
                    node.from(task),
                )
            })
            .collect()
    }

    /// True where nothing goes on before somebody approves it.
    pub fn waits_for_approval(&self) -> bool {
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
