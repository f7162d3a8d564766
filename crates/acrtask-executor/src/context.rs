//! What all steps of one run share.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use acrtask_model::{Digest, ImageRef, RunDomain, RunId, Secret, mask::Patterns};
use acrtask_registry::{Credentials, IndexEntry, Registry, RegistryError};
use acrtask_spec::plan::{BuildStep, Network, Plan, Step, StepKind, Volume};
use tokio::sync::OnceCell;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Fence, GitAccess, Options, Reach,
    archive::{self, Pack},
    builder::{Builder, Recipes},
    cmd::body::pairs,
    engine::{Engine, Labels},
    error::EngineError,
    image_names::OwnNames,
    images::{Images, Origin},
    output::{Events, StepOutput, lock},
    possession::Proofs,
    workspace::Workspace,
};

/// How long a process may take to end by itself when it is told to.
pub(crate) const STOP_GRACE: Duration = Duration::from_secs(1);

/// Attempts at removing one thing at the end of a run.
const REMOVE_ATTEMPTS: u32 = 5;

/// Ends the description of a container that stays because its task keeps it.
pub(crate) const KEPT: &str = "(kept)";

/// What all steps of one run share.
pub(crate) struct RunContext {
    pub(crate) id: RunId,
    /// What the run shares with others.
    pub(crate) domain: RunDomain,
    pub(crate) options: Arc<Options>,
    /// Changed by `docker login`.
    registry: Mutex<(Credentials, Registry)>,
    pub(crate) engine: Engine,
    pub(crate) builder: Builder,
    pub(crate) labels: Labels,
    pub(crate) events: Events,
    pub(crate) patterns: Patterns,
    pub(crate) workspace: Arc<Workspace>,
    pub(crate) images: Images,
    /// Images that runs of this process may read.
    pub(crate) proofs: Arc<Proofs>,
    /// The names of the run's images in the engine.
    pub(crate) image_names: OwnNames,
    pub(crate) recipes: Recipes,
    /// What `-` of a build reads.
    pub(crate) stdin: Option<PathBuf>,
    /// Nothing is pushed, and that is said.
    pub(crate) no_push: bool,
    /// Images are pushed without their tags, and that is said.
    pub(crate) hold: bool,
    pub(crate) git: GitAccess,
    pub(crate) reach: Reach,
    /// What was pushed without its tag: by the name that it is to get, the digest.
    held: Mutex<BTreeMap<ImageRef, Digest>>,
    fence: Option<Arc<dyn Fence>>,
    pub(crate) plan: Plan,
    networks: HashMap<String, OnceCell<()>>,
    volumes: HashMap<String, OnceCell<()>>,
    /// Containers that lines started with `-d`: by the name that they can be called by, the engine's id.
    named: Mutex<Vec<NamedContainer>>,
    /// Manifest lists that `docker manifest` is putting together, by name.
    pub(crate) manifests: Mutex<BTreeMap<String, Vec<IndexEntry>>>,
    /// Removals under way while later steps run.
    pub(crate) background: TaskTracker,
    /// What could not be removed, once that has been tried.
    left: OnceCell<Vec<String>>,
}

/// A container that later lines can name.
#[derive(Debug, Clone)]
pub(crate) struct NamedContainer {
    pub(crate) id: String,
    /// The step's id, and what `--name` said.
    pub(crate) names: Vec<String>,
}

/// What a run is made of beside its plan.
pub(crate) struct Parts {
    pub(crate) id: RunId,
    pub(crate) domain: RunDomain,
    pub(crate) options: Arc<Options>,
    pub(crate) credentials: Credentials,
    pub(crate) engine: Engine,
    pub(crate) builder: Builder,
    pub(crate) registry: Registry,
    pub(crate) proofs: Arc<Proofs>,
    pub(crate) labels: Labels,
    pub(crate) events: Events,
    pub(crate) patterns: Patterns,
    pub(crate) workspace: Arc<Workspace>,
    pub(crate) stdin: Option<PathBuf>,
    pub(crate) no_push: bool,
    pub(crate) hold: bool,
    pub(crate) git: GitAccess,
    pub(crate) reach: Reach,
    pub(crate) fence: Option<Arc<dyn Fence>>,
}

