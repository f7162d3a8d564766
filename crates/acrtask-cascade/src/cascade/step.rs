//! Effects of events: ends of runs, commands of users, and the clock.

use std::collections::BTreeMap;

use acrtask_model::{Digest, ImageRef};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{
    Action, Attempt, AttemptEnd, Cascade, CascadeId, Cascades, Key, Node, NodePin, NodeState,
    Phase, Settings, StaleCause, Start,
    gates::{GateState, gate_state},
    index::NodeRef,
    resolve::BaseState,
};

/// Input of [`Cascades::step`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "camelCase", deny_unknown_fields)]
pub enum Event {
    /// Time has passed.
    Tick,
    /// A run has ended. A repeated event or one of an obsolete attempt changes nothing.
    Ended {
        /// Cascade of the run.
        cascade: CascadeId,
        /// Task of the run.
        task: String,
        /// Attempt of the run.
        attempt: u32,
        /// Result of the run.
        end: End,
    },
    /// Start no further runs of a cascade for now.
    Pause {
        /// Cascade to pause.
        cascade: CascadeId,
    },
    /// Continue a paused cascade.
    Resume {
        /// Cascade to resume.
        cascade: CascadeId,
    },
    /// A user approves a cascade.
    Approve {
        /// Approved cascade.
        cascade: CascadeId,
    },
    /// Stop a cascade. Its unbuilt tasks stay stale until another digest arrives.
    Cancel {
        /// Cascade to cancel.
        cascade: CascadeId,
        /// Name of the user.
        by: String,
    },
    /// Retry the nodes that failed, were not built or were canceled.
    ///
    /// The next reconciliation applies this with the digests of that time.
    Retry {
        /// Cascade to retry.
        cascade: CascadeId,
    },
    /// Remove the last attempt of a task. The next reconciliation builds the task if it is stale.
    Forget {
        /// Name of the task.
        task: String,
    },
    /// Reject the result of a build. The task keeps its previous images until another digest
    /// arrives.
    ///
    /// [`Cascade::built_tasks`] returns the values for all tasks that a cascade built.
    Decline {
        /// Name of the task.
        task: String,
        /// Key of the digests that the task was built for.
        key: Key,
        /// Key of the digests that the task used before.
        from: Key,
    },
}

/// Result of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum End {
    /// The run succeeded.
    Succeeded {
        /// Digests of the pushed images.
        digests: BTreeMap<ImageRef, Digest>,
    },
    /// The run failed.
    Failed {
        /// Reason in one line.
        reason: String,
    },
    /// A user stopped the run.
    Canceled {
        /// Name of the user.
        by: String,
    },
    /// Another run of the task replaced this one and has ended. This does not count as a failure.
    ///
    /// The task starts again unless the next reconciliation finds that the other run built it.
    Superseded,
}

/// Reason why a command is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// The cascade does not exist.
    #[error("cascade {0} does not exist; `acrtask cascade list` lists all cascades")]
    Unknown(CascadeId),
    /// The cascade is finished.
    #[error("cascade {0} is finished; `acrtask cascade retry {0}` retries its unbuilt tasks")]
    Over(CascadeId),
}

impl Cascades {
    /// Applies an event and returns the actions to perform.
    pub fn step(
        &mut self,
        event: Event,
        settings: &Settings,
        now: Timestamp,
    ) -> Result<Vec<Action>, StepError> {
        let mut actions = Vec::new();
        match event {
            Event::Tick => {}
            Event::Ended {
                cascade,
                task,
                attempt,
                end,
            } => self.record_end(cascade, &task, attempt, end, settings, now),
            Event::Pause { cascade } => self.active_mut(cascade)?.paused = true,
            Event::Resume { cascade } => self.active_mut(cascade)?.paused = false,
            Event::Approve { cascade } => self.active_mut(cascade)?.approved = true,
            Event::Cancel { cascade, by } => {
                self.cancel_cascade(cascade, &by, now, &mut actions)?
            }
            Event::Retry { cascade } => self.retry_cascade(cascade)?,
            Event::Forget { task } => {
                self.attempts.remove(&task);
            }
            Event::Decline { task, key, from } => {
                let attempt = Attempt::new(key, from, AttemptEnd::Canceled);
                self.attempts.insert(task, attempt);
            }
        }
        self.advance(settings, now, &mut actions);
        Ok(actions)
    }

