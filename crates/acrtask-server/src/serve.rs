//! Start and shutdown of a server.
//!
//! [`start`] opens the database, the blob store and the key file, listens, and starts the
//! background tasks.
//!
//! Invariants:
//! * One listener serves HTTP/1.1, HTTP/2 and gRPC.
//! * Without TLS the server listens only on loopback, unless the operator allows plain HTTP.
//! * A shutdown completes running requests until a deadline. Only reports stored by then count.

pub(crate) mod admission;
mod client_address;
mod connection;
mod gate;
mod health;
mod listener;
pub(crate) mod request_guard;
mod supervise;

pub use client_address::Network;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use acrtask_store::{Store, StoreError};
use tokio::{sync::Mutex, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::supervise::Supervisor;
use crate::{
    App, Config, api, arm, bases,
    blobs::{BlobError, Blobs},
    cascades,
    clock::Clock,
    hints::{self, Outbox},
    identity::{self, IdentityError},
    notifications, page,
    reaper::{self, Grace},
    recorder::{Recorder, Writer, create_recorder},
    retention,
    runners::{self, watch},
    scheduler, timers,
    vault::{Vault, VaultError},
    webhooks,
};

/// Longest time that running requests get to complete during a shutdown.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time to store the last reports during a shutdown.
const LAST_WRITES_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time to close the database at the end of a shutdown.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest interval between reconciliations of connected runners with the database: last contact
/// and drain requests.
const RUNNER_RECONCILE_INTERVAL: Duration = Duration::from_secs(5);

/// Certificate and key, as PEM files.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// Certificate chain, without the root.
    pub certificate: PathBuf,
    /// Private key of the certificate.
    pub key: PathBuf,
}

/// Options of a server.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Address to listen on. Port 0 selects a free port.
    pub listen: SocketAddr,
    /// Certificate and key. `None`: plain HTTP.
    pub tls: Option<TlsFiles>,
    /// Allows plain HTTP on an address that other machines can reach.
    pub allow_plaintext: bool,
    /// Database: `sqlite:PATH` or `postgres://...`.
    pub database: String,
    /// Blob store: a folder, `s3://BUCKET/PREFIX` or `az://CONTAINER/PREFIX`.
    pub blobs: String,
    /// File of the keys that encrypt secrets. Created if it does not exist.
    pub key_file: PathBuf,
    /// Settings. An empty server id is replaced by a random one.
    pub config: Config,
    /// Clock of the server.
    pub clock: Clock,
}