/// What must never be seen of a run.
pub(crate) fn patterns(plan: &Plan, domain: &RunDomain) -> Patterns {
    let credentials = plan
        .credentials
        .iter()
        .map(|credential| &credential.password);
    let files = plan.volumes.iter().flat_map(|volume| volume.files.values());
    let namespace = domain.cache_namespace.as_secret();
    Patterns::new(
        plan.secrets
            .iter()
            .chain(credentials)
            .chain(files)
            .chain([namespace]),
    )
}

impl RunContext {
    pub(crate) fn new(parts: Parts, plan: Plan) -> Self {
        let cells = |names: &mut dyn Iterator<Item = &String>| {
            names.map(|name| (name.clone(), OnceCell::new())).collect()
        };
        Self {
            id: parts.id,
            domain: parts.domain,
            options: parts.options,
            registry: Mutex::new((parts.credentials, parts.registry)),
            manifests: Mutex::default(),
            engine: parts.engine,
            builder: parts.builder,
            image_names: OwnNames::new(&parts.labels.scope),
            labels: parts.labels,
            events: parts.events,
            patterns: parts.patterns,
            workspace: parts.workspace,
            images: Images::default(),
            proofs: parts.proofs,
            recipes: Recipes::default(),
            stdin: parts.stdin,
            no_push: parts.no_push,
            hold: parts.hold,
            git: parts.git,
            reach: parts.reach,
            held: Mutex::default(),
            fence: parts.fence,
            networks: cells(&mut plan.networks.iter().map(|network| &network.name)),
            volumes: cells(&mut plan.volumes.iter().map(|volume| &volume.name)),
            named: Mutex::default(),
            background: TaskTracker::new(),
            left: OnceCell::new(),
            plan,
        }
    }

    /// Whether a fence stands before the run's pushes.
    pub(crate) fn is_fenced(&self) -> bool {
        self.fence.is_some()
    }

    /// Returns the name and digest of an image that the run has pushed without its tag, or that the plan pins.
    pub(crate) fn pinned(&self, image: &ImageRef) -> Option<ImageRef> {
        let held = self.held_at(image);
        let digest = held.or_else(|| self.plan.pins.get(image).cloned())?;
        Some(image.at(digest))
    }

    /// Returns the repositories of the registry of `name` that this run read or pushed to.
    pub(crate) fn readable_repositories(&self, name: &ImageRef) -> Vec<ImageRef> {
        let found = self.images.found_names();
        let built = self.images.by_name().into_keys();
        let mut all: Vec<ImageRef> = found
            .into_iter()
            .chain(built)
            .filter(|other| other.registry() == name.registry())
            .map(|other| other.untagged())
            .collect();
        all.sort();
        all.dedup();
        all
    }

    /// Returns a new name for an image of this run in the engine.
    pub(crate) fn new_image_name(&self) -> Result<ImageRef, String> {
        let scratch = || {
            self.workspace
                .scratch()
                .map_err(|error| crate::error::chain(&error))
        };
        self.image_names.next(scratch)
    }

    /// Returns `true` if the run is one build on one's own machine. It has succeeded when its image is there, so the
    /// build itself gives the names.
    pub(crate) fn publishes_at_once(&self) -> bool {
        let [step] = self.plan.steps.as_slice() else {
            return false;
        };
        self.options.own_machine
            && matches!(&step.kind, StepKind::Build(build) if has_no_outputs(build))
    }

