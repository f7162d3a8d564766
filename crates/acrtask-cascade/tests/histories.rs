//! Property test over ten thousand random histories.
//!
//! Bases move, runs succeed or fail, users interfere, events are repeated or lost, and the process
//! restarts between any two of them. After each step the started runs are compared with a slow and
//! simple model. At the end every task is fresh or has a reason to be stale.
//!
//! A failed history prints its seed. `ACRTASK_SEED=N` runs that history alone.

// Long because: a history is one state, and one file compares all of its events with the model.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "helpers of tests, outside of a #[test]"
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use acrtask_cascade::{
    Cascades, Graph,
    cascade::{
        Action, AttemptEnd, BlockedCause, CascadeId, End, Event, Key, NodeState, Phase,
        Reconciliation, Settings, Start,
    },
};
use acrtask_model::{Digest, ImageRef};
use common::{Model, Random, TestFleet, digest};
use jiff::{SignedDuration, Timestamp};

struct History {
    random: Random,
    fleet: TestFleet,
    all: Cascades,
    settings: Settings,
    now: Timestamp,
    running: BTreeMap<String, Start>,
    /// Facts and result of the last reconciliation.
    seen: TestFleet,
    result: Reconciliation,
    /// Last start of each task: key, key of the previously used digests, and cascade.
    last: BTreeMap<String, (Key, Key, CascadeId)>,
    /// Time of the last failure of each task.
    failed: BTreeMap<String, Timestamp>,
    /// Tasks whose repeated run for the same digests is allowed until their next start.
    forgiven: BTreeSet<String>,
    /// `true` if users cancel nothing and no run fails.
    calm: bool,
    starts: usize,
    versions: BTreeMap<ImageRef, u64>,
    /// Log of the events, if one history runs alone.
    trace: Option<Vec<String>>,
}

