//! Evaluation of a delivery for each task: applies the rules of `acrtask-trigger`, and builds runs.
//!
//! No I/O: `accept.rs` checks in the database what is left to check.

use std::collections::BTreeMap;

use acrtask_api::{
    spec::ContextSource,
    task::{Forks, Task},
    webhook::WebhookDefinition,
};
use acrtask_store::{CancelScope, NewRun, TriggerAction, TriggerDecision};
use acrtask_trigger::{
    Decision, Event, Provider, RefKey, RegistryEvent, RegistryPush, Repository, RepositoryUrl,
    decide,
};

use super::{
    index::{Entry, TaskSnapshot},
    sender::pull_request_ref,
};
use crate::{
    App,
    notifications::Target,
    run_factory::{
        RequestContext,
        trigger::{TriggerContext, create_from_trigger},
    },
};

/// Description of a delivery for later readers, with its decision for each task.
#[derive(Debug, Default)]
pub(crate) struct Evaluation {
    pub(crate) kind: &'static str,
    pub(crate) repository: Option<String>,
    pub(crate) summary: String,
    /// The reason if the delivery was evaluated for no task.
    pub(crate) note: Option<String>,
    pub(crate) evaluated: Vec<Evaluated>,
}

/// Decision for one task, with the facts that are still to be checked in the database.
#[derive(Debug)]
pub(crate) struct Evaluated {
    pub(crate) task_id: String,
    pub(crate) decision: TriggerDecision,
    /// Stored secrets that the run requires.
    pub(crate) needs: Vec<String>,
    /// The pushed image that caused the run. `None` for an event of a forge.
    pub(crate) image: Option<RegistryPush>,
}

/// The webhook and the tasks for which a delivery is evaluated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeliveryContext<'a> {
    pub(crate) app: &'a App,
    pub(crate) tasks: &'a TaskSnapshot,
    pub(crate) webhook: &'a str,
    pub(crate) definition: &'a WebhookDefinition,
    /// A user requested this evaluation of an earlier delivery.
    pub(crate) is_redelivery: bool,
}

/// Evaluates the events of a forge.
pub(crate) async fn evaluate_events(
    context: DeliveryContext<'_>,
    provider: Provider,
    events: &[Event],
) -> Evaluation {
    let mut combined = Evaluation::default();
    for event in events {
        let evaluation = evaluate_event(context, provider, event).await;
        if combined.kind.is_empty() {
            combined.kind = evaluation.kind;
            combined.repository = evaluation.repository;
            combined.summary = evaluation.summary;
            combined.note = evaluation.note;
        } else {
            combined.summary = format!("{}; {}", combined.summary, evaluation.summary);
            combined.note = combined.note.or(evaluation.note);
        }
        combined.evaluated.extend(evaluation.evaluated);
    }
    if !combined.evaluated.is_empty() {
        combined.note = None;
    }
    combined
}

async fn evaluate_event(
    context: DeliveryContext<'_>,
    provider: Provider,
    event: &Event,
) -> Evaluation {
    let (kind, summary) = describe_event(event);
    let mut evaluation = Evaluation {
        kind,
        summary,
        ..Evaluation::default()
    };
    let Some(repository) = event.repository() else {
        evaluation.note = Some(match event {
            Event::Declined { reason } => reason.clone(),
            _ => "the sender only tested the connection".into(),
        });
        return evaluation;
    };
    evaluation.repository = Some(repository_name(repository));
    let limits: Vec<RepositoryUrl> = context
        .definition
        .repositories
        .iter()
        .filter_map(|url| RepositoryUrl::parse(url))
        .collect();
    let is_limited = !context.definition.repositories.is_empty();
    if is_limited && let Some(outside) = repository.find_url_outside(&limits) {
        // In normalized spelling, which contains no login.
        let outside = RepositoryUrl::parse(outside)
            .map_or_else(|| outside.escape_debug().to_string(), |url| url.to_string());
        evaluation.note = Some(format!(
            "the webhook `{}` is not allowed to report events of {outside}",
            context.webhook
        ));
        return evaluation;
    }
    let mut entries = context.tasks.in_repository(repository);
    // A name without a URL, or another port, may belong to a repository outside the limit.
    entries.retain(|entry| {
        let own = entry.repository.as_ref();
        !is_limited || own.is_some_and(|own| limits.contains(own))
    });
    let may_start = |task: &Task| context.definition.may_start(&task.definition.name);
    entries.retain(|entry| may_start(&entry.task));
    let in_repository = entries.len();
    for entry in entries {
        // Other requests proceed between the decisions, whatever the patterns of the tasks cost.
        tokio::task::yield_now().await;
        if let Some(rules) = &entry.commits {
            let decision = match rules {
                Ok(_) if !entry.task.definition.enabled => Decision::Suppressed {
                    reason: "the task is disabled".into(),
                },
                Ok(rules) => decide(rules, event),
                Err(reason) => Decision::Suppressed {
                    reason: format!("the task's trigger is invalid: {reason}"),
                },
            };
            evaluation
                .evaluated
                .push(apply_decision(context, provider, event, entry, decision));
        }
    }
    if evaluation.evaluated.is_empty() {
        evaluation.note = Some(match in_repository {
            0 => match &context.definition.tasks {
                Some(tasks) => format!("no task of `{tasks}` has this repository"),
                None => "no task has this repository".into(),
            },
            1 => "one task has this repository, and commits do not trigger it".into(),
            many => format!("{many} tasks have this repository, and commits trigger none of them"),
        });
    }
    evaluation
}

