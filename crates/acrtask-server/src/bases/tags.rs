//! Newer tags of base images, for tasks that have rules for them: lists of tags, what the rules make of these, and the
//! runs that try a newer tag.
//!
//! Everything is compared anew each time: the rules of tasks, the tags that their newest images stand on, and the tags that
//! there are. Invariants: each repository is listed once for each login, in the same budget as looks at tags; a tag
//! starts one run of a task, which is never repeated by itself, whatever becomes of it; a task's runs get a tag only
//! after a run has succeeded with it; no rule goes back to an older tag, or to one of another kind.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use acrtask_api::{
    image::{BaseProposal, BaseStatus, NewerTag, TagState},
    spec::{RunSpec, Work},
    task::{BaseTagRule, Task, TaskDefinition},
};
use acrtask_cascade::tags::{TagPolicy, allows, choose};
use acrtask_model::{ImageRef, RunState};
use acrtask_registry::Registry;
use acrtask_store::{
    Hint, Listed, ProposalKey, ProposalRow, StoreError, TagListRow, TaskFilter, Try, timestamp,
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

/// How often rules are compared with what there is.
const COMPARE: Duration = Duration::from_secs(30);
/// Lists that a server takes at once, and makes side by side.
const BATCH: u32 = 8;
/// Most tags of a repository.
const MAX_TAGS: usize = 100_000;
/// Most pages that they come in.
const MAX_PAGES: usize = 2_000;
/// Most rules of a task.
const MAX_RULES: usize = 50;
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
                if from.is_none() {
                    break Ok(std::mem::take(&mut tags));
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
        }
    }
}

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
    let lists: HashMap<(String, String), TagListRow> = app
        .store
        .tag_lists()
        .await?
        .into_iter()
        .map(|list| ((list.repository.clone(), list.scope.clone()), list))
        .collect();
    let mut left: HashMap<ProposalKey, ProposalRow> = app
        .store
        .proposals()
        .await?
        .into_iter()
        .map(|row| (row.key.clone(), row))
        .collect();
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
                    if !known.contains_key(&list.id) {
                        known.insert(list.id, app.store.tags(list).await?);
                    }
                    known.get(&list.id).and_then(Option::as_ref)
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
        return blocked(format!(
            "there is no secret `{}`; set it with `acrtask secret set`",
            missing.join("`, `")
        ));
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

/// How all rules for newer tags stand, of the tasks that `sees` lets through.
pub(crate) async fn proposals(
    app: &App,
    sees: impl Fn(Option<&str>) -> bool,
) -> Result<Vec<BaseProposal>, StoreError> {
    let in_use = InUse::read(app).await?;
    let lists: HashMap<(String, String), TagListRow> = app
        .store
        .tag_lists()
        .await?
        .into_iter()
        .map(|list| ((list.repository.clone(), list.scope.clone()), list))
        .collect();
    let mut rows: HashMap<ProposalKey, ProposalRow> = app
        .store
        .proposals()
        .await?
        .into_iter()
        .map(|row| (row.key.clone(), row))
        .collect();
    let mut all = Vec::new();
    for task in &in_use.tasks {
        if !sees(Some(&task.definition.name)) {
            continue;
        }
        for (repository, _, rule) in rules(&task.definition) {
            let place = in_use.of(task, &repository);
            let list = place.and_then(|(scope, _)| lists.get(&(repository.clone(), scope.clone())));
            let blank = BaseProposal {
                task: task.definition.name.clone(),
                image: repository.clone(),
                used: None,
                newest: None,
                rule: rule.clone(),
                state: TagState::Waiting,
                detail: None,
                run: None,
                found_at: None,
                checked_at: list.and_then(|list| list.checked_at).map(timestamp),
                next_check_at: list.map(|list| timestamp(list.next_check_at)),
            };
            let Some((_, used)) = place else {
                all.push(BaseProposal {
                    detail: Some(
                        "no image that the task's last run pushed stands on it, as far as is known"
                            .into(),
                    ),
                    ..blank
                });
                continue;
            };
            let mut here: Vec<BaseProposal> = Vec::new();
            for tag in used {
                let key = ProposalKey {
                    task_id: task.id.clone(),
                    repository: repository.clone(),
                    used: tag.clone(),
                };
                here.extend(rows.remove(&key).map(|row| newer(task, &blank, row)));
            }
            if here.is_empty() || !rule.starts_runs() {
                let quiet = used
                    .iter()
                    .filter(|tag| !here.iter().any(|one| one.used.as_ref() == Some(tag)))
                    .map(|tag| none_newer(&blank, tag, list));
                let quiet: Vec<BaseProposal> = quiet.collect();
                here.extend(quiet);
            }
            here.sort_by(|a, b| a.used.cmp(&b.used));
            all.extend(here);
        }
    }
    Ok(all)
}

/// Nothing newer is known of a tag in use.
fn none_newer(blank: &BaseProposal, used: &str, list: Option<&TagListRow>) -> BaseProposal {
    let (state, detail) = match list {
        None => (TagState::Waiting, None),
        Some(list) => match list.status {
            BaseStatus::New => (TagState::Waiting, None),
            BaseStatus::Ok => (TagState::Current, None),
            status => (
                TagState::Unlisted,
                Some(match &list.detail {
                    Some(detail) => format!("{}: {detail}", status.as_str()),
                    None => status.as_str().to_owned(),
                }),
            ),
        },
    };
    BaseProposal {
        used: Some(used.to_owned()),
        state,
        detail,
        ..blank.clone()
    }
}

