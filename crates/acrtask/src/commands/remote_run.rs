//! `acrtask run` and `acrtask build` on a server: sends the run with its files to the server and
//! follows it.
//!
//! Invariants: logins of this machine stay on it, except those of `--credential`. An upload is
//! skipped if the server already has the same bytes.

use std::path::PathBuf;

use acrtask_api::{
    run::{CreateRun, RunCredential, SecretText},
    spec::{ContextSource, RunSpec},
    task::QueueOptions,
};
use acrtask_model::RunId;
use acrtask_source::ContextSpec;

use super::{
    context::Context,
    dockerfile::{Dockerfile, stdin_reader},
    remote::{block_on, read_secret},
    runs::follow_or_print_id,
    spec::{self, ContextLocation, RunInput},
    upload,
};
use crate::{
    args::{
        BuildArgs, ColorWhen, ExecutionArgs, PathOrStdin, RunArgs,
        engine::{BuilderArgs, EngineArgs},
        server::{QueueArgs, RemoteArgs},
        values::PasswordSource,
    },
    client::Client,
    error::CliError,
    exit::Exit,
    render::style::Style,
};

/// Runs a task on the server.
pub(crate) fn run(
    args: &RunArgs,
    client: &Client,
    color: ColorWhen,
    stderr: Style,
) -> Result<Exit, CliError> {
    if args.watch {
        return Err(local_only("--watch"));
    }
    reject_local_flags(&args.engine, &args.builder)?;
    let host = std::env::var_os("ACRTASK_KEY_VAULT_HOST");
    let is_flag = host.is_none_or(|host| host.is_empty());
    if is_flag && !args.vaults.key_vault_host.is_empty() {
        return Err(local_only("--key-vault-host"));
    }
    let stdin_is_taken = match (&args.task.file, args.task.context.as_str()) {
        (Some(PathOrStdin::Stdin), _) => Some("the task file"),
        (_, "-") => Some("the context"),
        _ => None,
    };
    let credentials = read_credentials(&args.engine, stdin_is_taken)?;
    let context = Context::parse(
        &args.task.context,
        &args.task.git,
        acrtask_source::Options::default(),
    )?;
    let mut input = spec::from_run_args(args, &locate(&context)?)?;
    add_git_variables(&context, &mut input.spec);
    let options = SubmitOptions {
        id: args.task.variables.id.clone(),
        remote: &args.remote,
        execution: &args.execution,
        credentials,
        extra_files: Vec::new(),
    };
    submit(client, &context, input, options, color, stderr)
}

/// Builds an image on the server.
pub(crate) fn build(
    args: &BuildArgs,
    client: &Client,
    color: ColorWhen,
    stderr: Style,
) -> Result<Exit, CliError> {
    reject_local_flags(&args.engine, &args.builder)?;
    let stdin_is_taken = stdin_reader(args)?;
    let credentials = read_credentials(&args.engine, stdin_is_taken)?;
    let context = Context::parse(&args.context, &args.git, acrtask_source::Options::default())?;
    if matches!(context.spec(), ContextSpec::None) {
        return Err(
            CliError::usage("a build needs a context, and /dev/null has no files")
                .help("write a folder: `.`"),
        );
    }
    let dockerfile = Dockerfile::find(args.file.as_deref(), &context)?;
    let sent = dockerfile.prepare_upload(&context)?;
    let mut input = spec::from_build_args(args, &sent.name)?;
    add_git_variables(&context, &mut input.spec);
    let options = SubmitOptions {
        id: args.variables.id.clone(),
        remote: &args.remote,
        execution: &args.execution,
        credentials,
        extra_files: sent.files,
    };
    submit(client, &context, input, options, color, stderr)
}

/// Parts of a submitted run beside its specification.
struct SubmitOptions<'a> {
    id: Option<RunId>,
    remote: &'a RemoteArgs,
    execution: &'a ExecutionArgs,
    credentials: Vec<RunCredential>,
    /// Files to upload in addition to those of the context.
    extra_files: Vec<(PathBuf, Vec<u8>)>,
}

fn submit(
    client: &Client,
    context: &Context,
    input: RunInput,
    options: SubmitOptions<'_>,
    color: ColorWhen,
    stderr: Style,
) -> Result<Exit, CliError> {
    let packed = upload::pack_context(context, Some(&input.spec.source), options.extra_files)?;
    block_on(async {
        let context = upload::upload_context(client, context, packed.as_ref()).await?;
        let request = CreateRun {
            id: options.id,
            spec: RunSpec {
                context,
                ..input.spec
            },
            queue: queue_options(&options.remote.queue),
            secrets: input
                .secrets
                .iter()
                .map(|(name, value)| (name.clone(), SecretText(value.expose().to_owned())))
                .collect(),
            credentials: options.credentials,
        };
        let run = client.start_run(&["runs"], &request).await?;
        follow_or_print_id(
            client,
            &run,
            options.remote.no_wait,
            options.execution.output,
            color,
            stderr,
        )
        .await
    })
}

