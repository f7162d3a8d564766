//! From flags to a connected executor, and one plan through it while it is shown.

use std::{io::Read, path::PathBuf, time::Duration};

use acrtask_buildkit::{Endpoint, TlsFiles};
use acrtask_executor::{Allow, DockerEndpoint, Executor, Options, Reach, RunRequest};
use acrtask_job::Files;
use acrtask_model::{RunId, Secret};
use acrtask_registry::Credentials;
use acrtask_source::ContextSpec;
use acrtask_spec::plan::Plan;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{interrupt::Interrupts, local_domain::local_domain};
use crate::{
    args::{
        HowArgs,
        engine::{Allowed, BuilderArgs, EngineArgs},
        values::{CredentialSpec, PasswordFrom},
    },
    error::CliError,
    exit::Exit,
    render::{self, Form, style::Style, summary},
};

/// Events that wait for the renderer, each with up to 64 KiB of output; more make the run wait.
const EVENTS: usize = 32;

/// How long the program waits for the removal of a run's images after its result is shown.
const REMOVALS_LIMIT: Duration = Duration::from_secs(2);

/// The registries' credentials: those of `--credential`, then the Docker configuration's.
/// `stdin_is_taken` says what else reads standard input.
pub(crate) fn credentials(
    args: &EngineArgs,
    stdin_is_taken: Option<&str>,
) -> Result<Credentials, CliError> {
    let specs = args
        .credential
        .iter()
        .map(|arg| arg.parse())
        .collect::<Result<Vec<_>, _>>()?;
    let from_stdin = specs
        .iter()
        .filter(|spec| spec.password == PasswordFrom::Stdin)
        .count();
    match stdin_is_taken {
        Some(by) if from_stdin > 0 => {
            return Err(CliError::usage(format!(
                "standard input cannot hold both {by} and a password"
            ))
            .help("give the password as HOST=USER:@FILE or HOST=USER:env:NAME"));
        }
        None | Some(_) if from_stdin > 1 => {
            return Err(CliError::usage("standard input cannot hold two passwords")
                .help("give one of them as HOST=USER:@FILE or HOST=USER:env:NAME"));
        }
        None | Some(_) => {}
    }
    let mut credentials = Credentials::new();
    for spec in specs {
        let password = password(&spec)?;
        credentials = credentials.with(&spec.host, spec.user, password);
    }
    Ok(credentials.with_docker_config(None))
}

fn password(spec: &CredentialSpec) -> Result<Secret, CliError> {
    let fail = |place: String| {
        CliError::usage(format!(
            "cannot read the password for {} from {place}",
            spec.host
        ))
    };
    let text = match &spec.password {
        PasswordFrom::File(path) => std::fs::read_to_string(path)
            .map_err(|error| fail(path.display().to_string()).because(&error))?,
        PasswordFrom::Stdin => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(|error| fail("standard input".into()).because(&error))?;
            text
        }
        PasswordFrom::Env(name) => std::env::var(name)
            .map_err(|error| fail(format!("the environment variable {name}")).because(&error))?,
    };
    Ok(Secret::new(text.trim_end_matches(['\r', '\n'])))
}

/// What the executor is told.
pub(crate) fn options(
    engine: &EngineArgs,
    builder: &BuilderArgs,
    how: &HowArgs,
    credentials: Credentials,
) -> Result<Options, CliError> {
    let var = |name: &str| std::env::var(name).ok();
    let mut docker = DockerEndpoint::from_env(var);
    // An empty variable is one that is not set.
    if let Some(host) = engine.docker_host.as_ref().filter(|host| !host.is_empty()) {
        docker.host.clone_from(host);
    }
    Ok(Options {
        builder: endpoint(builder)?,
        credentials,
        allow: allow(engine),
        no_push: how.no_push,
        timeout: how.timeout,
        ssh_agent: std::env::var_os("SSH_AUTH_SOCK")
            .filter(|socket| !socket.is_empty())
            .map(PathBuf::from),
        ..Options::new(docker)
    })
}

/// What `--allow` allows.
pub(crate) fn allow(args: &EngineArgs) -> Allow {
    let allows = |what| args.allow.contains(&what);
    Allow {
        docker_socket: allows(Allowed::DockerSocket),
        privileged: allows(Allowed::Privileged),
        host_network: allows(Allowed::HostNetwork),
        cache_imports: allows(Allowed::CacheImports),
        frontends: allows(Allowed::Frontends),
    }
}

