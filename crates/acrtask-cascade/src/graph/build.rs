//! Builder of a [`Graph`].
//!
//! Facts arrive one at a time and in any order, so a million of them are never in memory twice.

use std::{collections::BTreeMap, fmt::Write as _};

use acrtask_model::{Digest, ImageRef};
use jiff::Timestamp;

use super::{COUNTED, Conflict, Edge, Graph, Lists, NONE, Policy, TaskFacts};
use crate::intern::{Interner, pack};

/// Collector of facts for a [`Graph`].
#[derive(Debug, Default)]
pub struct GraphBuilder {
    images: Interner,
    tasks: Interner,
    digests: Interner,
    policies: Vec<Policy>,
    run_ms: Vec<u32>,
    /// (task, image, digest)
    outputs: Vec<(u32, u32, u32)>,
    /// (task, edge)
    edges: Vec<(u32, Edge)>,
    /// (image, digest)
    tags: Vec<(u32, u32)>,
    moves: Vec<(u32, Timestamp)>,
    /// Reused buffer for an image name during its lookup.
    name: String,
}

impl GraphBuilder {
    /// Adds a task. Facts with the same name count as one task; stored task names are unique.
    pub fn add_task(&mut self, facts: &TaskFacts) {
        let task = self.tasks.intern(facts.name.as_bytes());
        if task as usize == self.policies.len() {
            self.policies.push(Policy::default());
            self.run_ms.push(NONE);
        }
        self.policies[task as usize] = facts.policy;
        self.run_ms[task as usize] = facts.run_ms.map_or(NONE, |ms| {
            u32::try_from(ms).unwrap_or(NONE - 1).min(NONE - 1)
        });
        for output in &facts.images {
            if output.image.digest().is_some() {
                continue;
            }
            let image = self.intern_image(&output.image);
            let digest = self.digests.intern(&pack(&output.digest));
            self.outputs.push((task, image, digest));
        }
        for base in &facts.bases {
            if base.image.digest().is_some() {
                continue;
            }
            let edge = Edge {
                base: self.intern_image(&base.image),
                used: self.digests.intern(&pack(&base.digest)),
                role: base.role,
            };
            self.edges.push((task, edge));
        }
    }

    /// Sets the current digest of a tag.
    ///
    /// An image of a task keeps the digest of its last push if no digest is set.
    pub fn set_digest(&mut self, image: &ImageRef, digest: &Digest) {
        if image.digest().is_some() {
            return;
        }
        let image = self.intern_image(image);
        let digest = self.digests.intern(&pack(digest));
        self.tags.push((image, digest));
    }

    /// Records when a tag last moved. The latest time counts.
    pub fn record_move(&mut self, image: &ImageRef, at: Timestamp) {
        if image.digest().is_none() {
            let image = self.intern_image(image);
            self.moves.push((image, at));
        }
    }

    fn intern_image(&mut self, image: &ImageRef) -> u32 {
        self.name.clear();
        let latest = if image.tag().is_none() { ":latest" } else { "" };
        // Writing to a `String` cannot fail. References by digest are filtered out by the callers.
        let _ = write!(self.name, "{image}{latest}");
        self.images.intern(self.name.as_bytes())
    }

