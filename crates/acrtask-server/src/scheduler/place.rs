//! Which runner takes which run. Pure.
//!
//! Runs are looked at in the order of the queue; each one takes, among the runners that may take it and have a free slot now,
//! the one that is most likely warm for it: rendezvous hashing of the run's key and the runner's id, so that the same
//! task meets the same runner while that is free, and a runner that comes or goes moves few tasks. A run never waits
//! for a warm runner. Runs without a key go where most slots are free. The work for a batch of n runs with k different
//! keys is O(k * runners + n * log runners).

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap},
    fmt,
    sync::Arc,
};

use acrtask_store::{Candidate, Claim, Claimable, Class, TaskPatterns};

use crate::auth::TaskLimit;

/// What decides which runs a runner may take.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Profile {
    /// Its pool.
    pub pool: String,
    /// `linux/amd64` ...
    pub platforms: Vec<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The tasks whose runs it may take.
    pub tasks: TaskLimit,
}

/// What a runner lacks for a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lack {
    /// It is in another pool.
    Pool {
        /// That one.
        is: String,
    },
    /// It is of another platform.
    Platform {
        /// Its own ones.
        is: Vec<String>,
    },
    /// It does not have this label.
    Label {
        /// The label's name.
        name: String,
        /// The value that is asked for.
        value: String,
    },
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pool { is } => write!(f, "pool is {is}"),
            Self::Platform { is } if is.is_empty() => f.write_str("names no platform"),
            Self::Platform { is } => write!(f, "is {}", is.join(", ")),
            Self::Label { name, value } => write!(f, "lacks the label {name}={value}"),
        }
    }
}

impl Profile {
    /// What a runner with this profile lacks for runs of `class`; nothing where it may take them.
    pub fn lacks(&self, class: &Class) -> Option<Lack> {
        if self.pool != class.pool {
            return Some(Lack::Pool {
                is: self.pool.clone(),
            });
        }
        if !class.platform.is_empty() && !self.platforms.contains(&class.platform) {
            return Some(Lack::Platform {
                is: self.platforms.clone(),
            });
        }
        let missing = class
            .labels
            .iter()
            .find(|(name, value)| self.labels.get(*name) != Some(*value));
        missing.map(|(name, value)| Lack::Label {
            name: name.clone(),
            value: value.clone(),
        })
    }

    /// Whether a runner with this profile may take runs of `class`.
    pub fn suits(&self, class: &Class) -> bool {
        self.lacks(class).is_none()
    }
}

/// A runner that has free slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FreeRunner {
    /// Its id.
    pub id: String,
    /// [`rendezvous_seed`] of its id.
    pub seed: u64,
    /// What it may take.
    pub profile: Arc<Profile>,
    /// Slots that are free, at least 1.
    pub free: u32,
}

/// FNV-1a: the same on every machine and in every version.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The part of a runner's weight that is its own.
pub fn rendezvous_seed(id: &str) -> u64 {
    fnv(id.as_bytes())
}

