//! Newer tags of base images, for tasks with rules for them: tag lists, matching tags, and the runs
//! that try them.
//!
//! Each pass compares the rules of tasks, the tags that their newest images use, and the existing
//! tags.
//!
//! Invariants:
//!
//! - Each repository is listed once per login, within the same budget as polls.
//! - A tag starts one run of a task. This run is never repeated automatically.
//! - Runs of a task use a newer tag only after a run with it has succeeded.
//! - No rule selects an older tag or one of another kind.

mod check;
mod proposals;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    time::{Duration, Instant},
};

use acrtask_api::{
    image::BaseStatus,
    spec::{RunSource, RunSpec},
    task::{BaseTagRule, Task, TaskDefinition},
};
use acrtask_cascade::tags::{TagPolicy, TagSelector};
use acrtask_model::ImageRef;
use acrtask_registry::{Listing, Registry};
use acrtask_store::{
    Hint, ProposalAction, ProposalKey, ProposalRow, StoreError, TagListResult, TagListRow,
    TaskFilter,
};
use futures::{StreamExt as _, TryStreamExt as _};

use super::{
    MAX_LEASE_MS,
    poller::{Failure, POLL_TIMEOUT, with_jitter},
};
use crate::{
    App,
    recorder::as_millis,
    run_factory::{
        self, RequestContext,
        trigger::{TriggerContext, create_from_trigger},
    },
};

pub(crate) use self::{
    check::find_rule_problems,
    proposals::{list_proposals, newer_tags},
};

/// Interval between comparisons of rules with existing tags.
const COMPARE_INTERVAL: Duration = Duration::from_secs(30);
/// Number of lists that a server claims at once and reads concurrently.
const BATCH: u32 = 8;
/// Maximum number of tags per repository.
const MAX_TAGS: usize = 100_000;
/// Maximum number of pages per tag list.
const MAX_PAGES: usize = 2_000;
/// Number of tasks to read per query.
const TASKS: u32 = 500;

/// Lists tags and compares them with the rules of tasks, forever.
pub(super) async fn run(app: &App) -> Result<(), StoreError> {
    let mut compared: Option<Instant> = None;
    loop {
        if compared.is_none_or(|at| at.elapsed() >= COMPARE_INTERVAL) {
            reconcile_rules(app).await?;
            compared = Some(Instant::now());
        }
        if list_due(app).await? {
            compared = None;
            continue;
        }
        tokio::select! {
            () = app.poller.lists.notified() => compared = None,
            () = tokio::time::sleep(app.config.poll) => {}
        }
    }
}

/// Makes the tag lists of `repositories` due. `None`: all lists.
pub(crate) async fn mark_lists_due(
    app: &App,
    repositories: Option<Vec<String>>,
) -> Result<(), StoreError> {
    let now = app.clock.now_ms();
    if app.store.mark_tag_lists_due(repositories, now).await? > 0 {
        app.poller.lists.notify_one();
    }
    Ok(())
}

/// Reads the due tag lists. Returns `false` if there were none.
pub(crate) async fn list_due(app: &App) -> Result<bool, StoreError> {
    let now = app.clock.now_ms();
    let due = app.store.claim_tag_lists(now, MAX_LEASE_MS, BATCH).await?;
    if due.is_empty() {
        return Ok(false);
    }
    let scopes = due.iter().map(|list| list.scope.as_str()).collect();
    let clients = app.poller.clients_for_scopes(app, scopes).await?;
    let lists = futures::stream::iter(due).map(async |row| match clients.get(&row.scope) {
        Some(registry) => list_repository(app, registry, &row).await,
        None => Ok(()),
    });
    lists
        .buffer_unordered(BATCH as usize)
        .try_collect::<()>()
        .await?;
    Ok(true)
}

