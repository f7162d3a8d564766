//! One Plan on one machine: the graph, the steps, events, logs, and the removal of everything a run made.
//!
//! [`Executor::connect`] finds out what the engine and the builder can do; [`Executor::run`] carries a
//! [`Plan`](acrtask_spec::plan::Plan) out and tells everything as events while it does.
//!
//! Invariants:
//! - No line of a task reaches a shell of this machine; no path of this machine is mounted anywhere.
//! - Everything that a run makes on the engine carries its id as a label and is removed at its end; what a
//!   killed process left is removed by [`Executor::remove_leftovers`].
//! - What a push step reports is the digest that the registry has, and it is the one that was built.
//! - Output is masked before it becomes an event, and held back rather than cut when nobody reads.
//!
//! Left out: running steps on several engines, and resuming a run.

mod archive;
mod builder;
mod cache_seal;
mod cmd;
mod context;
pub mod dockerfile;
mod engine;
mod error;
mod fence;
mod graph;
mod image_names;
mod images;
mod leftovers;
mod login_help;
mod output;
pub mod owner;
mod policy;
mod possession;
mod run;
mod scope;
mod selection;
mod steps;
mod upload;
mod workspace;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use acrtask_model::{
    Digest, Event, Outcome, RunDomain, RunId, StepId, StepState,
    events::{BaseRole, Evidence},
};
use acrtask_registry::{Credentials, Registry, RegistryError, Settings};
use acrtask_spec::plan::Plan;
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use acrtask_buildkit::{CacheLimit, PruneError, PrunedCache};
pub use archive::pack_folder;
pub use engine::{DockerEndpoint, EngineFacts};
pub use error::{ConnectError, EngineError};
pub use fence::Fence;
pub use selection::Selection;
pub use steps::build::bases::runtime_base;

use builder::Builder;
use engine::Engine;
use owner::Owner;

/// What is known of a builder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuilderFacts {
    /// What it is, with its version where it tells one.
    pub description: String,
    /// What it builds for, its own platform first: `linux/amd64`.
    pub platforms: Vec<String>,
    /// Whether it can keep a layer cache in a registry.
    pub registry_cache: bool,
}

/// How runs are executed.
#[derive(Debug, Clone)]
pub struct Options {
    /// The engine that runs containers.
    pub docker: DockerEndpoint,
    /// The BuildKit that builds; nothing: the engine's own.
    pub builder: Option<acrtask_buildkit::Endpoint>,
    /// Credentials for registries. What a task file declares is added for its own run.
    pub credentials: Credentials,
    /// Registries without TLS, besides loopback.
    pub insecure_registries: Vec<String>,
    /// Registries that the operator named: a task's `oci://` context may be there also where the address is private.
    pub known_registries: Vec<String>,
    /// What tasks may do that lets them out of their containers.
    pub allow: Allow,
    /// Push steps push nothing and say so.
    pub no_push: bool,
    /// Reaches every container; also what `-e NAME`, `--build-arg NAME` and `--secret env=NAME` take values from.
    pub env: Vec<(String, String)>,
    /// Limit of a whole run; the plan's own limit holds where it is shorter.
    pub timeout: Option<Duration>,
    /// Where folders for scratch files are made.
    pub scratch_root: PathBuf,
    /// The SSH agent that `--ssh` hands to builds: the socket's path.
    pub ssh_agent: Option<PathBuf>,
    /// The engine is that of the person who runs the task. An image that its registry does not have may be the
    /// engine's own, and the engine gets the names of what a successful run built. Never set for a runner.
    pub own_machine: bool,
}

impl Options {
    /// Docker's own defaults, no credentials, nothing allowed.
    pub fn new(docker: DockerEndpoint) -> Self {
        Self {
            docker,
            builder: None,
            credentials: Credentials::new(),
            insecure_registries: Vec::new(),
            known_registries: Vec::new(),
            allow: Allow::default(),
            no_push: false,
            env: Vec::new(),
            timeout: None,
            scratch_root: std::env::temp_dir(),
            ssh_agent: None,
            own_machine: false,
        }
    }
}

impl Options {
    fn registry(&self, credentials: &Credentials) -> Result<Registry, RegistryError> {
        let settings = Settings {
            insecure: self.insecure_registries.clone(),
            ..Default::default()
        };
        Registry::new(credentials.clone(), settings)
    }
}