/// Returns the readable name of a repository.
fn repository_name(repository: &Repository) -> String {
    let url = repository
        .urls
        .iter()
        .find_map(|url| RepositoryUrl::parse(url));
    url.map_or_else(|| repository.full_name.clone(), |url| url.to_string())
}

fn describe_event(event: &Event) -> (&'static str, String) {
    use acrtask_trigger::PullRequestAction::{Closed, Opened, Updated};
    match event {
        Event::Push(push) => (
            "push",
            match &push.after {
                Some(commit) => {
                    format!(
                        "commit {} was pushed to the branch `{}`",
                        commit.short(),
                        push.branch
                    )
                }
                None => format!("the branch `{}` was deleted", push.branch),
            },
        ),
        Event::Tag(tag) => (
            "tag",
            match &tag.after {
                Some(commit) => format!("the tag `{}` points to {}", tag.tag, commit.short()),
                None => format!("the tag `{}` was deleted", tag.tag),
            },
        ),
        Event::PullRequest(request) => {
            let happened = match request.action {
                Opened => "was opened",
                Updated => "was updated",
                Closed { merged: true } => "was merged",
                Closed { merged: false } => "was closed",
            };
            (
                "pullRequest",
                format!("pull request {} {happened}", request.number),
            )
        }
        Event::Ping => ("ping", "the sender tested the connection".into()),
        Event::Declined { reason } => ("declined", reason.clone()),
    }
}

fn apply_decision(
    context: DeliveryContext<'_>,
    provider: Provider,
    event: &Event,
    entry: &Entry,
    decision: Decision,
) -> Evaluated {
    let task = &entry.task;
    let mut needs = Vec::new();
    let nothing = |reason: String| (reason, TriggerAction::Ignore);
    let (reason, leads_to) = match decision {
        Decision::Suppressed { reason } => nothing(reason),
        Decision::CancelPullRequest { number, reason } => {
            let ref_key = ref_key_of(&task.id, &RefKey::PullRequest(number));
            let ends = match event {
                Event::PullRequest(request) if request.from_fork => CancelScope::Unapproved,
                _ => CancelScope::All,
            };
            (
                reason,
                TriggerAction::Cancel {
                    ref_key,
                    scope: ends,
                },
            )
        }
        Decision::Run {
            commit,
            ref_key,
            newest_wins,
            from_fork,
            reason,
        } => {
            let forks = task.definition.triggers.commit.as_ref();
            let forks = forks.map_or(Forks::Approve, |trigger| trigger.forks);
            let full = matches!(commit.as_str().len(), 40 | 64);
            if from_fork && forks == Forks::Ignore {
                nothing(format!(
                    "{reason}; the task ignores pull requests from other repositories"
                ))
            } else if from_fork && !full {
                nothing(format!(
                    "the sender sent only the first digits of commit {commit}, which is from another repository: \
                     an approval requires the full name of the commit"
                ))
            } else {
                let trigger_context = build_trigger_context(
                    provider,
                    event,
                    entry,
                    commit.as_str(),
                    &ref_key,
                    newest_wins,
                );
                let by = RequestContext {
                    requested_by: Some(format!("webhook {}", context.webhook)),
                    ..RequestContext::default()
                };
                let trigger_context = TriggerContext {
                    from_fork,
                    ..trigger_context
                };
                match build_run(context.app, task, trigger_context, by, &mut needs) {
                    Err(reason) => nothing(format!(
                        "the server cannot create a run of the task: {reason}"
                    )),
                    Ok(new) => {
                        let reason = if from_fork {
                            format!("{reason}; the run waits for an approval")
                        } else {
                            reason
                        };
                        let status = Target::new(context, provider, event, task, commit.as_str());
                        let run = TriggerAction::Run {
                            new: Box::new(new),
                            newest_wins,
                            may_join: !context.is_redelivery,
                            status: status.map(|target| target.to_json()),
                        };
                        (reason, run)
                    }
                }
            }
        }
    };
    Evaluated {
        task_id: task.id.clone(),
        decision: TriggerDecision {
            task: task.definition.name.clone(),
            kind: trigger_names(event).0.into(),
            reason,
            action: leads_to,
        },
        needs,
        image: None,
    }
}

