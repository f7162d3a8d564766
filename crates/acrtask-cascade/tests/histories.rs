//! Ten thousand random histories: bases move, builds end well or badly, people interfere, events come twice or not
//! at all, and the process dies between any two of them. After each step what was started is compared with what the
//! slow and obvious model allows; at the end everything is fresh, or has a reason to be shown.
//!
//! A history that fails names its seed; `ACRTASK_SEED=N` runs that one alone.

// Long because: a history is one state, and all that happens to it is held against the model in one place.

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
        Action, AttemptEnd, BlockedBecause, CascadeId, End, Event, Key, NodeState, Phase,
        Reconciled, Settings, Start,
    },
};
use acrtask_model::{Digest, ImageRef};
use common::{Model, Random, World, digest};
use jiff::{SignedDuration, Timestamp};

struct History {
    random: Random,
    world: World,
    all: Cascades,
    settings: Settings,
    now: Timestamp,
    running: BTreeMap<String, Start>,
    /// The facts that the last reconciliation saw, and what it said.
    seen: World,
    said: Reconciled,
    /// What each task was last started for: key, what it stood on, cascade.
    last: BTreeMap<String, (Key, Key, CascadeId)>,
    /// When each task last failed.
    failed: BTreeMap<String, Timestamp>,
    /// Asked for by somebody since its last start.
    forgiven: BTreeSet<String>,
    /// Nobody cancels and nothing fails.
    calm: bool,
    starts: usize,
    versions: BTreeMap<ImageRef, u64>,
    /// What happened, where one history is run alone.
    trace: Option<Vec<String>>,
}

