//! Planner: a pure function from a graph and digest changes to the tasks to build, their order and
//! their pins.
//!
//! Property tests check these invariants:
//!
//! - Every stale task is in the plan exactly once, and no fresh task is.
//! - Parents precede their children.
//! - A base is pinned to the same digest in the whole plan.
//!
//! A base that does not count for a task's policy never makes the task stale. A task that is built
//! anyway waits for all of its bases that are being built, so the whole plan uses the same images.
//! If waiting would create a cycle, the task uses the current digest of such a base.
//!
//! A task that rebuilds its own base would be rebuilt forever. The planner refuses it with the path
//! ([`Refused`]), treats it as unchanging for all other tasks, and plans the rest.

mod estimate;
mod loops;
mod order;

use std::collections::{BTreeMap, BTreeSet};

use acrtask_model::{Digest, ImageRef, events::BaseRole};
use serde::{Deserialize, Serialize};

pub use estimate::Estimate;
pub use loops::{LoopStep, Refused};

use crate::graph::{Edge, Graph, ImageId, NONE, TaskId};

/// Options of [`plan()`].
#[derive(Debug, Clone, Default)]
pub struct PlanOptions {
    /// Plan everything that is stale, not only what the changes make stale.
    pub everything: bool,
    /// Tasks to leave out, together with all tasks below them.
    pub excluded: BTreeSet<String>,
    /// Tasks to treat as stale: the running ones, whose used digests are not recorded yet.
    pub assumed_stale: BTreeSet<String>,
}

/// Digest of one [`Plan`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DigestId(u32);

/// Node of one [`Plan`]: a task, numbered in the order of the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(crate) u32);

/// Pinned base of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin {
    /// Pinned base.
    pub image: ImageId,
    /// Role of the base in the build. If it has several, the weightiest one.
    pub role: BaseRole,
    /// `true` if the base can make the task stale.
    pub counted: bool,
    /// Digest that the last run used.
    pub used: DigestId,
    /// Digest or output to use.
    pub to: PinTo,
}

/// Target of a [`Pin`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinTo {
    /// A digest.
    Digest(DigestId),
    /// The image that this node pushes.
    Output(NodeId),
}

impl Pin {
    /// Returns `true` if this base is a reason for the build.
    pub fn is_reason(&self) -> bool {
        self.counted && self.to != PinTo::Digest(self.used)
    }
}

/// Tasks to build, ordered by wave and by name within a wave.
#[derive(Debug)]
pub struct Plan<'g> {
    graph: &'g Graph,
    /// Planned digest of each changed image, by image.
    changed: BTreeMap<u32, u32>,
    /// Digests that are not in the graph. Their numbers follow those of the graph.
    new_digests: Vec<Digest>,
    unknown: Vec<ImageRef>,
    nodes: Vec<u32>,
    /// Node of each task, by task.
    positions: Vec<u32>,
    /// First node of each wave.
    waves: Vec<u32>,
    /// Ring of uncounted bases that contains the task, by task. Empty without rings.
    rings: Vec<u32>,
    refused: Vec<Refused>,
}

/// Plans the tasks that `changes` make stale. `changes` maps each tag to its new digest.
pub fn plan<'g>(
    graph: &'g Graph,
    changes: &BTreeMap<ImageRef, Digest>,
    options: &PlanOptions,
) -> Plan<'g> {
    let mut plan = Plan {
        graph,
        changed: BTreeMap::new(),
        new_digests: Vec::new(),
        unknown: Vec::new(),
        nodes: Vec::new(),
        positions: Vec::new(),
        waves: Vec::new(),
        rings: Vec::new(),
        refused: Vec::new(),
    };
    for (image, digest) in changes {
        let Some(id) = graph.image(image) else {
            plan.unknown.push(image.clone());
            continue;
        };
        let digest = graph.find_digest(digest).unwrap_or_else(|| {
            let existing = plan.new_digests.iter().position(|new| new == digest);
            let index = existing.unwrap_or_else(|| {
                plan.new_digests.push(digest.clone());
                plan.new_digests.len() - 1
            });
            to_u32(graph.digests.len() + index)
        });
        plan.changed.insert(id.0, digest);
    }
    order::order_plan(&mut plan, options);
    plan
}

