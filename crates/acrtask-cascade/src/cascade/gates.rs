//! Who has to agree before a node starts: nobody, a person, or tasks that go first.
//!
//! Gates are set at each reconciliation, from the rules of then; whether one is open follows from the cascade alone.

use std::collections::{BTreeMap, BTreeSet};

use super::{Cascade, Cascades, Gate, Mode, Node, NodePin, NodeState, Settings, SkippedBecause};

/// Whether a node may start.
pub(super) enum GateState {
    Open,
    Shut,
    /// This task, which goes first, was not built.
    Failed(String),
}

/// Whether a node may start, as far as others have to agree.
pub(super) fn gate(cascade: &Cascade, node: &Node) -> GateState {
    match &node.gate {
        Gate::Open => GateState::Open,
        Gate::Approval if cascade.approved => GateState::Open,
        Gate::Approval => GateState::Shut,
        Gate::Canary { first } => {
            let mut state = GateState::Open;
            for task in first {
                match cascade.nodes.get(task).map(|node| &node.state) {
                    Some(canary) if canary.left_undone() => {
                        return GateState::Failed(task.clone());
                    }
                    Some(canary) if canary.is_open() => state = GateState::Shut,
                    _ => {}
                }
            }
            state
        }
    }
}

impl Cascades {
    /// Says for each node that waits who has to agree first.
    pub(super) fn close_gates(&mut self, settings: &Settings) {
        if settings.rules.is_empty() {
            return;
        }
        for cascade in self
            .cascades
            .values_mut()
            .filter(|cascade| !cascade.is_over())
        {
            let mut gates = BTreeMap::new();
            for (task, node) in &cascade.nodes {
                if !node.state.waits() {
                    continue;
                }
                let gate = match settings.mode(task) {
                    Mode::Automatic => Gate::Open,
                    Mode::Approval => Gate::Approval,
                    Mode::Canary { first } => {
                        let here = |name: &&String| {
                            cascade.nodes.get(*name).is_some_and(|node| {
                                !matches!(
                                    node.state,
                                    NodeState::Skipped {
                                        because: SkippedBecause::Fresh
                                            | SkippedBecause::Moved { .. }
                                    }
                                )
                            })
                        };
                        let first: BTreeSet<String> = first.iter().filter(here).cloned().collect();
                        let ahead = with_bases(cascade, &first);
                        if first.is_empty() || ahead.contains(task) {
                            Gate::Open
                        } else {
                            Gate::Canary { first }
                        }
                    }
                };
                gates.insert(task.clone(), gate);
            }
            for (task, gate) in gates {
                if let Some(node) = cascade.nodes.get_mut(&task) {
                    node.gate = gate;
                }
            }
        }
    }
}

/// These tasks and all that they wait for in their cascade.
fn with_bases(cascade: &Cascade, tasks: &BTreeSet<String>) -> BTreeSet<String> {
    let mut found = tasks.clone();
    let mut waiting: Vec<String> = tasks.iter().cloned().collect();
    while let Some(task) = waiting.pop() {
        let bases = cascade.nodes.get(&task).map_or(&[][..], |node| &node.bases);
        for base in bases {
            if let NodePin::Output {
                task, cascade: at, ..
            } = &base.pin
                && *at == cascade.id
                && found.insert(task.clone())
            {
                waiting.push(task.clone());
            }
        }
    }
    found
}
