//! The images of a run: what its build steps made, what it pulled, and what every other name means to it.
//!
//! Invariants:
//! - A name of the engine is never evidence of what an image is. What a run builds has a name in the engine that no task
//!   can use ([`OwnNames`]), and is used by its digest.
//! - A name that the run did not build is resolved in its registry with the run's own login, once, and used by digest.
//!   So an image that another run pulled is out of reach of a run whose login may not read it.
//! - Only on one's own machine ([`crate::Options::own_machine`]) the engine's own image is used where the registry does
//!   not have it.
//!
//! With the engine's own BuildKit, builds, containers and pushes share one store. An image of a separate BuildKit is
//! loaded into the engine once, when a step needs it there.

use std::{
    collections::HashMap,
    io::Write as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use acrtask_model::{Digest, ImageRef, StepId};
use acrtask_registry::RegistryError;
use tokio::sync::OnceCell;

use crate::{
    context::{RunContext, StepContext},
    engine::Engine,
    error::chain,
    output::lock,
    scope::RunScope,
    steps,
    workspace::Scratch,
};

/// The registry of the names that images of runs have in the engine. No registry can have the port 0: a connection to
/// it is refused at once, after which an engine's BuildKit takes the image from the engine.
const OWN_REGISTRY: &str = "127.0.0.1:0";
/// Longest wait for a registry before the engine of one's own machine is used instead.
const OWN_MACHINE_PATIENCE: Duration = Duration::from_secs(10);
/// The file of a scratch folder that lists the names that a run has in the engine, one in each line.
pub(crate) const NAMES_FILE: &str = "images";

/// An image that belongs to a run.
#[derive(Debug)]
pub(crate) struct OwnImage {
    /// The step that built or pulled it.
    pub(crate) step: StepId,
    /// Complete names.
    pub(crate) names: Vec<ImageRef>,
    /// The digest of its manifest or index, as the builder gave it.
    pub(crate) digest: Digest,
    /// The digest of its configuration, for one platform.
    pub(crate) config: Option<Digest>,
    pub(crate) origin: Origin,
    /// True where the build itself has pushed it.
    pub(crate) pushed: bool,
    loaded: OnceCell<()>,
}

/// The source of an image of a run, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A build step made it, or one's own machine had it, and the engine has it by this name.
    Engine(ImageRef),
    /// A separate BuildKit made it. The name is the one that the engine gives it when it is loaded.
    Builder { name: ImageRef },
    /// The run pulled it by this name and digest.
    Pulled(ImageRef),
}

impl OwnImage {
    pub(crate) fn new(
        step: StepId,
        names: Vec<ImageRef>,
        digest: Digest,
        config: Option<Digest>,
        origin: Origin,
        pushed: bool,
    ) -> Self {
        Self {
            step,
            names,
            digest,
            config,
            origin,
            pushed,
            loaded: OnceCell::new(),
        }
    }

    /// Returns the same image by another name.
    pub(crate) fn renamed(&self, name: ImageRef) -> Self {
        Self::new(
            self.step.clone(),
            vec![name],
            self.digest.clone(),
            self.config.clone(),
            self.origin.clone(),
            false,
        )
    }

    /// Returns how the engine finds the image: by its digest, so that no other image can have the name.
    pub(crate) fn in_engine(&self, engine: &Engine) -> String {
        match &self.origin {
            Origin::Engine(_) => self.digest.to_string(),
            Origin::Builder { name } => name.to_string(),
            Origin::Pulled(pinned) => pulled_id(engine, pinned),
        }
    }
}

/// The images of a run; a name that is built again means the newer image.
#[derive(Debug, Default)]
pub(crate) struct Images {
    own: Mutex<Vec<Arc<OwnImage>>>,
    /// Images of the names that the run did not build.
    resolved: Mutex<HashMap<ImageRef, Arc<OnceCell<Found>>>>,
}

