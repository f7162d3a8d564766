//! Execution of one plan on one machine: the graph, the steps, events, logs and cleanup.
//!
//! [`Executor::connect`] detects the capabilities of the engine and the builder. [`Executor::run`]
//! executes a [`Plan`](acrtask_spec::plan::Plan) and reports its progress as events.
//!
//! Invariants:
//! - No text of a task reaches a shell of this machine. No path of this machine is mounted into a
//!   container.
//! - Each object that a run creates on the engine has a label with the run's id. The executor
//!   removes these objects at the end of the run, and networks after its result is reported.
//!   [`Executor::remove_orphans`] removes the objects of dead processes.
//! - A push step reports the digest that the registry has. It equals the digest that was built.
//! - Output is masked before it becomes an event. A slow receiver delays output and loses none of
//!   it.
//!
//! Left out: running steps on several engines, and resuming a run.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

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
mod login_help;
mod orphans;
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
pub use acrtask_upkeep::{NoRecords, Records};
pub use archive::pack_folder;
pub use engine::{DockerEndpoint, EngineFacts};
pub use error::{ConnectError, EngineError};
pub use fence::Fence;
pub use selection::Selection;
pub use steps::build::bases::runtime_base;

use builder::Builder;
use engine::Engine;
use owner::Owner;

/// Properties of a builder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuilderFacts {
    /// The name of the builder, with its version if the builder reports one.
    pub description: String,
    /// Platforms it builds for, such as `linux/amd64`. Its own platform is the first.
    pub platforms: Vec<String>,
    /// Set if the builder can store a layer cache in a registry.
    pub registry_cache: bool,
}

/// Configuration of an [`Executor`].
#[derive(Debug, Clone)]
pub struct Options {
    /// The engine that runs containers.
    pub docker: DockerEndpoint,
    /// The BuildKit that builds images. `None`: the engine's own.
    pub builder: Option<acrtask_buildkit::Endpoint>,
    /// Credentials for registries. Each run adds those that its task file declares.
    pub credentials: Credentials,
    /// Registries without TLS, in addition to loopback addresses.
    pub insecure_registries: Vec<String>,
    /// Registries that the operator configured. The `oci://` context of a task may use one of them
    /// even if its address is private.
    pub operator_registries: Vec<String>,
    /// Permissions that reach beyond the containers of a task.
    pub allow: Allow,
    /// Disables pushing. Push steps then only report that pushes are off.
    pub no_push: bool,
    /// Environment of every container. Also the source of the values of `-e NAME`, `--build-arg
    /// NAME` and `--secret env=NAME`.
    pub env: Vec<(String, String)>,
    /// Time limit of a run. The shorter one of this limit and the plan's applies.
    pub timeout: Option<Duration>,
    /// Parent folder of the folders for scratch files.
    pub scratch_root: PathBuf,
    /// Path of the socket of the SSH agent that `--ssh` forwards to builds.
    pub ssh_agent: Option<PathBuf>,
    /// Set if the engine belongs to the user who runs the task. An image that its registry does not
    /// have may then come from the engine. A successful run gives its image names to the engine.
    /// Never set for a runner.
    pub own_machine: bool,
}

