//! The images of a run: those it built, those it pulled, and the resolution of every other name.
//!
//! Invariants:
//! - A name in the engine does not identify an image. An image that a run builds has a name in the
//!   engine that no task can use ([`crate::image_names`]), and is used by its digest.
//! - The registry resolves a name that the run did not build, with the run's own login, once. The
//!   run uses the digest. So a run cannot use an image that another run pulled if its own login may
//!   not read it.
//! - A digest from a registry proves nothing ([`possession`]): for a runner the registry has to
//!   send the content as well.
//! - Only on the user's own machine ([`crate::Options::own_machine`]) an image of the engine
//!   replaces one that the registry does not have.
//!
//! With the engine's own BuildKit, builds, containers and pushes share one store. An image of a
//! separate BuildKit is loaded into the engine once, when a step needs it there.

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
    error::error_chain,
    image_names::{check_name, pulled_name},
    login_help::{error_chain_with_help, with_login_help},
    output::lock,
    possession::{self, Missing, Platforms, Proven},
    steps,
};

/// Maximum time to wait for a registry before the engine of the user's own machine is used instead.
const OWN_MACHINE_TIMEOUT: Duration = Duration::from_secs(10);

/// An image that belongs to a run.
#[derive(Debug)]
pub(crate) struct OwnImage {
    /// The step that built or pulled it.
    pub(crate) step: StepId,
    /// Complete names.
    pub(crate) names: Vec<ImageRef>,
    /// Digest of its manifest or index, as the builder reported it.
    pub(crate) digest: Digest,
    /// Digest of its configuration, for one platform.
    pub(crate) config: Option<Digest>,
    pub(crate) origin: Origin,
    /// Set if the build itself has pushed it.
    pub(crate) pushed: bool,
    loaded: OnceCell<()>,
}

/// The source and location of an image of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Built by a build step or found on the user's own machine. The engine has it under this name.
    Engine(ImageRef),
    /// Built by a separate BuildKit. The engine has it under this name after it is loaded.
    Builder { name: ImageRef },
    /// Pulled by the run with this name and digest.
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

    /// Returns the same image with another name.
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

    /// Returns the name of the image for requests to the engine. Uses the digest, because another
    /// image may have the name.
    pub(crate) fn in_engine(&self, engine: &Engine) -> String {
        match &self.origin {
            Origin::Engine(_) => self.digest.to_string(),
            Origin::Builder { name } => name.to_string(),
            Origin::Pulled(pinned) => pulled_id(engine, pinned),
        }
    }
}

/// The images of a run. A name that is built again refers to the newer image.
#[derive(Debug, Default)]
pub(crate) struct Images {
    own: Mutex<Vec<Arc<OwnImage>>>,
    /// Images of the names that the run did not build.
    resolved: Mutex<HashMap<ImageRef, Arc<OnceCell<Found>>>>,
}

/// An image that the run did not build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// Name and digest of an image in a registry that the run's login may read.
    Registry(ImageRef),
    /// Name and engine id of an image that only the engine of the user's own machine has.
    Engine { name: ImageRef, id: Digest },
}

impl Found {
    /// Returns the name of the image for requests to the engine.
    pub(crate) fn in_engine(&self, engine: &Engine) -> String {
        match self {
            Self::Registry(pinned) => pulled_id(engine, pinned),
            Self::Engine { id, .. } => id.to_string(),
        }
    }

    /// Returns the digest of the image.
    pub(crate) fn digest(&self) -> Option<&Digest> {
        match self {
            Self::Registry(pinned) => pinned.digest(),
            Self::Engine { id, .. } => Some(id),
        }
    }
}

