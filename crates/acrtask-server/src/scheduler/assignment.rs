//! Assignment of runs to runners. Pure.
//!
//! Runs are processed in the order of the queue. A run with an affinity key gets the free matching
//! runner that most likely has a warm cache. Rendezvous hashing of the key and the runner id
//! selects it. The same task therefore meets the same runner while that is free, and a runner that
//! joins or leaves moves few tasks. A run never waits for a warm runner. Runs without a key get the
//! runner with the most free slots.
//!
//! The work for a batch of n runs with k different keys is O(k * runners + n * log runners).

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap},
    fmt,
    sync::Arc,
};

use acrtask_store::{Candidate, Claim, Claimable, RunnerRequirement, TaskPatterns};

use crate::auth::TaskLimit;

/// Properties of a runner that decide which runs it may execute.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Profile {
    /// Name of the pool.
    pub pool: String,
    /// Platforms, for example `linux/amd64`.
    pub platforms: Vec<String>,
    /// Labels by name.
    pub labels: BTreeMap<String, String>,
    /// Tasks whose runs the runner may execute.
    pub tasks: TaskLimit,
}

/// Requirement of a run that a runner does not meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnmetRequirement {
    /// The run needs another pool.
    Pool {
        /// Pool of the runner.
        is: String,
    },
    /// The run needs another platform.
    Platform {
        /// Platforms of the runner.
        is: Vec<String>,
    },
    /// The run needs a label that the runner lacks.
    Label {
        /// Name of the label.
        name: String,
        /// Required value.
        value: String,
    },
}

impl fmt::Display for UnmetRequirement {
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
    /// Returns a part of `requirement` that this runner does not meet. `None`: it meets all of
    /// them.
    pub fn unmet_requirement(&self, requirement: &RunnerRequirement) -> Option<UnmetRequirement> {
        if self.pool != requirement.pool {
            return Some(UnmetRequirement::Pool {
                is: self.pool.clone(),
            });
        }
        if !requirement.platform.is_empty() && !self.platforms.contains(&requirement.platform) {
            return Some(UnmetRequirement::Platform {
                is: self.platforms.clone(),
            });
        }
        let missing = requirement
            .labels
            .iter()
            .find(|(name, value)| self.labels.get(*name) != Some(*value));
        missing.map(|(name, value)| UnmetRequirement::Label {
            name: name.clone(),
            value: value.clone(),
        })
    }

    /// Returns `true` if the runner meets all of `requirement`.
    pub fn matches(&self, requirement: &RunnerRequirement) -> bool {
        self.unmet_requirement(requirement).is_none()
    }
}

/// A runner with free slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FreeRunner {
    /// Id of the runner.
    pub id: String,
    /// [`rendezvous_seed`] of the id.
    pub seed: u64,
    /// Properties of the runner.
    pub profile: Arc<Profile>,
    /// Number of free slots, at least 1.
    pub free: u32,
}

/// Computes FNV-1a, which is the same on every machine and in every version.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Returns the seed of a runner for its rendezvous weights.
pub fn rendezvous_seed(id: &str) -> u64 {
    fnv1a(id.as_bytes())
}

