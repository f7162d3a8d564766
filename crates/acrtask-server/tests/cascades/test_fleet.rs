//! A simulated registry and simulated runners around a real database and real server code.
//! The digest of a simulated image is a function of the digests of its bases.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use acrtask_api::{
    cascade::{CascadeDetail, CascadeNodeState, CascadeSettings},
    run::{BaseResult, BuiltResult, ImageResult, RunResult},
    task::TaskDefinition,
};
use acrtask_cascade::cascade::Event;
use acrtask_model::{
    Digest, RunId, RunState, StepId, TrustDomain,
    events::{BaseRole, Evidence},
};
use acrtask_server::{
    App, Config,
    blobs::Blobs,
    cascades::{self, CommandError},
    clock::Clock,
    serve::Server,
    vault::Vault,
};
use acrtask_store::{
    AttemptReport, Claim, Ms, NewRun, PollResult, Report, RunFilter, RunRow, Store, Verdict,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::test_db::TestDb;

/// Start time of the tests, in milliseconds since 1970.
pub(crate) const NOW: Ms = 1_790_000_000_000;
/// Milliseconds in a second.
pub(crate) const SECOND: Ms = 1000;
const LEASE: Ms = 3_600_000;

/// The image and the bases of a task.
#[derive(Debug, Clone)]
pub(crate) struct TestTask {
    pub(crate) image: String,
    pub(crate) bases: Vec<String>,
}

/// Tasks with a server, a database, a simulated registry and simulated runners.
pub(crate) struct TestFleet {
    db: TestDb,
    pub(crate) app: App,
    /// The digest of each tag.
    pub(crate) registry: BTreeMap<String, Digest>,
    pub(crate) tasks: BTreeMap<String, TestTask>,
    /// Runs that the simulated runners have leased.
    pub(crate) leased: Vec<RunRow>,
}

pub(crate) fn digest_of(text: &str) -> Digest {
    let hash: String = Sha256::digest(text)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hash}").parse().unwrap()
}

pub(crate) async fn open_app(db: &TestDb, now: Ms) -> App {
    let options = db.options(Config::default());
    App::new(
        options.config,
        Store::open(&options.database).await.unwrap(),
        Blobs::open(&options.blobs).unwrap(),
        Vault::load_or_create(&options.key_file).unwrap(),
        Clock::fixed(now),
    )
}

impl TestFleet {
    pub(crate) async fn new(db: TestDb, settings: Value) -> Self {
        let app = open_app(&db, NOW).await;
        let settings: CascadeSettings = serde_json::from_value(settings).unwrap();
        cascades::put_settings(&app, settings).await.unwrap();
        Self {
            db,
            app,
            registry: BTreeMap::new(),
            tasks: BTreeMap::new(),
            leased: Vec::new(),
        }
    }

    pub(crate) fn now(&self) -> Ms {
        self.app.clock.now_ms()
    }

    /// Opens another server without loops on the same database, at the same time.
    pub(crate) async fn open_app(&self) -> App {
        open_app(&self.db, self.now()).await
    }

    /// Drops the server and opens another one on the same database.
    pub(crate) async fn restart_server(&mut self) {
        self.app = self.open_app().await;
    }

    /// Starts a server with all its loops.
    pub(crate) async fn start_server(&self) -> Server {
        let config = Config {
            poll: Duration::from_millis(200),
            ..Config::default()
        };
        self.db.start_server(config).await
    }

    /// Sets the clock of the simulated runners to the system time.
    pub(crate) async fn set_clock_to_now(&mut self) {
        self.app = open_app(&self.db, jiff::Timestamp::now().as_millisecond()).await;
    }

    pub(crate) fn advance_clock(&self, ms: Ms) {
        self.app.clock.set(self.now() + ms);
    }

