//! All facts against all cascades: what has to begin, join, follow or be dropped.
//!
//! Takes no event. It plans everything that is stale now, and finds for each node of that plan the cascade that
//! should build it: its *level* among the active cascades that it is connected with, the oldest being 0. A task
//! that waits stays where it is. One that runs with the digests of the plan stays too; with others, or once it has
//! come to its end there, it is built again one level later. Nothing is built at an earlier level than what it
//! stands on. The level behind the last cascade is a new one, which follows.

use std::collections::{BTreeMap, BTreeSet};

use acrtask_model::{Digest, ImageRef};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::{
    Action, AttemptEnd, Cascade, CascadeId, Cascades, Gate, Key, Mode, Node, NodeBase, NodePin,
    NodeState, Phase, Settings, SkippedBecause, StaleBecause, index::Index, sets::Sets,
};
use crate::{
    graph::Graph,
    plan::{NodeId, PinTo, Plan, PlanOptions, Refused, plan},
};

/// What a reconciliation found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reconciled {
    /// What to do.
    pub actions: Vec<Action>,
    /// Cascades that began.
    pub created: Vec<CascadeId>,
    /// Nodes that were added to a cascade, or whose bases were changed in it.
    pub joined: Vec<(CascadeId, String)>,
    /// Nodes that were taken out of a cascade without having been started.
    pub dropped: Vec<(CascadeId, String)>,
    /// Tasks that are stale and are not built, until something changes.
    pub blocked: Vec<Blocked>,
    /// Tasks that are stale and may not be built.
    pub refused: Vec<Refused>,
}

/// A task that is stale and is not built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Blocked {
    /// The task.
    pub task: String,
    /// Why.
    pub because: BlockedBecause,
}

/// See [`Blocked`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum BlockedBecause {
    /// It was run for these very digests, or somebody canceled that.
    Tried(AttemptEnd),
    /// It stands on a task that is blocked.
    Below(String),
}

impl Cascades {
    /// Compares all facts with all cascades. Whoever calls it has read the facts after everything that
    /// [`Cascades::step`] was told, so that a run that has ended well is in them. The same facts again give nothing.
    pub fn reconcile(&mut self, graph: &Graph, settings: &Settings, now: Timestamp) -> Reconciled {
        let mut done = Reconciled::default();
        // What was started or left behind in one pass can be a reason for the next: a node that was started with
        // an older base because it had been moved often enough is built again in a cascade that follows.
        loop {
            let pass = self.pass(graph, settings, now);
            let starts = |action: &Action| matches!(action, Action::Start(_));
            let rests = pass.created.is_empty()
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
            if rests {
                return done;
            }
        }
    }

    fn pass(&mut self, graph: &Graph, settings: &Settings, now: Timestamp) -> Reconciled {
        let mut done = Reconciled::default();
        let plan = self.plan_open(graph, settings, now, &mut done.blocked);
        done.refused = plan.refused().to_vec();
        let homes = self.homes(&plan, settings, now, &mut done.created);
        self.place(&plan, &homes, &mut done.joined, &mut done.dropped);
        self.settle(graph, settings, now, &done.created);
        self.drop_others(&plan, &mut done);
        self.close_gates(settings);
        self.index = Index::of(&self.cascades);

        let mut pending = Vec::new();
        for cascade in self.cascades.values().filter(|cascade| !cascade.is_over()) {
            for (task, node) in &cascade.nodes {
                if node.state == NodeState::Pending {
                    pending.push((cascade.id, task.clone()));
                }
            }
        }
        let mut rested = Vec::new();
        for (id, task) in pending {
            self.look(id, &task, now, &mut rested);
        }
        self.spread(rested, now);
        self.go_on(settings, now, &mut done.actions);
        done
    }

