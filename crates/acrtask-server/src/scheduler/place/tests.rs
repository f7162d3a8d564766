//! Placement, alone and in a simulated control plane.

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

fn class(id: i64, pool: &str, platform: &str, wanted: &[(&str, &str)]) -> Class {
    Class {
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

fn candidate(number: usize, class: i64, warm_key: &str) -> Candidate {
    Candidate {
        id: RunId::new(format!("r{number}")).unwrap(),
        class,
        task: None,
        warm_key: warm_key.into(),
        order_key: i64::try_from(number).unwrap(),
    }
}

#[test]
fn what_a_runner_lacks_is_told() {
    let runner = profile("default", &["linux/amd64"], &[("gpu", "no"), ("zone", "a")]);
    let lack = |class: Class| runner.lacks(&class).map(|lack| lack.to_string());
    assert_eq!(lack(class(1, "default", "", &[])), None);
    assert_eq!(
        lack(class(1, "default", "linux/amd64", &[("zone", "a")])),
        None
    );
    assert_eq!(
        lack(class(1, "big", "linux/arm64", &[])).as_deref(),
        Some("pool is default")
    );
    assert_eq!(
        lack(class(1, "default", "linux/arm64", &[])).as_deref(),
        Some("is linux/amd64")
    );
    assert_eq!(
        lack(class(1, "default", "", &[("gpu", "yes"), ("zone", "a")])).as_deref(),
        Some("lacks the label gpu=yes")
    );
}

#[test]
fn the_same_task_meets_the_same_runner_while_that_is_free() {
    let one = profile("default", &[], &[]);
    let classes = [class(1, "default", "", &[])];
    let runners = |free: &dyn Fn(&str) -> u32| -> Vec<FreeRunner> {
        (0..50)
            .map(|n| format!("n{n}"))
            .map(|id| runner(&id, &one, free(&id)))
            .filter(|runner| runner.free > 0)
            .collect()
    };
    let place = |free: &dyn Fn(&str) -> u32, key: &str| -> String {
        let board = Board::new(runners(free), &classes);
        board.place(&[candidate(1, 1, key)])[0].runner_id.clone()
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
    // One runner is busy: only its own keys go elsewhere, and none of them waits.
    let busy = warm[&keys[0]].clone();
    for key in &keys {
        let now = place(&|id| u32::from(id != busy), key);
        assert_eq!(now == warm[key], warm[key] != busy, "{key}");
    }
}

#[test]
fn runs_without_a_key_go_where_most_slots_are_free() {
    let one = profile("default", &[], &[]);
    let board = Board::new(
        vec![runner("a", &one, 1), runner("b", &one, 3)],
        &[class(1, "default", "", &[])],
    );
    assert_eq!(board.slots(), 4);
    let candidates: Vec<Candidate> = (0..5).map(|n| candidate(n, 1, "")).collect();
    let claims = board.place(&candidates);
    let to: Vec<&str> = claims.iter().map(|c| c.runner_id.as_str()).collect();
    assert_eq!(to, ["b", "b", "a", "b"]);
}

#[test]
fn slots_of_runners_that_may_take_nothing_do_not_count() {
    let board = Board::new(
        vec![
            runner("a", &profile("default", &[], &[]), 1),
            runner("b", &profile("other", &[], &[]), 7),
        ],
        &[
            class(1, "default", "", &[]),
            class(2, "default", "linux/arm64", &[]),
        ],
    );
    assert_eq!(
        (board.slots(), board.classes()),
        (1, vec![Claimable::from(1)])
    );
}

/// Pools, platforms and labels, each of which some have and some want.
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

fn classes() -> [Class; 5] {
    [
        class(0, "default", "", &[]),
        class(1, "default", "linux/amd64", &[]),
        class(2, "default", "linux/arm64", &[("big", "yes")]),
        class(3, "other", "", &[("big", "yes")]),
        class(4, "nowhere", "", &[]),
    ]
}

proptest! {
    #[test]
    fn placement_is_right_whatever_is_asked(
        runners in prop::collection::vec((0usize..4, 1u32..4), 0..12),
        wanted in prop::collection::vec((0i64..5, 0u8..4), 0..60),
    ) {
        let profiles = profiles();
        let classes = classes();
        let runners: Vec<FreeRunner> = runners
            .iter()
            .enumerate()
            .map(|(n, (kind, free))| runner(&format!("n{n}"), &profiles[*kind], *free))
            .collect();
        let candidates: Vec<Candidate> = wanted
            .iter()
            .enumerate()
            .map(|(n, (class, key))| {
                let key = if *key == 0 { String::new() } else { format!("task-{key}") };
                candidate(n, *class, &key)
            })
            .collect();
        let claims = Board::new(runners.clone(), &classes).place(&candidates);
        let mut left: HashMap<&str, u32> = runners.iter().map(|r| (r.id.as_str(), r.free)).collect();
        let mut claims = claims.iter().peekable();
        for candidate in &candidates {
            let class = &classes[usize::try_from(candidate.class).unwrap()];
            let mut may = runners.iter().filter(|runner| runner.profile.suits(class));
            // Claims are in the order of the queue, so the next one is this run's or none is.
            if claims.peek().is_some_and(|claim| claim.run == candidate.id) {
                let claim = claims.next().unwrap();
                prop_assert!(may.any(|runner| runner.id == claim.runner_id));
                let slots = left.get_mut(claim.runner_id.as_str()).unwrap();
                prop_assert!(*slots > 0, "{} has no slot", claim.runner_id);
                *slots -= 1;
            } else {
                prop_assert!(may.all(|runner| left[runner.id.as_str()] == 0), "{:?} waits for nothing", candidate);
            }
        }
        prop_assert!(claims.next().is_none(), "a run was placed twice, or was never asked for");
    }
}

#[derive(Debug, Clone)]
struct Run {
    class: i64,
    priority: i64,
    created: i64,
    takes: i64,
    warm_key: String,
}

impl Run {
    fn order_key(&self) -> i64 {
        self.created - self.priority * PRIORITY_MS
    }
}

fn runs() -> impl Strategy<Value = Vec<Run>> {
    let run = (0i64..4, -1i64..=2, 0i64..3_000_000, 1i64..400_000, 0u8..5);
    let run = run.prop_map(|(class, priority, created, takes, key)| Run {
        class,
        priority,
        created,
        takes,
        warm_key: if key == 0 {
            String::new()
        } else {
            format!("task-{key}")
        },
    });
    prop::collection::vec(run, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// A control plane whose clock stands still until something happens: runs come, are placed, take their time and end.
    #[test]
    fn nothing_starves_and_first_come_is_first_served(mut runs in runs(), slots in prop::collection::vec(1u32..3, 4)) {
        runs.sort_by_key(|run| run.created);
        let (profiles, classes) = (profiles(), classes());
        let ids: Vec<String> = (0..4).map(|n| format!("n{n}")).collect();
        let mut busy: Vec<Vec<(i64, usize)>> = vec![Vec::new(); 4];
        let mut queue: BTreeSet<(i64, usize)> = BTreeSet::new();
        let mut started: BTreeMap<usize, i64> = BTreeMap::new();
        let mut order: Vec<usize> = Vec::new();
        let mut next = 0;
        while started.len() < runs.len() || busy.iter().any(|held| !held.is_empty()) {
            let ends = busy.iter().flatten().map(|(end, _)| *end).min();
            let comes = runs.get(next).map(|run| run.created);
            let now = ends.into_iter().chain(comes).min();
            let Some(now) = now else {
                prop_assert!(false, "{} runs starve", queue.len());
                unreachable!()
            };
            for held in &mut busy {
                held.retain(|(end, _)| *end > now);
            }
            while runs.get(next).is_some_and(|run| run.created <= now) {
                queue.insert((runs[next].order_key(), next));
                next += 1;
            }
            // What the scheduler does: batches until nothing more can be placed.
            loop {
                let free: Vec<FreeRunner> = (0..4)
                    .filter_map(|n| {
                        let free = slots[n] - u32::try_from(busy[n].len()).unwrap();
                        (free > 0).then(|| runner(&ids[n], &profiles[n], free))
                    })
                    .collect();
                let ready: Vec<Class> = classes
                    .iter()
                    .filter(|class| queue.iter().any(|(_, n)| runs[*n].class == class.id))
                    .cloned()
                    .collect();
                let board = Board::new(free, &ready);
                let (asked, limit) = (board.classes(), board.slots().min(3));
                let batch: Vec<Candidate> = queue
                    .iter()
                    .filter(|(_, n)| asked.contains(&Claimable::from(runs[*n].class)))
                    .take(limit as usize)
                    .map(|(_, n)| candidate(*n, runs[*n].class, &runs[*n].warm_key))
                    .collect();
                let claims = board.place(&batch);
                if claims.is_empty() {
                    // Nothing is left that a free slot could take.
                    prop_assert!(batch.is_empty());
                    break;
                }
                for claim in claims {
                    let n: usize = claim.run.as_str()[1..].parse().unwrap();
                    let at = ids.iter().position(|id| *id == claim.runner_id).unwrap();
                    prop_assert!(queue.remove(&(runs[n].order_key(), n)));
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
                if first.class != second.class {
                    continue;
                }
                if first.order_key() <= second.order_key() {
                    prop_assert!(place[&a] < place[&b], "{first:?} came before {second:?}");
                }
                // Ten minutes make up for each level of priority, so that nobody is overtaken for ever.
                let levels = second.priority - first.priority;
                if second.created - first.created >= levels.max(0) * PRIORITY_MS {
                    prop_assert!(started[&a] <= started[&b]);
                }
            }
        }
    }
}