impl History {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        for _ in 0..8 {
            random.below(2);
        }
        let fleet = common::random_fleet(&mut random);
        let settings = Settings {
            settle_secs: if random.chance(50) { 30 } else { 0 },
            parallel: 1 + u32::try_from(random.below(4)).unwrap(),
            parallel_total: random.chance(30).then_some(2),
            retries: u32::try_from(random.below(2)).unwrap(),
            max_deferrals: [0, 1, 3, 9][random.below(4)],
            retry_failed_after_secs: if random.chance(30) { 500 } else { 0 },
            ..Settings::default()
        };
        Self {
            seen: fleet.clone(),
            fleet,
            all: Cascades::default(),
            settings,
            now: "2026-11-25T12:00:00Z".parse().unwrap(),
            running: BTreeMap::new(),
            result: Reconciliation::default(),
            last: BTreeMap::new(),
            failed: BTreeMap::new(),
            forgiven: BTreeSet::new(),
            calm: random.chance(40),
            starts: 0,
            versions: BTreeMap::new(),
            trace: None,
            random,
        }
    }

    fn run(&mut self) {
        // One history in four is long.
        let most = if self.random.chance(25) { 24 } else { 8 };
        for _ in 0..4 + self.random.below(most) {
            self.random_event();
            if self.random.chance(75) {
                self.reconcile();
            }
        }
        self.settle();
    }

    fn random_event(&mut self) {
        match self.random.below(20) {
            0..6 => self.move_base(),
            6..13 => self.end_random_run(),
            13..16 => {
                let wait = [1, 31, 61, 600][self.random.below(4)];
                self.advance_clock(wait);
                self.step(Event::Tick);
            }
            16 => self.build_by_hand(),
            17 => self.restart(),
            _ => self.interfere(),
        }
    }

    fn log(&mut self, text: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(text());
        }
    }

    fn advance_clock(&mut self, seconds: i64) {
        self.now = self
            .now
            .checked_add(SignedDuration::from_secs(seconds))
            .unwrap();
    }

    fn move_base(&mut self) {
        let bases: Vec<ImageRef> = self
            .fleet
            .tags
            .keys()
            .filter(|image| image.registry() == "docker.io")
            .cloned()
            .collect();
        let base = self.random.pick(&bases).unwrap();
        let version = self.versions.entry(base.clone()).or_insert(1);
        // Sometimes a tag moves back.
        *version = if self.random.chance(15) {
            1
        } else {
            *version + 1
        };
        let version = *version;
        self.fleet.tags.insert(base.clone(), digest(version));
        self.log(|| format!("{base} moves to {version}"));
    }

    fn end_random_run(&mut self) {
        let running: Vec<String> = self.running.keys().cloned().collect();
        let Some(task) = self.random.pick(&running) else {
            return;
        };
        let start = self.running.remove(&task).unwrap();
        let superseded = self.random.chance(10);
        let end = if superseded {
            // The other run is not reported. The task starts again unless that run built it.
            self.forgiven.insert(task.clone());
            if self.random.chance(50) {
                let pins = self.fleet.bases_now(&task);
                self.fleet.build(&task, &pins);
                self.last.remove(&task);
                self.log(|| format!("{task} is built by another run"));
            }
            End::Superseded
        } else if self.calm || self.random.chance(75) {
            End::Succeeded {
                digests: self.fleet.build(&task, &start.pins),
            }
        } else {
            self.failed.insert(task.clone(), self.now);
            End::Failed {
                reason: "exit code 1".into(),
            }
        };
        let event = Event::Ended {
            cascade: start.cascade,
            task: task.clone(),
            attempt: start.attempt,
            end,
        };
        let node = &self.all.get(start.cascade).unwrap().nodes[&task];
        if node.failures < self.settings.retries && !node.outdated {
            // A retry is allowed, here or in another cascade.
            self.forgiven.insert(task);
        }
        self.step(event.clone());
        if superseded {
            // The result of the other run is recorded before anything else happens.
            self.reconcile();
        }
        if self.random.chance(20) {
            let before = self.all.clone();
            self.all.step(event, &self.settings, self.now).unwrap();
            assert!(before == self.all, "a repeated event changed the state");
        }
    }

    /// Simulates a commit: a run of a task outside of any cascade.
    fn build_by_hand(&mut self) {
        let idle: Vec<String> = self
            .fleet
            .tasks
            .keys()
            .filter(|task| !self.running.contains_key(*task))
            .cloned()
            .collect();
        if let Some(task) = self.random.pick(&idle) {
            let pins = self.fleet.bases_now(&task);
            self.fleet.build(&task, &pins);
            // The last start of the task is obsolete.
            self.last.remove(&task);
            self.log(|| format!("{task} is built by hand"));
            self.reconcile();
        }
    }

    /// Simulates a crash and a restart from the stored state.
    fn restart(&mut self) {
        let text = serde_json::to_string(&self.all).unwrap();
        let again: Cascades = serde_json::from_str(&text).unwrap();
        assert!(again == self.all, "the stored state is incomplete");
        let running = again.running(&self.settings);
        let expected: Vec<Start> = self.running.values().cloned().collect();
        let by = |start: &Start| {
            (
                start.task.clone(),
                start.cascade,
                start.attempt,
                start.key.clone(),
            )
        };
        let sorted = |starts: &[Start]| -> BTreeSet<_> { starts.iter().map(by).collect() };
        assert_eq!(
            sorted(&running),
            sorted(&expected),
            "the running tasks differ"
        );
        self.all = again;
    }

    fn interfere(&mut self) {
        let ids: Vec<CascadeId> = self.all.iter().map(|cascade| cascade.id).collect();
        let Some(cascade) = self.random.pick(&ids) else {
            return;
        };
        let event = match self.random.below(6) {
            0 => Event::Pause { cascade },
            1 | 2 => Event::Resume { cascade },
            3 if !self.calm => {
                // A rejected result replaces the last attempt.
                let nodes = self.all.get(cascade).unwrap().nodes.keys().cloned();
                self.forgiven.extend(nodes);
                Event::Cancel {
                    cascade,
                    by: "sam".into(),
                }
            }
            4 if !self.calm => {
                let nodes = self.all.get(cascade).unwrap().nodes.keys().cloned();
                self.forgiven.extend(nodes);
                Event::Retry { cascade }
            }
            _ => {
                self.all.prune();
                return;
            }
        };
        let retry = matches!(event, Event::Retry { .. });
        self.step(event);
        if retry {
            self.reconcile();
        }
    }

    fn step(&mut self, event: Event) {
        // A crash between two steps and the same step again give the same result.
        let now = self.now;
        self.log(|| format!("{now} {}", serde_json::to_string(&event).unwrap()));
        let replayed = self.random.chance(25).then(|| self.all.clone());
        let result = self.all.step(event.clone(), &self.settings, self.now);
        if let Some(mut replayed) = replayed {
            assert_eq!(result, replayed.step(event, &self.settings, self.now));
            assert!(replayed == self.all, "a replayed step gave another state");
        }
        self.perform(result.unwrap_or_default());
    }

    fn reconcile(&mut self) {
        let graph = Graph::new(&self.fleet.facts());
        self.seen = self.fleet.clone();
        self.result = self.all.reconcile(&graph, &self.settings, self.now);
        let actions = std::mem::take(&mut self.result.actions);
        let result = self.result.clone();
        self.log(|| format!("reconcile {}", serde_json::to_string(&result).unwrap()));
        self.perform(actions);
        if self.random.chance(25) {
            self.check_idempotence(&graph);
        }
        self.check_states();
    }

    fn check_idempotence(&mut self, graph: &Graph) {
        let before = self.all.clone();
        let again = self.all.reconcile(graph, &self.settings, self.now);
        assert!(
            before == self.all,
            "reconciling the same facts again changed the state"
        );
        assert!(again.created.is_empty() && again.joined.is_empty() && again.dropped.is_empty());
        assert!(
            !again
                .actions
                .iter()
                .any(|action| matches!(action, Action::Start(_)))
        );
    }

    /// Every open task is ready, running or waiting in exactly one cascade.
    fn check_states(&self) {
        let mut waiting = BTreeMap::new();
        for cascade in self.all.iter() {
            let open = cascade.nodes.values().filter(|node| node.state.is_open());
            let over = open.count() == 0;
            assert_eq!(
                over,
                matches!(cascade.phase, Phase::Finished { .. }),
                "{cascade:?}"
            );
            for (task, node) in &cascade.nodes {
                if matches!(node.state, NodeState::Pending | NodeState::Ready { .. }) {
                    let before = waiting.insert(task, cascade.id);
                    assert_eq!(before, None, "{task} waits in two cascades");
                }
            }
        }
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Start(start) => self.start(start),
                Action::Stop {
                    cascade,
                    task,
                    attempt,
                } => {
                    let run = &self.running[&task];
                    assert_eq!((run.cascade, run.attempt), (cascade, attempt));
                    if self.random.chance(60) {
                        self.running.remove(&task);
                        let end = End::Canceled { by: "sam".into() };
                        self.step(Event::Ended {
                            cascade,
                            task,
                            attempt,
                            end,
                        });
                    }
                }
                Action::WakeAt { at } => assert!(at > self.now),
                Action::Finished { cascade } => {
                    assert!(self.all.get(cascade).unwrap().is_finished());
                }
            }
        }
    }

    fn start(&mut self, start: Start) {
        self.starts += 1;
        self.log(|| format!("  {}", serde_json::to_string(&start).unwrap()));
        let name = start.task.clone();
        let facts = self.seen.facts();
        let model = Model::new(&facts, &BTreeMap::new());
        let task = &self.fleet.tasks[&name];
        let bases: BTreeSet<&ImageRef> = task.bases.iter().map(|(image, _)| image).collect();
        assert_eq!(bases, start.pins.keys().collect(), "all bases are pinned");
        assert!(
            task.bases
                .iter()
                .any(|(image, role)| task.policy.counts(*role)
                    && start.pins[image] != task.used[image]),
            "{name} is fresh"
        );
        assert!(
            !model.depends_on(&name, &name, true),
            "{name} rebuilds itself"
        );

        let node = &self.all.get(start.cascade).unwrap().nodes[&name];
        let deferral_exhausted = node.moved >= self.settings.max_deferrals;
        let excused: BTreeSet<&str> = self
            .result
            .blocked
            .iter()
            .map(|blocked| blocked.task.as_str())
            .chain(
                self.result
                    .refused
                    .iter()
                    .flat_map(|refused| refused.tasks())
                    .map(|task| task.as_str()),
            )
            .collect();
        for (image, role) in &task.bases {
            let pin = &start.pins[image];
            if start.attempt > 1 && !task.policy.counts(*role) {
                // A retry may use the digests of the first attempt.
                continue;
            }
            if image.registry() == "docker.io" {
                assert!(
                    deferral_exhausted || *pin == self.seen.tags[image],
                    "{name} is pinned to an old {image}"
                );
                continue;
            }
            let owner = model.owner_of(image).unwrap();
            let dropped = !task.policy.counts(*role) && model.depends_on(owner, &name, false);
            if deferral_exhausted
                || dropped
                || owner == name
                || self.is_deferral_exhausted(&model, owner)
            {
                continue;
            }
            assert!(
                !self.running.contains_key(owner) || excused.contains(owner),
                "{name} does not wait for {owner}"
            );
            assert_eq!(
                *pin, self.fleet.tags[image],
                "{name} is pinned to an old {image}"
            );
            let current = self.fleet.facts();
            let current = Model::new(&current, &self.seen_outer_bases());
            let stale = current.stale_tasks(None, &BTreeSet::new());
            assert!(
                !stale.contains(owner) || excused.contains(owner) || self.was_not_built(owner),
                "{name} started before its base {owner} had settled"
            );
        }
        let used = Key::compute(&name, &task.used);
        if let Some((key, from, cascade)) = self.last.get(&name) {
            let same = *key == start.key && *from == used;
            let retry = *cascade == start.cascade && start.attempt > 1;
            assert!(
                !same || retry || self.forgiven.contains(&name) || self.is_due(&name),
                "{name} runs again for the same digests"
            );
        }
        self.forgiven.remove(&name);
        self.last
            .insert(name.clone(), (start.key.clone(), used, start.cascade));
        let before = self.running.insert(name.clone(), start);
        assert_eq!(before, None, "{name} runs twice");
        if let Some(total) = self.settings.parallel_total {
            assert!(self.running.len() <= total as usize);
        }
    }

    /// Returns `true` if the task's last failure is long enough ago for an automatic retry.
    fn is_due(&self, task: &str) -> bool {
        let heal = SignedDuration::from_secs(self.settings.retry_failed_after_secs.into());
        let failed = self.failed.get(task);
        heal.is_positive() && failed.is_some_and(|at| self.now.duration_since(*at) >= heal)
    }

    /// Returns `true` if the task or a base of it was deferred too often. Everything below may then
    /// use older bases.
    fn is_deferral_exhausted(&self, model: &Model<'_>, task: &str) -> bool {
        self.all.iter().any(|cascade| {
            let mut deferral_exhausted = cascade
                .nodes
                .iter()
                .filter(|(_, node)| node.moved >= self.settings.max_deferrals);
            deferral_exhausted.any(|(name, _)| name == task || model.depends_on(task, name, false))
        })
    }

    fn seen_outer_bases(&self) -> BTreeMap<ImageRef, Digest> {
        let tags = self.seen.tags.iter();
        tags.filter(|(image, _)| image.registry() == "docker.io")
            .map(|(image, digest)| (image.clone(), digest.clone()))
            .collect()
    }

    /// Returns `true` if a cascade did not build the task. A failed uncounted base does not stop
    /// its dependents.
    fn was_not_built(&self, task: &str) -> bool {
        self.all.iter().any(|cascade| {
            let node = cascade.nodes.get(task);
            node.is_some_and(|node| {
                matches!(
                    node.state,
                    NodeState::Failed { .. } | NodeState::Stale { .. } | NodeState::Canceled { .. }
                )
            })
        })
    }

    fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 200, "the history never settles");
            self.reconcile();
            let open: Vec<CascadeId> = self
                .all
                .iter()
                .filter(|cascade| !cascade.is_finished())
                .map(|cascade| cascade.id)
                .collect();
            if open.is_empty() {
                break;
            }
            for cascade in open {
                self.step(Event::Resume { cascade });
            }
            while !self.running.is_empty() {
                self.end_random_run();
            }
            self.advance_clock(61);
            self.step(Event::Tick);
        }
        let facts = self.fleet.facts();
        let model = Model::new(&facts, &BTreeMap::new());
        let stale = model.stale_tasks(None, &BTreeSet::new());
        let blocked: BTreeMap<&str, &BlockedCause> = self
            .result
            .blocked
            .iter()
            .map(|blocked| (blocked.task.as_str(), &blocked.cause))
            .collect();
        assert_eq!(
            stale,
            blocked.keys().copied().collect(),
            "the shown stale tasks differ from the stale ones"
        );
        for cause in blocked.values() {
            if let BlockedCause::Below(parent) = cause {
                assert!(blocked.contains_key(parent.as_str()));
            }
        }
        if self.settings.retry_failed_after_secs > 0 {
            self.advance_clock(24 * 60 * 60);
            self.reconcile();
            for blocked in &self.result.blocked {
                assert_ne!(
                    blocked.cause,
                    BlockedCause::Tried(AttemptEnd::Failed),
                    "{} is forgotten",
                    blocked.task
                );
            }
        }
        if self.calm {
            assert_eq!(
                stale,
                BTreeSet::new(),
                "tasks are stale although nothing failed"
            );
        }
    }
}