/// Reasons why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Plain HTTP would send secrets over the network.
    #[error(
        "{0} can be reached by others and would get secrets unencrypted; give a certificate and a key, \
         listen at 127.0.0.1, or allow plain HTTP where a proxy in front speaks TLS"
    )]
    Plaintext(SocketAddr),
    /// The ARM API would send tokens over the network. Azure's clients refuse plain HTTP too.
    #[error(
        "the ARM API (--arm) needs TLS: give a certificate and a key, or the --public-url https://HOST of a proxy \
         in front that speaks TLS"
    )]
    ArmWithoutTls,
    /// Two registries of the ARM API have the same name or the same host.
    #[error("--arm names `{0}` twice: give each registry one name")]
    ArmRepeated(String),
    /// The server cannot listen on the address.
    #[error("cannot listen on {address}")]
    Listen {
        /// Address to listen on.
        address: SocketAddr,
        /// Cause of the failure.
        source: std::io::Error,
    },
    /// Certificate or key cannot be used.
    #[error("cannot use {file} for TLS: {reason}")]
    Tls {
        /// Path of the certificate or key.
        file: PathBuf,
        /// Cause of the failure.
        reason: String,
    },
    /// The database cannot be used.
    #[error("cannot use the database")]
    Store(#[from] StoreError),
    /// The blob store cannot be used.
    #[error(transparent)]
    Blobs(#[from] BlobError),
    /// The key file cannot be used.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The database belongs to another key file or to other blobs.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// A running server. Dropping it stops it at once, like a crash.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    app: Arc<App>,
    /// Listeners, connections and sessions of runners.
    service: listener::Service,
    background: Supervisor,
    writer: Supervisor,
}

/// Starts a server.
///
/// # Errors
/// Returns an error that names the option or resource that cannot be used.
#[allow(
    clippy::disallowed_methods,
    reason = "identifiers and secrets are random"
)]
pub async fn start(mut options: ServeOptions) -> Result<Server, ServeError> {
    if options.tls.is_none() && !options.listen.ip().is_loopback() && !options.allow_plaintext {
        return Err(ServeError::Plaintext(options.listen));
    }
    check_arm(&options)?;
    acrtask_registry::install_crypto_provider();
    let tls = options.tls.as_ref().map(listener::load_tls).transpose()?;
    let vault = Vault::load_or_create(&options.key_file)?;
    let blobs = Blobs::open(&options.blobs)?;
    let store = Store::open(&options.database).await?;
    let adopt = options.config.adopt_storage;
    let identity = identity::check(&store, &blobs, &vault, adopt).await?;
    let failed = |source| ServeError::Listen {
        address: options.listen,
        source,
    };
    let socket = listener::listen(options.listen).map_err(failed)?;
    let address = socket.local_addr().map_err(failed)?;
    if options.config.server_id.is_empty() {
        options.config.server_id = format!("s{:012x}", rand::random::<u64>() >> 16);
    }
    let outbox = Outbox::new(store.is_postgres());
    let (recorder, writer) = create_recorder(outbox.clone());
    let app = Arc::new(App::new(options.config, store, blobs, vault, options.clock));
    let _ = app.identity.set(identity);
    let connections = TaskTracker::new();
    let background = Supervisor::new(app.clone());
    let writers = Supervisor::new(app.clone());
    start_writer(&writers, &app, writer);
    start_background(&background, &app, &recorder, &outbox);
    let router = api::router(app.clone())
        .merge(page::router(
            app.clone(),
            page::Listener {
                address,
                tls: options.tls.is_some(),
            },
        ))
        .merge(health::router(app.clone()))
        .merge(arm::router(app.clone()))
        .merge(webhooks::router(app.clone()))
        .merge(runners::router(app.clone(), recorder, connections.clone()));
    let service = listener::Service {
        app: app.clone(),
        router,
        gate: gate::Gate::new(gate::raise_file_limit()),
        connections: connections.clone(),
        cut: CancellationToken::new(),
    };
    connections.spawn(listener::accept_connections(socket, tls, service.clone()));
    tracing::info!(%address, server = app.config.server_id, "listening");
    Ok(Server {
        address,
        app,
        service,
        background,
        writer: writers,
    })
}

/// Checks the options of the ARM API.
fn check_arm(options: &ServeOptions) -> Result<(), ServeError> {
    let Config {
        arm, public_url, ..
    } = &options.config;
    let is_public_tls = public_url
        .as_ref()
        .is_some_and(|url| url.scheme() == "https");
    if !arm.is_empty() && options.tls.is_none() && !is_public_tls {
        return Err(ServeError::ArmWithoutTls);
    }
    for (number, registry) in arm.iter().enumerate() {
        let earlier = &arm[..number];
        if earlier
            .iter()
            .any(|other| other.name.eq_ignore_ascii_case(&registry.name))
        {
            return Err(ServeError::ArmRepeated(registry.name.clone()));
        }
        if earlier.iter().any(|other| other.server == registry.server) {
            return Err(ServeError::ArmRepeated(registry.server.clone()));
        }
    }
    Ok(())
}

fn start_writer(writers: &Supervisor, app: &Arc<App>, writer: Writer) {
    let (app, writer) = (app.clone(), Arc::new(writer));
    writers.spawn_restarting("recorder", move || {
        let (app, writer) = (app.clone(), writer.clone());
        async move {
            writer.run(&app).await;
            Ok(())
        }
    });
}

