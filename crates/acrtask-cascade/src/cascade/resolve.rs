//! State of a node that follows from its bases.

use std::collections::BTreeMap;

use acrtask_model::{Digest, ImageRef};
use jiff::Timestamp;

use super::{
    CascadeId, Cascades, Key, Node, NodePin, NodeState, SkipCause, StaleCause, index::NodeRef,
};

/// State of a node's bases.
pub(super) enum BaseState {
    /// At least one base is not built yet.
    Waiting,
    /// This task of a counted base was not built.
    NotBuilt(String),
    /// All digests are final.
    Pinned(BTreeMap<ImageRef, Digest>),
}

impl Cascades {
    /// Updates all nodes that are pinned to the given settled nodes, directly or not.
    pub(super) fn update_dependents(&mut self, mut settled: Vec<NodeRef>, now: Timestamp) {
        while let Some(at) = settled.pop() {
            let below = self.index.below.get(&at).cloned().unwrap_or_default();
            for (id, task) in below {
                self.update_node(id, &task, now, &mut settled);
            }
        }
    }

    /// Gives a pending node the state that follows from its bases. Adds it to `settled` if that
    /// state is final.
    pub(super) fn update_node(
        &mut self,
        id: CascadeId,
        task: &str,
        now: Timestamp,
        settled: &mut Vec<NodeRef>,
    ) {
        let Some(node) = self.node(id, task) else {
            return;
        };
        // While the task runs in another cascade, the digests it was built from are not recorded
        // yet.
        if node.state != NodeState::Pending || self.index.running.contains_key(task) {
            return;
        }
        let state = match self.resolve_bases(node) {
            BaseState::Waiting => return,
            BaseState::NotBuilt(parent) => NodeState::Stale {
                cause: StaleCause::Below { task: parent },
            },
            BaseState::Pinned(pins) => {
                let stale = node
                    .bases
                    .iter()
                    .any(|base| base.counted && pins.get(&base.image) != Some(&base.used));
                let key = Key::compute(task, &pins);
                match self.attempts.get(task) {
                    _ if !stale => NodeState::Skipped {
                        cause: SkipCause::Unchanged,
                    },
                    Some(attempt) if attempt.forbids_rebuild(&key, &node.used_key(task), now) => {
                        NodeState::Stale {
                            cause: StaleCause::Tried { end: attempt.end },
                        }
                    }
                    _ => NodeState::Ready {
                        pins,
                        key,
                        not_before: None,
                    },
                }
            }
        };
        let is_final = !state.is_open();
        self.set_state(id, task, state);
        if is_final {
            settled.push((id, task.to_owned()));
        }
    }

    pub(super) fn resolve_bases(&self, node: &Node) -> BaseState {
        let mut pins = BTreeMap::new();
        let mut waits = false;
        for base in &node.bases {
            let mut parent = None;
            if let NodePin::Output { task, cascade, .. } = &base.pin {
                parent = self.node(*cascade, task).map(|parent| &parent.state);
                match parent {
                    Some(state) if state.is_open() => {
                        waits = true;
                        continue;
                    }
                    Some(state) if state.is_unbuilt() && base.counted => {
                        return BaseState::NotBuilt(task.clone());
                    }
                    _ => {}
                }
            }
            pins.insert(base.image.clone(), base.resolved_digest(parent).clone());
        }
        if waits {
            BaseState::Waiting
        } else {
            BaseState::Pinned(pins)
        }
    }
}
