//! The order of the steps: who waits for whom, and whether that can be.

use std::collections::HashMap;

use acrtask_model::StepId;

use crate::{plan::Step, task::RawStep};

/// The token that stands for 'at once' in `when`.
pub(crate) const AT_ONCE: &str = "-";

/// For each step the positions of those it waits for. `position` finds a step by its id; unknown ids are
/// left out, they have been reported.
pub(crate) fn edges(
    steps: &[RawStep],
    position: impl Fn(&str) -> Option<usize>,
) -> Vec<Vec<usize>> {
    let mut edges = Vec::with_capacity(steps.len());
    for (i, step) in steps.iter().enumerate() {
        let mut after = Vec::new();
        if step.when.is_empty() {
            after.extend(i.checked_sub(1));
        }
        for name in step.when.iter().filter(|name| name.value != AT_ONCE) {
            if let Some(at) = position(&name.value)
                && !after.contains(&at)
            {
                after.push(at);
            }
        }
        edges.push(after);
    }
    edges
}

/// A cycle, if there is one: each position waits for the next one, and the last for the first.
pub(crate) fn cycle(edges: &[Vec<usize>]) -> Option<Vec<usize>> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        OnPath,
        Done,
    }
    let mut marks = vec![Mark::New; edges.len()];
    for start in 0..edges.len() {
        // The path from `start`, each with how many of its edges have been followed.
        let mut path = vec![(start, 0)];
        while let Some((node, followed)) = path.last_mut() {
            let node = *node;
            if *followed == 0 {
                if marks[node] == Mark::Done {
                    path.pop();
                    continue;
                }
                marks[node] = Mark::OnPath;
            }
            let Some(next) = edges[node].get(*followed).copied() else {
                marks[node] = Mark::Done;
                path.pop();
                continue;
            };
            *followed += 1;
            match marks[next] {
                Mark::OnPath => {
                    let begin = path.iter().position(|(node, _)| *node == next)?;
                    return Some(path[begin..].iter().map(|(node, _)| *node).collect());
                }
                Mark::New => path.push((next, 0)),
                Mark::Done => {}
            }
        }
    }
    None
}

/// For each step its wave: 0 starts at once, N when something of wave N-1 has finished.
pub(crate) fn waves(steps: &[Step]) -> Vec<usize> {
    let positions: HashMap<&StepId, usize> = steps
        .iter()
        .enumerate()
        .map(|(i, step)| (&step.id, i))
        .collect();
    let mut waves = vec![0; steps.len()];
    // Each round settles at least one more wave; a plan has no cycle.
    for _ in 0..steps.len() {
        let mut settled = true;
        for (i, step) in steps.iter().enumerate() {
            let wave = step
                .after
                .iter()
                .filter_map(|id| positions.get(id))
                .map(|at| waves[*at] + 1)
                .max()
                .unwrap_or(0);
            settled &= waves[i] == wave;
            waves[i] = wave;
        }
        if settled {
            break;
        }
    }
    waves
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_cycles() {
        for (edges, expected) in [
            (vec![vec![], vec![0], vec![0, 1]], None),
            (vec![vec![1], vec![0]], Some(vec![0, 1])),
            (
                vec![vec![], vec![3], vec![1], vec![2], vec![0]],
                Some(vec![1, 3, 2]),
            ),
            (vec![vec![0]], Some(vec![0])),
        ] {
            assert_eq!(cycle(&edges), expected);
        }
        let long: Vec<Vec<usize>> = (0..100_000usize)
            .map(|i| i.checked_sub(1).into_iter().collect())
            .collect();
        assert_eq!(cycle(&long), None);
    }
}
