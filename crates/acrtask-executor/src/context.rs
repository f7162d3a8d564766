//! State that all steps of one run share.

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
    Fence, GitAccess, Options, Reach, Records,
    archive::{self, Pack},
    builder::{Builder, Recipes},
    cmd::body::env_pairs,
    engine::{Engine, Labels},
    error::EngineError,
    image_names::OwnNames,
    images::{Images, Origin},
    output::{Events, StepOutput, lock},
    possession::Proofs,
    workspace::Workspace,
};

/// Time that a process has to end after a stop signal.
pub(crate) const STOP_GRACE: Duration = Duration::from_secs(1);

/// Number of attempts to remove one object at the end of a run.
const REMOVE_ATTEMPTS: u32 = 5;

/// Suffix of the description of a container that stays because its task keeps it.
pub(crate) const KEPT: &str = "(kept)";

/// State that all steps of one run share.
pub(crate) struct RunContext {
    pub(crate) id: RunId,
    /// The domain of what the run may share with other runs.
    pub(crate) domain: RunDomain,
    pub(crate) options: Arc<Options>,
    /// Credentials and client. `docker login` changes them.
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
    /// The file that `-` of a build reads.
    pub(crate) stdin: Option<PathBuf>,
    /// Disables pushing. Push steps then only report that pushes are off.
    pub(crate) no_push: bool,
    /// Pushes images by digest only, without their tags.
    pub(crate) push_by_digest: bool,
    pub(crate) git: GitAccess,
    pub(crate) reach: Reach,
    /// Digests of staged images, by the name that each image receives at promotion.
    staged: Mutex<BTreeMap<ImageRef, Digest>>,
    fence: Option<Arc<dyn Fence>>,
    /// The server's records of repositories.
    pub(crate) records: Arc<dyn Records>,
    pub(crate) plan: Plan,
    networks: HashMap<String, OnceCell<()>>,
    volumes: HashMap<String, OnceCell<()>>,
    /// Containers that lines started with `-d`.
    containers: Mutex<Vec<NamedContainer>>,
    /// Manifest lists that `docker manifest` is assembling, by name.
    pub(crate) manifests: Mutex<BTreeMap<String, Vec<IndexEntry>>>,
    /// Removals in progress while later steps run.
    pub(crate) background: TaskTracker,
    /// Objects that could not be removed. Set after the first cleanup.
    left: OnceCell<Vec<String>>,
}

/// A container that later lines can name.
#[derive(Debug, Clone)]
pub(crate) struct NamedContainer {
    pub(crate) id: String,
    /// The step's id and the name that `--name` set.
    pub(crate) names: Vec<String>,
}

/// The parts of a run in addition to its plan.
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
    pub(crate) push_by_digest: bool,
    pub(crate) git: GitAccess,
    pub(crate) reach: Reach,
    pub(crate) fence: Option<Arc<dyn Fence>>,
    pub(crate) records: Arc<dyn Records>,
}

