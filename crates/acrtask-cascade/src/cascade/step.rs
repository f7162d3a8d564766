//! What an event does: ends of runs, commands of people, and the clock.

use std::collections::BTreeMap;

use acrtask_model::{Digest, ImageRef};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{
    Action, Attempt, AttemptEnd, Cascade, CascadeId, Cascades, Key, Node, NodePin, NodeState,
    Phase, Settings, StaleBecause, Start,
    gates::{GateState, gate},
    index::At,
    look::Resolved,
};

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "camelCase", deny_unknown_fields)]
pub enum Event {
    /// Time went by.
    Tick,
    /// A run has ended. Told twice, or of an attempt that counts no more, it changes nothing.
    Ended {
        /// The cascade.
        cascade: CascadeId,
        /// The task.
        task: String,
        /// The attempt.
        attempt: u32,
        /// How.
        end: End,
    },
    /// Start nothing more of this cascade for now.
    Pause {
        /// Which.
        cascade: CascadeId,
    },
    /// Go on with it.
    Resume {
        /// Which.
        cascade: CascadeId,
    },
    /// Somebody agrees.
    Approve {
        /// To which.
        cascade: CascadeId,
    },
    /// Stop it. What it would have built stays stale until another digest comes.
    Cancel {
        /// Which.
        cascade: CascadeId,
        /// Who says so.
        by: String,
    },
    /// Try again what failed, was left behind or canceled. Takes effect at the next reconciliation, with the
    /// digests of then.
    Retry {
        /// Which.
        cascade: CascadeId,
    },
    /// Forget what a task was last run for, so that the next reconciliation builds it if it is stale.
    Forget {
        /// Which task.
        task: String,
    },
    /// What a task was built for is not wanted: it stays as it was until another digest comes. [`Cascade::built_for`] says
    /// this of all that a cascade has built.
    Decline {
        /// Which task.
        task: String,
        /// The digests, in one word.
        key: Key,
        /// Those that it stood on before, in one word.
        from: Key,
    },
}

/// How a run has ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum End {
    /// Well.
    Succeeded {
        /// What it pushed.
        digests: BTreeMap<ImageRef, Digest>,
    },
    /// Badly.
    Failed {
        /// Why, in one line.
        reason: String,
    },
    /// Somebody stopped it.
    Canceled {
        /// Who.
        by: String,
    },
    /// Another run of the task took its place, and is over by now. That is no failure: unless the other one has built it,
    /// as the next reconciliation knows, the task is started again.
    Superseded,
}

/// Why a command is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// There is none.
    #[error("there is no cascade {0}; `acrtask cascade list` shows those that there are")]
    Unknown(CascadeId),
    /// It is over.
    #[error("cascade {0} is over; `acrtask cascade retry {0}` tries again what is left of it")]
    Over(CascadeId),
}