/// Returns the rendezvous weight of a runner for a key. The runner with the highest weight is the
/// warm one.
fn rendezvous_weight(key: u64, seed: u64) -> u64 {
    // This is the finisher of SplitMix64: each bit of both inputs affects every bit of the result.
    let mut mixed = key ^ seed.rotate_left(32);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Runners with the same profile, as positions in the list of free runners.
struct Group {
    profile: Arc<Profile>,
    members: Vec<usize>,
}

/// Free runners and the requirements they match.
pub struct Assignment {
    runners: Vec<FreeRunner>,
    /// Positions in `runners`, by requirement.
    matching: HashMap<i64, Vec<usize>>,
}

impl Assignment {
    /// Computes which of `runners` match which of `requirements`.
    pub fn new(runners: Vec<FreeRunner>, requirements: &[RunnerRequirement]) -> Self {
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
        let mut matching = HashMap::new();
        for requirement in requirements {
            let members: Vec<usize> = groups
                .values()
                .filter(|group| group.profile.matches(requirement))
                .flat_map(|group| group.members.iter().copied())
                .collect();
            if !members.is_empty() {
                matching.insert(requirement.id, members);
            }
        }
        Self { runners, matching }
    }

    /// Returns the requirements that a free runner matches, in order.
    ///
    /// If all of these runners are limited to tasks, only runs of these tasks are claimable. Other
    /// runs at the head of the queue then cannot hide them.
    pub fn claimable_requirements(&self) -> Vec<Claimable> {
        let mut requirements: Vec<Claimable> = self
            .matching
            .iter()
            .map(|(requirement, members)| Claimable {
                requirement_id: *requirement,
                tasks: self.task_patterns(members),
            })
            .collect();
        requirements.sort_unstable_by_key(|claimable| claimable.requirement_id);
        requirements
    }

    /// Returns the tasks that these runners may execute. `None`: one of them may execute all tasks.
    fn task_patterns(&self, members: &[usize]) -> Option<TaskPatterns> {
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

    /// Returns the number of free slots of all runners that match a requirement.
    pub fn free_slots(&self) -> u32 {
        let mut useful = vec![false; self.runners.len()];
        for at in self.matching.values().flatten() {
            useful[*at] = true;
        }
        let runners = self.runners.iter().zip(useful);
        runners
            .filter(|(_, useful)| *useful)
            .fold(0, |sum, (runner, _)| sum.saturating_add(runner.free))
    }

    /// Assigns runners to `candidates`, which are in the order of the queue. Skips candidates
    /// without a runner.
    pub fn assign(mut self, candidates: &[Candidate]) -> Vec<Claim> {
        type Key<'c> = (i64, Option<&'c str>);
        let mut warm: HashMap<(Key<'_>, &str), BinaryHeap<(u64, usize)>> = HashMap::new();
        let mut even: HashMap<Key<'_>, BinaryHeap<(u32, Reverse<usize>)>> = HashMap::new();
        let mut claims = Vec::new();
        for candidate in candidates {
            let Some(members) = self.matching.get(&candidate.requirement_id) else {
                continue;
            };
            let runners = &self.runners;
            let task = candidate.task.as_deref();
            let allowed = || {
                let members = members.iter().copied();
                members.filter(move |at| runners[*at].profile.tasks.allows(task))
            };
            let queue = (candidate.requirement_id, task);
            let chosen = if candidate.affinity_key.is_empty() {
                let heap = even.entry(queue).or_insert_with(|| {
                    let entries = allowed().map(|at| (runners[at].free, Reverse(at)));
                    entries.collect()
                });
                find_emptiest(heap, runners)
            } else {
                let key = (queue, candidate.affinity_key.as_str());
                let heap = warm.entry(key).or_insert_with(|| {
                    let key = fnv1a(candidate.affinity_key.as_bytes());
                    let entries =
                        allowed().map(|at| (rendezvous_weight(key, runners[at].seed), at));
                    entries.collect()
                });
                find_warmest(heap, runners)
            };
            let Some(at) = chosen else {
                if members.iter().all(|at| runners[*at].free == 0) {
                    self.matching.remove(&candidate.requirement_id);
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

/// Returns the runner with the highest weight and a free slot. Removes full runners from the heap.
fn find_warmest(heap: &mut BinaryHeap<(u64, usize)>, runners: &[FreeRunner]) -> Option<usize> {
    while let Some((_, at)) = heap.peek() {
        if runners[*at].free > 0 {
            return Some(*at);
        }
        heap.pop();
    }
    None
}

/// Returns the runner with the most free slots. Corrects outdated entries of the heap.
fn find_emptiest(
    heap: &mut BinaryHeap<(u32, Reverse<usize>)>,
    runners: &[FreeRunner],
) -> Option<usize> {
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
