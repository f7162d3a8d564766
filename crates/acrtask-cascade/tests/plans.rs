//! Property tests that compare the planner with a slow and simple model.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of a #[test]")]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use acrtask_cascade::{
    Facts, Graph, PlanOptions,
    graph::{BaseFacts, Policy, TagFacts, TaskFacts},
    plan,
    plan::PinTo,
    show,
};
use acrtask_model::{Digest, ImageRef, events::BaseRole};
use common::{Model, digest, image};
use proptest::prelude::*;

fn base(index: usize) -> ImageRef {
    image(&format!("base-{index}:1"))
}

fn task_image(task: usize, index: usize) -> ImageRef {
    image(&format!("r.io/t{task}-{index}:1"))
}

/// Random values of a task: policy, number of images, bases, and whether it claims an image of
/// another task.
type Drawn = (u8, usize, Vec<(usize, u8, u64)>, bool);

fn facts(tasks: &[Drawn], tags: &[u64]) -> Facts {
    let roles = [
        BaseRole::Runtime,
        BaseRole::Runtime,
        BaseRole::BuildTime,
        BaseRole::Frontend,
        BaseRole::Cmd,
    ];
    let count = tasks.len();
    let tasks = tasks.iter().enumerate().map(|(index, drawn)| {
        let (policy, images, bases, claims) = drawn;
        let mut pushed: Vec<ImageRef> =
            (0..*images).map(|image| task_image(index, image)).collect();
        if *claims && index > 0 {
            pushed.push(task_image(index - 1, 0));
        }
        TaskFacts {
            name: format!("t{index}"),
            policy: [Policy::Runtime, Policy::All, Policy::None][usize::from(*policy).min(2)],
            images: pushed
                .into_iter()
                .map(|image| TagFacts {
                    image,
                    digest: digest(1),
                })
                .collect(),
            bases: bases
                .iter()
                .map(|(which, role, used)| BaseFacts {
                    // Some of these create loops.
                    image: match which % 12 {
                        0..4 => base(which % 4),
                        4..11 if index > 0 => task_image(which / 12 % index, which / 5 % 2),
                        _ => task_image(which / 12 % count, 0),
                    },
                    role: roles[usize::from(*role) % 5],
                    digest: digest(*used),
                })
                .collect(),
            run_ms: (index % 3 > 0).then_some(1000 * u64::try_from(index).unwrap()),
        }
    });
    Facts {
        tasks: tasks.collect(),
        tags: tags
            .iter()
            .enumerate()
            .map(|(index, now)| TagFacts {
                image: base(index),
                digest: digest(*now),
            })
            .collect(),
    }
}

fn facts_strategy() -> impl Strategy<Value = (Facts, BTreeMap<ImageRef, Digest>, BTreeSet<String>)>
{
    let bases = prop::collection::vec((0..1000_usize, 0..5_u8, 1..3_u64), 0..4);
    let claims = prop::bool::weighted(0.04);
    let tasks = prop::collection::vec((0..5_u8, 0..3_usize, bases, claims), 1..9);
    let changes = prop::collection::btree_map(0..6_usize, 1..4_u64, 0..3);
    let excluded = prop::collection::btree_set(0..9_usize, 0..2);
    let tags = prop::collection::vec(1..3_u64, 0..4);
    (tasks, tags, changes, excluded).prop_map(|(tasks, tags, changes, excluded)| {
        let facts = facts(
            &tasks
                .into_iter()
                // Most tasks count runtime bases only.
                .map(|(policy, images, bases, claims)| {
                    (policy.saturating_sub(2), images, bases, claims)
                })
                .collect::<Vec<_>>(),
            &tags,
        );
        let changes = changes.into_iter().map(|(index, now)| {
            let image = if index < 4 {
                base(index)
            } else {
                task_image(index - 4, 0)
            };
            (image, digest(now))
        });
        let excluded = excluded.into_iter().map(|index| format!("t{index}"));
        (facts, changes.collect(), excluded.collect())
    })
}