/// Lists the tags of one repository and records them.
async fn list_repository(
    app: &App,
    registry: &Registry,
    row: &TagListRow,
) -> Result<(), StoreError> {
    let account = (row.registry.as_str(), row.scope.as_str());
    let usual = as_millis(app.config.tags_interval);
    let Ok(reference) = row.repository.parse::<ImageRef>() else {
        return app.store.release_tag_list(row, i64::MAX).await;
    };
    let mut tags = Listing::of_tags(&reference).with_limits(MAX_TAGS, MAX_PAGES);
    let mut from = None;
    let listed = loop {
        if let Err(wait) = app.poller.acquire_budget(app, account.0, account.1).await {
            let next = app.clock.now_ms().saturating_add(as_millis(wait));
            return app.store.release_tag_list(row, next).await;
        }
        let page =
            tokio::time::timeout(POLL_TIMEOUT, registry.tags(&reference, from.as_ref())).await;
        let error = match page {
            Ok(Ok(page)) => {
                app.poller.with_budget(app, account.0, account.1, |budget| {
                    budget.record_response(Instant::now(), page.allowance);
                });
                from = page.next.clone();
                if let Err(error) = tags.add_tags(page) {
                    break Err(Failure {
                        status: BaseStatus::Unreachable,
                        detail: error.to_string(),
                        next: app.clock.now_ms() + with_jitter(usual),
                    });
                }
                if from.is_none() {
                    break Ok(tags.into_entries());
                }
                continue;
            }
            Ok(Err(error)) => Some(error),
            Err(_) => None,
        };
        let failed = app
            .poller
            .handle_failure(app, account, row.failures, error.as_ref(), usual);
        break Err(failed.await?);
    };
    let (listed, next) = match listed {
        Ok(tags) => (
            TagListResult::Tags(tags),
            app.clock.now_ms().saturating_add(with_jitter(usual)),
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
                    "listing the tags of a base image failed"
                );
            }
            (TagListResult::Failed { status, detail }, next)
        }
    };
    let now = app.clock.now_ms();
    app.store.record_tag_list(row, &listed, now, next).await
}

/// Returns the rules of a task, each with the full name of its image.
///
/// Skips invalid rules. The validation of the task reports them.
fn parse_rules(definition: &TaskDefinition) -> Vec<(String, TagPolicy, &BaseTagRule)> {
    let trigger = definition.triggers.base_image.as_ref();
    let rules = trigger.map(|trigger| trigger.tags.as_slice());
    let read = rules.unwrap_or_default().iter().filter_map(|rule| {
        let image: ImageRef = rule.image.parse().ok()?;
        Some((image.name(), tag_policy(rule)?, rule))
    });
    read.collect()
}

fn tag_policy(rule: &BaseTagRule) -> Option<TagPolicy> {
    match (&rule.semver, &rule.pattern) {
        (Some(range), None) => Some(TagPolicy::Semver(range.clone())),
        (None, Some(pattern)) => Some(TagPolicy::Pattern(pattern.clone())),
        _ => None,
    }
}

/// Returns `true` if the rules of a task are enabled.
fn is_enabled(definition: &TaskDefinition) -> bool {
    let trigger = definition.triggers.base_image.as_ref();
    definition.enabled && trigger.is_some_and(|trigger| trigger.enabled)
}

/// Sets the newer tags in the build arguments and values that the rules name. A newer tag in the
/// task itself wins.
pub(crate) fn apply_tags(task: &Task, tags: &BTreeMap<String, String>, spec: &mut RunSpec) {
    if tags.is_empty() {
        return;
    }
    for (repository, policy, rule) in parse_rules(&task.definition) {
        let Some(tag) = tags.get(&repository) else {
            continue;
        };
        let Ok(selector) = TagSelector::new(&policy) else {
            continue;
        };
        if !selector.allows(tag) {
            continue;
        }
        let newer = |own: Option<&str>| match own {
            Some(own) if selector.allows(own) => selector.choose(own, [tag.as_str()]).to_owned(),
            _ => tag.clone(),
        };
        if let (Some(arg), RunSource::Build(build)) = (&rule.build_arg, &mut spec.source) {
            let tag = newer(build.args.get(arg).map(String::as_str));
            build.args.insert(arg.clone(), tag);
        }
        if let Some(value) = &rule.value {
            let tag = newer(spec.values.get(value).and_then(|own| own.as_str()));
            spec.values.insert(value.clone(), tag.into());
            // A registry chose this value, so it is untrusted.
            spec.untrusted_values.insert(value.clone());
        }
    }
}