/// Returns the secret values that no output of the run may contain.
pub(crate) fn secret_patterns(plan: &Plan, domain: &RunDomain) -> Patterns {
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
            push_by_digest: parts.push_by_digest,
            git: parts.git,
            reach: parts.reach,
            staged: Mutex::default(),
            fence: parts.fence,
            records: parts.records,
            networks: cells(&mut plan.networks.iter().map(|network| &network.name)),
            volumes: cells(&mut plan.volumes.iter().map(|volume| &volume.name)),
            containers: Mutex::default(),
            background: TaskTracker::new(),
            left: OnceCell::new(),
            plan,
        }
    }

    /// Returns `true` if a fence checks the run's pushes.
    pub(crate) fn is_fenced(&self) -> bool {
        self.fence.is_some()
    }

    /// Returns the name and digest of an image that the run staged or that the plan pins.
    pub(crate) fn pinned_image(&self, image: &ImageRef) -> Option<ImageRef> {
        let staged = self.staged_digest(image);
        let digest = staged.or_else(|| self.plan.pins.get(image).cloned())?;
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
                .map_err(|error| crate::error::error_chain(&error))
        };
        self.image_names.next(scratch)
    }

    /// Returns `true` if the run is one build on the user's own machine. It succeeds as soon as its
    /// image exists, so the build itself sets the names.
    pub(crate) fn publishes_at_once(&self) -> bool {
        let [step] = self.plan.steps.as_slice() else {
            return false;
        };
        self.options.own_machine
            && matches!(&step.kind, StepKind::Build(build) if has_no_outputs(build))
    }

    /// Tags the images that the run built in the engine, as `docker build -t` does. For a
    /// successful run on the user's own machine.
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
                    "could not tag the image in the engine: {}",
                    crate::error::error_chain(&error)
                );
                self.events.warn(Some(&image.step), message, None).await;
            }
        });
        futures::future::join_all(tagged).await;
    }

    /// Stores the digest of a staged image.
    pub(crate) fn add_staged(&self, image: &ImageRef, digest: &Digest) {
        lock(&self.staged).insert(image.clone(), digest.clone());
    }

    /// Returns the digest of an image that this run staged under this name.
    pub(crate) fn staged_digest(&self, image: &ImageRef) -> Option<Digest> {
        lock(&self.staged).get(image).cloned()
    }

    /// Returns all images that this run staged.
    pub(crate) fn staged_images(&self) -> BTreeMap<ImageRef, Digest> {
        lock(&self.staged).clone()
    }

    /// Returns the name by which a registry has the image that this run knows as `image`.
    pub(crate) fn registry_name(&self, image: ImageRef) -> ImageRef {
        match self.staged_digest(&image) {
            Some(digest) => image.at(digest),
            None => image,
        }
    }

    /// Returns the current credentials of the run.
    pub(crate) fn credentials(&self) -> Credentials {
        lock(&self.registry).0.clone()
    }

    /// Returns the registry client with the current credentials.
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

    /// Returns `true` for a registry that is used without TLS.
    pub(crate) fn is_insecure(&self, registry: &str) -> bool {
        let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
        matches!(host, "localhost" | "127.0.0.1" | "[::1]")
            || self
                .options
                .insecure_registries
                .iter()
                .any(|r| r == registry)
    }

    /// Returns a variable of the step's environment, else of the run's. Never returns one of this
    /// process.
    pub(crate) fn variable(&self, step: &Step, name: &str) -> Option<String> {
        let of_step = env_pairs(&step.env).filter(|(key, _)| key == name).last();
        let of_run = || {
            self.options
                .env
                .iter()
                .rfind(|(key, _)| key == name)
                .cloned()
        };
        of_step.or_else(of_run).map(|(_, value)| value)
    }

    /// Returns the engine's name for the volume `name` of the task. It is always a volume of this
    /// run.
    pub(crate) fn volume_name(&self, name: &str) -> String {
        self.labels.scope.object_name(name)
    }

    /// Creates the network `name` of the plan, once.
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

    /// Returns the engine's name for a network. A network that the task declares as existing keeps
    /// its own name.
    pub(crate) fn network_name(&self, network: &Network) -> String {
        if network.skip_creation {
            network.name.clone()
        } else {
            self.labels.scope.object_name(&network.name)
        }
    }

    /// Uploads the files of the volume `name` into it, once, through a container that mounts it at
    /// `path` and has not started. They travel over the engine's connection into a volume that only
    /// root of the engine's machine can read. They never reach a disk of this machine.
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

    /// Registers a container under the names that later lines may use.
    pub(crate) fn register_container(&self, container: NamedContainer) {
        lock(&self.containers).push(container);
    }

    /// Returns a container of this run by name, or by the beginning of its id.
    pub(crate) fn find_container(&self, name: &str) -> Option<NamedContainer> {
        let named = lock(&self.containers);
        let of_name = |c: &&NamedContainer| c.names.iter().any(|n| n == name);
        let of_id = |c: &&NamedContainer| name.len() >= 4 && c.id.starts_with(name);
        let found = named.iter().rev().find(of_name);
        found.or_else(|| named.iter().rev().find(of_id)).cloned()
    }

    /// Unregisters a removed container.
    pub(crate) fn unregister_container(&self, id: &str) {
        lock(&self.containers).retain(|c| c.id != id);
    }

    /// Removes a container while later steps run. The end of the run waits for the removal.
    pub(crate) fn remove_in_background(self: &Arc<Self>, id: String) {
        self.unregister_container(&id);
        let engine = self.engine.clone();
        self.background.spawn(async move {
            // A container that stays now is found by its label at the end of the run.
            if let Err(error) = engine.remove_container(&id).await {
                tracing::debug!(container = %id, error = %crate::error::error_chain(&error), "could not remove a container yet");
            }
        });
    }

    /// Removes the objects of this run but networks, once, and returns those that remain. May start
    /// during the last pushes, which need none of them.
    pub(crate) async fn clean_up(&self) -> Vec<String> {
        self.left
            .get_or_init(|| self.remove_objects())
            .await
            .clone()
    }

    async fn remove_objects(&self) -> Vec<String> {
        self.background.close();
        self.background.wait().await;
        let image = self.workspace.keeper_image_if_made();
        remove_attached(&self.engine, &self.labels, image).await
    }

    /// Removes the networks of this run and returns those that remain. An engine needs longer for
    /// it than for all other objects, so the result of the run is reported before.
    pub(crate) async fn remove_networks(&self) -> Vec<String> {
        if self
            .plan
            .networks
            .iter()
            .all(|network| network.skip_creation)
        {
            return Vec::new();
        }
        // By name first: if this process ends now, the engine completes the removal.
        let made =
            self.plan.networks.iter().filter(|network| {
                !network.skip_creation && self.networks[&network.name].initialized()
            });
        let removals = made.map(|network| async {
            let name = self.network_name(network);
            if let Err(error) = self.engine.remove_network(&name).await {
                tracing::debug!(network = %name, error = %crate::error::error_chain(&error), "could not remove a network yet");
            }
        });
        futures::future::join_all(removals).await;
        remove_networks(&self.engine, &self.labels).await
    }
}

