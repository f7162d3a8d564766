//! Shared state and settings of a server.

use std::{sync::Arc, time::Duration};

use acrtask_arm::ArmRegistry;
use acrtask_model::TrustPolicy;
use acrtask_store::Store;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::{
    auth::Limits,
    bases::Poller,
    blobs::Blobs,
    cascades,
    clock::Clock,
    floor::DiskFloor,
    identity,
    logs::{LogHub, LogIndexes, LogReads},
    metrics::Metrics,
    probe,
    runners::hub::Hub,
    serve::Network,
    vault::Vault,
    webhooks,
};

/// Settings of a server. They do not change while it runs.
#[derive(Debug, Clone)]
pub struct Config {
    /// Id of this server among the servers that share its database.
    pub server_id: String,
    /// Lifetime of a lease. Heartbeats renew it.
    pub lease: Duration,
    /// Interval between heartbeats of a runner.
    pub heartbeat: Duration,
    /// Time to accept a lease. An unaccepted run returns to the queue afterwards.
    pub accept: Duration,
    /// Most attempts of a run, including the first one, before lost runners fail it.
    pub max_attempts: u32,
    /// Largest context, in bytes.
    pub context_limit: u64,
    /// Largest part of an upload, in bytes.
    pub part_limit: u64,
    /// Retention of finished runs, their logs and their contexts.
    pub retention: Duration,
    /// Timeout of a run that does not specify one.
    pub run_timeout: Duration,
    /// Interval between checks of the queue, leases and cancel requests that need no wake-up.
    pub poll: Duration,
    /// Interval between polls of each base tag.
    pub base_interval: Duration,
    /// Most requests per second to a registry with one login, for polls of base tags.
    pub base_rate: u32,
    /// Most concurrent polls of base tags.
    pub base_parallel: usize,
    /// Interval between listings of a repository's tags. Only repositories with a rule for newer
    /// tags are listed.
    pub tags_interval: Duration,
    /// Registries whose base tags are polled without TLS, in addition to registries on loopback.
    pub insecure_registries: Vec<String>,
    /// URL of this server for people, forges and registries. `None` if it is not configured.
    pub public_url: Option<Url>,
    /// Timeout to receive the body of a webhook delivery.
    pub webhook_timeout: Duration,
    /// Proxies whose `X-Forwarded-For` or `Forwarded` header names the client.
    pub trusted_proxies: Vec<Network>,
    /// Allows notification targets and probed repositories on private addresses and over plain
    /// HTTP.
    pub notify_private: bool,
    /// Tasks that share a trust domain. By default each task has its own domain.
    pub trust: TrustPolicy,
    /// Free disk below which the server refuses requests that store something.
    pub floor: DiskFloor,
    /// Records this server's key file and blob store as those of the database.
    pub adopt_storage: bool,
    /// Registries of the ARM API. Empty: the server has no ARM API.
    pub arm: Vec<ArmRegistry>,
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
            arm: Vec::new(),
        }
    }
}

/// State of one server, shared by its listeners and background tasks.
#[derive(Debug)]
pub struct App {
    /// Settings, fixed at the start.
    pub config: Config,
    /// Database.
    pub store: Store,
    /// Blob store: logs and contexts.
    pub blobs: Blobs,
    /// Keys that encrypt secret values.
    pub vault: Vault,
    /// Recorded key and blob store of the database. Empty until the server has started.
    pub identity: identity::Cell,
    /// Minimum of free disk, and the folders that must have it.
    pub floor: DiskFloor,
    /// Clock.
    pub clock: Clock,
    /// Runners that are connected to this server.
    pub hub: Hub,
    /// Wakes readers of growing logs.
    pub logs: LogHub,
    /// Indexes of the logs that are read.
    pub log_indexes: LogIndexes,
    /// Limit of logs that a token reads at once.
    pub(crate) log_reads: LogReads,
    /// Wakes the scheduler after a new run or a free slot. The scheduler also polls.
    pub wake: Arc<Notify>,
    /// Wakes the task that sends cancel requests to runners. The task also polls.
    pub cancels: Arc<Notify>,
    /// Wakes the timer task after a change of tasks. The task also polls.
    pub timers: Arc<Notify>,
    /// Tasks by repository.
    pub tasks: webhooks::TaskIndex,
    /// Deliveries that wait to be stored.
    pub deliveries: webhooks::DeliveryBatcher,
    /// Refused deliveries that are not recorded yet.
    pub refusals: webhooks::Refusals,
    /// Wakes the task that polls base tags. The task also polls on its own interval.
    pub bases: Arc<Notify>,
    /// State of the base poller between polls.
    pub(crate) poller: Poller,
    /// Driver of cascades: its state, and the signal that wakes its task. The task also polls.
    pub cascades: cascades::Driver,
    /// Permits for concurrent probes of the hosts of tasks.
    pub(crate) probes: Semaphore,
    /// Turns of callers with a task limit, so that they share the probes fairly.
    pub(crate) probe_turns: probe::Turns,
    /// Rate limits of failed and of frequent requests.
    pub(crate) limits: Limits,
    /// Metrics that `/metrics` serves.
    pub metrics: Metrics,
    /// Canceled at shutdown. Streams end, and running requests complete.
    pub closing: CancellationToken,
}

impl App {
    /// Creates the state of a server without runners and readers.
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
            log_indexes: LogIndexes::default(),
            log_reads: LogReads::default(),
            wake: Arc::default(),
            cancels: Arc::default(),
            bases: Arc::default(),
            poller: Poller::default(),
            cascades: cascades::Driver::default(),
            timers: Arc::default(),
            tasks: webhooks::TaskIndex::default(),
            deliveries: webhooks::DeliveryBatcher::default(),
            refusals: webhooks::Refusals::default(),
            probes: Semaphore::new(probe::MAX_CONCURRENT_PROBES),
            probe_turns: probe::Turns::default(),
            limits: Limits::default(),
            metrics: Metrics::default(),
            closing: CancellationToken::new(),
        }
    }
}
