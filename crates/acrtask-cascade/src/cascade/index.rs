//! What is looked up at each step, made from the cascades and kept true beside them: an event then costs as much
//! as it touches, however many nodes there are.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
};

use super::state::{Cascade, CascadeId, Node, NodePin, NodeState};

/// A node by its place.
pub(super) type At = (CascadeId, String);

#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    /// Nodes by a node whose output they are pinned to.
    pub(super) below: HashMap<At, Vec<At>>,
    /// Nodes that are ready, longest chain first.
    pub(super) ready: BTreeMap<CascadeId, BTreeSet<(Reverse<u64>, String)>>,
    /// Tasks that run, and where.
    pub(super) running: BTreeMap<String, CascadeId>,
    /// How many nodes of a cascade are not final, and how many of these run.
    open: HashMap<CascadeId, (usize, usize)>,
}

impl Index {
    pub(super) fn of(cascades: &BTreeMap<CascadeId, Cascade>) -> Self {
        let mut index = Self::default();
        for cascade in cascades.values() {
            for (task, node) in &cascade.nodes {
                index.enter(cascade.id, task, node);
                if !node.state.waits() {
                    continue;
                }
                for base in &node.bases {
                    if let NodePin::Output {
                        task: parent,
                        cascade: home,
                        ..
                    } = &base.pin
                    {
                        let below = index.below.entry((*home, parent.clone())).or_default();
                        below.push((cascade.id, task.clone()));
                    }
                }
            }
        }
        index
    }

    /// A node has this state now.
    pub(super) fn enter(&mut self, cascade: CascadeId, task: &str, node: &Node) {
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

    /// A node has this state no more.
    pub(super) fn leave(&mut self, cascade: CascadeId, task: &str, node: &Node) {
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

    pub(super) fn open(&self, cascade: CascadeId) -> usize {
        self.open.get(&cascade).map_or(0, |counts| counts.0)
    }

    pub(super) fn running_in(&self, cascade: CascadeId) -> usize {
        self.open.get(&cascade).map_or(0, |counts| counts.1)
    }
}
