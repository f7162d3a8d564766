//! Which tasks are in a plan, and their order: seeds, what is below them, then wave by wave.
//!
//! Each step is linear in the tasks and edges it touches. Strongly connected parts are looked for only among what
//! the waves did not reach, which is nothing in a graph without loops.

use super::{Plan, PlanOptions, Refused, bases, loops, number};
use crate::graph::{COUNTED, NONE};

/// In `places` while the order is not known.
const MEMBER: u32 = NONE - 1;

pub(super) fn fill(plan: &mut Plan<'_>, options: &PlanOptions) {
    let graph = plan.graph;
    let mut frozen = held(plan, options);
    let found = seeds(plan, options, &frozen);
    let mut seeds = Vec::with_capacity(found.len());
    for task in found {
        if graph.is_contested(task) {
            frozen[task as usize] = true;
            plan.refused.push(contested(plan, task));
        } else {
            seeds.push(task);
        }
    }
    loop {
        close(plan, &seeds, &mut frozen);
        plan.rings.clear();
        let members = plan.places.iter().filter(|place| **place != NONE).count();
        let mut order = waves(plan, members);
        if order.nodes.len() < members {
            let left = |plan: &Plan<'_>, task: u32| {
                plan.places[task as usize] != NONE && !order.reached[task as usize]
            };
            let found = loops::parts(plan, |task| left(plan, task), true);
            if !found.is_empty() {
                for part in found {
                    plan.refused.push(loops::refuse(graph, &part));
                    for task in part {
                        frozen[task as usize] = true;
                    }
                }
                seeds.retain(|task| !frozen[*task as usize]);
                continue;
            }
            let found = loops::parts(plan, |task| left(plan, task), false);
            plan.rings = vec![NONE; graph.task_count()];
            for (ring, part) in found.into_iter().enumerate() {
                for task in part {
                    plan.rings[task as usize] = number(ring);
                }
            }
            order = waves(plan, members);
        }
        for (place, task) in order.nodes.iter().enumerate() {
            plan.places[*task as usize] = number(place);
        }
        plan.nodes = order.nodes;
        plan.waves = order.starts;
        plan.refused.sort_unstable();
        return;
    }
}

/// By task: it is held, or below one that is.
fn held(plan: &Plan<'_>, options: &PlanOptions) -> Vec<bool> {
    let graph = plan.graph;
    let mut frozen = vec![false; graph.task_count()];
    let mut waiting = Vec::new();
    for name in &options.held {
        if let Some(task) = graph.task(name)
            && !std::mem::replace(&mut frozen[task.0 as usize], true)
        {
            waiting.push(task.0);
        }
    }
    while let Some(task) = waiting.pop() {
        for image in graph.outputs.of(task) {
            for user in graph.users.of(*image) {
                let below = (user & !COUNTED) as usize;
                if user & COUNTED != 0 && !std::mem::replace(&mut frozen[below], true) {
                    waiting.push(number(below));
                }
            }
        }
    }
    frozen
}

/// The tasks that are stale without any build.
fn seeds(plan: &Plan<'_>, options: &PlanOptions, frozen: &[bool]) -> Vec<u32> {
    let graph = plan.graph;
    let stale = |task: u32| {
        !frozen[task as usize]
            && graph
                .edges
                .of(task)
                .iter()
                .any(|edge| plan.is_stale(task, edge))
    };
    let also = options.also.iter().filter_map(|name| graph.task(name));
    let mut seeds: Vec<u32> = also
        .map(|task| task.0)
        .filter(|task| !frozen[*task as usize])
        .collect();
    if options.everything {
        seeds.extend((0..number(graph.task_count())).filter(|task| stale(*task)));
    }
    for image in plan.changed.keys() {
        for user in graph.users.of(*image) {
            let task = user & !COUNTED;
            let mut edges = graph.edges.of(task).iter();
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

/// Marks the seeds and all that is below them.
fn close(plan: &mut Plan<'_>, seeds: &[u32], frozen: &mut [bool]) {
    let graph = plan.graph;
    plan.places.clear();
    plan.places.resize(graph.task_count(), NONE);
    let mut waiting = seeds.to_vec();
    for task in seeds {
        plan.places[*task as usize] = MEMBER;
    }
    while let Some(task) = waiting.pop() {
        for image in graph.outputs.of(task) {
            for user in graph.users.of(*image) {
                let below = user & !COUNTED;
                if user & COUNTED == 0
                    || frozen[below as usize]
                    || plan.places[below as usize] != NONE
                {
                    continue;
                }
                if graph.is_contested(below) {
                    frozen[below as usize] = true;
                    let refused = contested(plan, below);
                    plan.refused.push(refused);
                    continue;
                }
                plan.places[below as usize] = MEMBER;
                waiting.push(below);
            }
        }
    }
}

fn contested(plan: &Plan<'_>, task: u32) -> Refused {
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
    /// By task.
    reached: Vec<bool>,
}

/// The members that can be ordered, wave by wave.
fn waves(plan: &Plan<'_>, members: usize) -> Order {
    let graph = plan.graph;
    let mut before = vec![0_u32; graph.task_count()];
    let mut wave = Vec::new();
    for task in 0..number(graph.task_count()) {
        if plan.places[task as usize] == NONE {
            continue;
        }
        for edges in bases(graph, task) {
            let counted = edges.iter().any(|edge| graph.counts(task, edge));
            if plan.parent(task, edges[0].base, counted).is_some() {
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
        order.starts.push(number(order.nodes.len()));
        let mut next = Vec::new();
        for task in &wave {
            order.reached[*task as usize] = true;
            for image in graph.outputs.of(*task) {
                for user in graph.users.of(*image) {
                    let below = user & !COUNTED;
                    if plan.places[below as usize] == NONE
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
