//! Creation of runs from requests and from stored tasks.

use std::collections::{BTreeMap, BTreeSet};

use acrtask_api::{
    run::{CreateRun, StartTask},
    spec::{ContextSource, RunSource, RunSpec, SharedCache, Variables},
    task::Task,
};
use acrtask_model::{ContributionSource, Principal, TrustDomain};
use acrtask_registry::credentials::canonical_host;

use super::{RequestContext, RunDraft, RunSecrets, build_draft, cache_name::cache_name, domain_of};
use crate::{
    App,
    validate::{self, Problems, check_task},
};

/// Creates a run without a stored task.
///
/// A name in `spec.secrets` without a value refers to a stored secret of all tasks.
///
/// # Errors
/// Returns all problems of the request.
pub fn create_from_request(
    app: &App,
    request: CreateRun,
    principal: &Principal,
    by: RequestContext,
) -> Result<RunDraft, Problems> {
    let mut problems = Problems::default();
    let mut spec = request.spec;
    // The author of the whole spec may choose its values freely.
    spec.untrusted_values.clear();
    validate::check_spec(&spec, &mut problems);
    validate::check_queue(&request.queue, &mut problems);
    validate::check_sent(&request.secrets, &request.credentials, &mut problems);
    if spec.cache != SharedCache::Off {
        problems.add_rule("`spec.cache` is only for runs of stored tasks: leave it out");
    }
    let stored = spec
        .secrets
        .iter()
        .filter(|name| !request.secrets.contains_key(*name))
        .map(|name| (name.clone(), name.clone()))
        .collect();
    add_names(&mut spec.secrets, request.secrets.keys());
    for name in &spec.build_secrets {
        if !spec.secrets.contains(name) {
            problems.add_rule(format!(
                "`spec.buildSecrets` names `{name}`, which is not in `spec.secrets`"
            ));
        }
    }
    if spec.variables.triggered_by.is_empty() {
        spec.variables.triggered_by = "Manual".into();
    }
    problems.into_result()?;
    let mut credentials = request.credentials;
    for credential in &mut credentials {
        credential.host = canonical_host(&credential.host);
    }
    let secrets = RunSecrets {
        values: request.secrets,
        credentials,
        stored,
    };
    let domain = TrustDomain::Principal {
        by: principal.clone(),
    };
    Ok(build_draft(
        app,
        domain,
        None,
        spec,
        request.queue,
        secrets,
        "manual",
        by,
    ))
}

/// Creates a run of a stored task. The caller has checked that the task is enabled.
///
/// `starter` is the principal if it may not write the task. Its values are untrusted. If it sends
/// files, a task file or secrets, the run gets its own trust domain, because BuildKit leaves
/// secrets out of the keys of cached layers.
///
/// # Errors
/// Returns all problems of the request and of the task.
pub fn create_from_task(
    app: &App,
    task: &Task,
    start: StartTask,
    starter: Option<&Principal>,
    by: RequestContext,
) -> Result<RunDraft, Problems> {
    let problems = check_task(&task.definition);
    let sends_files = start.context.is_some() || start.file.is_some();
    let sends_secrets = !start.secrets.is_empty();
    let values = match starter {
        None => ValueTrust::Trusted,
        Some(_) => ValueTrust::Untrusted,
    };
    let mut draft = draft_of_task(app, task, start, values, by, problems)?;
    if let Some(by) = starter.cloned() {
        if sends_files {
            draft.move_to_contribution(ContributionSource::Files { by });
        } else if sends_secrets {
            draft.move_to_contribution(ContributionSource::Secrets { by });
        }
    }
    Ok(draft)
}

/// Trust in the values and secrets of a [`StartTask`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ValueTrust {
    /// Values of a principal that may write the task.
    Trusted,
    /// Values of others: the sender of a webhook, the caller of a trigger URL, or a token that may
    /// only run the task.
    Untrusted,
}

pub(super) fn draft_of_task(
    app: &App,
    task: &Task,
    start: StartTask,
    values: ValueTrust,
    by: RequestContext,
    mut problems: Problems,
) -> Result<RunDraft, Problems> {
    let untrusted_values = match values {
        ValueTrust::Trusted => BTreeSet::new(),
        ValueTrust::Untrusted => start
            .set
            .keys()
            .chain(start.secrets.keys())
            .cloned()
            .collect(),
    };
    let definition = &task.definition;
    validate::check_sent(&start.secrets, &[], &mut problems);
    let context = match start.context {
        Some(context) => context,
        None => match &definition.context {
            Some(url) => ContextSource::Url {
                url: url.clone(),
                commit: None,
                submodules: definition.submodules,
                lfs: definition.lfs,
            },
            None => ContextSource::None,
        },
    };
    let source = match start.file {
        Some(path) => RunSource::File { path },
        None => source_of(task),
    };
    let mut names: Vec<String> = definition.secrets.keys().cloned().collect();
    add_names(&mut names, start.secrets.keys());
    let stored = definition
        .secrets
        .iter()
        .filter(|(name, _)| !start.secrets.contains_key(*name))
        .map(|(name, stored)| (name.clone(), stored.clone()))
        .collect();
    let timeout_secs = definition
        .timeout
        .as_deref()
        .and_then(|text| validate::parse_seconds(text).ok());
    let mut spec = RunSpec {
        context,
        source,
        variables: Variables {
            registry: definition.registry.clone().unwrap_or_default(),
            triggered_by: "Manual".into(),
            task_name: definition.name.clone(),
            ..Variables::default()
        },
        set: start.set,
        values: definition.values.clone(),
        build_secrets: names.clone(),
        secrets: names,
        env: definition.env.clone(),
        alias_images: definition.alias_images.clone(),
        platforms: definition.platform.iter().cloned().collect(),
        timeout_secs,
        no_push: start.no_push || definition.no_push,
        pins: BTreeMap::new(),
        base_tags: BTreeMap::new(),
        untrusted_values,
        push_by_digest: false,
        cache: if definition.cache {
            SharedCache::ReadWrite {
                name: cache_name(&definition.name),
            }
        } else {
            SharedCache::Off
        },
    };
    crate::bases::tags::apply_tags(task, &task.base_tags, &mut spec);
    validate::check_spec(&spec, &mut problems);
    let mut queue = definition.queue.clone();
    if let Some(priority) = start.priority {
        queue.priority = priority;
        validate::check_queue(&queue, &mut problems);
    }
    problems.into_result()?;
    let secrets = RunSecrets {
        values: start.secrets,
        credentials: Vec::new(),
        stored,
    };
    let owner = Some((task.id.clone(), definition.name.clone()));
    let domain = domain_of(app, task);
    let mut draft = build_draft(app, domain, owner, spec, queue, secrets, "task", by);
    draft.run.origin.notify = !definition.notify.is_empty();
    Ok(draft)
}

fn source_of(task: &Task) -> RunSource {
    let definition = &task.definition;
    if let Some(text) = &definition.text {
        RunSource::Inline {
            name: format!("{}.yaml", definition.name),
            text: text.clone(),
        }
    } else if let Some(line) = &definition.cmd {
        RunSource::Cmd { line: line.clone() }
    } else if let Some(build) = &definition.build {
        RunSource::Build(build.clone())
    } else if let Some(path) = &definition.file {
        RunSource::File { path: path.clone() }
    } else {
        RunSource::DefaultFile
    }
}

fn add_names<'n>(names: &mut Vec<String>, more: impl Iterator<Item = &'n String>) {
    for name in more {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
}
