//! Looks at tags: with which login, inside which budget, and when the next one is.
//!
//! Many are looked at side by side, and what was seen is written down as it comes, many at once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use acrtask_api::image::BaseStatus;
use acrtask_model::{Digest, ImageRef};
use acrtask_registry::{AddressPolicy, Credentials, Looked, Registry, RegistryError};
use acrtask_store::{Seen, StoreError, WatchRow};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use tokio::sync::{Notify, mpsc};

use super::budget::Budget;
use crate::{App, metrics::LookLabels, recorder::millis, submit::credential_aad};

/// Longest time of a look, with its token server and what it reads.
pub(super) const LIMIT: Duration = Duration::from_secs(25);
/// A wait for the budget that is shorter is waited for; for a longer one the tag is given back.
const SHORT: Duration = Duration::from_secs(2);
/// Digests of the past of each tag whose platforms are read after a look.
const PAST: usize = 4;
/// First wait after a registry that does not answer; doubled each time.
const FIRST_WAIT_MS: i64 = 15_000;
/// The longest interval after failures is so many usual ones.
const SLOWEST: i64 = 12;
/// Looks that are written down together at most.
const TOGETHER: usize = 512;
/// Of these, so many wait at most until the past of their tags is read.
const UNREAD: usize = 16;
/// How long what a tag still holds waits for others to be written down with.
const NO_NEWS: Duration = Duration::from_millis(500);

/// A login for all registries, as far as it is known: scope, host, and when it was set.
type LoginKey = Vec<(String, String, i64)>;

/// The client of each scope.
pub(super) type Clients = HashMap<String, Arc<Registry>>;

/// What a server keeps between looks. All of it may be lost.
#[derive(Debug, Default)]
pub(crate) struct Watcher {
    budgets: Mutex<HashMap<(String, String), Budget>>,
    clients: tokio::sync::Mutex<HashMap<String, (LoginKey, Arc<Registry>)>>,
    /// Wakes the task that compares which tags are watched with what images stand on.
    pub(crate) images: Notify,
    /// Wakes the task that lists tags.
    pub(super) lists: Notify,
}

/// What came of a look.
enum Came {
    /// This, and the next look is then.
    Seen(Seen, i64),
    /// Nothing was asked, and the tag is given back until then.
    Back(i64),
}

/// Why something could not be looked at, and when it is tried again.
pub(super) struct Failure {
    pub(super) status: BaseStatus,
    pub(super) detail: String,
    pub(super) next: i64,
}

impl Watcher {
    /// Looks at tags as they come and writes down what was seen.
    pub(super) async fn look_at(
        &self,
        app: &App,
        due: impl Stream<Item = Result<Vec<WatchRow>, StoreError>>,
    ) -> Result<(), StoreError> {
        let (todo, mut taken) = mpsc::channel(1);
        let (seen, mut came) = mpsc::channel(TOGETHER);
        let (well, mut past) = mpsc::channel(UNREAD);
        let taking = async {
            let mut due = std::pin::pin!(due);
            while let Some(watches) = due.try_next().await? {
                let scopes: BTreeSet<&str> = watches.iter().map(|watch| &*watch.scope).collect();
                let clients = Arc::new(self.clients(app, scopes).await?);
                for watch in watches {
                    if todo.send((clients.clone(), watch)).await.is_err() {
                        return Ok(());
                    }
                }
            }
            drop(todo);
            Ok::<_, StoreError>(())
        };
        let looking = async {
            let taken = futures::stream::poll_fn(|context| taken.poll_recv(context));
            let looks = taken.map(async |(clients, watch): (Arc<Clients>, WatchRow)| {
                let came = self.look(app, &clients, &watch).await?;
                Ok::<_, StoreError>((watch, came))
            });
            let mut looks = looks.buffer_unordered(app.config.base_parallel.max(1));
            while let Some(looked) = looks.try_next().await? {
                if seen.send(looked).await.is_err() {
                    break;
                }
            }
            drop(seen);
            Ok(())
        };
        let writing = async {
            while let Some(some) = together(&mut came).await {
                // A registry that is slow to say what it held keeps nobody from looking; it is asked after the next look.
                let _ = well.try_send(write(app, some).await?);
            }
            drop(well);
            Ok(())
        };
        let reading = async {
            while let Some(well) = past.recv().await {
                self.read_past(app, &well).await?;
            }
            Ok(())
        };
        // They share this task, so that each goes on while the others wait.
        tokio::try_join!(taking, looking, writing, reading).map(drop)
    }

