//! The images that a build uses for the names in its Dockerfile and its line.

use std::collections::{BTreeMap, BTreeSet};

use acrtask_buildkit::{
    AllowedImage, NamedContext, Provenance, ProvidedImage, SourceImages, SourcePin, familiar_name,
};
use acrtask_model::{Digest, ImageRef, reference::DOCKER_HUB};

use super::Recipe;
use crate::{
    context::{RunContext, StepContext},
    error::error_chain,
    image_names::check_name,
    images::{self, Found, Origin},
    output::lock,
    possession::{Platforms, provide_image},
    steps::build::dockerfile_names::DockerfileNames,
};

/// Selects the image for each name of the build.
///
/// A name can refer to an image that the run built or that the plan pins. On a runner it can also
/// refer to an image that the registry has for the run's own login. BuildKit resolves every other
/// name in its registry with that login.
///
/// For an engine's BuildKit a pin is a named context, which also replaces a stage of that name. If
/// a stage may have the name, the image's tag applies instead, with a warning.
///
/// On a runner, BuildKit receives the content of images from the runner, which checks it. A
/// registry that a task chooses could send other content to BuildKit. BuildKit itself fetches only
/// frontends, scanners and names of stages.
pub(super) async fn pin_images(ctx: &StepContext, recipe: &mut Recipe) -> Result<(), String> {
    let run = &ctx.run;
    let named = recipe.dockerfile_names(run).await?;
    let stages = named.as_ref().map(|named| &named.stages);
    let mut needed = BTreeSet::new();
    // Images that the builder uses without a context.
    let mut by_name = BTreeSet::new();
    for text in named.iter().flat_map(|named| &named.frontends) {
        if let Ok(name) = text.parse::<ImageRef>()
            && (is_curated(&name) || run.options.allow.frontends)
        {
            by_name.insert(name.or_latest());
        }
    }
    for text in named.iter().flat_map(|named| &named.images) {
        // BuildKit itself refuses a text that is not a reference.
        if let Ok(name) = text.parse::<ImageRef>() {
            check_name(&name)?;
            needed.insert(name.or_latest());
        }
    }
    if let Some(scanner) = recipe.sbom_scanner().filter(|_| !run.options.own_machine)
        && let Ok(name) = scanner.parse::<ImageRef>()
    {
        // BuildKit runs the scanner beside the result and fetches it itself.
        if !is_curated(&name) && !run.options.allow.frontends {
            return Err(format!(
                "the scanner {name} is not allowed here, because it is not one of Docker's; use the default one, or ask \
                 the operator for `--allow frontends`"
            ));
        }
        needed.insert(name.clone().or_latest());
        by_name.insert(name.or_latest());
    }
    let platforms = recipe.allowed_platforms(run, named.as_ref());
    let own = own_images(run, recipe.line.pull);
    let mut names: BTreeSet<&ImageRef> = needed.iter().chain(run.plan.pins.keys()).collect();
    if named.is_none() {
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
            None => resolve_target(ctx, name, needed_ref.contains(name)).await?,
        };
        // A name that only the frontend may use is proven at its first use.
        let provided = match target.as_ref().filter(|_| needed_ref.contains(name)) {
            Some(target) => target.provide_image(run, platforms_ref).await?,
            None => None,
        };
        Ok::<_, String>((name, target, provided))
    });
    for (name, target, provided) in futures::future::try_join_all(targets).await? {
        let may_be_stage = may_be_stage(name, stages);
        if provided.is_some() && (may_be_stage || by_name.contains(name)) {
            let allowed = target.iter().filter_map(Target::permission);
            lock(&recipe.allowed).extend(allowed);
        }
        if let Some(provided) = provided.filter(|_| !may_be_stage) {
            lock(&recipe.provided)
                .insert(context_name(name), NamedContext::Provided(provided.image));
            lock(&recipe.originals).insert(provided.root, provided.digest);
            if !by_name.contains(name) {
                continue;
            }
        }
        // A name with a digest needs no pin.
        let Some(target) = target.filter(|_| name.digest().is_none()) else {
            continue;
        };
        if may_be_stage {
            let message = format!(
                "{name} is not pinned to {}, because a stage of the Dockerfile may have its name",
                target.shown
            );
            let help = "name the image by its version: `FROM NAME:1.2`".to_owned();
            run.events
                .warn(Some(&ctx.step.id), message, Some(help))
                .await;
            continue;
        }
        recipe.add_pin(name, target);
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
            None => resolve_target(ctx, &name, true).await?,
        };
        let Some(target) = target else {
            continue;
        };
        if let Some(provided) = target.provide_image(run, &platforms).await? {
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
    /// The name for the builder.
    image: ImageRef,
    /// Set if only the engine has it.
    in_engine: bool,
    /// Short form of its digest, for messages.
    shown: String,
}

