//! Graph of tasks, the images they push and the bases these images were built from.
//!
//! All entities are small numbers in flat arrays. A million images with four edges each need some
//! hundred bytes per image. Numbers follow the order of names, so they can be compared instead of
//! names. The graph does not depend on the order of its facts.
//!
//! Invariants:
//!
//! - At most one task builds an image ([`Conflict`]).
//! - The edges of a task are sorted by base.
//! - References by digest are not in the graph, because they cannot move.

mod build;
mod facts;

use std::collections::BTreeMap;

use acrtask_model::{Digest, ImageRef, events::BaseRole};
use jiff::Timestamp;
use serde::Serialize;

pub use build::GraphBuilder;
pub use facts::{BaseFacts, Facts, Policy, TagFacts, TaskFacts};

use crate::intern::{Interner, pack, unpack};

/// Marker for a missing number.
pub(crate) const NONE: u32 = u32::MAX;
/// Flag in a list of users: the edge can make its task stale.
pub(crate) const COUNTED: u32 = 1 << 31;

/// Task of one [`Graph`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub(crate) u32);

/// Image of one [`Graph`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageId(pub(crate) u32);

#[derive(Debug, Clone, Copy)]
pub(crate) struct Edge {
    pub(crate) base: u32,
    /// Digest that the last run used.
    pub(crate) used: u32,
    pub(crate) role: BaseRole,
}

/// An image that two tasks push. It belongs to the first task by name.
///
/// No cascade builds the other task until one of them stops pushing the image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Conflict {
    /// Image with its tag.
    pub image: String,
    /// Task that owns the image.
    pub owner: String,
    /// Other task that pushes the image.
    pub claimant: String,
}

/// Immutable image graph, made by a [`GraphBuilder`].
#[derive(Debug, Default)]
pub struct Graph {
    pub(crate) images: Interner,
    pub(crate) tasks: Interner,
    pub(crate) digests: Interner,
    /// Current digest by image.
    pub(crate) now: Vec<u32>,
    /// Time of the last observed move by image.
    moved: BTreeMap<u32, Timestamp>,
    /// Task that builds the image, by image.
    pub(crate) builder: Vec<u32>,
    pub(crate) policies: Vec<Policy>,
    /// Past run time in milliseconds, by task.
    pub(crate) run_ms: Vec<u32>,
    pub(crate) outputs: Lists<u32>,
    pub(crate) edges: Lists<Edge>,
    /// Tasks that used the image, each once with the flag [`COUNTED`], by image.
    pub(crate) users: Lists<u32>,
    conflicts: Vec<Conflict>,
    /// By task: `true` if the task pushes an image of another task.
    contested: Vec<bool>,
}

/// List per owner, stored end to end.
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
    pub(crate) fn get(&self, index: u32) -> &[T] {
        let index = index as usize;
        &self.items[self.starts[index] as usize..self.starts[index + 1] as usize]
    }

    fn memory(&self) -> usize {
        self.starts.capacity() * size_of::<u32>() + self.items.capacity() * size_of::<T>()
    }
}

impl Graph {
    /// Builds the graph of `facts`.
    pub fn new(facts: &Facts) -> Self {
        let mut builder = GraphBuilder::default();
        for task in &facts.tasks {
            builder.add_task(task);
        }
        for tag in &facts.tags {
            builder.set_digest(&tag.image, &tag.digest);
        }
        builder.finish()
    }

    /// Returns the number of tasks.
    pub fn task_count(&self) -> usize {
        self.tasks.len()
    }

    /// Returns the number of images, including those that no task builds.
    pub fn image_count(&self) -> usize {
        self.images.len()
    }

    /// Returns the number of edges.
    pub fn edge_count(&self) -> usize {
        self.edges.items.len()
    }

    /// Returns the images that two tasks push.
    pub fn conflicts(&self) -> &[Conflict] {
        &self.conflicts
    }

    /// Returns the task named `name`.
    pub fn task(&self, name: &str) -> Option<TaskId> {
        self.tasks.find(name.as_bytes()).map(TaskId)
    }

    /// Returns the image with this tag; `latest` if `image` has none.
    pub fn image(&self, image: &ImageRef) -> Option<ImageId> {
        let name = image.clone().or_latest().to_string();
        self.images.find(name.as_bytes()).map(ImageId)
    }

    /// Returns the name of a task.
    pub fn task_name(&self, task: TaskId) -> &str {
        self.tasks.text(task.0)
    }

    /// Returns the name of an image with its tag.
    pub fn image_name(&self, image: ImageId) -> &str {
        self.images.text(image.0)
    }

    /// Returns the current digest of an image; `None` if it is not available.
    pub fn digest_now(&self, image: ImageId) -> Option<Digest> {
        let digest = self.now[image.0 as usize];
        (digest != NONE).then(|| self.digest(digest))
    }

    /// Returns when the tag of an image was last observed to move; `None` if never.
    pub fn moved_at(&self, image: ImageId) -> Option<Timestamp> {
        self.moved.get(&image.0).copied()
    }

    /// Returns the task that builds an image.
    pub fn builder_of(&self, image: ImageId) -> Option<TaskId> {
        let task = self.builder[image.0 as usize];
        (task != NONE).then_some(TaskId(task))
    }

    /// Returns the images that a task pushes.
    pub fn images_of(&self, task: TaskId) -> impl Iterator<Item = ImageId> {
        self.outputs.get(task.0).iter().copied().map(ImageId)
    }

    /// Returns the blast radius of `image`: every image that depends on it, directly or not, in the
    /// order of names.
    ///
    /// Policies are ignored.
    pub fn dependents_of(&self, image: ImageId) -> Vec<ImageId> {
        let mut seen = vec![false; self.task_count()];
        let mut waiting = vec![image.0];
        let mut found = Vec::new();
        while let Some(image) = waiting.pop() {
            for user in self.users.get(image) {
                let task = user & !COUNTED;
                if !std::mem::replace(&mut seen[task as usize], true) {
                    waiting.extend(self.outputs.get(task));
                    found.extend(self.outputs.get(task).iter().copied().map(ImageId));
                }
            }
        }
        found.sort_unstable();
        found
    }

    /// Returns the allocated memory in bytes.
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
