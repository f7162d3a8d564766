//! Tasks that rebuild their own bases, found and told as a path.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
};

use serde::{Deserialize, Serialize};

use super::{Plan, bases, number};
use crate::graph::{COUNTED, Graph, NONE};

/// Why a stale task is not built.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "camelCase")]
pub enum Refused {
    /// Its images are, through these steps, its own base. Each step's task stands on the image of the step before
    /// it, the first one on that of the last.
    Loop {
        /// The shortest path around.
        path: Vec<LoopStep>,
        /// All tasks that rebuild each other, those of the path and others.
        tasks: Vec<String>,
    },
    /// It pushes an image that another task pushes too.
    Contested {
        /// The task.
        task: String,
        /// The image.
        image: String,
        /// The other task.
        owner: String,
    },
}

/// A step of a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoopStep {
    /// The task.
    pub task: String,
    /// The image of its that the next one stands on.
    pub image: String,
}

impl Refused {
    /// The tasks that are not built.
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
                    "{first}: a task that rebuilds its own base never comes to rest"
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

/// The strongly connected parts among `within` that are more than one task that waits for nobody: over the edges
/// that count, or over all.
pub(super) fn parts(
    plan: &Plan<'_>,
    within: impl Fn(u32) -> bool,
    counted_only: bool,
) -> Vec<Vec<u32>> {
    let graph = plan.graph;
    let count = graph.task_count();
    let parents = |task: u32| -> Vec<u32> {
        let parents = bases(graph, task).filter_map(|edges| {
            let counted = edges.iter().any(|edge| graph.counts(task, edge));
            let parent = graph.builder[edges[0].base as usize];
            // A base of its own that does not count is no reason to wait.
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
    // Tarjan's algorithm with a stack of its own: a chain of a million tasks must not end the thread.
    for start in (0..number(count)).filter(|task| within(*task)) {
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
                let mut part = Vec::new();
                while let Some(member) = stack.pop() {
                    on_stack[member as usize] = false;
                    part.push(member);
                    if member == task {
                        break;
                    }
                }
                if part.len() > 1 || itself {
                    part.sort_unstable();
                    found.push(part);
                }
            }
        }
    }
    found.sort_unstable();
    found
}

/// The refusal of one such part, with its shortest path from the first task by name.
pub(super) fn refuse(graph: &Graph, part: &[u32]) -> Refused {
    let start = part[0];
    let mut came: BTreeMap<u32, (u32, u32)> = BTreeMap::new();
    let mut waiting = VecDeque::from([start]);
    'search: while let Some(task) = waiting.pop_front() {
        for image in graph.outputs.of(task) {
            for user in graph.users.of(*image) {
                let below = user & !COUNTED;
                if user & COUNTED == 0 || part.binary_search(&below).is_err() {
                    continue;
                }
                if came.contains_key(&below) {
                    continue;
                }
                came.insert(below, (task, *image));
                if below == start {
                    break 'search;
                }
                waiting.push_back(below);
            }
        }
    }
    let mut path = Vec::new();
    let mut at = start;
    while let Some((task, image)) = came.get(&at) {
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
        tasks: part
            .iter()
            .map(|task| graph.tasks.text(*task).to_owned())
            .collect(),
    }
}
