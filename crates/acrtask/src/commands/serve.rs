//! `acrtask serve`: the server, and a built-in runner that connects to it like any other runner.
//!
//! Invariants: a token is printed once, on standard output, and never logged. The server stops
//! after the built-in runner, so that it stores the runner's last reports.

use std::{
    fs::DirBuilder,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use acrtask_agent::AgentConfig;
use acrtask_model::error_chain;
use acrtask_server::{
    ARM_TENANT, App, Config, auth,
    clock::Clock,
    floor::DiskFloor,
    identity::IdentityError,
    runners::{RunnerGrant, new_runner_token},
    serve::{ServeError, ServeOptions, Server, TlsFiles, start},
};
use acrtask_store::{Store, StoreError, check_database_exists};
use acrtask_vaults::Vaults;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    remote::{block_on, print_message},
    runner::{host_name, rejected_key, runner_executor_options, state_dir},
    signals::stop_on_signal,
    tasks_folder::TasksFolder,
    vaults,
};
use crate::{
    args::{backup::DataArgs, serve::ServeArgs},
    error::CliError,
    exit::Exit,
    render::style::Style,
    telemetry,
};

/// Time for the built-in runner to register.
const REGISTRATION_TTL: Duration = Duration::from_secs(600);
/// File in the runner's folder that exists after its registration.
const RUNNER_KEY: &str = "runner.json";

/// Runs the server until a signal stops it.
pub(crate) fn serve(args: &ServeArgs, log: Option<&str>, stderr: Style) -> Result<Exit, CliError> {
    if args.reset_admin_token {
        return reset_admin_token(&DataPaths::new(&args.data)?);
    }
    let data = data_dir(&args.data)?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&data)
        .map_err(|error| {
            CliError::usage(format!("cannot create the folder {}", data.display()))
                .because(&error)
                .help("choose another folder with --data-dir")
        })?;
    let data = data.canonicalize().map_err(|error| {
        CliError::usage(format!("cannot read the folder {}", data.display())).because(&error)
    })?;
    let folders = args
        .tasks
        .iter()
        .map(|folder| TasksFolder::open(folder, args.telemetry.log_format, stderr))
        .collect::<Result<Vec<_>, _>>()?;
    // Rejects invalid engine flags before anything starts.
    let built_in = if args.no_runner {
        None
    } else {
        let vaults = Arc::new(vaults::runner_vaults(&args.vaults)?);
        Some((
            runner_executor_options(&args.engine, &args.builder, None)?,
            vaults,
        ))
    };
    let options = serve_options(args, &data);
    block_on(async {
        let _telemetry = telemetry::start("acrtask-server", log, &args.telemetry)?;
        let stop = stop_on_signal("stopping; a second signal stops at once")?;
        let server = start(options).await.map_err(|error| serve_error(&error))?;
        print_greeting(&server, args).await?;
        let tasks = TaskTracker::new();
        for folder in folders {
            tasks.spawn(folder.follow(server.app().clone(), stop.clone()));
        }
        if let Some((executor, vaults)) = built_in {
            let runner = BuiltInRunner {
                state: data.join("runner"),
                address: loopback_address(&server, args).await?,
                executor,
                vaults,
                slots: args.slots,
                allow_private_addresses: args.allow_private_addresses,
                drain: args.drain_timeout,
                server: server.app().clone(),
            };
            tasks.spawn(runner.run(stop.clone()));
        }
        tasks.close();
        stop.cancelled().await;
        tasks.wait().await;
        server.shutdown().await;
        Ok(Exit::Succeeded)
    })
}

/// Locations of a server's data, with defaults in the data folder.
pub(super) struct DataPaths {
    /// URL of the database.
    pub(super) database: String,
    /// Folder or URL of the blobs.
    pub(super) blobs: String,
    pub(super) key_file: PathBuf,
}

impl DataPaths {
    /// Returns the locations of `args`.
    pub(super) fn new(args: &DataArgs) -> Result<Self, CliError> {
        Ok(Self::in_folder(args, &data_dir(args)?))
    }

    fn in_folder(args: &DataArgs, data: &Path) -> Self {
        let database = || sqlite_url(data);
        let blobs = || data.join("blobs").display().to_string();
        Self {
            database: args.database.clone().unwrap_or_else(database),
            blobs: args.blobs.clone().unwrap_or_else(blobs),
            key_file: args.key_file.clone().unwrap_or_else(|| data.join("key")),
        }
    }
}