    /// Gives the names of what the run built to the images of the engine, as `docker build -t` does. For a run on
    /// one's own machine that has succeeded.
    pub(crate) async fn publish_names(&self) {
        if self.publishes_at_once() {
            return;
        }
        let named = self.images.by_name();
        let built = named.iter().filter(|(name, image)| {
            matches!(image.origin, Origin::Engine(_)) && name.digest().is_none()
        });
        let tagged = built.map(|(name, image)| async move {
            if let Err(error) = self
                .engine
                .tag_image(&image.in_engine(&self.engine), name)
                .await
            {
                let message = format!(
                    "the engine did not get the name: {}",
                    crate::error::chain(&error)
                );
                self.events.warn(Some(&image.step), message, None).await;
            }
        });
        futures::future::join_all(tagged).await;
    }

    /// Remembers an image that was pushed without its tag.
    pub(crate) fn hold_image(&self, image: &ImageRef, digest: &Digest) {
        lock(&self.held).insert(image.clone(), digest.clone());
    }

    /// The digest of what this run pushed without this tag.
    pub(crate) fn held_at(&self, image: &ImageRef) -> Option<Digest> {
        lock(&self.held).get(image).cloned()
    }

    /// All that this run pushed without its tag.
    pub(crate) fn all_held(&self) -> BTreeMap<ImageRef, Digest> {
        lock(&self.held).clone()
    }

    /// Where a registry has what a tag means to this run.
    pub(crate) fn in_registry(&self, image: ImageRef) -> ImageRef {
        match self.held_at(&image) {
            Some(digest) => image.at(digest),
            None => image,
        }
    }

    /// The credentials of the run as they stand now.
    pub(crate) fn credentials(&self) -> Credentials {
        lock(&self.registry).0.clone()
    }

    /// The client for registries, with these credentials.
    pub(crate) fn registry(&self) -> Registry {
        lock(&self.registry).1.clone()
    }

    /// Adds a credential for the rest of the run.
    pub(crate) fn log_in(
        &self,
        host: &str,
        user: &str,
        password: Secret,
    ) -> Result<(), RegistryError> {
        let credentials = self.credentials().with(host, user, password);
        let registry = self.options.registry(&credentials)?;
        *lock(&self.registry) = (credentials, registry);
        Ok(())
    }

    /// True for a registry that is spoken to without TLS.
    pub(crate) fn is_insecure(&self, registry: &str) -> bool {
        let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
        matches!(host, "localhost" | "127.0.0.1" | "[::1]")
            || self
                .options
                .insecure_registries
                .iter()
                .any(|r| r == registry)
    }

    /// A variable of the step's environment, else of the run's; never one of this process.
    pub(crate) fn variable(&self, step: &Step, name: &str) -> Option<String> {
        let of_step = pairs(&step.env).filter(|(key, _)| key == name).last();
        let of_run = || {
            self.options
                .env
                .iter()
                .rfind(|(key, _)| key == name)
                .cloned()
        };
        of_step.or_else(of_run).map(|(_, value)| value)
    }

    /// Returns the engine's name for the volume `name` of the task. It is always a volume of this run.
    pub(crate) fn volume_name(&self, name: &str) -> String {
        self.labels.scope.object(name)
    }

    /// Makes the network `name` of the plan, once.
    pub(crate) async fn ensure_network(&self, name: &str) -> Result<(), EngineError> {
        let Some(network) = self.plan.networks.iter().find(|n| n.name == name) else {
            return Ok(());
        };
        self.networks[name]
            .get_or_try_init(|| async {
                if network.skip_creation {
                    return Ok(());
                }
                self.create_network(network).await
            })
            .await
            .copied()
    }

    async fn create_network(&self, network: &Network) -> Result<(), EngineError> {
        self.engine
            .create_network(&self.network_name(network), network, &self.labels)
            .await
    }

    /// The engine's name for a network: one that the task says is there already keeps its own.
    pub(crate) fn network_name(&self, network: &Network) -> String {
        if network.skip_creation {
            network.name.clone()
        } else {
            self.labels.scope.object(&network.name)
        }
    }

