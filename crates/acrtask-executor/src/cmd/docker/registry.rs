//! `login`, `logout`, `manifest ...` and `buildx imagetools create`: commands on registries.
//!
//! A login is valid until the end of the run. The operator's Docker configuration is never written.

use std::collections::BTreeMap;

use acrtask_model::{ImageRef, Secret, events::Stream, reference::DOCKER_HUB};
use acrtask_registry::{IndexEntry, Platform};
use tokio::io::AsyncReadExt;

use super::{
    CommandResult,
    args::{Args, switch, valued},
    images::parse_reference,
    print,
};
use crate::{
    cmd::io::{Exit, Io},
    context::StepContext,
    error::error_chain,
    login_help::error_chain_with_help,
    output::lock,
    steps,
};

/// Maximum length of a password on standard input, in bytes.
const MAX_PASSWORD: u64 = 64 * 1024;

pub(super) async fn login(ctx: &StepContext, words: &[String], io: &mut Io) -> CommandResult {
    let supported = [
        valued("username", 'u'),
        valued("password", 'p'),
        switch("password-stdin", ' '),
    ];
    let args = Args::parse(words, &supported)?;
    let server = match args.rest.as_slice() {
        [] => DOCKER_HUB,
        [server] => server,
        _ => return Err("takes one registry".into()),
    };
    let user = args.value("username").ok_or("needs -u USER")?;
    let password = if args.has("password-stdin") {
        let mut text = String::new();
        if let Some(stdin) = io.stdin.take() {
            let read = stdin.take(MAX_PASSWORD).read_to_string(&mut text).await;
            read.map_err(|error| format!("cannot read the password: {error}"))?;
        }
        text.trim_end_matches(['\r', '\n']).to_owned()
    } else {
        args.value("password")
            .ok_or("needs -p PASSWORD or --password-stdin")?
            .to_owned()
    };
    if password.is_empty() {
        return Err("the password is empty".into());
    }
    ctx.run
        .log_in(server, user, Secret::new(password))
        .map_err(|error| error_chain(&error))?;
    print(
        io,
        &format!("credential for {server} stored for this run\n"),
    )
    .await
}

pub(super) async fn logout(words: &[String], io: &Io) -> CommandResult {
    let args = Args::parse(words, &[])?;
    let server = args.rest.first().map_or(DOCKER_HUB, String::as_str);
    print(
        io,
        &format!("credential for {server} is removed when this run ends\n"),
    )
    .await
}

pub(super) async fn manifest(
    ctx: &StepContext,
    word: &str,
    words: &[String],
    io: &Io,
) -> CommandResult {
    match word {
        "create" => create(ctx, words, io).await,
        "annotate" => annotate(ctx, words).await,
        "push" => push(ctx, words, io).await,
        "inspect" => inspect(ctx, words, io).await,
        other => Err(format!("manifest {other} is not supported here")),
    }
}

async fn read_entries(ctx: &StepContext, sources: &[String]) -> Result<Vec<IndexEntry>, String> {
    let registry = ctx.run.registry();
    let mut all = Vec::new();
    for source in sources {
        let source = ctx.run.registry_name(parse_reference(source)?);
        let found = registry.entries(&source).await;
        all.extend(found.map_err(|error| error_chain_with_help(&error))?);
    }
    Ok(all)
}

async fn create(ctx: &StepContext, words: &[String], io: &Io) -> CommandResult {
    let args = Args::parse(words, &[switch("amend", 'a'), switch("insecure", ' ')])?;
    let [target, sources @ ..] = args.rest.as_slice() else {
        return Err("create takes the list's name and its images".into());
    };
    let target = parse_reference(target)?;
    let added = read_entries(ctx, sources).await?;
    {
        let mut manifests = lock(&ctx.run.manifests);
        let list = manifests.entry(target.to_string()).or_default();
        if !args.has("amend") && !list.is_empty() {
            return Err(format!("{target} exists in this run: use --amend"));
        }
        list.extend(added);
    }
    print(io, &format!("Created manifest list {target}\n")).await
}