fn start_background(background: &Supervisor, app: &Arc<App>, recorder: &Recorder, outbox: &Outbox) {
    let poll = app.config.poll;
    macro_rules! keep {
        ($name:literal, |$app:ident, $recorder:ident, $outbox:ident| $body:expr) => {{
            let ($app, $recorder, $outbox) = (app.clone(), recorder.clone(), outbox.clone());
            background.spawn_restarting($name, move || {
                let ($app, $recorder, $outbox) = ($app.clone(), $recorder.clone(), $outbox.clone());
                async move {
                    let _ = (&$app, &$recorder, &$outbox);
                    $body
                }
            });
        }};
    }
    keep!("scheduler", |app, recorder, _outbox| scheduler::run(
        &app, &recorder
    )
    .await);
    keep!("hints out", |app, _recorder, outbox| outbox.run(&app).await);
    keep!("hints in", |app, _recorder, _outbox| hints::listen(&app)
        .await);
    // State of absent runners, kept when the task is restarted.
    let grace = Grace::new(Instant::now(), app.config.lease, poll);
    let grace = Arc::new(Mutex::new(grace));
    let (app_, outbox_) = (app.clone(), outbox.clone());
    background.spawn_restarting("reaper", move || {
        let (app, outbox, grace) = (app_.clone(), outbox_.clone(), grace.clone());
        async move { reaper::run(&app, &outbox, &mut *grace.lock().await).await }
    });
    keep!("cancels", |app, _recorder, _outbox| loop {
        reaper::send_cancels(&app).await?;
        tokio::select! {
            () = app.cancels.notified() => {}
            () = tokio::time::sleep(reaper::CANCEL_INTERVAL.min(app.config.poll)) => {}
        }
    });
    keep!("groups", |app, _recorder, outbox| loop {
        reaper::release_groups(&app, &outbox).await?;
        tokio::time::sleep(reaper::GROUP_INTERVAL).await;
    });
    keep!("accounts", |app, _recorder, _outbox| loop {
        tokio::time::sleep(reaper::AUDIT_INTERVAL).await;
        reaper::audit_triggers(&app).await?;
    });
    keep!("timers", |app, _recorder, _outbox| timers::run(&app).await);
    keep!("bases", |app, _recorder, _outbox| bases::run(&app).await);
    keep!("cascades", |app, _recorder, _outbox| cascades::run(&app)
        .await);
    keep!("promotions", |app, _recorder, _outbox| {
        cascades::promote::run(&app).await
    });
    keep!("retention", |app, _recorder, _outbox| {
        retention::run(&app).await;
        Ok(())
    });
    keep!("forges", |app, _recorder, _outbox| {
        notifications::run_sender(&app).await
    });
    keep!("runners", |app, _recorder, _outbox| loop {
        tokio::time::sleep(RUNNER_RECONCILE_INTERVAL.min(app.config.heartbeat)).await;
        watch::reconcile(&app).await?;
    });
    keep!("silence", |app, recorder, _outbox| loop {
        tokio::time::sleep(app.config.poll).await;
        watch::end_silent(&app, &recorder);
    });
}

impl Server {
    /// Returns the address that the server listens on.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Adds a listener without TLS on loopback and returns its address. A runner in the same
    /// process uses it, because no certificate can name that runner.
    ///
    /// # Errors
    /// Returns an error if no port is free.
    pub async fn listen_on_loopback(&self) -> Result<SocketAddr, ServeError> {
        let wanted = SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, 0));
        let failed = |source| ServeError::Listen {
            address: wanted,
            source,
        };
        let socket = listener::listen(wanted).map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        let service = self.service.clone();
        self.service
            .connections
            .spawn(listener::accept_connections(socket, None, service));
        Ok(address)
    }

    /// Returns the shared state of the server.
    pub fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// Runs until `stop` is canceled, then shuts down.
    pub async fn run_until(self, stop: CancellationToken) {
        stop.cancelled().await;
        self.shutdown().await;
    }

    /// Shuts down: accepts nothing, ends streams, completes running requests, and stores the last
    /// reports.
    pub async fn shutdown(mut self) {
        tracing::info!("shutting down");
        // The router owns a sender to the writer. The writer ends when all senders are gone.
        self.service.router = axum::Router::new();
        self.app.closing.cancel();
        self.app.hub.end_all("the control plane is shutting down");
        let connections = &self.service.connections;
        connections.close();
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, connections.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                connections = connections.len(),
                "closing connections still open after the shutdown deadline"
            );
        }
        self.service.cut.cancel();
        self.background.stop().await;
        // The writer ends automatically after the last sender is gone.
        if !self.writer.wait_all(LAST_WRITES_TIMEOUT).await {
            tracing::error!(
                "cannot store the last reports of runners; runners will send them again"
            );
        }
        self.writer.stop().await;
        match tokio::time::timeout(CLOSE_TIMEOUT, self.app.store.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot close the database"),
            Err(_) => tracing::warn!("timed out closing the database"),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.app.closing.cancel();
        self.service.cut.cancel();
        self.background.cancel();
        self.writer.cancel();
    }
}
