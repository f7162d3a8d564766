//! How long a plan will take, by past run times.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap},
};

use serde::{Deserialize, Serialize};

use super::{NodeId, Plan, number};
use crate::graph::NONE;

/// What is taken for a task that never ran, where no other task of the plan ever did either: a minute.
const UNKNOWN_MS: u64 = 60_000;

/// How long a plan will take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Estimate {
    /// Runs side by side.
    pub parallel: usize,
    /// From the first start to the last end, in milliseconds.
    pub total_ms: u64,
    /// The same without a limit: the longest chain of tasks.
    pub critical_ms: u64,
    /// All run times together.
    pub work_ms: u64,
    /// Tasks without a past run; the median of the others was taken for them.
    pub guessed: usize,
}

impl Plan<'_> {
    /// How long it will take with so many runs side by side (at least one), longest chains first.
    pub fn estimate(&self, parallel: usize) -> Estimate {
        let parallel = parallel.max(1);
        let times = self.run_times();
        let rest = self.chains(&times);
        let mut waiting = vec![0_u32; self.len()];
        let mut ready = BTreeSet::new();
        let mut children = vec![Vec::new(); self.len()];
        for node in self.nodes() {
            let after = self.after(node);
            waiting[node.0 as usize] = number(after.len());
            if after.is_empty() {
                ready.insert((Reverse(rest[node.0 as usize]), node.0));
            }
            for parent in after {
                children[parent.0 as usize].push(node.0);
            }
        }
        let mut now = 0;
        let mut running = BinaryHeap::new();
        loop {
            while running.len() < parallel {
                let Some((_, node)) = ready.pop_first() else {
                    break;
                };
                running.push(Reverse((now + times[node as usize], node)));
            }
            let Some(Reverse((end, node))) = running.pop() else {
                break;
            };
            now = end;
            for child in &children[node as usize] {
                waiting[*child as usize] -= 1;
                if waiting[*child as usize] == 0 {
                    ready.insert((Reverse(rest[*child as usize]), *child));
                }
            }
        }
        Estimate {
            parallel,
            total_ms: now,
            critical_ms: rest.iter().copied().max().unwrap_or(0),
            work_ms: times.iter().sum(),
            guessed: self
                .nodes
                .iter()
                .filter(|task| self.graph.run_ms[**task as usize] == NONE)
                .count(),
        }
    }

    /// By node: the longest chain that begins with it, in milliseconds.
    pub(crate) fn chain_times(&self) -> Vec<u64> {
        self.chains(&self.run_times())
    }

    /// The run time of a node's task, as far as it is known.
    pub fn run_ms(&self, node: NodeId) -> Option<u64> {
        let ms = self.graph.run_ms[self.nodes[node.0 as usize] as usize];
        (ms != NONE).then_some(ms.into())
    }

    fn run_times(&self) -> Vec<u64> {
        let mut known: Vec<u64> = self.nodes().filter_map(|node| self.run_ms(node)).collect();
        known.sort_unstable();
        let guess = known.get(known.len() / 2).copied().unwrap_or(UNKNOWN_MS);
        self.nodes()
            .map(|node| self.run_ms(node).unwrap_or(guess))
            .collect()
    }

    fn chains(&self, times: &[u64]) -> Vec<u64> {
        let mut rest = times.to_vec();
        let mut below = vec![0_u64; self.len()];
        // Children come after their parents, so that from the end on each is complete when it is read.
        for node in self.nodes().rev() {
            let at = node.0 as usize;
            rest[at] = times[at] + below[at];
            for parent in self.after(node) {
                let parent = parent.0 as usize;
                below[parent] = below[parent].max(rest[at]);
            }
        }
        rest
    }
}
