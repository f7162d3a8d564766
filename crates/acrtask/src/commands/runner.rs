//! `acrtask runner`: the runner itself, and the words about runners.

use std::{path::PathBuf, str::FromStr, sync::Arc};

use acrtask_agent::{AgentConfig, AgentError};
use acrtask_model::Secret;
use tokio_util::sync::CancellationToken;

use super::{
    engine,
    remote::{block_on, secret},
    runners,
    signals::until_asked_to_end,
    vaults,
};
use crate::{
    args::{
        HowArgs, PathOrStdin, RunOutput,
        control::{RunnerArgs, RunnerCommand, StartArgs},
        engine::{BuilderArgs, EngineArgs},
        values::PasswordFrom,
    },
    client::server_url,
    error::CliError,
    exit::Exit,
    render::style::Style,
    telemetry,
};

/// Is a runner, or does what is asked about runners.
pub(crate) fn runner(
    args: &RunnerArgs,
    log: Option<&str>,
    stdout: Style,
) -> Result<Exit, CliError> {
    match &args.command {
        None => start(&args.start, log),
        Some(RunnerCommand::Start(args)) => start(args, log),
        Some(RunnerCommand::List(args)) => runners::list(args, stdout),
        Some(RunnerCommand::Drain(args)) => runners::set_draining(args, true),
        Some(RunnerCommand::Resume(args)) => runners::set_draining(args, false),
        Some(RunnerCommand::Remove(args)) => runners::remove(args),
        Some(RunnerCommand::Token(args)) => runners::token(args),
    }
}

fn start(args: &StartArgs, log: Option<&str>) -> Result<Exit, CliError> {
    let stdin = (args.token_file == Some(PathOrStdin::Stdin)).then_some("the token");
    let servers = args
        .server
        .iter()
        .map(|server| address(server))
        .collect::<Result<Vec<_>, _>>()?;
    let name = args.name.clone().unwrap_or_else(host_name);
    let state = match &args.state_dir {
        Some(folder) => folder.clone(),
        None => state_dir()?.join("runner"),
    };
    let config = AgentConfig {
        ca: args.ca.clone(),
        allow_plaintext: args.allow_plaintext,
        slots: args.slots,
        pool: args.pool.clone(),
        labels: args
            .label
            .iter()
            .map(|label| (label.key.clone(), label.value.clone()))
            .collect(),
        vaults: Arc::new(vaults::of_runner(&args.vaults)?),
        allow_private_addresses: args.allow_private_addresses,
        token: token(args.token_file.as_ref())?,
        drain: args.drain_timeout,
        min_free_disk: args.min_free_disk,
        keep_images: args.keep_images,
        keep_build_cache: args.keep_build_cache,
        build_cache_limit: args.build_cache_limit,
        ..AgentConfig::new(
            servers,
            name,
            state,
            executor(&args.engine, &args.builder, stdin)?,
        )
    };
    block_on(async {
        let _telemetry = telemetry::start("acrtask-runner", log, &args.telemetry)?;
        let stop = until_asked_to_end(
            "draining: nothing new is taken, and what runs goes on; a second signal ends at once",
        )?;
        run(config, stop).await?;
        Ok(Exit::Succeeded)
    })
}

/// Parses the address of a server.
fn address<A>(text: &str) -> Result<A, CliError>
where
    A: FromStr<Err: std::error::Error + 'static>,
{
    let url = server_url(text.trim())?;
    url.as_str().parse().map_err(|error| {
        CliError::usage(format!("`{url}` is not the address of a server")).because(&error)
    })
}

/// Runs a runner until it is told to stop.
pub(super) async fn run(config: AgentConfig, stop: CancellationToken) -> Result<(), CliError> {
    acrtask_agent::run(config, stop).await.map_err(|error| {
        let shown = CliError::usage(error.to_string());
        match std::error::Error::source(&error) {
            Some(cause) => shown.because(cause),
            None => shown,
        }
    })
}

/// Whether another registration would help: the server has forgotten this runner.
pub(super) fn is_forgotten(error: &AgentError) -> Option<PathBuf> {
    match error {
        AgentError::KeyRefused { path, .. } | AgentError::NotRegisteredFor { path, .. } => {
            Some(path.clone())
        }
        _ => None,
    }
}

/// How a runner executes.
pub(super) fn executor(
    engine: &EngineArgs,
    builder: &BuilderArgs,
    stdin_is_taken: Option<&str>,
) -> Result<acrtask_executor::Options, CliError> {
    let credentials = engine::credentials(engine, stdin_is_taken)?;
    let each_run_says = HowArgs {
        platform: Vec::new(),
        timeout: None,
        no_push: false,
        output: RunOutput::Text,
    };
    engine::options(engine, builder, &each_run_says, credentials)
}

/// The token that registers it. A file that is not there is none: the runner may have its key already.
fn token(file: Option<&PathOrStdin>) -> Result<Option<Secret>, CliError> {
    let from = match file {
        Some(PathOrStdin::Stdin) => PasswordFrom::Stdin,
        Some(PathOrStdin::Path(path)) if path.exists() => PasswordFrom::File(path.clone()),
        Some(PathOrStdin::Path(_)) => return Ok(None),
        None if std::env::var("ACRTASK_RUNNER_TOKEN").is_ok_and(|token| !token.is_empty()) => {
            PasswordFrom::Env("ACRTASK_RUNNER_TOKEN".into())
        }
        None => return Ok(None),
    };
    let token = secret(&from, "the runner's token")?;
    Ok(Some(Secret::new(token.expose().trim())))
}

/// This machine's name.
pub(super) fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() {
        "runner".into()
    } else {
        name.to_owned()
    }
}

/// Where things are kept that outlive a process: `/var/lib/acrtask` for root, else a folder of the user's.
pub(super) fn state_dir() -> Result<PathBuf, CliError> {
    use std::os::unix::fs::MetadataExt as _;
    let var = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    if let Some(folder) = var("XDG_STATE_HOME") {
        return Ok(folder.join("acrtask"));
    }
    // What a process of root looks like belongs to root.
    if std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0) {
        return Ok("/var/lib/acrtask".into());
    }
    match var("HOME") {
        Some(home) => Ok(home.join(".local/state/acrtask")),
        None => Err(CliError::usage(
            "there is no place for files: neither XDG_STATE_HOME nor HOME is set",
        )
        .help("name a folder with --state-dir, or with --data-dir for a server")),
    }
}
