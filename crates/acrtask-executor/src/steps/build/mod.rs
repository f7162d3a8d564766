//! Build steps: from the words of the line to images in their destination.

pub(crate) mod bases;
mod dockerfile_names;
mod fetched;
mod input;
mod outputs;
pub(crate) mod progress;
mod recipe;

pub(crate) use recipe::{INLINE_CACHE, Recipe};

use std::{collections::BTreeMap, sync::Arc};

use acrtask_buildkit::{
    BuildError, BuildOutcome, BuildRequest, CacheSpec, Export, Feature, ImageExport, NoCache,
};
use acrtask_model::{Digest, EventKind, ImageRef, ReferenceError, events::Stream};
use acrtask_spec::{
    build_line::BuildLine,
    plan::{BuildStep, StepCache},
};

use super::Trace;
use crate::{
    archive::Pack,
    cmd::body::working_folder,
    context::StepContext,
    error::error_chain,
    image_names::check_name,
    images::{Origin, OwnImage},
    login_help::login_help,
    policy::Attempt,
    workspace::resolve_path,
};

/// Runs the build of a line.
pub(crate) async fn run(
    ctx: &StepContext,
    step: &BuildStep,
    line: &BuildLine,
    trace: &mut Trace,
) -> Attempt {
    match build(ctx, step, line, trace).await {
        Ok(()) => Attempt::Succeeded,
        Err(_) if ctx.cancel.is_cancelled() => Attempt::Stopped,
        Err(failed) => failed,
    }
}

async fn build(
    ctx: &StepContext,
    step: &BuildStep,
    line: &BuildLine,
    trace: &mut Trace,
) -> Result<(), Attempt> {
    for (_, warning) in &line.ignored {
        ctx.run
            .events
            .warn(Some(&ctx.step.id), warning.clone(), None)
            .await;
    }
    let names = parse_names(&line.tags).map_err(Attempt::failed)?;
    // The preparation may download a context and copy the workspace.
    let prepared = tokio::select! {
        prepared = Recipe::prepare(ctx, line) => prepared,
        () = ctx.cancel.cancelled() => return Err(Attempt::Stopped),
    };
    let mut recipe = prepared.map_err(Attempt::failed)?;
    if let Some(cache) = &step.cache {
        add_step_cache(ctx, cache, &mut recipe).await;
    }
    let recipe = Arc::new(recipe);
    let outputs = outputs::Outputs::parse(ctx, line, &names).map_err(Attempt::failed)?;
    let separate = !ctx.run.builder.is_engine();
    let pushes = line.push && !ctx.run.no_push;
    if line.push && !pushes {
        let text = "not pushed, as --no-push asks";
        ctx.output.print_line(Stream::Stderr, text).await;
    }
    let makes_image = outputs.is_default() && !names.is_empty();
    let pushes = pushes && makes_image || !outputs.pushed_names().is_empty();
    // The engine must not receive a name that another run could resolve, unless the build sets the
    // final names anyway.
    let direct = makes_image && !separate && ctx.run.publishes_at_once();
    let stored = match names.first().filter(|_| direct) {
        Some(name) => name.clone(),
        None => ctx.run.new_image_name().map_err(Attempt::failed)?,
    };
    let exports = || {
        let mut exports = outputs.exports(&ctx.run.builder, &stored);
        if makes_image && separate {
            exports.push(image_export(ctx, &names, pushes));
        } else if makes_image || outputs.is_default() && line.iidfile.is_some() && !separate {
            let stored = std::slice::from_ref(&stored);
            exports.push(load_export(if direct { &names } else { stored }));
        }
        exports
    };
    let builds_first = ctx.run.is_fenced() && pushes_in_solve(&exports());
    if builds_first {
        let built_first = build_first(ctx, &recipe).await;
        if let Err(error) = built_first.map_err(Attempt::failed)? {
            return Err(report_failure(ctx, &error, trace).await);
        }
        ctx.may_push().await.map_err(Attempt::failed)?;
    }
    let request = || {
        let mut request = recipe.request(ctx)?;
        outputs.redirect_caches(&mut request.cache_exports);
        request.exports = exports();
        if builds_first {
            request.no_cache = NoCache::UseCache;
        }
        Ok(request)
    };
    let built = build_repeatedly(ctx, &recipe, request).await;
    let outcome = match built.map_err(Attempt::failed)? {
        Ok(outcome) => outcome,
        Err(error) => return Err(report_failure(ctx, &error, trace).await),
    };
    recipe::seal_exported(ctx, &recipe.cache_exports, &outcome).await;
    outputs.upload(ctx).await.map_err(Attempt::failed)?;
    let digest: Option<Digest> = outcome.image_digest.as_deref().and_then(|d| d.parse().ok());
    // The images of the line's outputs belong to the run as well.
    let (kept, pushed) = match (makes_image, pushes) {
        (true, true) => (Vec::new(), names),
        (true, false) => (names, Vec::new()),
        (false, _) => (outputs.kept_names(), outputs.pushed_names()),
    };
    let names: Vec<ImageRef> = kept.iter().chain(&pushed).cloned().collect();
    if let (Some(digest), false) = (&digest, names.is_empty()) {
        ctx.run
            .recipes
            .add(ctx.step.id.clone(), Arc::clone(&recipe));
        let config = outcome.config_digest.as_deref();
        let config: Option<Digest> = config.and_then(|digest| digest.parse().ok());
        for (names, pushed) in [(kept, false), (pushed.clone(), separate)] {
            if names.is_empty() {
                continue;
            }
            let origin = if separate {
                Origin::Builder {
                    name: stored.clone(),
                }
            } else {
                Origin::Engine(stored.clone())
            };
            let step = ctx.step.id.clone();
            let image = OwnImage::new(step, names, digest.clone(), config.clone(), origin, pushed);
            ctx.run.images.add(image);
        }
        ctx.run
            .events
            .send(EventKind::ImageBuilt {
                step: ctx.step.id.clone(),
                names: names.iter().map(ToString::to_string).collect(),
                digest: digest.clone(),
            })
            .await;
    }
    bases::send_used(ctx, &recipe, &outcome.provenance).await;
    write_files(ctx, line, &outcome, &names)
        .await
        .map_err(Attempt::failed)?;
    if pushes {
        for name in &pushed {
            super::push::push(ctx, name)
                .await
                .map_err(Attempt::failed)?;
        }
    }
    Ok(())
}