/// Permissions of the operator beyond a task's own containers and builds. Each of the first three gives the task the whole
/// machine; the others let it decide layers of all builds of the builder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Allow {
    /// `--allow docker-socket`: the engine's socket in a step.
    pub docker_socket: bool,
    /// `--allow privileged`: privileged containers, added capabilities, the host's namespaces.
    pub privileged: bool,
    /// `--allow host-network`: the machine's own network, and the networks that it had before the run.
    pub host_network: bool,
    /// `--allow cache-imports`: build caches that no run of the domain has sealed.
    pub cache_imports: bool,
    /// `--allow frontends`: frontends other than the builder's own and the official ones.
    pub frontends: bool,
}

/// One run.
#[derive(Debug)]
pub struct RunRequest {
    /// Its id.
    pub id: RunId,
    /// What it may share with other runs on the engine and the builder.
    pub domain: RunDomain,
    /// Which attempt at the run this is, from 1. Id and attempt together are unique on the engine: they are what its
    /// containers are labelled with, so that an attempt that was given up elsewhere is not in the way.
    pub attempt: u32,
    /// What to do.
    pub plan: Plan,
    /// The folder that `.` means: read, never written to. Nothing: an empty workspace.
    pub context: Option<PathBuf>,
    /// What `build -` and `build -f -` read.
    pub stdin: Option<PathBuf>,
    /// Push steps push nothing and say so, whatever [`Options::no_push`] says.
    pub no_push: bool,
    /// Images go to their registries by digest alone, and their tags stay as they are.
    pub hold: bool,
    /// The run's own credentials, in the place of [`Options::credentials`].
    pub credentials: Option<Credentials>,
    /// How contexts of builds that are git repositories may be reached.
    pub git: GitAccess,
    /// What builds may fetch.
    pub reach: Reach,
    /// Asked before anything is written to a registry under an image's name.
    pub fence: Option<Arc<dyn Fence>>,
}

/// How git repositories that steps name may be reached.
#[derive(Debug, Clone, Default)]
pub struct GitAccess {
    /// Keys for ssh, each for one host.
    pub ssh_keys: Vec<acrtask_source::SshKey>,
}

/// The files that builds of a run may fetch from a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reach {
    /// Those at public addresses: the task need not be trusted with what this machine reaches.
    #[default]
    Public,
    /// All that this machine and its builder reach.
    Everything,
}

impl RunRequest {
    /// Without files, with the executor's own credentials, free to push, and with public addresses alone.
    pub fn new(id: RunId, plan: Plan, domain: RunDomain) -> Self {
        Self {
            id,
            domain,
            attempt: 1,
            plan,
            context: None,
            stdin: None,
            no_push: false,
            hold: false,
            credentials: None,
            git: GitAccess::default(),
            reach: Reach::default(),
            fence: None,
        }
    }
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// Each step in file order: its final state, and how long it took.
    pub steps: Vec<(StepId, StepState, Duration)>,
    /// What build steps made.
    pub built: Vec<BuiltImage>,
    /// What reached a registry.
    pub pushed: Vec<PushedImage>,
    /// What images were made from, and which images ran.
    pub bases: Vec<Base>,
    /// What could not be removed, or was kept because the task said so.
    pub left: Vec<String>,
}

/// An image that a build step made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltImage {
    /// The step.
    pub step: StepId,
    /// Its names.
    pub names: Vec<String>,
    /// The digest of its manifest or index.
    pub digest: Digest,
}

/// An image that reached its registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushedImage {
    /// The step.
    pub step: StepId,
    /// Full name with tag.
    pub name: String,
    /// As the registry has it.
    pub digest: Digest,
    /// It is there by its digest alone; the tag is as it was.
    pub held: bool,
}

/// An image that another one was made from, or that a step ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// The step.
    pub step: StepId,
    /// What it was to the step.
    pub role: BaseRole,
    /// As it was asked for.
    pub name: String,
    /// What was used.
    pub digest: Digest,
    /// How that is known.
    pub evidence: Evidence,
}

/// Longest delay of a start by the removal of what dead runs left.
pub const LEFTOVERS_LIMIT: Duration = Duration::from_secs(2);

/// Executes runs on one engine.
#[derive(Debug)]
pub struct Executor {
    options: Arc<Options>,
    engine: Engine,
    builder: Builder,
    owner: Owner,
    /// Removals of images of runs that have ended.
    removals: TaskTracker,
    /// Images that runs of this process may read.
    proofs: Arc<possession::Proofs>,
    /// Shared by runs. Housekeeping takes it alone, so that no run loses an image that it is about to use.
    runs: tokio::sync::RwLock<()>,
}