/// An image that the run did not build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// Name and digest of an image in a registry, which the run's login may read.
    Registry(ImageRef),
    /// Only the engine of one's own machine has it: its name, and the engine's id of it.
    Engine { name: ImageRef, id: Digest },
}

impl Found {
    /// Returns how the engine finds it.
    pub(crate) fn in_engine(&self, engine: &Engine) -> String {
        match self {
            Self::Registry(pinned) => pulled_id(engine, pinned),
            Self::Engine { id, .. } => id.to_string(),
        }
    }

    /// Returns its digest.
    pub(crate) fn digest(&self) -> Option<&Digest> {
        match self {
            Self::Registry(pinned) => pinned.digest(),
            Self::Engine { id, .. } => Some(id),
        }
    }
}

/// Returns how the engine finds an image that was pulled by its digest. Its classic store has no ids that are digests.
fn pulled_id(engine: &Engine, pinned: &ImageRef) -> String {
    let digest = pinned.digest().filter(|_| engine.facts.containerd_store);
    digest.map_or_else(|| pinned.to_string(), ToString::to_string)
}

impl Images {
    pub(crate) fn add(&self, image: OwnImage) -> Arc<OwnImage> {
        let image = Arc::new(image);
        lock(&self.own).push(Arc::clone(&image));
        image
    }

    /// Returns every image of the run, oldest first.
    pub(crate) fn all(&self) -> Vec<Arc<OwnImage>> {
        lock(&self.own).clone()
    }

    /// Returns what each name of the run's own images means now.
    pub(crate) fn by_name(&self) -> HashMap<ImageRef, Arc<OwnImage>> {
        let all = self.all();
        let named = all
            .iter()
            .flat_map(|image| image.names.iter().map(move |name| (name, image)));
        named
            .map(|(name, image)| (name.clone(), Arc::clone(image)))
            .collect()
    }

    /// Returns the image that a complete name means, if it belongs to this run.
    pub(crate) fn find_ref(&self, reference: &ImageRef) -> Option<Arc<OwnImage>> {
        let all = lock(&self.own);
        let of_name = |image: &&Arc<OwnImage>| image.names.contains(reference);
        let of_digest = |image: &&Arc<OwnImage>| {
            reference.digest() == Some(&image.digest)
                && image.names.iter().any(|n| n.name() == reference.name())
        };
        let found = all.iter().rev().find(of_name);
        found.or_else(|| all.iter().rev().find(of_digest)).cloned()
    }

    /// Returns the names that registries have resolved for the run.
    pub(crate) fn found_names(&self) -> Vec<ImageRef> {
        let resolved = lock(&self.resolved);
        let found = resolved.iter().filter(|(_, cell)| cell.initialized());
        found.map(|(name, _)| name.clone()).collect()
    }

    /// Sees to it that the engine has an image that a separate BuildKit made.
    pub(crate) async fn load_into_engine(
        &self,
        ctx: &StepContext,
        image: &OwnImage,
    ) -> Result<(), String> {
        let Origin::Builder { name } = &image.origin else {
            return Ok(());
        };
        image
            .loaded
            .get_or_try_init(|| ctx.run.builder.load_into_engine(ctx, image, name))
            .await
            .copied()
    }
}

/// The names of a run's images in the engine. They keep the images there until the run has ended, and lead to them
/// for no task: [`check_name`] refuses the registry. A list of them in a scratch folder is for the next start of the
/// program, which removes the images of a killed run.
#[derive(Debug)]
pub(crate) struct OwnNames {
    /// The repository. Part of it is random, so that no other run can name it.
    repository: String,
    next: AtomicU32,
    listed: Mutex<Option<Listed>>,
}

#[derive(Debug)]
struct Listed {
    folder: Scratch,
    names: Vec<ImageRef>,
}