/// Returns `true` for a build whose image goes into the engine under its tags.
fn has_no_outputs(build: &BuildStep) -> bool {
    build
        .line
        .as_ref()
        .is_ok_and(|line| line.outputs.is_empty())
}

/// Returns the files of a volume. Their mode is `0444`, so that a step that runs as another user
/// can read its own secrets.
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

/// Removes all objects with the run's label. Returns a description of each one that remains.
pub(crate) async fn remove_all(
    engine: &Engine,
    labels: &Labels,
    image: Option<String>,
) -> Vec<String> {
    let mut left = remove_attached(engine, labels, image).await;
    left.extend(remove_networks(engine, labels).await);
    left
}

/// Removes all networks with the run's label. Returns a description of each one that remains.
async fn remove_networks(engine: &Engine, labels: &Labels) -> Vec<String> {
    let mut left = Vec::new();
    let networks = engine.list_networks(&labels.run_label()).await;
    let networks = listed_objects(networks, "networks", &mut left);
    let removals = networks.into_iter().map(|network| async move {
        let name = network.name;
        let removed = remove_with_retries(|| engine.remove_network(&name)).await;
        (!removed).then(|| format!("network {name}"))
    });
    left.extend(
        futures::future::join_all(removals)
            .await
            .into_iter()
            .flatten(),
    );
    left
}

/// Removes all objects with the run's label but networks. Returns a description of each one that
/// remains.
async fn remove_attached(engine: &Engine, labels: &Labels, image: Option<String>) -> Vec<String> {
    let mut left = Vec::new();
    let label = labels.run_label();
    let (containers, volumes) = tokio::join!(
        engine.list_containers(labels.to_filter()),
        engine.list_volumes(&label),
    );
    let containers = listed_objects(containers, "containers", &mut left);
    let volumes = listed_objects(volumes, "volumes", &mut left);
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
                tracing::warn!(container = %name, error = %crate::error::error_chain(&error), "could not stop a kept container");
            }
            left.push(format!("container {name} {KEPT}"));
        } else if engine.remove_container(&id).await.is_err() {
            left.push(format!("container {name}"));
        }
    }
    let volumes = volumes.into_iter().map(|v| v.name);
    let volumes = futures::future::join_all(volumes.map(|name| async move {
        let removed = remove_with_retries(|| engine.remove_volume(&name)).await;
        (!removed).then(|| format!("volume {name}"))
    }));
    let image = async {
        let name = image?;
        let removed = remove_with_retries(|| engine.remove_image(&name)).await;
        (!removed).then(|| format!("image {name}"))
    };
    let (volumes, image) = tokio::join!(volumes, image);
    left.extend(volumes.into_iter().flatten().chain(image));
    left
}

/// Returns the listed objects. If they could not be listed, adds that to `left`, because objects
/// may remain.
fn listed_objects<T>(
    listed: Result<Vec<T>, EngineError>,
    what: &str,
    left: &mut Vec<String>,
) -> Vec<T> {
    listed.unwrap_or_else(|error| {
        left.push(format!(
            "perhaps {what}: {}",
            crate::error::error_chain(&error)
        ));
        Vec::new()
    })
}

/// Tries a removal a few times: an engine releases a network or a volume a moment after its last
/// container.
async fn remove_with_retries<F>(mut attempt: impl FnMut() -> F) -> bool
where
    F: Future<Output = Result<(), EngineError>>,
{
    for round in 0..REMOVE_ATTEMPTS {
        match attempt().await {
            Ok(()) => return true,
            // A kept container uses the object, so waiting does not help.
            Err(error)
                if error.status() == Some(409) && error.engine_message().contains("in use") =>
            {
                if round > 0 {
                    return false;
                }
            }
            Err(error) => {
                tracing::debug!(error = %crate::error::error_chain(&error), "could not remove an object");
            }
        }
        tokio::time::sleep(Duration::from_millis(40 << round)).await;
    }
    false
}

/// State of one step's attempt.
#[derive(Clone)]
pub(crate) struct StepContext {
    pub(crate) run: Arc<RunContext>,
    pub(crate) step: Arc<Step>,
    pub(crate) output: StepOutput,
    /// Canceled when the step must end: its run was stopped, or it reached its timeout.
    pub(crate) cancel: CancellationToken,
    /// Notified when a detached step's container is up.
    pub(crate) up: Arc<tokio::sync::Notify>,
}

impl StepContext {
    /// Waits until the permission of the run to push now is confirmed. Returns the reason if it may
    /// not.
    pub(crate) async fn may_push(&self) -> Result<(), String> {
        self.may_change_registry("nothing was pushed").await
    }

    /// Waits as [`Self::may_push`] does. A refusal begins with `effect`.
    pub(crate) async fn may_change_registry(&self, effect: &str) -> Result<(), String> {
        let Some(fence) = &self.run.fence else {
            return Ok(());
        };
        tokio::select! {
            answer = fence.may_push() => {
                answer.map_err(|why| format!("{effect}: {why}"))
            }
            () = self.cancel.cancelled() => Err("the step was stopped".into()),
        }
    }
}