    /// Creates a task whose definition has the name and `extra`. The task has not run yet.
    pub(crate) async fn create_task(&mut self, name: &str, bases: &[&str], extra: Value) {
        let mut definition = json!({"name": name, "cmd": "alpine true"});
        for (key, value) in extra.as_object().into_iter().flatten() {
            definition[key] = value.clone();
        }
        let definition: TaskDefinition = serde_json::from_value(definition).unwrap();
        self.app
            .store
            .create_task(&format!("t-{name}"), &definition, None, self.now())
            .await
            .unwrap();
        let task = TestTask {
            image: format!("r.io/{name}:1"),
            bases: bases.iter().map(|base| (*base).to_owned()).collect(),
        };
        self.tasks.insert(name.to_owned(), task);
    }

    pub(crate) async fn change_task(&self, name: &str, change: impl FnOnce(&mut TaskDefinition)) {
        let store = &self.app.store;
        let mut definition = store.task(name).await.unwrap().definition;
        change(&mut definition);
        store
            .update_task(name, &definition, None, None, self.now())
            .await
            .unwrap();
    }

    /// Creates a task and runs it once, outside cascades.
    pub(crate) async fn create_built_task(&mut self, name: &str, bases: &[&str]) {
        self.create_task(name, bases, json!({})).await;
        self.enqueue_run(name).await;
        self.lease_runs().await;
        self.finish_all(|_| true).await;
    }

    /// Creates `count` tasks and builds each of them once. Each task uses the base and up to three
    /// of the tasks before it.
    pub(crate) async fn create_built_tasks(&mut self, count: usize, base: &str) {
        self.registry.insert(base.to_owned(), digest_of("old"));
        let name = |number: usize| format!("task{number:05}");
        let mut runs = Vec::new();
        for number in 0..count {
            let mut bases = vec![base.to_owned()];
            for back in [1, 7, 40] {
                if number % 50 >= back {
                    bases.push(format!("r.io/{}:1", name(number - back)));
                }
            }
            let bases: Vec<&str> = bases.iter().map(String::as_str).collect();
            self.create_task(&name(number), &bases, json!({})).await;
            runs.push(self.new_run(&name(number)).await);
        }
        for some in runs.chunks(500) {
            self.app
                .store
                .enqueue_many(some.to_vec(), self.now())
                .await
                .unwrap();
            self.lease_runs().await;
            self.finish_all(|_| true).await;
        }
    }

    /// Enqueues a run of a task outside cascades.
    pub(crate) async fn enqueue_run(&self, name: &str) -> RunId {
        let run = self.new_run(name).await;
        let id = run.id.clone();
        self.app.store.enqueue(run, self.now()).await.unwrap();
        id
    }

    async fn new_run(&self, name: &str) -> NewRun {
        let task = self.app.store.task(name).await.unwrap();
        NewRun {
            id: RunId::from_random(rand::random()),
            trust_domain: TrustDomain::Task {
                id: task.id.clone(),
            },
            task_id: Some(task.id),
            task_name: Some(name.to_owned()),
            spec: Default::default(),
            queue: task.definition.queue,
            platform: String::new(),
            context_id: None,
            secrets: None,
            trigger: "task".into(),
            requested_by: None,
            rerun_of: None,
            idempotency_key: None,
            timeout_secs: None,
            traceparent: String::new(),
            affinity_key: name.to_owned(),
            max_attempts: 3,
            origin: Default::default(),
        }
    }

    /// Moves the tag of a base and polls it.
    pub(crate) async fn move_base(&mut self, base: &str, to: &str) {
        self.registry.insert(base.to_owned(), digest_of(to));
        self.poll_tag(base).await;
    }

    /// Records the digest of a tag in the simulated registry as the result of a poll.
    pub(crate) async fn poll_tag(&self, base: &str) {
        let store = &self.app.store;
        let now = self.now();
        let all: BTreeSet<(String, String)> = store
            .watches(acrtask_store::WatchFilter {
                limit: 1000,
                ..Default::default()
            })
            .await
            .unwrap()
            .into_iter()
            .map(|watch| (watch.name, watch.scope))
            .chain([(base.to_owned(), String::new())])
            .collect();
        store.set_watches(&all, now).await.unwrap();
        store.mark_watches_due(None, now).await.unwrap();
        for watch in store.claim_watches(now, 1000, 1000).await.unwrap() {
            if watch.name == base {
                let result = PollResult::Digest {
                    digest: self.registry[base].clone(),
                    etag: None,
                    platforms: None,
                };
                record_poll(store, watch, result, now).await;
            } else {
                store.release_watch(&watch, now).await.unwrap();
            }
        }
    }

