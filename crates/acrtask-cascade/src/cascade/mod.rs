//! Cascades: plans being carried out, while builds end or fail and bases move on.
//!
//! [`Cascades`] is everything that has to be kept, as data. Two functions change it, and both are pure:
//! [`Cascades::step`] takes what happened, [`Cascades::reconcile`] takes all facts and no event. Each answers what
//! to do now. Whoever drives them stores the new state and what is to be done in one transaction; after a crash
//! [`Cascades::running`] says again what has to be running, and a run that exists already has the same
//! (cascade, task, attempt).
//!
//! Invariants, held by tests over random histories:
//!
//! - A task runs at most once at a time, and at most once in a cascade unless it failed or another run took its place.
//! - A node starts only when each of its own bases has come to rest, and only where one of the bases that count
//!   really has another digest than last time.
//! - A task does not run again for the digests that it last ran for, unless somebody asks for it, or it failed and the
//!   time that [`Settings::heal_secs`] sets has gone by.
//! - What fails stops only what is below it. Everything that stays stale has a reason that can be shown.
//! - The same facts again change nothing.
//!
//! When a base moves during a cascade, nodes that have not started take the new digest (they *join*). Tasks that
//! have started with the old one are built again in a cascade that *follows*, and what is below them moves there,
//! so that it is built once, on one set of digests. A node that was moved [`Settings::patience`] times stays where
//! it is, so that a base that never rests does not keep anything from being built.

mod gates;
mod index;
mod look;
mod reconcile;
mod sets;
mod settings;
mod state;
mod step;

use std::collections::BTreeMap;

use acrtask_model::{Digest, ImageRef};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use reconcile::{Blocked, BlockedBecause, Reconciled};
pub use settings::{Mode, QuietHours, Rule, Settings};
pub use state::{
    Attempt, AttemptEnd, Cascade, CascadeId, Gate, Key, Node, NodeBase, NodePin, NodeState, Phase,
    SkippedBecause, StaleBecause,
};
pub use step::{End, Event, StepError};

use index::Index;

/// All cascades that are not over, those that are over until [`Cascades::prune`] takes them, and what each task was
/// last run for.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
pub struct Cascades {
    cascades: BTreeMap<CascadeId, Cascade>,
    attempts: BTreeMap<String, Attempt>,
    next: u64,
    index: Index,
}

/// What is kept; the index is made from it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    cascades: Vec<Cascade>,
    attempts: BTreeMap<String, Attempt>,
    next: u64,
}

impl From<Stored> for Cascades {
    fn from(stored: Stored) -> Self {
        let mut all = Self {
            cascades: stored
                .cascades
                .into_iter()
                .map(|cascade| (cascade.id, cascade))
                .collect(),
            attempts: stored.attempts,
            next: stored.next,
            index: Index::default(),
        };
        all.index = Index::of(&all.cascades);
        all
    }
}

impl From<Cascades> for Stored {
    fn from(all: Cascades) -> Self {
        Self {
            cascades: all.cascades.into_values().collect(),
            attempts: all.attempts,
            next: all.next,
        }
    }
}

impl PartialEq for Cascades {
    fn eq(&self, other: &Self) -> bool {
        self.cascades == other.cascades
            && self.attempts == other.attempts
            && self.next == other.next
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "do", rename_all = "camelCase")]
pub enum Action {
    /// Start a run of a task. The same (cascade, task, attempt) is the same run.
    Start(Start),
    /// Stop this run; its end must still come back.
    Stop {
        /// The cascade.
        cascade: CascadeId,
        /// The task.
        task: String,
        /// The attempt.
        attempt: u32,
    },
    /// Call [`Cascades::step`] with a tick then at the latest. Losing it loses time, nothing else.
    WakeAt {
        /// When.
        at: Timestamp,
    },
    /// A cascade is over.
    Finished {
        /// Which.
        cascade: CascadeId,
    },
}

/// A run to be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Start {
    /// The cascade.
    pub cascade: CascadeId,
    /// The task.
    pub task: String,
    /// Counts the starts of this task in this cascade, from 1.
    pub attempt: u32,
    /// The digest that each base is to be used with.
    pub pins: BTreeMap<ImageRef, Digest>,
    /// Says (task, pins) in one word.
    pub key: Key,
    /// Among the runs that wait.
    pub priority: i32,
}

impl Cascades {
    /// What was stored piece by piece: the cascades, what each task was last run for, and the newest number.
    pub fn from_parts(
        cascades: Vec<Cascade>,
        attempts: BTreeMap<String, Attempt>,
        newest: u64,
    ) -> Self {
        Self::from(Stored {
            cascades,
            attempts,
            next: newest,
        })
    }

    /// The number of the newest cascade that there ever was; 0 before the first.
    pub fn newest(&self) -> u64 {
        self.next
    }

    /// What each task was last run for, by name.
    pub fn attempts(&self) -> impl Iterator<Item = (&str, &Attempt)> {
        self.attempts
            .iter()
            .map(|(task, attempt)| (task.as_str(), attempt))
    }

    /// All cascades, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Cascade> {
        self.cascades.values()
    }

    /// One cascade.
    pub fn get(&self, id: CascadeId) -> Option<&Cascade> {
        self.cascades.get(&id)
    }

    /// What a task was last run for by a cascade, if that is known.
    pub fn last_attempt(&self, task: &str) -> Option<&Attempt> {
        self.attempts.get(task)
    }

    /// What has to be running now: what a driver that crashed compares with the runs that exist.
    pub fn running(&self, settings: &Settings) -> Vec<Start> {
        let mut found = Vec::new();
        for cascade in self.cascades.values() {
            for (task, node) in &cascade.nodes {
                if let NodeState::Running { pins, key, .. } = &node.state {
                    found.push(Start {
                        cascade: cascade.id,
                        task: task.clone(),
                        attempt: node.attempts,
                        pins: pins.clone(),
                        key: key.clone(),
                        priority: settings.priority,
                    });
                }
            }
        }
        found
    }

    /// Takes away and returns the cascades that are over and that nothing waits for any more.
    pub fn prune(&mut self) -> Vec<Cascade> {
        self.prune_where(|_| true)
    }

    /// The same with those of them that `may_go`.
    pub fn prune_where(&mut self, may_go: impl Fn(&Cascade) -> bool) -> Vec<Cascade> {
        let mut needed = std::collections::BTreeSet::new();
        for cascade in self.cascades.values() {
            for node in cascade.nodes.values().filter(|node| node.state.is_open()) {
                for base in &node.bases {
                    if let NodePin::Output { cascade, .. } = &base.pin {
                        needed.insert(*cascade);
                    }
                }
            }
        }
        let over: Vec<CascadeId> = self
            .cascades
            .values()
            .filter(|cascade| cascade.is_over() && !needed.contains(&cascade.id) && may_go(cascade))
            .map(|cascade| cascade.id)
            .collect();
        let gone: Vec<Cascade> = over
            .iter()
            .filter_map(|id| self.cascades.remove(id))
            .collect();
        if !gone.is_empty() {
            self.index = Index::of(&self.cascades);
        }
        gone
    }
}
