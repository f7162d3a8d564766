//! `pull push tag images inspect` on the images that this run built or pulled.

use std::sync::Arc;

use acrtask_model::ImageRef;
use acrtask_template::{Limits, Template};
use serde_json::Value;

use super::{
    CommandResult,
    args::{Args, switch, valued},
    containers::format_row,
    print,
};
use crate::{
    cmd::io::{Exit, Io},
    context::StepContext,
    error::error_chain,
    image_names::check_name,
    images::{self, Found, Origin, OwnImage},
    owner::TASK_LABEL,
    steps,
};

/// Parses the complete name of an image. Refuses names that only the engine may use.
pub(in crate::cmd) fn parse_reference(text: &str) -> Result<ImageRef, String> {
    let parsed = text.parse::<ImageRef>();
    let name = parsed.map_err(|error| error_chain(&error))?.or_latest();
    check_name(&name)?;
    Ok(name)
}

/// Returns an image that this run built, pulled or ran.
fn find_own_image(ctx: &StepContext, name: &str) -> Result<Arc<OwnImage>, String> {
    let name = parse_reference(name)?;
    ctx.run.images.find_image(&name).ok_or_else(|| {
        format!("this run neither built nor pulled {name}: build it, or write `docker pull {name}` before")
    })
}

pub(super) async fn pull(ctx: &StepContext, words: &[String], io: &Io) -> CommandResult {
    let args = Args::parse(words, &[switch("quiet", 'q'), valued("platform", ' ')])?;
    let [name] = args.exactly("one image")?;
    let image = parse_reference(name)?;
    let found = images::resolve_with_retries(ctx, &image, true).await?;
    if let Found::Registry(pinned) = &found {
        images::pull_image(ctx, pinned, args.value("platform")).await?;
    }
    images::register_found(ctx, image.clone(), &found);
    print(io, &format!("{image}\n")).await
}

pub(super) async fn push(ctx: &StepContext, words: &[String]) -> CommandResult {
    let args = Args::parse(words, &[switch("quiet", 'q')])?;
    let [name] = args.exactly("one image")?;
    let image = parse_reference(name)?;
    if ctx.run.no_push {
        let text = format!("not pushed, as --no-push asks: {image}");
        ctx.output
            .print_line(acrtask_model::events::Stream::Stderr, &text)
            .await;
        return Ok(Exit::OK);
    }
    steps::push::push(ctx, &image).await?;
    Ok(Exit::OK)
}

pub(super) async fn tag(ctx: &StepContext, words: &[String]) -> CommandResult {
    let args = Args::parse(words, &[])?;
    let [source, target] = args.exactly("an image and its new name")?;
    let target = parse_reference(target)?;
    let image = find_own_image(ctx, source)?;
    // Only this run knows the name. The engine does not receive it.
    ctx.run.images.add(image.renamed(target));
    Ok(Exit::OK)
}

pub(super) async fn list(ctx: &StepContext, words: &[String], io: &Io) -> CommandResult {
    let supported = [
        switch("quiet", 'q'),
        switch("digests", ' '),
        switch("all", 'a'),
    ];
    let args = Args::parse(words, &supported)?;
    let mut text = String::new();
    if !args.has("quiet") {
        text.push_str(&format_row(["DIGEST", "NAME"]));
    }
    for image in ctx.run.images.all() {
        for name in &image.names {
            if args.has("quiet") {
                text.push_str(&format!("{}\n", image.digest.short()));
            } else {
                text.push_str(&format_row([image.digest.short(), &name.to_string()]));
            }
        }
    }
    print(io, &text).await
}

pub(super) async fn inspect(ctx: &StepContext, words: &[String], io: &Io) -> CommandResult {
    let args = Args::parse(words, &[valued("format", 'f'), valued("type", ' ')])?;
    let mut found = Vec::new();
    for name in args.at_least_one("names of images or containers")? {
        found.push(inspect_one(ctx, name).await?);
    }
    let format = args.value("format").unwrap_or_default();
    let json = match format {
        "" => Some(serde_json::to_string_pretty(&found)),
        "json" => Some(serde_json::to_string(&found)),
        _ => None,
    };
    if let Some(json) = json {
        let text = json.map_err(|error| error_chain(&error))?;
        return print(io, &format!("{text}\n")).await;
    }
    // Docker's name for this function is `json`.
    let format = format
        .replace("{{json ", "{{toJson ")
        .replace("{{ json ", "{{ toJson ");
    let template = Template::parse("--format", &format).map_err(|error| error_chain(&error))?;
    for value in found {
        let text = template.render(&value, &Limits::default());
        let text = text.map_err(|error| error_chain(&error))?;
        print(io, &format!("{text}\n")).await?;
    }
    Ok(Exit::OK)
}

/// Returns the engine's description of an image, or of a container of this run.
async fn inspect_one(ctx: &StepContext, name: &str) -> Result<Value, String> {
    if let Some(container) = ctx.run.find_container(name) {
        let details = ctx.run.engine.inspect_container(&container.id).await;
        let mut details = details.map_err(|error| error_chain(&error))?;
        let labels = details.config.as_mut().and_then(|c| c.labels.as_mut());
        if let Some(labels) = labels {
            *labels = std::mem::take(labels)
                .into_iter()
                .map(|(key, value)| match key.strip_prefix(TASK_LABEL) {
                    Some(key) => (key.to_owned(), value),
                    None => (key, value),
                })
                .collect();
        }
        return serde_json::to_value(details).map_err(|error| error_chain(&error));
    }
    let image = find_own_image(ctx, name)?;
    ctx.run.images.load_into_engine(ctx, &image).await?;
    let stored = ctx
        .run
        .engine
        .find_image(&image.in_engine(&ctx.run.engine))
        .await;
    let stored = stored.map_err(|error| error_chain(&error))?;
    let stored = stored.ok_or_else(|| format!("{name} is gone from the engine"))?;
    let mut details = stored.details;
    // The engine may also have names that other runs set for the same image.
    let named = ctx.run.images.by_name();
    let names = named
        .iter()
        .filter(|(_, own)| own.digest == image.digest)
        .map(|(name, _)| name);
    let (digests, tags): (Vec<_>, Vec<_>) = names.partition(|name| name.digest().is_some());
    let texts = |mut names: Vec<&ImageRef>| {
        names.sort();
        names.iter().map(ToString::to_string).collect()
    };
    details.repo_tags = Some(texts(tags));
    details.repo_digests = Some(match &image.origin {
        Origin::Pulled(pinned) => vec![pinned.to_string()],
        Origin::Engine(_) | Origin::Builder { .. } => texts(digests),
    });
    serde_json::to_value(details).map_err(|error| error_chain(&error))
}