impl Options {
    /// Returns options with the default builder, no credentials and no permissions.
    pub fn new(docker: DockerEndpoint) -> Self {
        Self {
            docker,
            builder: None,
            credentials: Credentials::new(),
            insecure_registries: Vec::new(),
            operator_registries: Vec::new(),
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

/// Permissions of the operator beyond a task's own containers and builds.
///
/// Each of the first three lets a task control the whole machine. The others let it determine
/// layers of all builds of the builder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Allow {
    /// `--allow docker-socket`: the engine's socket in a step.
    pub docker_socket: bool,
    /// `--allow privileged`: privileged containers, added capabilities, the host's namespaces.
    pub privileged: bool,
    /// `--allow host-network`: the machine's own network, and the networks that existed before the
    /// run.
    pub host_network: bool,
    /// `--allow cache-imports`: build caches that no run of the domain has sealed.
    pub cache_imports: bool,
    /// `--allow ssh-agent`: the operator's SSH agent, at a runner.
    pub ssh_agent: bool,
    /// `--allow frontends`: frontends other than the builder's own and the official ones.
    pub frontends: bool,
}

/// The input of [`Executor::run`].
#[derive(Debug)]
pub struct RunRequest {
    /// Id of the run, which is part of its labels and object names on the engine.
    pub id: RunId,
    /// The domain of what the run may share with other runs on the engine and the builder.
    pub domain: RunDomain,
    /// Number of the attempt, from 1. The engine's objects have labels with id and attempt, which
    /// are unique together. An attempt that was abandoned elsewhere therefore does not conflict
    /// with this one.
    pub attempt: u32,
    /// The steps to execute, with their networks, volumes and secrets.
    pub plan: Plan,
    /// The folder that `.` refers to. The run only reads it. `None`: an empty workspace.
    pub context: Option<PathBuf>,
    /// The file that `build -` and `build -f -` read.
    pub stdin: Option<PathBuf>,
    /// Disables pushing, in addition to [`Options::no_push`].
    pub no_push: bool,
    /// Pushes images by digest only. The tags in the registries do not change.
    pub push_by_digest: bool,
    /// Credentials of the run, which replace [`Options::credentials`].
    pub credentials: Option<Credentials>,
    /// Access to git repositories that are contexts of builds.
    pub git: GitAccess,
    /// Addresses from which builds may fetch files.
    pub reach: Reach,
    /// The check before each write to a registry under an image's name.
    pub fence: Option<Arc<dyn Fence>>,
    /// The server's records of repositories, for purges.
    pub records: Arc<dyn Records>,
}

/// Access to the git repositories that steps name.
#[derive(Debug, Clone, Default)]
pub struct GitAccess {
    /// Keys for SSH, each for one host.
    pub ssh_keys: Vec<acrtask_source::SshKey>,
}

/// Addresses from which the builds of a run may fetch files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reach {
    /// Public addresses. The task needs no trust for the network of this machine.
    #[default]
    Public,
    /// All addresses that this machine and its builder can reach.
    Everything,
}

impl RunRequest {
    /// Returns a request for the first attempt of a run.
    ///
    /// The run has no files, uses the executor's own credentials, may push, and may reach public
    /// addresses only.
    pub fn new(id: RunId, plan: Plan, domain: RunDomain) -> Self {
        Self {
            id,
            domain,
            attempt: 1,
            plan,
            context: None,
            stdin: None,
            no_push: false,
            push_by_digest: false,
            credentials: None,
            git: GitAccess::default(),
            reach: Reach::default(),
            fence: None,
            records: Arc::new(NoRecords),
        }
    }
}

/// The result of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Final state and, for a failure, its reason.
    pub outcome: Outcome,
    /// The final state and the duration of each step, in file order.
    pub steps: Vec<(StepId, StepState, Duration)>,
    /// Images that build steps built.
    pub built: Vec<BuiltImage>,
    /// Images that reached a registry.
    pub pushed: Vec<PushedImage>,
    /// Bases of the images that were built, and images that ran.
    pub bases: Vec<Base>,
    /// Objects that the executor could not remove, or that the task asked to keep.
    pub left: Vec<String>,
}

/// An image that a build step built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltImage {
    /// The step that built the image.
    pub step: StepId,
    /// Complete names, with registry and tag.
    pub names: Vec<String>,
    /// Digest of the manifest or index.
    pub digest: Digest,
}

/// An image that reached its registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushedImage {
    /// The step that pushed the image.
    pub step: StepId,
    /// The full name with its tag.
    pub name: String,
    /// The digest that the registry has.
    pub digest: Digest,
    /// Set if the image is staged: pushed by digest only, with its tag unchanged.
    pub staged: bool,
}

/// The base of an image, or an image that a step ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// The step that used the image.
    pub step: StepId,
    /// The use of the image in the step.
    pub role: BaseRole,
    /// The name as the step wrote it.
    pub name: String,
    /// The digest that the step used.
    pub digest: Digest,
    /// The source of the digest.
    pub evidence: Evidence,
}

/// Maximum time for which the removal of orphans delays a start.
pub const ORPHAN_REMOVAL_LIMIT: Duration = Duration::from_secs(2);

/// Time in which the engine receives a request that has been sent.
const REQUEST_TIME: Duration = Duration::from_millis(10);

/// Executes runs on one engine.
#[derive(Debug)]
pub struct Executor {
    options: Arc<Options>,
    engine: Engine,
    builder: Builder,
    owner: Owner,
    /// Image removals of finished runs.
    removals: TaskTracker,
    /// Network removals of finished and of killed runs.
    networks: TaskTracker,
    /// Images that runs of this process may read.
    proofs: Arc<possession::Proofs>,
    /// Shared by runs and exclusive for housekeeping, so that no run loses an image that it is
    /// about to use.
    runs: tokio::sync::RwLock<()>,
}