    /// The plan of all that is stale and was not run for the same digests before.
    fn plan_open<'g>(
        &mut self,
        graph: &'g Graph,
        settings: &Settings,
        now: Timestamp,
        blocked: &mut Vec<Blocked>,
    ) -> Plan<'g> {
        let mut options = PlanOptions {
            everything: true,
            also: self.index.running.keys().cloned().collect(),
            ..PlanOptions::default()
        };
        let all = plan(graph, &BTreeMap::new(), &options);
        self.let_go(&all, settings);
        let mut tried = BTreeMap::new();
        // What is being canceled is not taken up elsewhere before it is known how its runs ended.
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
                if stopped && !self.waits_elsewhere(cascade.id, task) {
                    options.held.insert(task.clone());
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
                    && let Some((pins, used)) = fixed(&open, node)
                    && attempt.holds(&Key::of(name, &pins), &Key::of(name, &used), now)
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
                    let because = match tried.get(name) {
                        Some(end) => BlockedBecause::Tried(*end),
                        None => BlockedBecause::Below(below(&all, node, &open)),
                    };
                    blocked.push(Blocked {
                        task: name.to_owned(),
                        because,
                    });
                }
                return open;
            }
            options
                .held
                .extend(found.iter().map(|(name, _)| name.clone()));
            tried.extend(found);
        }
    }

    /// Forgets what counts no more. A success, once the task is fresh: whoever builds it on older digests afterwards makes it
    /// stale anew. What was not tried because those that go first had failed, once these are fresh, whoever built them.
    /// And tasks that are gone.
    fn let_go(&mut self, all: &Plan<'_>, settings: &Settings) {
        let graph = all.graph();
        let stale = |task: &str| {
            let task = graph.task(task);
            task.is_some_and(|task| all.node_of(task).is_some())
        };
        self.attempts.retain(|task, attempt| match attempt.end {
            _ if graph.task(task).is_none() => false,
            AttemptEnd::Succeeded => stale(task),
            AttemptEnd::Failed | AttemptEnd::Canceled => true,
            AttemptEnd::Held => matches!(
                settings.mode(task),
                Mode::Canary { first } if first.iter().any(|first| stale(first))
            ),
        });
    }

    fn waits_elsewhere(&self, id: CascadeId, task: &str) -> bool {
        self.cascades.values().any(|other| {
            other.id != id && other.nodes.get(task).is_some_and(|node| node.state.waits())
        })
    }

    /// The cascade of each node of the plan; those that are needed and do not exist begin here.
    fn homes(
        &mut self,
        plan: &Plan<'_>,
        settings: &Settings,
        now: Timestamp,
        created: &mut Vec<CascadeId>,
    ) -> Vec<Home> {
        let active: Vec<CascadeId> = self
            .cascades
            .values()
            .filter(|cascade| !cascade.is_over() && !is_canceling(cascade))
            .map(|cascade| cascade.id)
            .collect();
        let mut sets = Sets::new(plan.len() + active.len());
        for node in plan.nodes() {
            for parent in plan.after(node) {
                sets.join(node.0 as usize, parent.0 as usize);
            }
            for (position, id) in active.iter().enumerate() {
                if self.cascades[id].nodes.contains_key(plan.name(node)) {
                    sets.join(node.0 as usize, plan.len() + position);
                }
            }
        }
        self.gather(plan, &active, &mut sets);
        // By set: its cascades, the oldest first.
        let mut levels: BTreeMap<usize, Vec<CascadeId>> = BTreeMap::new();
        for (position, id) in active.iter().enumerate() {
            let set = sets.of(plan.len() + position);
            levels.entry(set).or_default().push(*id);
        }
        let mut homes: Vec<Home> = Vec::with_capacity(plan.len());
        for node in plan.nodes() {
            let name = plan.name(node);
            let levels = levels.entry(sets.of(node.0 as usize)).or_default();
            let own = self.own_level(plan, node, levels);
            let parents = plan.after(node);
            let level_of = |parent: &NodeId| homes[parent.0 as usize].level;
            let mut level = parents.iter().map(level_of).max().unwrap_or(0).max(own);
            let tired = |node: &Node| node.state.waits() && node.moved >= settings.patience;
            let gives = |parent: &NodeId| {
                level_of(parent) <= own
                    || levels[..=own].iter().any(|id| {
                        let node = self.node(*id, plan.name(*parent));
                        node.is_some_and(|node| node.state.was_started())
                    })
            };
            if let Some(id) = levels.get(own)
                && self.node(*id, name).is_some_and(tired)
                && parents.iter().all(gives)
            {
                level = own;
            }
            if level >= levels.len() {
                let id = self.begin(levels.last().copied(), settings, now);
                levels.push(id);
                created.push(id);
                level = levels.len() - 1;
            }
            homes.push(Home {
                level,
                cascade: levels[level],
                earlier: levels[..level].to_vec(),
                later: levels[level + 1..].to_vec(),
            });
        }
        homes
    }

    /// Puts together what one change makes stale, and all changes that no cascade works on yet.
    fn gather(&self, plan: &Plan<'_>, active: &[CascadeId], sets: &mut Sets) {
        let mut firsts = BTreeMap::new();
        for node in plan.nodes() {
            for pin in plan.pins(node) {
                if pin.is_reason() && matches!(pin.to, PinTo::Digest(_)) {
                    let first = *firsts.entry(pin.image).or_insert(node);
                    sets.join(first.0 as usize, node.0 as usize);
                }
            }
        }
        let mut oldest = BTreeMap::new();
        for (position, id) in active.iter().enumerate() {
            oldest.entry(sets.of(plan.len() + position)).or_insert(*id);
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
            if !oldest.contains_key(&sets.of(node)) {
                let anchor = *anchor.get_or_insert(node);
                let (own, common) = (sets.of(node), sets.of(anchor));
                sets.join(own, common);
                if let Some(id) = oldest.get(&common).copied() {
                    oldest.insert(sets.of(node), id);
                }
            }
        }
    }

    /// The first level at which a node can be, whatever its parents are.
    fn own_level(&self, plan: &Plan<'_>, node: NodeId, levels: &[CascadeId]) -> usize {
        let name = plan.name(node);
        let mut own = 0;
        for (level, id) in levels.iter().enumerate() {
            let Some(found) = self.node(*id, name) else {
                continue;
            };
            let stays = match &found.state {
                NodeState::Pending | NodeState::Ready { .. } => true,
                NodeState::Running { pins, .. } if runs_for(plan, node, pins) => return level,
                NodeState::Skipped {
                    because: SkippedBecause::Fresh,
                } => true,
                NodeState::Skipped {
                    because: SkippedBecause::Moved { .. },
                } => continue,
                _ => false,
            };
            own = if stays { level } else { level + 1 };
        }
        own
    }

    fn begin(
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

    /// Puts each node of the plan where it belongs.
    fn place(
        &mut self,
        plan: &Plan<'_>,
        homes: &[Home],
        joined: &mut Vec<(CascadeId, String)>,
        dropped: &mut Vec<(CascadeId, String)>,
    ) {
        let chains = plan.chain_times();
        for node in plan.nodes() {
            let name = plan.name(node);
            let home = &homes[node.0 as usize];
            let bases = self.bases(plan, node, homes);
            let mut moved = 0;
            for id in home.earlier.iter().chain(&home.later) {
                let Some(cascade) = self.cascades.get_mut(id) else {
                    continue;
                };
                if let Some(other) = cascade.nodes.get_mut(name)
                    && other.state.waits()
                {
                    moved = moved.max(other.moved + 1);
                    other.state = NodeState::Skipped {
                        because: SkippedBecause::Moved { to: home.cascade },
                    };
                    dropped.push((*id, name.to_owned()));
                }
            }
            let Some(cascade) = self.cascades.get_mut(&home.cascade) else {
                continue;
            };
            let present = cascade.nodes.get_mut(name);
            if let Some(present) = &present
                && !present.state.waits()
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
                Some(present) if present.state.waits() && present.bases == bases => {
                    present.chain_ms = chain_ms;
                }
                Some(present) => {
                    present.state = NodeState::Pending;
                    present.bases = bases;
                    present.chain_ms = chain_ms;
                    present.failures = 0;
                    present.outdated = false;
                    present.moved = present.moved.max(moved);
                    joined.push((home.cascade, name.to_owned()));
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
                    joined.push((home.cascade, name.to_owned()));
                }
            }
        }
    }

    fn bases(&self, plan: &Plan<'_>, node: NodeId, homes: &[Home]) -> Vec<NodeBase> {
        let home = &homes[node.0 as usize];
        plan.pins(node)
            .map(|pin| {
                let used = plan.digest(pin.used);
                let pinned = match pin.to {
                    PinTo::Digest(digest) => NodePin::Digest(plan.digest(digest)),
                    PinTo::Output(parent) => {
                        let task = plan.name(parent);
                        let now = plan.graph().digest_now(pin.image);
                        let otherwise = now.unwrap_or_else(|| used.clone());
                        let above = &homes[parent.0 as usize];
                        // A node that stays where it is although its parent is built again later takes what the
                        // parent gives here.
                        let cascade = if above.level <= home.level {
                            Some(above.cascade)
                        } else {
                            let here =
                                std::iter::once(&home.cascade).chain(home.earlier.iter().rev());
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

    /// The time to settle begins when the last of the bases moved, and not when that was taken up.
    fn settle(
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

    /// What waits and is not in the plan needs no build any more, or must not be built.
    fn drop_others(&mut self, plan: &Plan<'_>, done: &mut Reconciled) {
        let graph = plan.graph();
        let blocked: BTreeMap<&str, &BlockedBecause> = done
            .blocked
            .iter()
            .map(|blocked| (blocked.task.as_str(), &blocked.because))
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
                    node.outdated = planned.is_none_or(|node| !runs_for(plan, node, pins));
                }
                if !node.state.waits() || planned.is_some() {
                    continue;
                }
                node.state = match blocked.get(task.as_str()) {
                    Some(BlockedBecause::Tried(end)) => NodeState::Stale {
                        because: StaleBecause::Tried { end: *end },
                    },
                    Some(BlockedBecause::Below(parent)) => NodeState::Stale {
                        because: StaleBecause::Below {
                            task: parent.clone(),
                        },
                    },
                    None if refused.contains(task.as_str()) => NodeState::Stale {
                        because: StaleBecause::Refused,
                    },
                    None => NodeState::Skipped {
                        because: SkippedBecause::Fresh,
                    },
                };
                done.dropped.push((cascade.id, task.clone()));
            }
        }
    }
}

/// Where a node of the plan is built.
struct Home {
    level: usize,
    cascade: CascadeId,
    earlier: Vec<CascadeId>,
    later: Vec<CascadeId>,
}

/// True where a run with these pins is the one that the plan wants.
fn runs_for(plan: &Plan<'_>, node: NodeId, pins: &Digests) -> bool {
    plan.pins(node).filter(|pin| pin.counted).all(|pin| {
        let image = plan.graph().image_ref(pin.image.0);
        matches!(pin.to, PinTo::Digest(digest) if pins.get(&image) == Some(&plan.digest(digest)))
    })
}

fn is_canceling(cascade: &Cascade) -> bool {
    matches!(cascade.phase, Phase::Canceling { .. })
}

type Digests = BTreeMap<ImageRef, Digest>;

/// What a node's bases are fixed to and what was used of them, where none of them is to be built first.
fn fixed(plan: &Plan<'_>, node: NodeId) -> Option<(Digests, Digests)> {
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

/// The first task that a node of `all` waits for and that is not in `open`.
fn below(all: &Plan<'_>, node: NodeId, open: &Plan<'_>) -> String {
    let after = all.after(node);
    let blocked = after
        .iter()
        .find(|parent| open.node_of(all.task(**parent)).is_none());
    blocked.map_or_else(String::new, |parent| all.name(*parent).to_owned())
}
