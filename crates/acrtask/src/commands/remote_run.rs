//! `acrtask run` and `acrtask build` on a server's runners: what they would do here is asked of the server, with the
//! same files, and followed.
//!
//! Invariants: logins of this machine stay on it, unless `--credential` gives them; an upload is skipped where the
//! server has the same bytes.

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
    dockerfile::{Dockerfile, stdin_of_build},
    remote::{block_on, secret},
    runs::started,
    spec::{self, Asked, Place},
    upload,
};
use crate::{
    args::{
        BuildArgs, ColorWhen, HowArgs, PathOrStdin, RunArgs,
        engine::{BuilderArgs, EngineArgs},
        server::{QueueArgs, RemoteArgs},
        values::PasswordFrom,
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
    refuse_local_flags(&args.engine, &args.builder)?;
    let host = std::env::var_os("ACRTASK_KEY_VAULT_HOST");
    let is_typed = host.is_none_or(|host| host.is_empty());
    if is_typed && !args.vaults.key_vault_host.is_empty() {
        return Err(local_only("--key-vault-host"));
    }
    let stdin_is_taken = match (&args.task.file, args.task.context.as_str()) {
        (Some(PathOrStdin::Stdin), _) => Some("the task file"),
        (_, "-") => Some("the context"),
        _ => None,
    };
    let credentials = credentials(&args.engine, stdin_is_taken)?;
    let context = Context::named(
        &args.task.context,
        &args.task.git,
        acrtask_source::Options::default(),
    )?;
    let mut asked = spec::of_run(args, &place(&context)?)?;
    facts_of(&context, &mut asked.spec);
    let how = How {
        id: args.task.facts.id.clone(),
        remote: &args.remote,
        how: &args.how,
        credentials,
        added: Vec::new(),
    };
    send(client, &context, asked, how, color, stderr)
}

/// Builds an image on the server.
pub(crate) fn build(
    args: &BuildArgs,
    client: &Client,
    color: ColorWhen,
    stderr: Style,
) -> Result<Exit, CliError> {
    refuse_local_flags(&args.engine, &args.builder)?;
    let stdin_is_taken = stdin_of_build(args)?;
    let credentials = credentials(&args.engine, stdin_is_taken)?;
    let context = Context::named(&args.context, &args.git, acrtask_source::Options::default())?;
    if matches!(context.spec(), ContextSpec::None) {
        return Err(
            CliError::usage("a build needs files, and /dev/null has none")
                .help("name a folder: `.`"),
        );
    }
    let dockerfile = Dockerfile::find(args.file.as_deref(), &context)?;
    let sent = dockerfile.for_server(&context)?;
    let mut asked = spec::of_build(args, &sent.name)?;
    facts_of(&context, &mut asked.spec);
    let how = How {
        id: args.facts.id.clone(),
        remote: &args.remote,
        how: &args.how,
        credentials,
        added: sent.files,
    };
    send(client, &context, asked, how, color, stderr)
}

/// What is asked of the server beside the run's spec.
struct How<'a> {
    id: Option<RunId>,
    remote: &'a RemoteArgs,
    how: &'a HowArgs,
    credentials: Vec<RunCredential>,
    /// Files that are uploaded beside those of the context.
    added: Vec<(PathBuf, Vec<u8>)>,
}

fn send(
    client: &Client,
    context: &Context,
    asked: Asked,
    how: How<'_>,
    color: ColorWhen,
    stderr: Style,
) -> Result<Exit, CliError> {
    let packed = upload::pack(context, Some(&asked.spec.work), how.added)?;
    block_on(async {
        let context = upload::source(client, context, packed.as_ref()).await?;
        let request = CreateRun {
            id: how.id,
            spec: RunSpec {
                context,
                ..asked.spec
            },
            queue: queue(&how.remote.queue),
            secrets: asked
                .secrets
                .iter()
                .map(|(name, value)| (name.clone(), SecretText(value.expose().to_owned())))
                .collect(),
            credentials: how.credentials,
        };
        let run = client.start(&["runs"], &request).await?;
        started(
            client,
            &run,
            how.remote.no_wait,
            how.how.output,
            color,
            stderr,
        )
        .await
    })
}

/// Where and when the run may run.
pub(super) fn queue(args: &QueueArgs) -> QueueOptions {
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

/// Where the task file is looked for.
fn place(context: &Context) -> Result<Place, CliError> {
    Ok(match (context.spec(), context.local_folder()) {
        (ContextSpec::None, _) => Place::Nowhere,
        (_, Some(folder)) => Place::Own(folder.canonicalize().map_err(|error| {
            CliError::usage(format!("cannot read the context {}", folder.display())).because(&error)
        })?),
        (_, None) => Place::Elsewhere,
    })
}

/// What git knows of a folder of this machine, which a runner could not find out from its files alone.
fn facts_of(context: &Context, spec: &mut RunSpec) {
    let Some(folder) = context.local_folder() else {
        return;
    };
    let found = acrtask_source::facts::of_folder(folder);
    let facts = &mut spec.facts;
    for (fact, found) in [
        (&mut facts.commit, found.commit),
        (&mut facts.branch, found.branch),
        (&mut facts.git_tag, found.tag),
        (&mut facts.repository, found.repository),
    ] {
        if fact.is_empty() {
            *fact = found.unwrap_or_default();
        }
    }
}

/// The logins that the run is given: those of `--credential`, and no others.
fn credentials(
    args: &EngineArgs,
    stdin_is_taken: Option<&str>,
) -> Result<Vec<RunCredential>, CliError> {
    let mut stdin = stdin_is_taken.map(str::to_owned);
    let mut found = Vec::new();
    for arg in &args.credential {
        let spec = arg.parse()?;
        if spec.password == PasswordFrom::Stdin {
            if let Some(by) = stdin {
                return Err(CliError::usage(format!(
                    "standard input cannot hold both {by} and a password"
                ))
                .help("give the password as HOST=USER:@FILE or HOST=USER:env:NAME"));
            }
            stdin = Some("another password".into());
        }
        let password = secret(&spec.password, &format!("the password for {}", spec.host))?;
        found.push(RunCredential {
            host: spec.host,
            username: spec.user,
            password: SecretText(password.expose().to_owned()),
        });
    }
    Ok(found)
}

/// Flags that say something of this machine mean nothing to a server's runners.
fn refuse_local_flags(engine: &EngineArgs, builder: &BuilderArgs) -> Result<(), CliError> {
    // What stands in the environment is meant for runs that stay here.
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
            "--allow is for runs on this machine: on a server's runners their operators decide",
        )
        .help("stay on this machine with `--local`, or start the runner with `acrtask runner start --allow ...`"));
    }
    Ok(())
}

fn local_only(flag: &str) -> CliError {
    CliError::usage(format!(
        "{flag} is for runs on this machine, and this one goes to a server"
    ))
    .help("stay on this machine with `--local`")
}

/// The context that a runner fetches by itself, where it does. What stands in the URL to open it does not go with it.
pub(super) fn fetched_by_runner(context: &Context) -> Result<Option<ContextSource>, CliError> {
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
                "the context has a login in it, which everybody would see who sees the run",
            )
            .help("take it out of the URL, and give it with `--credential HOST=USER:env:NAME`"));
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