/// The weight of a runner for a key; the highest one is the warm one.
fn weight(key: u64, seed: u64) -> u64 {
    // The finisher of SplitMix64: each bit of both depends on every bit of both.
    let mut mixed = key ^ seed.rotate_left(32);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Runners with the same profile, as positions in the list of free ones.
struct Group {
    profile: Arc<Profile>,
    members: Vec<usize>,
}

/// Runners that have free slots, and which classes they may take.
pub struct Board {
    runners: Vec<FreeRunner>,
    /// Positions in `runners`, by class.
    suiting: HashMap<i64, Vec<usize>>,
}

impl Board {
    /// Finds out which of `runners` may take which of `classes`.
    pub fn new(runners: Vec<FreeRunner>, classes: &[Class]) -> Self {
        let mut groups: HashMap<Arc<Profile>, Group> = HashMap::new();
        for (at, runner) in runners.iter().enumerate() {
            let group = groups
                .entry(runner.profile.clone())
                .or_insert_with(|| Group {
                    profile: runner.profile.clone(),
                    members: Vec::new(),
                });
            group.members.push(at);
        }
        let mut suiting = HashMap::new();
        for class in classes {
            let members: Vec<usize> = groups
                .values()
                .filter(|group| group.profile.suits(class))
                .flat_map(|group| group.members.iter().copied())
                .collect();
            if !members.is_empty() {
                suiting.insert(class.id, members);
            }
        }
        Self { runners, suiting }
    }

    /// Returns the classes that some free runner may take, in order. Where all these runners are for some tasks alone,
    /// only runs of these tasks are asked for: others at the head of the queue must not hide them.
    pub fn classes(&self) -> Vec<Claimable> {
        let mut classes: Vec<Claimable> = self
            .suiting
            .iter()
            .map(|(class, members)| Claimable {
                class: *class,
                tasks: self.patterns(members),
            })
            .collect();
        classes.sort_unstable_by_key(|claimable| claimable.class);
        classes
    }

    /// Returns the tasks of all these runners. `None`: one of them takes all runs.
    fn patterns(&self, members: &[usize]) -> Option<TaskPatterns> {
        let mut patterns = TaskPatterns::default();
        for at in members {
            match &self.runners[*at].profile.tasks {
                TaskLimit::All => return None,
                TaskLimit::Exact(name) => patterns.names.push(name.clone()),
                TaskLimit::Prefix(prefix) => patterns.prefixes.push(prefix.clone()),
            }
        }
        for list in [&mut patterns.names, &mut patterns.prefixes] {
            list.sort_unstable();
            list.dedup();
        }
        Some(patterns)
    }

    /// Free slots of all runners that may take something.
    pub fn slots(&self) -> u32 {
        let mut useful = vec![false; self.runners.len()];
        for at in self.suiting.values().flatten() {
            useful[*at] = true;
        }
        let runners = self.runners.iter().zip(useful);
        runners
            .filter(|(_, useful)| *useful)
            .fold(0, |sum, (runner, _)| sum.saturating_add(runner.free))
    }

    /// Who takes which of `candidates`, which are in the order of the queue. What nobody may take now is left out.
    pub fn place(mut self, candidates: &[Candidate]) -> Vec<Claim> {
        type Key<'c> = (i64, Option<&'c str>);
        let mut warm: HashMap<(Key<'_>, &str), BinaryHeap<(u64, usize)>> = HashMap::new();
        let mut even: HashMap<Key<'_>, BinaryHeap<(u32, Reverse<usize>)>> = HashMap::new();
        let mut claims = Vec::new();
        for candidate in candidates {
            let Some(members) = self.suiting.get(&candidate.class) else {
                continue;
            };
            let runners = &self.runners;
            let task = candidate.task.as_deref();
            let allowed = || {
                let members = members.iter().copied();
                members.filter(move |at| runners[*at].profile.tasks.allows(task))
            };
            let queue = (candidate.class, task);
            let chosen = if candidate.warm_key.is_empty() {
                let heap = even.entry(queue).or_insert_with(|| {
                    let entries = allowed().map(|at| (runners[at].free, Reverse(at)));
                    entries.collect()
                });
                emptiest(heap, runners)
            } else {
                let key = (queue, candidate.warm_key.as_str());
                let heap = warm.entry(key).or_insert_with(|| {
                    let key = fnv(candidate.warm_key.as_bytes());
                    let entries = allowed().map(|at| (weight(key, runners[at].seed), at));
                    entries.collect()
                });
                warmest(heap, runners)
            };
            let Some(at) = chosen else {
                if members.iter().all(|at| runners[*at].free == 0) {
                    self.suiting.remove(&candidate.class);
                }
                continue;
            };
            let runner = &mut self.runners[at];
            runner.free -= 1;
            claims.push(Claim {
                run: candidate.id.clone(),
                runner_id: runner.id.clone(),
            });
        }
        claims
    }
}

/// The runner with the highest weight that has a free slot; full ones are thrown away.
fn warmest(heap: &mut BinaryHeap<(u64, usize)>, runners: &[FreeRunner]) -> Option<usize> {
    while let Some((_, at)) = heap.peek() {
        if runners[*at].free > 0 {
            return Some(*at);
        }
        heap.pop();
    }
    None
}

/// The runner with the most free slots. Entries that are out of date are put right as they come up.
fn emptiest(heap: &mut BinaryHeap<(u32, Reverse<usize>)>, runners: &[FreeRunner]) -> Option<usize> {
    while let Some((free, Reverse(at))) = heap.pop() {
        let now = runners[at].free;
        if now == 0 {
            continue;
        }
        if now == free {
            heap.push((now - 1, Reverse(at)));
            return Some(at);
        }
        heap.push((now, Reverse(at)));
    }
    None
}

#[cfg(test)]
mod tests;