fn pushes_in_solve(exports: &[Export]) -> bool {
    exports
        .iter()
        .any(|export| matches!(export, Export::Image(image) if image.push))
}

/// Builds everything and exports nothing. After the fence check only the push remains, and no build
/// that could outlast the permission.
async fn build_first(ctx: &StepContext, recipe: &Recipe) -> Result<Result<(), BuildError>, String> {
    let request = || {
        let mut request = recipe.request(ctx)?;
        request.cache_exports.clear();
        Ok(request)
    };
    let built = build_repeatedly(ctx, recipe, request).await?;
    Ok(built.map(drop))
}

/// Maximum number of images that only the frontend names, and of files with a checksum. A build
/// with more of them fails.
const MAX_LATE_SOURCES: usize = 20;

/// Runs a build. Repeats it once after a fault of the builder. Also repeats it after the proof that
/// the run may read an image that only the frontend names, or a file with a checksum.
async fn build_repeatedly(
    ctx: &StepContext,
    recipe: &Recipe,
    request: impl Fn() -> Result<BuildRequest, String>,
) -> Result<Result<BuildOutcome, BuildError>, String> {
    let mut found = 0;
    let mut repeated = false;
    loop {
        let error = match ctx.run.builder.build(ctx, request()?).await {
            Ok(outcome) => return Ok(Ok(outcome)),
            Err(error) => error,
        };
        if let Some(image) = error.denied_image().filter(|_| found < MAX_LATE_SOURCES) {
            found += 1;
            let allowed = recipe.allow_named_by_frontend(&ctx.run, image).await?;
            if allowed {
                tracing::debug!(
                    image,
                    "repeating a build with an image that its frontend names"
                );
                continue;
            }
        } else if let Some(url) = error.denied_file().filter(|_| found < MAX_LATE_SOURCES) {
            found += 1;
            let allowed = tokio::select! {
                allowed = recipe.allow_file(&ctx.run, url) => allowed?,
                // The repeated build ends at once and reports the cancellation.
                () = ctx.cancel.cancelled() => true,
            };
            if allowed {
                tracing::debug!("repeating a build with a file that has been verified");
                continue;
            }
        } else if error.is_builder_fault() && !std::mem::replace(&mut repeated, true) {
            let message = format!("{}; building once more", error_chain(&error));
            ctx.run.events.warn(Some(&ctx.step.id), message, None).await;
            continue;
        }
        return Ok(Err(error));
    }
}

