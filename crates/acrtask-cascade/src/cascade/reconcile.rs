//! Comparison of all facts with all cascades: which nodes start, join, follow or are dropped.
//!
//! A reconciliation has no event as input. It plans everything that is stale now and assigns each
//! node of the plan to the cascade that should build it. This is the *level* of the node among the
//! active cascades it is connected with; the oldest cascade has level 0.
//!
//! - A waiting task stays in its cascade.
//! - A task that runs with the planned digests stays too.
//! - A task that runs with other digests, or has finished there, is rebuilt one level later.
//! - No node is built at an earlier level than its bases.
//! - The level after the last cascade is a new cascade that follows.

use std::collections::{BTreeMap, BTreeSet};

use acrtask_model::{Digest, ImageRef};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::{
    Action, AttemptEnd, Cascade, CascadeId, Cascades, Gate, Key, Mode, Node, NodeBase, NodePin,
    NodeState, Phase, Settings, SkipCause, StaleCause, index::Index, sets::DisjointSets,
};
use crate::{
    graph::Graph,
    plan::{NodeId, PinTo, Plan, PlanOptions, Refused, plan},
};

/// Result of a reconciliation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reconciliation {
    /// Actions to perform.
    pub actions: Vec<Action>,
    /// Cascades that were created.
    pub created: Vec<CascadeId>,
    /// Nodes that were added to a cascade or whose bases changed.
    pub joined: Vec<(CascadeId, String)>,
    /// Nodes that were removed from a cascade before they started.
    pub dropped: Vec<(CascadeId, String)>,
    /// Stale tasks that are not built until something changes.
    pub blocked: Vec<Blocked>,
    /// Stale tasks that must not be built.
    pub refused: Vec<Refused>,
}

/// A stale task that is not built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Blocked {
    /// Name of the task.
    pub task: String,
    /// Reason.
    pub cause: BlockedCause,
}

/// Reason of a [`Blocked`] task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum BlockedCause {
    /// A run for these digests ended this way, or a user canceled it.
    Tried(AttemptEnd),
    /// The task depends on this blocked task.
    Below(String),
}

impl Cascades {
    /// Compares all facts with all cascades. The same facts again change nothing.
    ///
    /// The caller reads the facts after the last event passed to [`Cascades::step`]. They then
    /// include every successful run.
    pub fn reconcile(
        &mut self,
        graph: &Graph,
        settings: &Settings,
        now: Timestamp,
    ) -> Reconciliation {
        let mut done = Reconciliation::default();
        // The result of one pass can be the input of the next one. For example, a node that may not
        // be deferred again starts with an older base and is rebuilt in a following cascade.
        loop {
            let pass = self.reconcile_once(graph, settings, now);
            let starts = |action: &Action| matches!(action, Action::Start(_));
            let unchanged = pass.created.is_empty()
                && pass.joined.is_empty()
                && pass.dropped.is_empty()
                && !pass.actions.iter().any(starts);
            done.actions
                .retain(|action| !matches!(action, Action::WakeAt { .. }));
            done.actions.extend(pass.actions);
            done.created.extend(pass.created);
            done.joined.extend(pass.joined);
            done.dropped.extend(pass.dropped);
            done.blocked = pass.blocked;
            done.refused = pass.refused;
            if unchanged {
                return done;
            }
        }
    }

    fn reconcile_once(
        &mut self,
        graph: &Graph,
        settings: &Settings,
        now: Timestamp,
    ) -> Reconciliation {
        let mut done = Reconciliation::default();
        let plan = self.plan_buildable(graph, settings, now, &mut done.blocked);
        done.refused = plan.refused().to_vec();
        let destinations = self.assign_cascades(&plan, settings, now, &mut done.created);
        self.place_nodes(&plan, &destinations, &mut done.joined, &mut done.dropped);
        self.set_settling_end(graph, settings, now, &done.created);
        self.drop_unplanned(&plan, &mut done);
        self.assign_gates(settings);
        self.index = Index::build(&self.cascades);

        let mut pending = Vec::new();
        for cascade in self
            .cascades
            .values()
            .filter(|cascade| !cascade.is_finished())
        {
            for (task, node) in &cascade.nodes {
                if node.state == NodeState::Pending {
                    pending.push((cascade.id, task.clone()));
                }
            }
        }
        let mut settled = Vec::new();
        for (id, task) in pending {
            self.update_node(id, &task, now, &mut settled);
        }
        self.update_dependents(settled, now);
        self.advance(settings, now, &mut done.actions);
        done
    }

