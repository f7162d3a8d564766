//! Detection of tasks that rebuild their own bases, with the path of each loop.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
};

use serde::{Deserialize, Serialize};

use super::{Plan, edges_by_base, to_u32};
use crate::graph::{COUNTED, Graph, NONE};

/// Reason why a stale task is not built.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum Refused {
    /// The task depends on its own images.
    ///
    /// Each step of the path builds on the image of the step before it, the first step on that of
    /// the last.
    Loop {
        /// Shortest path around the loop.
        path: Vec<LoopStep>,
        /// All tasks that rebuild each other, including those outside the path.
        tasks: Vec<String>,
    },
    /// The task pushes an image of another task.
    Contested {
        /// Task that is not built.
        task: String,
        /// Contested image.
        image: String,
        /// Task that owns the image.
        owner: String,
    },
}

/// Step of a loop.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoopStep {
    /// Task that pushes the image.
    pub task: String,
    /// Image of the task that the next step is built from.
    pub image: String,
}

impl Refused {
    /// Returns the tasks that are not built.
    pub fn tasks(&self) -> &[String] {
        match self {
            Self::Loop { tasks, .. } => tasks,
            Self::Contested { task, .. } => std::slice::from_ref(task),
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loop { path, tasks } => {
                for step in path {
                    write!(f, "{} pushes {} -> ", step.task, step.image)?;
                }
                let first = path.first().map_or("", |step| step.task.as_str());
                write!(
                    f,
                    "{first}: a task that rebuilds its own base would be rebuilt forever"
                )?;
                if tasks.len() > path.len() {
                    write!(f, " ({} tasks are in this loop)", tasks.len())?;
                }
                f.write_str("; give one of them the policy `None`, or another tag for its base")
            }
            Self::Contested { task, image, owner } => write!(
                f,
                "{task} pushes {image}, which {owner} pushes too; give one of them another tag"
            ),
        }
    }
}

/// Finds the strongly connected components of the tasks `within`. With `counted_only`, only counted
/// edges connect tasks.
///
/// A single task is a component only if it waits for itself.
pub(super) fn find_components(
    plan: &Plan<'_>,
    within: impl Fn(u32) -> bool,
    counted_only: bool,
) -> Vec<Vec<u32>> {
    let graph = plan.graph;
    let count = graph.task_count();
    let parents = |task: u32| -> Vec<u32> {
        let parents = edges_by_base(graph, task).filter_map(|edges| {
            let counted = edges.iter().any(|edge| graph.counts(task, edge));
            let parent = graph.builder[edges[0].base as usize];
            // An uncounted base of the task itself does not make it wait.
            (parent != NONE && within(parent) && (counted || !counted_only && parent != task))
                .then_some(parent)
        });
        parents.collect()
    };
    let mut index = vec![NONE; count];
    let mut low = vec![0; count];
    let mut on_stack = vec![false; count];
    let mut next = 0;
    let mut stack = Vec::new();
    let mut found = Vec::new();
    // This is Tarjan's algorithm with an explicit stack. A chain of a million tasks would overflow
    // the call stack.
    for start in (0..to_u32(count)).filter(|task| within(*task)) {
        if index[start as usize] != NONE {
            continue;
        }
        let mut calls = vec![(start, parents(start), 0)];
        index[start as usize] = next;
        low[start as usize] = next;
        next += 1;
        stack.push(start);
        on_stack[start as usize] = true;
        while let Some((task, parents_of, position)) = calls.last_mut() {
            let task = *task;
            if let Some(parent) = parents_of.get(*position).copied() {
                *position += 1;
                if index[parent as usize] == NONE {
                    index[parent as usize] = next;
                    low[parent as usize] = next;
                    next += 1;
                    stack.push(parent);
                    on_stack[parent as usize] = true;
                    calls.push((parent, parents(parent), 0));
                } else if on_stack[parent as usize] {
                    low[task as usize] = low[task as usize].min(index[parent as usize]);
                }
                continue;
            }
            let itself = parents_of.contains(&task);
            calls.pop();
            if let Some((caller, ..)) = calls.last() {
                let caller = *caller as usize;
                low[caller] = low[caller].min(low[task as usize]);
            }
            if low[task as usize] == index[task as usize] {
                let mut component = Vec::new();
                while let Some(member) = stack.pop() {
                    on_stack[member as usize] = false;
                    component.push(member);
                    if member == task {
                        break;
                    }
                }
                if component.len() > 1 || itself {
                    component.sort_unstable();
                    found.push(component);
                }
            }
        }
    }
    found.sort_unstable();
    found
}

/// Returns the refusal of a loop, with the shortest path from its first task by name.
pub(super) fn refuse_loop(graph: &Graph, component: &[u32]) -> Refused {
    let start = component[0];
    let mut reached_from: BTreeMap<u32, (u32, u32)> = BTreeMap::new();
    let mut waiting = VecDeque::from([start]);
    'search: while let Some(task) = waiting.pop_front() {
        for image in graph.outputs.get(task) {
            for user in graph.users.get(*image) {
                let below = user & !COUNTED;
                if user & COUNTED == 0 || component.binary_search(&below).is_err() {
                    continue;
                }
                if reached_from.contains_key(&below) {
                    continue;
                }
                reached_from.insert(below, (task, *image));
                if below == start {
                    break 'search;
                }
                waiting.push_back(below);
            }
        }
    }
    let mut path = Vec::new();
    let mut at = start;
    while let Some((task, image)) = reached_from.get(&at) {
        path.push(LoopStep {
            task: graph.tasks.text(*task).to_owned(),
            image: graph.images.text(*image).to_owned(),
        });
        at = *task;
        if at == start {
            break;
        }
    }
    path.reverse();
    Refused::Loop {
        path,
        tasks: component
            .iter()
            .map(|task| graph.tasks.text(*task).to_owned())
            .collect(),
    }
}
