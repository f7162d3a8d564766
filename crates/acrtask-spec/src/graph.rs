//! Order of the steps: edges, cycles and waves.

use std::collections::{HashMap, HashSet};

use acrtask_model::StepId;

use crate::{plan::Step, task::RawStep};

/// Entry of `when` that starts a step at once.
pub(crate) const AT_ONCE: &str = "-";

/// Returns for each step the positions of the steps it waits for. `position` finds a step by its
/// id. Unknown ids are skipped, because they are reported elsewhere.
pub(crate) fn collect_edges(
    steps: &[RawStep],
    position: impl Fn(&str) -> Option<usize>,
) -> Vec<Vec<usize>> {
    let mut edges = Vec::with_capacity(steps.len());
    for (i, step) in steps.iter().enumerate() {
        let mut after = Vec::new();
        let mut seen = HashSet::new();
        if step.when.is_empty() {
            after.extend(i.checked_sub(1));
        }
        for name in step.when.iter().filter(|name| name.value != AT_ONCE) {
            if let Some(at) = position(&name.value)
                && seen.insert(at)
            {
                after.push(at);
            }
        }
        edges.push(after);
    }
    edges
}

/// Returns a cycle, if there is one. Each position waits for the next one, and the last for the
/// first.
pub(crate) fn find_cycle(edges: &[Vec<usize>]) -> Option<Vec<usize>> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        OnPath,
        Done,
    }
    let mut marks = vec![Mark::New; edges.len()];
    for start in 0..edges.len() {
        // The path from `start`. The numbers count the followed edges of each node.
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

/// Returns the wave of each step. Wave 0 starts at once. Wave N waits for a step of wave N-1, and
/// for none of a later wave.
pub(crate) fn assign_waves(steps: &[Step]) -> Vec<usize> {
    let positions: HashMap<&StepId, usize> = steps
        .iter()
        .enumerate()
        .map(|(i, step)| (&step.id, i))
        .collect();
    let mut waiting: Vec<usize> = steps.iter().map(|step| step.after.len()).collect();
    let mut followers = vec![Vec::new(); steps.len()];
    for (i, step) in steps.iter().enumerate() {
        for at in step.after.iter().filter_map(|id| positions.get(id)) {
            followers[*at].push(i);
        }
    }
    let mut waves = vec![0; steps.len()];
    // A plan has no cycle, so every step becomes ready.
    let mut ready: Vec<usize> = (0..steps.len()).filter(|i| waiting[*i] == 0).collect();
    while let Some(at) = ready.pop() {
        for follower in &followers[at] {
            waves[*follower] = waves[*follower].max(waves[at] + 1);
            waiting[*follower] -= 1;
            if waiting[*follower] == 0 {
                ready.push(*follower);
            }
        }
    }
    waves
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cycles_are_found() {
        for (edges, expected) in [
            (vec![vec![], vec![0], vec![0, 1]], None),
            (vec![vec![1], vec![0]], Some(vec![0, 1])),
            (
                vec![vec![], vec![3], vec![1], vec![2], vec![0]],
                Some(vec![1, 3, 2]),
            ),
            (vec![vec![0]], Some(vec![0])),
        ] {
            assert_eq!(find_cycle(&edges), expected);
        }
        let long: Vec<Vec<usize>> = (0..100_000usize)
            .map(|i| i.checked_sub(1).into_iter().collect())
            .collect();
        assert_eq!(find_cycle(&long), None);
    }
}
