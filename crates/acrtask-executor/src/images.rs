//! The images of a run: what its build steps made, under which names, with which digest.
//!
//! An image that a build step made is what a later cmd step runs and what a push step pushes. With the
//! engine's own BuildKit they share one store. An image of a separate BuildKit is loaded into the engine once,
//! when a step needs it there.

use std::sync::{Arc, Mutex};

use acrtask_model::{Digest, ImageRef, ReferenceError, StepId};
use tokio::sync::OnceCell;

use crate::{context::StepContext, error::chain, output::lock, steps};

/// An image that a build step of this run made.
#[derive(Debug)]
pub(crate) struct Built {
    /// The step.
    pub(crate) step: StepId,
    /// Its names, complete.
    pub(crate) names: Vec<ImageRef>,
    /// The digest of its manifest or index, as the builder gave it.
    pub(crate) digest: Digest,
    /// The digest of its configuration, for one platform.
    pub(crate) config: Option<Digest>,
    /// True where the engine has it as it is.
    pub(crate) in_engine: bool,
    /// True where the build itself has pushed it.
    pub(crate) pushed: bool,
    loaded: OnceCell<()>,
}

impl Built {
    pub(crate) fn new(
        step: StepId,
        names: Vec<ImageRef>,
        digest: Digest,
        config: Option<Digest>,
        in_engine: bool,
        pushed: bool,
    ) -> Self {
        Self {
            step,
            names,
            digest,
            config,
            in_engine,
            pushed,
            loaded: OnceCell::new(),
        }
    }

    /// The same image by another name.
    pub(crate) fn renamed(&self, name: ImageRef) -> Self {
        Self::new(
            self.step.clone(),
            vec![name],
            self.digest.clone(),
            self.config.clone(),
            self.in_engine,
            false,
        )
    }
}

/// The images of a run; a name that is built again means the newer image.
#[derive(Debug, Default)]
pub(crate) struct Images(Mutex<Vec<Arc<Built>>>);

impl Images {
    pub(crate) fn add(&self, built: Built) -> Arc<Built> {
        let built = Arc::new(built);
        lock(&self.0).push(Arc::clone(&built));
        built
    }

    /// Every image of the run, oldest first.
    pub(crate) fn all(&self) -> Vec<Arc<Built>> {
        lock(&self.0).clone()
    }

    /// The image that `name` means, if this run built it: a full or short name, or a digest.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Built>> {
        let all = lock(&self.0);
        let reference = name.parse::<ImageRef>().ok()?.or_latest();
        let of_name = |built: &&Arc<Built>| built.names.contains(&reference);
        let of_digest = |built: &&Arc<Built>| {
            reference.digest() == Some(&built.digest)
                && built.names.iter().any(|n| n.name() == reference.name())
        };
        let found = all.iter().rev().find(of_name);
        found.or_else(|| all.iter().rev().find(of_digest)).cloned()
    }

    /// Sees to it that the engine has an image that a separate BuildKit made.
    pub(crate) async fn load_into_engine(
        &self,
        ctx: &StepContext,
        built: &Built,
    ) -> Result<(), String> {
        if built.in_engine {
            return Ok(());
        }
        built
            .loaded
            .get_or_try_init(|| ctx.run.builder.load_into_engine(ctx, built))
            .await
            .copied()
    }
}

/// Pulls an image with the step's `cmdDownloadRetries`; says so in the step's output.
pub(crate) async fn pull(
    ctx: &StepContext,
    name: &str,
    platform: Option<&str>,
) -> Result<(), String> {
    let reference: ImageRef = name
        .parse()
        .map_err(|error: ReferenceError| chain(&error))?;
    let reference = reference.or_latest();
    let options = &ctx.step.container;
    let credentials = ctx.run.credentials();
    let mut attempt = 0;
    loop {
        attempt += 1;
        let message = format!("pulling {reference} for step {}", ctx.step.id);
        ctx.run
            .events
            .send(acrtask_model::EventKind::Progress { message })
            .await;
        let pulled = tokio::select! {
            pulled = ctx.run.engine.pull_image(&reference, platform, &credentials, |line| {
                tracing::debug!(image = %reference, line, "pull");
            }) => pulled,
            () = ctx.cancel.cancelled() => return Err("the step was stopped".into()),
        };
        let Err(error) = pulled else { return Ok(()) };
        let why = chain(&error);
        if attempt > options.download_retries {
            return Err(why);
        }
        let delay = options.download_retry_delay;
        let message = format!("{why}; another attempt in {} s", delay.as_secs());
        ctx.run.events.warn(Some(&ctx.step.id), message, None).await;
        if !steps::wait(delay, &ctx.cancel).await {
            return Err(why);
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
        images.add(Built::new(
            step("a"),
            names(&["r.io/x:1", "y"]),
            digest("a"),
            None,
            true,
            false,
        ));
        images.add(Built::new(
            step("b"),
            names(&["r.io/x:1"]),
            digest("b"),
            None,
            true,
            false,
        ));
        let found = |name: &str| images.find(name).map(|built| built.step.to_string());
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
