//! What a delivery leads to for each task: the rules of `acrtask-trigger` applied to the tasks of its repository, and runs
//! made of what they decide. No I/O: `accept.rs` checks the rest in the database.

use std::collections::BTreeMap;

use acrtask_api::{
    spec::ContextSource,
    task::{Forks, Task},
    webhook::WebhookDefinition,
};
use acrtask_store::{Ends, LeadsTo, Looked, NewRun};
use acrtask_trigger::{
    Decision, Event, Lane, Provider, RegistryEvent, RegistryPush, Repository, RepositoryUrl, decide,
};

use super::{
    index::{Entry, Tasks},
    sender::pull_request_ref,
};
use crate::{
    App,
    forge::Target,
    submit::{
        Request,
        event::{Happening, from_event},
    },
};

/// What a delivery is, for those who read of it later, and what it leads to.
#[derive(Debug, Default)]
pub(crate) struct Look {
    pub(crate) kind: &'static str,
    pub(crate) repository: Option<String>,
    pub(crate) summary: String,
    /// Why no task was looked at.
    pub(crate) note: Option<String>,
    pub(crate) evaluated: Vec<Evaluated>,
}

/// A task that an event was evaluated for, with what is still to be checked in the database.
#[derive(Debug)]
pub(crate) struct Evaluated {
    pub(crate) task_id: String,
    pub(crate) looked: Looked,
    /// Stored secrets that its run needs.
    pub(crate) needs: Vec<String>,
    /// The pushed image that its run is because of.
    pub(crate) image: Option<RegistryPush>,
}

/// Where a delivery came to, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Came<'a> {
    pub(crate) app: &'a App,
    pub(crate) tasks: &'a Tasks,
    pub(crate) webhook: &'a str,
    pub(crate) definition: &'a WebhookDefinition,
    /// It is looked at once more, because somebody asked for it.
    pub(crate) again: bool,
}

/// What the events of a forge lead to.
pub(crate) fn at_events(came: Came<'_>, provider: Provider, events: &[Event]) -> Look {
    let mut whole = Look::default();
    for event in events {
        let look = at_event(came, provider, event);
        if whole.kind.is_empty() {
            whole.kind = look.kind;
            whole.repository = look.repository;
            whole.summary = look.summary;
            whole.note = look.note;
        } else {
            whole.summary = format!("{}; {}", whole.summary, look.summary);
            whole.note = whole.note.or(look.note);
        }
        whole.evaluated.extend(look.evaluated);
    }
    if !whole.evaluated.is_empty() {
        whole.note = None;
    }
    whole
}

fn at_event(came: Came<'_>, provider: Provider, event: &Event) -> Look {
    let (kind, summary) = described(event);
    let mut look = Look {
        kind,
        summary,
        ..Look::default()
    };
    let Some(repository) = event.repository() else {
        look.note = Some(match event {
            Event::Declined { reason } => reason.clone(),
            _ => "the sender only tried whether it is heard".into(),
        });
        return look;
    };
    look.repository = Some(name_of(repository));
    let limits: Vec<RepositoryUrl> = came
        .definition
        .repositories
        .iter()
        .filter_map(|url| RepositoryUrl::parse(url))
        .collect();
    let is_limited = !came.definition.repositories.is_empty();
    if is_limited && let Some(outside) = repository.outside(&limits) {
        // In the one spelling, which holds no login.
        let outside = RepositoryUrl::parse(outside)
            .map_or_else(|| outside.escape_debug().to_string(), |url| url.to_string());
        look.note = Some(format!(
            "the webhook `{}` may not speak of {outside}",
            came.webhook
        ));
        return look;
    }
    let mut entries = came.tasks.of(repository);
    // A name without a URL, or another port, may be that of a repository beyond the limit.
    entries.retain(|entry| {
        let own = entry.repository.as_ref();
        !is_limited || own.is_some_and(|own| limits.contains(own))
    });
    let of_repository = entries.len();
    for entry in entries {
        if let Some(rules) = &entry.commits {
            let decided = match rules {
                Ok(_) if !entry.task.definition.enabled => Decision::Suppressed {
                    reason: "the task is disabled".into(),
                },
                Ok(rules) => decide(rules, event),
                Err(reason) => Decision::Suppressed {
                    reason: format!("the task's trigger cannot be used: {reason}"),
                },
            };
            look.evaluated
                .push(leads_to(came, provider, event, entry, decided));
        }
    }
    if look.evaluated.is_empty() {
        look.note = Some(match of_repository {
            0 => "no task has this repository".into(),
            1 => "one task has this repository, and does not run at commits".into(),
            many => format!("{many} tasks have this repository, and none runs at commits"),
        });
    }
    look
}

