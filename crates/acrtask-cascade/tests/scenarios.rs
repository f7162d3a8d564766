//! Scenario files: a small fleet and its events, with a snapshot of the reactions beside each file.
//!
//! A digest is written as a short hexadecimal text that is repeated to the full length. The
//! snapshot shows it short again.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of a #[test]")]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::Path,
};

use acrtask_cascade::{
    Cascades, Graph, PlanOptions,
    cascade::{Action, CascadeId, End, Event, NodeState, Settings, Start},
    graph::Policy,
    plan, show,
};
use acrtask_model::{Digest, ImageRef, events::BaseRole};
use common::{Task, TestFleet};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Scenario {
    about: String,
    #[serde(default)]
    start: Option<Timestamp>,
    #[serde(default)]
    settings: Settings,
    bases: BTreeMap<ImageRef, String>,
    tasks: BTreeMap<String, TaskFile>,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TaskFile {
    #[serde(default)]
    policy: Policy,
    on: BTreeMap<ImageRef, BaseRole>,
    pushes: Vec<ImageRef>,
    #[serde(default)]
    seconds: Option<u64>,
    #[serde(default)]
    reproducible: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum Step {
    /// Bases move to these digests.
    Move(BTreeMap<ImageRef, String>),
    /// Shows the plan of everything stale, or of what these changes would make stale.
    Tree(BTreeMap<ImageRef, String>),
    Dot(BTreeMap<ImageRef, String>),
    Json(BTreeMap<ImageRef, String>),
    Reconcile,
    /// This number of seconds passes.
    Wait(i64),
    /// Runs of these tasks succeed.
    Ok(Vec<String>),
    /// Runs of these tasks fail.
    Fail(Vec<String>),
    /// Runs of these tasks are superseded by others. `true` if the other run built the task.
    Superseded(BTreeMap<String, bool>),
    Pause(u64),
    Resume(u64),
    Approve(u64),
    Cancel(u64),
    Retry(u64),
    /// Shows all cascades.
    Show,
}

fn digest(text: &str) -> Digest {
    let hex: String = text.chars().cycle().take(64).collect();
    format!("sha256:{hex}").parse().unwrap()
}

struct ScenarioRun {
    fleet: TestFleet,
    all: Cascades,
    settings: Settings,
    now: Timestamp,
    running: BTreeMap<String, Start>,
    out: String,
}

impl ScenarioRun {
    fn step(&mut self, step: Step) {
        let event = match step {
            Step::Move(bases) => {
                for (image, to) in bases {
                    self.push_line(&format!("* {image} moves to {to}"));
                    self.fleet.tags.insert(image.or_latest(), digest(&to));
                }
                return;
            }
            Step::Tree(changes) => return self.show_plan("tree", &changes),
            Step::Dot(changes) => return self.show_plan("dot", &changes),
            Step::Json(changes) => return self.show_plan("json", &changes),
            Step::Reconcile => return self.reconcile(),
            Step::Wait(seconds) => {
                self.now = self
                    .now
                    .checked_add(SignedDuration::from_secs(seconds))
                    .unwrap();
                self.push_line(&format!("* {}", self.now));
                Event::Tick
            }
            Step::Ok(tasks) => {
                for task in tasks {
                    self.push_line(&format!("* {task} ends well"));
                    let start = self.running.remove(&task).unwrap();
                    let digests = self.fleet.build(&task, &start.pins);
                    self.end_run(start, End::Succeeded { digests });
                }
                return;
            }
            Step::Fail(tasks) => {
                for task in tasks {
                    self.push_line(&format!("* {task} fails"));
                    let start = self.running.remove(&task).unwrap();
                    let reason = "exit code 1".to_owned();
                    self.end_run(start, End::Failed { reason });
                }
                return;
            }
            Step::Superseded(tasks) => {
                for (task, built) in tasks {
                    let what = if built { "and built" } else { "in vain" };
                    self.push_line(&format!("* {task} is superseded, {what}"));
                    let start = self.running.remove(&task).unwrap();
                    if built {
                        let pins = self.fleet.bases_now(&task);
                        self.fleet.build(&task, &pins);
                    }
                    self.end_run(start, End::Superseded);
                }
                return;
            }
            Step::Pause(id) => Event::Pause {
                cascade: CascadeId(id),
            },
            Step::Resume(id) => Event::Resume {
                cascade: CascadeId(id),
            },
            Step::Approve(id) => Event::Approve {
                cascade: CascadeId(id),
            },
            Step::Cancel(id) => Event::Cancel {
                cascade: CascadeId(id),
                by: "sam".into(),
            },
            Step::Retry(id) => Event::Retry {
                cascade: CascadeId(id),
            },
            Step::Show => return self.show_cascades(),
        };
        if event != Event::Tick {
            let text = serde_json::to_value(&event).unwrap();
            self.push_line(&format!(
                "* {} cascade {}",
                text["event"].as_str().unwrap(),
                text["cascade"]
            ));
        }
        self.apply_event(event);
    }

    fn push_line(&mut self, line: &str) {
        self.out.push_str(line);
        self.out.push('\n');
    }

    fn show_plan(&mut self, form: &str, changes: &BTreeMap<ImageRef, String>) {
        let graph = Graph::new(&self.fleet.facts());
        let changes: BTreeMap<ImageRef, Digest> = changes
            .iter()
            .map(|(image, to)| (image.clone().or_latest(), digest(to)))
            .collect();
        let options = PlanOptions {
            everything: changes.is_empty(),
            ..PlanOptions::default()
        };
        let plan = plan(&graph, &changes, &options);
        let text = match form {
            "tree" => show::render_tree(&plan.view(2)),
            "dot" => show::render_dot(&plan.view(2)),
            _ => serde_json::to_string_pretty(&plan.view(2)).unwrap() + "\n",
        };
        self.out.push_str(&text);
    }

    fn reconcile(&mut self) {
        let graph = Graph::new(&self.fleet.facts());
        let done = self.all.reconcile(&graph, &self.settings, self.now);
        let before = self.all.clone();
        let again = self.all.reconcile(&graph, &self.settings, self.now);
        assert!(before == self.all && again.created.is_empty() && again.joined.is_empty());
        self.push_line("* reconciliation");
        for id in &done.created {
            self.push_line(&format!("  cascade {id} begins"));
        }
        for (id, task) in &done.dropped {
            let state = self.state_text(*id, task);
            self.push_line(&format!("  {task} leaves cascade {id}: {state}"));
        }
        for (id, task) in &done.joined {
            self.push_line(&format!("  {task} joins cascade {id}"));
        }
        for blocked in &done.blocked {
            let cause = serde_json::to_string(&blocked.cause).unwrap();
            self.push_line(&format!("  {} stays stale: {cause}", blocked.task));
        }
        for refused in &done.refused {
            self.push_line(&format!("  not built: {refused}"));
        }
        self.perform(done.actions);
    }

    fn end_run(&mut self, start: Start, end: End) {
        self.apply_event(Event::Ended {
            cascade: start.cascade,
            task: start.task,
            attempt: start.attempt,
            end,
        });
    }

    fn apply_event(&mut self, event: Event) {
        match self.all.step(event, &self.settings, self.now) {
            Ok(actions) => self.perform(actions),
            Err(error) => self.push_line(&format!("  refused: {error}")),
        }
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Start(start) => {
                    let pins = start.pins.iter();
                    let pins: Vec<String> = pins
                        .map(|(image, digest)| format!("{image}@{}", digest.short()))
                        .collect();
                    self.push_line(&format!(
                        "  start {} of cascade {}, attempt {}, on {}",
                        start.task,
                        start.cascade,
                        start.attempt,
                        pins.join(" ")
                    ));
                    self.running.insert(start.task.clone(), start);
                }
                Action::Stop { task, .. } => {
                    self.push_line(&format!("  stop {task}"));
                    let start = self.running.remove(&task).unwrap();
                    self.end_run(start, End::Canceled { by: "sam".into() });
                }
                Action::WakeAt { at } => self.push_line(&format!("  wake at {at}")),
                Action::Finished { cascade } => {
                    self.push_line(&format!("  cascade {cascade} is finished"))
                }
            }
        }
    }

    fn state_text(&self, id: CascadeId, task: &str) -> String {
        let node = &self.all.get(id).unwrap().nodes[task];
        match &node.state {
            NodeState::Ready { .. } => "ready".into(),
            NodeState::Running { .. } => "running".into(),
            NodeState::Succeeded { .. } => "succeeded".into(),
            state => serde_json::to_string(state).unwrap(),
        }
    }

    fn show_cascades(&mut self) {
        let ids: Vec<CascadeId> = self.all.iter().map(|cascade| cascade.id).collect();
        for id in ids {
            let cascade = self.all.get(id).unwrap();
            let mut text = format!(
                "  cascade {id}: {}",
                serde_json::to_string(&cascade.phase).unwrap()
            );
            if cascade.is_awaiting_approval() {
                text += ", awaits approval";
            }
            if let Some(follows) = cascade.follows {
                write!(text, ", follows {follows}").unwrap();
            }
            for (image, digest) in &cascade.changes {
                write!(text, "\n    {image} is {}", digest.short()).unwrap();
            }
            let tasks: BTreeSet<&String> = cascade.nodes.keys().collect();
            for task in tasks {
                write!(text, "\n    {task}: {}", self.state_text(id, task)).unwrap();
            }
            self.push_line(&text);
        }
    }
}

