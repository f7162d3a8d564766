//! Builds the executor from flags, and runs one plan with its live output.

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
        ExecutionArgs,
        engine::{Allowed, BuilderArgs, EngineArgs, RegistryLoginArgs},
        values::{CredentialSpec, PasswordSource},
    },
    error::CliError,
    exit::Exit,
    render::{self, Form, style::Style, summary},
};

/// Events buffered for the renderer, each with up to 64 KiB of output; a full buffer blocks the
/// run.
const EVENT_BUFFER: usize = 32;

/// Maximum wait for the removal of a run's images after its result is shown.
const REMOVALS_LIMIT: Duration = Duration::from_secs(2);

/// Loads the logins for registries: those of `--credential`, then those of the Docker
/// configuration. `stdin_is_taken` names what else reads standard input.
pub(crate) fn load_credentials(
    args: &RegistryLoginArgs,
    stdin_is_taken: Option<&str>,
) -> Result<Credentials, CliError> {
    let specs = args
        .credential
        .iter()
        .map(|arg| arg.parse())
        .collect::<Result<Vec<_>, _>>()?;
    let from_stdin = specs
        .iter()
        .filter(|spec| spec.password == PasswordSource::Stdin)
        .count();
    match stdin_is_taken {
        Some(by) if from_stdin > 0 => {
            return Err(CliError::usage(format!(
                "standard input cannot be both {by} and a password"
            ))
            .help("write the password as HOST=USER:@FILE or HOST=USER:env:NAME"));
        }
        None | Some(_) if from_stdin > 1 => {
            return Err(CliError::usage("standard input cannot be two passwords")
                .help("write one of them as HOST=USER:@FILE or HOST=USER:env:NAME"));
        }
        None | Some(_) => {}
    }
    let mut credentials = Credentials::new();
    for spec in specs {
        let password = read_password(&spec)?;
        credentials = credentials.with(&spec.host, spec.user, password);
    }
    Ok(credentials.with_docker_config(None))
}

fn read_password(spec: &CredentialSpec) -> Result<Secret, CliError> {
    let fail = |source: String| {
        CliError::usage(format!(
            "cannot read the password for {} from {source}",
            spec.host
        ))
    };
    let text = match &spec.password {
        PasswordSource::File(path) => std::fs::read_to_string(path)
            .map_err(|error| fail(path.display().to_string()).because(&error))?,
        PasswordSource::Stdin => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(|error| fail("standard input".into()).because(&error))?;
            text
        }
        PasswordSource::Env(name) => std::env::var(name)
            .map_err(|error| fail(format!("the environment variable {name}")).because(&error))?,
    };
    Ok(Secret::new(text.trim_end_matches(['\r', '\n'])))
}

/// Converts the flags into the executor's options.
pub(crate) fn executor_options(
    engine: &EngineArgs,
    builder: &BuilderArgs,
    execution: &ExecutionArgs,
    credentials: Credentials,
) -> Result<Options, CliError> {
    let var = |name: &str| std::env::var(name).ok();
    let mut docker = DockerEndpoint::from_env(var);
    // An empty variable counts as unset.
    if let Some(host) = engine.docker_host.as_ref().filter(|host| !host.is_empty()) {
        docker.host.clone_from(host);
    }
    Ok(Options {
        builder: builder_endpoint(builder)?,
        credentials,
        allow: capabilities(engine),
        no_push: execution.no_push,
        timeout: execution.timeout,
        ssh_agent: std::env::var_os("SSH_AUTH_SOCK")
            .filter(|socket| !socket.is_empty())
            .map(PathBuf::from),
        ..Options::new(docker)
    })
}

/// Returns the capabilities of `--allow`.
pub(crate) fn capabilities(args: &EngineArgs) -> Allow {
    let allows = |what| args.allow.contains(&what);
    Allow {
        docker_socket: allows(Allowed::DockerSocket),
        privileged: allows(Allowed::Privileged),
        host_network: allows(Allowed::HostNetwork),
        cache_imports: allows(Allowed::CacheImports),
        ssh_agent: allows(Allowed::SshAgent),
        frontends: allows(Allowed::Frontends),
    }
}

fn builder_endpoint(args: &BuilderArgs) -> Result<Option<Endpoint>, CliError> {
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

/// Files of this machine that a run reads.
#[derive(Debug, Clone, Default)]
pub(crate) struct RunFiles {
    /// Folder that `.` refers to.
    pub(crate) context: Option<PathBuf>,
    /// File that builds read as `-`.
    pub(crate) stdin: Option<PathBuf>,
    /// Name of a fetched context, whose task is not trusted with this machine; `None` for the
    /// user's files.
    pub(crate) fetched: Option<String>,
}

/// Returns the name of a fetched context; `None` if the files are the user's own.
pub(crate) fn fetched_context(files: &Files, context: &ContextSpec) -> Option<String> {
    match files {
        Files::Fetched(_) => Some(context.to_string()),
        Files::OperatorFolder(_) | Files::None => None,
    }
}

/// Connected executor with its runtime.
pub(crate) struct Session {
    runtime: tokio::runtime::Runtime,
    executor: Executor,
    pub(crate) interrupts: Interrupts,
}

impl Session {
    /// Connects to the engine and the builder, and removes leftovers of killed runs.
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
            .map_err(|error| CliError::unreachable("cannot start the runtime").because(&error))?;
        let (executor, interrupts) = runtime.block_on(async {
            let interrupts = Interrupts::listen()?;
            let connecting = async {
                let executor = Executor::connect(options).await.map_err(|error| {
                    let shown = CliError::unreachable(error.to_string()).help(error.help.clone());
                    shown.because(&*error.source)
                })?;
                for removed in executor.remove_orphans().await {
                    tracing::info!(removed, "removed a leftover of a killed run");
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

    /// Runs `future` to completion on the session's runtime.
    pub(crate) fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// Executes and shows `plan`; `cancel` stops it. Prints on standard error why the run did not
    /// succeed.
    pub(crate) async fn run(
        &self,
        id: RunId,
        plan: Plan,
        files: RunFiles,
        form: Form,
        stderr: Style,
        cancel: CancellationToken,
    ) -> Exit {
        let (sender, receiver) = mpsc::channel(EVENT_BUFFER);
        let seen = self.interrupts.seen.clone();
        let runtime = self.runtime.handle().clone();
        let shown = tokio::task::spawn_blocking(move || {
            render::render_events(&runtime, receiver, &seen, form)
        });
        self.interrupts.run_started(&id);
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
        // Without a signal, `--watch` canceled the run and prints the reason itself.
        let superseded = cancel.is_cancelled() && !*self.interrupts.seen.borrow();
        self.interrupts.run_finished();
        match shown.await {
            Ok(view) => {
                if let Some(verdict) = summary::failure_message(&view).filter(|_| !superseded) {
                    let line = format!("{} {verdict}\n", stderr.bad("error:"));
                    super::remote::write_error(&line);
                }
            }
            Err(error) => tracing::error!(%error, "could not show the whole run"),
        }
        self.executor.finish_removals(REMOVALS_LIMIT).await;
        report.outcome.state.into()
    }
}