    /// Plans everything that is stale and was not tried for the same digests before.
    fn plan_buildable<'g>(
        &mut self,
        graph: &'g Graph,
        settings: &Settings,
        now: Timestamp,
        blocked: &mut Vec<Blocked>,
    ) -> Plan<'g> {
        let mut options = PlanOptions {
            everything: true,
            assumed_stale: self.index.running.keys().cloned().collect(),
            ..PlanOptions::default()
        };
        let all = plan(graph, &BTreeMap::new(), &options);
        self.forget_attempts(&all, settings);
        let mut tried = BTreeMap::new();
        // Tasks of a cascade that is being canceled are not built elsewhere until the results of
        // its runs are recorded.
        for cascade in self
            .cascades
            .values()
            .filter(|cascade| is_canceling(cascade))
        {
            for (task, node) in &cascade.nodes {
                let stopped = matches!(
                    node.state,
                    NodeState::Canceled { .. } | NodeState::Running { .. }
                );
                if stopped && !self.is_waiting_elsewhere(cascade.id, task) {
                    options.excluded.insert(task.clone());
                    tried.insert(task.clone(), AttemptEnd::Canceled);
                }
            }
        }
        loop {
            let open = plan(graph, &BTreeMap::new(), &options);
            let mut found = Vec::new();
            for node in open.nodes() {
                let name = open.name(node);
                if let Some(attempt) = self.attempts.get(name)
                    && let Some((pins, used)) = fixed_digests(&open, node)
                    && attempt.forbids_rebuild(
                        &Key::compute(name, &pins),
                        &Key::compute(name, &used),
                        now,
                    )
                {
                    found.push((name.to_owned(), attempt.end));
                }
            }
            if found.is_empty() {
                for node in all
                    .nodes()
                    .filter(|node| open.node_of(all.task(*node)).is_none())
                {
                    let name = all.name(node);
                    let cause = match tried.get(name) {
                        Some(end) => BlockedCause::Tried(*end),
                        None => BlockedCause::Below(blocking_parent(&all, node, &open)),
                    };
                    blocked.push(Blocked {
                        task: name.to_owned(),
                        cause,
                    });
                }
                return open;
            }
            options
                .excluded
                .extend(found.iter().map(|(name, _)| name.clone()));
            tried.extend(found);
        }
    }

    /// Removes attempts that no longer matter.
    ///
    /// - Successes of fresh tasks: a later build on older digests makes the task stale again.
    /// - Attempts skipped because of failed canaries, once the canaries are fresh, whichever run
    ///   built them.
    /// - Attempts of deleted tasks.
    fn forget_attempts(&mut self, all: &Plan<'_>, settings: &Settings) {
        let graph = all.graph();
        let stale = |task: &str| {
            let task = graph.task(task);
            task.is_some_and(|task| all.node_of(task).is_some())
        };
        self.attempts.retain(|task, attempt| match attempt.end {
            _ if graph.task(task).is_none() => false,
            AttemptEnd::Succeeded => stale(task),
            AttemptEnd::Failed | AttemptEnd::Canceled => true,
            AttemptEnd::CanaryFailed => matches!(
                settings.mode_of(task),
                Mode::Canary { first } if first.iter().any(|first| stale(first))
            ),
        });
    }

    fn is_waiting_elsewhere(&self, id: CascadeId, task: &str) -> bool {
        self.cascades.values().any(|other| {
            other.id != id
                && other
                    .nodes
                    .get(task)
                    .is_some_and(|node| node.state.is_waiting())
        })
    }

    /// Returns the destination of each node of the plan. Creates the cascades that do not exist
    /// yet.
    fn assign_cascades(
        &mut self,
        plan: &Plan<'_>,
        settings: &Settings,
        now: Timestamp,
        created: &mut Vec<CascadeId>,
    ) -> Vec<Destination> {
        let active: Vec<CascadeId> = self
            .cascades
            .values()
            .filter(|cascade| !cascade.is_finished() && !is_canceling(cascade))
            .map(|cascade| cascade.id)
            .collect();
        let mut sets = DisjointSets::new(plan.len() + active.len());
        for node in plan.nodes() {
            for parent in plan.parents(node) {
                sets.union(node.0 as usize, parent.0 as usize);
            }
            for (position, id) in active.iter().enumerate() {
                if self.cascades[id].nodes.contains_key(plan.name(node)) {
                    sets.union(node.0 as usize, plan.len() + position);
                }
            }
        }
        self.merge_related(plan, &active, &mut sets);
        // Cascades of each set, the oldest first.
        let mut levels: BTreeMap<usize, Vec<CascadeId>> = BTreeMap::new();
        for (position, id) in active.iter().enumerate() {
            let set = sets.find(plan.len() + position);
            levels.entry(set).or_default().push(*id);
        }
        let mut destinations: Vec<Destination> = Vec::with_capacity(plan.len());
        for node in plan.nodes() {
            let name = plan.name(node);
            let levels = levels.entry(sets.find(node.0 as usize)).or_default();
            let own = self.first_level(plan, node, levels);
            let parents = plan.parents(node);
            let level_of = |parent: &NodeId| destinations[parent.0 as usize].level;
            let mut level = parents.iter().map(level_of).max().unwrap_or(0).max(own);
            let deferred_out =
                |node: &Node| node.state.is_waiting() && node.moved >= settings.max_deferrals;
            let provides_output = |parent: &NodeId| {
                level_of(parent) <= own
                    || levels[..=own].iter().any(|id| {
                        let node = self.node(*id, plan.name(*parent));
                        node.is_some_and(|node| node.state.was_started())
                    })
            };
            if let Some(id) = levels.get(own)
                && self.node(*id, name).is_some_and(deferred_out)
                && parents.iter().all(provides_output)
            {
                level = own;
            }
            if level >= levels.len() {
                let id = self.create_cascade(levels.last().copied(), settings, now);
                levels.push(id);
                created.push(id);
                level = levels.len() - 1;
            }
            destinations.push(Destination {
                level,
                cascade: levels[level],
                earlier: levels[..level].to_vec(),
                later: levels[level + 1..].to_vec(),
            });
        }
        destinations
    }

    /// Merges the sets of nodes with a common moved base, and of all changes that no cascade
    /// handles yet.
    fn merge_related(&self, plan: &Plan<'_>, active: &[CascadeId], sets: &mut DisjointSets) {
        let mut firsts = BTreeMap::new();
        for node in plan.nodes() {
            for pin in plan.pins(node) {
                if pin.is_reason() && matches!(pin.to, PinTo::Digest(_)) {
                    let first = *firsts.entry(pin.image).or_insert(node);
                    sets.union(first.0 as usize, node.0 as usize);
                }
            }
        }
        let mut oldest = BTreeMap::new();
        for (position, id) in active.iter().enumerate() {
            oldest
                .entry(sets.find(plan.len() + position))
                .or_insert(*id);
        }
        let settles = |id: &CascadeId| {
            matches!(self.cascades[id].phase, Phase::Settling { .. })
                && oldest.values().any(|oldest| oldest == id)
        };
        let mut anchor = active
            .iter()
            .position(settles)
            .map(|position| plan.len() + position);
        for node in plan.nodes() {
            let node = node.0 as usize;
            if !oldest.contains_key(&sets.find(node)) {
                let anchor = *anchor.get_or_insert(node);
                let (own, common) = (sets.find(node), sets.find(anchor));
                sets.union(own, common);
                if let Some(id) = oldest.get(&common).copied() {
                    oldest.insert(sets.find(node), id);
                }
            }
        }
    }

    /// Returns the first level at which a node can be built, regardless of its parents.
    fn first_level(&self, plan: &Plan<'_>, node: NodeId, levels: &[CascadeId]) -> usize {
        let name = plan.name(node);
        let mut own = 0;
        for (level, id) in levels.iter().enumerate() {
            let Some(found) = self.node(*id, name) else {
                continue;
            };
            let stays = match &found.state {
                NodeState::Pending | NodeState::Ready { .. } => true,
                NodeState::Running { pins, .. } if matches_plan(plan, node, pins) => return level,
                NodeState::Skipped {
                    cause: SkipCause::Fresh,
                } => true,
                NodeState::Skipped {
                    cause: SkipCause::Moved { .. },
                } => continue,
                _ => false,
            };
            own = if stays { level } else { level + 1 };
        }
        own
    }

    fn create_cascade(
        &mut self,
        follows: Option<CascadeId>,
        settings: &Settings,
        now: Timestamp,
    ) -> CascadeId {
        self.next += 1;
        let id = CascadeId(self.next);
        let settle = SignedDuration::from_secs(settings.settle_secs.into());
        let cascade = Cascade {
            id,
            created: now,
            phase: Phase::Settling {
                until: now.saturating_add(settle).unwrap_or(now),
            },
            paused: false,
            approved: false,
            follows,
            changes: BTreeMap::new(),
            nodes: BTreeMap::new(),
        };
        self.cascades.insert(id, cascade);
        id
    }

    /// Adds each node of the plan to its cascade.
    fn place_nodes(
        &mut self,
        plan: &Plan<'_>,
        destinations: &[Destination],
        joined: &mut Vec<(CascadeId, String)>,
        dropped: &mut Vec<(CascadeId, String)>,
    ) {
        let chains = plan.chain_times();
        for node in plan.nodes() {
            let name = plan.name(node);
            let destination = &destinations[node.0 as usize];
            let bases = self.node_bases(plan, node, destinations);
            let mut moved = 0;
            for id in destination.earlier.iter().chain(&destination.later) {
                let Some(cascade) = self.cascades.get_mut(id) else {
                    continue;
                };
                if let Some(other) = cascade.nodes.get_mut(name)
                    && other.state.is_waiting()
                {
                    moved = moved.max(other.moved + 1);
                    other.state = NodeState::Skipped {
                        cause: SkipCause::Moved {
                            to: destination.cascade,
                        },
                    };
                    dropped.push((*id, name.to_owned()));
                }
            }
            let Some(cascade) = self.cascades.get_mut(&destination.cascade) else {
                continue;
            };
            let present = cascade.nodes.get_mut(name);
            if let Some(present) = &present
                && !present.state.is_waiting()
                && present.state.is_open()
            {
                continue;
            }
            for pin in plan.pins(node).filter(crate::plan::Pin::is_reason) {
                if let PinTo::Digest(digest) = pin.to
                    && plan.graph().builder_of(pin.image).is_none()
                {
                    let image = plan.graph().image_ref(pin.image.0);
                    cascade.changes.insert(image, plan.digest(digest));
                }
            }
            let chain_ms = chains[node.0 as usize];
            match present {
                Some(present) if present.state.is_waiting() && present.bases == bases => {
                    present.chain_ms = chain_ms;
                }
                Some(present) => {
                    present.state = NodeState::Pending;
                    present.bases = bases;
                    present.chain_ms = chain_ms;
                    present.failures = 0;
                    present.outdated = false;
                    present.moved = present.moved.max(moved);
                    joined.push((destination.cascade, name.to_owned()));
                }
                None => {
                    let new = Node {
                        state: NodeState::Pending,
                        bases,
                        gate: Gate::Open,
                        chain_ms,
                        attempts: 0,
                        failures: 0,
                        moved,
                        outdated: false,
                    };
                    cascade.nodes.insert(name.to_owned(), new);
                    joined.push((destination.cascade, name.to_owned()));
                }
            }
        }
    }

    fn node_bases(
        &self,
        plan: &Plan<'_>,
        node: NodeId,
        destinations: &[Destination],
    ) -> Vec<NodeBase> {
        let destination = &destinations[node.0 as usize];
        plan.pins(node)
            .map(|pin| {
                let used = plan.digest(pin.used);
                let pinned = match pin.to {
                    PinTo::Digest(digest) => NodePin::Digest(plan.digest(digest)),
                    PinTo::Output(parent) => {
                        let task = plan.name(parent);
                        let now = plan.graph().digest_now(pin.image);
                        let otherwise = now.unwrap_or_else(|| used.clone());
                        let above = &destinations[parent.0 as usize];
                        // A deferred-out node stays although its parent is rebuilt later. It uses
                        // the parent's output of this cascade.
                        let cascade = if above.level <= destination.level {
                            Some(above.cascade)
                        } else {
                            let here = std::iter::once(&destination.cascade)
                                .chain(destination.earlier.iter().rev());
                            here.copied().find(|id| self.node(*id, task).is_some())
                        };
                        match cascade {
                            Some(cascade) => NodePin::Output {
                                task: task.to_owned(),
                                cascade,
                                otherwise,
                            },
                            None => NodePin::Digest(otherwise),
                        }
                    }
                };
                NodeBase {
                    image: plan.graph().image_ref(pin.image.0),
                    counted: pin.counted,
                    used,
                    pin: pinned,
                }
            })
            .collect()
    }

    /// Sets the settling time to begin when the last of the bases moved, not when the
    /// change was observed.
    fn set_settling_end(
        &mut self,
        graph: &Graph,
        settings: &Settings,
        now: Timestamp,
        created: &[CascadeId],
    ) {
        let settle = SignedDuration::from_secs(settings.settle_secs.into());
        for id in created {
            let Some(cascade) = self.cascades.get_mut(id) else {
                continue;
            };
            let moved = |image| graph.moved_at(graph.image(image)?);
            let last = cascade.changes.keys().map(moved).max().flatten();
            if let (Some(last), Phase::Settling { until }) = (last, &mut cascade.phase) {
                let end = last.saturating_add(settle).unwrap_or(*until);
                *until = end.clamp(now, *until);
            }
        }
    }

    /// Settles waiting nodes that are not in the plan: they need no build, or must not be built.
    fn drop_unplanned(&mut self, plan: &Plan<'_>, done: &mut Reconciliation) {
        let graph = plan.graph();
        let blocked: BTreeMap<&str, &BlockedCause> = done
            .blocked
            .iter()
            .map(|blocked| (blocked.task.as_str(), &blocked.cause))
            .collect();
        let refused: BTreeSet<&str> = done
            .refused
            .iter()
            .flat_map(Refused::tasks)
            .map(String::as_str)
            .collect();
        for cascade in self.cascades.values_mut() {
            for (task, node) in &mut cascade.nodes {
                let planned = graph.task(task).and_then(|task| plan.node_of(task));
                if let NodeState::Running { pins, .. } = &node.state {
                    node.outdated = planned.is_none_or(|node| !matches_plan(plan, node, pins));
                }
                if !node.state.is_waiting() || planned.is_some() {
                    continue;
                }
                node.state = match blocked.get(task.as_str()) {
                    Some(BlockedCause::Tried(end)) => NodeState::Stale {
                        cause: StaleCause::Tried { end: *end },
                    },
                    Some(BlockedCause::Below(parent)) => NodeState::Stale {
                        cause: StaleCause::Below {
                            task: parent.clone(),
                        },
                    },
                    None if refused.contains(task.as_str()) => NodeState::Stale {
                        cause: StaleCause::Refused,
                    },
                    None => NodeState::Skipped {
                        cause: SkipCause::Fresh,
                    },
                };
                done.dropped.push((cascade.id, task.clone()));
            }
        }
    }
}

