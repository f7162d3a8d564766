//! The state of a node that follows from what it stands on.

use std::collections::BTreeMap;

use acrtask_model::{Digest, ImageRef};
use jiff::Timestamp;

use super::{
    CascadeId, Cascades, Key, Node, NodePin, NodeState, SkippedBecause, StaleBecause, index::At,
};

/// What a node stands on.
pub(super) enum Resolved {
    /// Something of it is not built yet.
    Waits,
    /// Below this task, which was not built.
    Below(String),
    /// These digests.
    Pins(BTreeMap<ImageRef, Digest>),
}

impl Cascades {
    /// These nodes have come to rest: looks at all that is pinned to them, and further.
    pub(super) fn spread(&mut self, mut rested: Vec<At>, now: Timestamp) {
        while let Some(at) = rested.pop() {
            let below = self.index.below.get(&at).cloned().unwrap_or_default();
            for (id, task) in below {
                self.look(id, &task, now, &mut rested);
            }
        }
    }

    /// Gives a pending node the state that follows from what it stands on.
    pub(super) fn look(&mut self, id: CascadeId, task: &str, now: Timestamp, rested: &mut Vec<At>) {
        let Some(node) = self.node(id, task) else {
            return;
        };
        // What it stands on while it runs elsewhere is not known.
        if node.state != NodeState::Pending || self.index.running.contains_key(task) {
            return;
        }
        let state = match self.resolve(node) {
            Resolved::Waits => return,
            Resolved::Below(parent) => NodeState::Stale {
                because: StaleBecause::Below { task: parent },
            },
            Resolved::Pins(pins) => {
                let stale = node
                    .bases
                    .iter()
                    .any(|base| base.counted && pins.get(&base.image) != Some(&base.used));
                let key = Key::of(task, &pins);
                match self.attempts.get(task) {
                    _ if !stale => NodeState::Skipped {
                        because: SkippedBecause::Unchanged,
                    },
                    Some(attempt) if attempt.holds(&key, &node.from(task), now) => {
                        NodeState::Stale {
                            because: StaleBecause::Tried { end: attempt.end },
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
        let rests = !state.is_open();
        self.set(id, task, state);
        if rests {
            rested.push((id, task.to_owned()));
        }
    }

    pub(super) fn resolve(&self, node: &Node) -> Resolved {
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
                    Some(state) if state.left_undone() && base.counted => {
                        return Resolved::Below(task.clone());
                    }
                    _ => {}
                }
            }
            pins.insert(base.image.clone(), base.fixed_by(parent).clone());
        }
        if waits {
            Resolved::Waits
        } else {
            Resolved::Pins(pins)
        }
    }
}