impl Executor {
    /// Connects to the engine and the builder, and asks them what they can do.
    ///
    /// # Errors
    /// [`ConnectError`] names the address that was tried and what to do about it.
    pub async fn connect(options: Options) -> Result<Self, ConnectError> {
        let (engine, builder) = tokio::join!(
            Engine::connect(&options.docker),
            Builder::connect(&options.docker, options.builder.as_ref()),
        );
        Ok(Self {
            // Where both fail, the engine's address is the one to look at first.
            engine: engine?,
            builder: builder?,
            options: Arc::new(options),
            owner: Owner::this_process(),
            removals: TaskTracker::new(),
            proofs: Arc::default(),
            runs: tokio::sync::RwLock::default(),
        })
    }

    /// What the engine says of itself.
    pub fn engine(&self) -> &EngineFacts {
        &self.engine.facts
    }

    /// What is known of the builder.
    pub fn builder(&self) -> BuilderFacts {
        let capabilities = self.builder.client.capabilities();
        BuilderFacts {
            description: self.builder.describe(),
            platforms: capabilities.platforms.clone(),
            registry_cache: capabilities
                .missing(acrtask_buildkit::Feature::CacheExport)
                .is_none(),
        }
    }

    /// Asks the engine whether it still answers.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn check(&self) -> Result<(), EngineError> {
        let asked = self.engine.docker.ping().await;
        asked
            .map(drop)
            .map_err(EngineError::on("reach the Docker engine"))
    }

    /// Removes what runs left whose process is dead: containers, networks, volumes, images, scratch folders.
    /// What belongs to a process that lives, or that cannot be judged from here, is not touched. Returns what
    /// was removed within [`LEFTOVERS_LIMIT`], in words. A busy engine takes longer; the removal then goes on in the
    /// background, and [`Executor::finish_removals`] waits for it.
    pub async fn remove_leftovers(&self) -> Vec<String> {
        let (engine, owner) = (self.engine.clone(), self.owner.clone());
        let root = self.options.scratch_root.clone();
        let removing = async move { leftovers::remove(&engine, &owner, &root).await };
        let removing = self.removals.spawn(removing);
        match tokio::time::timeout(LEFTOVERS_LIMIT, removing).await {
            Ok(removed) => removed.unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }

    /// Removes images that runs of a runner pulled longer than `age` ago, and returns their number. `None` if a run is
    /// under way: ask again later.
    ///
    /// # Errors
    /// [`EngineError`] if the engine does not list its images. Images that it does not remove, as those of a container,
    /// stay.
    pub async fn remove_pulled_images(&self, age: Duration) -> Result<Option<usize>, EngineError> {
        let Ok(_alone) = self.runs.try_write() else {
            return Ok(None);
        };
        let before = SystemTime::now() - age;
        image_names::remove_pulled(&self.engine, before)
            .await
            .map(Some)
    }

    /// Removes entries of BuildKit's cache beyond `limit`, of other users of the builder too. Entries that a build uses
    /// stay.
    ///
    /// # Errors
    /// [`PruneError`] if the builder does not do it.
    pub async fn prune_build_cache(&self, limit: CacheLimit) -> Result<PrunedCache, PruneError> {
        self.builder.client.prune_cache(limit).await
    }

    /// Waits until the images of runs that have ended, and what dead runs left, are removed from the engine, at most for
    /// `limit`. What is left
    /// is removed by the next start.
    pub async fn finish_removals(&self, limit: Duration) {
        self.removals.close();
        let _ = tokio::time::timeout(limit, self.removals.wait()).await;
        self.removals.reopen();
    }

    /// Carries a plan out. `events` gets everything as it happens, first `RunStarted` and last
    /// `RunFinished`; a receiver that is slow slows the run down, one that has gone away does not matter.
    /// `cancel` stops the run: what runs is stopped and everything is removed before this returns.
    ///
    /// Dropping the future stops the run too; what it made is then removed in the background.
    pub async fn run(
        &self,
        request: RunRequest,
        events: mpsc::Sender<Event>,
        cancel: CancellationToken,
    ) -> Report {
        let _shared = self.runs.read().await;
        run::run(self, request, events, cancel).await
    }
}