/// Builds the run of `task` for a trigger, and adds the stored secrets that it requires to `needs`.
fn build_run(
    app: &App,
    task: &Task,
    trigger_context: TriggerContext,
    by: RequestContext,
    needs: &mut Vec<String>,
) -> Result<NewRun, String> {
    let draft = create_from_trigger(app, task, trigger_context, by)
        .map_err(|problems| problems.to_string())?;
    needs.extend(draft.stored_secrets().map(str::to_owned));
    draft.seal(app).map_err(|error| error.to_string())
}

/// Returns the ref key of a task as runs store it.
fn ref_key_of(task: &str, ref_key: &RefKey) -> String {
    format!("{task} {ref_key}")
}

fn trigger_names(event: &Event) -> (&'static str, &'static str) {
    match event {
        Event::Tag(_) => ("tag", "Tag"),
        Event::PullRequest(_) => ("pullRequest", "PullRequest"),
        Event::Push(_) | Event::Ping | Event::Declined { .. } => ("commit", "Commit"),
    }
}

fn build_trigger_context(
    provider: Provider,
    event: &Event,
    entry: &Entry,
    commit: &str,
    ref_key: &RefKey,
    newest_wins: bool,
) -> TriggerContext {
    let definition = &entry.task.definition;
    let context = definition.context.as_deref().unwrap_or_default();
    let (own, fragment) = context.split_once('#').unwrap_or((context, ""));
    let folder = fragment.split_once(':').map(|(_, folder)| folder);
    let (trigger, triggered_by) = trigger_names(event);
    let (mut branch, mut git_tag) = (String::new(), String::new());
    let mut address = own.to_owned();
    let reference = match (event, ref_key) {
        (Event::PullRequest(request), _) => {
            branch.clone_from(&request.head_branch);
            match pull_request_ref(provider, request.number) {
                Some(reference) => reference,
                None => {
                    // The commits are only in the repository from which the pull request comes.
                    let head = request.head_repository.as_ref();
                    let elsewhere = head
                        .filter(|_| request.from_fork)
                        .and_then(|head| head.urls.first());
                    if let Some(url) = elsewhere {
                        address.clone_from(url);
                    }
                    branch_ref(&request.head_branch)
                }
            }
        }
        (_, RefKey::Tag(tag)) => {
            git_tag.clone_from(tag);
            format!("refs/tags/{tag}")
        }
        (_, RefKey::Branch(name)) => {
            branch.clone_from(name);
            branch_ref(name)
        }
        (_, RefKey::PullRequest(_)) => String::new(),
    };
    let full = matches!(commit.len(), 40 | 64);
    let reference = if full { reference } else { commit.to_owned() };
    let folder = folder.map_or(String::new(), |folder| format!(":{folder}"));
    TriggerContext {
        base_tags: BTreeMap::new(),
        trigger,
        triggered_by,
        context: Some(ContextSource::Url {
            url: format!("{address}#{reference}{folder}"),
            commit: full.then(|| commit.to_owned()),
            submodules: definition.submodules,
            lfs: definition.lfs,
        }),
        commit: commit.to_owned(),
        branch,
        git_tag,
        repository: own.to_owned(),
        set: BTreeMap::new(),
        lane: Some(ref_key_of(&entry.task.id, ref_key)),
        newest_wins,
        from_fork: false,
    }
}