    /// Runs one pass of the cascade reconciler.
    pub(crate) async fn run_pass(&self) {
        cascades::run_pass(&self.app, false).await.unwrap();
    }

    /// Runs one pass that also compares the digests of all images.
    pub(crate) async fn run_full_pass(&self) {
        cascades::run_pass(&self.app, true).await.unwrap();
    }

    pub(crate) async fn apply_command(&self, event: Event) -> Result<(), CommandError> {
        cascades::apply_command(&self.app, event).await
    }

    /// Leases all runs that are ready. Returns the sorted names of their tasks.
    pub(crate) async fn lease_runs(&mut self) -> Vec<String> {
        let store = &self.app.store;
        let requirements = store.ready_requirements().await.unwrap();
        let requirements: Vec<i64> = requirements
            .iter()
            .map(|requirement| requirement.id)
            .collect();
        let now = self.now();
        let taken = store
            .claim(&requirements, 1000, now, LEASE, LEASE, |candidates| {
                candidates
                    .iter()
                    .map(|candidate| Claim {
                        run: candidate.id.clone(),
                        runner_id: "n".into(),
                    })
                    .collect()
            })
            .await
            .unwrap();
        for run in &taken {
            for report in [Report::Accepted, Report::Started] {
                assert_eq!(self.report(run, report).await, Verdict::Done);
            }
        }
        let mut names: Vec<String> = taken
            .iter()
            .filter_map(|run| run.task_name.clone())
            .collect();
        names.sort();
        self.leased.extend(taken);
        names
    }

    async fn report(&self, run: &RunRow, report: Report) -> Verdict {
        let reported = AttemptReport {
            run: run.id.clone(),
            attempt: run.attempt,
            runner_id: "n".into(),
            report,
        };
        self.app
            .store
            .report(&[reported], self.now(), LEASE)
            .await
            .unwrap()
            .remove(0)
    }

    /// Finishes all leased runs. A run succeeds if `succeeds` returns `true` for its task.
    pub(crate) async fn finish_all(&mut self, succeeds: impl Fn(&str) -> bool) {
        while !self.leased.is_empty() {
            let name = self.leased[0].task_name.clone().unwrap();
            self.finish_run(0, succeeds(&name)).await;
        }
    }

    /// Finishes one leased run.
    pub(crate) async fn finish_run(&mut self, index: usize, succeeds: bool) {
        let run = self.leased.remove(index);
        let name = run.task_name.clone().unwrap();
        let task = self.tasks[&name].clone();
        let mut used = BTreeMap::new();
        for base in &task.bases {
            let pinned = run.spec.pins.get(base);
            assert!(
                run.trigger != "cascade" || pinned.is_some(),
                "{name} is pinned to {base}"
            );
            let digest = pinned.unwrap_or_else(|| &self.registry[base]);
            used.insert(base.clone(), digest.clone());
        }
        let digest = digest_of(&format!("{name} {used:?}"));
        let step = StepId::new("build").unwrap();
        let result = RunResult {
            built: vec![BuiltResult {
                step: step.clone(),
                names: vec![task.image.clone()],
                digest: digest.clone(),
            }],
            images: vec![ImageResult {
                step: step.clone(),
                name: task.image.clone(),
                digest: digest.clone(),
                platforms: BTreeMap::new(),
                staged: run.spec.push_by_digest,
            }],
            bases: used
                .into_iter()
                .map(|(name, digest)| BaseResult {
                    step: step.clone(),
                    role: BaseRole::Runtime,
                    name,
                    digest,
                    evidence: Evidence::Provenance,
                    platforms: Vec::new(),
                })
                .collect(),
            ..RunResult::default()
        };
        let finished = Report::Finished {
            state: if succeeds {
                RunState::Succeeded
            } else {
                RunState::Failed
            },
            reason: (!succeeds).then(|| "a step failed".to_owned()),
            result: Box::new(if succeeds {
                result
            } else {
                RunResult::default()
            }),
            log_length: 0,
            log_sha256: "ab".repeat(32),
        };
        let verdict = self.report(&run, finished).await;
        if succeeds && verdict == Verdict::Done && !run.spec.push_by_digest {
            self.registry.insert(task.image, digest);
        }
    }

