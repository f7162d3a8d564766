//! `pull push tag images inspect` on the images of this run and on what it pulls.

use acrtask_model::ImageRef;
use acrtask_template::{Limits, Template};
use serde_json::Value;

use super::{
    Done,
    args::{Args, switch, valued},
    containers::row,
    print,
};
use crate::{
    cmd::io::{Exit, Io},
    context::StepContext,
    error::chain,
    images, steps,
};

pub(super) fn reference(text: &str) -> Result<ImageRef, String> {
    let parsed = text.parse::<ImageRef>();
    Ok(parsed.map_err(|error| chain(&error))?.or_latest())
}

pub(super) async fn pull(ctx: &StepContext, words: &[String], io: &Io) -> Done {
    let args = Args::read(words, &[switch("quiet", 'q'), valued("platform", ' ')])?;
    let [name] = args.exactly("one image")?;
    let image = reference(name)?;
    match ctx.run.held_at(&image) {
        Some(digest) => {
            let held = image.at(digest).to_string();
            images::pull(ctx, &held, args.value("platform")).await?;
            let tagged = ctx.run.engine.tag_image(&held, &image).await;
            tagged.map_err(|error| chain(&error))?;
        }
        None => images::pull(ctx, name, args.value("platform")).await?,
    }
    print(io, &format!("{image}\n")).await
}

pub(super) async fn push(ctx: &StepContext, words: &[String]) -> Done {
    let args = Args::read(words, &[switch("quiet", 'q')])?;
    let [name] = args.exactly("one image")?;
    let image = reference(name)?;
    if ctx.run.no_push {
        let text = format!("not pushed, as --no-push asks: {image}");
        ctx.output
            .say(acrtask_model::events::Stream::Stderr, &text)
            .await;
        return Ok(Exit::OK);
    }
    steps::push::push(ctx, &image).await?;
    Ok(Exit::OK)
}

pub(super) async fn tag(ctx: &StepContext, words: &[String]) -> Done {
    let args = Args::read(words, &[])?;
    let [source, target] = args.exactly("an image and its new name")?;
    let target = reference(target)?;
    let built = ctx.run.images.find(source);
    if built.as_ref().is_none_or(|built| built.in_engine) {
        let tagged = ctx.run.engine.tag_image(source, &target).await;
        tagged.map_err(|error| chain(&error))?;
    }
    if let Some(built) = built {
        ctx.run.images.add(built.renamed(target));
    }
    Ok(Exit::OK)
}

pub(super) async fn list(ctx: &StepContext, words: &[String], io: &Io) -> Done {
    let known = [
        switch("quiet", 'q'),
        switch("digests", ' '),
        switch("all", 'a'),
    ];
    let args = Args::read(words, &known)?;
    let mut text = String::new();
    if !args.has("quiet") {
        text.push_str(&row(["DIGEST", "NAME"]));
    }
    for built in ctx.run.images.all() {
        for name in &built.names {
            if args.has("quiet") {
                text.push_str(&format!("{}\n", built.digest.short()));
            } else {
                text.push_str(&row([built.digest.short(), &name.to_string()]));
            }
        }
    }
    print(io, &text).await
}

pub(super) async fn inspect(ctx: &StepContext, words: &[String], io: &Io) -> Done {
    let args = Args::read(words, &[valued("format", 'f'), valued("type", ' ')])?;
    let mut found = Vec::new();
    for name in args.some("names of images or containers")? {
        found.push(one(ctx, name).await?);
    }
    let Some(format) = args.value("format") else {
        let text = serde_json::to_string_pretty(&found).map_err(|error| chain(&error))?;
        return print(io, &format!("{text}\n")).await;
    };
    // Docker calls the function `json`.
    let format = format
        .replace("{{json ", "{{toJson ")
        .replace("{{ json ", "{{ toJson ");
    let template = Template::parse("--format", &format).map_err(|error| chain(&error))?;
    for value in found {
        let text = template.render(&value, &Limits::default());
        let text = text.map_err(|error| chain(&error))?;
        print(io, &format!("{text}\n")).await?;
    }
    Ok(Exit::OK)
}

/// An image, or a container of this run, as the engine describes it.
async fn one(ctx: &StepContext, name: &str) -> Result<Value, String> {
    if let Some(container) = ctx.run.container(name) {
        let details = ctx.run.engine.inspect_container(&container.id).await;
        let details = details.map_err(|error| chain(&error))?;
        return serde_json::to_value(details).map_err(|error| chain(&error));
    }
    if let Some(built) = ctx.run.images.find(name) {
        ctx.run.images.load_into_engine(ctx, &built).await?;
    }
    let image = ctx
        .run
        .engine
        .image(name)
        .await
        .map_err(|error| chain(&error))?;
    let image = image.ok_or_else(|| format!("there is no image and no container {name}"))?;
    serde_json::to_value(image.details).map_err(|error| chain(&error))
}