/// Returns the fragment that names a branch in the URL of a context.
fn branch_ref(name: &str) -> String {
    if name.starts_with("refs/") {
        format!("refs/heads/{name}")
    } else {
        name.to_owned()
    }
}

/// Evaluates the event of a registry.
pub(crate) async fn evaluate_registry_event(
    context: DeliveryContext<'_>,
    event: &RegistryEvent,
) -> Evaluation {
    let mut evaluation = Evaluation::default();
    let images = match event {
        RegistryEvent::Pushed { images } => images,
        RegistryEvent::Ping => {
            evaluation.kind = "ping";
            evaluation.summary = "the sender tested the connection".into();
            evaluation.note = Some("the sender only tested the connection".into());
            return evaluation;
        }
        RegistryEvent::Handshake { .. } => {
            evaluation.kind = "handshake";
            evaluation.summary = "the sender asked for permission to deliver".into();
            evaluation.note = Some("the server granted the permission".into());
            return evaluation;
        }
        RegistryEvent::Declined { reason } => {
            evaluation.kind = "declined";
            evaluation.summary.clone_from(reason);
            evaluation.note = Some(reason.clone());
            return evaluation;
        }
    };
    evaluation.kind = "registryPush";
    evaluation.repository = images
        .first()
        .map(|image| format!("{}/{}", image.registry, image.repository));
    evaluation.summary = match images.as_slice() {
        [image] => format!("{image} was pushed"),
        [image, rest @ ..] => format!("{image} and {} more were pushed", rest.len()),
        [] => "nothing was pushed".into(),
    };
    let may_start = |task: &Task| context.definition.may_start(&task.definition.name);
    for image in images {
        let entries = context.tasks.with_image_triggers().iter();
        for entry in entries.filter(|entry| may_start(&entry.task)) {
            tokio::task::yield_now().await;
            if let Some(evaluated) = evaluate_image(context, image, entry) {
                evaluation.evaluated.push(evaluated);
            }
        }
    }
    if evaluation.evaluated.is_empty() {
        evaluation.note = Some("this repository triggers no task".into());
    }
    evaluation
}

fn evaluate_image(
    context: DeliveryContext<'_>,
    image: &RegistryPush,
    entry: &Entry,
) -> Option<Evaluated> {
    let task = &entry.task;
    let mut needs = Vec::new();
    let decision = match entry.images.as_ref()? {
        Err(reason) => Err(format!("the task's trigger is invalid: {reason}")),
        Ok(rules) if !rules.concerns(image) => return None,
        Ok(_) if !task.definition.enabled => Err("the task is disabled".into()),
        Ok(rules) => rules.decide(image),
    };
    let (reason, leads_to) = match decision {
        Err(reason) => (reason, TriggerAction::Ignore),
        Ok(reason) => {
            let trigger_context = TriggerContext {
                trigger: "registryPush",
                triggered_by: "RegistryPush",
                set: pushed_values(image),
                ..TriggerContext::default()
            };
            let by = RequestContext {
                requested_by: Some(format!("webhook {}", context.webhook)),
                ..RequestContext::default()
            };
            match build_run(context.app, task, trigger_context, by, &mut needs) {
                Err(error) => (
                    format!("the server cannot create a run of the task: {error}"),
                    TriggerAction::Ignore,
                ),
                Ok(new) => (
                    reason,
                    TriggerAction::Run {
                        new: Box::new(new),
                        newest_wins: false,
                        may_join: false,
                        status: None,
                    },
                ),
            }
        }
    };
    Some(Evaluated {
        task_id: task.id.clone(),
        decision: TriggerDecision {
            task: task.definition.name.clone(),
            kind: "registryPush".into(),
            reason,
            action: leads_to,
        },
        needs,
        image: Some(image.clone()),
    })
}

fn pushed_values(image: &RegistryPush) -> BTreeMap<String, String> {
    let mut values = BTreeMap::from([
        ("pushedImage".to_owned(), image.to_string()),
        ("pushedRegistry".to_owned(), image.registry.clone()),
        ("pushedRepository".to_owned(), image.repository.clone()),
    ]);
    if let Some(tag) = &image.tag {
        values.insert("pushedTag".into(), tag.clone());
    }
    if let Some(digest) = &image.digest {
        values.insert("pushedDigest".into(), digest.to_string());
    }
    values
}