/// Cascade that builds a node of the plan.
struct Destination {
    level: usize,
    cascade: CascadeId,
    earlier: Vec<CascadeId>,
    later: Vec<CascadeId>,
}

/// Returns `true` if a run with these pins is the one that the plan contains.
fn matches_plan(plan: &Plan<'_>, node: NodeId, pins: &Digests) -> bool {
    plan.pins(node).filter(|pin| pin.counted).all(|pin| {
        let image = plan.graph().image_ref(pin.image.0);
        matches!(pin.to, PinTo::Digest(digest) if pins.get(&image) == Some(&plan.digest(digest)))
    })
}

fn is_canceling(cascade: &Cascade) -> bool {
    matches!(cascade.phase, Phase::Canceling { .. })
}

type Digests = BTreeMap<ImageRef, Digest>;

/// Returns the pinned and the used digests of a node. `None` if one of its bases must be built
/// first.
fn fixed_digests(plan: &Plan<'_>, node: NodeId) -> Option<(Digests, Digests)> {
    let mut pins = Digests::new();
    let mut used = Digests::new();
    for pin in plan.pins(node) {
        let PinTo::Digest(digest) = pin.to else {
            return None;
        };
        let image = plan.graph().image_ref(pin.image.0);
        used.insert(image.clone(), plan.digest(pin.used));
        pins.insert(image, plan.digest(digest));
    }
    Some((pins, used))
}

/// Returns the first task that a node of `all` waits for and that is not in `open`.
fn blocking_parent(all: &Plan<'_>, node: NodeId, open: &Plan<'_>) -> String {
    let after = all.parents(node);
    let blocked = after
        .iter()
        .find(|parent| open.node_of(all.task(**parent)).is_none());
    blocked.map_or_else(String::new, |parent| all.name(*parent).to_owned())
}