    async fn look(
        &self,
        app: &App,
        clients: &Clients,
        watch: &WatchRow,
    ) -> Result<Came, StoreError> {
        let (Ok(reference), Some(registry)) =
            (watch.name.parse::<ImageRef>(), clients.get(&watch.scope))
        else {
            return Ok(Came::Back(i64::MAX));
        };
        if let Err(wait) = self.wait(app, &watch.registry, &watch.scope).await {
            return Ok(Came::Back(app.clock.now_ms().saturating_add(millis(wait))));
        }
        let looking = async {
            let etag = watch.etag.as_deref().filter(|_| watch.digest.is_some());
            let look = registry.look(&reference, etag).await?;
            let seen = match look.seen {
                Looked::Same => Seen::Same,
                Looked::Found { resolved, etag } => {
                    let known = watch.digest.as_ref() == Some(&resolved.digest);
                    let read =
                        !known && self.wait(app, &watch.registry, &watch.scope).await.is_ok();
                    Seen::Digest {
                        platforms: if read {
                            platforms(registry, &reference.at(resolved.digest.clone())).await
                        } else {
                            None
                        },
                        digest: resolved.digest,
                        etag,
                    }
                }
            };
            Ok::<_, RegistryError>((seen, look.allowance))
        };
        let looked = tokio::time::timeout(LIMIT, looking).await;
        let now = app.clock.now_ms();
        let failure = match looked {
            Ok(Ok((seen, allowance))) => {
                self.budget(app, &watch.registry, &watch.scope, |budget| {
                    budget.answered(Instant::now(), allowance);
                });
                let next = now + jitter(millis(app.config.base_interval));
                return Ok(Came::Seen(seen, next));
            }
            Ok(Err(error)) => Some(error),
            Err(_) => None,
        };
        let usual = millis(app.config.base_interval);
        let Failure {
            status,
            detail,
            next,
        } = self
            .failed(
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
                "a base tag cannot be looked at"
            );
        }
        Ok(Came::Seen(Seen::Failed { status, detail }, next))
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
            Ok(Err(error)) => Err(acrtask_model::chain(&error)),
            Err(_) => Err(format!("no answer within {} s", LIMIT.as_secs())),
        })
    }

    /// What a failure means, and when the next look is. `error`: nothing, where there was no answer in time.
    pub(super) async fn failed(
        &self,
        app: &App,
        (registry, scope): (&str, &str),
        failures: u32,
        error: Option<&RegistryError>,
        usual: i64,
    ) -> Result<Failure, StoreError> {
        let now = app.clock.now_ms();
        let detail = match error {
            Some(error) => acrtask_model::chain(error),
            None => format!("no answer within {} s", LIMIT.as_secs()),
        };
        let status = match error {
            Some(RegistryError::NotFound { .. }) => BaseStatus::Vanished,
            Some(RegistryError::Denied { .. }) => BaseStatus::Denied,
            Some(RegistryError::RateLimited { .. }) => BaseStatus::Limited,
            _ => BaseStatus::Unreachable,
        };
        let next = match error {
            Some(RegistryError::RateLimited { retry_after, .. }) => {
                let wait = self.budget(app, registry, scope, |budget| {
                    budget.refused(Instant::now(), *retry_after)
                });
                now + millis(wait)
            }
            _ => now + after_failure(usual, status, failures),
        };
        if let Some(RegistryError::RateLimited { .. } | RegistryError::Unreachable { .. }) = error {
            // The other servers see it in the rows.
            app.store.postpone(registry, scope, next).await?;
        }
        Ok(Failure {
            status,
            detail,
            next,
        })
    }

    /// Reads the platforms of what images were built from, so that it can be told whether a move concerns them.
    async fn read_past(&self, app: &App, well: &[WatchRow]) -> Result<(), StoreError> {
        let unread = app.store.unread_digests(well, PAST).await?;
        let unread: Vec<(WatchRow, Digest)> = unread
            .into_iter()
            .map(|(watch, digest)| (watch.clone(), digest))
            .collect();
        let scopes = unread.iter().map(|(watch, _)| &*watch.scope).collect();
        let clients = &self.clients(app, scopes).await?;
        let reads = futures::stream::iter(unread).map(async |(watch, digest)| {
            let (Ok(reference), Some(registry)) =
                (watch.name.parse::<ImageRef>(), clients.get(&watch.scope))
            else {
                return Ok(());
            };
            if self.wait(app, &watch.registry, &watch.scope).await.is_err() {
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
            let now = app.clock.now_ms();
            app.store
                .put_platforms(&watch, &digest, read.as_ref(), now)
                .await
        });
        reads
            .buffer_unordered(app.config.base_parallel.max(1))
            .try_collect()
            .await
    }

    pub(super) fn budget<T>(
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

    /// Waits until the budget allows a request, or says how long that would take.
    pub(super) async fn wait(
        &self,
        app: &App,
        registry: &str,
        scope: &str,
    ) -> Result<(), Duration> {
        loop {
            match self.budget(app, registry, scope, |budget| budget.take(Instant::now())) {
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

    /// The clients of these scopes.
    pub(super) async fn clients(
        &self,
        app: &App,
        scopes: BTreeSet<&str>,
    ) -> Result<Clients, StoreError> {
        let mut clients = Clients::new();
        for scope in scopes {
            clients.insert(scope.to_owned(), self.client(app, scope).await?);
        }
        Ok(clients)
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
            what: acrtask_model::chain(&error),
        })?;
        let client = Arc::new(client);
        clients.insert(scope.to_owned(), (key, client.clone()));
        Ok(client)
    }
}

/// What is written down together: what has come, at once where something of it is news, and after a while where nothing is.
async fn together(came: &mut mpsc::Receiver<(WatchRow, Came)>) -> Option<Vec<(WatchRow, Came)>> {
    let mut some = Vec::new();
    let mut read = came.recv_many(&mut some, TOGETHER).await;
    let end = tokio::time::Instant::now() + NO_NEWS;
    let news = |(_, came): &(WatchRow, Came)| !matches!(came, Came::Seen(Seen::Same, _));
    while read > 0 && some.len() < TOGETHER && !some[some.len() - read..].iter().any(news) {
        let room = TOGETHER - some.len();
        let more = came.recv_many(&mut some, room);
        match tokio::time::timeout_at(end, more).await {
            Ok(more) => read = more,
            Err(_) => break,
        }
    }
    (!some.is_empty()).then_some(some)
}

/// Writes down what was seen. Gives the tags that are well.
async fn write(app: &App, came: Vec<(WatchRow, Came)>) -> Result<Vec<WatchRow>, StoreError> {
    let mut seen = Vec::with_capacity(came.len());
    for (watch, came) in came {
        match came {
            Came::Seen(what, next) => seen.push((watch, what, next)),
            Came::Back(next) => app.store.unwatched(&watch, next).await?,
        }
    }
    let other = seen.iter().any(|(watch, what, _)| {
        matches!(what, Seen::Digest { digest, .. } if watch.digest.as_ref() != Some(digest))
    });
    let changes = app.store.watched_all(&seen, app.clock.now_ms()).await?;
    for (_, what, _) in &seen {
        let outcome = match what {
            Seen::Same => "same",
            Seen::Digest { .. } => "digest",
            Seen::Failed { .. } => "failed",
        };
        let labels = LookLabels { outcome };
        app.metrics.looks.get_or_create(&labels).inc();
    }
    if other {
        app.cascades.facts();
    }
    for (base, change) in changes {
        tracing::info!(
            base,
            old = %change.old,
            new = %change.new,
            moved_back = change.moved_back,
            "a base tag has moved"
        );
    }
    Ok(seen
        .into_iter()
        .filter(|(_, what, _)| !matches!(what, Seen::Failed { .. }))
        .map(|(watch, ..)| watch)
        .collect())
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
fn after_failure(usual: i64, status: BaseStatus, failures: u32) -> i64 {
    let doubled = |first: i64| first.saturating_mul(1 << failures.min(16));
    let wait = match status {
        // It may be there again any moment.
        BaseStatus::Unreachable => doubled(FIRST_WAIT_MS.min(usual)).min(usual * 2),
        _ => doubled(usual).min(usual * SLOWEST),
    };
    jitter(wait)
}

/// A tenth more or less, so that tags do not come due together.
pub(super) fn jitter(ms: i64) -> i64 {
    let tenth = (ms / 10).max(0);
    ms - tenth + rand::random_range(0..=2 * tenth)
}
