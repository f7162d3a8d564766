//! (graph, digest changes) -> what is built again, in which order, pinned to what. A pure function.
//!
//! Invariants, each held by a property test: every stale task is in the plan exactly once and no fresh one is; a
//! parent comes before its children; what a base is pinned to is the same in the whole plan.
//!
//! A base that does not count for a task's policy never makes it stale. But a task that is built anyway waits for
//! every base of its that is being built too, so that all of a plan stands on the same images. Only where that
//! would make a ring does it take such a base as it is now.
//!
//! A task that rebuilds its own base would never come to rest. It is refused with the path ([`Refused`]), counts
//! as unchanging for all others, and stops nobody else.

mod estimate;
mod loops;
mod order;

use std::collections::{BTreeMap, BTreeSet};

use acrtask_model::{Digest, ImageRef, events::BaseRole};
use serde::{Deserialize, Serialize};

pub use estimate::Estimate;
pub use loops::{LoopStep, Refused};

use crate::graph::{Edge, Graph, ImageId, NONE, TaskId};

/// What is to be planned.
#[derive(Debug, Clone, Default)]
pub struct PlanOptions {
    /// All that is stale, not only what the changes make stale.
    pub everything: bool,
    /// Tasks that are not to be built, nor anything below them.
    pub held: BTreeSet<String>,
    /// Tasks that are taken to be stale: those that run now, so that nobody knows what they will stand on.
    pub also: BTreeSet<String>,
}

/// A digest of one [`Plan`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DigestId(u32);

/// A node of one [`Plan`]: a task, counted in the order of the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(crate) u32);

/// What one base of a node is fixed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin {
    /// The base.
    pub image: ImageId,
    /// What it is to the task; the weightiest role where it has several.
    pub role: BaseRole,
    /// It can make the task stale.
    pub counted: bool,
    /// What was used of it last time.
    pub used: DigestId,
    /// What is to be used.
    pub to: PinTo,
}

/// See [`Pin`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinTo {
    /// This digest.
    Digest(DigestId),
    /// What this node pushes.
    Output(NodeId),
}

impl Pin {
    /// True where this base is a reason for the build.
    pub fn is_reason(&self) -> bool {
        self.counted && self.to != PinTo::Digest(self.used)
    }
}

/// What is built again. Order of nodes: wave by wave, by name within a wave.
#[derive(Debug)]
pub struct Plan<'g> {
    graph: &'g Graph,
    /// By image: the digest it is to have.
    changed: BTreeMap<u32, u32>,
    /// Digests that are not in the graph; their numbers follow those of the graph.
    new_digests: Vec<Digest>,
    unknown: Vec<ImageRef>,
    nodes: Vec<u32>,
    /// By task: its node.
    places: Vec<u32>,
    /// The first node of each wave.
    waves: Vec<u32>,
    /// By task: the ring of uncounted bases that it is in; empty where there is none.
    rings: Vec<u32>,
    refused: Vec<Refused>,
}

/// Plans what `changes` make stale: for each tag the digest that it has now.
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
        places: Vec::new(),
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
            let known = plan.new_digests.iter().position(|new| new == digest);
            let index = known.unwrap_or_else(|| {
                plan.new_digests.push(digest.clone());
                plan.new_digests.len() - 1
            });
            number(graph.digests.len() + index)
        });
        plan.changed.insert(id.0, digest);
    }
    order::fill(&mut plan, options);
    plan
}

