//! What all parts of the control plane share.

use std::{sync::Arc, time::Duration};

use acrtask_model::TrustPolicy;
use acrtask_store::Store;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::{
    auth::Limits, bases::Watcher, blobs::Blobs, cascades, clock::Clock, floor::DiskFloor, identity,
    logs::LogHub, metrics::Metrics, probe, runners::hub::Hub, serve::Network, vault::Vault,
    webhooks,
};

/// Settings of a control plane that do not change while it runs.
#[derive(Debug, Clone)]
pub struct Config {
    /// This control plane among those that share a database.
    pub server_id: String,
    /// A lease that is not renewed for so long is over.
    pub lease: Duration,
    /// How often a runner renews its leases.
    pub heartbeat: Duration,
    /// A lease that was handed out and not begun for so long goes back to the queue.
    pub accept: Duration,
    /// Attempts at a run, the first one included, before its runners' loss fails it.
    pub max_attempts: u32,
    /// Largest context, in bytes.
    pub context_limit: u64,
    /// Largest part of an upload, in bytes.
    pub part_limit: u64,
    /// How long runs, their logs and contexts are kept after their end.
    pub retention: Duration,
    /// Limit of a run that says none.
    pub run_timeout: Duration,
    /// How often everything that could be missed is looked at again: the queue, leases, cancel requests.
    pub poll: Duration,
    /// How often a base tag is looked at.
    pub base_interval: Duration,
    /// Requests a second at most to a registry, with one login, because of base tags.
    pub base_rate: u32,
    /// Base tags that are looked at side by side.
    pub base_parallel: usize,
    /// How often the tags of a repository are listed for which a task has a rule for newer ones.
    pub tags_interval: Duration,
    /// Registries that base tags are looked for at without TLS, beside those on this machine.
    pub insecure_registries: Vec<String>,
    /// Where people, forges and registries reach this control plane; nothing: it is not known.
    pub public_url: Option<Url>,
    /// The body of a delivery has to be there within this time.
    pub webhook_timeout: Duration,
    /// Proxies whose `X-Forwarded-For` or `Forwarded` names the client.
    pub trusted_proxies: Vec<Network>,
    /// Whom a task tells of results may be at an address that is not public, and without TLS; and a repository that is
    /// looked at for a task may be there too.
    pub notify_private: bool,
    /// Tasks that share a trust domain. By default, each task has its own.
    pub trust: TrustPolicy,
    /// Free disk below which the server refuses to store more.
    pub floor: DiskFloor,
    /// Records this server's key file and blobs as those of the database.
    pub adopt_storage: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server_id: String::new(),
            lease: Duration::from_secs(30),
            heartbeat: Duration::from_secs(10),
            accept: Duration::from_secs(15),
            max_attempts: 3,
            context_limit: 4 << 30,
            part_limit: 64 << 20,
            retention: Duration::from_secs(30 * 24 * 3600),
            run_timeout: Duration::from_secs(3600 * 8),
            poll: Duration::from_secs(1),
            base_interval: Duration::from_secs(300),
            base_rate: 20,
            base_parallel: 64,
            tags_interval: Duration::from_secs(3600),
            insecure_registries: Vec::new(),
            public_url: None,
            webhook_timeout: Duration::from_secs(30),
            trusted_proxies: Vec::new(),
            notify_private: false,
            trust: TrustPolicy::default(),
            floor: DiskFloor::default(),
            adopt_storage: false,
        }
    }
}

/// One control plane.
#[derive(Debug)]
pub struct App {
    /// Settings.
    pub config: Config,
    /// The database.
    pub store: Store,
    /// Logs and contexts.
    pub blobs: Blobs,
    /// Encrypts what is secret.
    pub vault: Vault,
    /// The key and the blobs of the database, once the server has started.
    pub identity: identity::Cell,
    /// Free disk that stays free.
    pub floor: DiskFloor,
    /// The time.
    pub clock: Clock,
    /// Runners that are connected to this control plane.
    pub hub: Hub,
    /// Wakes those who read logs that grow.
    pub logs: LogHub,
    /// Wakes the scheduler: a run came, a slot is free. It would have looked anyway.
    pub wake: Arc<Notify>,
    /// Wakes the task that tells runners of cancel requests. It would have looked anyway.
    pub cancels: Arc<Notify>,
    /// Wakes the task that handles timers: tasks were changed. It would have looked anyway.
    pub timers: Arc<Notify>,
    /// Which tasks belong to which repository.
    pub tasks: webhooks::Index,
    /// Deliveries that wait to be stored.
    pub deliveries: webhooks::Together,
    /// Refused deliveries that are not recorded yet.
    pub refusals: webhooks::Refusals,
    /// Wakes the task that looks at base tags. It would have looked anyway.
    pub bases: Arc<Notify>,
    /// What looking at base tags keeps between two looks.
    pub(crate) watcher: Watcher,
    /// Wakes the task that carries cascades out, and holds what it keeps. It would have looked anyway.
    pub cascades: cascades::Driver,
    /// How many may look at the hosts of tasks at once.
    pub(crate) probes: Semaphore,
    /// Which callers with a limit to tasks had their turn at that.
    pub(crate) probe_turns: probe::Turns,
    /// Limits of failed and of frequent requests.
    pub(crate) limits: Limits,
    /// What /metrics shows.
    pub metrics: Metrics,
    /// The control plane is shutting down: streams end, and what is under way is finished.
    pub closing: CancellationToken,
}

impl App {
    /// One without runners and readers.
    pub fn new(config: Config, store: Store, blobs: Blobs, vault: Vault, clock: Clock) -> Self {
        Self {
            floor: config.floor.clone(),
            config,
            store,
            blobs,
            vault,
            identity: identity::Cell::default(),
            clock,
            hub: Hub::default(),
            logs: LogHub::default(),
            wake: Arc::default(),
            cancels: Arc::default(),
            bases: Arc::default(),
            watcher: Watcher::default(),
            cascades: cascades::Driver::default(),
            timers: Arc::default(),
            tasks: webhooks::Index::default(),
            deliveries: webhooks::Together::default(),
            refusals: webhooks::Refusals::default(),
            probes: Semaphore::new(probe::AT_ONCE),
            probe_turns: probe::Turns::default(),
            limits: Limits::default(),
            metrics: Metrics::default(),
            closing: CancellationToken::new(),
        }
    }
}
