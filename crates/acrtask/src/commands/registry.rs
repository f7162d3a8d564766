//! `acrtask registry`: lists, copies and deletions with the user's own login.

mod copy;
mod listing;
mod retention;

pub(crate) use self::retention::why_kept;

use acrtask_model::error_chain;
use acrtask_registry::{Registry, RegistryError, Settings, credentials::canonical_host};
use acrtask_upkeep::{
    Ago, Always, Context, Filter, FilterParser, Line, Lines, NoRecords, Purge, PurgeReport,
    command_line::notes_of,
    purge::{self, Limits, PurgeRule},
    rules::{NewestOf, Untagged},
};
use jiff::Timestamp;

use super::{
    engine,
    remote::{block_on, print_json, print_message},
};
use crate::{
    args::{
        engine::RegistryLoginArgs,
        registry::{RegistryCommand, RegistryPurgeArgs},
        server::ListOutput,
    },
    error::CliError,
    exit::Exit,
    render::style::Style,
};

/// Runs a subcommand of `acrtask registry`.
pub(crate) fn registry(command: &RegistryCommand, style: Style) -> Result<Exit, CliError> {
    match command {
        RegistryCommand::Tags(args) => listing::list_tags(args),
        RegistryCommand::Manifests(args) => listing::list_manifests(args, style),
        RegistryCommand::Referrers(args) => listing::list_referrers(args, style),
        RegistryCommand::Retention(args) => retention::apply_retention(args),
        RegistryCommand::Copy(args) => copy::copy_image(args),
        RegistryCommand::Import(args) => copy::import_image(args),
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

/// Does `work`, and prints its lines as they arise. With JSON, standard output stays free for the
/// document.
async fn with_output<F, T>(output: ListOutput, work: impl FnOnce(Lines) -> F) -> Result<T, CliError>
where
    F: Future<Output = T>,
{
    let (lines, mut received) = tokio::sync::mpsc::unbounded_channel();
    let working = work(lines);
    let printing = async {
        while let Some(line) = received.recv().await {
            match line {
                Line::Out(_) if output == ListOutput::Json => {}
                Line::Out(text) => {
                    super::print(format!("{text}\n").as_bytes())?;
                }
                Line::Err(text) => print_message(&text),
            }
        }
        Ok::<_, CliError>(())
    };
    let (result, printed) = futures::join!(working, printing);
    printed.map(|()| result)
}

fn purge_registry(args: &RegistryPurgeArgs) -> Result<Exit, CliError> {
    let settings = settings(args).map_err(CliError::usage)?;
    let host = check_host(&args.registry)?;
    let registry = open_registry(&args.login)?;
    let as_json = args.output.output == ListOutput::Json;
    let report = block_on(with_output(args.output.output, |lines| async move {
        let context = Context {
            registry: &registry,
            host: &host,
            now: Timestamp::now(),
            permission: &Always,
            records: &NoRecords,
            lines: &lines,
        };
        purge::run(context, &settings, as_json).await
    }))?;
    finish_purge(&report, args.output.output)
}

/// Returns the host of a registry that a user named.
fn check_host(registry: &str) -> Result<String, CliError> {
    let host = canonical_host(registry);
    if registry.contains('/') || purge::repository_reference(&host, "a").is_err() {
        return Err(CliError::usage(format!("`{registry}` is not a registry"))
            .help("write HOST or HOST:PORT, and the repositories in the filter or the rules"));
    }
    Ok(host)
}

/// Prints the report of a purge as JSON if requested. Returns the exit code.
fn finish_purge(report: &PurgeReport, output: ListOutput) -> Result<Exit, CliError> {
    if output == ListOutput::Json {
        print_json(report)?;
    }
    Ok(match report.error {
        None => Exit::Succeeded,
        Some(_) => Exit::Failed,
    })
}

fn settings(args: &RegistryPurgeArgs) -> Result<Purge, String> {
    let mut parser = FilterParser::default();
    let filters: Vec<Filter> = args
        .filter
        .iter()
        .map(|text| {
            parser
                .parse(text)
                .map_err(|error| format!("--filter {text}: {error}"))
        })
        .collect::<Result<_, _>>()?;
    let ago = Ago::parse(args.ago.as_deref().unwrap_or("0d"))
        .map_err(|error| format!("--ago: {error}; write for example 30d or 12h"))?;
    let keep = usize::try_from(args.keep).unwrap_or(usize::MAX);
    Ok(Purge {
        notes: notes_of(&filters),
        rules: vec![PurgeRule {
            filters,
            keep: Vec::new(),
            ago: Some(ago),
            newest: keep,
            newest_of: NewestOf::Deleted,
        }],
        untagged_ago: ago,
        untagged_newest: keep,
        limits: Limits {
            deletions: args.max_deletions,
            share: args.max_share,
        },
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
