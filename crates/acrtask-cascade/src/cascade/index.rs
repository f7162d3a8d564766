//! Lookup tables derived from the cascades and updated with them.
//!
//! The cost of an event depends on the nodes it touches, not on the number of nodes.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
};

use super::state::{Cascade, CascadeId, Node, NodePin, NodeState};

/// Reference to a node: its cascade and its task.
pub(super) type NodeRef = (CascadeId, String);

#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    /// Nodes that are pinned to the output of a node, by that node.
    pub(super) below: HashMap<NodeRef, Vec<NodeRef>>,
    /// Nodes that are ready, longest chain first.
    pub(super) ready: BTreeMap<CascadeId, BTreeSet<(Reverse<u64>, String)>>,
    /// Running tasks and the cascade of each.
    pub(super) running: BTreeMap<String, CascadeId>,
    /// Per cascade: the number of nodes without a final state, and how many of these are running.
    open: HashMap<CascadeId, (usize, usize)>,
}

impl Index {
    pub(super) fn build(cascades: &BTreeMap<CascadeId, Cascade>) -> Self {
        let mut index = Self::default();
        for cascade in cascades.values() {
            for (task, node) in &cascade.nodes {
                index.add(cascade.id, task, node);
                if !node.state.is_waiting() {
                    continue;
                }
                for base in &node.bases {
                    if let NodePin::Output {
                        task: parent,
                        cascade: parent_cascade,
                        ..
                    } = &base.pin
                    {
                        let below = index
                            .below
                            .entry((*parent_cascade, parent.clone()))
                            .or_default();
                        below.push((cascade.id, task.clone()));
                    }
                }
            }
        }
        index
    }

    /// Adds a node in its current state.
    pub(super) fn add(&mut self, cascade: CascadeId, task: &str, node: &Node) {
        if node.state.is_open() {
            self.open.entry(cascade).or_default().0 += 1;
        }
        match &node.state {
            NodeState::Ready { .. } => {
                let ready = self.ready.entry(cascade).or_default();
                ready.insert((Reverse(node.chain_ms), task.to_owned()));
            }
            NodeState::Running { .. } => {
                self.open.entry(cascade).or_default().1 += 1;
                self.running.insert(task.to_owned(), cascade);
            }
            _ => {}
        }
    }

    /// Removes a node before its state changes.
    pub(super) fn remove(&mut self, cascade: CascadeId, task: &str, node: &Node) {
        if node.state.is_open() {
            self.open.entry(cascade).or_default().0 -= 1;
        }
        match &node.state {
            NodeState::Ready { .. } => {
                let ready = self.ready.entry(cascade).or_default();
                ready.remove(&(Reverse(node.chain_ms), task.to_owned()));
            }
            NodeState::Running { .. } => {
                self.open.entry(cascade).or_default().1 -= 1;
                self.running.remove(task);
            }
            _ => {}
        }
    }

    pub(super) fn open_count(&self, cascade: CascadeId) -> usize {
        self.open.get(&cascade).map_or(0, |counts| counts.0)
    }

    pub(super) fn running_count(&self, cascade: CascadeId) -> usize {
        self.open.get(&cascade).map_or(0, |counts| counts.1)
    }
}