fn check_histories(seeds: std::ops::Range<u64>) {
    let one: Option<u64> = std::env::var("ACRTASK_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let mut starts = 0;
    for seed in one.map_or(seeds, |seed| seed..seed + 1) {
        let mut history = History::new(seed);
        history.trace = one.map(|_| Vec::new());
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| history.run()));
        if let Err(panic) = result {
            if one.is_some() {
                for (name, task) in &history.fleet.tasks {
                    eprintln!(
                        "{name} {:?} {:?}",
                        task.policy,
                        task.bases
                            .iter()
                            .map(|(image, role)| format!("{image} {role:?}"))
                            .collect::<Vec<_>>()
                    );
                }
                eprintln!("{:?}", history.settings);
                eprintln!("{}", history.trace.unwrap_or_default().join("\n"));
                eprintln!("{}", serde_json::to_string_pretty(&history.all).unwrap());
            }
            eprintln!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
        starts += history.starts;
    }
    assert!(
        one.is_some() || starts > 3000,
        "the histories build something: {starts}"
    );
}

#[test]
fn first_quarter_of_histories_settles() {
    check_histories(0..2500);
}

#[test]
fn second_quarter_of_histories_settles() {
    check_histories(2500..5000);
}

#[test]
fn third_quarter_of_histories_settles() {
    check_histories(5000..7500);
}

#[test]
fn fourth_quarter_of_histories_settles() {
    check_histories(7500..10_000);
}
