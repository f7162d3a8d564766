//! Simulated fleet of images: moving bases, tasks that build images from them, and a registry.
//!
//! A build is a pure function of the used digests, so the expected digest of an image needs no
//! planner.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "helpers of several test programs, outside of a #[test]"
)]

use std::collections::{BTreeMap, BTreeSet};

use acrtask_cascade::{
    Facts,
    graph::{BaseFacts, Policy, TagFacts, TaskFacts},
};
use acrtask_model::{Digest, ImageRef, events::BaseRole};

/// Returns a digest that starts with `number` in hexadecimal.
pub(crate) fn digest(number: u64) -> Digest {
    format!("sha256:{}", format!("{number:016x}").repeat(4))
        .parse()
        .unwrap()
}

pub(crate) fn image(text: &str) -> ImageRef {
    text.parse::<ImageRef>().unwrap().or_latest()
}

/// Deterministic pseudo-random numbers.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03 | 1)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from((self.0 >> 11) % u64::try_from(limit).unwrap()).unwrap()
    }

    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.below(from.len())].clone())
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Task {
    pub(crate) policy: Policy,
    pub(crate) bases: Vec<(ImageRef, BaseRole)>,
    pub(crate) images: Vec<ImageRef>,
    pub(crate) run_ms: Option<u64>,
    /// `true` if its images do not depend on its bases.
    pub(crate) reproducible: bool,
    /// Digests that the last run used. Empty if the task never ran.
    pub(crate) used: BTreeMap<ImageRef, Digest>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct TestFleet {
    pub(crate) tasks: BTreeMap<String, Task>,
    pub(crate) tags: BTreeMap<ImageRef, Digest>,
}

impl TestFleet {
    /// Returns the current digests of a task's bases.
    pub(crate) fn bases_now(&self, task: &str) -> BTreeMap<ImageRef, Digest> {
        let bases = self.tasks[task].bases.iter();
        bases
            .filter_map(|(image, _)| Some((image.clone(), self.tags.get(image)?.clone())))
            .collect()
    }

    /// Simulates a successful run with these bases. Returns the pushed digests.
    pub(crate) fn build(
        &mut self,
        name: &str,
        pins: &BTreeMap<ImageRef, Digest>,
    ) -> BTreeMap<ImageRef, Digest> {
        let task = self.tasks.get_mut(name).unwrap();
        let mut pushed = BTreeMap::new();
        for image in &task.images {
            let mut hash = 0xcbf2_9ce4_8422_2325_u64;
            let mut add = |text: &str| {
                for byte in text.bytes() {
                    hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
                }
            };
            add(&image.to_string());
            if !task.reproducible {
                for digest in pins.values() {
                    add(&digest.as_str()[7..23]);
                }
            }
            pushed.insert(image.clone(), digest(hash));
        }
        task.used = pins.clone();
        self.tags.extend(pushed.clone());
        pushed
    }

    /// Runs every task once, bases first as far as possible.
    pub(crate) fn build_all(&mut self) {
        let mut left: BTreeSet<String> = self.tasks.keys().cloned().collect();
        while !left.is_empty() {
            let built = |fleet: &Self, name: &String| {
                let mut bases = fleet.tasks[name].bases.iter();
                bases.all(|(image, _)| fleet.tags.contains_key(image))
            };
            let next = left.iter().find(|name| built(self, name));
            let next = next.or(left.first()).unwrap().clone();
            let mut pins = self.bases_now(&next);
            for (image, _) in &self.tasks[&next].bases {
                pins.entry(image.clone()).or_insert_with(|| digest(0));
            }
            self.build(&next, &pins);
            left.remove(&next);
        }
    }

    pub(crate) fn facts(&self) -> Facts {
        let tag = |image: &ImageRef| {
            let digest = self.tags.get(image)?.clone();
            Some(TagFacts {
                image: image.clone(),
                digest,
            })
        };
        Facts {
            tasks: self
                .tasks
                .iter()
                .map(|(name, task)| TaskFacts {
                    name: name.clone(),
                    policy: task.policy,
                    images: task.images.iter().filter_map(tag).collect(),
                    bases: task
                        .bases
                        .iter()
                        .filter_map(|(image, role)| {
                            Some(BaseFacts {
                                image: image.clone(),
                                role: *role,
                                digest: task.used.get(image)?.clone(),
                            })
                        })
                        .collect(),
                    run_ms: task.run_ms,
                })
                .collect(),
            tags: self.tags.keys().filter_map(tag).collect(),
        }
    }
}

/// Returns a random fleet in which every task was built.
pub(crate) fn random_fleet(random: &mut Random) -> TestFleet {
    let mut fleet = TestFleet::default();
    let bases: Vec<ImageRef> = (0..1 + random.below(3))
        .map(|index| image(&format!("base-{index}:1")))
        .collect();
    for base in &bases {
        fleet.tags.insert(base.clone(), digest(1));
    }
    let count = 2 + random.below(6);
    for index in 0..count {
        let mut from = bases.clone();
        let made: Vec<ImageRef> = fleet
            .tasks
            .values()
            .flat_map(|task| task.images.clone())
            .collect();
        // An image of the fleet is twice as likely as an outer base.
        from.extend(made.clone());
        from.extend(made);
        let mut on: BTreeMap<ImageRef, BaseRole> = BTreeMap::new();
        for _ in 0..1 + random.below(3) {
            let role = if random.chance(75) {
                BaseRole::Runtime
            } else {
                BaseRole::BuildTime
            };
            on.insert(random.pick(&from).unwrap(), role);
        }
        if random.chance(4) {
            // This creates a loop if the image belongs to a later task.
            on.insert(
                image(&format!("r.io/t{}:1", random.below(count))),
                BaseRole::Runtime,
            );
        }
        let mut images = vec![image(&format!("r.io/t{index}:1"))];
        if random.chance(20) {
            images.push(image(&format!("r.io/t{index}-extra:1")));
        }
        let task = Task {
            policy: match random.below(10) {
                0..6 => Policy::Runtime,
                6..9 => Policy::All,
                _ => Policy::None,
            },
            bases: on.into_iter().collect(),
            images,
            run_ms: random.chance(70).then_some(1000 * (1 + index as u64)),
            reproducible: random.chance(10),
            used: BTreeMap::new(),
        };
        fleet.tasks.insert(format!("t{index}"), task);
    }
    fleet.build_all();
    // Each task uses the current digests of its bases, whatever the build order was.
    for _ in 0..count {
        for name in fleet.tasks.keys().cloned().collect::<Vec<_>>() {
            let pins = fleet.bases_now(&name);
            fleet.build(&name, &pins);
        }
    }
    fleet
}

/// Slow and simple model of the facts: works with names and precomputes nothing.
pub(crate) struct Model<'a> {
    pub(crate) facts: &'a Facts,
    pub(crate) now: BTreeMap<ImageRef, Digest>,
}

