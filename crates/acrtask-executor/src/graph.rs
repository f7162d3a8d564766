//! Which step may start, and what a step's end does to the others: a pure state machine.
//!
//! [`Graph::on`] takes what happened and returns what to do; it does no I/O, reads no clock and
//! knows nothing of engines. Invariants, each held by a property test against a slow obvious model:
//! a step starts only after everything in its `after` lets it; each step reaches exactly one final
//! state; nothing starts after a failure or a stop; a step that may start is started at once.
//!
//! A detached step counts as done for those behind it as soon as it is up. It is stopped when every
//! other step has reached its final state.

use std::collections::HashMap;

use acrtask_model::{Outcome, RunState, SkipReason, StepId, StepState};

/// What the graph needs to know of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// Its id.
    pub(crate) id: StepId,
    /// What must be done before it starts: ids of other nodes, without a cycle.
    pub(crate) after: Vec<StepId>,
    /// Started, not waited for.
    pub(crate) detach: bool,
    /// Its failure lets the run go on.
    pub(crate) ignore_errors: bool,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    /// The run begins.
    Begin,
    /// A detached step is up.
    Up(StepId),
    /// A step that was started has ended.
    Ended(StepId, End),
    /// Nothing more may run.
    Stop(SkipReason),
}

/// How a step that was started has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// Well.
    Succeeded,
    /// Badly.
    Failed {
        /// In one line.
        reason: String,
        /// Where a process gave one.
        exit_code: Option<i64>,
    },
    /// Past its limit.
    TimedOut {
        /// The limit, in seconds.
        after_secs: u64,
    },
    /// Because [`Action::Stop`] asked for it.
    Stopped,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start this step; its end must come back as [`Input::Ended`].
    Start(StepId),
    /// Stop this running step; its end must still come back.
    Stop(StepId),
    /// The step has this final state.
    Settle(StepId, StepState),
    /// Every step has its final state.
    Finish(Outcome),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Waiting,
    Running,
    /// Detached, and those behind it may start.
    Up,
    Stopping(SkipReason),
    Settled(StepState),
}

/// The state of every step of a run.
#[derive(Debug)]
pub(crate) struct Graph {
    nodes: Vec<Node>,
    /// For each node, the positions of what it waits for.
    after: Vec<Vec<usize>>,
    index: HashMap<StepId, usize>,
    places: Vec<Place>,
    /// Why nothing more starts, once that is so.
    halted: Option<SkipReason>,
    /// What the run's outcome says about the first failure.
    failure: Option<String>,
    finished: bool,
}

impl Graph {
    /// A graph of which nothing has started. An id in `after` that no node has is taken as done.
    pub(crate) fn new(nodes: Vec<Node>) -> Self {
        let index: HashMap<StepId, usize> = nodes
            .iter()
            .enumerate()
            .map(|(i, node)| (node.id.clone(), i))
            .collect();
        let after = nodes
            .iter()
            .map(|node| {
                let known = node.after.iter().filter_map(|id| index.get(id).copied());
                known.collect()
            })
            .collect();
        let places = vec![Place::Waiting; nodes.len()];
        Self {
            nodes,
            after,
            index,
            places,
            halted: None,
            failure: None,
            finished: false,
        }
    }

    /// Takes in what happened. An input about a step that has its final state changes nothing.
    pub(crate) fn on(&mut self, input: Input) -> Vec<Action> {
        let mut actions = Vec::new();
        match input {
            Input::Begin => {}
            Input::Up(id) => {
                if let Some(place) = self.place_mut(&id)
                    && *place == Place::Running
                {
                    *place = Place::Up;
                }
            }
            Input::Ended(id, end) => self.ended(&id, end, &mut actions),
            Input::Stop(because) => self.halt(because, &mut actions),
        }
        self.advance(&mut actions);
        actions
    }

    /// Why the run is being stopped, once it is.
    pub(crate) fn halted(&self) -> Option<&SkipReason> {
        self.halted.as_ref()
    }

