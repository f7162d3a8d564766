//! A registry, runners and servers that a test moves by hand: the database and the control plane's code are real, and what
//! builds is a function of what it is built from.

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
use acrtask_store::{Claim, Ms, NewRun, Report, Reported, RunFilter, RunRow, Seen, Store, Verdict};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::place::Place;

/// When tests begin.
pub(crate) const NOW: Ms = 1_790_000_000_000;
/// Milliseconds of a second.
pub(crate) const SECOND: Ms = 1000;
const LEASE: Ms = 3_600_000;

/// What a task builds, and from what.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) image: String,
    pub(crate) bases: Vec<String>,
}

/// Everything around the servers.
pub(crate) struct World {
    place: Place,
    pub(crate) app: App,
    /// What each tag holds.
    pub(crate) registry: BTreeMap<String, Digest>,
    pub(crate) models: BTreeMap<String, Model>,
    /// Runs that runners hold.
    pub(crate) held: Vec<RunRow>,
}

pub(crate) fn sha(text: &str) -> Digest {
    let hash: String = Sha256::digest(text)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hash}").parse().unwrap()
}

pub(crate) async fn app(place: &Place, now: Ms) -> App {
    let options = place.options(Config::default());
    App::new(
        options.config,
        Store::open(&options.database).await.unwrap(),
        Blobs::open(&options.blobs).unwrap(),
        Vault::load_or_create(&options.key_file).unwrap(),
        Clock::fixed(now),
    )
}

impl World {
    pub(crate) async fn new(place: Place, settings: Value) -> Self {
        let app = app(&place, NOW).await;
        let settings: CascadeSettings = serde_json::from_value(settings).unwrap();
        cascades::put_settings(&app, settings).await.unwrap();
        Self {
            place,
            app,
            registry: BTreeMap::new(),
            models: BTreeMap::new(),
            held: Vec::new(),
        }
    }

    pub(crate) fn now(&self) -> Ms {
        self.app.clock.now_ms()
    }

    /// Another server on the same database, at the same time.
    pub(crate) async fn server(&self) -> App {
        app(&self.place, self.now()).await
    }

    /// The server ends, and another one begins with what the database has.
    pub(crate) async fn restart(&mut self) {
        self.app = self.server().await;
    }

    /// A server with all its loops.
    pub(crate) async fn serve(&self) -> Server {
        let config = Config {
            poll: Duration::from_millis(200),
            ..Config::default()
        };
        self.place.server(config).await
    }

    /// From now on runners have the machine's clock.
    pub(crate) async fn clock_is_real(&mut self) {
        self.app = app(&self.place, jiff::Timestamp::now().as_millisecond()).await;
    }

    pub(crate) fn wait(&self, ms: Ms) {
        self.app.clock.set(self.now() + ms);
    }

    /// A task with more in its definition than its name. It has not run yet.
    pub(crate) async fn task(&mut self, name: &str, bases: &[&str], more: Value) {
        let mut definition = json!({"name": name, "cmd": "alpine true"});
        for (key, value) in more.as_object().into_iter().flatten() {
            definition[key] = value.clone();
        }
        let definition: TaskDefinition = serde_json::from_value(definition).unwrap();
        self.app
            .store
            .create_task(&format!("t-{name}"), &definition, None, self.now())
            .await
            .unwrap();
        let model = Model {
            image: format!("r.io/{name}:1"),
            bases: bases.iter().map(|base| (*base).to_owned()).collect(),
        };
        self.models.insert(name.to_owned(), model);
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

    /// A task that a person has run once.
    pub(crate) async fn built(&mut self, name: &str, bases: &[&str]) {
        self.task(name, bases, json!({})).await;
        self.by_hand(name).await;
        self.take_runs().await;
        self.end_all(|_| true).await;
    }

    /// So many tasks, each on the base and on three of those before it, all built once.
    pub(crate) async fn many(&mut self, count: usize, base: &str) {
        self.registry.insert(base.to_owned(), sha("old"));
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
            self.task(&name(number), &bases, json!({})).await;
            runs.push(self.run_of(&name(number)).await);
        }
        for some in runs.chunks(500) {
            self.app
                .store
                .enqueue_many(some.to_vec(), self.now())
                .await
                .unwrap();
            self.take_runs().await;
            self.end_all(|_| true).await;
        }
    }

    /// Somebody starts a run of a task.
    pub(crate) async fn by_hand(&self, name: &str) -> RunId {
        let run = self.run_of(name).await;
        let id = run.id.clone();
        self.app.store.enqueue(run, self.now()).await.unwrap();
        id
    }