/// Returns the engine's name for an image that was pulled by its digest. The ids of its classic
/// store are not digests.
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

    /// Returns the current image of each name of the run's own images.
    pub(crate) fn by_name(&self) -> HashMap<ImageRef, Arc<OwnImage>> {
        let all = self.all();
        let named = all
            .iter()
            .flat_map(|image| image.names.iter().map(move |name| (name, image)));
        named
            .map(|(name, image)| (name.clone(), Arc::clone(image)))
            .collect()
    }

    /// Returns the image that a complete name refers to, if it belongs to this run.
    pub(crate) fn find_image(&self, reference: &ImageRef) -> Option<Arc<OwnImage>> {
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

    /// Loads an image of a separate BuildKit into the engine, unless the engine has it.
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

/// Resolves a complete name that the run did not build. Sends one request to the registry for each
/// name. `refresh` sends another one.
pub(crate) async fn resolve(
    run: &RunContext,
    name: &ImageRef,
    refresh: bool,
) -> Result<Found, String> {
    check_name(name)?;
    let cell = {
        let mut resolved = lock(&run.images.resolved);
        if refresh {
            resolved.remove(name);
        }
        Arc::clone(resolved.entry(name.clone()).or_default())
    };
    cell.get_or_try_init(|| resolve_once(run, name, refresh))
        .await
        .cloned()
}

async fn resolve_once(run: &RunContext, name: &ImageRef, refresh: bool) -> Result<Found, String> {
    // A pin selects a digest, but does not prove that the run may read it.
    let wanted = run.pinned_image(name).unwrap_or_else(|| name.clone());
    let registry = run.registry();
    let resolving = registry.resolve(&wanted);
    if !run.options.own_machine {
        return match resolving.await {
            Ok(found) => Ok(Found::Registry(name.at(found.digest))),
            Err(error) => Err(error_chain_with_help(&error)),
        };
    }
    let why = match tokio::time::timeout(OWN_MACHINE_TIMEOUT, resolving).await {
        Ok(Ok(found)) => return Ok(Found::Registry(name.at(found.digest))),
        Ok(Err(error)) => error_chain_with_help(&error),
        Err(_) => format!(
            "{} did not resolve {name} within {} s",
            name.registry(),
            OWN_MACHINE_TIMEOUT.as_secs()
        ),
    };
    // `pull: true` and `docker pull` require the registry's image.
    if refresh {
        return Err(why);
    }
    let stored = run.engine.find_image(&wanted.to_string()).await;
    let stored = stored.map_err(|error| error_chain(&error))?;
    match stored.map(|stored| stored.id.parse()) {
        Some(Ok(id)) => {
            tracing::debug!(image = %name, why, "using the image of the engine");
            Ok(Found::Engine {
                name: name.clone(),
                id,
            })
        }
        _ => Err(why),
    }
}

/// Adds an image that the engine has and the run did not build to the run's images, unless it is
/// already one of them.
pub(crate) fn register_found(ctx: &StepContext, name: ImageRef, found: &Found) {
    let images = &ctx.run.images;
    let Some(digest) = found.digest() else { return };
    if images
        .find_image(&name)
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

/// Pulls an image of a registry with the step's `cmdDownloadRetries`, and reports it in the step's
/// output.
pub(crate) async fn pull_image(
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
        // Proves the image before the engine reads it, because an engine follows every path to the
        // manifests of an image.
        let platforms = platforms_to_run(&ctx.run, platform);
        let proven = possession::prove(&ctx.run, image, platforms, Missing::Leave);
        let pull = async {
            proven.await?;
            let progress = |line: &str| tracing::debug!(%image, line, "pulling image");
            let engine = &ctx.run.engine;
            let pulled = engine
                .pull_image(image, platform, &credentials, progress)
                .await;
            pulled.map_err(|error| with_login_help(error_chain(&error)))
        };
        let pulled = tokio::select! {
            pulled = pull => pulled,
            () = ctx.cancel.cancelled() => return Err("the step was stopped".into()),
        };
        let Err(why) = pulled else {
            if let Err(why) = prove_pulled(&ctx.run, image, platform).await {
                // A later step must not use its digest either.
                let removed = ctx.run.engine.remove_image(&image.to_string()).await;
                return match removed {
                    Ok(()) => Err(why),
                    Err(error) => Err(format!(
                        "{why}; it stays in the engine: {}",
                        error_chain(&error)
                    )),
                };
            }
            return hide_pulled(&ctx.run, image).await;
        };
        if attempt > options.download_retries {
            return Err(why);
        }
        wait_before_retry(ctx, why).await?;
    }
}

/// Returns the platforms of an index that a container may use.
fn platforms_to_run(run: &RunContext, platform: Option<&str>) -> Platforms {
    let own = run.engine.facts.platform.as_str();
    Platforms(vec![platform.unwrap_or(own).to_owned()])
}

/// Proves that the run may read an image that the engine has pulled for it. The engine may have
/// used content from its own store.
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

/// Proves that the run may read an image before a container uses it, and pulls the missing content.
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
        Proven::Partly => pull_image(ctx, image, platform).await,
    }
}

/// Replaces the name of a pulled image in a runner's engine by a name that no run can guess. With
/// its own name, BuildKit could use it for a build whose login may not read it.
#[allow(
    clippy::disallowed_methods,
    reason = "the boundary to the pure code that takes the time"
)]
async fn hide_pulled(run: &RunContext, image: &ImageRef) -> Result<(), String> {
    let Some(digest) = image.digest() else {
        return Ok(());
    };
    if run.options.own_machine || !run.engine.facts.containerd_store {
        return Ok(());
    }
    let name = pulled_name(SystemTime::now())?;
    let tagged = run.engine.tag_image(digest.as_str(), &name).await;
    tagged.map_err(|error| error_chain(&error))?;
    let removed = run.engine.remove_image(&image.to_string()).await;
    removed.map_err(|error| error_chain(&error))
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
            Err(why) if attempt <= ctx.step.container.download_retries => {
                wait_before_retry(ctx, why).await?
            }
            resolved => return resolved,
        }
    }
}

/// Waits before the next attempt to resolve or pull an image.
async fn wait_before_retry(ctx: &StepContext, why: String) -> Result<(), String> {
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
    fn name_refers_to_the_newest_image() {
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
            let image = images.find_image(&reference.or_latest())?;
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