fn run_scenario(path: &Path) {
    let text = std::fs::read_to_string(path).unwrap();
    let scenario: Scenario =
        serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut fleet = TestFleet::default();
    for (image, to) in &scenario.bases {
        fleet.tags.insert(image.clone().or_latest(), digest(to));
    }
    for (name, task) in scenario.tasks {
        let task = Task {
            policy: task.policy,
            bases: task
                .on
                .into_iter()
                .map(|(image, role)| (image.or_latest(), role))
                .collect(),
            images: task.pushes.into_iter().map(ImageRef::or_latest).collect(),
            run_ms: task.seconds.map(|seconds| seconds * 1000),
            reproducible: task.reproducible,
            used: BTreeMap::new(),
        };
        fleet.tasks.insert(name, task);
    }
    let tasks: Vec<String> = fleet.tasks.keys().cloned().collect();
    fleet.build_all();
    for task in tasks.iter().cycle().take(tasks.len() * tasks.len()) {
        let pins = fleet.bases_now(task);
        if pins != fleet.tasks[task].used
            && !pins
                .keys()
                .any(|image| fleet.tasks[task].images.contains(image))
        {
            fleet.build(task, &pins);
        }
    }
    let mut run = ScenarioRun {
        fleet,
        all: Cascades::default(),
        settings: scenario.settings,
        now: scenario
            .start
            .unwrap_or_else(|| "2026-11-25T12:00:00Z".parse().unwrap()),
        running: BTreeMap::new(),
        out: format!("{}\n\n", scenario.about.trim()),
    };
    for step in scenario.steps {
        run.step(step);
    }
    let name = path.file_stem().unwrap().to_str().unwrap();
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false, snapshot_path => "scenarios" }, {
        insta::assert_snapshot!(name, run.out);
    });
}

#[test]
fn scenarios_match_their_snapshots() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "yaml")
        })
        .collect();
    paths.sort();
    assert!(paths.len() > 8);
    for path in paths {
        run_scenario(&path);
    }
}