async fn annotate(ctx: &StepContext, words: &[String]) -> CommandResult {
    let supported = [
        valued("os", ' '),
        valued("arch", ' '),
        valued("variant", ' '),
        valued("os-version", ' '),
    ];
    let args = Args::parse(words, &supported)?;
    let [target, image] = args.exactly("the list's name and one of its images")?;
    let (target, image) = (
        parse_reference(target)?,
        ctx.run.registry_name(parse_reference(image)?),
    );
    let registry = ctx.run.registry();
    let digests = registry
        .entries(&image)
        .await
        .map_err(|error| error_chain_with_help(&error))?;
    let mut manifests = lock(&ctx.run.manifests);
    let list = manifests.get_mut(&target.to_string());
    let list = list.ok_or_else(|| format!("{target} has not been created in this run"))?;
    let mut changed = false;
    for entry in list.iter_mut() {
        if !digests
            .iter()
            .any(|d| d.descriptor.digest == entry.descriptor.digest)
        {
            continue;
        }
        changed = true;
        let mut platform: Platform =
            entry
                .descriptor
                .platform
                .clone()
                .unwrap_or_else(|| Platform {
                    os: "linux".into(),
                    architecture: "amd64".into(),
                    variant: None,
                    os_version: None,
                    os_features: Vec::new(),
                });
        let set = |flag: &str| args.value(flag).map(str::to_owned);
        platform.os = set("os").unwrap_or(platform.os);
        platform.architecture = set("arch").unwrap_or(platform.architecture);
        platform.variant = set("variant").or(platform.variant);
        platform.os_version = set("os-version").or(platform.os_version);
        entry.descriptor.platform = Some(platform);
    }
    if changed {
        Ok(Exit::OK)
    } else {
        Err(format!("{image} is not in {target}"))
    }
}

async fn push(ctx: &StepContext, words: &[String], io: &Io) -> CommandResult {
    let args = Args::parse(words, &[switch("purge", 'p'), switch("insecure", ' ')])?;
    let [target] = args.exactly("the list's name")?;
    let target = parse_reference(target)?;
    let list = lock(&ctx.run.manifests).get(&target.to_string()).cloned();
    let list = list.ok_or_else(|| format!("{target} has not been created in this run"))?;
    put_index(ctx, &target, &list, io).await
}

async fn inspect(ctx: &StepContext, words: &[String], io: &Io) -> CommandResult {
    let args = Args::parse(words, &[switch("verbose", 'v'), switch("insecure", ' ')])?;
    let [name] = args.exactly("one image")?;
    let image = ctx.run.registry_name(parse_reference(name)?);
    let manifest = ctx.run.registry().manifest(&image).await;
    let manifest = manifest.map_err(|error| error_chain_with_help(&error))?;
    print(io, &format!("{}\n", String::from_utf8_lossy(&manifest.raw))).await
}

pub(super) async fn imagetools(ctx: &StepContext, words: &[String], io: &Io) -> CommandResult {
    let args = Args::parse(words, &[valued("tag", 't'), switch("append", ' ')])?;
    let sources = args.at_least_one("images")?;
    let list = read_entries(ctx, sources).await?;
    let targets: Vec<&str> = args.values("tag").collect();
    if targets.is_empty() {
        return Err("imagetools create needs -t NAME".into());
    }
    for target in targets {
        let target = parse_reference(target)?;
        let mut list = list.clone();
        if args.has("append") {
            let have = read_entries(ctx, &[target.to_string()]).await?;
            list.splice(0..0, have);
        }
        put_index(ctx, &target, &list, io).await?;
    }
    Ok(Exit::OK)
}

/// Stores an index in its registry and reports it as pushed.
async fn put_index(
    ctx: &StepContext,
    target: &ImageRef,
    list: &[IndexEntry],
    io: &Io,
) -> CommandResult {
    if ctx.run.no_push {
        let text = format!("not pushed, as --no-push asks: {target}");
        ctx.output.print_line(Stream::Stderr, &text).await;
        return Ok(Exit::OK);
    }
    ctx.may_push().await?;
    let registry = ctx.run.registry();
    let digest = if ctx.run.push_by_digest {
        registry
            .put_index_untagged(target, list, BTreeMap::new())
            .await
    } else {
        registry.put_index(target, list, BTreeMap::new()).await
    };
    let digest = digest.map_err(|error| error_chain_with_help(&error))?;
    let platforms = list.iter().filter(|entry| entry.descriptor.is_image());
    let platforms = platforms.filter_map(|entry| {
        let platform = entry.descriptor.platform.as_ref()?;
        Some((platform.to_string(), entry.descriptor.digest.clone()))
    });
    steps::push::report_pushed(ctx, target, &digest, platforms.collect()).await;
    print(io, &format!("{digest}\n")).await
}