/// Returns the complete names of `-t`, without duplicates.
fn parse_names(tags: &[String]) -> Result<Vec<ImageRef>, String> {
    let mut names: Vec<ImageRef> = Vec::new();
    for tag in tags {
        let name: ImageRef = tag
            .parse()
            .map_err(|error: ReferenceError| error_chain(&error))?;
        let name = name.or_latest();
        check_name(&name)?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

/// Returns the distinct repositories of names, which are the targets of a push by digest.
fn repositories(names: &[ImageRef]) -> Vec<String> {
    let mut all: Vec<String> = names.iter().map(ImageRef::name).collect();
    all.sort();
    all.dedup();
    all
}

/// Returns the export of a separate BuildKit. It stores no names, because other runs could use
/// them.
fn image_export(ctx: &StepContext, names: &[ImageRef], pushes: bool) -> Export {
    let by_digest = pushes && ctx.run.push_by_digest;
    Export::Image(ImageExport {
        push_by_digest: by_digest,
        insecure: names
            .iter()
            .any(|name| ctx.run.is_insecure(name.registry())),
        push: pushes,
        names: if by_digest {
            repositories(names)
        } else {
            names.iter().map(ToString::to_string).collect()
        },
        attrs: no_store(),
    })
}

/// Returns the attribute that prevents BuildKit from storing an image under the names that it
/// pushes.
pub(crate) fn no_store() -> BTreeMap<String, String> {
    BTreeMap::from([("store".to_owned(), "false".to_owned())])
}

/// Returns the export to the engine's store, so that builds, containers and pushes use one digest.
fn load_export(names: &[ImageRef]) -> Export {
    Export::Load {
        names: names.iter().map(ToString::to_string).collect(),
        archive: None,
    }
}

/// Adds the step's cache to a recipe: the import from its reference in the registry and, if
/// permitted, the export to it.
async fn add_step_cache(ctx: &StepContext, cache: &StepCache, recipe: &mut Recipe) {
    let run = &ctx.run;
    let StepCache { reference, export } = cache;
    if let Some(lacking) = run
        .builder
        .client
        .capabilities()
        .missing(Feature::CacheExport)
    {
        let message = format!("the cache {reference} is not used: {lacking}");
        run.events.warn(Some(&ctx.step.id), message, None).await;
        return;
    }
    let spec = |extra: &[(&str, &str)]| {
        let mut attrs = BTreeMap::from([("ref".to_owned(), reference.to_string())]);
        if run.is_insecure(reference.registry()) {
            attrs.insert("registry.insecure".into(), "true".into());
        }
        attrs.extend(
            extra
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned())),
        );
        CacheSpec {
            kind: "registry".into(),
            attrs,
        }
    };
    recipe::import_shared(ctx, recipe, spec(&[])).await;
    if !export {
        return;
    }
    if run.no_push {
        ctx.output
            .print_line(
                Stream::Stderr,
                "the cache is not exported, as --no-push asks",
            )
            .await;
    } else {
        // A failed export of the cache does not fail the build.
        recipe
            .cache_exports
            .push(spec(&[("mode", "max"), ("ignore-error", "true")]));
    }
}

/// Reports a failed build and returns the end of the attempt.
async fn report_failure(ctx: &StepContext, error: &BuildError, trace: &mut Trace) -> Attempt {
    if matches!(error, BuildError::Canceled) {
        return Attempt::Stopped;
    }
    let reason = error_chain(error);
    ctx.output.search_retry_texts(reason.as_bytes());
    trace.excerpt = error.render_excerpt().map(|text| ctx.output.mask(&text));
    let ran = matches!(error, BuildError::Failed(failure) if failure.exit_code.is_some());
    let help = match error {
        // Its message is separate from the text of the error.
        BuildError::HelperImage { message, .. } => login_help(message),
        _ if ran => None,
        _ => login_help(&reason),
    };
    let help = help.or_else(|| error.help().map(str::to_owned));
    if help.is_some() {
        let reason = ctx.output.mask(&reason);
        ctx.run.events.warn(Some(&ctx.step.id), reason, help).await;
    }
    let exit_code = match error {
        BuildError::Failed(failure) => failure.exit_code.map(i64::from),
        _ => None,
    };
    Attempt::Failed { reason, exit_code }
}

/// Writes `--iidfile` and `--metadata-file` to the workspace.
async fn write_files(
    ctx: &StepContext,
    line: &BuildLine,
    outcome: &BuildOutcome,
    names: &[ImageRef],
) -> Result<(), String> {
    let mut files = Vec::new();
    if let Some(path) = &line.iidfile {
        let digest = outcome.image_digest.clone();
        files.push((path, digest.ok_or("--iidfile: the build created no image")?));
    }
    if let Some(path) = &line.metadata_file {
        let mut metadata = outcome.metadata.clone();
        if let Some(name) = metadata.get_mut("image.name") {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            *name = names.join(",");
        }
        let text = serde_json::to_string_pretty(&metadata);
        files.push((path, text.map_err(|error| error_chain(&error))?));
    }
    for (path, content) in files {
        let path =
            resolve_path(&working_folder(&ctx.step), path).map_err(|error| error_chain(&error))?;
        let (folder, name) = path.rsplit_once('/').unwrap_or(("/", &path));
        let pack = Pack::Content {
            at: name.into(),
            mode: 0o644,
            content: content.into(),
        };
        let written = ctx.run.workspace.put_files(folder, vec![pack]).await;
        written.map_err(|error| error_chain(&error))?;
    }
    Ok(())
}