impl History {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        for _ in 0..8 {
            random.below(2);
        }
        let world = common::random_world(&mut random);
        let settings = Settings {
            settle_secs: if random.percent(50) { 30 } else { 0 },
            parallel: 1 + u32::try_from(random.below(4)).unwrap(),
            parallel_total: random.percent(30).then_some(2),
            retries: u32::try_from(random.below(2)).unwrap(),
            patience: [0, 1, 3, 9][random.below(4)],
            heal_secs: if random.percent(30) { 500 } else { 0 },
            ..Settings::default()
        };
        Self {
            seen: world.clone(),
            world,
            all: Cascades::default(),
            settings,
            now: "2026-11-25T12:00:00Z".parse().unwrap(),
            running: BTreeMap::new(),
            said: Reconciled::default(),
            last: BTreeMap::new(),
            failed: BTreeMap::new(),
            forgiven: BTreeSet::new(),
            calm: random.percent(40),
            starts: 0,
            versions: BTreeMap::new(),
            trace: None,
            random,
        }
    }

    fn run(&mut self) {
        // One in four is long.
        let most = if self.random.percent(25) { 24 } else { 8 };
        for _ in 0..4 + self.random.below(most) {
            self.event();
            if self.random.percent(75) {
                self.reconcile();
            }
        }
        self.come_to_rest();
    }

    fn event(&mut self) {
        match self.random.below(20) {
            0..6 => self.move_base(),
            6..13 => self.end_a_run(),
            13..16 => {
                let wait = [1, 31, 61, 600][self.random.below(4)];
                self.pass(wait);
                self.step(Event::Tick);
            }
            16 => self.build_by_hand(),
            17 => self.die(),
            _ => self.interfere(),
        }
    }

    fn tell(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(what());
        }
    }

    fn pass(&mut self, seconds: i64) {
        self.now = self
            .now
            .checked_add(SignedDuration::from_secs(seconds))
            .unwrap();
    }

    fn move_base(&mut self) {
        let bases: Vec<ImageRef> = self
            .world
            .tags
            .keys()
            .filter(|image| image.registry() == "docker.io")
            .cloned()
            .collect();
        let base = self.random.pick(&bases).unwrap();
        let version = self.versions.entry(base.clone()).or_insert(1);
        // Now and then a tag moves back.
        *version = if self.random.percent(15) {
            1
        } else {
            *version + 1
        };
        let version = *version;
        self.world.tags.insert(base.clone(), digest(version));
        self.tell(|| format!("{base} moves to {version}"));
    }

    fn end_a_run(&mut self) {
        let running: Vec<String> = self.running.keys().cloned().collect();
        let Some(task) = self.random.pick(&running) else {
            return;
        };
        let start = self.running.remove(&task).unwrap();
        let superseded = self.random.percent(10);
        let end = if superseded {
            // Nobody knows of which: it is started again unless the other one has built it.
            self.forgiven.insert(task.clone());
            if self.random.percent(50) {
                let pins = self.world.bases_now(&task);
                self.world.build(&task, &pins);
                self.last.remove(&task);
                self.tell(|| format!("{task} is built by another run"));
            }
            End::Superseded
        } else if self.calm || self.random.percent(75) {
            End::Succeeded {
                digests: self.world.build(&task, &start.pins),
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
            // It may be tried once more, here or in another cascade.
            self.forgiven.insert(task);
        }
        self.step(event.clone());
        if superseded {
            // What the other one has built is known before anything else happens.
            self.reconcile();
        }
        if self.random.percent(20) {
            let before = self.all.clone();
            self.all.step(event, &self.settings, self.now).unwrap();
            assert!(before == self.all, "told twice");
        }
    }

    /// A commit: a run of a task that no cascade started.
    fn build_by_hand(&mut self) {
        let idle: Vec<String> = self
            .world
            .tasks
            .keys()
            .filter(|task| !self.running.contains_key(*task))
            .cloned()
            .collect();
        if let Some(task) = self.random.pick(&idle) {
            let pins = self.world.bases_now(&task);
            self.world.build(&task, &pins);
            // What it was last started for counts no more.
            self.last.remove(&task);
            self.tell(|| format!("{task} is built by hand"));
            self.reconcile();
        }
    }

    /// The process dies and another one goes on from what was stored.
    fn die(&mut self) {
        let text = serde_json::to_string(&self.all).unwrap();
        let again: Cascades = serde_json::from_str(&text).unwrap();
        assert!(again == self.all, "what is stored is all");
        let running = again.running(&self.settings);
        let known: Vec<Start> = self.running.values().cloned().collect();
        let by = |start: &Start| {
            (
                start.task.clone(),
                start.cascade,
                start.attempt,
                start.key.clone(),
            )
        };
        let sorted = |starts: &[Start]| -> BTreeSet<_> { starts.iter().map(by).collect() };
        assert_eq!(sorted(&running), sorted(&known), "what has to be running");
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
                // What somebody declined is remembered in the place of what was tried before.
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
        // Dying between the two and doing the same again gives the same.
        let now = self.now;
        self.tell(|| format!("{now} {}", serde_json::to_string(&event).unwrap()));
        let replayed = self.random.percent(25).then(|| self.all.clone());
        let result = self.all.step(event.clone(), &self.settings, self.now);
        if let Some(mut replayed) = replayed {
            assert_eq!(result, replayed.step(event, &self.settings, self.now));
            assert!(replayed == self.all, "the same again");
        }
        self.obey(result.unwrap_or_default());
    }

    fn reconcile(&mut self) {
        let graph = Graph::new(&self.world.facts());
        self.seen = self.world.clone();
        self.said = self.all.reconcile(&graph, &self.settings, self.now);
        let actions = std::mem::take(&mut self.said.actions);
        let said = self.said.clone();
        self.tell(|| format!("reconcile {}", serde_json::to_string(&said).unwrap()));
        self.obey(actions);
        if self.random.percent(25) {
            self.check_again(&graph);
        }
        self.check_states();
    }

    fn check_again(&mut self, graph: &Graph) {
        let before = self.all.clone();
        let again = self.all.reconcile(graph, &self.settings, self.now);
        assert!(before == self.all, "the same facts again change something");
        assert!(again.created.is_empty() && again.joined.is_empty() && again.dropped.is_empty());
        assert!(
            !again
                .actions
                .iter()
                .any(|action| matches!(action, Action::Start(_)))
        );
    }

    /// Each open task that is not started has a way to be.
    fn check_states(&self) {
        let mut waiting = BTreeMap::new();
        for cascade in self.all.iter() {
            let open = cascade.nodes.values().filter(|node| node.state.is_open());
            let over = open.count() == 0;
            assert_eq!(
                over,
                matches!(cascade.phase, Phase::Over { .. }),
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

    fn obey(&mut self, actions: Vec<Action>) {
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
                    if self.random.percent(60) {
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
                    assert!(self.all.get(cascade).unwrap().is_over());
                }
            }
        }
    }

    fn start(&mut self, start: Start) {
        self.starts += 1;
        self.tell(|| format!("  {}", serde_json::to_string(&start).unwrap()));
        let name = start.task.clone();
        let facts = self.seen.facts();
        let model = Model::new(&facts, &BTreeMap::new());
        let task = &self.world.tasks[&name];
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
            !model.stands_on(&name, &name, true),
            "{name} rebuilds itself"
        );

        let node = &self.all.get(start.cascade).unwrap().nodes[&name];
        let tired = node.moved >= self.settings.patience;
        let excused: BTreeSet<&str> = self
            .said
            .blocked
            .iter()
            .map(|blocked| blocked.task.as_str())
            .chain(
                self.said
                    .refused
                    .iter()
                    .flat_map(|refused| refused.tasks())
                    .map(|task| task.as_str()),
            )
            .collect();
        for (image, role) in &task.bases {
            let pin = &start.pins[image];
            if start.attempt > 1 && !task.policy.counts(*role) {
                // Another try may use what the first one used.
                continue;
            }
            if image.registry() == "docker.io" {
                assert!(
                    tired || *pin == self.seen.tags[image],
                    "{name} is pinned to an old {image}"
                );
                continue;
            }
            let owner = model.owner(image).unwrap();
            let dropped = !task.policy.counts(*role) && model.stands_on(owner, &name, false);
            if tired || dropped || owner == name || self.is_tired(&model, owner) {
                continue;
            }
            assert!(
                !self.running.contains_key(owner) || excused.contains(owner),
                "{name} does not wait for {owner}"
            );
            assert_eq!(
                *pin, self.world.tags[image],
                "{name} is pinned to an old {image}"
            );
            let current = self.world.facts();
            let current = Model::new(&current, &self.seen_outer());
            let stale = current.stale(None, &BTreeSet::new());
            assert!(
                !stale.contains(owner) || excused.contains(owner) || self.failed_since(owner),
                "{name} is started before its base {owner} has come to rest"
            );
        }
        let used = Key::of(&name, &task.used);
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

    /// It failed long enough ago.
    fn is_due(&self, task: &str) -> bool {
        let heal = SignedDuration::from_secs(self.settings.heal_secs.into());
        let failed = self.failed.get(task);
        heal.is_positive() && failed.is_some_and(|at| self.now.duration_since(*at) >= heal)
    }

    /// Below a task that had been moved often enough, everything may stand on older bases for once.
    fn is_tired(&self, model: &Model<'_>, task: &str) -> bool {
        self.all.iter().any(|cascade| {
            let mut tired = cascade
                .nodes
                .iter()
                .filter(|(_, node)| node.moved >= self.settings.patience);
            tired.any(|(name, _)| name == task || model.stands_on(task, name, false))
        })
    }

    fn seen_outer(&self) -> BTreeMap<ImageRef, Digest> {
        let tags = self.seen.tags.iter();
        tags.filter(|(image, _)| image.registry() == "docker.io")
            .map(|(image, digest)| (image.clone(), digest.clone()))
            .collect()
    }

    /// A base that does not count is waited for, but its failure stops nobody.
    fn failed_since(&self, task: &str) -> bool {
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

    fn come_to_rest(&mut self) {
        for round in 0.. {
            assert!(round < 200, "it never comes to rest");
            self.reconcile();
            let open: Vec<CascadeId> = self
                .all
                .iter()
                .filter(|cascade| !cascade.is_over())
                .map(|cascade| cascade.id)
                .collect();
            if open.is_empty() {
                break;
            }
            for cascade in open {
                self.step(Event::Resume { cascade });
            }
            while !self.running.is_empty() {
                self.end_a_run();
            }
            self.pass(61);
            self.step(Event::Tick);
        }
        let facts = self.world.facts();
        let model = Model::new(&facts, &BTreeMap::new());
        let stale = model.stale(None, &BTreeSet::new());
        let blocked: BTreeMap<&str, &BlockedBecause> = self
            .said
            .blocked
            .iter()
            .map(|blocked| (blocked.task.as_str(), &blocked.because))
            .collect();
        assert_eq!(
            stale,
            blocked.keys().copied().collect(),
            "what is stale is shown, and nothing else"
        );
        for because in blocked.values() {
            if let BlockedBecause::Below(parent) = because {
                assert!(blocked.contains_key(parent.as_str()));
            }
        }
        if self.settings.heal_secs > 0 {
            self.pass(24 * 60 * 60);
            self.reconcile();
            for blocked in &self.said.blocked {
                assert_ne!(
                    blocked.because,
                    BlockedBecause::Tried(AttemptEnd::Failed),
                    "{} is forgotten",
                    blocked.task
                );
            }
        }
        if self.calm {
            assert_eq!(
                stale,
                BTreeSet::new(),
                "nothing failed, so everything is fresh"
            );
        }
    }
}

fn histories(seeds: std::ops::Range<u64>) {
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
                for (name, task) in &history.world.tasks {
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
fn first_quarter() {
    histories(0..2500);
}

#[test]
fn second_quarter() {
    histories(2500..5000);
}

#[test]
fn third_quarter() {
    histories(5000..7500);
}

#[test]
fn fourth_quarter() {
    histories(7500..10_000);
}
