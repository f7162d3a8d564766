//! The images of a run: what its build steps made, what it pulled, and what every other name means to it.
//!
//! Invariants:
//! - A name of the engine is never evidence of what an image is. What a run builds has a name in the engine that no task
//!   can use ([`crate::image_names`]), and is used by its digest.
//! - A name that the run did not build is resolved in its registry with the run's own login, once, and used by digest.
//!   So an image that another run pulled is out of reach of a run whose login may not read it.
//! - A registry's word for a digest proves nothing ([`possession`]): at a runner it has to send the content as well.
//! - Only on one's own machine ([`crate::Options::own_machine`]) the engine's own image is used where the registry does
//!   not have it.
//!
//! With the engine's own BuildKit, builds, containers and pushes share one store. An image of a separate BuildKit is
//! loaded into the engine once, when a step needs it there.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use acrtask_model::{Digest, ImageRef, StepId};
use tokio::sync::OnceCell;

use crate::{
    context::{RunContext, StepContext},
    engine::Engine,
    error::chain,
    image_names::{check_name, pulled_name},
    login_help::{chain_with_help, with_login_help},
    output::lock,
    possession::{self, Missing, Platforms, Proven},
    steps,
};

/// Longest wait for a registry before the engine of one's own machine is used instead.
const OWN_MACHINE_PATIENCE: Duration = Duration::from_secs(10);

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
            Err(error) => Err(chain_with_help(&error)),
        };
    }
    let why = match tokio::time::timeout(OWN_MACHINE_PATIENCE, asked).await {
        Ok(Ok(found)) => return Ok(Found::Registry(name.at(found.digest))),
        Ok(Err(error)) => chain_with_help(&error),
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
        // Before the engine sees them: it reads all manifests of an image, however many ways lead to them.
        let platforms = platforms_to_run(&ctx.run, platform);
        let proven = possession::prove(&ctx.run, image, platforms, Missing::Leave);
        let pull = async {
            proven.await?;
            let progress = |line: &str| tracing::debug!(%image, line, "pull");
            let engine = &ctx.run.engine;
            let pulled = engine
                .pull_image(image, platform, &credentials, progress)
                .await;
            pulled.map_err(|error| with_login_help(chain(&error)))
        };
        let pulled = tokio::select! {
            pulled = pull => pulled,
            () = ctx.cancel.cancelled() => return Err("the step was stopped".into()),
        };
        let Err(why) = pulled else {
            if let Err(why) = prove_pulled(&ctx.run, image, platform).await {
                // Its digest must not stay usable either.
                let removed = ctx.run.engine.remove_image(&image.to_string()).await;
                return match removed {
                    Ok(()) => Err(why),
                    Err(error) => Err(format!("{why}; it stays in the engine: {}", chain(&error))),
                };
            }
            return hide_pulled(&ctx.run, image).await;
        };
        if attempt > options.download_retries {
            return Err(why);
        }
        again(ctx, why).await?;
    }
}

/// Returns the platforms of an index that a container may use.
fn platforms_to_run(run: &RunContext, platform: Option<&str>) -> Platforms {
    let own = run.engine.facts.platform.as_str();
    Platforms(vec![platform.unwrap_or(own).to_owned()])
}

/// Proves that the run may read an image that the engine has pulled for it. The engine may have taken content from its
/// own store.
async fn prove_pulled(
    run: &RunContext,
    image: &ImageRef,
    platform: Option<&str>,
) -> Result<(), String> {
    let platforms = platforms_to_run(run, platform);
    possession::prove(run, image, platforms, Missing::Read)
        .await
        .map(drop)
}

/// Proves that the run may read an image before a container uses it, and pulls what the engine does not have.
pub(crate) async fn prove_or_pull(
    ctx: &StepContext,
    image: &ImageRef,
    platform: Option<&str>,
    pulls: bool,
) -> Result<(), String> {
    let platforms = platforms_to_run(&ctx.run, platform);
    let missing = if pulls { Missing::Leave } else { Missing::Read };
    match possession::prove(&ctx.run, image, platforms, missing).await? {
        Proven::Whole => Ok(()),
        Proven::Partly => pull(ctx, image, platform).await,
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
    let name = pulled_name(SystemTime::now())?;
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
}
