//! Newer tags of base images, for tasks that have rules for them: lists of tags, what the rules make of these, and the
//! runs that try a newer tag.
//!
//! Everything is compared anew each time: the rules of tasks, the tags that their newest images stand on, and the tags that
//! there are. Invariants: each repository is listed once for each login, in the same budget as looks at tags; a tag
//! starts one run of a task, which is never repeated by itself, whatever becomes of it; a task's runs get a tag only
//! after a run has succeeded with it; no rule goes back to an older tag, or to one of another kind.

mod check;
mod show;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map::Entry},
    time::{Duration, Instant},
};

use acrtask_api::{
    image::BaseStatus,
    spec::{RunSpec, Work},
    task::{BaseTagRule, Task, TaskDefinition},
};
use acrtask_cascade::tags::{TagPolicy, allows, choose};
use acrtask_model::ImageRef;
use acrtask_registry::Registry;
use acrtask_store::{
    Hint, Listed, ProposalKey, ProposalRow, StoreError, TagListRow, TaskFilter, Try,
};
use futures::{StreamExt as _, TryStreamExt as _};

use super::{
    LEASE_MS,
    look::{Failure, LIMIT, jitter},
};
use crate::{
    App,
    recorder::millis,
    submit::{
        self, Request,
        event::{Happening, from_event},
    },
};

pub(crate) use self::{
    check::problems,
    show::{newer_than, proposals},
};

/// How often rules are compared with what there is.
const COMPARE: Duration = Duration::from_secs(30);
/// Lists that a server takes at once, and makes side by side.
const BATCH: u32 = 8;
/// Most tags of a repository.
const MAX_TAGS: usize = 100_000;
/// Most pages that they come in.
const MAX_PAGES: usize = 2_000;
/// Tasks that are read at once.
const TASKS: u32 = 500;

/// Lists tags and compares them with the rules of tasks, for ever.
pub(super) async fn run(app: &App) -> Result<(), StoreError> {
    let mut compared: Option<Instant> = None;
    loop {
        if compared.is_none_or(|at| at.elapsed() >= COMPARE) {
            pass(app).await?;
            compared = Some(Instant::now());
        }
        if list_due(app).await? {
            compared = None;
            continue;
        }
        tokio::select! {
            () = app.watcher.lists.notified() => compared = None,
            () = tokio::time::sleep(app.config.poll) => {}
        }
    }
}

/// Lists the tags of these repositories now, or of all.
pub(crate) async fn hurry(app: &App, repositories: Option<Vec<String>>) -> Result<(), StoreError> {
    let now = app.clock.now_ms();
    if app.store.hurry_tag_lists(repositories, now).await? > 0 {
        app.watcher.lists.notify_one();
    }
    Ok(())
}

/// Lists what is due. Says whether anything was.
pub(crate) async fn list_due(app: &App) -> Result<bool, StoreError> {
    let now = app.clock.now_ms();
    let due = app.store.claim_tag_lists(now, LEASE_MS, BATCH).await?;
    if due.is_empty() {
        return Ok(false);
    }
    let scopes = due.iter().map(|list| list.scope.as_str()).collect();
    let clients = app.watcher.clients(app, scopes).await?;
    let lists = futures::stream::iter(due).map(async |row| match clients.get(&row.scope) {
        Some(registry) => list(app, registry, &row).await,
        None => Ok(()),
    });
    lists
        .buffer_unordered(BATCH as usize)
        .try_collect::<()>()
        .await?;
    Ok(true)
}

