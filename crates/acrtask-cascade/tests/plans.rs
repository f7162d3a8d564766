//! The planner against the slow and obvious model, on random graphs.

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

fn own(task: usize, index: usize) -> ImageRef {
    image(&format!("r.io/t{task}-{index}:1"))
}

/// A task by what proptest draws: policy, number of images, bases, and whether it claims another's image.
type Drawn = (u8, usize, Vec<(usize, u8, u64)>, bool);

fn facts(tasks: &[Drawn], tags: &[u64]) -> Facts {
    let roles = [
        BaseRole::Runtime,
        BaseRole::Runtime,
        BaseRole::BuildTime,
        BaseRole::Frontend,
        BaseRole::Ran,
    ];
    let count = tasks.len();
    let tasks = tasks.iter().enumerate().map(|(index, drawn)| {
        let (policy, images, bases, claims) = drawn;
        let mut pushed: Vec<ImageRef> = (0..*images).map(|image| own(index, image)).collect();
        if *claims && index > 0 {
            pushed.push(own(index - 1, 0));
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
                    // Some of these make loops.
                    image: match which % 12 {
                        0..4 => base(which % 4),
                        4..11 if index > 0 => own(which / 12 % index, which / 5 % 2),
                        _ => own(which / 12 % count, 0),
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

fn drawn() -> impl Strategy<Value = (Facts, BTreeMap<ImageRef, Digest>, BTreeSet<String>)> {
    let bases = prop::collection::vec((0..1000_usize, 0..5_u8, 1..3_u64), 0..4);
    let claims = prop::bool::weighted(0.04);
    let tasks = prop::collection::vec((0..5_u8, 0..3_usize, bases, claims), 1..9);
    let changes = prop::collection::btree_map(0..6_usize, 1..4_u64, 0..3);
    let held = prop::collection::btree_set(0..9_usize, 0..2);
    let tags = prop::collection::vec(1..3_u64, 0..4);
    (tasks, tags, changes, held).prop_map(|(tasks, tags, changes, held)| {
        let facts = facts(
            &tasks
                .into_iter()
                // Most tasks take runtime bases only.
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
                own(index - 4, 0)
            };
            (image, digest(now))
        });
        let held = held.into_iter().map(|index| format!("t{index}"));
        (facts, changes.collect(), held.collect())
    })
}

fn check(facts: &Facts, changes: &BTreeMap<ImageRef, Digest>, options: &PlanOptions) {
    let graph = Graph::new(facts);
    let plan = plan(&graph, changes, options);
    let model = Model::new(facts, changes);
    let of: BTreeSet<ImageRef> = changes.keys().cloned().collect();
    let stale = model.stale((!options.everything).then_some(&of), &options.held);

    let names: Vec<&str> = plan.nodes().map(|node| plan.name(node)).collect();
    let set: BTreeSet<&str> = names.iter().copied().collect();
    assert_eq!(set.len(), names.len(), "each task once");
    assert_eq!(set, stale, "all that is stale and nothing else");

    for node in plan.nodes() {
        let name = plan.name(node);
        let after = plan.after(node);
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
            let owner = model.owner(&base).filter(|owner| stale.contains(owner));
            reasons += usize::from(pin.is_reason());
            match (owner, pin.to) {
                (Some(owner), PinTo::Output(parent)) => assert_eq!(plan.name(parent), owner),
                (Some(owner), PinTo::Digest(_)) => {
                    // The only exception: a base that does not count and stands on the task itself.
                    assert!(!counted, "{name} waits for {owner}");
                    assert!(owner == name || model.stands_on(owner, name, false));
                }
                (None, PinTo::Output(_)) => panic!("{name} waits for what is not built"),
                (None, PinTo::Digest(to)) => {
                    let known = model.now.get(&base);
                    let to = plan.digest(to);
                    assert!(
                        known.is_none_or(|known| *known == to),
                        "{base} is pinned to {to}"
                    );
                }
            }
        }
        assert!(reasons > 0, "{name} has a reason");
    }
    for refused in plan.refused() {
        for task in refused.tasks() {
            let looped = model.rebuilds_itself(task);
            assert!(
                looped || model.contested().contains(task.as_str()),
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
                assert_eq!(model.owner(&step.image.parse().unwrap()), Some(&*step.task));
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
        "the order of facts is of no matter"
    );
    let view = plan.view(3);
    let text = serde_json::to_string(&view).unwrap();
    let read: show::PlanView = serde_json::from_str(&text).unwrap();
    assert_eq!(read, view, "JSON says all of it");
    let tree = show::tree(&read);
    for name in names {
        let lines = tree.lines().filter(|line| {
            let task = line.split_once("─ ").map(|(_, rest)| rest);
            task.is_some_and(|task| task == name || task.starts_with(&format!("{name} ")))
        });
        assert_eq!(lines.count(), 1, "{name} is once in\n{tree}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_is_what_the_obvious_model_says((facts, changes, held) in drawn(), everything: bool) {
        check(&facts, &changes, &PlanOptions { everything, held, ..PlanOptions::default() });
    }
}

#[test]
fn a_long_chain_needs_no_deep_stack() {
    let count = 50_000;
    let mut tasks: Vec<TaskFacts> = (0..count)
        .map(|index| TaskFacts {
            name: format!("t{index:06}"),
            policy: Policy::Runtime,
            images: vec![TagFacts {
                image: own(index, 0),
                digest: digest(1),
            }],
            bases: vec![BaseFacts {
                image: if index == 0 {
                    base(0)
                } else {
                    own(index - 1, 0)
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

    // The same as one loop.
    tasks[0].bases.push(BaseFacts {
        image: own(count - 1, 0),
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
