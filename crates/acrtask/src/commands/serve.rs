//! `acrtask serve`: the control plane, and a runner inside that connects to it like any other.
//!
//! Invariants: a token is printed once, on standard output, and never logged; the server ends after the
//! runner inside, so that what it finishes is still written down.

use std::{
    fs::DirBuilder,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use acrtask_agent::AgentConfig;
use acrtask_model::chain;
use acrtask_server::{
    App, Config, auth,
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
    remote::{block_on, say},
    runner::{executor, host_name, is_forgotten, state_dir},
    signals::until_asked_to_end,
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

/// The runner inside has so long to register.
const REGISTRATION: Duration = Duration::from_secs(600);
/// What is in the runner's folder once it has registered.
const RUNNER_KEY: &str = "runner.json";

/// Serves until it is asked to end.
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
            CliError::usage(format!("cannot make the folder {}", data.display()))
                .because(&error)
                .help("name another one with --data-dir")
        })?;
    let data = data.canonicalize().map_err(|error| {
        CliError::usage(format!("cannot read the folder {}", data.display())).because(&error)
    })?;
    let folders = args
        .tasks
        .iter()
        .map(|folder| TasksFolder::open(folder, args.telemetry.log_format, stderr))
        .collect::<Result<Vec<_>, _>>()?;
    // What is wrong with the engine's flags is told before anything starts.
    let inside = if args.no_runner {
        None
    } else {
        let vaults = Arc::new(vaults::of_runner(&args.vaults)?);
        Some((executor(&args.engine, &args.builder, None)?, vaults))
    };
    let options = options(args, &data);
    block_on(async {
        let _telemetry = telemetry::start("acrtask-server", log, &args.telemetry)?;
        let stop = until_asked_to_end("ending; a second signal ends at once")?;
        let server = start(options).await.map_err(|error| refused(&error))?;
        hello(&server, args).await?;
        let parts = TaskTracker::new();
        for folder in folders {
            parts.spawn(folder.follow(server.app().clone(), stop.clone()));
        }
        if let Some((executor, vaults)) = inside {
            let runner = Inside {
                state: data.join("runner"),
                address: address(&server, args).await?,
                executor,
                vaults,
                slots: args.slots,
                private: args.allow_private_addresses,
                drain: args.drain_timeout,
                server: server.app().clone(),
            };
            parts.spawn(runner.keep(stop.clone()));
        }
        parts.close();
        stop.cancelled().await;
        parts.wait().await;
        server.shutdown().await;
        Ok(Exit::Succeeded)
    })
}

/// Locations of a server's data, with the defaults of the data folder.
pub(super) struct DataPaths {
    /// URL of the database.
    pub(super) database: String,
    /// Folder or URL of the blobs.
    pub(super) blobs: String,
    pub(super) key_file: PathBuf,
}

impl DataPaths {
    /// Returns the paths that `args` mean.
    pub(super) fn new(args: &DataArgs) -> Result<Self, CliError> {
        Ok(Self::in_folder(args, &data_dir(args)?))
    }

    fn in_folder(args: &DataArgs, data: &Path) -> Self {
        let database = || sqlite_in(data);
        let blobs = || data.join("blobs").display().to_string();
        Self {
            database: args.database.clone().unwrap_or_else(database),
            blobs: args.blobs.clone().unwrap_or_else(blobs),
            key_file: args.key_file.clone().unwrap_or_else(|| data.join("key")),
        }
    }
}

/// Returns the URL of the database in a data folder.
pub(super) fn sqlite_in(data: &Path) -> String {
    format!("sqlite:{}", data.join("acrtask.db").display())
}

fn data_dir(args: &DataArgs) -> Result<PathBuf, CliError> {
    match &args.data_dir {
        Some(folder) => Ok(folder.clone()),
        None => state_dir(),
    }
}

/// Returns the folder of blobs. `None` if an object store keeps them.
pub(super) fn local_blobs(blobs: &str) -> Option<PathBuf> {
    let path = blobs.strip_prefix("file://").unwrap_or(blobs);
    (!path.contains("://")).then(|| PathBuf::from(path))
}