/// Returns the URL of the SQLite database in a data folder.
pub(super) fn sqlite_url(data: &Path) -> String {
    format!("sqlite:{}", data.join("acrtask.db").display())
}

fn data_dir(args: &DataArgs) -> Result<PathBuf, CliError> {
    match &args.data_dir {
        Some(folder) => Ok(folder.clone()),
        None => state_dir(),
    }
}

/// Returns the folder of the blobs; `None` if they are in an object store.
pub(super) fn local_blob_folder(blobs: &str) -> Option<PathBuf> {
    let path = blobs.strip_prefix("file://").unwrap_or(blobs);
    (!path.contains("://")).then(|| PathBuf::from(path))
}

/// Creates and prints a new admin token.
fn reset_admin_token(paths: &DataPaths) -> Result<Exit, CliError> {
    check_database_exists(&paths.database).map_err(|error| {
        CliError::usage(error.to_string())
            .help("set the server's folder with --data-dir, or its database with --database")
    })?;
    block_on(async {
        let failed = |error: StoreError| {
            CliError::unreachable("cannot store a new token in the database").because(&error)
        };
        let store = Store::open(&paths.database).await.map_err(failed)?;
        let now = jiff::Timestamp::now().as_millisecond();
        let token = auth::create_admin_token(&store, "admin (reset)", now)
            .await
            .map_err(failed)?;
        store.close().await.map_err(failed)?;
        super::print(format!("a new admin token, shown only once: {}\n", token.0).as_bytes())
    })
}

fn serve_options(args: &ServeArgs, data: &Path) -> ServeOptions {
    let paths = DataPaths::in_folder(&args.data, data);
    let tls = match (&args.tls_cert, &args.tls_key) {
        (Some(certificate), Some(key)) => Some(TlsFiles {
            certificate: certificate.clone(),
            key: key.clone(),
        }),
        _ => None,
    };
    ServeOptions {
        listen: args.listen,
        tls,
        allow_plaintext: args.allow_plaintext,
        database: paths.database,
        blobs: paths.blobs,
        key_file: paths.key_file,
        config: Config {
            lease: args.lease,
            heartbeat: args.lease / 3,
            accept: args.lease / 2,
            context_limit: args.context_limit,
            retention: args.retention,
            base_interval: args.base_interval,
            base_rate: args.base_rate,
            base_parallel: args.base_parallel as usize,
            tags_interval: args.tags_interval,
            insecure_registries: args.insecure_registry.clone(),
            public_url: args.public_url.clone(),
            trusted_proxies: args.trusted_proxy.clone(),
            notify_private: args.allow_private_addresses,
            floor: DiskFloor {
                bytes: args.min_free_disk,
                folders: local_folders(args, data),
            },
            trust: acrtask_model::TrustPolicy::new(args.trust_domain.clone()),
            adopt_storage: args.adopt_storage,
            arm: args.arm.clone(),
            ..Config::default()
        },
        clock: Clock::system(),
    }
}

/// Returns the folders of the database and the blobs that are on this machine.
fn local_folders(args: &ServeArgs, data: &Path) -> Vec<PathBuf> {
    let blobs = args.data.blobs.as_deref().and_then(local_blob_folder);
    std::iter::once(data.to_owned()).chain(blobs).collect()
}

/// Prints the server's address, and the first token if none existed before.
async fn print_greeting(server: &Server, args: &ServeArgs) -> Result<(), CliError> {
    let scheme = if args.tls_cert.is_some() {
        "https"
    } else {
        "http"
    };
    let url = format!("{scheme}://{}", server.addr());
    let mut text = format!("listening at {url}\n");
    let first = auth::create_first_token(server.app())
        .await
        .map_err(|error| CliError::unreachable("cannot store the first token").because(&error))?;
    if let Some(token) = first {
        text.push_str(&format!(
            "the first token, shown only once: {}\nlog in with it: acrtask login {url}\n",
            token.0
        ));
    }
    if !args.arm.is_empty() {
        text.push_str(&arm_commands(args, &url));
    }
    super::print(text.as_bytes())?;
    Ok(())
}