    /// Puts the files of the volume `name` into it, once, through a container that mounts it at `path`
    /// and has not been started. They go over the engine's connection into a volume that only root of the
    /// engine's machine can look into, and never to a disk of this one.
    pub(crate) async fn fill_volume(
        &self,
        container: &str,
        name: &str,
        path: &str,
    ) -> Result<(), EngineError> {
        let Some(volume) = self.plan.volumes.iter().find(|v| v.name == name) else {
            return Ok(());
        };
        self.volumes[name]
            .get_or_try_init(|| async {
                self.engine
                    .upload(container, path, archive::pack(secret_files(volume)))
                    .await
            })
            .await
            .copied()
    }

    /// Remembers a container by the names that later lines may use.
    pub(crate) fn remember(&self, container: NamedContainer) {
        lock(&self.named).push(container);
    }

    /// A container of this run by name, or by the beginning of its id.
    pub(crate) fn container(&self, name: &str) -> Option<NamedContainer> {
        let named = lock(&self.named);
        let of_name = |c: &&NamedContainer| c.names.iter().any(|n| n == name);
        let of_id = |c: &&NamedContainer| name.len() >= 4 && c.id.starts_with(name);
        let found = named.iter().rev().find(of_name);
        found.or_else(|| named.iter().rev().find(of_id)).cloned()
    }

    /// A container that is gone.
    pub(crate) fn forget(&self, id: &str) {
        lock(&self.named).retain(|c| c.id != id);
    }

    /// Removes a container while later steps run; the end of the run waits for it.
    pub(crate) fn remove_in_background(self: &Arc<Self>, id: String) {
        self.forget(&id);
        let engine = self.engine.clone();
        self.background.spawn(async move {
            // What cannot be removed now is found by its label at the end of the run.
            if let Err(error) = engine.remove_container(&id).await {
                tracing::debug!(container = %id, error = %crate::error::chain(&error), "left for the end of the run");
            }
        });
    }

    /// Removes what this run made, once; returns what is left. Begun while the last pushes are under way,
    /// since they need none of it.
    pub(crate) async fn clean_up(&self) -> Vec<String> {
        self.left.get_or_init(|| self.remove()).await.clone()
    }

    async fn remove(&self) -> Vec<String> {
        self.background.close();
        // To remove a network takes an engine longer than to remove the containers that were on it. It can do both
        // at once, as long as they have ended; where one has not, the network is removed further down.
        tokio::join!(self.background.wait(), self.try_to_remove_networks());
        remove_all(
            &self.engine,
            &self.labels,
            self.workspace.keeper_image_if_made(),
        )
        .await
    }

    async fn try_to_remove_networks(&self) {
        let made =
            self.plan.networks.iter().filter(|network| {
                !network.skip_creation && self.networks[&network.name].initialized()
            });
        let removals = made.map(|network| async {
            let name = self.network_name(network);
            if let Err(error) = self.engine.remove_network(&name).await {
                tracing::debug!(network = %name, error = %crate::error::chain(&error), "not removed yet");
            }
        });
        futures::future::join_all(removals).await;
    }
}

/// Returns `true` for a build whose image goes into the engine by its tags.
fn has_no_outputs(build: &BuildStep) -> bool {
    build
        .line
        .as_ref()
        .is_ok_and(|line| line.outputs.is_empty())
}

/// The files of a volume; `0444`, so that a step that runs as another user can read its own secrets.
fn secret_files(volume: &Volume) -> Vec<Pack> {
    volume
        .files
        .iter()
        .map(|(name, content)| Pack::Content {
            at: name.into(),
            mode: 0o444,
            content: content.expose().to_owned().into(),
        })
        .collect()
}

