//! Gates of nodes: no consent, an approval by a person, or canary tasks that must succeed first.
//!
//! Each reconciliation sets the gates from the current rules. The state of a gate depends on the
//! cascade only.

use std::collections::{BTreeMap, BTreeSet};

use super::{Cascade, Cascades, Gate, Mode, Node, NodePin, NodeState, Settings, SkipCause};

/// State of a gate.
pub(super) enum GateState {
    Open,
    Shut,
    /// This canary task was not built.
    Failed(String),
}

/// Returns the state of a node's gate.
pub(super) fn gate_state(cascade: &Cascade, node: &Node) -> GateState {
    match &node.gate {
        Gate::Open => GateState::Open,
        Gate::Approval if cascade.approved => GateState::Open,
        Gate::Approval => GateState::Shut,
        Gate::Canary { first } => {
            let mut state = GateState::Open;
            for task in first {
                match cascade.nodes.get(task).map(|node| &node.state) {
                    Some(canary) if canary.is_unbuilt() => {
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
    /// Sets the gate of each waiting node.
    pub(super) fn assign_gates(&mut self, settings: &Settings) {
        if settings.rules.is_empty() {
            return;
        }
        for cascade in self
            .cascades
            .values_mut()
            .filter(|cascade| !cascade.is_finished())
        {
            let mut gates = BTreeMap::new();
            for (task, node) in &cascade.nodes {
                if !node.state.is_waiting() {
                    continue;
                }
                let gate = match settings.mode_of(task) {
                    Mode::Automatic => Gate::Open,
                    Mode::Approval => Gate::Approval,
                    Mode::Canary { first } => {
                        let is_canary = |name: &&String| {
                            cascade.nodes.get(*name).is_some_and(|node| {
                                !matches!(
                                    node.state,
                                    NodeState::Skipped {
                                        cause: SkipCause::Fresh | SkipCause::Moved { .. }
                                    }
                                )
                            })
                        };
                        let first: BTreeSet<String> =
                            first.iter().filter(is_canary).cloned().collect();
                        let canaries = with_ancestors(cascade, &first);
                        if first.is_empty() || canaries.contains(task) {
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

/// Returns `tasks` and all tasks of the cascade that they wait for, directly or not.
fn with_ancestors(cascade: &Cascade, tasks: &BTreeSet<String>) -> BTreeSet<String> {
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
