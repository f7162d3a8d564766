//! Order of the steps, and the effect of a step's end on the others: a pure state machine.
//!
//! [`Graph::apply`] accepts an input and returns actions. It does no I/O, reads no clock and does
//! not depend on engines. A property test checks each of these invariants against a slow, obvious
//! model:
//! - A step starts only after all steps in its `after` let it.
//! - Each step reaches exactly one final state.
//! - No step starts after a failure or a stop.
//! - A step that may start is started at once.
//!
//! A detached step counts as done for its successors as soon as it is up. It is stopped when every
//! other step has reached its final state.

use std::collections::HashMap;

use acrtask_model::{Outcome, RunState, SkipReason, StepId, StepState};

/// A step as the graph sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) id: StepId,
    /// Ids of the nodes that must be done before this one starts, without a cycle.
    pub(crate) after: Vec<StepId>,
    /// Set for a detached step: the run does not wait for its end.
    pub(crate) detach: bool,
    /// Set if the run continues after a failure of the step.
    pub(crate) ignore_errors: bool,
}

/// An event that changes the graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    /// The run begins.
    Begin,
    /// A detached step is up.
    Up(StepId),
    /// A started step has ended.
    Ended(StepId, End),
    /// No more steps may run.
    Stop(SkipReason),
}

/// The end of a started step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    Succeeded,
    Failed {
        /// The reason, in one line.
        reason: String,
        /// The exit code of the process, if it had one.
        exit_code: Option<i64>,
    },
    /// The step exceeded its timeout.
    TimedOut {
        /// The timeout, in seconds.
        after_secs: u64,
    },
    /// [`Action::Stop`] stopped the step.
    Stopped,
}

/// An action for the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start this step and later report its end as [`Input::Ended`].
    Start(StepId),
    /// Stop this running step and report its end.
    Stop(StepId),
    /// Record this final state of the step.
    SetFinalState(StepId, StepState),
    /// Finish the run: every step has its final state.
    Finish(Outcome),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum NodeState {
    Waiting,
    Running,
    /// The step is detached and up, and its successors may start.
    Up,
    Stopping(SkipReason),
    Final(StepState),
}

/// The state of every step of a run.
#[derive(Debug)]
pub(crate) struct Graph {
    nodes: Vec<Node>,
    /// For each node, the indices of its predecessors.
    after: Vec<Vec<usize>>,
    index: HashMap<StepId, usize>,
    states: Vec<NodeState>,
    /// The reason why no more steps start. `None` until then.
    halted: Option<SkipReason>,
    /// The first failure, for the run's outcome.
    failure: Option<String>,
    finished: bool,
}

impl Graph {
    /// Returns a graph in which no step has started. Ids in `after` that belong to no node are
    /// ignored.
    pub(crate) fn new(nodes: Vec<Node>) -> Self {
        let index: HashMap<StepId, usize> = nodes
            .iter()
            .enumerate()
            .map(|(i, node)| (node.id.clone(), i))
            .collect();
        let after = nodes
            .iter()
            .map(|node| {
                let indices = node.after.iter().filter_map(|id| index.get(id).copied());
                indices.collect()
            })
            .collect();
        let states = vec![NodeState::Waiting; nodes.len()];
        Self {
            nodes,
            after,
            index,
            states,
            halted: None,
            failure: None,
            finished: false,
        }
    }

    /// Applies an input. An input about a step with a final state has no effect.
    pub(crate) fn apply(&mut self, input: Input) -> Vec<Action> {
        let mut actions = Vec::new();
        match input {
            Input::Begin => {}
            Input::Up(id) => {
                if let Some(state) = self.state_mut(&id)
                    && *state == NodeState::Running
                {
                    *state = NodeState::Up;
                }
            }
            Input::Ended(id, end) => self.end_step(&id, end, &mut actions),
            Input::Stop(cause) => self.halt(cause, &mut actions),
        }
        self.advance(&mut actions);
        actions
    }

    /// Returns the reason why the run is being stopped. `None` until then.
    pub(crate) fn halted(&self) -> Option<&SkipReason> {
        self.halted.as_ref()
    }

    fn state_mut(&mut self, id: &StepId) -> Option<&mut NodeState> {
        self.index.get(id).map(|i| &mut self.states[*i])
    }

