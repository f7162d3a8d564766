//! Cascades: plans that are carried out while runs finish or fail and bases move on.
//!
//! [`Cascades`] is the complete state, as data. Two pure functions change it: [`Cascades::step`]
//! applies an event, and [`Cascades::reconcile`] compares all facts with all cascades. Both return
//! the actions to perform.
//!
//! The driver stores the new state and the actions in one transaction. After a crash,
//! [`Cascades::running`] returns the runs that must exist. A run that exists already has the same
//! (cascade, task, attempt).
//!
//! Tests over random histories check these invariants:
//!
//! - A task never runs twice at a time. It runs at most once per cascade unless it failed or was
//!   superseded.
//! - A node starts only when all of its bases have settled and a counted base has a new digest.
//! - A task does not run again for the digests it last ran for. Exceptions are a request by a user,
//!   and the automatic retry of a failed task after [`Settings::retry_failed_after_secs`].
//! - A failure stops only the tasks below it. Every task that stays stale has a reason that can be
//!   shown.
//! - Reconciling with the same facts again changes nothing.
//!
//! When a base moves during a cascade, nodes that have not started use the new digest (they
//! *join*). Tasks that started with the old digest are rebuilt in a cascade that *follows*. The
//! nodes below them move there too, so each is built once, with one set of digests. A node that was
//! moved [`Settings::max_deferrals`] times stays in its cascade. A base that moves all the time
//! therefore cannot prevent a build.

mod gates;
mod index;
mod reconcile;
mod resolve;
mod sets;
mod settings;
mod state;
mod step;

use std::collections::BTreeMap;

use acrtask_model::{Digest, ImageRef};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use reconcile::{Blocked, BlockedCause, Reconciliation};
pub use settings::{Mode, QuietHours, Rule, Settings};
pub use state::{
    Attempt, AttemptEnd, Cascade, CascadeId, Gate, Key, Node, NodeBase, NodePin, NodeState, Phase,
    SkipCause, StaleCause,
};
pub use step::{End, Event, StepError};

use index::Index;

/// All unfinished cascades, the finished ones that were not pruned, and the last attempt of each
/// task.
///
/// [`Cascades::prune`] removes finished cascades.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
pub struct Cascades {
    cascades: BTreeMap<CascadeId, Cascade>,
    attempts: BTreeMap<String, Attempt>,
    next: u64,
    index: Index,
}

/// Serialized form of [`Cascades`]. The index is derived from it.
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
        all.index = Index::build(&all.cascades);
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

/// Action for the driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "do", rename_all = "camelCase")]
pub enum Action {
    /// Start a run of a task. The same (cascade, task, attempt) denotes the same run.
    Start(Start),
    /// Stop this run. Its end must still be reported.
    Stop {
        /// Cascade of the run.
        cascade: CascadeId,
        /// Task of the run.
        task: String,
        /// Attempt of the run.
        attempt: u32,
    },
    /// Call [`Cascades::step`] with a tick at this time at the latest. A lost wake-up only causes a
    /// delay.
    WakeAt {
        /// Time of the tick.
        at: Timestamp,
    },
    /// A cascade is finished.
    Finished {
        /// The finished cascade.
        cascade: CascadeId,
    },
}

/// A run to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Start {
    /// Cascade of the run.
    pub cascade: CascadeId,
    /// Task to run.
    pub task: String,
    /// Number of starts of this task in this cascade, from 1.
    pub attempt: u32,
    /// Digest to use for each base.
    pub pins: BTreeMap<ImageRef, Digest>,
    /// Key of the task and `pins`.
    pub key: Key,
    /// Priority in the queue. Runs started by people have 0.
    pub priority: i32,
}

impl Cascades {
    /// Restores the state from its stored parts. `newest` is the number of the newest cascade.
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

    /// Returns the number of the newest cascade ever created; 0 if there was none.
    pub fn newest(&self) -> u64 {
        self.next
    }

    /// Returns the last attempt of each task, by task name.
    pub fn attempts(&self) -> impl Iterator<Item = (&str, &Attempt)> {
        self.attempts
            .iter()
            .map(|(task, attempt)| (task.as_str(), attempt))
    }

    /// Returns all cascades, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Cascade> {
        self.cascades.values()
    }

    /// Returns the cascade `id`.
    pub fn get(&self, id: CascadeId) -> Option<&Cascade> {
        self.cascades.get(&id)
    }

    /// Returns the last attempt of a cascade to build the task; `None` if there is none.
    pub fn last_attempt(&self, task: &str) -> Option<&Attempt> {
        self.attempts.get(task)
    }

    /// Returns the runs that must exist now. After a crash, the driver compares them with the
    /// existing runs.
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

    /// Removes and returns the finished cascades that no open node depends on.
    pub fn prune(&mut self) -> Vec<Cascade> {
        self.prune_where(|_| true)
    }

    /// Removes and returns the cascades of [`Self::prune`] that satisfy `removable`.
    pub fn prune_where(&mut self, removable: impl Fn(&Cascade) -> bool) -> Vec<Cascade> {
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
            .filter(|cascade| {
                cascade.is_finished() && !needed.contains(&cascade.id) && removable(cascade)
            })
            .map(|cascade| cascade.id)
            .collect();
        let gone: Vec<Cascade> = over
            .iter()
            .filter_map(|id| self.cascades.remove(id))
            .collect();
        if !gone.is_empty() {
            self.index = Index::build(&self.cascades);
        }
        gone
    }
}
