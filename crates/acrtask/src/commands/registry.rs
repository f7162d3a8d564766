//! `acrtask registry`: tags of a repository, and deletion of old images with the user's own login.

use acrtask_model::{ImageRef, error_chain};
use acrtask_registry::{Registry, RegistryError, Settings, credentials::canonical_host};
use acrtask_upkeep::{
    Ago, Always, Context, Filter, Line, Purge,
    inventory::{Reader, RegistryKind},
    plan::Untagged,
    purge,
};
use jiff::Timestamp;
use serde::Serialize;

use super::{
    engine,
    remote::{block_on, print_json, print_message},
};
use crate::{
    args::{
        engine::RegistryLoginArgs,
        registry::{RegistryCommand, RegistryPurgeArgs, RegistryTagsArgs},
        server::ListOutput,
    },
    error::CliError,
    exit::Exit,
};

/// Tags of a repository as JSON.
#[derive(Debug, Serialize)]
struct TagList {
    repository: String,
    tags: Vec<String>,
}

/// Runs a subcommand of `acrtask registry`.
pub(crate) fn registry(command: &RegistryCommand) -> Result<Exit, CliError> {
    match command {
        RegistryCommand::Tags(args) => list_tags(args),
        RegistryCommand::Purge(args) => purge_registry(args),
    }
}

fn open_registry(login: &RegistryLoginArgs) -> Result<Registry, CliError> {
    acrtask_registry::install_crypto_provider();
    let credentials = engine::load_credentials(login, None)?;
    Registry::new(credentials, Settings::default()).map_err(|error| registry_error(&error))
}

fn registry_error(error: &RegistryError) -> CliError {
    let shown = CliError::unreachable(error_chain(error));
    match error.help() {
        Some(help) => shown.help(help),
        None => shown,
    }
}

fn list_tags(args: &RegistryTagsArgs) -> Result<Exit, CliError> {
    let image: ImageRef = args
        .repository
        .parse()
        .map_err(|error: acrtask_model::ReferenceError| CliError::usage(error.to_string()))?;
    if image.tag().is_some() || image.digest().is_some() {
        return Err(CliError::usage(format!(
            "`{}` names one image; name its repository: {}",
            args.repository,
            image.name()
        )));
    }
    let registry = open_registry(&args.login)?;
    let reader = Reader {
        registry: &registry,
        kind: RegistryKind::Plain,
        concurrency: 1,
        now: Timestamp::now(),
    };
    let tags = block_on(async {
        let found = reader.list_tags(&image).await;
        found.map_err(|error| registry_error(&error))
    })?;
    match args.output.output {
        ListOutput::Json => print_json(&TagList {
            repository: image.name(),
            tags,
        }),
        ListOutput::Text => {
            let text: String = tags.iter().map(|tag| format!("{tag}\n")).collect();
            super::print(text.as_bytes())
        }
    }
}

fn purge_registry(args: &RegistryPurgeArgs) -> Result<Exit, CliError> {
    let host = canonical_host(&args.registry);
    let settings = settings(args).map_err(CliError::usage)?;
    if args.registry.contains('/') || purge::repository_reference(&host, "a").is_err() {
        return Err(
            CliError::usage(format!("`{}` is not a registry", args.registry))
                .help("write HOST or HOST:PORT, and the repositories in --filter"),
        );
    }
    let registry = open_registry(&args.login)?;
    let as_json = args.output.output == ListOutput::Json;
    let report = block_on(async {
        let (lines, mut received) = tokio::sync::mpsc::unbounded_channel();
        let working = async move {
            let context = Context {
                registry: &registry,
                host: &host,
                now: Timestamp::now(),
                permission: &Always,
                lines: &lines,
            };
            purge::run(context, &settings, as_json).await
        };
        let printing = async {
            while let Some(line) = received.recv().await {
                match line {
                    Line::Out(_) if as_json => {}
                    Line::Out(text) => {
                        super::print(format!("{text}\n").as_bytes())?;
                    }
                    Line::Err(text) => print_message(&text),
                }
            }
            Ok::<_, CliError>(())
        };
        let (report, printed) = futures::join!(working, printing);
        printed.map(|()| report)
    })?;
    if as_json {
        print_json(&report)?;
    }
    Ok(match report.error {
        None => Exit::Succeeded,
        Some(_) => Exit::Failed,
    })
}

fn settings(args: &RegistryPurgeArgs) -> Result<Purge, String> {
    let filters: Vec<Filter> = args
        .filter
        .iter()
        .map(|text| Filter::parse(text).map_err(|error| format!("--filter {text}: {error}")))
        .collect::<Result<_, _>>()?;
    Ok(Purge {
        notes: filters.iter().filter_map(Filter::note).collect(),
        filters,
        ago: Ago::parse(args.ago.as_deref().unwrap_or("0d"))
            .map_err(|error| format!("--ago: {error}; write for example 30d or 12h"))?,
        keep: usize::try_from(args.keep).unwrap_or(usize::MAX),
        untagged: match (args.untagged, args.untagged_only) {
            (_, true) => Untagged::Only,
            (true, false) => Untagged::Delete,
            (false, false) => Untagged::Keep,
        },
        dry_run: args.dry_run,
        include_locked: args.include_locked,
        concurrency: usize::from(args.concurrency),
        verbose: true,
    })
}
