//! The listener, and everything that runs behind it.
//!
//! [`start`] opens the database, the place for blobs and the key file, begins to listen, and starts the background tasks; what it
//! returns can be asked for its address and shut down. Invariants: one listener serves HTTP/1.1, HTTP/2 and gRPC; without
//! TLS only the machine itself is listened to, unless the operator says otherwise; shutting down finishes what is under way within a
//! deadline, and what is written down by then is all that counts.

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
    App, Config, api, bases,
    blobs::{BlobError, Blobs},
    cascades,
    clock::Clock,
    forge,
    hints::{self, Outbox},
    identity::{self, IdentityError},
    reaper::{self, Grace},
    recorder::{Recorder, Writer, recorder},
    retention,
    runners::{self, watch},
    scheduler, timers,
    vault::{Vault, VaultError},
    webhooks,
};

/// What is under way when a server is told to stop has so long.
const DEADLINE: Duration = Duration::from_secs(10);
/// What was said by then is written down within this time.
const LAST_WRITES: Duration = Duration::from_secs(5);
/// Longest time to close the database at the end of a shutdown.
const CLOSE: Duration = Duration::from_secs(10);
/// How often it is written down who was heard of, and looked who is to drain.
const RECONCILE: Duration = Duration::from_secs(5);

/// Certificate and key, as PEM files.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The certificate, and those between it and its root.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// How a control plane is started.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Nothing: plain HTTP.
    pub tls: Option<TlsFiles>,
    /// Plain HTTP on an address that others can reach.
    pub allow_plaintext: bool,
    /// `sqlite:PATH` or `postgres://...`.
    pub database: String,
    /// A folder, `s3://BUCKET/PREFIX` or `az://CONTAINER/PREFIX`.
    pub blobs: String,
    /// The keys that secrets are encrypted with; made where it is missing.
    pub key_file: PathBuf,
    /// Settings. An empty server id becomes a random one.
    pub config: Config,
    /// The time.
    pub clock: Clock,
}