/// Converts the flags for pool, labels and priority.
pub(super) fn queue_options(args: &QueueArgs) -> QueueOptions {
    QueueOptions {
        priority: args.priority.unwrap_or_default(),
        pool: args.pool.clone(),
        labels: args
            .runner_label
            .iter()
            .map(|label| (label.key.clone(), label.value.clone()))
            .collect(),
        concurrency: None,
    }
}

/// Returns the location that is searched for the task file.
fn locate(context: &Context) -> Result<ContextLocation, CliError> {
    Ok(match (context.spec(), context.local_folder()) {
        (ContextSpec::None, _) => ContextLocation::None,
        (_, Some(folder)) => ContextLocation::Own(folder.canonicalize().map_err(|error| {
            CliError::usage(format!("cannot read the context {}", folder.display())).because(&error)
        })?),
        (_, None) => ContextLocation::Remote,
    })
}

/// Fills in git variables from a folder of this machine; a runner gets the files without `.git`.
fn add_git_variables(context: &Context, spec: &mut RunSpec) {
    let Some(folder) = context.local_folder() else {
        return;
    };
    let found = acrtask_source::git_variables::read_folder(folder);
    let variables = &mut spec.variables;
    for (variable, found) in [
        (&mut variables.commit, found.commit),
        (&mut variables.branch, found.branch),
        (&mut variables.git_tag, found.tag),
        (&mut variables.repository, found.repository),
    ] {
        if variable.is_empty() {
            *variable = found.unwrap_or_default();
        }
    }
}

/// Reads the logins for the run: those of `--credential`, and no others.
fn read_credentials(
    args: &EngineArgs,
    stdin_is_taken: Option<&str>,
) -> Result<Vec<RunCredential>, CliError> {
    let mut stdin = stdin_is_taken.map(str::to_owned);
    let mut found = Vec::new();
    for arg in &args.login.credential {
        let spec = arg.parse()?;
        if spec.password == PasswordSource::Stdin {
            if let Some(by) = stdin {
                return Err(CliError::usage(format!(
                    "standard input cannot be both {by} and a password"
                ))
                .help("write the password as HOST=USER:@FILE or HOST=USER:env:NAME"));
            }
            stdin = Some("another password".into());
        }
        let password = read_secret(&spec.password, &format!("the password for {}", spec.host))?;
        found.push(RunCredential {
            host: spec.host,
            username: spec.user,
            password: SecretText(password.expose().to_owned()),
        });
    }
    Ok(found)
}

/// Rejects flags that configure this machine, because they have no effect on a server's runners.
fn reject_local_flags(engine: &EngineArgs, builder: &BuilderArgs) -> Result<(), CliError> {
    // Environment variables are ignored, because they are meant for local runs.
    let typed_host = engine
        .docker_host
        .as_deref()
        .filter(|host| !host.is_empty());
    if typed_host.is_some_and(|host| std::env::var("DOCKER_HOST").as_deref() != Ok(host)) {
        return Err(local_only("--docker-host"));
    }
    if builder.builder.is_some() {
        return Err(local_only("--builder"));
    }
    if !engine.allow.is_empty() {
        return Err(CliError::usage(
            "--allow is for runs on this machine; the operators of a server's runners decide for those",
        )
        .help("run on this machine with `--local`, or start the runner with `acrtask runner start --allow ...`"));
    }
    Ok(())
}

fn local_only(flag: &str) -> CliError {
    CliError::usage(format!(
        "{flag} is for runs on this machine, but this run goes to a server"
    ))
    .help("run on this machine with `--local`")
}

/// Returns the context if a runner can fetch it; `None` if this machine must upload it. A login in
/// the URL is an error.
pub(super) fn remote_context(context: &Context) -> Result<Option<ContextSource>, CliError> {
    let spec = context.spec();
    let url = match spec {
        ContextSpec::None => return Ok(Some(ContextSource::None)),
        ContextSpec::Git(git) if git.credential.is_none() => spec.to_string(),
        ContextSpec::HttpTarball(url) if url.password().is_none() && url.username().is_empty() => {
            url.to_string()
        }
        ContextSpec::Oci(_) => spec.to_string(),
        ContextSpec::Git(_) | ContextSpec::HttpTarball(_) => {
            return Err(CliError::usage(
                "the context contains a login, and everyone who can read the run can read it",
            )
            .help("remove it from the URL, and set it with `--credential HOST=USER:env:NAME`"));
        }
        ContextSpec::Folder(_) | ContextSpec::TarballFile(_) | ContextSpec::Stdin => {
            return Ok(None);
        }
    };
    let git = context.git();
    Ok(Some(ContextSource::Url {
        url,
        commit: None,
        submodules: git.submodules,
        lfs: git.lfs,
    }))
}
