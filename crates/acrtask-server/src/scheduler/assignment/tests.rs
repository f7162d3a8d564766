//! Tests of the assignment, alone and in a simulated control plane.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use acrtask_model::RunId;
use acrtask_store::PRIORITY_MS;
use proptest::prelude::*;

use super::*;

fn labels(text: &[(&str, &str)]) -> BTreeMap<String, String> {
    text.iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn requirement(id: i64, pool: &str, platform: &str, wanted: &[(&str, &str)]) -> RunnerRequirement {
    RunnerRequirement {
        id,
        pool: pool.into(),
        platform: platform.into(),
        labels: labels(wanted),
    }
}

fn profile(pool: &str, platforms: &[&str], has: &[(&str, &str)]) -> Arc<Profile> {
    Arc::new(Profile {
        pool: pool.into(),
        platforms: platforms.iter().map(ToString::to_string).collect(),
        labels: labels(has),
        tasks: TaskLimit::All,
    })
}

fn runner(id: &str, profile: &Arc<Profile>, free: u32) -> FreeRunner {
    FreeRunner {
        id: id.into(),
        seed: rendezvous_seed(id),
        profile: profile.clone(),
        free,
    }
}

fn candidate(number: usize, requirement: i64, affinity_key: &str) -> Candidate {
    Candidate {
        id: RunId::new(format!("r{number}")).unwrap(),
        requirement_id: requirement,
        task: None,
        affinity_key: affinity_key.into(),
        queue_rank: i64::try_from(number).unwrap(),
    }
}

#[test]
fn unmet_requirement_names_the_first_difference() {
    let runner = profile("default", &["linux/amd64"], &[("gpu", "no"), ("zone", "a")]);
    let unmet = |requirement: RunnerRequirement| {
        runner
            .unmet_requirement(&requirement)
            .map(|unmet| unmet.to_string())
    };
    assert_eq!(unmet(requirement(1, "default", "", &[])), None);
    assert_eq!(
        unmet(requirement(1, "default", "linux/amd64", &[("zone", "a")])),
        None
    );
    assert_eq!(
        unmet(requirement(1, "big", "linux/arm64", &[])).as_deref(),
        Some("pool is default")
    );
    assert_eq!(
        unmet(requirement(1, "default", "linux/arm64", &[])).as_deref(),
        Some("is linux/amd64")
    );
    assert_eq!(
        unmet(requirement(
            1,
            "default",
            "",
            &[("gpu", "yes"), ("zone", "a")]
        ))
        .as_deref(),
        Some("lacks the label gpu=yes")
    );
}

#[test]
fn task_gets_its_warm_runner_while_it_is_free() {
    let one = profile("default", &[], &[]);
    let requirements = [requirement(1, "default", "", &[])];
    let runners = |free: &dyn Fn(&str) -> u32| -> Vec<FreeRunner> {
        (0..50)
            .map(|n| format!("n{n}"))
            .map(|id| runner(&id, &one, free(&id)))
            .filter(|runner| runner.free > 0)
            .collect()
    };
    let place = |free: &dyn Fn(&str) -> u32, key: &str| -> String {
        let assignment = Assignment::new(runners(free), &requirements);
        assignment.assign(&[candidate(1, 1, key)])[0]
            .runner_id
            .clone()
    };
    let keys: Vec<String> = (0..200).map(|n| format!("task-{n}")).collect();
    let mut warm = HashMap::new();
    for key in &keys {
        let first = place(&|_| 1, key);
        assert_eq!(place(&|_| 3, key), first);
        warm.insert(key, first);
    }
    let used: HashSet<&String> = warm.values().collect();
    assert!(used.len() > 40, "keys are spread: {}", used.len());
    // One runner is busy. Only its own keys move to other runners, and none of them waits.
    let busy = warm[&keys[0]].clone();
    for key in &keys {
        let now = place(&|id| u32::from(id != busy), key);
        assert_eq!(now == warm[key], warm[key] != busy, "{key}");
    }
}

#[test]
fn run_without_key_gets_the_emptiest_runner() {
    let one = profile("default", &[], &[]);
    let assignment = Assignment::new(
        vec![runner("a", &one, 1), runner("b", &one, 3)],
        &[requirement(1, "default", "", &[])],
    );
    assert_eq!(assignment.free_slots(), 4);
    let candidates: Vec<Candidate> = (0..5).map(|n| candidate(n, 1, "")).collect();
    let claims = assignment.assign(&candidates);
    let to: Vec<&str> = claims.iter().map(|c| c.runner_id.as_str()).collect();
    assert_eq!(to, ["b", "b", "a", "b"]);
}

#[test]
fn slots_of_unmatched_runners_do_not_count() {
    let assignment = Assignment::new(
        vec![
            runner("a", &profile("default", &[], &[]), 1),
            runner("b", &profile("other", &[], &[]), 7),
        ],
        &[
            requirement(1, "default", "", &[]),
            requirement(2, "default", "linux/arm64", &[]),
        ],
    );
    assert_eq!(
        (assignment.free_slots(), assignment.claimable_requirements()),
        (1, vec![Claimable::from(1)])
    );
}

/// Pools, platforms and labels that some profiles have and some runs require.
fn profiles() -> [Arc<Profile>; 4] {
    [
        profile("default", &["linux/amd64"], &[]),
        profile(
            "default",
            &["linux/amd64", "linux/arm64"],
            &[("big", "yes")],
        ),
        profile("default", &["linux/arm64"], &[]),
        profile("other", &["linux/amd64"], &[("big", "yes")]),
    ]
}

fn requirements() -> [RunnerRequirement; 5] {
    [
        requirement(0, "default", "", &[]),
        requirement(1, "default", "linux/amd64", &[]),
        requirement(2, "default", "linux/arm64", &[("big", "yes")]),
        requirement(3, "other", "", &[("big", "yes")]),
        requirement(4, "nowhere", "", &[]),
    ]
}

proptest! {
    #[test]
    fn assignment_respects_requirements_and_order(
        runners in prop::collection::vec((0usize..4, 1u32..4), 0..12),
        wanted in prop::collection::vec((0i64..5, 0u8..4), 0..60),
    ) {
        let profiles = profiles();
        let requirements = requirements();
        let runners: Vec<FreeRunner> = runners
            .iter()
            .enumerate()
            .map(|(n, (kind, free))| runner(&format!("n{n}"), &profiles[*kind], *free))
            .collect();
        let candidates: Vec<Candidate> = wanted
            .iter()
            .enumerate()
            .map(|(n, (requirement, key))| {
                let key = if *key == 0 { String::new() } else { format!("task-{key}") };
                candidate(n, *requirement, &key)
            })
            .collect();
        let claims = Assignment::new(runners.clone(), &requirements).assign(&candidates);
        let mut left: HashMap<&str, u32> = runners.iter().map(|r| (r.id.as_str(), r.free)).collect();
        let mut claims = claims.iter().peekable();
        for candidate in &candidates {
            let requirement = &requirements[usize::try_from(candidate.requirement_id).unwrap()];
            let mut may = runners.iter().filter(|runner| runner.profile.matches(requirement));
            // Claims are in the order of the queue. The next claim is for this run, or this run has
            // none.
            if claims.peek().is_some_and(|claim| claim.run == candidate.id) {
                let claim = claims.next().unwrap();
                prop_assert!(may.any(|runner| runner.id == claim.runner_id));
                let slots = left.get_mut(claim.runner_id.as_str()).unwrap();
                prop_assert!(*slots > 0, "{} has no slot", claim.runner_id);
                *slots -= 1;
            } else {
                prop_assert!(may.all(|runner| left[runner.id.as_str()] == 0), "{:?} waits although a slot is free", candidate);
            }
        }
        prop_assert!(claims.next().is_none(), "a run was placed twice, or was never asked for");
    }
}

#[derive(Debug, Clone)]
struct Run {
    requirement: i64,
    priority: i64,
    created: i64,
    takes: i64,
    affinity_key: String,
}

impl Run {
    fn queue_rank(&self) -> i64 {
        self.created - self.priority * PRIORITY_MS
    }
}

fn runs() -> impl Strategy<Value = Vec<Run>> {
    let run = (0i64..4, -1i64..=2, 0i64..3_000_000, 1i64..400_000, 0u8..5);
    let run = run.prop_map(|(requirement, priority, created, takes, key)| Run {
        requirement,
        priority,
        created,
        takes,
        affinity_key: if key == 0 {
            String::new()
        } else {
            format!("task-{key}")
        },
    });
    prop::collection::vec(run, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Simulated control plane with a virtual clock: runs arrive, are assigned, run and end.
    #[test]
    fn no_run_starves_and_order_is_kept(mut runs in runs(), slots in prop::collection::vec(1u32..3, 4)) {
        runs.sort_by_key(|run| run.created);
        let (profiles, requirements) = (profiles(), requirements());
        let ids: Vec<String> = (0..4).map(|n| format!("n{n}")).collect();
        let mut busy: Vec<Vec<(i64, usize)>> = vec![Vec::new(); 4];
        let mut queue: BTreeSet<(i64, usize)> = BTreeSet::new();
        let mut started: BTreeMap<usize, i64> = BTreeMap::new();
        let mut order: Vec<usize> = Vec::new();
        let mut next = 0;
        while started.len() < runs.len() || busy.iter().any(|occupied| !occupied.is_empty()) {
            let ends = busy.iter().flatten().map(|(end, _)| *end).min();
            let arrival = runs.get(next).map(|run| run.created);
            let now = ends.into_iter().chain(arrival).min();
            let Some(now) = now else {
                prop_assert!(false, "{} runs starve", queue.len());
                unreachable!()
            };
            for occupied in &mut busy {
                occupied.retain(|(end, _)| *end > now);
            }
            while runs.get(next).is_some_and(|run| run.created <= now) {
                queue.insert((runs[next].queue_rank(), next));
                next += 1;
            }
            // Batches until nothing more can be assigned, as the scheduler does.
            loop {
                let free: Vec<FreeRunner> = (0..4)
                    .filter_map(|n| {
                        let free = slots[n] - u32::try_from(busy[n].len()).unwrap();
                        (free > 0).then(|| runner(&ids[n], &profiles[n], free))
                    })
                    .collect();
                let ready: Vec<RunnerRequirement> = requirements
                    .iter()
                    .filter(|requirement| queue.iter().any(|(_, n)| runs[*n].requirement == requirement.id))
                    .cloned()
                    .collect();
                let assignment = Assignment::new(free, &ready);
                let (asked, limit) = (assignment.claimable_requirements(), assignment.free_slots().min(3));
                let batch: Vec<Candidate> = queue
                    .iter()
                    .filter(|(_, n)| asked.contains(&Claimable::from(runs[*n].requirement)))
                    .take(limit as usize)
                    .map(|(_, n)| candidate(*n, runs[*n].requirement, &runs[*n].affinity_key))
                    .collect();
                let claims = assignment.assign(&batch);
                if claims.is_empty() {
                    // No remaining run fits a free slot.
                    prop_assert!(batch.is_empty());
                    break;
                }
                for claim in claims {
                    let n: usize = claim.run.as_str()[1..].parse().unwrap();
                    let at = ids.iter().position(|id| *id == claim.runner_id).unwrap();
                    prop_assert!(queue.remove(&(runs[n].queue_rank(), n)));
                    busy[at].push((now + runs[n].takes, n));
                    prop_assert!(busy[at].len() <= slots[at] as usize);
                    started.insert(n, now);
                    order.push(n);
                }
            }
        }
        let place: HashMap<usize, usize> = order.iter().enumerate().map(|(at, n)| (*n, at)).collect();
        for (a, first) in runs.iter().enumerate() {
            for (b, second) in runs.iter().enumerate().skip(a + 1) {
                if first.requirement != second.requirement {
                    continue;
                }
                if first.queue_rank() <= second.queue_rank() {
                    prop_assert!(place[&a] < place[&b], "{first:?} came before {second:?}");
                }
                // Ten minutes of waiting outweigh one level of priority, so no run is overtaken
                // forever.
                let levels = second.priority - first.priority;
                if second.created - first.created >= levels.max(0) * PRIORITY_MS {
                    prop_assert!(started[&a] <= started[&b]);
                }
            }
        }
    }
}