    fn active_mut(&mut self, id: CascadeId) -> Result<&mut Cascade, StepError> {
        let cascade = self.cascades.get_mut(&id).ok_or(StepError::Unknown(id))?;
        if cascade.is_finished() {
            return Err(StepError::Over(id));
        }
        Ok(cascade)
    }

    pub(super) fn node(&self, id: CascadeId, task: &str) -> Option<&Node> {
        self.cascades.get(&id)?.nodes.get(task)
    }

    /// Changes the state of a node and updates the index. No other code does this between
    /// reconciliations.
    pub(super) fn set_state(&mut self, id: CascadeId, task: &str, state: NodeState) {
        let Some(cascade) = self.cascades.get_mut(&id) else {
            return;
        };
        if let Some(node) = cascade.nodes.get_mut(task) {
            self.index.remove(id, task, node);
            node.state = state;
            self.index.add(id, task, node);
        }
    }

    fn record_end(
        &mut self,
        id: CascadeId,
        task: &str,
        attempt: u32,
        end: End,
        settings: &Settings,
        now: Timestamp,
    ) {
        let Some(cascade) = self.cascades.get(&id) else {
            return;
        };
        let canceled = match &cascade.phase {
            Phase::Canceling { by } => Some(by.clone()),
            _ => None,
        };
        let Some(node) = cascade.nodes.get(task) else {
            return;
        };
        let NodeState::Running { pins, key, .. } = node.state.clone() else {
            return;
        };
        if node.attempts != attempt {
            return;
        }
        let again = node.failures < settings.retries && !node.outdated;
        let from = node.used_key(task);
        let (mut state, end) = match (end, canceled) {
            (End::Succeeded { digests }, _) => {
                (NodeState::Succeeded { digests }, AttemptEnd::Succeeded)
            }
            (_, Some(by)) | (End::Canceled { by }, None) => {
                (NodeState::Canceled { by }, AttemptEnd::Canceled)
            }
            (End::Superseded, None) => return self.set_state(id, task, NodeState::Pending),
            (End::Failed { .. }, None) if again => {
                if let Some(node) = self
                    .cascades
                    .get_mut(&id)
                    .and_then(|cascade| cascade.nodes.get_mut(task))
                {
                    node.failures += 1;
                }
                let delay = SignedDuration::from_secs(settings.retry_delay_secs.into());
                let not_before = Some(now.saturating_add(delay).unwrap_or(now));
                let state = NodeState::Ready {
                    pins,
                    key,
                    not_before,
                };
                return self.set_state(id, task, state);
            }
            (End::Failed { reason }, None) => {
                let state = NodeState::Failed {
                    reason,
                    again: None,
                };
                (state, AttemptEnd::Failed)
            }
        };
        let before = self.attempts.get(task);
        let attempt = Attempt::from_end(key, from, end, before, settings, now);
        if let NodeState::Failed { again, .. } = &mut state {
            *again = attempt.again;
        }
        self.attempts.insert(task.to_owned(), attempt);
        let pushed = match &state {
            NodeState::Succeeded { digests } => Some(digests.clone()),
            _ => None,
        };
        self.set_state(id, task, state);
        let mut settled = vec![(id, task.to_owned())];
        let built = (end == AttemptEnd::Succeeded).then_some(&pins);
        if let Some(pushed) = pushed {
            self.update_fallback_digests(task, &pushed);
        }
        self.update_waiting_nodes(task, built, now, &mut settled);
        self.update_dependents(settled, now);
    }

    fn is_open_elsewhere(&self, id: CascadeId, task: &str) -> bool {
        self.cascades.values().any(|cascade| {
            let node = cascade.nodes.get(task);
            cascade.id != id && node.is_some_and(|node| node.state.is_open())
        })
    }