impl<'a> Model<'a> {
    pub(crate) fn new(facts: &'a Facts, changes: &BTreeMap<ImageRef, Digest>) -> Self {
        let mut now = BTreeMap::new();
        for tag in facts.tasks.iter().flat_map(|task| &task.images) {
            now.insert(tag.image.clone(), tag.digest.clone());
        }
        for tag in &facts.tags {
            now.insert(tag.image.clone(), tag.digest.clone());
        }
        now.extend(changes.clone());
        Self { facts, now }
    }

    pub(crate) fn task(&self, name: &str) -> &'a TaskFacts {
        self.facts
            .tasks
            .iter()
            .find(|task| task.name == name)
            .unwrap()
    }

    /// Returns the first task by name that pushes an image.
    pub(crate) fn owner_of(&self, image: &ImageRef) -> Option<&'a str> {
        let tasks = self.facts.tasks.iter();
        tasks
            .filter(|task| task.images.iter().any(|tag| tag.image == *image))
            .map(|task| task.name.as_str())
            .min()
    }

    /// Returns the tasks that push an image of another task.
    pub(crate) fn contested_tasks(&self) -> BTreeSet<&'a str> {
        let tasks = self.facts.tasks.iter();
        tasks
            .filter(|task| {
                let mut images = task.images.iter();
                images.any(|tag| self.owner_of(&tag.image) != Some(&task.name))
            })
            .map(|task| task.name.as_str())
            .collect()
    }

    /// Returns the tasks that build the bases of a task: all of them, or only the counted ones.
    pub(crate) fn parents(&self, task: &TaskFacts, counted: bool) -> BTreeSet<&'a str> {
        task.bases
            .iter()
            .filter(|base| !counted || task.policy.counts(base.role))
            .filter_map(|base| self.owner_of(&base.image))
            .collect()
    }

    /// Returns `true` if `task` depends on `above`, directly or not.
    pub(crate) fn depends_on(&self, task: &str, above: &str, counted: bool) -> bool {
        self.reaches(task, above, counted, &BTreeSet::new())
    }

    /// Returns `true` if builds of a task would cause another build of it.
    ///
    /// Contested tasks are not built, so no loop goes through them.
    pub(crate) fn rebuilds_itself(&self, task: &str) -> bool {
        self.reaches(task, task, true, &self.contested_tasks())
    }

    fn reaches(&self, task: &str, above: &str, counted: bool, not: &BTreeSet<&str>) -> bool {
        let mut seen = BTreeSet::new();
        let mut waiting = vec![task];
        while let Some(task) = waiting.pop() {
            for parent in self.parents(self.task(task), counted) {
                if not.contains(parent) {
                    continue;
                }
                if parent == above {
                    return true;
                }
                if seen.insert(parent) {
                    waiting.push(parent);
                }
            }
        }
        false
    }

    /// Returns the tasks with a counted base whose digest changed: among the images `of`, or any
    /// image.
    pub(crate) fn tasks_with_moved_bases(
        &self,
        of: Option<&BTreeSet<ImageRef>>,
    ) -> BTreeSet<&'a str> {
        let tasks = self.facts.tasks.iter();
        tasks
            .filter(|task| {
                task.bases.iter().any(|base| {
                    of.is_none_or(|of| of.contains(&base.image))
                        && task.policy.counts(base.role)
                        && self
                            .now
                            .get(&base.image)
                            .is_some_and(|now| *now != base.digest)
                })
            })
            .map(|task| task.name.as_str())
            .collect()
    }

    /// Returns the tasks to build: those with moved bases and their dependents, without refused and
    /// excluded ones.
    pub(crate) fn stale_tasks(
        &self,
        of: Option<&BTreeSet<ImageRef>>,
        excluded: &BTreeSet<String>,
    ) -> BTreeSet<&'a str> {
        let contested = self.contested_tasks();
        let may = |task: &str| {
            !contested.contains(task)
                && !self.rebuilds_itself(task)
                && !excluded
                    .iter()
                    .any(|excluded| excluded == task || self.depends_on(task, excluded, true))
        };
        let mut stale: BTreeSet<&str> = self.tasks_with_moved_bases(of);
        stale.retain(|task| may(task));
        loop {
            let more: Vec<&str> = self
                .facts
                .tasks
                .iter()
                .filter(|task| !stale.contains(task.name.as_str()) && may(&task.name))
                .filter(|task| {
                    let parents = self.parents(task, true);
                    parents.iter().any(|parent| stale.contains(parent))
                })
                .map(|task| task.name.as_str())
                .collect();
            if more.is_empty() {
                return stale;
            }
            stale.extend(more);
        }
    }
}