    /// Advances the clock and finishes runs until no cascade is open.
    pub(crate) async fn run_until_idle(&mut self) {
        for _ in 0..200 {
            self.advance_clock(61 * SECOND);
            self.run_full_pass().await;
            let taken = self.lease_runs().await;
            self.finish_all(|_| true).await;
            self.run_pass().await;
            let open = cascades::list(
                &self.app,
                cascades::ListFilter {
                    open: true,
                    limit: 1,
                    ..Default::default()
                },
            )
            .await
            .unwrap();
            if taken.is_empty() && open.is_empty() && self.leased.is_empty() {
                return;
            }
        }
        panic!("the fleet is not idle after 200 rounds");
    }

    pub(crate) async fn cascade(&self, id: u64) -> CascadeDetail {
        cascades::show(&self.app, id).await.unwrap()
    }

    /// Returns `task state: reason` of each node of a cascade.
    pub(crate) async fn node_states(&self, id: u64) -> Vec<String> {
        self.cascade(id)
            .await
            .nodes
            .into_iter()
            .map(|node| match node.reason {
                Some(why) => format!("{} {}: {why}", node.task, node.state.as_str()),
                None => format!("{} {}", node.task, node.state.as_str()),
            })
            .collect()
    }

    pub(crate) async fn node_state(&self, id: u64, task: &str) -> CascadeNodeState {
        let detail = self.cascade(id).await;
        detail
            .nodes
            .iter()
            .find(|node| node.task == task)
            .unwrap()
            .state
    }

    /// Returns the runs of all cascades, oldest first.
    pub(crate) async fn cascade_runs(&self) -> Vec<RunRow> {
        let mut all = Vec::new();
        let mut before = None;
        loop {
            let filter = RunFilter {
                before: before.take(),
                limit: 200,
                ..RunFilter::default()
            };
            let (page, next) = self.app.store.runs(filter).await.unwrap();
            all.extend(page.into_iter().filter(|run| run.trigger == "cascade"));
            before = next;
            if before.is_none() {
                break;
            }
        }
        all.reverse();
        all
    }

    /// Returns the number of cascade runs of each task.
    pub(crate) async fn run_counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for run in self.cascade_runs().await {
            *counts.entry(run.task_name.unwrap()).or_default() += 1;
        }
        counts
    }

    /// Asserts that the digest of each tag follows from the current digests of its bases.
    pub(crate) fn assert_all_fresh(&self) {
        for (name, task) in &self.tasks {
            let used: BTreeMap<&String, &Digest> = task
                .bases
                .iter()
                .map(|base| (base, &self.registry[base]))
                .collect();
            let expected = digest_of(&format!("{name} {used:?}"));
            assert_eq!(self.registry[&task.image], expected, "{name}");
        }
    }

    /// Asserts that no task succeeded twice with the same pins and that each trigger has one run.
    pub(crate) async fn assert_built_once(&self) {
        let mut built = BTreeSet::new();
        for run in self.cascade_runs().await {
            if run.state == RunState::Succeeded {
                let pins = serde_json::to_string(&run.spec.pins).unwrap();
                let name = run.task_name.clone().unwrap();
                assert!(built.insert((name.clone(), pins.clone())), "{name} {pins}");
            }
        }
        assert_eq!(
            self.app
                .store
                .unaccounted_triggers(self.now(), SECOND)
                .await
                .unwrap(),
            []
        );
    }
}

async fn record_poll(store: &Store, watch: acrtask_store::WatchRow, result: PollResult, now: Ms) {
    store
        .record_poll(&watch, &result, now, now + 1)
        .await
        .unwrap();
}