/// Lists the tags of one repository and writes them down.
async fn list(app: &App, registry: &Registry, row: &TagListRow) -> Result<(), StoreError> {
    let account = (row.registry.as_str(), row.scope.as_str());
    let usual = millis(app.config.tags_interval);
    let Ok(reference) = row.repository.parse::<ImageRef>() else {
        return app.store.unlisted(row, i64::MAX).await;
    };
    let mut tags = Vec::new();
    let mut from = None;
    let mut pages = 0;
    let mut listed_pages = HashSet::new();
    let listed = loop {
        if let Err(wait) = app.watcher.wait(app, account.0, account.1).await {
            let next = app.clock.now_ms().saturating_add(millis(wait));
            return app.store.unlisted(row, next).await;
        }
        let page = tokio::time::timeout(LIMIT, registry.tags(&reference, from.as_ref())).await;
        let error = match page {
            Ok(Ok(page)) => {
                app.watcher.budget(app, account.0, account.1, |budget| {
                    budget.answered(Instant::now(), page.allowance);
                });
                tags.extend(page.tags);
                pages += 1;
                if tags.len() > MAX_TAGS || (pages >= MAX_PAGES && page.next.is_some()) {
                    break Err(Failure {
                        status: BaseStatus::Unreachable,
                        detail: format!(
                            "it has more than {MAX_TAGS} tags, or gives them in more than {MAX_PAGES} pages"
                        ),
                        next: app.clock.now_ms() + jitter(usual),
                    });
                }
                from = page.next;
                let Some(next) = &from else {
                    break Ok(std::mem::take(&mut tags));
                };
                if !listed_pages.insert(next.clone()) {
                    break Err(Failure {
                        status: BaseStatus::Unreachable,
                        detail: format!(
                            "page {pages} of its tags names an earlier page as the next one"
                        ),
                        next: app.clock.now_ms() + jitter(usual),
                    });
                }
                continue;
            }
            Ok(Err(error)) => Some(error),
            Err(_) => None,
        };
        let failed = app
            .watcher
            .failed(app, account, row.failures, error.as_ref(), usual);
        break Err(failed.await?);
    };
    let (listed, next) = match listed {
        Ok(tags) => (
            Listed::Tags(tags),
            app.clock.now_ms().saturating_add(jitter(usual)),
        ),
        Err(Failure {
            status,
            detail,
            next,
        }) => {
            if row.status != status {
                tracing::warn!(
                    repository = row.repository,
                    status = status.as_str(),
                    detail,
                    "the tags of a base image cannot be listed"
                );
            }
            (Listed::Failed { status, detail }, next)
        }
    };
    let now = app.clock.now_ms();
    app.store.listed(row, &listed, now, next).await
}

/// The rules of a task, each with the full name of its image. One that cannot be read is passed over: it was told when the
/// task was stored.
fn rules(definition: &TaskDefinition) -> Vec<(String, TagPolicy, &BaseTagRule)> {
    let trigger = definition.triggers.base_image.as_ref();
    let rules = trigger.map(|trigger| trigger.tags.as_slice());
    let read = rules.unwrap_or_default().iter().filter_map(|rule| {
        let image: ImageRef = rule.image.parse().ok()?;
        Some((image.name(), policy(rule)?, rule))
    });
    read.collect()
}

fn policy(rule: &BaseTagRule) -> Option<TagPolicy> {
    match (&rule.semver, &rule.pattern) {
        (Some(range), None) => Some(TagPolicy::Semver(range.clone())),
        (None, Some(pattern)) => Some(TagPolicy::Pattern(pattern.clone())),
        _ => None,
    }
}

/// Whether the rules of a task are followed now.
fn is_on(definition: &TaskDefinition) -> bool {
    let trigger = definition.triggers.base_image.as_ref();
    definition.enabled && trigger.is_some_and(|trigger| trigger.enabled)
}

/// Gives a run the tags that its task's rules say where they go. Where the task says a newer one itself, that one stays.
pub(crate) fn give(task: &Task, tags: &BTreeMap<String, String>, spec: &mut RunSpec) {
    if tags.is_empty() {
        return;
    }
    for (repository, policy, rule) in rules(&task.definition) {
        let Some(tag) = tags.get(&repository) else {
            continue;
        };
        if !allows(&policy, tag).unwrap_or(false) {
            continue;
        }
        let newer = |own: Option<&str>| match own {
            Some(own) if allows(&policy, own).unwrap_or(false) => {
                choose(&policy, own, [tag.as_str()])
                    .unwrap_or(tag)
                    .to_owned()
            }
            _ => tag.clone(),
        };
        if let (Some(arg), Work::Build(build)) = (&rule.build_arg, &mut spec.work) {
            let tag = newer(build.args.get(arg).map(String::as_str));
            build.args.insert(arg.clone(), tag);
        }
        if let Some(value) = &rule.value {
            let tag = newer(spec.values.get(value).and_then(|own| own.as_str()));
            spec.values.insert(value.clone(), tag.into());
            // A registry chose it.
            spec.untrusted_values.insert(value.clone());
        }
    }
}