impl<'g> Plan<'g> {
    /// The graph that it is of.
    pub fn graph(&self) -> &'g Graph {
        self.graph
    }

    /// True where nothing is to be built.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// How many tasks are built.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The nodes in their order.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = NodeId> + use<> {
        (0..number(self.nodes.len())).map(NodeId)
    }

    /// The node of a task.
    pub fn node_of(&self, task: TaskId) -> Option<NodeId> {
        let place = self.places[task.0 as usize];
        (place != NONE).then_some(NodeId(place))
    }

    /// The task of a node.
    pub fn task(&self, node: NodeId) -> TaskId {
        TaskId(self.nodes[node.0 as usize])
    }

    /// The name of a node's task.
    pub fn name(&self, node: NodeId) -> &'g str {
        self.graph.task_name(self.task(node))
    }

    /// The wave that a node is in, from 0: all of its parents are in earlier ones, one of them in the one before.
    pub fn wave(&self, node: NodeId) -> usize {
        self.waves.partition_point(|first| *first <= node.0) - 1
    }

    /// How many waves there are.
    pub fn wave_count(&self) -> usize {
        self.waves.len()
    }

    /// What the bases of a node are fixed to, in the order of their names.
    pub fn pins(&self, node: NodeId) -> impl Iterator<Item = Pin> {
        let task = self.nodes[node.0 as usize];
        bases(self.graph, task).map(move |edges| self.pin(task, edges))
    }

    /// The nodes that a node waits for, each once.
    pub fn after(&self, node: NodeId) -> Vec<NodeId> {
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

    /// A digest's text.
    pub fn digest(&self, digest: DigestId) -> Digest {
        let known = self.graph.digests.len();
        match (digest.0 as usize).checked_sub(known) {
            Some(new) => self.new_digests[new].clone(),
            None => self.graph.digest(digest.0),
        }
    }

    /// The changes that it is of, as far as anything is known to stand on them: image and new digest.
    pub fn changes(&self) -> impl Iterator<Item = (ImageId, DigestId)> {
        self.changed
            .iter()
            .map(|(image, digest)| (ImageId(*image), DigestId(*digest)))
    }

    /// Changed images that nothing is known to stand on.
    pub fn unknown(&self) -> &[ImageRef] {
        &self.unknown
    }

    /// Tasks that are stale and may not be built, with the reason.
    pub fn refused(&self) -> &[Refused] {
        &self.refused
    }

    /// Bytes of memory that the plan holds beside the graph.
    pub fn memory(&self) -> usize {
        (self.nodes.capacity()
            + self.places.capacity()
            + self.waves.capacity()
            + self.rings.capacity())
            * size_of::<u32>()
    }

    /// The digest that an image is taken to have, if any is known.
    fn target(&self, image: u32) -> u32 {
        let now = self.graph.now[image as usize];
        if self.changed.is_empty() {
            return now;
        }
        self.changed.get(&image).copied().unwrap_or(now)
    }

    /// True where this edge makes its task stale without any build.
    fn is_stale(&self, task: u32, edge: &Edge) -> bool {
        let target = self.target(edge.base);
        target != NONE && target != edge.used && self.graph.counts(task, edge)
    }

    /// The task that `task` has to wait for because of these edges to one base.
    fn parent(&self, task: u32, base: u32, counted: bool) -> Option<u32> {
        let parent = self.graph.builder[base as usize];
        (parent != NONE
            && self.places[parent as usize] != NONE
            && !self.is_dropped(task, parent, counted))
        .then_some(parent)
    }

    /// True where waiting would make a ring.
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
        let to = match self.parent(task, base, counted) {
            Some(parent) => PinTo::Output(NodeId(self.places[parent as usize])),
            None => PinTo::Digest(DigestId(match self.target(base) {
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

/// The edges of a task, those to one base together.
fn bases(graph: &Graph, task: u32) -> impl Iterator<Item = &[Edge]> {
    graph.edges.of(task).chunk_by(|a, b| a.base == b.base)
}

/// The refusal of a node or an image that cannot be counted is the graph's: it holds fewer than 2^32 of them.
fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(NONE)
}

/// A plan's numbers, for those who read them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Size {
    /// Tasks.
    pub tasks: usize,
    /// Images that they push.
    pub images: usize,
    /// Waves.
    pub waves: usize,
}

impl Plan<'_> {
    /// How much it is.
    pub fn size(&self) -> Size {
        Size {
            tasks: self.len(),
            images: self
                .nodes
                .iter()
                .map(|task| self.graph.outputs.of(*task).len())
                .sum(),
            waves: self.wave_count(),
        }
    }
}