    /// Builds the graph of all added facts.
    pub fn finish(self) -> Graph {
        let (images, image_of) = self.images.sorted();
        drop(self.images);
        let (tasks, task_of) = self.tasks.sorted();
        drop(self.tasks);
        assert!(
            tasks.len() < COUNTED as usize,
            "a graph holds fewer than 2^31 tasks"
        );
        let mut policies = vec![Policy::default(); tasks.len()];
        let mut run_ms = vec![NONE; tasks.len()];
        for (old, new) in task_of.iter().enumerate() {
            policies[*new as usize] = self.policies[old];
            run_ms[*new as usize] = self.run_ms[old];
        }

        let mut now = vec![NONE; images.len()];
        let mut builder = vec![NONE; images.len()];
        let mut contested = vec![false; tasks.len()];
        let mut conflicts = Vec::new();
        let mut outputs: Vec<(u32, u32)> = Vec::with_capacity(self.outputs.len());
        let mut claims: Vec<(u32, u32, u32)> = self
            .outputs
            .into_iter()
            .map(|(task, image, digest)| (image_of[image as usize], task_of[task as usize], digest))
            .collect();
        claims.sort_unstable_by(|a, b| {
            (a.0, a.1)
                .cmp(&(b.0, b.1))
                .then_with(|| self.digests.get(a.2).cmp(self.digests.get(b.2)))
        });
        claims.dedup_by_key(|(image, task, _)| (*image, *task));
        for (image, task, digest) in claims {
            let owner = &mut builder[image as usize];
            if *owner == NONE {
                *owner = task;
                now[image as usize] = digest;
                outputs.push((task, image));
            } else {
                contested[task as usize] = true;
                conflicts.push(Conflict {
                    image: images.text(image).to_owned(),
                    owner: tasks.text(*owner).to_owned(),
                    claimant: tasks.text(task).to_owned(),
                });
            }
        }
        // Contradicting digests of one tag are invalid input. The greater one counts, whatever the
        // order.
        let mut tag_digests: BTreeMap<u32, u32> = BTreeMap::new();
        for (image, digest) in self.tags {
            let current = tag_digests
                .entry(image_of[image as usize])
                .or_insert(digest);
            if self.digests.get(digest) > self.digests.get(*current) {
                *current = digest;
            }
        }
        for (image, digest) in tag_digests {
            now[image as usize] = digest;
        }

        let mut moved: BTreeMap<u32, Timestamp> = BTreeMap::new();
        for (image, at) in self.moves {
            let moved = moved.entry(image_of[image as usize]).or_insert(at);
            *moved = at.max(*moved);
        }

        let mut edges = self.edges;
        for (task, edge) in &mut edges {
            *task = task_of[*task as usize];
            edge.base = image_of[edge.base as usize];
        }
        let order = |(task, edge): &(u32, Edge)| (*task, edge.base, edge.role);
        edges.sort_unstable_by(|a, b| {
            order(a)
                .cmp(&order(b))
                .then_with(|| self.digests.get(a.1.used).cmp(self.digests.get(b.1.used)))
        });
        edges.dedup_by(|a, b| order(a) == order(b) && a.1.used == b.1.used);
        let mut users: Vec<(u32, u32)> = Vec::with_capacity(edges.len());
        let mut last = None;
        for (task, edge) in &edges {
            let counted = policies[*task as usize].counts(edge.role);
            if last == Some((*task, edge.base)) {
                if let Some((_, user)) = users.last_mut().filter(|_| counted) {
                    *user |= COUNTED;
                }
                continue;
            }
            last = Some((*task, edge.base));
            users.push((edge.base, if counted { task | COUNTED } else { *task }));
        }
        let edges = group_by_owner(tasks.len(), edges);
        users.sort_unstable_by_key(|(image, user)| (*image, user & !COUNTED));
        outputs.sort_unstable();
        conflicts.sort_unstable();
        Graph {
            users: group_by_owner(images.len(), users),
            outputs: group_by_owner(tasks.len(), outputs),
            edges,
            images,
            tasks,
            digests: self.digests,
            now,
            moved,
            builder,
            policies,
            run_ms,
            conflicts,
            contested,
        }
    }
}

/// Groups items by owner. `sorted` is sorted by owner.
fn group_by_owner<T>(owners: usize, sorted: Vec<(u32, T)>) -> Lists<T> {
    assert!(
        u32::try_from(sorted.len()).is_ok(),
        "a graph holds fewer than 2^32 edges"
    );
    let mut starts = vec![0; owners + 1];
    for (owner, _) in &sorted {
        starts[*owner as usize + 1] += 1;
    }
    for index in 0..owners {
        starts[index + 1] += starts[index];
    }
    Lists {
        starts,
        items: sorted.into_iter().map(|(_, item)| item).collect(),
    }
}