/// Removes everything with the run's label; returns what is left, in words.
pub(crate) async fn remove_all(
    engine: &Engine,
    labels: &Labels,
    image: Option<String>,
) -> Vec<String> {
    let mut left = Vec::new();
    let label = labels.run_label();
    let (containers, networks, volumes) = tokio::join!(
        engine.list_containers(labels.filter()),
        engine.list_networks(&label),
        engine.list_volumes(&label),
    );
    let containers = known(containers, "containers", &mut left);
    let networks = known(networks, "networks", &mut left);
    let volumes = known(volumes, "volumes", &mut left);
    for container in containers {
        let Some(id) = container.id else { continue };
        let name = container
            .names
            .unwrap_or_default()
            .first()
            .map_or(id.clone(), |name| name.trim_start_matches('/').to_owned());
        let keep = container
            .labels
            .is_some_and(|labels| crate::owner::is_kept(&labels));
        if keep {
            if let Err(error) = engine.stop_container(&id, STOP_GRACE).await {
                tracing::warn!(container = %name, error = %crate::error::chain(&error), "could not be stopped");
            }
            left.push(format!("container {name} {KEPT}"));
        } else if engine.remove_container(&id).await.is_err() {
            left.push(format!("container {name}"));
        }
    }
    let networks = networks.into_iter().map(|n| n.name);
    let networks = futures::future::join_all(networks.map(|name| async move {
        let removed = insist(|| engine.remove_network(&name)).await;
        (!removed).then(|| format!("network {name}"))
    }));
    let volumes = volumes.into_iter().map(|v| v.name);
    let volumes = futures::future::join_all(volumes.map(|name| async move {
        let removed = insist(|| engine.remove_volume(&name)).await;
        (!removed).then(|| format!("volume {name}"))
    }));
    let image = async {
        let name = image?;
        let removed = insist(|| engine.remove_image(&name)).await;
        (!removed).then(|| format!("image {name}"))
    };
    let (networks, volumes, image) = tokio::join!(networks, volumes, image);
    left.extend(networks.into_iter().chain(volumes).flatten().chain(image));
    left
}

/// What was listed. What cannot be listed cannot be removed, and is not nothing.
fn known<T>(listed: Result<Vec<T>, EngineError>, what: &str, left: &mut Vec<String>) -> Vec<T> {
    listed.unwrap_or_else(|error| {
        left.push(format!("perhaps {what}: {}", crate::error::chain(&error)));
        Vec::new()
    })
}

/// Tries a removal a few times: an engine lets go of a network or a volume a moment after its last container.
async fn insist<F>(mut attempt: impl FnMut() -> F) -> bool
where
    F: Future<Output = Result<(), EngineError>>,
{
    for round in 0..REMOVE_ATTEMPTS {
        match attempt().await {
            Ok(()) => return true,
            // Held by a container that was kept: waiting does not help.
            Err(error) if error.status() == Some(409) && error.engine_says().contains("in use") => {
                if round > 0 {
                    return false;
                }
            }
            Err(error) => {
                tracing::debug!(error = %crate::error::chain(&error), "removal failed");
            }
        }
        tokio::time::sleep(Duration::from_millis(40 << round)).await;
    }
    false
}

/// What one step's attempt works with.
#[derive(Clone)]
pub(crate) struct StepContext {
    pub(crate) run: Arc<RunContext>,
    pub(crate) step: Arc<Step>,
    pub(crate) output: StepOutput,
    /// The step is to end: its run was stopped, or its time is over.
    pub(crate) cancel: CancellationToken,
    /// A detached step's container is up.
    pub(crate) up: Arc<tokio::sync::Notify>,
}

impl StepContext {
    /// Waits until it is known whether the run may push now; says why not.
    pub(crate) async fn may_push(&self) -> Result<(), String> {
        let Some(fence) = &self.run.fence else {
            return Ok(());
        };
        tokio::select! {
            answer = fence.may_push() => {
                answer.map_err(|why| format!("nothing was pushed: {why}"))
            }
            () = self.cancel.cancelled() => Err("the step was stopped".into()),
        }
    }
}