    /// Makes `pushed` the fallback digests of the nodes that are pinned to this task.
    fn update_fallback_digests(&mut self, task: &str, pushed: &BTreeMap<ImageRef, Digest>) {
        let homes = self.cascades.keys().map(|id| (*id, task.to_owned()));
        let below: Vec<NodeRef> = homes
            .filter_map(|at| self.index.below.get(&at))
            .flatten()
            .cloned()
            .collect();
        for (id, child) in below {
            let cascade = self.cascades.get_mut(&id);
            let Some(node) = cascade.and_then(|cascade| cascade.nodes.get_mut(&child)) else {
                continue;
            };
            for base in &mut node.bases {
                if let NodePin::Output {
                    task: parent,
                    otherwise,
                    ..
                } = &mut base.pin
                    && parent == task
                    && let Some(digest) = pushed.get(&base.image)
                {
                    *otherwise = digest.clone();
                }
            }
        }
    }

    /// Updates the waiting nodes of a task in following cascades after a run has ended.
    ///
    /// They may start now, or need no build because the run used the same digests.
    fn update_waiting_nodes(
        &mut self,
        task: &str,
        built: Option<&BTreeMap<ImageRef, Digest>>,
        now: Timestamp,
        settled: &mut Vec<NodeRef>,
    ) {
        let waits = |cascade: &&Cascade| {
            let node = cascade.nodes.get(task);
            node.is_some_and(|node| node.state.is_waiting())
        };
        let ids: Vec<CascadeId> = self
            .cascades
            .values()
            .filter(waits)
            .map(|cascade| cascade.id)
            .collect();
        for id in ids {
            self.set_state(id, task, NodeState::Pending);
            let cascade = self.cascades.get_mut(&id);
            if let Some(node) = cascade.and_then(|cascade| cascade.nodes.get_mut(task)) {
                for base in &mut node.bases {
                    if let Some(digest) = built.and_then(|pins| pins.get(&base.image)) {
                        base.used = digest.clone();
                    }
                }
            }
            self.update_node(id, task, now, settled);
        }
    }

    fn cancel_cascade(
        &mut self,
        id: CascadeId,
        by: &str,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) -> Result<(), StepError> {
        let cascade = self.active_mut(id)?;
        if matches!(cascade.phase, Phase::Canceling { .. }) {
            return Ok(());
        }
        cascade.phase = Phase::Canceling { by: by.to_owned() };
        let mut waiting = Vec::new();
        for (task, node) in &cascade.nodes {
            if node.state.is_waiting() {
                waiting.push(task.clone());
            } else if node.state.is_open() {
                actions.push(Action::Stop {
                    cascade: id,
                    task: task.clone(),
                    attempt: node.attempts,
                });
            }
        }
        for task in &waiting {
            self.set_state(id, task, NodeState::Canceled { by: by.to_owned() });
        }
        self.update_dependents(waiting.into_iter().map(|task| (id, task)).collect(), now);
        Ok(())
    }

    fn retry_cascade(&mut self, id: CascadeId) -> Result<(), StepError> {
        let cascade = self.cascades.get(&id).ok_or(StepError::Unknown(id))?;
        if matches!(cascade.phase, Phase::Canceling { .. }) {
            return Ok(());
        }
        let again: Vec<String> = cascade
            .nodes
            .iter()
            .filter(|(task, node)| node.state.is_unbuilt() && !self.is_open_elsewhere(id, task))
            .map(|(task, _)| task.clone())
            .collect();
        for task in &again {
            self.attempts.remove(task);
            self.set_state(id, task, NodeState::Pending);
        }
        if let Some(cascade) = self.cascades.get_mut(&id).filter(|_| !again.is_empty()) {
            if cascade.is_finished() {
                cascade.phase = Phase::Active;
            }
            for task in &again {
                if let Some(node) = cascade.nodes.get_mut(task) {
                    node.failures = 0;
                }
            }
        }
        Ok(())
    }

