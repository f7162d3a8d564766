//! Polls of base tags: the login, the request budget, and the time of the next poll.
//!
//! Many tags are polled concurrently, and the results are recorded in batches.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use acrtask_api::image::BaseStatus;
use acrtask_model::{Digest, ImageRef, ScopeChain, TaskScope};
use acrtask_registry::{AddressPolicy, Credentials, HeadResult, Registry, RegistryError};
use acrtask_store::{PollResult, StoreError, WatchRow};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use tokio::sync::{Notify, mpsc};

use super::budget::Budget;
use crate::{
    App,
    metrics::PollLabels,
    recorder::as_millis,
    run_factory::{credential_aad, scopes_of},
};

/// Time limit of a poll, including the token server and reads of platforms.
pub(super) const POLL_TIMEOUT: Duration = Duration::from_secs(25);
/// Longest delay of the budget that a poll waits for. For a longer delay, the tag is released.
const MAX_BUDGET_WAIT: Duration = Duration::from_secs(2);
/// Number of past digests per tag whose platforms are read after a poll.
const PAST_DIGESTS: usize = 4;
/// First delay after an unreachable registry, in milliseconds. It doubles with each failure.
const FIRST_RETRY_MS: i64 = 15_000;
/// Longest interval after failures, as a multiple of the usual interval.
const MAX_INTERVALS: i64 = 12;
/// Maximum number of polls that are recorded together.
const MAX_BATCH: usize = 512;
/// Maximum number of recorded batches that wait for reads of their past platforms.
const MAX_UNREAD_BATCHES: usize = 16;
/// Longest time that an unchanged poll waits to be recorded with others.
const BATCH_LINGER: Duration = Duration::from_millis(500);

/// Logins of a client: scope, host, and when each login was set.
type LoginKey = Vec<(String, String, i64)>;

/// Registry clients by scope.
pub(super) type Clients = HashMap<String, Arc<Registry>>;

/// State that a server keeps between polls. All of it may be lost.
#[derive(Debug, Default)]
pub(crate) struct Poller {
    budgets: Mutex<HashMap<(String, String), Budget>>,
    clients: tokio::sync::Mutex<HashMap<String, (LoginKey, Arc<Registry>)>>,
    /// Wakes the task that updates the set of watched tags.
    pub(crate) images: Notify,
    /// Wakes the task that lists tags.
    pub(super) lists: Notify,
}

/// Outcome of a claimed tag.
enum PollOutcome {
    /// Poll result and time of the next poll in milliseconds.
    Polled(PollResult, i64),
    /// No request was sent. The tag is released until this time in milliseconds.
    Released(i64),
}

/// Failure of a poll or listing, with the time of the next attempt.
pub(super) struct Failure {
    pub(super) status: BaseStatus,
    pub(super) detail: String,
    pub(super) next: i64,
}

