//! Facts become a [`Graph`], in any order and one at a time, so that a million of them need not be in memory twice.

use std::{collections::BTreeMap, fmt::Write as _};

use acrtask_model::{Digest, ImageRef};
use jiff::Timestamp;

use super::{COUNTED, Conflict, Edge, Graph, Lists, NONE, Policy, TaskFacts};
use crate::intern::{Interner, pack};

/// Collects facts.
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
    /// Where names are written, to be looked up.
    name: String,
}

impl GraphBuilder {
    /// Takes a task in. Of two with one name, both count as one: names are unique where tasks are stored.
    pub fn task(&mut self, facts: &TaskFacts) {
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
            let image = self.image(&output.image);
            let digest = self.digests.intern(&pack(&output.digest));
            self.outputs.push((task, image, digest));
        }
        for base in &facts.bases {
            if base.image.digest().is_some() {
                continue;
            }
            let edge = Edge {
                base: self.image(&base.image),
                used: self.digests.intern(&pack(&base.digest)),
                role: base.role,
            };
            self.edges.push((task, edge));
        }
    }

    /// Says what a tag points at now. An own image of which nothing is said has the digest that was pushed last.
    pub fn tag(&mut self, image: &ImageRef, digest: &Digest) {
        if image.digest().is_some() {
            return;
        }
        let image = self.image(image);
        let digest = self.digests.intern(&pack(digest));
        self.tags.push((image, digest));
    }

    /// Says when a tag was last seen to move.
    pub fn moved(&mut self, image: &ImageRef, at: Timestamp) {
        if image.digest().is_none() {
            let image = self.image(image);
            self.moves.push((image, at));
        }
    }

    fn image(&mut self, image: &ImageRef) -> u32 {
        self.name.clear();
        let latest = if image.tag().is_none() { ":latest" } else { "" };
        // Writing to a String cannot fail. What names a digest is no tag, and does not come here.
        let _ = write!(self.name, "{image}{latest}");
        self.images.intern(self.name.as_bytes())
    }

    /// The graph of all that was taken in.
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
        // Of two digests for one tag the greater one counts: wrong input, but the same result in any order.
        let mut said: BTreeMap<u32, u32> = BTreeMap::new();
        for (image, digest) in self.tags {
            let said = said.entry(image_of[image as usize]).or_insert(digest);
            if self.digests.get(digest) > self.digests.get(*said) {
                *said = digest;
            }
        }
        for (image, digest) in said {
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
        let edges = lists(tasks.len(), edges);
        users.sort_unstable_by_key(|(image, user)| (*image, user & !COUNTED));
        outputs.sort_unstable();
        conflicts.sort_unstable();
        Graph {
            users: lists(images.len(), users),
            outputs: lists(tasks.len(), outputs),
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

/// Lists of what is sorted by its owner.
fn lists<T>(owners: usize, sorted: Vec<(u32, T)>) -> Lists<T> {
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