    async fn run_of(&self, name: &str) -> NewRun {
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
            warm_key: name.to_owned(),
            max_attempts: 3,
            origin: Default::default(),
        }
    }

    /// A base moves, and a look at its tag finds it.
    pub(crate) async fn moves(&mut self, base: &str, to: &str) {
        self.registry.insert(base.to_owned(), sha(to));
        self.looked(base).await;
    }

    /// Somebody looks at a tag.
    pub(crate) async fn looked(&self, base: &str) {
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
        store.hurry_watches(None, now).await.unwrap();
        for watch in store.claim_watches(now, 1000, 1000).await.unwrap() {
            if watch.name == base {
                let seen = Seen::Digest {
                    digest: self.registry[base].clone(),
                    etag: None,
                    platforms: None,
                };
                see(store, watch, seen, now).await;
            } else {
                store.unwatched(&watch, now).await.unwrap();
            }
        }
    }

    /// The server takes ends of runs, and lets the clock go on.
    pub(crate) async fn tick(&self) {
        cascades::pass(&self.app, false).await.unwrap();
    }

    /// The same, and it compares everything.
    pub(crate) async fn compare(&self) {
        cascades::pass(&self.app, true).await.unwrap();
    }

    pub(crate) async fn tell(&self, event: Event) -> Result<(), CommandError> {
        cascades::command(&self.app, event).await
    }

    /// Runners take all runs that are ready. Says which, by task.
    pub(crate) async fn take_runs(&mut self) -> Vec<String> {
        let store = &self.app.store;
        let classes = store.ready_classes().await.unwrap();
        let classes: Vec<i64> = classes.iter().map(|class| class.id).collect();
        let now = self.now();
        let taken = store
            .claim(&classes, 1000, now, LEASE, LEASE, |candidates| {
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
                assert_eq!(self.say(run, report).await, Verdict::Done);
            }
        }
        let mut names: Vec<String> = taken
            .iter()
            .filter_map(|run| run.task_name.clone())
            .collect();
        names.sort();
        self.held.extend(taken);
        names
    }

    async fn say(&self, run: &RunRow, report: Report) -> Verdict {
        let reported = Reported {
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

    /// Runners end all that they hold: well, where `well` says so.
    pub(crate) async fn end_all(&mut self, well: impl Fn(&str) -> bool) {
        while !self.held.is_empty() {
            let name = self.held[0].task_name.clone().unwrap();
            self.end(0, well(&name)).await;
        }
    }

    /// A runner ends one of its runs.
    pub(crate) async fn end(&mut self, index: usize, well: bool) {
        let run = self.held.remove(index);
        let name = run.task_name.clone().unwrap();
        let model = self.models[&name].clone();
        let mut used = BTreeMap::new();
        for base in &model.bases {
            let pinned = run.spec.pins.get(base);
            assert!(
                run.trigger != "cascade" || pinned.is_some(),
                "{name} is pinned to {base}"
            );
            let digest = pinned.unwrap_or_else(|| &self.registry[base]);
            used.insert(base.clone(), digest.clone());
        }
        let digest = sha(&format!("{name} {used:?}"));
        let step = StepId::new("build").unwrap();
        let result = RunResult {
            built: vec![BuiltResult {
                step: step.clone(),
                names: vec![model.image.clone()],
                digest: digest.clone(),
            }],
            images: vec![ImageResult {
                step: step.clone(),
                name: model.image.clone(),
                digest: digest.clone(),
                platforms: BTreeMap::new(),
                held: run.spec.hold,
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
            state: if well {
                RunState::Succeeded
            } else {
                RunState::Failed
            },
            reason: (!well).then(|| "a step failed".to_owned()),
            result: Box::new(if well { result } else { RunResult::default() }),
            log_length: 0,
            log_sha256: "ab".repeat(32),
        };
        let verdict = self.say(&run, finished).await;
        if well && verdict == Verdict::Done && !run.spec.hold {
            self.registry.insert(model.image, digest);
        }
    }

    /// Everything goes on until nothing more does.
    pub(crate) async fn rest(&mut self) {
        for _ in 0..200 {
            self.wait(61 * SECOND);
            self.compare().await;
            let taken = self.take_runs().await;
            self.end_all(|_| true).await;
            self.tick().await;
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
            if taken.is_empty() && open.is_empty() && self.held.is_empty() {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    pub(crate) async fn show(&self, id: u64) -> CascadeDetail {
        cascades::show(&self.app, id).await.unwrap()
    }

    /// `task state: why` of each task of a cascade.
    pub(crate) async fn states(&self, id: u64) -> Vec<String> {
        self.show(id)
            .await
            .nodes
            .into_iter()
            .map(|node| match node.why {
                Some(why) => format!("{} {}: {why}", node.task, node.state.as_str()),
                None => format!("{} {}", node.task, node.state.as_str()),
            })
            .collect()
    }

    pub(crate) async fn state(&self, id: u64, task: &str) -> CascadeNodeState {
        let detail = self.show(id).await;
        detail
            .nodes
            .iter()
            .find(|node| node.task == task)
            .unwrap()
            .state
    }

    /// Runs of cascades, the oldest first.
    pub(crate) async fn runs(&self) -> Vec<RunRow> {
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

    /// How often cascades have run each task.
    pub(crate) async fn counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for run in self.runs().await {
            *counts.entry(run.task_name.unwrap()).or_default() += 1;
        }
        counts
    }

    /// Every tag holds what follows from the bases as they are now.
    pub(crate) fn assert_fresh(&self) {
        for (name, model) in &self.models {
            let used: BTreeMap<&String, &Digest> = model
                .bases
                .iter()
                .map(|base| (base, &self.registry[base]))
                .collect();
            let expected = sha(&format!("{name} {used:?}"));
            assert_eq!(self.registry[&model.image], expected, "{name}");
        }
    }

    /// No task was built twice from the same digests, and no two runs are one start.
    pub(crate) async fn assert_once(&self) {
        let mut well = BTreeSet::new();
        for run in self.runs().await {
            if run.state == RunState::Succeeded {
                let pins = serde_json::to_string(&run.spec.pins).unwrap();
                let name = run.task_name.clone().unwrap();
                assert!(well.insert((name.clone(), pins.clone())), "{name} {pins}");
            }
        }
        assert_eq!(
            self.app
                .store
                .unaccounted(self.now(), SECOND)
                .await
                .unwrap(),
            []
        );
    }
}

async fn see(store: &Store, watch: acrtask_store::WatchRow, seen: Seen, now: Ms) {
    store.watched(&watch, &seen, now, now + 1).await.unwrap();
}
