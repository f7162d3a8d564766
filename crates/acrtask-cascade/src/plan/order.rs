//! Selection and order of the tasks of a plan: stale tasks first, then their dependents, then
//! waves.
//!
//! Each step is linear in the tasks and edges it visits. Strongly connected components are searched
//! only among tasks that no wave reached. Without loops, there are none.

use super::{Plan, PlanOptions, Refused, edges_by_base, loops, to_u32};
use crate::graph::{COUNTED, NONE};

/// Marker for a task whose position in the plan is not computed yet.
const MEMBER: u32 = NONE - 1;

pub(super) fn order_plan(plan: &mut Plan<'_>, options: &PlanOptions) {
    let graph = plan.graph;
    let mut frozen = mark_excluded(plan, options);
    let found = find_seeds(plan, options, &frozen);
    let mut seeds = Vec::with_capacity(found.len());
    for task in found {
        if graph.is_contested(task) {
            frozen[task as usize] = true;
            plan.refused.push(refuse_contested(plan, task));
        } else {
            seeds.push(task);
        }
    }
    loop {
        mark_members(plan, &seeds, &mut frozen);
        plan.rings.clear();
        let members = plan
            .positions
            .iter()
            .filter(|position| **position != NONE)
            .count();
        let mut order = order_waves(plan, members);
        if order.nodes.len() < members {
            let left = |plan: &Plan<'_>, task: u32| {
                plan.positions[task as usize] != NONE && !order.reached[task as usize]
            };
            let found = loops::find_components(plan, |task| left(plan, task), true);
            if !found.is_empty() {
                for component in found {
                    plan.refused.push(loops::refuse_loop(graph, &component));
                    for task in component {
                        frozen[task as usize] = true;
                    }
                }
                seeds.retain(|task| !frozen[*task as usize]);
                continue;
            }
            let found = loops::find_components(plan, |task| left(plan, task), false);
            plan.rings = vec![NONE; graph.task_count()];
            for (ring, component) in found.into_iter().enumerate() {
                for task in component {
                    plan.rings[task as usize] = to_u32(ring);
                }
            }
            order = order_waves(plan, members);
        }
        for (position, task) in order.nodes.iter().enumerate() {
            plan.positions[*task as usize] = to_u32(position);
        }
        plan.nodes = order.nodes;
        plan.waves = order.starts;
        plan.refused.sort_unstable();
        return;
    }
}

/// Marks the excluded tasks and all tasks below them, by task.
fn mark_excluded(plan: &Plan<'_>, options: &PlanOptions) -> Vec<bool> {
    let graph = plan.graph;
    let mut frozen = vec![false; graph.task_count()];
    let mut waiting = Vec::new();
    for name in &options.excluded {
        if let Some(task) = graph.task(name)
            && !std::mem::replace(&mut frozen[task.0 as usize], true)
        {
            waiting.push(task.0);
        }
    }
    while let Some(task) = waiting.pop() {
        for image in graph.outputs.get(task) {
            for user in graph.users.get(*image) {
                let below = (user & !COUNTED) as usize;
                if user & COUNTED != 0 && !std::mem::replace(&mut frozen[below], true) {
                    waiting.push(to_u32(below));
                }
            }
        }
    }
    frozen
}

/// Finds the tasks that are stale before anything is built.
fn find_seeds(plan: &Plan<'_>, options: &PlanOptions, frozen: &[bool]) -> Vec<u32> {
    let graph = plan.graph;
    let stale = |task: u32| {
        !frozen[task as usize]
            && graph
                .edges
                .get(task)
                .iter()
                .any(|edge| plan.is_stale(task, edge))
    };
    let assumed = options
        .assumed_stale
        .iter()
        .filter_map(|name| graph.task(name));
    let mut seeds: Vec<u32> = assumed
        .map(|task| task.0)
        .filter(|task| !frozen[*task as usize])
        .collect();
    if options.everything {
        seeds.extend((0..to_u32(graph.task_count())).filter(|task| stale(*task)));
    }
    for image in plan.changed.keys() {
        for user in graph.users.get(*image) {
            let task = user & !COUNTED;
            let mut edges = graph.edges.get(task).iter();
            if user & COUNTED != 0
                && !frozen[task as usize]
                && edges.any(|edge| edge.base == *image && plan.is_stale(task, edge))
            {
                seeds.push(task);
            }
        }
    }
    seeds.sort_unstable();
    seeds.dedup();
    seeds
}

/// Marks the seeds and all tasks below them as members of the plan.
fn mark_members(plan: &mut Plan<'_>, seeds: &[u32], frozen: &mut [bool]) {
    let graph = plan.graph;
    plan.positions.clear();
    plan.positions.resize(graph.task_count(), NONE);
    let mut waiting = seeds.to_vec();
    for task in seeds {
        plan.positions[*task as usize] = MEMBER;
    }
    while let Some(task) = waiting.pop() {
        for image in graph.outputs.get(task) {
            for user in graph.users.get(*image) {
                let below = user & !COUNTED;
                if user & COUNTED == 0
                    || frozen[below as usize]
                    || plan.positions[below as usize] != NONE
                {
                    continue;
                }
                if graph.is_contested(below) {
                    frozen[below as usize] = true;
                    let refused = refuse_contested(plan, below);
                    plan.refused.push(refused);
                    continue;
                }
                plan.positions[below as usize] = MEMBER;
                waiting.push(below);
            }
        }
    }
}

fn refuse_contested(plan: &Plan<'_>, task: u32) -> Refused {
    let name = plan.graph.tasks.text(task);
    let mut conflicts = plan.graph.conflicts().iter();
    let conflict = conflicts.find(|conflict| conflict.claimant == name);
    Refused::Contested {
        task: name.to_owned(),
        image: conflict.map_or_else(String::new, |conflict| conflict.image.clone()),
        owner: conflict.map_or_else(String::new, |conflict| conflict.owner.clone()),
    }
}

struct Order {
    nodes: Vec<u32>,
    starts: Vec<u32>,
    /// Tasks that a wave contains, by task.
    reached: Vec<bool>,
}

/// Orders the members wave by wave, as far as they can be ordered.
fn order_waves(plan: &Plan<'_>, members: usize) -> Order {
    let graph = plan.graph;
    let mut before = vec![0_u32; graph.task_count()];
    let mut wave = Vec::new();
    for task in 0..to_u32(graph.task_count()) {
        if plan.positions[task as usize] == NONE {
            continue;
        }
        for edges in edges_by_base(graph, task) {
            let counted = edges.iter().any(|edge| graph.counts(task, edge));
            if plan.awaited_parent(task, edges[0].base, counted).is_some() {
                before[task as usize] += 1;
            }
        }
        if before[task as usize] == 0 {
            wave.push(task);
        }
    }
    let mut order = Order {
        nodes: Vec::with_capacity(members),
        starts: Vec::new(),
        reached: vec![false; graph.task_count()],
    };
    while !wave.is_empty() {
        order.starts.push(to_u32(order.nodes.len()));
        let mut next = Vec::new();
        for task in &wave {
            order.reached[*task as usize] = true;
            for image in graph.outputs.get(*task) {
                for user in graph.users.get(*image) {
                    let below = user & !COUNTED;
                    if plan.positions[below as usize] == NONE
                        || plan.is_dropped(below, *task, user & COUNTED != 0)
                    {
                        continue;
                    }
                    before[below as usize] -= 1;
                    if before[below as usize] == 0 {
                        next.push(below);
                    }
                }
            }
        }
        order.nodes.append(&mut wave);
        next.sort_unstable();
        wave = next;
    }
    order
}