/// Returns the commands that make the Azure CLI use the server.
fn arm_commands(args: &ServeArgs, url: &str) -> String {
    let public = args.public_url.as_ref().map(|url| url.as_str());
    let url = public.unwrap_or(url).trim_end_matches('/');
    let names: Vec<&str> = args.arm.iter().map(|it| it.name.as_str()).collect();
    format!(
        "the Azure CLI can use the registries {}, through a host name of the certificate:\n  \
         az cloud register -n acrtask --endpoint-resource-manager {url}\n  \
         az cloud set -n acrtask\n  \
         az login --service-principal -u acrtask -p TOKEN --tenant {ARM_TENANT}\n",
        names.join(", ")
    )
}

fn serve_error(error: &ServeError) -> CliError {
    let message = error.to_string();
    let shown = match error {
        ServeError::Plaintext(_)
        | ServeError::ArmWithoutTls
        | ServeError::ArmRepeated(_)
        | ServeError::Tls { .. }
        | ServeError::Vault(_)
        | ServeError::Identity(IdentityError::Key { .. } | IdentityError::Blobs { .. }) => {
            CliError::usage(message)
        }
        ServeError::Listen { .. }
        | ServeError::Store(_)
        | ServeError::Blobs(_)
        | ServeError::Identity(_) => CliError::unreachable(message),
    };
    match std::error::Error::source(error) {
        Some(cause) => shown.because(cause),
        None => shown,
    }
}

/// Returns the server's address for the built-in runner, always on this machine.
async fn loopback_address(server: &Server, args: &ServeArgs) -> Result<String, CliError> {
    if args.tls_cert.is_some() {
        let address = server
            .listen_on_loopback()
            .await
            .map_err(|error| serve_error(&error))?;
        return Ok(format!("http://{address}"));
    }
    let mut listening = server.addr();
    if listening.ip().is_unspecified() {
        listening.set_ip(match listening {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    Ok(format!("http://{listening}"))
}

/// Runner inside the server process.
struct BuiltInRunner {
    state: PathBuf,
    address: String,
    executor: acrtask_executor::Options,
    vaults: Arc<Vaults>,
    slots: u32,
    allow_private_addresses: bool,
    drain: Duration,
    server: Arc<App>,
}

impl BuiltInRunner {
    /// Runs the runner until `stop` is canceled. If it fails, the server continues without it.
    async fn run(self, stop: CancellationToken) {
        for _ in 0..2 {
            let config = match self.config().await {
                Ok(config) => config,
                Err(error) => {
                    tracing::error!(%error, "cannot register the built-in runner");
                    return;
                }
            };
            let Err(error) = acrtask_agent::run(config, stop.clone()).await else {
                return;
            };
            // The key may belong to another database; in that case, register again.
            let Some(key) = rejected_key(&error) else {
                tracing::error!(error = %error_chain(&error), "the built-in runner failed");
                print_message(&format!(
                    "error: the built-in runner failed: {}",
                    error_chain(&error)
                ));
                return;
            };
            tracing::warn!(%error, "registering the built-in runner again");
            if let Err(error) = std::fs::remove_file(&key) {
                tracing::error!(%error, key = %key.display(), "cannot remove the runner's key");
                return;
            }
        }
    }

    async fn config(&self) -> Result<AgentConfig, CliError> {
        let address = self.address.parse().map_err(|error| {
            CliError::usage(format!("`{}` is not an address", self.address)).because(&error)
        })?;
        let token = if self.state.join(RUNNER_KEY).exists() {
            None
        } else {
            let token =
                new_runner_token(&self.server, RunnerGrant::default(), REGISTRATION_TTL).await;
            Some(token.map_err(|error| {
                CliError::unreachable("cannot create a token for the built-in runner")
                    .because(&error)
            })?)
        };
        // The suffix distinguishes the built-in runners of servers that share a database.
        let name = format!("{}-{:04x}", host_name(), rand::random::<u16>());
        Ok(AgentConfig {
            slots: self.slots,
            vaults: Arc::clone(&self.vaults),
            allow_private_addresses: self.allow_private_addresses,
            drain: self.drain,
            token,
            // Runner and server are the same process, connected over the loopback interface.
            allow_plaintext: true,
            ..AgentConfig::new([address], name, &self.state, self.executor.clone())
        })
    }
}
