//! The images that a build uses for the names in its Dockerfile and its line.

use std::collections::{BTreeMap, BTreeSet};

use acrtask_buildkit::{NamedContext, SourcePin, familiar};
use acrtask_model::{ImageRef, reference::DOCKER_HUB};

use super::Recipe;
use crate::{
    context::{RunContext, StepContext},
    images::{self, Found, Origin},
    steps::build::seen::Seen,
};

/// Decides which image each name of the build means: what the run built, what the plan pins, and at a runner what the
/// registry has for the run's own login. Every other name BuildKit resolves in its registry with that login.
///
/// To an engine's BuildKit a pin is a named context, and one of those also stands for a stage of its name: where a
/// stage may have the name, the image's tag decides, and a warning says so.
pub(super) async fn pin_images(ctx: &StepContext, recipe: &mut Recipe) -> Result<(), String> {
    let run = &ctx.run;
    let seen = recipe.seen(run);
    let stages = seen.as_ref().map(|seen| &seen.stages);
    let mut needed = BTreeSet::new();
    for text in seen.iter().flat_map(|seen| &seen.images) {
        // What is not a reference BuildKit refuses itself.
        if let Ok(name) = text.parse::<ImageRef>() {
            images::check_name(&name)?;
            needed.insert(name.or_latest());
        }
    }
    let own = own_images(run, recipe.line.pull);
    let mut names: BTreeSet<&ImageRef> = needed.iter().chain(run.plan.pins.keys()).collect();
    if seen.is_none() {
        names.extend(own.keys());
    }
    let replaced: Vec<ImageRef> = recipe
        .named_contexts
        .keys()
        .filter_map(|name| Some(name.parse::<ImageRef>().ok()?.or_latest()))
        .collect();
    let wanted = names.into_iter().filter(|name| !replaced.contains(name));
    let (own_ref, needed_ref) = (&own, &needed);
    let targets = wanted.map(|name| async move {
        let target = match own_ref.get(name) {
            Some(own) => Ok(Some(own.clone())),
            None => in_registry(ctx, name, needed_ref.contains(name)).await,
        };
        target.map(|target| (name, target))
    });
    for (name, target) in futures::future::try_join_all(targets).await? {
        // A digest needs no pin.
        let Some(target) = target.filter(|_| name.digest().is_none()) else {
            continue;
        };
        if may_be_stage(name, stages) {
            let message = format!(
                "{name} is not held to {}, because a stage of the Dockerfile may have its name",
                target.shown
            );
            let help = "name the image by its version: `FROM NAME:1.2`".to_owned();
            run.events
                .warn(Some(&ctx.step.id), message, Some(help))
                .await;
            continue;
        }
        recipe.pin(name, target);
    }
    for context in recipe.named_contexts.values_mut() {
        let NamedContext::Reference(reference) = context else {
            continue;
        };
        let image = reference.strip_prefix("docker-image://");
        let Some(Ok(name)) = image.map(str::parse::<ImageRef>) else {
            continue;
        };
        if recipe.own.contains_key(&name) {
            continue;
        }
        images::check_name(&name)?;
        let name = name.or_latest();
        let target = match own.get(&name) {
            Some(own) => Some(own.clone()),
            None => in_registry(ctx, &name, true).await?,
        };
        if let Some(target) = target {
            *reference = format!("docker-image://{}", target.image);
            if target.in_engine {
                recipe.own.insert(target.image, name);
            }
        }
    }
    Ok(())
}

/// The image that a build uses for a name.
#[derive(Debug, Clone)]
struct Target {
    /// As the builder finds it.
    image: ImageRef,
    /// Only the engine has it.
    in_engine: bool,
    /// Its digest in short, for messages.
    shown: String,
}

impl Target {
    fn registry(image: ImageRef) -> Self {
        Self {
            shown: image
                .digest()
                .map_or_else(String::new, |digest| digest.short().to_owned()),
            image,
            in_engine: false,
        }
    }
}

/// Returns what the run's own images are to its builds. What was pushed without its tag counts for a separate BuildKit,
/// and with `pull`.
fn own_images(run: &RunContext, pull: bool) -> BTreeMap<ImageRef, Target> {
    let mut own = BTreeMap::new();
    for (name, image) in run.images.by_name() {
        let target = match &image.origin {
            Origin::Engine(stored) if run.builder.is_engine() => Target {
                image: stored.clone(),
                in_engine: true,
                shown: image.digest.short().to_owned(),
            },
            Origin::Pulled(pinned) => Target::registry(pinned.clone()),
            Origin::Engine(_) | Origin::Builder { .. } => continue,
        };
        own.insert(name, target);
    }
    for (name, digest) in run.all_held() {
        let held = Target::registry(name.at(digest));
        if pull {
            own.insert(name, held);
        } else {
            own.entry(name).or_insert(held);
        }
    }
    own
}

/// Returns the image that a registry has for a name, where the plan pins it, or the run is at a runner. `None` leaves the
/// name to BuildKit. A digest that the build needs and the run's login may not read is an error: an engine may have it
/// from another run.
async fn in_registry(
    ctx: &StepContext,
    name: &ImageRef,
    needed: bool,
) -> Result<Option<Target>, String> {
    let run = &ctx.run;
    if run.options.own_machine && run.pinned(name).is_none() {
        return Ok(None);
    }
    match images::resolve(run, name, false).await {
        Ok(Found::Registry(pinned)) => Ok(Some(Target::registry(pinned))),
        Ok(Found::Engine { .. }) => Ok(None),
        Err(why) if needed && name.digest().is_some() => Err(why),
        Err(why) => {
            tracing::debug!(image = %name, why, "not resolved before the build");
            Ok(None)
        }
    }
}

/// Returns `true` if a stage of the Dockerfile has the image's name, or may have it in one that cannot be read.
fn may_be_stage(name: &ImageRef, stages: Option<&BTreeSet<String>>) -> bool {
    let is_short = name.registry() == DOCKER_HUB && name.tag() == Some("latest");
    let short = name.repository().strip_prefix("library/");
    is_short && short.is_some_and(|short| stages.is_none_or(|stages| stages.contains(short)))
}

impl Recipe {
    /// Reads the names in the Dockerfile. `None` if it is not on this machine, or cannot be read.
    fn seen(&self, run: &RunContext) -> Option<Seen> {
        let given = self.build_args();
        let given = given.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        let own = run.builder.client.capabilities().platforms.first().cloned();
        let own = own.unwrap_or_else(|| "linux/amd64".into());
        let platforms = if self.line.platforms.is_empty() {
            std::slice::from_ref(&own)
        } else {
            &self.line.platforms
        };
        Seen::of(&self.dockerfile_text()?, &given, platforms, &own)
    }

    /// Makes the build use `target` for the image `name`.
    fn pin(&mut self, name: &ImageRef, target: Target) {
        let digest = target.image.digest();
        match digest.filter(|_| target.image.name() == name.name()) {
            Some(digest) => self.pins.push(SourcePin {
                reference: name.to_string(),
                digest: digest.to_string(),
            }),
            None => {
                let reference = NamedContext::Reference(format!("docker-image://{}", target.image));
                self.named_contexts
                    .insert(familiar(&name.to_string()).to_owned(), reference);
            }
        }
        if target.in_engine {
            self.own.insert(target.image, name.clone());
        }
    }
}