/// Lists of tags, by repository and login, and what was found, as the database has them.
async fn stored(app: &App) -> Result<(Lists, HashMap<ProposalKey, ProposalRow>), StoreError> {
    let lists = app.store.tag_lists().await?.into_iter();
    let found = app.store.proposals().await?.into_iter();
    Ok((
        lists
            .map(|list| ((list.repository.clone(), list.scope.clone()), list))
            .collect(),
        found.map(|row| (row.key.clone(), row)).collect(),
    ))
}

/// By repository and scope.
type Lists = HashMap<(String, String), TagListRow>;

/// What the rules of tasks are about: the tags in use of each image that a rule names, and the login that it is looked at
/// with.
struct InUse {
    tasks: Vec<Task>,
    of: HashMap<(String, String), (String, BTreeSet<String>)>,
}

impl InUse {
    async fn read(app: &App) -> Result<Self, StoreError> {
        let mut tasks = Vec::new();
        let mut after = None;
        loop {
            let filter = TaskFilter {
                after: after.take(),
                limit: TASKS,
                ..TaskFilter::default()
            };
            let page = app.store.tasks(filter).await?;
            let full = page.len() >= TASKS as usize;
            after = page.last().map(|task| task.definition.name.clone());
            tasks.extend(
                page.into_iter()
                    .filter(|task| is_on(&task.definition) && !rules(&task.definition).is_empty()),
            );
            if !full {
                break;
            }
        }
        let mut of: HashMap<(String, String), (String, BTreeSet<String>)> = HashMap::new();
        if !tasks.is_empty() {
            let wanted: BTreeSet<&str> = tasks.iter().map(|task| task.id.as_str()).collect();
            for (name, scope, task, _) in app.store.wanted_bases().await? {
                if !wanted.contains(task.as_str()) {
                    continue;
                }
                let Ok(reference) = name.parse::<ImageRef>() else {
                    continue;
                };
                if let Some(tag) = reference.tag() {
                    let place = of.entry((task, reference.name())).or_default();
                    place.0 = scope;
                    place.1.insert(tag.to_owned());
                }
            }
        }
        Ok(Self { tasks, of })
    }

    fn of(&self, task: &Task, repository: &str) -> Option<&(String, BTreeSet<String>)> {
        self.of.get(&(task.id.clone(), repository.to_owned()))
    }
}

/// Compares rules with what there is: which repositories are listed, what is proposed, and which runs try a newer tag.
pub(crate) async fn pass(app: &App) -> Result<(), StoreError> {
    let in_use = InUse::read(app).await?;
    let mut wanted = BTreeSet::new();
    for task in &in_use.tasks {
        for (repository, ..) in rules(&task.definition) {
            if let Some((scope, _)) = in_use.of(task, &repository) {
                wanted.insert((repository, scope.clone()));
            }
        }
    }
    let now = app.clock.now_ms();
    app.store.set_tag_lists(&wanted, now).await?;
    let (lists, mut left) = stored(app).await?;
    let mut known: HashMap<i64, Option<Vec<String>>> = HashMap::new();
    for task in &in_use.tasks {
        for (repository, policy, rule) in rules(&task.definition) {
            let Some((scope, used)) = in_use.of(task, &repository) else {
                continue;
            };
            let list = lists.get(&(repository.clone(), scope.clone()));
            let tags = match list {
                None => None,
                Some(list) => {
                    let read = match known.entry(list.id) {
                        Entry::Occupied(there) => there.into_mut(),
                        Entry::Vacant(free) => free.insert(app.store.tags(list).await?),
                    };
                    read.as_ref()
                }
            };
            let Some(tags) = tags else {
                // What was found before stays until there is something to compare it with.
                left.retain(|key, _| key.task_id != task.id || key.repository != repository);
                continue;
            };
            for (used, newest) in found(&policy, rule, used, tags) {
                let key = ProposalKey {
                    task_id: task.id.clone(),
                    repository: repository.clone(),
                    used: used.to_owned(),
                };
                let row = left.remove(&key);
                follow(app, task, rule, (key, newest), row).await?;
            }
        }
    }
    let left: Vec<ProposalKey> = left.into_keys().collect();
    app.store.forget_proposals(&left).await
}