/// The content of an image for a builder.
struct Provided {
    image: ProvidedImage,
    /// The digest that the builder receives.
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

    /// Proves that the run may read the builder's part of the image, and returns the content.
    /// `None` for an image of the engine, and on the user's own machine.
    ///
    /// # Errors
    /// A sentence for the user if the run may not read the image.
    async fn provide_image(
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
        let blobs = provide_image(run, &self.image, digest, platforms).await?;
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

    /// Returns the builder's permission to use the image by its name. One permission covers all
    /// images in the engine.
    fn permission(&self) -> Option<AllowedImage> {
        Some(AllowedImage {
            name: self.image.name(),
            digest: Some(self.image.digest()?.to_string()),
        })
    }
}

/// Returns the targets of the run's own images. A staged image is used with a separate BuildKit and
/// with `pull`.
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
    for (name, digest) in run.staged_images() {
        let staged = Target::registry(name.at(digest));
        if pull {
            own.insert(name, staged);
        } else {
            own.entry(name).or_insert(staged);
        }
    }
    own
}

/// Returns the image that a registry has for a name, if the plan pins the name or the run is on a
/// runner. `None` lets BuildKit resolve the name.
///
/// A required digest that the run's login may not read is an error, because an engine may have it
/// from another run.
async fn resolve_target(
    ctx: &StepContext,
    name: &ImageRef,
    needed: bool,
) -> Result<Option<Target>, String> {
    let run = &ctx.run;
    if run.options.own_machine && run.pinned_image(name).is_none() {
        return Ok(None);
    }
    match images::resolve(run, name, false).await {
        Ok(Found::Registry(pinned)) => Ok(Some(Target::registry(pinned))),
        Ok(Found::Engine { .. }) => Ok(None),
        Err(why) if needed && name.digest().is_some() => Err(why),
        Err(why) => {
            tracing::debug!(image = %name, why, "could not resolve an image before the build");
            Ok(None)
        }
    }
}

/// Returns the name of the context that a frontend uses for an image of a Dockerfile.
fn context_name(name: &ImageRef) -> String {
    let text = name.to_string();
    match name.digest() {
        None => familiar_name(&text).to_owned(),
        Some(digest) => {
            let short = familiar_name(&text);
            // A frontend drops `latest` only at the end of the name.
            let tag = name.tag().filter(|tag| *tag == "latest").map(|_| ":latest");
            format!("{short}{}@{digest}", tag.unwrap_or_default())
        }
    }
}

/// Returns the provenance's name, without a digest, of a context that replaces an image.
pub(super) fn replaced_name(context: &str) -> String {
    let name = context.split('@').next().unwrap_or(context);
    match name.parse::<ImageRef>() {
        Ok(name) => name.or_latest().to_string(),
        Err(_) => name.to_lowercase(),
    }
}

/// Returns `true` if a stage of the Dockerfile has the image's name, or if the Dockerfile cannot be
/// parsed and a stage may have it.
fn may_be_stage(name: &ImageRef, stages: Option<&BTreeSet<String>>) -> bool {
    let is_short = name.registry() == DOCKER_HUB && name.tag() == Some("latest");
    let short = name.repository().strip_prefix("library/");
    is_short && short.is_some_and(|short| stages.is_none_or(|stages| stages.contains(short)))
}

