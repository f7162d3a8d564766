//! The image graph: tasks, the images that they push, and the images that these were built from.
//!
//! Everything is a small number in flat arrays, so that a million images with four edges each take some hundred
//! bytes an image. The numbers are given in the order of names: a graph is the same whatever the order of its
//! facts, and numbers can be compared in place of names.
//!
//! Invariants: each image has at most one task that builds it ([`Conflict`]); edges of a task are sorted by base;
//! an edge that names a digest is not in the graph, for it cannot move.

mod build;
mod facts;

use std::collections::BTreeMap;

use acrtask_model::{Digest, ImageRef, events::BaseRole};
use jiff::Timestamp;
use serde::Serialize;

pub use build::GraphBuilder;
pub use facts::{BaseFacts, Facts, Policy, TagFacts, TaskFacts};

use crate::intern::{Interner, pack, unpack};

/// In place of a number: nothing.
pub(crate) const NONE: u32 = u32::MAX;
/// In a list of users: the edge counts for its task.
pub(crate) const COUNTED: u32 = 1 << 31;

/// A task of one [`Graph`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub(crate) u32);

/// An image of one [`Graph`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageId(pub(crate) u32);

#[derive(Debug, Clone, Copy)]
pub(crate) struct Edge {
    pub(crate) base: u32,
    /// The digest that was used.
    pub(crate) used: u32,
    pub(crate) role: BaseRole,
}

/// Two tasks that say they build one image. The first by name keeps it; the other is built by no cascade until
/// one of them stops pushing the image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Conflict {
    /// The image.
    pub image: String,
    /// The task that it is taken to belong to.
    pub owner: String,
    /// The task that claims it too.
    pub claimant: String,
}

/// The graph. Made by a [`GraphBuilder`].
#[derive(Debug, Default)]
pub struct Graph {
    pub(crate) images: Interner,
    pub(crate) tasks: Interner,
    pub(crate) digests: Interner,
    /// By image: the digest that it has now.
    pub(crate) now: Vec<u32>,
    /// By image: when it was last seen to move, where that is known.
    moved: BTreeMap<u32, Timestamp>,
    /// By image: the task that builds it.
    pub(crate) builder: Vec<u32>,
    pub(crate) policies: Vec<Policy>,
    /// By task: past run time in milliseconds.
    pub(crate) run_ms: Vec<u32>,
    pub(crate) outputs: Lists<u32>,
    pub(crate) edges: Lists<Edge>,
    /// By image: the tasks that used it, each once, with [`COUNTED`].
    pub(crate) users: Lists<u32>,
    conflicts: Vec<Conflict>,
    /// By task: it claims another task's image.
    contested: Vec<bool>,
}

/// A list for each of many things, end to end.
#[derive(Debug)]
pub(crate) struct Lists<T> {
    starts: Vec<u32>,
    items: Vec<T>,
}

impl<T> Default for Lists<T> {
    fn default() -> Self {
        Self {
            starts: vec![0],
            items: Vec::new(),
        }
    }
}

impl<T> Lists<T> {
    pub(crate) fn of(&self, index: u32) -> &[T] {
        let index = index as usize;
        &self.items[self.starts[index] as usize..self.starts[index + 1] as usize]
    }

    fn memory(&self) -> usize {
        self.starts.capacity() * size_of::<u32>() + self.items.capacity() * size_of::<T>()
    }
}

impl Graph {
    /// The graph of these facts.
    pub fn new(facts: &Facts) -> Self {
        let mut builder = GraphBuilder::default();
        for task in &facts.tasks {
            builder.task(task);
        }
        for tag in &facts.tags {
            builder.tag(&tag.image, &tag.digest);
        }
        builder.finish()
    }

    /// How many tasks there are.
    pub fn task_count(&self) -> usize {
        self.tasks.len()
    }

    /// How many images there are, our own and others.
    pub fn image_count(&self) -> usize {
        self.images.len()
    }

    /// How many edges there are.
    pub fn edge_count(&self) -> usize {
        self.edges.items.len()
    }

    /// Images that two tasks claim.
    pub fn conflicts(&self) -> &[Conflict] {
        &self.conflicts
    }

    /// The task with this name.
    pub fn task(&self, name: &str) -> Option<TaskId> {
        self.tasks.find(name.as_bytes()).map(TaskId)
    }

    /// The image with this tag; `latest` where none is written.
    pub fn image(&self, image: &ImageRef) -> Option<ImageId> {
        let name = image.clone().or_latest().to_string();
        self.images.find(name.as_bytes()).map(ImageId)
    }

    /// A task's name.
    pub fn task_name(&self, task: TaskId) -> &str {
        self.tasks.text(task.0)
    }

    /// An image's name with its tag.
    pub fn image_name(&self, image: ImageId) -> &str {
        self.images.text(image.0)
    }

    /// The digest that an image has now, if that is known.
    pub fn digest_now(&self, image: ImageId) -> Option<Digest> {
        let digest = self.now[image.0 as usize];
        (digest != NONE).then(|| self.digest(digest))
    }

    /// When an image's tag was last seen to move, if that is known.
    pub fn moved_at(&self, image: ImageId) -> Option<Timestamp> {
        self.moved.get(&image.0).copied()
    }

    /// The task that builds an image.
    pub fn builder_of(&self, image: ImageId) -> Option<TaskId> {
        let task = self.builder[image.0 as usize];
        (task != NONE).then_some(TaskId(task))
    }

    /// The images that a task pushes.
    pub fn images_of(&self, task: TaskId) -> impl Iterator<Item = ImageId> {
        self.outputs.of(task.0).iter().copied().map(ImageId)
    }

    /// Every image that stands on `image`, through any number of tasks and whatever the policies say, in the order
    /// of names: its blast radius.
    pub fn stands_on(&self, image: ImageId) -> Vec<ImageId> {
        let mut seen = vec![false; self.task_count()];
        let mut waiting = vec![image.0];
        let mut found = Vec::new();
        while let Some(image) = waiting.pop() {
            for user in self.users.of(image) {
                let task = user & !COUNTED;
                if !std::mem::replace(&mut seen[task as usize], true) {
                    waiting.extend(self.outputs.of(task));
                    found.extend(self.outputs.of(task).iter().copied().map(ImageId));
                }
            }
        }
        found.sort_unstable();
        found
    }

    /// Bytes of memory that the graph holds.
    pub fn memory(&self) -> usize {
        self.images.memory()
            + self.tasks.memory()
            + self.digests.memory()
            + (self.now.capacity() + self.builder.capacity() + self.run_ms.capacity())
                * size_of::<u32>()
            + self.policies.capacity()
            + self.contested.capacity()
            + self.outputs.memory()
            + self.edges.memory()
            + self.users.memory()
    }

    pub(crate) fn digest(&self, digest: u32) -> Digest {
        unpack(self.digests.get(digest))
    }

    pub(crate) fn find_digest(&self, digest: &Digest) -> Option<u32> {
        self.digests.find(&pack(digest))
    }

    pub(crate) fn image_ref(&self, image: u32) -> ImageRef {
        #[allow(clippy::expect_used, reason = "only references are interned as images")]
        self.images.text(image).parse().expect("a reference")
    }

    pub(crate) fn counts(&self, task: u32, edge: &Edge) -> bool {
        self.policies[task as usize].counts(edge.role)
    }

    pub(crate) fn is_contested(&self, task: u32) -> bool {
        self.contested[task as usize]
    }
}