/// Makes and prints a new admin token.
fn reset_admin_token(paths: &DataPaths) -> Result<Exit, CliError> {
    check_database_exists(&paths.database).map_err(|error| {
        CliError::usage(error.to_string())
            .help("name the folder of the server with --data-dir, or its database with --database")
    })?;
    block_on(async {
        let failed = |error: StoreError| {
            CliError::unreachable("cannot store a new token in the database").because(&error)
        };
        let store = Store::open(&paths.database).await.map_err(failed)?;
        let now = jiff::Timestamp::now().as_millisecond();
        let token = auth::new_admin_token(&store, "admin (reset)", now)
            .await
            .map_err(failed)?;
        store.close().await.map_err(failed)?;
        super::print(format!("a new admin token, shown this once: {}\n", token.0).as_bytes())
    })
}

fn options(args: &ServeArgs, data: &Path) -> ServeOptions {
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
                folders: folders_of(args, data),
            },
            trust: acrtask_model::TrustPolicy::new(args.trust_domain.clone()),
            adopt_storage: args.adopt_storage,
            ..Config::default()
        },
        clock: Clock::real(),
    }
}

/// Returns the folders that the database and the blobs are in, as far as they are on this machine.
fn folders_of(args: &ServeArgs, data: &Path) -> Vec<PathBuf> {
    let blobs = args.data.blobs.as_deref().and_then(local_blobs);
    std::iter::once(data.to_owned()).chain(blobs).collect()
}

/// Says where it is, and the first token where there was none.
async fn hello(server: &Server, args: &ServeArgs) -> Result<(), CliError> {
    let scheme = if args.tls_cert.is_some() {
        "https"
    } else {
        "http"
    };
    let url = format!("{scheme}://{}", server.addr());
    let mut text = format!("listening at {url}\n");
    let first = auth::bootstrap(server.app()).await.map_err(|error| {
        CliError::unreachable("the first token could not be written down").because(&error)
    })?;
    if let Some(token) = first {
        text.push_str(&format!(
            "the first token, shown this once: {}\nlog in with it: acrtask login {url}\n",
            token.0
        ));
    }
    super::print(text.as_bytes())?;
    Ok(())
}

fn refused(error: &ServeError) -> CliError {
    let message = error.to_string();
    let shown = match error {
        ServeError::Plaintext(_)
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

/// Where the runner inside finds the server: on this machine, whatever address and name others use.
async fn address(server: &Server, args: &ServeArgs) -> Result<String, CliError> {
    if args.tls_cert.is_some() {
        let inside = server
            .listen_inside()
            .await
            .map_err(|error| refused(&error))?;
        return Ok(format!("http://{inside}"));
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

/// The runner inside.
struct Inside {
    state: PathBuf,
    address: String,
    executor: acrtask_executor::Options,
    vaults: Arc<Vaults>,
    slots: u32,
    private: bool,
    drain: Duration,
    server: Arc<App>,
}

impl Inside {
    /// Runs it until `stop`. The server goes on without it where it cannot run.
    async fn keep(self, stop: CancellationToken) {
        for _ in 0..2 {
            let config = match self.config().await {
                Ok(config) => config,
                Err(error) => {
                    tracing::error!(%error, "the runner inside cannot be registered");
                    return;
                }
            };
            let Err(error) = acrtask_agent::run(config, stop.clone()).await else {
                return;
            };
            // Its key is of another database, perhaps.
            let Some(key) = is_forgotten(&error) else {
                tracing::error!(error = %chain(&error), "the runner inside has ended");
                say(&format!(
                    "error: the runner inside has ended: {}",
                    chain(&error)
                ));
                return;
            };
            tracing::warn!(%error, "the runner inside registers again");
            if let Err(error) = std::fs::remove_file(&key) {
                tracing::error!(%error, key = %key.display(), "the runner's key cannot be removed");
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
            let made = new_runner_token(&self.server, RunnerGrant::default(), REGISTRATION).await;
            Some(made.map_err(|error| {
                CliError::unreachable("a token for the runner inside could not be made")
                    .because(&error)
            })?)
        };
        // Servers that share a database each have one.
        let name = format!("{}-{:04x}", host_name(), rand::random::<u16>());
        Ok(AgentConfig {
            slots: self.slots,
            vaults: Arc::clone(&self.vaults),
            allow_private_addresses: self.private,
            drain: self.drain,
            token,
            // The server is whoever runs this; its address is this machine's own.
            allow_plaintext: true,
            ..AgentConfig::new([address], name, &self.state, self.executor.clone())
        })
    }
}