/// A newer tag that is known.
fn newer(task: &Task, blank: &BaseProposal, row: ProposalRow) -> BaseProposal {
    let took = task.base_tags.get(&row.key.repository) == Some(&row.newest);
    let (state, detail) = if !blank.rule.starts_runs() {
        (TagState::Proposed, None)
    } else if let Some(reason) = row.blocked {
        (TagState::Blocked, Some(reason))
    } else {
        match &row.run {
            None => (TagState::Waiting, None),
            Some((_, Some(state))) if !state.is_final() => (TagState::Building, None),
            Some((_, Some(RunState::Succeeded))) => (TagState::Unused, Some(unused(blank, &row))),
            Some(_) if took => (TagState::Unused, Some(unused(blank, &row))),
            Some((run, _)) => (
                TagState::Failed,
                Some(format!(
                    "later runs use what was used before; `acrtask runs rerun {run}` tries it again"
                )),
            ),
        }
    };
    BaseProposal {
        used: Some(row.key.used),
        newest: Some(row.newest),
        state,
        detail,
        run: row.run.map(|(run, _)| run),
        found_at: Some(timestamp(row.found_at)),
        ..blank.clone()
    }
}

fn unused(blank: &BaseProposal, row: &ProposalRow) -> String {
    let place = match (&blank.rule.build_arg, &blank.rule.value) {
        (Some(arg), _) => format!("the build argument {arg}"),
        (None, Some(value)) => format!("the value {value}"),
        (None, None) => "its tag".to_owned(),
    };
    format!(
        "a run had it in {place} and succeeded, and the image stands on {} still: use {place} in FROM",
        row.key.used
    )
}

/// Newer tags in place of a base, as rules of the tasks allow them.
pub(crate) fn newer_than(proposals: &[BaseProposal], base: &str) -> Vec<NewerTag> {
    let Ok(reference) = base.parse::<ImageRef>() else {
        return Vec::new();
    };
    let name = reference.name();
    let here = proposals
        .iter()
        .filter(|one| one.image == name && one.used.as_deref() == reference.tag());
    here.filter_map(|one| {
        Some(NewerTag {
            task: one.task.clone(),
            tag: one.newest.clone()?,
            state: one.state,
            run: one.run.clone(),
        })
    })
    .collect()
}

/// What is wrong with the rules of a task, each with its key.
pub(crate) fn problems(task: &TaskDefinition) -> Vec<String> {
    let mut problems = Vec::new();
    let Some(trigger) = &task.triggers.base_image else {
        return problems;
    };
    if trigger.tags.len() > MAX_RULES {
        problems.push(format!(
            "`triggers.baseImage.tags` has {} rules, and a task may have {MAX_RULES}",
            trigger.tags.len()
        ));
    }
    let mut images = BTreeSet::new();
    let mut places = BTreeSet::new();
    for (at, rule) in trigger.tags.iter().enumerate() {
        let mut problem = |key: &str, text: String| {
            let dot = if key.is_empty() { "" } else { "." };
            problems.push(format!("`triggers.baseImage.tags[{at}]{dot}{key}`: {text}"));
        };
        match rule.image.parse::<ImageRef>() {
            Err(error) => problem("image", error.to_string()),
            Ok(image) => {
                if image.tag().is_some() || image.digest().is_some() {
                    problem(
                        "image",
                        format!(
                            "`{}` names one tag: write `{}`, and say with `semver` or `pattern` which tags",
                            rule.image,
                            image.name()
                        ),
                    );
                }
                if !images.insert(image.name()) {
                    problem(
                        "image",
                        format!("there are two rules for `{}`: join them", image.name()),
                    );
                }
            }
        }
        match policy(rule) {
            None => problem(
                "",
                "give one of `semver` (a range, like `^3.20`) and `pattern` (a regular expression)"
                    .into(),
            ),
            Some(policy) => {
                if let Err(error) = choose(&policy, "", []).and(allows(&policy, "")) {
                    let key = if rule.semver.is_some() {
                        "semver"
                    } else {
                        "pattern"
                    };
                    problem(key, error.to_string());
                }
            }
        }
        if rule.build_arg.is_some() && rule.value.is_some() {
            problem(
                "",
                "give one of `buildArg` and `value`, or neither for a proposal".into(),
            );
        }
        if let Some(arg) = &rule.build_arg {
            match &task.build {
                None => problem(
                    "buildArg",
                    "the task has no `build`, whose argument it could be: give `value`, and hand \
                     `{{.Values.NAME}}` on in the task file"
                        .into(),
                ),
                Some(build) if build.secret_args.contains(arg) => {
                    problem("buildArg", format!("`{arg}` is one of `build.secretArgs`"));
                }
                Some(_) => {}
            }
            if !is_name(arg) {
                problem(
                    "buildArg",
                    format!("`{arg}` is not the name of a build argument: letters, digits and `_`"),
                );
            }
        }
        if let Some(value) = &rule.value
            && !is_name(value)
        {
            problem(
                "value",
                format!("`{value}` cannot stand behind `.Values.`: write letters, digits and `_`"),
            );
        }
        let place = (&rule.build_arg, &rule.value);
        if rule.starts_runs() && !places.insert(place) {
            problem("", "another rule gives its tag to the same place".into());
        }
    }
    problems
}

/// A name that Dockerfiles and templates can say.
fn is_name(text: &str) -> bool {
    let first = text.chars().next();
    first.is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && text.len() <= 100
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
#[path = "tags_tests.rs"]
mod tests;
