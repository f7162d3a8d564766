//! The images that a build uses for the names in its Dockerfile and its line.

use std::collections::{BTreeMap, BTreeSet};

use acrtask_buildkit::{
    AllowedImage, NamedContext, Provenance, ProvidedImage, SourceImages, SourcePin, familiar,
};
use acrtask_model::{Digest, ImageRef, reference::DOCKER_HUB};

use super::Recipe;
use crate::{
    context::{RunContext, StepContext},
    error::chain,
    image_names::check_name,
    images::{self, Found, Origin},
    output::lock,
    possession::{Platforms, provide},
    steps::build::seen::Seen,
};

/// Decides which image each name of the build means: what the run built, what the plan pins, and at a runner what the
/// registry has for the run's own login. Every other name BuildKit resolves in its registry with that login.
///
/// To an engine's BuildKit a pin is a named context, and one of those also stands for a stage of its name: where a
/// stage may have the name, the image's tag decides, and a warning says so.
///
/// At a runner, BuildKit gets the content of images from the runner, which checks it. A registry that a task chooses could
/// answer BuildKit with other content. BuildKit itself asks for frontends, scanners and stages' names alone.
pub(super) async fn pin_images(ctx: &StepContext, recipe: &mut Recipe) -> Result<(), String> {
    let run = &ctx.run;
    let seen = recipe.seen(run);
    let stages = seen.as_ref().map(|seen| &seen.stages);
    let mut needed = BTreeSet::new();
    // Images that the builder uses without asking for a context.
    let mut by_name = BTreeSet::new();
    for text in seen.iter().flat_map(|seen| &seen.frontends) {
        if let Ok(name) = text.parse::<ImageRef>()
            && (is_curated(&name) || run.options.allow.frontends)
        {
            by_name.insert(name.or_latest());
        }
    }
    for text in seen.iter().flat_map(|seen| &seen.images) {
        // What is not a reference BuildKit refuses itself.
        if let Ok(name) = text.parse::<ImageRef>() {
            check_name(&name)?;
            needed.insert(name.or_latest());
        }
    }
    if let Some(scanner) = recipe.sbom_scanner().filter(|_| !run.options.own_machine)
        && let Ok(name) = scanner.parse::<ImageRef>()
    {
        // BuildKit runs it beside the result, and asks its registry itself.
        if !is_curated(&name) && !run.options.allow.frontends {
            return Err(format!(
                "the scanner {name} is not allowed here, because it is not one of Docker's; use the default one, or ask \
                 the operator for `--allow frontends`"
            ));
        }
        needed.insert(name.clone().or_latest());
        by_name.insert(name.or_latest());
    }
    let platforms = recipe.platforms(run, seen.as_ref());
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
    let (own_ref, needed_ref, platforms_ref) = (&own, &needed, &platforms);
    let targets = wanted.map(|name| async move {
        let target = match own_ref.get(name) {
            Some(own) => Some(own.clone()),
            None => in_registry(ctx, name, needed_ref.contains(name)).await?,
        };
        // A name that only the frontend may use is proven when it does.
        let provided = match target.as_ref().filter(|_| needed_ref.contains(name)) {
            Some(target) => target.provide(run, platforms_ref).await?,
            None => None,
        };
        Ok::<_, String>((name, target, provided))
    });
    for (name, target, provided) in futures::future::try_join_all(targets).await? {
        let may_be_stage = may_be_stage(name, stages);
        if provided.is_some() && (may_be_stage || by_name.contains(name)) {
            let allowed = target.iter().filter_map(Target::allowed);
            lock(&recipe.allowed).extend(allowed);
        }
        if let Some(provided) = provided.filter(|_| !may_be_stage) {
            lock(&recipe.provided).insert(context_of(name), NamedContext::Provided(provided.image));
            lock(&recipe.originals).insert(provided.root, provided.digest);
            if !by_name.contains(name) {
                continue;
            }
        }
        // A digest needs no pin.
        let Some(target) = target.filter(|_| name.digest().is_none()) else {
            continue;
        };
        if may_be_stage {
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
    for (key, context) in &mut recipe.named_contexts {
        let NamedContext::Reference(reference) = &mut *context else {
            recipe.replaced.insert(replaced_name(key), None);
            continue;
        };
        let image = reference.strip_prefix("docker-image://");
        let Some(Ok(name)) = image.map(str::parse::<ImageRef>) else {
            continue;
        };
        if recipe.own.contains_key(&name) {
            continue;
        }
        check_name(&name)?;
        let name = name.or_latest();
        recipe
            .replaced
            .insert(replaced_name(key), Some(name.clone()));
        let target = match own.get(&name) {
            Some(own) => Some(own.clone()),
            None => in_registry(ctx, &name, true).await?,
        };
        let Some(target) = target else {
            continue;
        };
        if let Some(provided) = target.provide(run, &platforms).await? {
            *context = NamedContext::Provided(provided.image);
            lock(&recipe.originals).insert(provided.root, provided.digest);
            continue;
        }
        *reference = format!("docker-image://{}", target.image);
        if target.in_engine {
            recipe.own.insert(target.image, name);
        }
    }
    Ok(())
}

/// Returns `true` for images of Docker Hub whose content no task author can choose.
fn is_curated(name: &ImageRef) -> bool {
    let repository = name.repository();
    name.registry() == DOCKER_HUB
        && ["library/", "docker/"]
            .iter()
            .any(|of| repository.starts_with(of))
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

/// The content of an image for a builder.
struct Provided {
    image: ProvidedImage,
    /// The digest that the builder gets.
    root: Digest,
    /// The digest of the image in its registry.
    digest: Digest,
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

    /// Proves that the run may read what the builder has of it, and returns its content. `None` for an image of the engine,
    /// and on one's own machine.
    ///
    /// # Errors
    /// A sentence for the user: the run may not read it.
    async fn provide(
        &self,
        run: &RunContext,
        platforms: &Platforms,
    ) -> Result<Option<Provided>, String> {
        let Some(digest) = self.image.digest() else {
            return Ok(None);
        };
        if self.in_engine || run.options.own_machine {
            return Ok(None);
        }
        let blobs = provide(run, &self.image, digest, platforms).await?;
        let root = blobs.root.clone();
        Ok(Some(Provided {
            image: ProvidedImage {
                digest: root.to_string(),
                blobs,
            },
            root,
            digest: digest.clone(),
        }))
    }

    /// Returns the builder's permission to use it by its name. Images in the engine have one for all of them.
    fn allowed(&self) -> Option<AllowedImage> {
        Some(AllowedImage {
            name: self.image.name(),
            digest: Some(self.image.digest()?.to_string()),
        })
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

/// Returns the name of the context that a frontend uses for an image of a Dockerfile.
fn context_of(name: &ImageRef) -> String {
    let text = name.to_string();
    match name.digest() {
        None => familiar(&text).to_owned(),
        Some(digest) => {
            let short = familiar(&text);
            // A frontend drops `latest` only where it ends the name.
            let tag = name.tag().filter(|tag| *tag == "latest").map(|_| ":latest");
            format!("{short}{}@{digest}", tag.unwrap_or_default())
        }
    }
}

/// Returns the name of a context as the provenance of a build that uses it in place of an image has it, without a digest.
pub(super) fn replaced_name(context: &str) -> String {
    let name = context.split('@').next().unwrap_or(context);
    match name.parse::<ImageRef>() {
        Ok(name) => name.or_latest().to_string(),
        Err(_) => name.to_lowercase(),
    }
}

/// Returns `true` if a stage of the Dockerfile has the image's name, or may have it in one that cannot be read.
fn may_be_stage(name: &ImageRef, stages: Option<&BTreeSet<String>>) -> bool {
    let is_short = name.registry() == DOCKER_HUB && name.tag() == Some("latest");
    let short = name.repository().strip_prefix("library/");
    is_short && short.is_some_and(|short| stages.is_none_or(|stages| stages.contains(short)))
}

impl Recipe {
    /// Returns the images that the build may use: at a runner its own, and those that the run has proven that it may
    /// read.
    pub(super) fn images(&self, ctx: &StepContext) -> SourceImages {
        if ctx.run.options.own_machine {
            return SourceImages::Any;
        }
        let own = AllowedImage {
            name: ctx.run.image_names.repository().to_owned(),
            digest: None,
        };
        let mut images = vec![own];
        images.extend(lock(&self.allowed).iter().cloned());
        SourceImages::Only(images)
    }

    /// Proves that the run may read an image that only the frontend of the build names, and allows the build to use it.
    /// `image` is the builder's name for it, with or without a digest. Returns `false` if the build had that permission.
    pub(crate) async fn allow_named_by_frontend(
        &self,
        run: &RunContext,
        image: &str,
    ) -> Result<bool, String> {
        let name = image.parse::<ImageRef>().map_err(|error| chain(&error))?;
        check_name(&name)?;
        let name = name.or_latest();
        let Found::Registry(pinned) = images::resolve(run, &name, false).await? else {
            return Ok(false);
        };
        let target = Target::registry(pinned);
        let context = context_of(&name);
        if lock(&self.provided).contains_key(&context) {
            return Ok(false);
        }
        let platforms = self.platforms(run, self.seen(run).as_ref());
        let provided = target.provide(run, &platforms).await?;
        let Some(provided) = provided else {
            return Ok(false);
        };
        lock(&self.provided).insert(context, NamedContext::Provided(provided.image));
        lock(&self.originals).insert(provided.root, provided.digest);
        Ok(true)
    }

    /// Returns the platforms of images that the build may use: those of the line, the builder and the Dockerfile. All, where
    /// they are unknown, and where the provenance names the digests of the images.
    fn platforms(&self, run: &RunContext, seen: Option<&Seen>) -> Platforms {
        let Some(seen) = seen.filter(|_| self.provenance == Provenance::Off) else {
            return Platforms::all();
        };
        let own = run.builder.client.capabilities().platforms.first().cloned();
        let own = own.unwrap_or_else(|| "linux/amd64".into());
        let line = self.line.platforms.iter().cloned();
        let named = seen.platforms.iter().cloned();
        Platforms(line.chain(named).chain([own]).collect())
    }

    /// Returns the image that writes the SBOM, where the line names one.
    fn sbom_scanner(&self) -> Option<&str> {
        let attrs = self.line.sbom.as_deref().filter(|sbom| *sbom != "false")?;
        let named = attrs
            .split(',')
            .find_map(|pair| pair.trim().strip_prefix("generator="));
        Some(named.unwrap_or(acrtask_buildkit::DEFAULT_SCANNER))
    }

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