impl Executor {
    /// Connects to the engine and the builder and reads their capabilities.
    ///
    /// # Errors
    /// [`ConnectError`] names the address and a remedy.
    pub async fn connect(options: Options) -> Result<Self, ConnectError> {
        let (engine, builder) = tokio::join!(
            Engine::connect(&options.docker),
            Builder::connect(&options.docker, options.builder.as_ref()),
        );
        Ok(Self {
            // If both fail, the error of the engine is the more helpful one.
            engine: engine?,
            builder: builder?,
            options: Arc::new(options),
            owner: Owner::this_process(),
            removals: TaskTracker::new(),
            networks: TaskTracker::new(),
            proofs: Arc::default(),
            runs: tokio::sync::RwLock::default(),
        })
    }

    /// Returns what the engine reported about itself.
    pub fn engine(&self) -> &EngineFacts {
        &self.engine.facts
    }

    /// Returns the properties of the builder.
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

    /// Checks that the engine still responds.
    ///
    /// # Errors
    /// [`EngineError`] if it does not.
    pub async fn ping(&self) -> Result<(), EngineError> {
        let asked = self.engine.docker.ping().await;
        asked
            .map(drop)
            .map_err(EngineError::could_not("reach the Docker engine"))
    }

    /// Removes the containers, networks, volumes, images and scratch folders of dead processes.
    ///
    /// Objects of a live process stay, as do those whose owner cannot be judged from here. Returns
    /// one line of text for each removal within [`ORPHAN_REMOVAL_LIMIT`]. On a busy engine the
    /// removal takes longer and continues in the background. [`Executor::finish_removals`] waits
    /// for it.
    pub async fn remove_orphans(&self) -> Vec<String> {
        let (engine, owner) = (self.engine.clone(), self.owner.clone());
        let root = self.options.scratch_root.clone();
        let networks = self.networks.clone();
        let removing =
            async move { orphans::remove_orphans(&engine, &owner, &root, &networks).await };
        let removing = self.removals.spawn(removing);
        match tokio::time::timeout(ORPHAN_REMOVAL_LIMIT, removing).await {
            Ok(removed) => removed.unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }

    /// Removes images that runs of a runner pulled longer than `age` ago, and returns their number.
    /// Returns `None` if a run is in progress; try again later.
    ///
    /// # Errors
    /// [`EngineError`] if the engine does not list its images. Images that the engine refuses to
    /// remove, such as those of a container, stay.
    #[allow(
        clippy::disallowed_methods,
        reason = "the boundary to the pure code that takes the time"
    )]
    pub async fn remove_pulled_images(&self, age: Duration) -> Result<Option<usize>, EngineError> {
        let Ok(_alone) = self.runs.try_write() else {
            return Ok(None);
        };
        let before = SystemTime::now() - age;
        image_names::remove_pulled(&self.engine, before)
            .await
            .map(Some)
    }

    /// Removes entries of BuildKit's cache beyond `limit`, including those of other users of the
    /// builder. Entries in use by a build stay.
    ///
    /// # Errors
    /// [`PruneError`] if the builder fails to prune.
    pub async fn prune_build_cache(&self, limit: CacheLimit) -> Result<PrunedCache, PruneError> {
        self.builder.client.prune_cache(limit).await
    }

    /// Waits at most for `limit` until the engine has removed the images of finished runs and the
    /// orphans, and until it has received the requests to remove networks. It completes these
    /// requests after the end of this process. The next start removes the rest.
    pub async fn finish_removals(&self, limit: Duration) {
        for (removals, limit) in [(&self.removals, limit), (&self.networks, REQUEST_TIME)] {
            removals.close();
            let _ = tokio::time::timeout(limit, removals.wait()).await;
            removals.reopen();
        }
    }

    /// Executes a plan.
    ///
    /// `events` receives each event as it happens, first `RunStarted` and last `RunFinished`. A
    /// slow receiver slows the run down; a closed one has no effect. `cancel` stops the run: this
    /// returns after the steps are stopped and everything is removed.
    ///
    /// Dropping the future stops the run too. The removal then continues in the background.
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