/// A repository, for people.
fn name_of(repository: &Repository) -> String {
    let url = repository
        .urls
        .iter()
        .find_map(|url| RepositoryUrl::parse(url));
    url.map_or_else(|| repository.full_name.clone(), |url| url.to_string())
}

fn described(event: &Event) -> (&'static str, String) {
    use acrtask_trigger::PullRequestAction::{Closed, Opened, Updated};
    match event {
        Event::Push(push) => (
            "push",
            match &push.after {
                Some(commit) => {
                    format!(
                        "commit {} came to the branch `{}`",
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
                Some(commit) => format!("the tag `{}` is at {}", tag.tag, commit.short()),
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
        Event::Ping => ("ping", "the sender tried whether it is heard".into()),
        Event::Declined { reason } => ("declined", reason.clone()),
    }
}

fn leads_to(
    came: Came<'_>,
    provider: Provider,
    event: &Event,
    entry: &Entry,
    decided: Decision,
) -> Evaluated {
    let task = &entry.task;
    let mut needs = Vec::new();
    let nothing = |reason: String| (reason, LeadsTo::Nothing);
    let (reason, leads_to) = match decided {
        Decision::Suppressed { reason } => nothing(reason),
        Decision::CancelPullRequest { number, reason } => {
            let lane = lane_name(&task.id, &Lane::PullRequest(number));
            let ends = match event {
                Event::PullRequest(request) if request.from_fork => Ends::Unapproved,
                _ => Ends::All,
            };
            (reason, LeadsTo::Cancel { lane, ends })
        }
        Decision::Run {
            commit,
            lane,
            newest_wins,
            from_fork,
            reason,
        } => {
            let forks = task.definition.triggers.commit.as_ref();
            let forks = forks.map_or(Forks::Approve, |trigger| trigger.forks);
            let full = matches!(commit.as_str().len(), 40 | 64);
            if from_fork && forks == Forks::Ignore {
                nothing(format!(
                    "{reason}; the task does not run for pull requests from other repositories"
                ))
            } else if from_fork && !full {
                nothing(format!(
                    "the sender tells only the first digits of commit {commit}, which comes from another repository: \
                     what is approved has to be named in full"
                ))
            } else {
                let happening =
                    happened(provider, event, entry, commit.as_str(), &lane, newest_wins);
                let by = Request {
                    requested_by: Some(format!("webhook {}", came.webhook)),
                    ..Request::default()
                };
                let stranger = from_fork;
                let happening = Happening {
                    stranger,
                    ..happening
                };
                match made(came.app, task, happening, by, &mut needs) {
                    Err(reason) => nothing(format!("no run can be made of the task: {reason}")),
                    Ok(new) => {
                        let reason = if stranger {
                            format!("{reason}; it waits for an approval")
                        } else {
                            reason
                        };
                        let status = Target::new(came, provider, event, task, commit.as_str());
                        let run = LeadsTo::Run {
                            new: Box::new(new),
                            newest_wins,
                            may_join: !came.again,
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
        looked: Looked {
            task: task.definition.name.clone(),
            kind: trigger_of(event).0.into(),
            reason,
            leads_to,
        },
        needs,
        image: None,
    }
}

/// Makes the run of `task` for what happened, and adds the stored secrets that it needs to `needs`.
fn made(
    app: &App,
    task: &Task,
    happening: Happening,
    by: Request,
    needs: &mut Vec<String>,
) -> Result<NewRun, String> {
    let draft = from_event(app, task, happening, by).map_err(|problems| problems.to_string())?;
    needs.extend(draft.stored().1.map(str::to_owned));
    draft.seal(app).map_err(|error| error.to_string())
}

/// A lane of a task, as runs have it.
fn lane_name(task: &str, lane: &Lane) -> String {
    format!("{task} {lane}")
}

fn trigger_of(event: &Event) -> (&'static str, &'static str) {
    match event {
        Event::Tag(_) => ("tag", "Tag"),
        Event::PullRequest(_) => ("pull-request", "PullRequest"),
        Event::Push(_) | Event::Ping | Event::Declined { .. } => ("commit", "Commit"),
    }
}

fn happened(
    provider: Provider,
    event: &Event,
    entry: &Entry,
    commit: &str,
    lane: &Lane,
    newest_wins: bool,
) -> Happening {
    let definition = &entry.task.definition;
    let context = definition.context.as_deref().unwrap_or_default();
    let (own, fragment) = context.split_once('#').unwrap_or((context, ""));
    let folder = fragment.split_once(':').map(|(_, folder)| folder);
    let (trigger, triggered_by) = trigger_of(event);
    let (mut branch, mut git_tag) = (String::new(), String::new());
    let mut address = own.to_owned();
    let reference = match (event, lane) {
        (Event::PullRequest(request), _) => {
            branch.clone_from(&request.head_branch);
            match pull_request_ref(provider, request.number) {
                Some(reference) => reference,
                None => {
                    // Its commits are where it comes from.
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
        (_, Lane::Tag(tag)) => {
            git_tag.clone_from(tag);
            format!("refs/tags/{tag}")
        }
        (_, Lane::Branch(name)) => {
            branch.clone_from(name);
            branch_ref(name)
        }
        (_, Lane::PullRequest(_)) => String::new(),
    };
    let full = matches!(commit.len(), 40 | 64);
    let reference = if full { reference } else { commit.to_owned() };
    let folder = folder.map_or(String::new(), |folder| format!(":{folder}"));
    Happening {
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
        lane: Some(lane_name(&entry.task.id, lane)),
        newest_wins,
        stranger: false,
    }
}

/// A branch, as the end of a context's URL names it.
fn branch_ref(name: &str) -> String {
    if name.starts_with("refs/") {
        format!("refs/heads/{name}")
    } else {
        name.to_owned()
    }
}

/// What pushes of images lead to.
pub(crate) fn at_registry(came: Came<'_>, event: &RegistryEvent) -> Look {
    let mut look = Look::default();
    let images = match event {
        RegistryEvent::Pushed { images } => images,
        RegistryEvent::Ping => {
            look.kind = "ping";
            look.summary = "the sender tried whether it is heard".into();
            look.note = Some("the sender only tried whether it is heard".into());
            return look;
        }
        RegistryEvent::Handshake { .. } => {
            look.kind = "handshake";
            look.summary = "the sender asked whether its deliveries are wanted".into();
            look.note = Some("it was answered that they are".into());
            return look;
        }
        RegistryEvent::Declined { reason } => {
            look.kind = "declined";
            look.summary.clone_from(reason);
            look.note = Some(reason.clone());
            return look;
        }
    };
    look.kind = "registryPush";
    look.repository = images
        .first()
        .map(|image| format!("{}/{}", image.registry, image.repository));
    look.summary = match images.as_slice() {
        [image] => format!("{image} was pushed"),
        [image, rest @ ..] => format!("{image} and {} more were pushed", rest.len()),
        [] => "nothing was pushed".into(),
    };
    for image in images {
        for entry in came.tasks.of_images() {
            if let Some(evaluated) = at_image(came, image, entry) {
                look.evaluated.push(evaluated);
            }
        }
    }
    if look.evaluated.is_empty() {
        look.note = Some("no task runs for this repository".into());
    }
    look
}

fn at_image(came: Came<'_>, image: &RegistryPush, entry: &Entry) -> Option<Evaluated> {
    let task = &entry.task;
    let mut needs = Vec::new();
    let decided = match entry.images.as_ref()? {
        Err(reason) => Err(format!("the task's trigger cannot be used: {reason}")),
        Ok(rules) if !rules.concerns(image) => return None,
        Ok(_) if !task.definition.enabled => Err("the task is disabled".into()),
        Ok(rules) => rules.decide(image),
    };
    let (reason, leads_to) = match decided {
        Err(reason) => (reason, LeadsTo::Nothing),
        Ok(reason) => {
            let happening = Happening {
                trigger: "registry-push",
                triggered_by: "RegistryPush",
                set: pushed_values(image),
                ..Happening::default()
            };
            let by = Request {
                requested_by: Some(format!("webhook {}", came.webhook)),
                ..Request::default()
            };
            match made(came.app, task, happening, by, &mut needs) {
                Err(error) => (
                    format!("no run can be made of the task: {error}"),
                    LeadsTo::Nothing,
                ),
                Ok(new) => (
                    reason,
                    LeadsTo::Run {
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
        looked: Looked {
            task: task.definition.name.clone(),
            kind: "registry-push".into(),
            reason,
            leads_to,
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