    fn end_step(&mut self, id: &StepId, end: End, actions: &mut Vec<Action>) {
        let Some(&i) = self.index.get(id) else { return };
        let node = &self.nodes[i];
        // A detached step that was up already counted as done. Its end is reported, but does not
        // fail the run.
        let (stopping, ignored) = match &self.states[i] {
            NodeState::Running => (None, node.ignore_errors),
            NodeState::Up => (None, true),
            NodeState::Stopping(cause) => (Some(cause.clone()), node.ignore_errors),
            NodeState::Waiting | NodeState::Final(_) => return,
        };
        let state = match (end, stopping) {
            (End::Succeeded, _) => StepState::Succeeded,
            // The cause of its end is the stop, whatever it reported.
            (_, Some(cause)) => StepState::Canceled { cause },
            (End::Failed { reason, exit_code }, None) => StepState::Failed {
                reason,
                exit_code,
                ignored,
            },
            (End::TimedOut { after_secs }, None) if ignored => StepState::Failed {
                reason: format!("ran longer than its timeout of {after_secs} s"),
                exit_code: None,
                ignored,
            },
            (End::TimedOut { after_secs }, None) => StepState::TimedOut { after_secs },
            (End::Stopped, None) => StepState::Canceled {
                cause: self.halted.clone().unwrap_or(SkipReason::Interrupted),
            },
        };
        let failure = match &state {
            StepState::Failed {
                reason,
                ignored: false,
                ..
            } => Some(format!("step {id} failed: {reason}")),
            StepState::TimedOut { after_secs } => {
                Some(format!("step {id} timed out after {after_secs} s"))
            }
            _ => None,
        };
        self.set_final_state(i, state, actions);
        if let Some(failure) = failure {
            self.failure.get_or_insert(failure);
            self.halt(SkipReason::StepFailed { step: id.clone() }, actions);
        }
    }

    fn set_final_state(&mut self, i: usize, state: StepState, actions: &mut Vec<Action>) {
        self.states[i] = NodeState::Final(state.clone());
        actions.push(Action::SetFinalState(self.nodes[i].id.clone(), state));
    }

    /// Skips waiting steps and stops running ones. Only the first reason counts.
    fn halt(&mut self, cause: SkipReason, actions: &mut Vec<Action>) {
        if self.halted.is_some() || self.finished {
            return;
        }
        self.halted = Some(cause.clone());
        for i in 0..self.nodes.len() {
            match self.states[i] {
                NodeState::Waiting => {
                    let cause = cause.clone();
                    self.set_final_state(i, StepState::Skipped { cause }, actions);
                }
                NodeState::Running | NodeState::Up => {
                    self.states[i] = NodeState::Stopping(cause.clone());
                    actions.push(Action::Stop(self.nodes[i].id.clone()));
                }
                NodeState::Stopping(_) | NodeState::Final(_) => {}
            }
        }
    }

    fn advance(&mut self, actions: &mut Vec<Action>) {
        if self.finished {
            return;
        }
        for i in 0..self.nodes.len() {
            let ready = self.states[i] == NodeState::Waiting
                && self.after[i].iter().all(|&before| self.is_done(before));
            if ready {
                self.states[i] = NodeState::Running;
                actions.push(Action::Start(self.nodes[i].id.clone()));
            }
        }
        let only_detached_left = self.states.iter().all(|p| {
            matches!(
                p,
                NodeState::Final(_) | NodeState::Up | NodeState::Stopping(_)
            )
        });
        if only_detached_left {
            for i in 0..self.nodes.len() {
                if self.states[i] == NodeState::Up {
                    self.states[i] = NodeState::Stopping(SkipReason::RunEnded);
                    actions.push(Action::Stop(self.nodes[i].id.clone()));
                }
            }
        }
        if self.states.iter().all(|p| matches!(p, NodeState::Final(_))) {
            self.finished = true;
            actions.push(Action::Finish(self.outcome()));
        }
    }

    fn is_done(&self, i: usize) -> bool {
        match &self.states[i] {
            NodeState::Up => true,
            // A detached step that ended on its own was up before.
            NodeState::Final(state) => state.lets_others_start(),
            NodeState::Waiting | NodeState::Running | NodeState::Stopping(_) => false,
        }
    }

    fn outcome(&self) -> Outcome {
        let (state, reason) = match &self.halted {
            None => (RunState::Succeeded, None),
            Some(SkipReason::StepFailed { .. }) => (RunState::Failed, self.failure.clone()),
            Some(SkipReason::RunTimedOut) => (RunState::TimedOut, self.halt_reason()),
            Some(SkipReason::Interrupted | SkipReason::RunEnded) => {
                (RunState::Canceled, self.halt_reason())
            }
        };
        Outcome { state, reason }
    }

    fn halt_reason(&self) -> Option<String> {
        self.halted.as_ref().map(ToString::to_string)
    }
}

#[cfg(test)]
#[path = "graph_tests.rs"]
mod tests;