/// Reads the tag lists and the recorded proposals.
async fn read_stored(app: &App) -> Result<(Lists, HashMap<ProposalKey, ProposalRow>), StoreError> {
    let lists = app.store.tag_lists().await?.into_iter();
    let found = app.store.proposals().await?.into_iter();
    Ok((
        lists
            .map(|list| ((list.repository.clone(), list.scope.clone()), list))
            .collect(),
        found.map(|row| (row.key.clone(), row)).collect(),
    ))
}

/// Tag lists by repository and scope.
type Lists = HashMap<(String, String), TagListRow>;

/// Tasks with rules, and the used tags of each image that a rule names.
///
/// The scope is that of the login for the image's registry.
struct UsedTags {
    tasks: Vec<Task>,
    by_image: HashMap<(String, String), (String, BTreeSet<String>)>,
}

impl UsedTags {
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
            tasks.extend(page.into_iter().filter(|task| {
                is_enabled(&task.definition) && !parse_rules(&task.definition).is_empty()
            }));
            if !full {
                break;
            }
        }
        let mut by_image: HashMap<(String, String), (String, BTreeSet<String>)> = HashMap::new();
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
                    let entry = by_image.entry((task, reference.name())).or_default();
                    entry.0 = scope;
                    entry.1.insert(tag.to_owned());
                }
            }
        }
        Ok(Self { tasks, by_image })
    }

    fn get(&self, task: &Task, repository: &str) -> Option<&(String, BTreeSet<String>)> {
        self.by_image.get(&(task.id.clone(), repository.to_owned()))
    }
}

/// Compares the rules with the existing tags. Updates the tag lists and proposals, and starts runs
/// that try newer tags.
pub(crate) async fn reconcile_rules(app: &App) -> Result<(), StoreError> {
    let used_tags = UsedTags::read(app).await?;
    let mut wanted = BTreeSet::new();
    for task in &used_tags.tasks {
        for (repository, ..) in parse_rules(&task.definition) {
            if let Some((scope, _)) = used_tags.get(task, &repository) {
                wanted.insert((repository, scope.clone()));
            }
        }
    }
    let now = app.clock.now_ms();
    app.store.set_tag_lists(&wanted, now).await?;
    let (lists, mut left) = read_stored(app).await?;
    let mut listed: HashMap<i64, Option<Vec<String>>> = HashMap::new();
    for task in &used_tags.tasks {
        for (repository, policy, rule) in parse_rules(&task.definition) {
            let Some((scope, used)) = used_tags.get(task, &repository) else {
                continue;
            };
            let list = lists.get(&(repository.clone(), scope.clone()));
            let tags = match list {
                None => None,
                Some(list) => {
                    let read = match listed.entry(list.id) {
                        Entry::Occupied(entry) => entry.into_mut(),
                        Entry::Vacant(entry) => entry.insert(app.store.tags(list).await?),
                    };
                    read.as_ref()
                }
            };
            let Some(tags) = tags else {
                // Earlier proposals stay until there is a list to compare them with.
                left.retain(|key, _| key.task_id != task.id || key.repository != repository);
                continue;
            };
            for (used, newest) in find_newer_tags(&policy, rule, used, tags) {
                let key = ProposalKey {
                    task_id: task.id.clone(),
                    repository: repository.clone(),
                    used: used.to_owned(),
                };
                let row = left.remove(&key);
                apply_rule(app, task, rule, (key, newest), row).await?;
            }
        }
    }
    let left: Vec<ProposalKey> = left.into_keys().collect();
    app.store.forget_proposals(&left).await
}