impl Poller {
    /// Polls the tags of `due` and records the results.
    pub(super) async fn poll_due(
        &self,
        app: &App,
        due: impl Stream<Item = Result<Vec<WatchRow>, StoreError>>,
    ) -> Result<(), StoreError> {
        let (claimed, mut to_poll) = mpsc::channel(1);
        let (polled, mut outcomes) = mpsc::channel(MAX_BATCH);
        let (polled_ok, mut to_read) = mpsc::channel(MAX_UNREAD_BATCHES);
        let claiming = async {
            let mut due = std::pin::pin!(due);
            while let Some(watches) = due.try_next().await? {
                let scopes: BTreeSet<&str> = watches.iter().map(|watch| &*watch.scope).collect();
                let clients = Arc::new(self.clients_for_scopes(app, scopes).await?);
                for watch in watches {
                    if claimed.send((clients.clone(), watch)).await.is_err() {
                        return Ok(());
                    }
                }
            }
            drop(claimed);
            Ok::<_, StoreError>(())
        };
        let polling = async {
            let to_poll = futures::stream::poll_fn(|context| to_poll.poll_recv(context));
            let polls = to_poll.map(async |(clients, watch): (Arc<Clients>, WatchRow)| {
                let outcome = self.poll_tag(app, &clients, &watch).await?;
                Ok::<_, StoreError>((watch, outcome))
            });
            let mut polls = polls.buffer_unordered(app.config.base_parallel.max(1));
            while let Some(outcome) = polls.try_next().await? {
                if polled.send(outcome).await.is_err() {
                    break;
                }
            }
            drop(polled);
            Ok(())
        };
        let recording = async {
            while let Some(batch) = next_batch(&mut outcomes).await {
                // A slow registry must not delay the polls. If the channel is full, the next poll
                // reads the platforms.
                let _ = polled_ok.try_send(record_outcomes(app, batch).await?);
            }
            drop(polled_ok);
            Ok(())
        };
        let reading = async {
            while let Some(watches) = to_read.recv().await {
                self.read_past_platforms(app, &watches).await?;
            }
            Ok(())
        };
        // All four run in one task, so each makes progress while the others wait.
        tokio::try_join!(claiming, polling, recording, reading).map(drop)
    }

    async fn poll_tag(
        &self,
        app: &App,
        clients: &Clients,
        watch: &WatchRow,
    ) -> Result<PollOutcome, StoreError> {
        let (Ok(reference), Some(registry)) =
            (watch.name.parse::<ImageRef>(), clients.get(&watch.scope))
        else {
            return Ok(PollOutcome::Released(i64::MAX));
        };
        if let Err(wait) = self
            .acquire_budget(app, &watch.registry, &watch.scope)
            .await
        {
            return Ok(PollOutcome::Released(
                app.clock.now_ms().saturating_add(as_millis(wait)),
            ));
        }
        let poll = async {
            let etag = watch.etag.as_deref().filter(|_| watch.digest.is_some());
            let head = registry.head(&reference, etag).await?;
            let seen = match head.result {
                HeadResult::Unchanged => PollResult::Unchanged,
                HeadResult::Found { resolved, etag } => {
                    let unchanged = watch.digest.as_ref() == Some(&resolved.digest);
                    let read = !unchanged
                        && self
                            .acquire_budget(app, &watch.registry, &watch.scope)
                            .await
                            .is_ok();
                    PollResult::Digest {
                        platforms: if read {
                            read_platforms_or_log(registry, &reference.at(resolved.digest.clone()))
                                .await
                        } else {
                            None
                        },
                        digest: resolved.digest,
                        etag,
                    }
                }
            };
            Ok::<_, RegistryError>((seen, head.allowance))
        };
        let polled = tokio::time::timeout(POLL_TIMEOUT, poll).await;
        let now = app.clock.now_ms();
        let failure = match polled {
            Ok(Ok((seen, allowance))) => {
                self.with_budget(app, &watch.registry, &watch.scope, |budget| {
                    budget.record_response(Instant::now(), allowance);
                });
                let next = now + with_jitter(as_millis(app.config.base_interval));
                return Ok(PollOutcome::Polled(seen, next));
            }
            Ok(Err(error)) => Some(error),
            Err(_) => None,
        };
        let usual = as_millis(app.config.base_interval);
        let Failure {
            status,
            detail,
            next,
        } = self
            .handle_failure(
                app,
                (&watch.registry, &watch.scope),
                watch.failures,
                failure.as_ref(),
                usual,
            )
            .await?;
        if watch.status != status {
            tracing::warn!(
                base = watch.name,
                status = status.as_str(),
                detail,
                "polling a base tag failed"
            );
        }
        Ok(PollOutcome::Polled(
            PollResult::Failed { status, detail },
            next,
        ))
    }