impl OwnNames {
    pub(crate) fn new(scope: &RunScope) -> Self {
        Self {
            repository: format!("{OWN_REGISTRY}/run/{scope}-{:032x}", rand::random::<u128>()),
            next: AtomicU32::new(1),
            listed: Mutex::default(),
        }
    }

    /// Returns a new name, which is listed before the engine has it.
    pub(crate) fn next(
        &self,
        scratch: impl FnOnce() -> Result<Scratch, String>,
    ) -> Result<ImageRef, String> {
        let serial = self.next.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}:{serial}", self.repository);
        let name: ImageRef = name.parse().map_err(|error| chain(&error))?;
        let mut listed = lock(&self.listed);
        let listed = match &mut *listed {
            Some(listed) => listed,
            none => none.insert(Listed {
                folder: scratch()?,
                names: Vec::new(),
            }),
        };
        let path = listed.folder.path().join(NAMES_FILE);
        let file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&path);
        file.and_then(|mut file| writeln!(file, "{name}"))
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        listed.names.push(name.clone());
        Ok(name)
    }

    /// Returns a text without the names that the engine has.
    pub(crate) fn hide<'t>(&self, text: &'t str) -> std::borrow::Cow<'t, str> {
        if text.contains(&self.repository) {
            text.replace(&self.repository, "this run").into()
        } else {
            text.into()
        }
    }

    /// Removes the run's images from the engine. What cannot be removed now stays listed for the next start.
    pub(crate) async fn remove(&self, engine: &Engine) {
        let Some(listed) = lock(&self.listed).take() else {
            return;
        };
        let mut left = false;
        for name in &listed.names {
            if let Err(error) = engine.remove_image(&name.to_string()).await {
                tracing::warn!(image = %name, error = %chain(&error), "could not remove an image of a run");
                left = true;
            }
        }
        if left {
            listed.folder.leave();
        }
    }
}

/// Refuses names that no registry can have: those that images of runs have in the engine.
pub(crate) fn check_name(name: &ImageRef) -> Result<(), String> {
    let port = name.registry().rsplit(':').next().unwrap_or_default();
    if port.parse() == Ok(0_u16) {
        return Err(format!(
            "{name}: no registry has the port 0; name an image of this run as the step that built it did"
        ));
    }
    Ok(())
}

/// Returns `true` for a name that an image of a run has in the engine.
pub(crate) fn is_own_name(name: &str) -> bool {
    name.starts_with(&format!("{OWN_REGISTRY}/run/"))
}

/// Returns what a complete name means that the run did not build. A registry is asked once for each name; `again`
/// asks it again.
pub(crate) async fn resolve(
    run: &RunContext,
    name: &ImageRef,
    again: bool,
) -> Result<Found, String> {
    check_name(name)?;
    let cell = {
        let mut resolved = lock(&run.images.resolved);
        if again {
            resolved.remove(name);
        }
        Arc::clone(resolved.entry(name.clone()).or_default())
    };
    cell.get_or_try_init(|| resolve_once(run, name, again))
        .await
        .cloned()
}

async fn resolve_once(run: &RunContext, name: &ImageRef, again: bool) -> Result<Found, String> {
    // A pin says which digest, and not that the run may read it.
    let wanted = run.pinned(name).unwrap_or_else(|| name.clone());
    let registry = run.registry();
    let asked = registry.resolve(&wanted);
    if !run.options.own_machine {
        return match asked.await {
            Ok(found) => Ok(Found::Registry(name.at(found.digest))),
            Err(error) => Err(with_help(&error)),
        };
    }
    let why = match tokio::time::timeout(OWN_MACHINE_PATIENCE, asked).await {
        Ok(Ok(found)) => return Ok(Found::Registry(name.at(found.digest))),
        Ok(Err(error)) => with_help(&error),
        Err(_) => format!(
            "{} did not resolve {name} within {} s",
            name.registry(),
            OWN_MACHINE_PATIENCE.as_secs()
        ),
    };
    // `pull: true` and `docker pull` want the registry's image and no other.
    if again {
        return Err(why);
    }
    let stored = run.engine.image(&wanted.to_string()).await;
    let stored = stored.map_err(|error| chain(&error))?;
    match stored.map(|stored| stored.id.parse()) {
        Some(Ok(id)) => {
            tracing::debug!(image = %name, why, "taken from the engine");
            Ok(Found::Engine {
                name: name.clone(),
                id,
            })
        }
        _ => Err(why),
    }
}

