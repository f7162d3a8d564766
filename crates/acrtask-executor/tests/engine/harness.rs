//! A test harness that runs a task file and collects its events.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use acrtask_executor::{DockerEndpoint, Executor, Fence, Options, Report, RunRequest};
use acrtask_model::{
    CacheNamespace, CacheSealKey, Digest, Event, EventKind, ImageRef, RunDomain, RunId, RunState,
    StepId, StepState, TrustDomain,
};
use acrtask_registry::Credentials;
use acrtask_spec::{
    Lookup, RunVariables, SecretDeclaration, TaskSource,
    plan::{StepCache, StepKind},
    render_diagnostics, resolve,
};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Time limit of each run of these tests.
const LIMIT: Duration = Duration::from_secs(120);

/// The test environment. `from_env` returns `None` if engine tests are to be skipped.
pub(crate) struct Engine {
    pub(crate) registry: String,
}

impl Engine {
    pub(crate) fn from_env() -> Option<Self> {
        let registry = std::env::var("ACRTASK_TEST_REGISTRY").ok();
        let host = std::env::var("DOCKER_HOST").ok();
        match (registry, host) {
            (Some(registry), Some(_)) => Some(Self { registry }),
            _ if std::env::var("ACRTASK_TEST_SKIP_ENGINE").is_ok_and(|v| v == "1") => {
                eprintln!("skipped: ACRTASK_TEST_SKIP_ENGINE=1");
                None
            }
            _ => panic!(
                "DOCKER_HOST and ACRTASK_TEST_REGISTRY name no engine and registry for this test; \
                 run `eval \"$(cargo xtask env)\"` first, or set ACRTASK_TEST_SKIP_ENGINE=1"
            ),
        }
    }
}

/// Returns the engine, or returns from the test if engine tests are to be skipped.
macro_rules! engine {
    () => {
        match $crate::harness::Engine::from_env() {
            Some(engine) => engine,
            None => return,
        }
    };
}
pub(crate) use engine;

struct Nothing;

impl Lookup for Nothing {
    fn alias_source(&self, location: &str) -> Result<String, String> {
        Err(format!("no {location}"))
    }
    fn secret(&self, _: &SecretDeclaration) -> Result<Option<acrtask_model::Secret>, String> {
        Ok(None)
    }
}

/// A task with its context and options.
pub(crate) struct Task {
    pub(crate) id: RunId,
    text: String,
    pub(crate) context: Arc<TempDir>,
    pub(crate) options: Options,
    pub(crate) facts: RunVariables,
    pub(crate) cancel: CancellationToken,
    pub(crate) extra: Extra,
}

/// Additional parts of a request.
#[derive(Default)]
pub(crate) struct Extra {
    pub(crate) fence: Option<Arc<dyn Fence>>,
    pub(crate) pins: BTreeMap<ImageRef, Digest>,
    pub(crate) credentials: Option<Credentials>,
    pub(crate) cache: Option<StepCache>,
    pub(crate) push_by_digest: bool,
    /// The cache namespace. `None`: that of all tests.
    pub(crate) namespace: Option<CacheNamespace>,
}

impl Extra {
    fn domain(&self) -> RunDomain {
        let namespace = self.namespace.clone();
        RunDomain {
            trust: TrustDomain::Local,
            cache_namespace: namespace.unwrap_or(CacheNamespace::from_bytes([7; 16])),
            cache_seal_key: CacheSealKey::from_bytes([7; 32]),
        }
    }
}

/// A finished run.
pub(crate) struct Ran {
    pub(crate) id: RunId,
    pub(crate) report: Report,
    pub(crate) events: Vec<Event>,
}

pub(crate) fn endpoint() -> DockerEndpoint {
    DockerEndpoint::from_env(|name| std::env::var(name).ok())
}

impl Engine {
    /// Returns a task. Replaces `$R` by the registry, `$BASH` and `$BUSYBOX` by images, and `$ID`
    /// by the run's id.
    pub(crate) fn task(&self, text: &str) -> Task {
        let id = RunId::from_random(rand_bits());
        let text = text
            .replace("$BASH", "$R/base/bash:5.2")
            .replace("$BUSYBOX", "$R/base/busybox:1.36")
            .replace("$R", &self.registry)
            .replace("$ID", id.as_str());
        Task {
            facts: RunVariables {
                id: id.to_string(),
                registry: self.registry.clone(),
                ..RunVariables::default()
            },
            id,
            text,
            context: Arc::new(tempfile::tempdir().unwrap()),
            options: Options::new(endpoint()),
            cancel: CancellationToken::new(),
            extra: Extra::default(),
        }
    }

    pub(crate) async fn run(&self, text: &str) -> Ran {
        self.task(text).run().await
    }
}

/// Returns bits that differ in each test process and each call.
fn rand_bits() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

impl Task {
    pub(crate) fn file(self, path: &str, text: &str) -> Self {
        let path = self.context.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(
            path,
            text.replace("$BASH", &format!("{}/base/bash:5.2", self.facts.registry))
                .replace(
                    "$BUSYBOX",
                    &format!("{}/base/busybox:1.36", self.facts.registry),
                ),
        )
        .unwrap();
        self
    }

    pub(crate) fn link(self, path: &str, target: &str) -> Self {
        std::os::unix::fs::symlink(target, self.context.path().join(path)).unwrap();
        self
    }