fn check_plan(facts: &Facts, changes: &BTreeMap<ImageRef, Digest>, options: &PlanOptions) {
    let graph = Graph::new(facts);
    let plan = plan(&graph, changes, options);
    let model = Model::new(facts, changes);
    let of: BTreeSet<ImageRef> = changes.keys().cloned().collect();
    let stale = model.stale_tasks((!options.everything).then_some(&of), &options.excluded);

    let names: Vec<&str> = plan.nodes().map(|node| plan.name(node)).collect();
    let set: BTreeSet<&str> = names.iter().copied().collect();
    assert_eq!(set.len(), names.len(), "each task once");
    assert_eq!(set, stale, "all that is stale and nothing else");

    for node in plan.nodes() {
        let name = plan.name(node);
        let after = plan.parents(node);
        let earliest = after.iter().map(|parent| plan.wave(*parent) + 1).max();
        assert_eq!(plan.wave(node), earliest.unwrap_or(0), "{name}'s wave");
        assert!(after.iter().all(|parent| *parent < node), "parents first");
        let task = model.task(name);
        let bases: BTreeSet<&ImageRef> = task.bases.iter().map(|base| &base.image).collect();
        assert_eq!(plan.pins(node).count(), bases.len(), "each base has a pin");
        let mut reasons = 0;
        for pin in plan.pins(node) {
            let base: ImageRef = graph.image_name(pin.image).parse().unwrap();
            let edges = task.bases.iter().filter(|edge| edge.image == base);
            let counted = edges.clone().any(|edge| task.policy.counts(edge.role));
            assert_eq!(pin.counted, counted);
            let owner = model.owner_of(&base).filter(|owner| stale.contains(owner));
            reasons += usize::from(pin.is_reason());
            match (owner, pin.to) {
                (Some(owner), PinTo::Output(parent)) => assert_eq!(plan.name(parent), owner),
                (Some(owner), PinTo::Digest(_)) => {
                    // The only exception is an uncounted base that depends on the task itself.
                    assert!(!counted, "{name} waits for {owner}");
                    assert!(owner == name || model.depends_on(owner, name, false));
                }
                (None, PinTo::Output(_)) => panic!("{name} waits for what is not built"),
                (None, PinTo::Digest(to)) => {
                    let current = model.now.get(&base);
                    let to = plan.digest(to);
                    assert!(
                        current.is_none_or(|current| *current == to),
                        "{base} is pinned to {to}"
                    );
                }
            }
        }
        assert!(reasons > 0, "{name} has no reason");
    }
    for refused in plan.refused() {
        for task in refused.tasks() {
            let looped = model.rebuilds_itself(task);
            assert!(
                looped || model.contested_tasks().contains(task.as_str()),
                "{refused}"
            );
        }
        if let plan::Refused::Loop { path, .. } = refused {
            for (index, step) in path.iter().enumerate() {
                let next = model.task(&path[(index + 1) % path.len()].task);
                let mut bases = next.bases.iter();
                assert!(
                    bases.any(|base| base.image.to_string() == step.image
                        && next.policy.counts(base.role)),
                    "{refused}"
                );
                assert_eq!(
                    model.owner_of(&step.image.parse().unwrap()),
                    Some(&*step.task)
                );
            }
        }
    }

    let one = plan.estimate(1);
    assert_eq!(one.total_ms, one.work_ms, "one after the other");
    let two = plan.estimate(2);
    assert!(two.total_ms >= two.critical_ms && two.total_ms <= one.total_ms);
    assert_eq!(plan.estimate(100).total_ms, two.critical_ms);

    let mut other = facts.clone();
    other.tasks.reverse();
    other.tags.reverse();
    for task in &mut other.tasks {
        task.bases.reverse();
        task.images.reverse();
    }
    let other = Graph::new(&other);
    let same = acrtask_cascade::plan(&other, changes, options);
    assert_eq!(
        same.view(3),
        plan.view(3),
        "the plan depends on the order of the facts"
    );
    let view = plan.view(3);
    let text = serde_json::to_string(&view).unwrap();
    let read: show::PlanView = serde_json::from_str(&text).unwrap();
    assert_eq!(read, view, "the plan does not survive JSON");
    let tree = show::render_tree(&read);
    for name in names {
        let lines = tree.lines().filter(|line| {
            let task = line.split_once("─ ").map(|(_, rest)| rest);
            task.is_some_and(|task| task == name || task.starts_with(&format!("{name} ")))
        });
        assert_eq!(lines.count(), 1, "{name} is not exactly once in\n{tree}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn plan_matches_the_model((facts, changes, excluded) in facts_strategy(), everything: bool) {
        check_plan(&facts, &changes, &PlanOptions { everything, excluded, ..PlanOptions::default() });
    }
}

#[test]
fn long_chain_needs_no_deep_stack() {
    let count = 50_000;
    let mut tasks: Vec<TaskFacts> = (0..count)
        .map(|index| TaskFacts {
            name: format!("t{index:06}"),
            policy: Policy::Runtime,
            images: vec![TagFacts {
                image: task_image(index, 0),
                digest: digest(1),
            }],
            bases: vec![BaseFacts {
                image: if index == 0 {
                    base(0)
                } else {
                    task_image(index - 1, 0)
                },
                role: BaseRole::Runtime,
                digest: digest(1),
            }],
            run_ms: Some(1),
        })
        .collect();
    let changes = BTreeMap::from([(base(0), digest(2))]);
    let facts = Facts {
        tasks: tasks.clone(),
        tags: Vec::new(),
    };
    let graph = Graph::new(&facts);
    let chain = plan(&graph, &changes, &PlanOptions::default());
    assert_eq!(chain.wave_count(), count);
    assert_eq!(chain.estimate(8).total_ms, u64::try_from(count).unwrap());

    // The same tasks as one loop.
    tasks[0].bases.push(BaseFacts {
        image: task_image(count - 1, 0),
        role: BaseRole::Runtime,
        digest: digest(1),
    });
    let facts = Facts {
        tasks,
        tags: Vec::new(),
    };
    let graph = Graph::new(&facts);
    let ring = plan(&graph, &changes, &PlanOptions::default());
    assert!(ring.is_empty());
    let plan::Refused::Loop { path, .. } = &ring.refused()[0] else {
        panic!("not a loop");
    };
    assert_eq!(path.len(), count);
}