fn with_help(error: &RegistryError) -> String {
    let why = chain(error);
    match error.help() {
        Some(help) => format!("{why}; {help}"),
        None => why,
    }
}

/// Adds an image that the engine has and the run did not build to the run's images, where it is not yet one of them.
pub(crate) fn remember(ctx: &StepContext, name: ImageRef, found: &Found) {
    let images = &ctx.run.images;
    let Some(digest) = found.digest() else { return };
    if images
        .find_ref(&name)
        .is_some_and(|own| own.digest == *digest)
    {
        return;
    }
    let origin = match found {
        Found::Registry(pinned) => Origin::Pulled(pinned.clone()),
        Found::Engine { name, .. } => Origin::Engine(name.clone()),
    };
    let step = ctx.step.id.clone();
    images.add(OwnImage::new(
        step,
        vec![name],
        digest.clone(),
        None,
        origin,
        false,
    ));
}

/// Pulls an image of a registry with the step's `cmdDownloadRetries`; says so in the step's output.
pub(crate) async fn pull(
    ctx: &StepContext,
    image: &ImageRef,
    platform: Option<&str>,
) -> Result<(), String> {
    let options = &ctx.step.container;
    let credentials = ctx.run.credentials();
    let mut attempt = 0;
    loop {
        attempt += 1;
        let message = format!("pulling {image} for step {}", ctx.step.id);
        ctx.run
            .events
            .send(acrtask_model::EventKind::Progress { message })
            .await;
        let pulled = tokio::select! {
            pulled = ctx.run.engine.pull_image(image, platform, &credentials, |line| {
                tracing::debug!(%image, line, "pull");
            }) => pulled,
            () = ctx.cancel.cancelled() => return Err("the step was stopped".into()),
        };
        let Err(error) = pulled else {
            return hide_pulled(&ctx.run, image).await;
        };
        let why = chain(&error);
        if attempt > options.download_retries {
            return Err(why);
        }
        again(ctx, why).await?;
    }
}

/// Takes the name of a pulled image away from the engine of a runner, and keeps the image there by a name that no run
/// knows. By its own name, BuildKit could give it to a build whose login may not read it.
async fn hide_pulled(run: &RunContext, image: &ImageRef) -> Result<(), String> {
    let Some(digest) = image.digest() else {
        return Ok(());
    };
    if run.options.own_machine || !run.engine.facts.containerd_store {
        return Ok(());
    }
    let name = format!("{OWN_REGISTRY}/pulled/{:032x}:1", rand::random::<u128>());
    let name: ImageRef = name.parse().map_err(|error| chain(&error))?;
    let tagged = run.engine.tag_image(digest.as_str(), &name).await;
    tagged.map_err(|error| chain(&error))?;
    let removed = run.engine.remove_image(&image.to_string()).await;
    removed.map_err(|error| chain(&error))
}

/// Resolves a name as [`resolve`] does, with the step's `cmdDownloadRetries`.
pub(crate) async fn resolve_with_retries(
    ctx: &StepContext,
    name: &ImageRef,
    fresh: bool,
) -> Result<Found, String> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let resolved = tokio::select! {
            resolved = resolve(&ctx.run, name, fresh) => resolved,
            () = ctx.cancel.cancelled() => return Err("the step was stopped".into()),
        };
        match resolved {
            Err(why) if attempt <= ctx.step.container.download_retries => again(ctx, why).await?,
            resolved => return resolved,
        }
    }
}