    fn place_mut(&mut self, id: &StepId) -> Option<&mut Place> {
        self.index.get(id).map(|i| &mut self.places[*i])
    }

    fn ended(&mut self, id: &StepId, end: End, actions: &mut Vec<Action>) {
        let Some(&i) = self.index.get(id) else { return };
        let node = &self.nodes[i];
        // A detached step that was up had already been counted as done: its own end is told, and
        // fails nothing.
        let (stopping, ignored) = match &self.places[i] {
            Place::Running => (None, node.ignore_errors),
            Place::Up => (None, true),
            Place::Stopping(because) => (Some(because.clone()), node.ignore_errors),
            Place::Waiting | Place::Settled(_) => return,
        };
        let state = match (end, stopping) {
            (End::Succeeded, _) => StepState::Succeeded,
            // Whatever it died of, it died of being stopped.
            (_, Some(because)) => StepState::Canceled { because },
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
                because: self.halted.clone().unwrap_or(SkipReason::Interrupted),
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
        self.settle(i, state, actions);
        if let Some(failure) = failure {
            self.failure.get_or_insert(failure);
            self.halt(SkipReason::StepFailed { step: id.clone() }, actions);
        }
    }

    fn settle(&mut self, i: usize, state: StepState, actions: &mut Vec<Action>) {
        self.places[i] = Place::Settled(state.clone());
        actions.push(Action::Settle(self.nodes[i].id.clone(), state));
    }

    /// Skips what waits and stops what runs. The first reason stands.
    fn halt(&mut self, because: SkipReason, actions: &mut Vec<Action>) {
        if self.halted.is_some() || self.finished {
            return;
        }
        self.halted = Some(because.clone());
        for i in 0..self.nodes.len() {
            match self.places[i] {
                Place::Waiting => {
                    let because = because.clone();
                    self.settle(i, StepState::Skipped { because }, actions);
                }
                Place::Running | Place::Up => {
                    self.places[i] = Place::Stopping(because.clone());
                    actions.push(Action::Stop(self.nodes[i].id.clone()));
                }
                Place::Stopping(_) | Place::Settled(_) => {}
            }
        }
    }

    fn advance(&mut self, actions: &mut Vec<Action>) {
        if self.finished {
            return;
        }
        for i in 0..self.nodes.len() {
            let ready = self.places[i] == Place::Waiting
                && self.after[i].iter().all(|&before| self.done(before));
            if ready {
                self.places[i] = Place::Running;
                actions.push(Action::Start(self.nodes[i].id.clone()));
            }
        }
        let only_detached_left = self
            .places
            .iter()
            .all(|p| matches!(p, Place::Settled(_) | Place::Up | Place::Stopping(_)));
        if only_detached_left {
            for i in 0..self.nodes.len() {
                if self.places[i] == Place::Up {
                    self.places[i] = Place::Stopping(SkipReason::RunEnded);
                    actions.push(Action::Stop(self.nodes[i].id.clone()));
                }
            }
        }
        if self.places.iter().all(|p| matches!(p, Place::Settled(_))) {
            self.finished = true;
            actions.push(Action::Finish(self.outcome()));
        }
    }

    fn done(&self, i: usize) -> bool {
        match &self.places[i] {
            Place::Up => true,
            // A detached step that ended by itself has been up.
            Place::Settled(state) => state.lets_others_start(),
            Place::Waiting | Place::Running | Place::Stopping(_) => false,
        }
    }

    fn outcome(&self) -> Outcome {
        let (state, reason) = match &self.halted {
            None => (RunState::Succeeded, None),
            Some(SkipReason::StepFailed { .. }) => (RunState::Failed, self.failure.clone()),
            Some(SkipReason::RunTimedOut) => (RunState::TimedOut, self.reason()),
            Some(SkipReason::Interrupted | SkipReason::RunEnded) => {
                (RunState::Canceled, self.reason())
            }
        };
        Outcome { state, reason }
    }

    fn reason(&self) -> Option<String> {
        self.halted.as_ref().map(ToString::to_string)
    }
}

#[cfg(test)]
#[path = "graph_tests.rs"]
mod tests;