impl Cascades {
    /// Takes what happened; says what to do.
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
            } => self.ended(cascade, &task, attempt, end, settings, now),
            Event::Pause { cascade } => self.active(cascade)?.paused = true,
            Event::Resume { cascade } => self.active(cascade)?.paused = false,
            Event::Approve { cascade } => self.active(cascade)?.approved = true,
            Event::Cancel { cascade, by } => self.cancel(cascade, &by, now, &mut actions)?,
            Event::Retry { cascade } => self.retry(cascade)?,
            Event::Forget { task } => {
                self.attempts.remove(&task);
            }
            Event::Decline { task, key, from } => {
                let attempt = Attempt::new(key, from, AttemptEnd::Canceled);
                self.attempts.insert(task, attempt);
            }
        }
        self.go_on(settings, now, &mut actions);
        Ok(actions)
    }

    fn active(&mut self, id: CascadeId) -> Result<&mut Cascade, StepError> {
        let cascade = self.cascades.get_mut(&id).ok_or(StepError::Unknown(id))?;
        if cascade.is_over() {
            return Err(StepError::Over(id));
        }
        Ok(cascade)
    }

    pub(super) fn node(&self, id: CascadeId, task: &str) -> Option<&Node> {
        self.cascades.get(&id)?.nodes.get(task)
    }

    /// Gives a node another state. The only place where one changes.
    pub(super) fn set(&mut self, id: CascadeId, task: &str, state: NodeState) {
        let Some(cascade) = self.cascades.get_mut(&id) else {
            return;
        };
        if let Some(node) = cascade.nodes.get_mut(task) {
            self.index.leave(id, task, node);
            node.state = state;
            self.index.enter(id, task, node);
        }
    }

    fn ended(
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
        let from = node.from(task);
        let (mut state, end) = match (end, canceled) {
            (End::Succeeded { digests }, _) => {
                (NodeState::Succeeded { digests }, AttemptEnd::Succeeded)
            }
            (_, Some(by)) | (End::Canceled { by }, None) => {
                (NodeState::Canceled { by }, AttemptEnd::Canceled)
            }
            (End::Superseded, None) => return self.set(id, task, NodeState::Pending),
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
                return self.set(id, task, state);
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
        let attempt = Attempt::ended(key, from, end, before, settings, now);
        if let NodeState::Failed { again, .. } = &mut state {
            *again = attempt.again;
        }
        self.attempts.insert(task.to_owned(), attempt);
        let pushed = match &state {
            NodeState::Succeeded { digests } => Some(digests.clone()),
            _ => None,
        };
        self.set(id, task, state);
        let mut rested = vec![(id, task.to_owned())];
        let built = (end == AttemptEnd::Succeeded).then_some(&pins);
        if let Some(pushed) = pushed {
            self.gives_now(task, &pushed);
        }
        self.look_again(task, built, now, &mut rested);
        self.spread(rested, now);
    }

    fn is_open_elsewhere(&self, id: CascadeId, task: &str) -> bool {
        self.cascades.values().any(|cascade| {
            let node = cascade.nodes.get(task);
            cascade.id != id && node.is_some_and(|node| node.state.is_open())
        })
    }

    /// A task pushed these: that is what its images have where it is not built again.
    fn gives_now(&mut self, task: &str, pushed: &BTreeMap<ImageRef, Digest>) {
        let homes = self.cascades.keys().map(|id| (*id, task.to_owned()));
        let below: Vec<At> = homes
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

    /// A run of a task has ended. Where it waits in a cascade that follows, it may start now, or, with what it was
    /// built from meanwhile, need no further build.
    fn look_again(
        &mut self,
        task: &str,
        built: Option<&BTreeMap<ImageRef, Digest>>,
        now: Timestamp,
        rested: &mut Vec<At>,
    ) {
        let waits = |cascade: &&Cascade| {
            let node = cascade.nodes.get(task);
            node.is_some_and(|node| node.state.waits())
        };
        let ids: Vec<CascadeId> = self
            .cascades
            .values()
            .filter(waits)
            .map(|cascade| cascade.id)
            .collect();
        for id in ids {
            self.set(id, task, NodeState::Pending);
            let cascade = self.cascades.get_mut(&id);
            if let Some(node) = cascade.and_then(|cascade| cascade.nodes.get_mut(task)) {
                for base in &mut node.bases {
                    if let Some(digest) = built.and_then(|pins| pins.get(&base.image)) {
                        base.used = digest.clone();
                    }
                }
            }
            self.look(id, task, now, rested);
        }
    }

    fn cancel(
        &mut self,
        id: CascadeId,
        by: &str,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) -> Result<(), StepError> {
        let cascade = self.active(id)?;
        if matches!(cascade.phase, Phase::Canceling { .. }) {
            return Ok(());
        }
        cascade.phase = Phase::Canceling { by: by.to_owned() };
        let mut waiting = Vec::new();
        for (task, node) in &cascade.nodes {
            if node.state.waits() {
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
            self.set(id, task, NodeState::Canceled { by: by.to_owned() });
        }
        self.spread(waiting.into_iter().map(|task| (id, task)).collect(), now);
        Ok(())
    }

    fn retry(&mut self, id: CascadeId) -> Result<(), StepError> {
        let cascade = self.cascades.get(&id).ok_or(StepError::Unknown(id))?;
        if matches!(cascade.phase, Phase::Canceling { .. }) {
            return Ok(());
        }
        let again: Vec<String> = cascade
            .nodes
            .iter()
            .filter(|(task, node)| node.state.left_undone() && !self.is_open_elsewhere(id, task))
            .map(|(task, _)| task.clone())
            .collect();
        for task in &again {
            self.attempts.remove(task);
            self.set(id, task, NodeState::Pending);
        }
        if let Some(cascade) = self.cascades.get_mut(&id).filter(|_| !again.is_empty()) {
            if cascade.is_over() {
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

    /// Starts what may start, ends what is over, and says when to look again.
    pub(super) fn go_on(&mut self, settings: &Settings, now: Timestamp, actions: &mut Vec<Action>) {
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
            let goes = |cascade: &Cascade| cascade.phase == Phase::Active && !cascade.paused;
            // A gate that failed leaves its nodes behind, and others may then be looked at; a start takes a place.
            while self.cascades.get(&id).is_some_and(goes) {
                let found = self.next_of(id, settings, now, &mut wake_at);
                match found {
                    None => break,
                    Some((task, Some(failed))) => {
                        let because = StaleBecause::Canary { task: failed };
                        self.set(id, &task, NodeState::Stale { because });
                        self.spread(vec![(id, task)], now);
                    }
                    Some((task, None)) => {
                        if let Some(end) = quiet {
                            wake_at(end);
                            break;
                        }
                        actions.extend(self.start(id, &task, settings, now));
                    }
                }
            }
        }
        let over: Vec<CascadeId> = self
            .cascades
            .values()
            .filter(|cascade| !cascade.is_over() && self.index.open(cascade.id) == 0)
            .map(|cascade| cascade.id)
            .collect();
        for id in over {
            self.finish(id, now);
            actions.push(Action::Finished { cascade: id });
        }
        if let Some(at) = wake {
            actions.push(Action::WakeAt { at });
        }
    }

    /// The next node of a cascade that may start, or that is left behind because this canary failed.
    fn next_of(
        &self,
        id: CascadeId,
        settings: &Settings,
        now: Timestamp,
        wake_at: &mut impl FnMut(Timestamp),
    ) -> Option<(String, Option<String>)> {
        let cascade = self.cascades.get(&id)?;
        let total = settings.parallel_total.unwrap_or(u32::MAX).max(1) as usize;
        let free = self.index.running_in(id) < settings.parallel.max(1) as usize
            && self.index.running.len() < total;
        if !free {
            return None;
        }
        for (_, task) in self.index.ready.get(&id)? {
            let Some(node) = cascade.nodes.get(task) else {
                continue;
            };
            match gate(cascade, node) {
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

    fn start(
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
        self.set(id, task, state);
        Some(Action::Start(start))
    }

    /// Writes down that a cascade is over, and for what its undone nodes are not to be tried again by themselves.
    fn finish(&mut self, id: CascadeId, now: Timestamp) {
        let Some(cascade) = self.cascades.get(&id) else {
            return;
        };
        let mut declined = Vec::new();
        for (task, node) in &cascade.nodes {
            let end = match &node.state {
                NodeState::Canceled { .. } => AttemptEnd::Canceled,
                NodeState::Stale {
                    because: StaleBecause::Canary { .. },
                } => AttemptEnd::Held,
                _ => continue,
            };
            let mut node = node.clone();
            // Where a parent was not built either, this one is below it; what it would stand on then is what the
            // parent's image has now.
            for base in &mut node.bases {
                base.counted = false;
            }
            if let Resolved::Pins(pins) = self.resolve(&node) {
                let key = Key::of(task, &pins);
                let from = node.from(task);
                declined.push((task.clone(), Attempt::new(key, from, end)));
            }
        }
        self.attempts.extend(declined);
        if let Some(cascade) = self.cascades.get_mut(&id) {
            cascade.phase = Phase::Over { at: now };
        }
    }
}
