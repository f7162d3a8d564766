//! Estimated duration of a plan, from past run times.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap},
};

use serde::{Deserialize, Serialize};

use super::{NodeId, Plan, to_u32};
use crate::graph::NONE;

/// Assumed run time of a task if no task of the plan has ever run: one minute.
const UNKNOWN_MS: u64 = 60_000;

/// Estimated duration of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Estimate {
    /// Number of concurrent runs.
    pub parallel: usize,
    /// Time from the first start to the last end, in milliseconds.
    pub total_ms: u64,
    /// Time of the longest chain of tasks, in milliseconds: the duration without a limit on
    /// concurrency.
    pub critical_ms: u64,
    /// Sum of all run times, in milliseconds.
    pub work_ms: u64,
    /// Number of tasks without a past run. They are assumed to take the median of the others.
    pub guessed: usize,
}

impl Plan<'_> {
    /// Estimates the duration with `parallel` concurrent runs (at least one), longest chains first.
    pub fn estimate(&self, parallel: usize) -> Estimate {
        let parallel = parallel.max(1);
        let times = self.run_times();
        let rest = self.longest_chains(&times);
        let mut waiting = vec![0_u32; self.len()];
        let mut ready = BTreeSet::new();
        let mut children = vec![Vec::new(); self.len()];
        for node in self.nodes() {
            let after = self.parents(node);
            waiting[node.0 as usize] = to_u32(after.len());
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

    /// Returns the longest chain that begins with each node, in milliseconds.
    pub(crate) fn chain_times(&self) -> Vec<u64> {
        self.longest_chains(&self.run_times())
    }

    /// Returns the past run time of a node's task in milliseconds; `None` if it never ran.
    pub fn run_ms(&self, node: NodeId) -> Option<u64> {
        let ms = self.graph.run_ms[self.nodes[node.0 as usize] as usize];
        (ms != NONE).then_some(ms.into())
    }

    fn run_times(&self) -> Vec<u64> {
        let mut past: Vec<u64> = self.nodes().filter_map(|node| self.run_ms(node)).collect();
        past.sort_unstable();
        let guess = past.get(past.len() / 2).copied().unwrap_or(UNKNOWN_MS);
        self.nodes()
            .map(|node| self.run_ms(node).unwrap_or(guess))
            .collect()
    }

    fn longest_chains(&self, times: &[u64]) -> Vec<u64> {
        let mut rest = times.to_vec();
        let mut below = vec![0_u64; self.len()];
        // Children follow their parents. In reverse order, each value is complete when it is read.
        for node in self.nodes().rev() {
            let at = node.0 as usize;
            rest[at] = times[at] + below[at];
            for parent in self.parents(node) {
                let parent = parent.0 as usize;
                below[parent] = below[parent].max(rest[at]);
            }
        }
        rest
    }
}