impl Recipe {
    /// Returns the images that the build may use. On a runner these are its own and those that the
    /// run may provably read.
    pub(super) fn allowed_images(&self, ctx: &StepContext) -> SourceImages {
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

    /// Proves that the run may read an image that only the frontend of the build names, and allows
    /// the build to use it. `image` is the builder's name for it, with or without a digest. Returns
    /// `false` if the build already had the permission.
    pub(crate) async fn allow_named_by_frontend(
        &self,
        run: &RunContext,
        image: &str,
    ) -> Result<bool, String> {
        let name = image
            .parse::<ImageRef>()
            .map_err(|error| error_chain(&error))?;
        check_name(&name)?;
        let name = name.or_latest();
        let Found::Registry(pinned) = images::resolve(run, &name, false).await? else {
            return Ok(false);
        };
        let target = Target::registry(pinned);
        let context = context_name(&name);
        if lock(&self.provided).contains_key(&context) {
            return Ok(false);
        }
        let named = self.dockerfile_names(run).await?;
        let platforms = self.allowed_platforms(run, named.as_ref());
        let provided = target.provide_image(run, &platforms).await?;
        let Some(provided) = provided else {
            return Ok(false);
        };
        lock(&self.provided).insert(context, NamedContext::Provided(provided.image));
        lock(&self.originals).insert(provided.root, provided.digest);
        Ok(true)
    }

    /// Returns the platforms of images that the build may use: those of the line, the builder and
    /// the Dockerfile. Returns all platforms if they are unknown or if the provenance names the
    /// digests of the images.
    fn allowed_platforms(&self, run: &RunContext, named: Option<&DockerfileNames>) -> Platforms {
        let Some(named) = named.filter(|_| self.provenance == Provenance::Off) else {
            return Platforms::all();
        };
        let own = run.builder.client.capabilities().platforms.first().cloned();
        let own = own.unwrap_or_else(|| "linux/amd64".into());
        let line = self.line.platforms.iter().cloned();
        let named = named.platforms.iter().cloned();
        Platforms(line.chain(named).chain([own]).collect())
    }

    /// Returns the image that writes the SBOM, if the line names one.
    fn sbom_scanner(&self) -> Option<&str> {
        let attrs = self.line.sbom.as_deref().filter(|sbom| *sbom != "false")?;
        let named = attrs
            .split(',')
            .find_map(|pair| pair.trim().strip_prefix("generator="));
        Some(named.unwrap_or(acrtask_buildkit::DEFAULT_SCANNER))
    }

    /// Reads the names in the Dockerfile. `None` if it is not on this machine or cannot be parsed.
    /// Reads on a thread for blocking work, because a Dockerfile may have very many lines.
    async fn dockerfile_names(&self, run: &RunContext) -> Result<Option<DockerfileNames>, String> {
        let given = self.build_args();
        let given = given
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect::<BTreeMap<_, _>>();
        let own = run.builder.client.capabilities().platforms.first().cloned();
        let own = own.unwrap_or_else(|| "linux/amd64".into());
        let platforms = match self.line.platforms.is_empty() {
            true => vec![own.clone()],
            false => self.line.platforms.clone(),
        };
        let Some(text) = self.dockerfile_text() else {
            return Ok(None);
        };
        let parsing = tokio::task::spawn_blocking(move || {
            DockerfileNames::parse(&text, &given, &platforms, &own)
        });
        let parsed = parsing.await.map_err(|error| error.to_string())?;
        parsed.map_err(|error| error.to_string())
    }

    /// Makes the build use `target` for the image `name`.
    fn add_pin(&mut self, name: &ImageRef, target: Target) {
        let digest = target.image.digest();
        match digest.filter(|_| target.image.name() == name.name()) {
            Some(digest) => self.pins.push(SourcePin {
                reference: name.to_string(),
                digest: digest.to_string(),
            }),
            None => {
                let reference = NamedContext::Reference(format!("docker-image://{}", target.image));
                self.named_contexts
                    .insert(familiar_name(&name.to_string()).to_owned(), reference);
            }
        }
        if target.in_engine {
            self.own.insert(target.image, name.clone());
        }
    }
}