fn endpoint(args: &BuilderArgs) -> Result<Option<Endpoint>, CliError> {
    let Some(url) = args.url() else {
        return Ok(None);
    };
    let endpoint = Endpoint::parse(&url).map_err(|error| CliError::usage(error.to_string()))?;
    Ok(Some(
        match (&args.builder_ca, &args.builder_cert, &args.builder_key) {
            (Some(ca), Some(cert), Some(key)) => endpoint.with_tls(TlsFiles {
                ca: ca.clone(),
                cert: cert.clone(),
                key: key.clone(),
                server_name: args.builder_server_name.clone(),
            }),
            _ => endpoint,
        },
    ))
}

/// What a run reads of this machine.
#[derive(Debug, Clone, Default)]
pub(crate) struct RunFiles {
    /// The folder that `.` means.
    pub(crate) context: Option<PathBuf>,
    /// What builds read as `-`.
    pub(crate) stdin: Option<PathBuf>,
    /// The context, where it was fetched: its task need not be trusted with this machine.
    pub(crate) fetched: Option<String>,
}

/// Returns the name of a context that came from elsewhere. `None`: the files are the user's own.
pub(crate) fn fetched(files: &Files, context: &ContextSpec) -> Option<String> {
    match files {
        Files::FromElsewhere(_) => Some(context.to_string()),
        Files::OfTheOperator(_) | Files::None => None,
    }
}

/// A connected executor with a runtime for it.
pub(crate) struct Session {
    runtime: tokio::runtime::Runtime,
    executor: Executor,
    pub(crate) interrupts: Interrupts,
}

impl Session {
    /// Connects to the engine and the builder, and removes what dead runs left.
    pub(crate) fn open(options: Options) -> Result<Self, CliError> {
        acrtask_registry::install_crypto_provider();
        let options = Options {
            own_machine: true,
            ..options
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|error| CliError::unreachable("cannot start").because(&error))?;
        let (executor, interrupts) = runtime.block_on(async {
            let interrupts = Interrupts::listen()?;
            let connecting = async {
                let executor = Executor::connect(options).await.map_err(|error| {
                    let shown = CliError::unreachable(error.to_string()).help(error.help.clone());
                    shown.because(&*error.source)
                })?;
                for removed in executor.remove_leftovers().await {
                    tracing::info!(removed, "a run that was killed had left this");
                }
                Ok::<_, CliError>(executor)
            };
            tokio::select! {
                executor = connecting => Ok((executor?, interrupts)),
                () = interrupts.token.cancelled() => Err(CliError::interrupted()),
            }
        })?;
        Ok(Self {
            runtime,
            executor,
            interrupts,
        })
    }

    /// Runs on the session's runtime until `future` is done.
    pub(crate) fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// Carries `plan` out and shows it; `cancel` stops it. Says on standard error why it did not succeed.
    pub(crate) async fn run(
        &self,
        id: RunId,
        plan: Plan,
        files: RunFiles,
        form: Form,
        stderr: Style,
        cancel: CancellationToken,
    ) -> Exit {
        let (sender, receiver) = mpsc::channel(EVENTS);
        let seen = self.interrupts.seen.clone();
        let runtime = self.runtime.handle().clone();
        let shown =
            tokio::task::spawn_blocking(move || render::show(&runtime, receiver, &seen, form));
        self.interrupts.run_begins(&id);
        let request = RunRequest {
            context: files.context,
            stdin: files.stdin,
            reach: match files.fetched {
                Some(_) => Reach::Public,
                None => Reach::Everything,
            },
            ..RunRequest::new(id, plan, local_domain(files.fetched.as_deref()))
        };
        let report = self.executor.run(request, sender, cancel.clone()).await;
        // Stopped by nobody but the program itself, which says why.
        let superseded = cancel.is_cancelled() && !*self.interrupts.seen.borrow();
        self.interrupts.run_is_over();
        match shown.await {
            Ok(view) => {
                if let Some(verdict) = summary::verdict(&view).filter(|_| !superseded) {
                    let line = format!("{} {verdict}\n", stderr.bad("error:"));
                    super::remote::write_error(&line);
                }
            }
            Err(error) => tracing::error!(%error, "the run could not be shown to its end"),
        }
        self.executor.finish_removals(REMOVALS_LIMIT).await;
        report.outcome.state.into()
    }
}
