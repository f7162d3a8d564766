//! `acrtask runner`: runs a runner, or dispatches to the commands that manage runners.

use std::{path::PathBuf, str::FromStr, sync::Arc};

use acrtask_agent::{AgentConfig, AgentError};
use acrtask_model::Secret;
use tokio_util::sync::CancellationToken;

use super::{
    engine,
    remote::{block_on, read_secret},
    runner_admin,
    signals::stop_on_signal,
    vaults,
};
use crate::{
    args::{
        ExecutionArgs, PathOrStdin, RunOutput,
        engine::{BuilderArgs, EngineArgs},
        runner::{RunnerArgs, RunnerCommand, StartArgs},
        values::PasswordSource,
    },
    client::server_url,
    error::CliError,
    exit::Exit,
    render::style::Style,
    telemetry,
};

/// Runs a runner, or a subcommand that manages runners.
pub(crate) fn runner(
    args: &RunnerArgs,
    log: Option<&str>,
    stdout: Style,
) -> Result<Exit, CliError> {
    match &args.command {
        None => start_runner(&args.start, log),
        Some(RunnerCommand::Start(args)) => start_runner(args, log),
        Some(RunnerCommand::List(args)) => runner_admin::list_runners(args, stdout),
        Some(RunnerCommand::Drain(args)) => runner_admin::set_draining(args, true),
        Some(RunnerCommand::Resume(args)) => runner_admin::set_draining(args, false),
        Some(RunnerCommand::Remove(args)) => runner_admin::remove_runner(args),
        Some(RunnerCommand::Token(args)) => runner_admin::create_token(args),
    }
}

fn start_runner(args: &StartArgs, log: Option<&str>) -> Result<Exit, CliError> {
    let stdin = (args.token_file == Some(PathOrStdin::Stdin)).then_some("the token");
    let servers = args
        .server
        .iter()
        .map(|server| parse_address(server))
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
        vaults: Arc::new(vaults::runner_vaults(&args.vaults)?),
        allow_private_addresses: args.allow_private_addresses,
        token: read_token(args.token_file.as_ref())?,
        drain: args.drain_timeout,
        min_free_disk: args.min_free_disk,
        keep_images: args.keep_images,
        keep_build_cache: args.keep_build_cache,
        build_cache_limit: args.build_cache_limit,
        ..AgentConfig::new(
            servers,
            name,
            state,
            runner_executor_options(&args.engine, &args.builder, stdin)?,
        )
    };
    block_on(async {
        let _telemetry = telemetry::start("acrtask-runner", log, &args.telemetry)?;
        let stop = stop_on_signal(
            "draining: leasing no new runs, running ones continue; a second signal stops at once",
        )?;
        run_agent(config, stop).await?;
        Ok(Exit::Succeeded)
    })
}

/// Parses the address of a server.
fn parse_address<A>(text: &str) -> Result<A, CliError>
where
    A: FromStr<Err: std::error::Error + 'static>,
{
    let url = server_url(text.trim())?;
    url.as_str().parse().map_err(|error| {
        CliError::usage(format!("`{url}` is not the address of a server")).because(&error)
    })
}

/// Runs the agent until `stop` is canceled.
pub(super) async fn run_agent(
    config: AgentConfig,
    stop: CancellationToken,
) -> Result<(), CliError> {
    acrtask_agent::run(config, stop).await.map_err(|error| {
        let shown = CliError::usage(error.to_string());
        match std::error::Error::source(&error) {
            Some(cause) => shown.because(cause),
            None => shown,
        }
    })
}

/// Returns the path of the key if the server rejected it, so that another registration helps.
pub(super) fn rejected_key(error: &AgentError) -> Option<PathBuf> {
    match error {
        AgentError::KeyRefused { path, .. } | AgentError::NotRegisteredFor { path, .. } => {
            Some(path.clone())
        }
        _ => None,
    }
}

/// Returns the executor's options for a runner.
pub(super) fn runner_executor_options(
    engine: &EngineArgs,
    builder: &BuilderArgs,
    stdin_is_taken: Option<&str>,
) -> Result<acrtask_executor::Options, CliError> {
    let credentials = engine::load_credentials(&engine.login, stdin_is_taken)?;
    let execution = ExecutionArgs {
        platform: Vec::new(),
        timeout: None,
        no_push: false,
        output: RunOutput::Text,
    };
    let mut options = engine::executor_options(engine, builder, &execution, credentials)?;
    // The agent's keys are the operator's, not those of the authors of tasks.
    if !options.allow.ssh_agent {
        options.ssh_agent = None;
    }
    Ok(options)
}

/// Reads the registration token. A missing file is not an error: the runner may already have its
/// key.
fn read_token(file: Option<&PathOrStdin>) -> Result<Option<Secret>, CliError> {
    let from = match file {
        Some(PathOrStdin::Stdin) => PasswordSource::Stdin,
        Some(PathOrStdin::Path(path)) if path.exists() => PasswordSource::File(path.clone()),
        Some(PathOrStdin::Path(_)) => return Ok(None),
        None if std::env::var("ACRTASK_RUNNER_TOKEN").is_ok_and(|token| !token.is_empty()) => {
            PasswordSource::Env("ACRTASK_RUNNER_TOKEN".into())
        }
        None => return Ok(None),
    };
    let token = read_secret(&from, "the runner's token")?;
    Ok(Some(Secret::new(token.expose().trim())))
}

/// Returns this machine's name.
pub(super) fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() {
        "runner".into()
    } else {
        name.to_owned()
    }
}

/// Returns the folder for persistent state: `/var/lib/acrtask` for root, otherwise a folder of the
/// user.
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
    // The owner of /proc/self is the user of this process.
    if std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0) {
        return Ok("/var/lib/acrtask".into());
    }
    match var("HOME") {
        Some(home) => Ok(home.join(".local/state/acrtask")),
        None => Err(CliError::usage(
            "cannot determine the state folder: neither XDG_STATE_HOME nor HOME is set",
        )
        .help("set a folder with --state-dir, or with --data-dir for a server")),
    }
}