impl<'g> Plan<'g> {
    /// Returns the graph of this plan.
    pub fn graph(&self) -> &'g Graph {
        self.graph
    }

    /// Returns `true` if the plan contains no tasks.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Returns the number of tasks to build.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Returns the nodes in order.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = NodeId> + use<> {
        (0..to_u32(self.nodes.len())).map(NodeId)
    }

    /// Returns the node of a task; `None` if the plan does not contain it.
    pub fn node_of(&self, task: TaskId) -> Option<NodeId> {
        let position = self.positions[task.0 as usize];
        (position != NONE).then_some(NodeId(position))
    }

    /// Returns the task of a node.
    pub fn task(&self, node: NodeId) -> TaskId {
        TaskId(self.nodes[node.0 as usize])
    }

    /// Returns the name of a node's task.
    pub fn name(&self, node: NodeId) -> &'g str {
        self.graph.task_name(self.task(node))
    }

    /// Returns the wave of a node, from 0. All parents are in earlier waves, one of them in the
    /// previous wave.
    pub fn wave(&self, node: NodeId) -> usize {
        self.waves.partition_point(|first| *first <= node.0) - 1
    }

    /// Returns the number of waves.
    pub fn wave_count(&self) -> usize {
        self.waves.len()
    }

    /// Returns the pinned bases of a node, in the order of their names.
    pub fn pins(&self, node: NodeId) -> impl Iterator<Item = Pin> {
        let task = self.nodes[node.0 as usize];
        edges_by_base(self.graph, task).map(move |edges| self.pin(task, edges))
    }

    /// Returns the nodes that a node waits for, each once.
    pub fn parents(&self, node: NodeId) -> Vec<NodeId> {
        let mut after: Vec<NodeId> = self
            .pins(node)
            .filter_map(|pin| match pin.to {
                PinTo::Output(parent) => Some(parent),
                PinTo::Digest(_) => None,
            })
            .collect();
        after.sort_unstable();
        after.dedup();
        after
    }

    /// Returns the text form of a digest.
    pub fn digest(&self, digest: DigestId) -> Digest {
        let in_graph = self.graph.digests.len();
        match (digest.0 as usize).checked_sub(in_graph) {
            Some(new) => self.new_digests[new].clone(),
            None => self.graph.digest(digest.0),
        }
    }

    /// Returns the changes of this plan as image and new digest, without images that no known task
    /// uses.
    pub fn changes(&self) -> impl Iterator<Item = (ImageId, DigestId)> {
        self.changed
            .iter()
            .map(|(image, digest)| (ImageId(*image), DigestId(*digest)))
    }

    /// Returns the changed images that no known task uses.
    pub fn unknown(&self) -> &[ImageRef] {
        &self.unknown
    }

    /// Returns the stale tasks that must not be built, with the reasons.
    pub fn refused(&self) -> &[Refused] {
        &self.refused
    }

    /// Returns the allocated memory in bytes, without the graph.
    pub fn memory(&self) -> usize {
        (self.nodes.capacity()
            + self.positions.capacity()
            + self.waves.capacity()
            + self.rings.capacity())
            * size_of::<u32>()
    }

    /// Returns the number of the digest that an image is expected to have; `NONE` if it is not
    /// available.
    fn target_digest(&self, image: u32) -> u32 {
        let now = self.graph.now[image as usize];
        if self.changed.is_empty() {
            return now;
        }
        self.changed.get(&image).copied().unwrap_or(now)
    }

    /// Returns `true` if this edge makes its task stale before anything is built.
    fn is_stale(&self, task: u32, edge: &Edge) -> bool {
        let target = self.target_digest(edge.base);
        target != NONE && target != edge.used && self.graph.counts(task, edge)
    }

    /// Returns the task that `task` waits for because of its edges to `base`.
    fn awaited_parent(&self, task: u32, base: u32, counted: bool) -> Option<u32> {
        let parent = self.graph.builder[base as usize];
        (parent != NONE
            && self.positions[parent as usize] != NONE
            && !self.is_dropped(task, parent, counted))
        .then_some(parent)
    }

    /// Returns `true` if waiting for `parent` would create a cycle.
    fn is_dropped(&self, task: u32, parent: u32, counted: bool) -> bool {
        !counted
            && (task == parent
                || !self.rings.is_empty()
                    && self.rings[task as usize] != NONE
                    && self.rings[task as usize] == self.rings[parent as usize])
    }

    fn pin(&self, task: u32, edges: &[Edge]) -> Pin {
        let base = edges[0].base;
        let counted = edges.iter().any(|edge| self.graph.counts(task, edge));
        let stale = edges.iter().find(|edge| self.is_stale(task, edge));
        let counting = edges.iter().find(|edge| self.graph.counts(task, edge));
        let edge = stale.or(counting).unwrap_or(&edges[0]);
        let to = match self.awaited_parent(task, base, counted) {
            Some(parent) => PinTo::Output(NodeId(self.positions[parent as usize])),
            None => PinTo::Digest(DigestId(match self.target_digest(base) {
                NONE => edge.used,
                target => target,
            })),
        };
        Pin {
            image: ImageId(base),
            role: edge.role,
            counted,
            used: DigestId(edge.used),
            to,
        }
    }
}

/// Returns the edges of a task, grouped by base.
fn edges_by_base(graph: &Graph, task: u32) -> impl Iterator<Item = &[Edge]> {
    graph.edges.get(task).chunk_by(|a, b| a.base == b.base)
}

/// Converts an index to `u32`. The graph refuses input with 2^32 or more entities.
fn to_u32(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(NONE)
}

/// Size of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Size {
    /// Number of tasks.
    pub tasks: usize,
    /// Number of images that the tasks push.
    pub images: usize,
    /// Number of waves.
    pub waves: usize,
}

impl Plan<'_> {
    /// Returns the size of the plan.
    pub fn size(&self) -> Size {
        Size {
            tasks: self.len(),
            images: self
                .nodes
                .iter()
                .map(|task| self.graph.outputs.get(*task).len())
                .sum(),
            waves: self.wave_count(),
        }
    }
}