    pub(crate) fn request(&self) -> RunRequest {
        let source = TaskSource {
            name: "acr-task.yaml".into(),
            text: self.text.clone(),
        };
        let resolution = resolve(&source, &self.facts, &Nothing);
        let problems: Vec<_> = resolution.for_run();
        let Some(mut plan) = resolution.plan else {
            panic!("{}", render_diagnostics(&source, &problems, false, 120))
        };
        plan.pins.clone_from(&self.extra.pins);
        for step in &mut plan.steps {
            if let (StepKind::Build(build), Some(cache)) = (&mut step.kind, &self.extra.cache) {
                build.cache = Some(cache.clone());
            }
        }
        RunRequest {
            context: Some(self.context.path().to_owned()),
            fence: self.extra.fence.clone(),
            records: Arc::new(acrtask_executor::NoRecords),
            credentials: self.extra.credentials.clone(),
            push_by_digest: self.extra.push_by_digest,
            ..RunRequest::new(self.id.clone(), plan, self.extra.domain())
        }
    }

    pub(crate) async fn run(self) -> Ran {
        self.run_and(|_, _| {}).await
    }

    /// Runs the task and calls `on` with each event as it happens.
    pub(crate) async fn run_and(self, mut on: impl FnMut(&Event, &CancellationToken)) -> Ran {
        let request = self.request();
        let executor = Executor::connect(self.options.clone()).await.unwrap();
        let (sender, mut receiver) = mpsc::channel(16);
        let cancel = self.cancel.clone();
        let collecting = async {
            let mut events = Vec::new();
            while let Some(event) = receiver.recv().await {
                on(&event, &cancel);
                events.push(event);
            }
            events
        };
        let running = executor.run(request, sender, self.cancel.clone());
        let both = async { tokio::join!(running, collecting) };
        let (report, events) = tokio::time::timeout(LIMIT, both)
            .await
            .expect("the run takes too long");
        // The engine removes networks after the result.
        wait_until_removed(&self.id).await;
        Ran {
            id: self.id,
            report,
            events,
        }
    }
}

impl Ran {
    /// Asserts that the run succeeded, and shows its events otherwise.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(
            self.report.outcome.state,
            RunState::Succeeded,
            "{}",
            self.story()
        );
        self
    }

    #[track_caller]
    pub(crate) fn failed(self) -> Self {
        assert_eq!(
            self.report.outcome.state,
            RunState::Failed,
            "{}",
            self.story()
        );
        self
    }

    pub(crate) fn state(&self, step: &str) -> StepState {
        let id = StepId::new(step).unwrap();
        self.report
            .steps
            .iter()
            .find(|(s, ..)| *s == id)
            .unwrap()
            .1
            .clone()
    }

    /// Returns all output of a step.
    pub(crate) fn output(&self, step: &str) -> String {
        let mut out = String::new();
        for event in &self.events {
            if let EventKind::Output { step: of, text, .. } = &event.kind
                && of.as_str() == step
            {
                out.push_str(text);
                out.push('\n');
            }
        }
        out
    }

    pub(crate) fn warnings(&self) -> Vec<String> {
        let warning = |event: &Event| match &event.kind {
            EventKind::Warning { message, .. } => Some(message.clone()),
            _ => None,
        };
        self.events.iter().filter_map(warning).collect()
    }

    /// Returns the reason of a step's failure.
    pub(crate) fn reason(&self, step: &str) -> String {
        match self.state(step) {
            StepState::Failed { reason, .. } => reason,
            other => panic!("{step} is {other:?}\n{}", self.story()),
        }
    }

    pub(crate) fn story(&self) -> String {
        self.events
            .iter()
            .map(|event| format!("{}\n", serde_json::to_string(&event.kind).unwrap()))
            .collect()
    }
}

/// Returns the engine's objects with the label of a run.
pub(crate) async fn left_on_engine(run: &RunId) -> Vec<String> {
    let docker = docker().await;
    let filters = std::collections::HashMap::from([(
        "label".to_owned(),
        vec![format!("{}={run}", acrtask_executor::owner::RUN_LABEL)],
    )]);
    use bollard::query_parameters as q;
    let mut left = Vec::new();
    let options = q::ListContainersOptionsBuilder::new()
        .all(true)
        .filters(&filters)
        .build();
    for container in docker.list_containers(Some(options)).await.unwrap() {
        left.push(format!("container {:?}", container.names));
    }
    let options = q::ListNetworksOptionsBuilder::new()
        .filters(&filters)
        .build();
    for network in docker.list_networks(Some(options)).await.unwrap() {
        left.push(format!("network {:?}", network.name));
    }
    let options = q::ListVolumesOptionsBuilder::new()
        .filters(&filters)
        .build();
    for volume in docker
        .list_volumes(Some(options))
        .await
        .unwrap()
        .volumes
        .unwrap_or_default()
    {
        left.push(format!("volume {}", volume.name));
    }
    let options = q::ListImagesOptionsBuilder::new().filters(&filters).build();
    for image in docker.list_images(Some(options)).await.unwrap() {
        left.push(format!("image {:?}", image.repo_tags));
    }
    left
}

/// Waits until the engine has no object of the run.
pub(crate) async fn wait_until_removed(id: &RunId) {
    for _ in 0..200 {
        if left_on_engine(id).await.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("still there: {:?}", left_on_engine(id).await);
}

pub(crate) async fn docker() -> bollard::Docker {
    bollard::Docker::connect_with_host(&endpoint().host)
        .unwrap()
        .negotiate_version()
        .await
        .unwrap()
}