/// Why a control plane cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// What runners and people send would be readable on the network.
    #[error(
        "{0} can be reached by others and would get secrets unencrypted; give a certificate and a key, \
         listen at 127.0.0.1, or allow plain HTTP where a proxy in front speaks TLS"
    )]
    Plaintext(SocketAddr),
    /// The address cannot be listened at.
    #[error("cannot listen at {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Certificate or key cannot be used.
    #[error("cannot use {file} for TLS: {reason}")]
    Tls {
        /// The file.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// The database cannot be used.
    #[error("cannot use the database")]
    Store(#[from] StoreError),
    /// The place for blobs cannot be used.
    #[error(transparent)]
    Blobs(#[from] BlobError),
    /// The key file cannot be used.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The database belongs to another key file or to other blobs.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// A control plane that runs. Dropping it stops it at once, as a crash would.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    app: Arc<App>,
    /// Connections, and sessions of runners.
    service: listener::Service,
    background: Supervisor,
    writer: Supervisor,
}

/// Starts a control plane.
///
/// # Errors
/// When an option cannot be used, and why.
pub async fn start(mut options: ServeOptions) -> Result<Server, ServeError> {
    if options.tls.is_none() && !options.listen.ip().is_loopback() && !options.allow_plaintext {
        return Err(ServeError::Plaintext(options.listen));
    }
    acrtask_registry::install_crypto_provider();
    let tls = options.tls.as_ref().map(listener::tls).transpose()?;
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
    let (recorder, writer) = recorder(outbox.clone());
    let app = Arc::new(App::new(options.config, store, blobs, vault, options.clock));
    let _ = app.identity.set(identity);
    let connections = TaskTracker::new();
    let background = Supervisor::new(app.clone());
    let writers = Supervisor::new(app.clone());
    start_writer(&writers, &app, writer);
    start_background(&background, &app, &recorder, &outbox);
    let router = api::router(app.clone())
        .merge(health::router(app.clone()))
        .merge(webhooks::router(app.clone()))
        .merge(runners::router(app.clone(), recorder, connections.clone()));
    let service = listener::Service {
        app: app.clone(),
        router,
        gate: gate::Gate::new(gate::raise_file_limit()),
        connections: connections.clone(),
        cut: CancellationToken::new(),
    };
    connections.spawn(listener::accept(socket, tls, service.clone()));
    tracing::info!(%address, server = app.config.server_id, "the control plane listens");
    Ok(Server {
        address,
        app,
        service,
        background,
        writer: writers,
    })
}

fn start_writer(writers: &Supervisor, app: &Arc<App>, writer: Writer) {
    let (app, writer) = (app.clone(), Arc::new(writer));
    writers.keep("recorder", move || {
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
            background.keep($name, move || {
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
    // What is known of absences outlives a failure of the task.
    let grace = Grace::new(Instant::now(), app.config.lease, poll);
    let grace = Arc::new(Mutex::new(grace));
    let (app_, outbox_) = (app.clone(), outbox.clone());
    background.keep("reaper", move || {
        let (app, outbox, grace) = (app_.clone(), outbox_.clone(), grace.clone());
        async move { reaper::run(&app, &outbox, &mut *grace.lock().await).await }
    });
    keep!("cancels", |app, _recorder, _outbox| loop {
        reaper::cancels(&app).await?;
        tokio::select! {
            () = app.cancels.notified() => {}
            () = tokio::time::sleep(reaper::CANCELS.min(app.config.poll)) => {}
        }
    });
    keep!("groups", |app, _recorder, outbox| loop {
        reaper::groups(&app, &outbox).await?;
        tokio::time::sleep(reaper::GROUPS).await;
    });
    keep!("accounts", |app, _recorder, _outbox| loop {
        tokio::time::sleep(reaper::ACCOUNTS).await;
        reaper::accounts(&app).await?;
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
    keep!("forges", |app, _recorder, _outbox| forge::run(&app).await);
    keep!("runners", |app, _recorder, _outbox| loop {
        tokio::time::sleep(RECONCILE.min(app.config.heartbeat)).await;
        watch::reconcile(&app).await?;
    });
    keep!("silence", |app, recorder, _outbox| loop {
        tokio::time::sleep(app.config.poll).await;
        watch::end_silent(&app, &recorder);
    });
}

impl Server {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Listens for this machine alone too, without TLS, and says where: for a runner in the same process, which has no
    /// name that a certificate could be for.
    ///
    /// # Errors
    /// When there is no port for it.
    pub async fn listen_inside(&self) -> Result<SocketAddr, ServeError> {
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
            .spawn(listener::accept(socket, None, service));
        Ok(address)
    }

    /// What its parts share.
    pub fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// Runs until `stop`, then shuts down.
    pub async fn run_until(self, stop: CancellationToken) {
        stop.cancelled().await;
        self.shutdown().await;
    }

    /// Takes nothing new, tells streams to end, finishes what is under way, and writes down what was said.
    pub async fn shutdown(mut self) {
        tracing::info!("the control plane shuts down");
        // It holds a way to the writer.
        self.service.router = axum::Router::new();
        self.app.closing.cancel();
        self.app.hub.end_all("the control plane is shutting down");
        let connections = &self.service.connections;
        connections.close();
        if tokio::time::timeout(DEADLINE, connections.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                connections = connections.len(),
                "connections are cut that did not end"
            );
        }
        self.service.cut.cancel();
        self.background.stop().await;
        // The writer ends by itself when nobody can say anything any more.
        if !self.writer.ended(LAST_WRITES).await {
            tracing::error!(
                "the last reports of runners could not be written; they will say them again"
            );
        }
        self.writer.stop().await;
        match tokio::time::timeout(CLOSE, self.app.store.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot close the database"),
            Err(_) => tracing::warn!("closing the database took too long"),
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