/// The newer tags that a rule finds, each with the one in use. Where it starts runs that is one at most: there is one
/// argument for it.
fn found<'t>(
    policy: &TagPolicy,
    rule: &BaseTagRule,
    used: &'t BTreeSet<String>,
    tags: &'t [String],
) -> Vec<(&'t str, &'t str)> {
    let newer = used.iter().filter_map(|used| {
        let newest = choose(policy, used, tags.iter().map(String::as_str)).ok()?;
        (newest != used).then_some((used.as_str(), newest))
    });
    let mut all: Vec<(&str, &str)> = newer.collect();
    if rule.starts_runs()
        && let Some((_, first)) = all.first()
    {
        let newest = choose(policy, first, all.iter().map(|(_, newest)| *newest)).unwrap_or(first);
        all.retain(|(_, tag)| *tag == newest);
        all.truncate(1);
    }
    all
}

/// Does with a newer tag what its rule says, unless that was done.
async fn follow(
    app: &App,
    task: &Task,
    rule: &BaseTagRule,
    (key, newest): (ProposalKey, &str),
    row: Option<ProposalRow>,
) -> Result<(), StoreError> {
    let known = row.filter(|row| row.newest == newest);
    let attempt = if !rule.starts_runs() {
        if known.is_some() {
            return Ok(());
        }
        Try::Propose
    } else if known.as_ref().is_some_and(|row| row.run.is_some()) {
        return Ok(());
    } else {
        let attempt = attempt(app, task, rule, &key, newest).await?;
        if let (Try::Blocked { reason }, Some(row)) = (&attempt, &known)
            && row.blocked.as_ref() == Some(reason)
        {
            return Ok(());
        }
        attempt
    };
    let now = app.clock.now_ms();
    if let Some(run) = app.store.propose(&key, newest, attempt, now).await? {
        tracing::info!(
            %run,
            task = task.definition.name,
            image = key.repository,
            used = key.used,
            newest,
            "a newer tag of a base image started a run"
        );
        app.wake.notify_one();
        app.cancels.notify_one();
        if let Err(error) = app.store.hint(&[Hint::Enqueued]).await {
            tracing::debug!(%error, "a hint could not be sent");
        }
    }
    Ok(())
}

/// The run that tries a newer tag, or why there can be none.
async fn attempt(
    app: &App,
    task: &Task,
    rule: &BaseTagRule,
    key: &ProposalKey,
    newest: &str,
) -> Result<Try, StoreError> {
    let ProposalKey {
        task_id,
        repository,
        used,
    } = key;
    let happening = Happening {
        trigger: "base-tag",
        triggered_by: "Image Update",
        base_tags: BTreeMap::from([(repository.clone(), newest.to_owned())]),
        ..Happening::default()
    };
    let by = Request {
        idempotency_key: Some(format!("base-tag/{task_id}/{repository}/{newest}")),
        ..Request::default()
    };
    let blocked = |reason: String| Ok(Try::Blocked { reason });
    let draft = match from_event(app, task, happening, by) {
        Ok(draft) => draft,
        Err(problems) => return blocked(format!("the task cannot run: {problems}")),
    };
    let missing = submit::missing_secrets(app, &draft).await?;
    if !missing.is_empty() {
        return blocked(submit::no_secret(&missing, Some(&task.definition.name)));
    }
    match draft.seal(app) {
        Ok(mut run) => {
            let allowed = rule.semver.as_ref().or(rule.pattern.as_ref());
            run.origin.reason = Some(format!(
                "{repository} has the tag {newest}, which `{}` allows in place of {used}",
                allowed.map_or("", String::as_str)
            ));
            Ok(Try::Run(Box::new(run)))
        }
        Err(error) => blocked(format!("its secrets cannot be kept: {error}")),
    }
}

#[cfg(test)]
#[path = "tags_tests.rs"]
mod tests;