    /// Resolves a tag to its current digest, with the logins that apply to all tasks.
    pub(crate) async fn resolve_tag(
        &self,
        app: &App,
        tag: &ImageRef,
    ) -> Result<Result<Digest, String>, StoreError> {
        let registry = self.client_for_scope(app, "").await?;
        let lookup = tokio::time::timeout(POLL_TIMEOUT, registry.resolve(tag));
        Ok(match lookup.await {
            Ok(Ok(resolved)) => Ok(resolved.digest),
            Ok(Err(error)) => Err(acrtask_model::error_chain(&error)),
            Err(_) => Err(format!("no response within {} s", POLL_TIMEOUT.as_secs())),
        })
    }

    /// Classifies a failure and computes the time of the next attempt. `error` is `None` after a
    /// timeout.
    pub(super) async fn handle_failure(
        &self,
        app: &App,
        (registry, scope): (&str, &str),
        failures: u32,
        error: Option<&RegistryError>,
        usual: i64,
    ) -> Result<Failure, StoreError> {
        let now = app.clock.now_ms();
        let detail = match error {
            Some(error) => acrtask_model::error_chain(error),
            None => format!("no response within {} s", POLL_TIMEOUT.as_secs()),
        };
        let status = match error {
            Some(RegistryError::NotFound { .. }) => BaseStatus::Vanished,
            Some(RegistryError::Denied { .. }) => BaseStatus::Denied,
            Some(RegistryError::RateLimited { .. }) => BaseStatus::Limited,
            _ => BaseStatus::Unreachable,
        };
        let next = match error {
            Some(RegistryError::RateLimited { retry_after, .. }) => {
                let wait = self.with_budget(app, registry, scope, |budget| {
                    budget.record_rate_limit(Instant::now(), *retry_after)
                });
                now + as_millis(wait)
            }
            _ => now + failure_delay_ms(usual, status, failures),
        };
        if let Some(RegistryError::RateLimited { .. } | RegistryError::Unreachable { .. }) = error {
            // The other servers read this from the database.
            app.store.postpone_registry(registry, scope, next).await?;
        }
        Ok(Failure {
            status,
            detail,
            next,
        })
    }

    /// Reads the platforms of the digests that images were built from. They show whether a move
    /// affects an image.
    async fn read_past_platforms(&self, app: &App, watches: &[WatchRow]) -> Result<(), StoreError> {
        let unread = app
            .store
            .digests_without_platforms(watches, PAST_DIGESTS)
            .await?;
        let unread: Vec<(WatchRow, Digest)> = unread
            .into_iter()
            .map(|(watch, digest)| (watch.clone(), digest))
            .collect();
        let scopes = unread.iter().map(|(watch, _)| &*watch.scope).collect();
        let clients = &self.clients_for_scopes(app, scopes).await?;
        let reads = futures::stream::iter(unread).map(async |(watch, digest)| {
            let (Ok(reference), Some(registry)) =
                (watch.name.parse::<ImageRef>(), clients.get(&watch.scope))
            else {
                return Ok(());
            };
            if self
                .acquire_budget(app, &watch.registry, &watch.scope)
                .await
                .is_err()
            {
                return Ok(());
            }
            let past = reference.at(digest.clone());
            let reading = read_platforms(registry, &past);
            let read = match tokio::time::timeout(POLL_TIMEOUT, reading).await {
                Ok(Ok(platforms)) => Some(platforms),
                // The manifest was deleted. The empty result prevents further reads.
                Ok(Err(error)) if error.is_not_found() => None,
                _ => return Ok(()),
            };
            let now = app.clock.now_ms();
            app.store
                .put_base_platforms(&watch, &digest, read.as_ref(), now)
                .await
        });
        reads
            .buffer_unordered(app.config.base_parallel.max(1))
            .try_collect()
            .await
    }

