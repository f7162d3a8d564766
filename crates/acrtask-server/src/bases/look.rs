//! One look at a tag: with which login, inside which budget, and when the next one is.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use acrtask_api::image::BaseStatus;
use acrtask_model::{Digest, ImageRef};
use acrtask_registry::{AddressPolicy, Credentials, Looked, Registry, RegistryError};
use acrtask_store::{Seen, StoreError, WatchRow};

use super::budget::Budget;
use crate::{App, recorder::millis, submit::credential_aad};

/// Longest time of a look, with its token server and what it reads.
const LIMIT: Duration = Duration::from_secs(25);
/// A wait for the budget that is shorter is waited for; for a longer one the tag is given back.
const SHORT: Duration = Duration::from_secs(2);
/// Digests of the past whose platforms are read after a look.
const PAST: u32 = 4;
/// First wait after a registry that does not answer; doubled each time.
const FIRST_WAIT_MS: i64 = 15_000;
/// The longest interval after failures is so many usual ones.
const SLOWEST: i64 = 12;

/// A login for all registries, as far as it is known: scope, host, and when it was set.
type LoginKey = Vec<(String, String, i64)>;

/// What a server keeps between looks. All of it may be lost.
#[derive(Debug, Default)]
pub(crate) struct Watcher {
    budgets: Mutex<HashMap<(String, String), Budget>>,
    clients: tokio::sync::Mutex<HashMap<String, (LoginKey, Arc<Registry>)>>,
}

impl Watcher {
    /// Looks at a tag and writes down what it saw.
    pub(crate) async fn look(&self, app: &App, watch: WatchRow) -> Result<(), StoreError> {
        let Ok(reference) = watch.name.parse::<ImageRef>() else {
            return app.store.unwatched(&watch, i64::MAX).await;
        };
        if let Err(wait) = self.wait(app, &watch).await {
            let next = app.clock.now_ms().saturating_add(millis(wait));
            return app.store.unwatched(&watch, next).await;
        }
        let registry = self.client(app, &watch.scope).await?;
        let looking = async {
            let etag = watch.etag.as_deref().filter(|_| watch.digest.is_some());
            let look = registry.look(&reference, etag).await?;
            let seen = match look.seen {
                Looked::Same => Seen::Same,
                Looked::Found { resolved, etag } => Seen::Digest {
                    platforms: if watch.digest.as_ref() == Some(&resolved.digest) {
                        None
                    } else {
                        platforms(&registry, &reference.at(resolved.digest.clone())).await
                    },
                    digest: resolved.digest,
                    etag,
                },
            };
            Ok::<_, RegistryError>((seen, look.allowance))
        };
        let looked = tokio::time::timeout(LIMIT, looking).await;
        let now = app.clock.now_ms();
        let (seen, next) = match looked {
            Ok(Ok((seen, allowance))) => {
                self.budget(app, &watch, |budget| {
                    budget.answered(Instant::now(), allowance);
                });
                (seen, now + jitter(millis(app.config.base_interval)))
            }
            Ok(Err(error)) => self.failed(app, &watch, &error, now).await?,
            Err(_) => {
                let detail = format!("no answer within {} s", LIMIT.as_secs());
                let status = BaseStatus::Unreachable;
                (
                    Seen::Failed { status, detail },
                    now + after_failure(app, status, watch.failures),
                )
            }
        };
        if let Seen::Failed { status, detail } = &seen
            && watch.status != *status
        {
            tracing::warn!(
                base = watch.name,
                status = status.as_str(),
                detail,
                "a base tag cannot be looked at"
            );
        }
        let well = !matches!(seen, Seen::Failed { .. });
        let other =
            matches!(&seen, Seen::Digest { digest, .. } if watch.digest.as_ref() != Some(digest));
        let change = app.store.watched(&watch, &seen, now, next).await?;
        if other {
            app.cascades.facts();
        }
        if let Some(change) = change {
            tracing::info!(
                base = watch.name,
                old = %change.old,
                new = %change.new,
                moved_back = change.moved_back,
                "a base tag has moved"
            );
        }
        if well {
            self.read_past(app, &registry, &watch, &reference).await?;
        }
        Ok(())
    }

    /// What a tag holds now, looked up with the login of all tasks.
    pub(crate) async fn resolve(
        &self,
        app: &App,
        tag: &ImageRef,
    ) -> Result<Result<Digest, String>, StoreError> {
        let registry = self.client(app, "").await?;
        let looking = tokio::time::timeout(LIMIT, registry.resolve(tag));
        Ok(match looking.await {
            Ok(Ok(resolved)) => Ok(resolved.digest),
            Ok(Err(error)) => Err(crate::api::chain(&error)),
            Err(_) => Err(format!("no answer within {} s", LIMIT.as_secs())),
        })
    }

    /// What a failure means, and when the next look is.
    async fn failed(
        &self,
        app: &App,
        watch: &WatchRow,
        error: &RegistryError,
        now: i64,
    ) -> Result<(Seen, i64), StoreError> {
        let detail = crate::api::chain(error);
        let status = match error {
            RegistryError::NotFound { .. } => BaseStatus::Vanished,
            RegistryError::Denied { .. } => BaseStatus::Denied,
            RegistryError::RateLimited { .. } => BaseStatus::Limited,
            _ => BaseStatus::Unreachable,
        };
        let next = match error {
            RegistryError::RateLimited { retry_after, .. } => {
                let wait = self.budget(app, watch, |budget| {
                    budget.refused(Instant::now(), *retry_after)
                });
                let until = now + millis(wait);
                // The other servers see it in the rows.
                app.store
                    .postpone(&watch.registry, &watch.scope, until)
                    .await?;
                until
            }
            RegistryError::Unreachable { .. } => {
                let until = now + after_failure(app, status, watch.failures);
                app.store
                    .postpone(&watch.registry, &watch.scope, until)
                    .await?;
                until
            }
            _ => now + after_failure(app, status, watch.failures),
        };
        Ok((Seen::Failed { status, detail }, next))
    }