/// Returns the newer tags that a rule selects, each with the used tag.
///
/// A rule that starts runs selects at most one, because it sets one argument.
fn find_newer_tags<'t>(
    policy: &TagPolicy,
    rule: &BaseTagRule,
    used: &'t BTreeSet<String>,
    tags: &'t [String],
) -> Vec<(&'t str, &'t str)> {
    let Ok(selector) = TagSelector::new(policy) else {
        return Vec::new();
    };
    let newer = used.iter().filter_map(|used| {
        let newest = selector.choose(used, tags.iter().map(String::as_str));
        (newest != used).then_some((used.as_str(), newest))
    });
    let mut all: Vec<(&str, &str)> = newer.collect();
    if rule.starts_runs()
        && let Some((_, first)) = all.first()
    {
        let newest = selector.choose(first, all.iter().map(|(_, newest)| *newest));
        all.retain(|(_, tag)| *tag == newest);
        all.truncate(1);
    }
    all
}

/// Applies a rule to a newer tag, unless that was done before.
async fn apply_rule(
    app: &App,
    task: &Task,
    rule: &BaseTagRule,
    (key, newest): (ProposalKey, &str),
    row: Option<ProposalRow>,
) -> Result<(), StoreError> {
    let existing = row.filter(|row| row.newest == newest);
    let attempt = if !rule.starts_runs() {
        if existing.is_some() {
            return Ok(());
        }
        ProposalAction::Propose
    } else if existing.as_ref().is_some_and(|row| row.run.is_some()) {
        return Ok(());
    } else {
        let attempt = prepare_attempt(app, task, rule, &key, newest).await?;
        if let (ProposalAction::Blocked { reason }, Some(row)) = (&attempt, &existing)
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
            "started a run for a newer tag of a base image"
        );
        app.wake.notify_one();
        app.cancels.notify_one();
        if let Err(error) = app.store.send_hints(&[Hint::Enqueued]).await {
            tracing::debug!(%error, "failed to send a hint");
        }
    }
    Ok(())
}

/// Prepares the run that tries a newer tag, or returns the reason why it cannot start.
async fn prepare_attempt(
    app: &App,
    task: &Task,
    rule: &BaseTagRule,
    key: &ProposalKey,
    newest: &str,
) -> Result<ProposalAction, StoreError> {
    let ProposalKey {
        task_id,
        repository,
        used,
    } = key;
    let context = TriggerContext {
        trigger: "baseTag",
        triggered_by: "Image Update",
        base_tags: BTreeMap::from([(repository.clone(), newest.to_owned())]),
        ..TriggerContext::default()
    };
    let by = RequestContext {
        idempotency_key: Some(format!("base-tag/{task_id}/{repository}/{newest}")),
        ..RequestContext::default()
    };
    let blocked = |reason: String| Ok(ProposalAction::Blocked { reason });
    let draft = match create_from_trigger(app, task, context, by) {
        Ok(draft) => draft,
        Err(problems) => return blocked(format!("the task cannot run: {problems}")),
    };
    let missing = run_factory::find_missing_secrets(app, &draft).await?;
    if !missing.is_empty() {
        return blocked(run_factory::missing_secrets_message(
            &missing,
            Some(&task.definition.name),
        ));
    }
    match draft.seal(app) {
        Ok(mut run) => {
            let allowed = rule.semver.as_ref().or(rule.pattern.as_ref());
            run.origin.reason = Some(format!(
                "{repository} has the tag {newest}, which `{}` allows in place of {used}",
                allowed.map_or("", String::as_str)
            ));
            Ok(ProposalAction::Run(Box::new(run)))
        }
        Err(error) => blocked(format!("its secrets cannot be stored: {error}")),
    }
}

#[cfg(test)]
#[path = "tags_tests.rs"]
mod tests;