    pub(super) fn with_budget<T>(
        &self,
        app: &App,
        registry: &str,
        scope: &str,
        act: impl FnOnce(&mut Budget) -> T,
    ) -> T {
        let mut budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (registry.to_owned(), scope.to_owned());
        act(budgets
            .entry(key)
            .or_insert_with(|| Budget::new(app.config.base_rate.into(), Instant::now())))
    }

    /// Waits until the budget allows a request. `Err` contains the delay if it is longer than
    /// [`MAX_BUDGET_WAIT`].
    pub(super) async fn acquire_budget(
        &self,
        app: &App,
        registry: &str,
        scope: &str,
    ) -> Result<(), Duration> {
        loop {
            match self.with_budget(app, registry, scope, |budget| {
                budget.try_take(Instant::now())
            }) {
                Ok(()) => return Ok(()),
                Err(wait) if wait <= MAX_BUDGET_WAIT => tokio::time::sleep(wait).await,
                Err(wait) => return Err(wait),
            }
        }
    }

    /// Returns the client for a task: `(id, name)`. Tasks with the same logins share a client.
    pub(crate) async fn client_for_task(
        &self,
        app: &App,
        task: Option<(&str, &str)>,
    ) -> Result<Arc<Registry>, StoreError> {
        let rows = match task {
            Some((id, name)) => {
                let scopes = ScopeChain::of_task(id, name);
                app.store.credentials_for(&scopes).await?
            }
            None => Vec::new(),
        };
        // The narrowest scope of a login is the first.
        let scope = rows.first().map_or("", |row| &row.scope);
        self.client_for_scope(app, scope).await
    }

    /// Returns the clients of `scopes`.
    pub(super) async fn clients_for_scopes(
        &self,
        app: &App,
        scopes: BTreeSet<&str>,
    ) -> Result<Clients, StoreError> {
        let mut clients = Clients::new();
        for scope in scopes {
            clients.insert(scope.to_owned(), self.client_for_scope(app, scope).await?);
        }
        Ok(clients)
    }

    /// Returns the client of a scope. A login of a narrower scope overrides those of wider ones.
    async fn client_for_scope(&self, app: &App, scope: &str) -> Result<Arc<Registry>, StoreError> {
        let scopes = match TaskScope::parse(scope) {
            TaskScope::Task(id) => scopes_of(app, &id).await?,
            TaskScope::Prefix(pattern) => ScopeChain::of_pattern(&pattern),
            TaskScope::All => ScopeChain::shared(),
        };
        let rows = app.store.credentials_for(&scopes).await?;
        let key: LoginKey = rows
            .iter()
            .map(|row| (row.scope.clone(), row.host.clone(), row.updated_at))
            .collect();
        let mut clients = self.clients.lock().await;
        if let Some((cached_key, client)) = clients.get(scope)
            && *cached_key == key
        {
            return Ok(client.clone());
        }
        let mut credentials = Credentials::new();
        for row in rows {
            let aad = credential_aad(&row.scope, &row.host);
            match app.vault.open(&aad, &row.password) {
                Ok(password) => credentials = credentials.with(&row.host, row.username, password),
                Err(error) => {
                    tracing::error!(host = row.host, %error, "cannot use a login to poll base tags");
                }
            }
        }
        let settings = acrtask_registry::Settings {
            insecure: app.config.insecure_registries.clone(),
            addresses: AddressPolicy::NoMetadata,
        };
        let client = Registry::new(credentials, settings).map_err(|error| StoreError::Invalid {
            what: acrtask_model::error_chain(&error),
        })?;
        let client = Arc::new(client);
        clients.insert(scope.to_owned(), (key, client.clone()));
        Ok(client)
    }
}