/// Waits before another attempt at an image.
async fn again(ctx: &StepContext, why: String) -> Result<(), String> {
    let delay = ctx.step.container.download_retry_delay;
    let message = format!("{why}; another attempt in {} s", delay.as_secs());
    ctx.run.events.warn(Some(&ctx.step.id), message, None).await;
    if steps::wait(delay, &ctx.cancel).await {
        Ok(())
    } else {
        Err(why)
    }
}

/// Removes the images that the list of a dead process' scratch folder names.
pub(crate) async fn remove_listed(engine: &Engine, list: &str) {
    for name in list.lines().filter(|name| is_own_name(name)) {
        let valid = name.parse::<ImageRef>();
        let Ok(name) = valid.map(|name| name.to_string()) else {
            continue;
        };
        if let Err(error) = engine.remove_image(&name).await {
            tracing::debug!(image = name, error = %chain(&error), "left behind by a run that was killed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_means_the_newest_image() {
        let images = Images::default();
        let digest = |c: &str| {
            format!("sha256:{}", c.repeat(64))
                .parse::<Digest>()
                .unwrap()
        };
        let names = |names: &[&str]| {
            names
                .iter()
                .map(|n| n.parse::<ImageRef>().unwrap().or_latest())
                .collect()
        };
        let step = |id: &str| StepId::new(id).unwrap();
        images.add(OwnImage::new(
            step("a"),
            names(&["r.io/x:1", "y"]),
            digest("a"),
            None,
            Origin::Engine("127.0.0.1:0/run/r1:1".parse().unwrap()),
            false,
        ));
        images.add(OwnImage::new(
            step("b"),
            names(&["r.io/x:1"]),
            digest("b"),
            None,
            Origin::Engine("127.0.0.1:0/run/r1:1".parse().unwrap()),
            false,
        ));
        let found = |name: &str| {
            let reference: ImageRef = name.parse().ok()?;
            let image = images.find_ref(&reference.or_latest())?;
            Some(image.step.to_string())
        };
        assert_eq!(found("r.io/x:1").as_deref(), Some("b"));
        assert_eq!(found("y:latest").as_deref(), Some("a"));
        assert_eq!(
            found(&format!("r.io/x@{}", digest("a"))).as_deref(),
            Some("a")
        );
        assert_eq!(found("r.io/x"), None);
        assert_eq!(found("not a name"), None);
    }

    #[test]
    fn names_of_the_engine_cannot_be_used_by_tasks() {
        for name in [
            "127.0.0.1:0/run/r1:1",
            "127.0.0.1:00/run/r1:1",
            "localhost:0/run/r1",
            "[::1]:0/run/r1",
        ] {
            let name: ImageRef = name.parse().unwrap();
            assert!(check_name(&name).is_err(), "{name}");
        }
        assert!(check_name(&"127.0.0.1:10/run/r1".parse().unwrap()).is_ok());
    }

    #[test]
    fn engine_names_are_listed_until_they_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let scope: RunScope = "r1.a2".parse().unwrap();
        let names = OwnNames::new(&scope);
        let owner = crate::owner::Owner::this_process();
        let scratch = || Scratch::new(root.path(), &scope, &owner).map_err(|error| chain(&error));
        let first = names.next(scratch).unwrap();
        let second = names.next(|| Err("there is a folder".into())).unwrap();
        let (repository, serial) = (first.name(), first.tag());
        assert!(
            repository.starts_with("127.0.0.1:0/run/r1.a2-"),
            "{repository}"
        );
        assert_eq!((repository.len(), serial), (54, Some("1")));
        assert_ne!(OwnNames::new(&scope).repository, repository);
        let folder = std::fs::read_dir(root.path()).unwrap().next().unwrap();
        let list = folder.unwrap().path().join("files").join(NAMES_FILE);
        let listed = std::fs::read_to_string(list).unwrap();
        assert_eq!(listed, format!("{first}\n{second}\n"));
    }
}