    /// Starts ready nodes, finishes cascades and requests the next wake-up.
    pub(super) fn advance(
        &mut self,
        settings: &Settings,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) {
        let mut wake: Option<Timestamp> = None;
        let mut wake_at = |at: Timestamp| wake = Some(wake.map_or(at, |wake| wake.min(at)));
        for cascade in self.cascades.values_mut() {
            if let Phase::Settling { until } = cascade.phase {
                if until <= now {
                    cascade.phase = Phase::Active;
                } else {
                    wake_at(until);
                }
            }
        }
        let quiet = settings.quiet_until(now);
        let ids: Vec<CascadeId> = self.index.ready.keys().copied().collect();
        for id in ids {
            let may_start = |cascade: &Cascade| cascade.phase == Phase::Active && !cascade.paused;
            // A failed gate makes its nodes stale, and the next node may then be startable. A start
            // occupies a slot.
            while self.cascades.get(&id).is_some_and(may_start) {
                let found = self.next_startable(id, settings, now, &mut wake_at);
                match found {
                    None => break,
                    Some((task, Some(failed))) => {
                        let cause = StaleCause::Canary { task: failed };
                        self.set_state(id, &task, NodeState::Stale { cause });
                        self.update_dependents(vec![(id, task)], now);
                    }
                    Some((task, None)) => {
                        if let Some(end) = quiet {
                            wake_at(end);
                            break;
                        }
                        actions.extend(self.start_node(id, &task, settings, now));
                    }
                }
            }
        }
        let over: Vec<CascadeId> = self
            .cascades
            .values()
            .filter(|cascade| !cascade.is_finished() && self.index.open_count(cascade.id) == 0)
            .map(|cascade| cascade.id)
            .collect();
        for id in over {
            self.finish_cascade(id, now);
            actions.push(Action::Finished { cascade: id });
        }
        if let Some(at) = wake {
            actions.push(Action::WakeAt { at });
        }
    }

    /// Returns the next node of a cascade that may start. With `Some(canary)`, that canary failed
    /// and the node must not start.
    fn next_startable(
        &self,
        id: CascadeId,
        settings: &Settings,
        now: Timestamp,
        wake_at: &mut impl FnMut(Timestamp),
    ) -> Option<(String, Option<String>)> {
        let cascade = self.cascades.get(&id)?;
        let total = settings.parallel_total.unwrap_or(u32::MAX).max(1) as usize;
        let free = self.index.running_count(id) < settings.parallel.max(1) as usize
            && self.index.running.len() < total;
        if !free {
            return None;
        }
        for (_, task) in self.index.ready.get(&id)? {
            let Some(node) = cascade.nodes.get(task) else {
                continue;
            };
            match gate_state(cascade, node) {
                GateState::Shut => continue,
                GateState::Failed(canary) => return Some((task.clone(), Some(canary))),
                GateState::Open => {}
            }
            if let NodeState::Ready {
                not_before: Some(at),
                ..
            } = node.state
                && at > now
            {
                wake_at(at);
                continue;
            }
            if !self.index.running.contains_key(task) {
                return Some((task.clone(), None));
            }
        }
        None
    }

    fn start_node(
        &mut self,
        id: CascadeId,
        task: &str,
        settings: &Settings,
        now: Timestamp,
    ) -> Option<Action> {
        let node = self.cascades.get_mut(&id)?.nodes.get_mut(task)?;
        let NodeState::Ready { pins, key, .. } = node.state.clone() else {
            return None;
        };
        node.attempts += 1;
        let start = Start {
            cascade: id,
            task: task.to_owned(),
            attempt: node.attempts,
            pins: pins.clone(),
            key: key.clone(),
            priority: settings.priority,
        };
        let state = NodeState::Running {
            pins,
            key,
            since: now,
        };
        self.set_state(id, task, state);
        Some(Action::Start(start))
    }

    /// Finishes a cascade and records which digests of its unbuilt nodes must not be retried
    /// automatically.
    fn finish_cascade(&mut self, id: CascadeId, now: Timestamp) {
        let Some(cascade) = self.cascades.get(&id) else {
            return;
        };
        let mut declined = Vec::new();
        for (task, node) in &cascade.nodes {
            let end = match &node.state {
                NodeState::Canceled { .. } => AttemptEnd::Canceled,
                NodeState::Stale {
                    cause: StaleCause::Canary { .. },
                } => AttemptEnd::CanaryFailed,
                _ => continue,
            };
            let mut node = node.clone();
            // If a parent was not built either, this node uses the current digest of the parent's
            // image.
            for base in &mut node.bases {
                base.counted = false;
            }
            if let BaseState::Pinned(pins) = self.resolve_bases(&node) {
                let key = Key::compute(task, &pins);
                let from = node.used_key(task);
                declined.push((task.clone(), Attempt::new(key, from, end)));
            }
        }
        self.attempts.extend(declined);
        if let Some(cascade) = self.cascades.get_mut(&id) {
            cascade.phase = Phase::Finished { at: now };
        }
    }
}