    /// Reads the platforms of what images were built from, so that it can be told whether a move concerns them.
    async fn read_past(
        &self,
        app: &App,
        registry: &Registry,
        watch: &WatchRow,
        reference: &ImageRef,
    ) -> Result<(), StoreError> {
        for digest in app.store.unread_digests(watch, PAST).await? {
            if self.wait(app, watch).await.is_err() {
                return Ok(());
            }
            let past = reference.at(digest.clone());
            let reading = platforms_or(registry, &past);
            let read = match tokio::time::timeout(LIMIT, reading).await {
                Ok(Ok(platforms)) => Some(platforms),
                // It is gone, and is not asked for again.
                Ok(Err(error)) if error.is_not_found() => None,
                _ => return Ok(()),
            };
            app.store
                .put_platforms(watch, &digest, read.as_ref(), app.clock.now_ms())
                .await?;
        }
        Ok(())
    }

    fn budget<T>(&self, app: &App, watch: &WatchRow, act: impl FnOnce(&mut Budget) -> T) -> T {
        let mut budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (watch.registry.clone(), watch.scope.clone());
        act(budgets
            .entry(key)
            .or_insert_with(|| Budget::new(app.config.base_rate.into(), Instant::now())))
    }

    /// Waits until the budget allows a request, or says how long that would take.
    async fn wait(&self, app: &App, watch: &WatchRow) -> Result<(), Duration> {
        loop {
            match self.budget(app, watch, |budget| budget.take(Instant::now())) {
                Ok(()) => return Ok(()),
                Err(wait) if wait <= SHORT => tokio::time::sleep(wait).await,
                Err(wait) => return Err(wait),
            }
        }
    }

    /// The client with the logins of a task, by its id: those of all tasks where it has none of its own.
    pub(crate) async fn client_of_task(
        &self,
        app: &App,
        task: Option<&str>,
    ) -> Result<Arc<Registry>, StoreError> {
        let scope = match task {
            Some(task) => {
                let own = app.store.credentials_for(&[task]).await?;
                if own.is_empty() { "" } else { task }
            }
            None => "",
        };
        self.client(app, scope).await
    }

    /// The client with the logins of a scope: those of the task win over those of all.
    async fn client(&self, app: &App, scope: &str) -> Result<Arc<Registry>, StoreError> {
        let scopes: &[&str] = if scope.is_empty() {
            &[""]
        } else {
            &["", scope]
        };
        // Sorted by scope: the task's own come last, and the last one wins.
        let rows = app.store.credentials_for(scopes).await?;
        let key: LoginKey = rows
            .iter()
            .map(|row| (row.scope.clone(), row.host.clone(), row.updated_at))
            .collect();
        let mut clients = self.clients.lock().await;
        if let Some((known, client)) = clients.get(scope)
            && *known == key
        {
            return Ok(client.clone());
        }
        let mut credentials = Credentials::new();
        for row in rows {
            let aad = credential_aad(&row.scope, &row.host);
            match app.vault.open(&aad, &row.password) {
                Ok(password) => credentials = credentials.with(&row.host, row.username, password),
                Err(error) => {
                    tracing::error!(host = row.host, %error, "a login cannot be used to look at base tags");
                }
            }
        }
        let settings = acrtask_registry::Settings {
            insecure: app.config.insecure_registries.clone(),
            addresses: AddressPolicy::NoMetadata,
        };
        let client = Registry::new(credentials, settings).map_err(|error| StoreError::Invalid {
            what: crate::api::chain(&error),
        })?;
        let client = Arc::new(client);
        clients.insert(scope.to_owned(), (key, client.clone()));
        Ok(client)
    }
}

async fn platforms(registry: &Registry, reference: &ImageRef) -> Option<BTreeMap<String, Digest>> {
    match platforms_or(registry, reference).await {
        Ok(platforms) => Some(platforms),
        Err(error) => {
            tracing::debug!(%reference, %error, "its platforms cannot be read");
            None
        }
    }
}

async fn platforms_or(
    registry: &Registry,
    reference: &ImageRef,
) -> Result<BTreeMap<String, Digest>, RegistryError> {
    let platforms = registry.platforms(reference).await?;
    Ok(platforms
        .into_iter()
        .map(|(platform, digest)| (platform.to_string(), digest))
        .collect())
}

/// How long after so many failures and one more the next look is.
fn after_failure(app: &App, status: BaseStatus, failures: u32) -> i64 {
    let usual = millis(app.config.base_interval);
    let doubled = |first: i64| first.saturating_mul(1 << failures.min(16));
    let wait = match status {
        // It may be there again any moment.
        BaseStatus::Unreachable => doubled(FIRST_WAIT_MS.min(usual)).min(usual * 2),
        _ => doubled(usual).min(usual * SLOWEST),
    };
    jitter(wait)
}

/// A tenth more or less, so that tags do not come due together.
fn jitter(ms: i64) -> i64 {
    let tenth = (ms / 10).max(0);
    ms - tenth + rand::random_range(0..=2 * tenth)
}