/// Collects the next batch of poll results.
///
/// Returns at once if one of them is a change. Otherwise waits up to [`BATCH_LINGER`] for more.
async fn next_batch(
    outcomes: &mut mpsc::Receiver<(WatchRow, PollOutcome)>,
) -> Option<Vec<(WatchRow, PollOutcome)>> {
    let mut batch = Vec::new();
    let mut read = outcomes.recv_many(&mut batch, MAX_BATCH).await;
    let end = tokio::time::Instant::now() + BATCH_LINGER;
    let is_change = |(_, outcome): &(WatchRow, PollOutcome)| {
        !matches!(outcome, PollOutcome::Polled(PollResult::Unchanged, _))
    };
    while read > 0 && batch.len() < MAX_BATCH && !batch[batch.len() - read..].iter().any(is_change)
    {
        let limit = MAX_BATCH - batch.len();
        let more = outcomes.recv_many(&mut batch, limit);
        match tokio::time::timeout_at(end, more).await {
            Ok(more) => read = more,
            Err(_) => break,
        }
    }
    (!batch.is_empty()).then_some(batch)
}

/// Records the outcomes. Returns the tags that were polled successfully.
async fn record_outcomes(
    app: &App,
    outcomes: Vec<(WatchRow, PollOutcome)>,
) -> Result<Vec<WatchRow>, StoreError> {
    let mut polled = Vec::with_capacity(outcomes.len());
    for (watch, outcome) in outcomes {
        match outcome {
            PollOutcome::Polled(result, next) => polled.push((watch, result, next)),
            PollOutcome::Released(next) => app.store.release_watch(&watch, next).await?,
        }
    }
    let changed = polled.iter().any(|(watch, result, _)| {
        matches!(result, PollResult::Digest { digest, .. } if watch.digest.as_ref() != Some(digest))
    });
    let changes = app.store.record_polls(&polled, app.clock.now_ms()).await?;
    for (_, result, _) in &polled {
        let label = match result {
            PollResult::Unchanged => "same",
            PollResult::Digest { .. } => "digest",
            PollResult::Failed { .. } => "failed",
        };
        let labels = PollLabels { outcome: label };
        app.metrics.base_polls.get_or_create(&labels).inc();
    }
    if changed {
        app.cascades.mark_facts_changed();
    }
    for (base, change) in changes {
        tracing::info!(
            base,
            old = %change.from,
            new = %change.to,
            moved_back = change.moved_back,
            "base tag moved"
        );
    }
    Ok(polled
        .into_iter()
        .filter(|(_, result, _)| !matches!(result, PollResult::Failed { .. }))
        .map(|(watch, ..)| watch)
        .collect())
}

async fn read_platforms_or_log(
    registry: &Registry,
    reference: &ImageRef,
) -> Option<BTreeMap<String, Digest>> {
    match read_platforms(registry, reference).await {
        Ok(platforms) => Some(platforms),
        Err(error) => {
            tracing::debug!(%reference, %error, "cannot read the platforms of an image");
            None
        }
    }
}

async fn read_platforms(
    registry: &Registry,
    reference: &ImageRef,
) -> Result<BTreeMap<String, Digest>, RegistryError> {
    let platforms = registry.platforms(reference).await?;
    Ok(platforms
        .into_iter()
        .map(|(platform, digest)| (platform.to_string(), digest))
        .collect())
}

/// Returns the delay in milliseconds after `failures + 1` consecutive failures.
fn failure_delay_ms(usual: i64, status: BaseStatus, failures: u32) -> i64 {
    let doubled = |first: i64| first.saturating_mul(1 << failures.min(16));
    let wait = match status {
        // The registry may be reachable again at any moment.
        BaseStatus::Unreachable => doubled(FIRST_RETRY_MS.min(usual)).min(usual * 2),
        _ => doubled(usual).min(usual * MAX_INTERVALS),
    };
    with_jitter(wait)
}

/// Varies a time by up to 10 %, so that tags do not become due at the same time.
#[allow(clippy::disallowed_methods, reason = "delays are random")]
pub(super) fn with_jitter(ms: i64) -> i64 {
    let tenth = (ms / 10).max(0);
    ms - tenth + rand::random_range(0..=2 * tenth)
}
