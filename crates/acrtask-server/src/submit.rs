//! From requests to runs, and from runs to what a runner is handed.
//!
//! Invariants: a stored run holds no secret in clear, and no spec holds a value of one; which stored secrets a run gets
//! is decided when it is asked for and written down with it, their values are looked up when it is handed out; all
//! problems of a request are told at once. Left out: what the task file itself says, which the runner finds out.

use std::collections::{BTreeMap, BTreeSet};

use acrtask_api::{
    run::{Approval, CreateRun, RunCredential, SecretText, StartTask},
    spec::{ContextSource, Facts, RunSpec, SharedCache, Work},
    task::{Concurrency, QueueOptions, Task},
};
use acrtask_model::{Principal, RunId, TrustDomain};
use acrtask_registry::credentials::canonical_host;
use acrtask_store::{NewRun, Origin, RunGroup, RunRow};
use rand::RngCore as _;
use serde::{Deserialize, Serialize};

use crate::{App, vault::VaultError};

mod cache_name;
mod checks;
pub(crate) mod event;
mod inline;
mod lease;
mod secrets;

pub use checks::{Problems, check_task, secret_name, task_name};
pub(crate) use checks::{check_labels, check_printable, host_name, word};
pub(crate) use lease::RENAMED;
pub use lease::{LeaseError, LeasePayload, lease_payload};
pub use secrets::missing_secrets;
pub(crate) use secrets::{check_username, check_value, missing_among, no_secret, stored_secret};

/// What a run has that must not be seen: stored encrypted with it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RunSecrets {
    /// Values that came with the request.
    pub values: BTreeMap<String, SecretText>,
    /// Logins that came with the request.
    pub credentials: Vec<RunCredential>,
    /// Secrets by the name that the run uses: the name in the secret store.
    pub stored: BTreeMap<String, String>,
}

impl RunSecrets {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Encrypts what a run has that must not be seen.
pub fn seal(
    app: &App,
    run: &RunId,
    secrets: &RunSecrets,
) -> Result<Option<Vec<u8>>, serde_json::Error> {
    if secrets.is_empty() {
        return Ok(None);
    }
    let text = serde_json::to_vec(secrets)?;
    Ok(Some(app.vault.seal(&run_aad(run), &text)))
}

/// Decrypts what [`seal`] gave.
///
/// # Errors
/// When the key is missing or the database was tampered with.
pub fn unseal(app: &App, run: &RunRow) -> Result<RunSecrets, VaultError> {
    match &run.secrets {
        None => Ok(RunSecrets::default()),
        Some(sealed) => {
            let text = app.vault.open(&run_aad(&run.id), sealed)?;
            serde_json::from_str(text.expose()).map_err(|_| VaultError::Damaged)
        }
    }
}

fn run_aad(run: &RunId) -> String {
    format!("run/{run}")
}

/// What a stored secret is encrypted for. Scopes are ids of tasks, which hold no `/`.
pub fn secret_aad(scope: &str, name: &str) -> String {
    format!("secret/{scope}/{name}")
}

/// What a stored login is encrypted for.
pub fn credential_aad(scope: &str, host: &str) -> String {
    format!("credential/{scope}/{host}")
}

/// A new id for a run.
pub fn new_run_id() -> RunId {
    RunId::from_random(rand::rng().next_u64())
}

/// Who asks for a run, and how.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The name of whoever asks.
    pub requested_by: Option<String>,
    /// A second request with the same key gets the first one's run.
    pub idempotency_key: Option<String>,
    /// The principal whose quotas the run counts against. `None`: only those of its task.
    pub charged_to: Option<String>,
    /// W3C traceparent; empty where nothing is traced.
    pub traceparent: String,
}

/// A run and what it has that must not be seen.
#[derive(Debug)]
pub struct Draft {
    /// The run, as it will be stored; its secrets are sealed by [`Draft::seal`].
    run: NewRun,
    /// What must not be seen.
    secrets: RunSecrets,
}

impl Draft {
    /// Returns the secrets of the run.
    pub(crate) fn secrets(&self) -> &RunSecrets {
        &self.secrets
    }

    /// The run as the store takes it.
    ///
    /// # Errors
    /// When the secrets cannot be written as JSON, which no text prevents.
    pub fn seal(mut self, app: &App) -> Result<NewRun, serde_json::Error> {
        self.run.secrets = seal(app, &self.run.id, &self.secrets)?;
        Ok(self.run)
    }

    /// Moves the run out of its domain, into that of a contribution to it from `source`.
    pub(crate) fn contribute(&mut self, source: String) {
        let run = &mut self.run;
        run.trust_domain = run.trust_domain.clone().contribution(source);
        let name = run.task_name.as_deref().unwrap_or_default();
        run.warm_key = run.trust_domain.affinity_key(name);
        event::restrict_cache(&mut run.spec, &run.trust_domain);
    }

    /// Returns where the files of the run come from.
    pub(crate) fn context(&self) -> &ContextSource {
        &self.run.spec.context
    }

    /// Checks the size of the spec with all that the request, the task and the trigger say.
    ///
    /// # Errors
    /// When it is larger than a spec may be.
    pub(crate) fn check_size(&self) -> Result<(), Problems> {
        let mut problems = Problems::default();
        checks::check_size("the spec of the run", &self.run.spec, &mut problems);
        problems.into_result()
    }

    /// The same run with the id that its caller chose.
    #[must_use]
    pub fn with_id(mut self, id: Option<RunId>) -> Self {
        if let Some(id) = id {
            self.run.id = id;
        }
        self
    }

    /// Returns the name of its task.
    pub(crate) fn task_name(&self) -> Option<&str> {
        self.run.task_name.as_deref()
    }

    /// The stored secrets that it needs: the scope that is looked at before that of all tasks, and the names.
    pub fn stored(&self) -> (Option<&str>, impl Iterator<Item = &str>) {
        (
            self.run.task_id.as_deref(),
            self.secrets.stored.values().map(String::as_str),
        )
    }
}

/// The run that a request for one without a stored task asks for.
///
/// Names in `spec.secrets` that come without a value are those of stored secrets of all tasks.
///
/// # Errors
/// All that is wrong with it.
pub fn from_request(
    app: &App,
    request: CreateRun,
    principal: &Principal,
    by: Request,
) -> Result<Draft, Problems> {
    let mut problems = Problems::default();
    let mut spec = request.spec;
    // Who writes the task itself may set its values to anything.
    spec.untrusted_values.clear();
    checks::check_spec(&spec, &mut problems);
    checks::check_queue(&request.queue, &mut problems);
    secrets::check_brought(&request.secrets, &request.credentials, &mut problems);
    if spec.cache != SharedCache::Off {
        problems.add_rule(
            "`spec.cache` is for runs of stored tasks: a run without one shares no cache",
        );
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
    if spec.facts.triggered_by.is_empty() {
        spec.facts.triggered_by = "Manual".into();
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
    Ok(draft(
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

/// Drafts the run that a stored task asks for. The caller has checked that the task is enabled.
///
/// `starter` is the principal if it may not write the task. Its values are untrusted. If it brings files, a task file or
/// secrets of its own, the run gets a domain of its own: BuildKit leaves secrets out of the keys of cached layers.
///
/// # Errors
/// All that is wrong with the request or with the task.
pub fn from_task(
    app: &App,
    task: &Task,
    start: StartTask,
    starter: Option<&Principal>,
    by: Request,
) -> Result<Draft, Problems> {
    let problems = check_task(&task.definition);
    let brought = start.context.is_some() || start.file.is_some() || !start.secrets.is_empty();
    let values = match starter {
        None => Values::Trusted,
        Some(_) => Values::Untrusted,
    };
    let mut draft = of_task(app, task, start, values, by, problems)?;
    if let Some(starter) = starter.filter(|_| brought) {
        draft.contribute(starter.key());
    }
    Ok(draft)
}

/// Returns the domain of the task's own code.
pub(crate) fn domain_of(app: &App, task: &Task) -> TrustDomain {
    app.config.trust.domain_of(&task.id, &task.definition.name)
}

/// How far the author of a task vouches for the values and secrets of a [`StartTask`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Values {
    /// Someone who may write the task chose them.
    Trusted,
    /// Anyone else did: the sender of a webhook, the caller of a trigger URL, a token that may only run the task.
    Untrusted,
}

fn of_task(
    app: &App,
    task: &Task,
    start: StartTask,
    values: Values,
    by: Request,
    mut problems: Problems,
) -> Result<Draft, Problems> {
    let untrusted_values = match values {
        Values::Trusted => BTreeSet::new(),
        Values::Untrusted => start
            .set
            .keys()
            .chain(start.secrets.keys())
            .cloned()
            .collect(),
    };
    let definition = &task.definition;
    secrets::check_brought(&start.secrets, &[], &mut problems);
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
    let work = match start.file {
        Some(path) => Work::File { path },
        None => work_of(task),
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
        .and_then(|text| checks::duration(text).ok());
    let mut spec = RunSpec {
        context,
        work,
        facts: Facts {
            registry: definition.registry.clone().unwrap_or_default(),
            triggered_by: "Manual".into(),
            task_name: definition.name.clone(),
            ..Facts::default()
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
        hold: false,
        cache: if definition.cache {
            SharedCache::ReadWrite {
                name: cache_name::cache_name(&definition.name),
            }
        } else {
            SharedCache::Off
        },
    };
    crate::bases::tags::give(task, &task.base_tags, &mut spec);
    checks::check_spec(&spec, &mut problems);
    let mut queue = definition.queue.clone();
    if let Some(priority) = start.priority {
        queue.priority = priority;
        checks::check_queue(&queue, &mut problems);
    }
    problems.into_result()?;
    let secrets = RunSecrets {
        values: start.secrets,
        credentials: Vec::new(),
        stored,
    };
    let owner = Some((task.id.clone(), definition.name.clone()));
    let domain = domain_of(app, task);
    let mut draft = draft(app, domain, owner, spec, queue, secrets, "task", by);
    draft.run.origin.notify = !definition.notify.is_empty();
    Ok(draft)
}

/// The run that does once more what `run` did: the same files, values and secrets, and the bases that were used then.
/// Whoever asks for it, it stays in the domain of `run`, whose code it is and who alone can have changed that.
///
/// `task` is the run's task as it is now. Its queue and its `noPush` win over what the run had: a rerun
/// brings back no pool, group or push that was taken from the task. `None` if the run has no task or the
/// task is gone; then a run of a task waits in the default pool, in no group.
///
/// # Errors
/// When its secrets cannot be decrypted.
pub fn again(
    app: &App,
    run: &RunRow,
    task: Option<&Task>,
    by: Request,
) -> Result<Draft, VaultError> {
    let secrets = unseal(app, run)?;
    let mut spec = run.spec.clone();
    let queue = match task {
        Some(task) => {
            spec.no_push |= task.definition.no_push;
            task.definition.queue.clone()
        }
        None if run.task_id.is_some() => QueueOptions::default(),
        None => run.queue.clone(),
    };
    let queue = QueueOptions {
        priority: run.queue.priority,
        ..queue
    };
    // What its cascade held back nobody would promote for this one.
    spec.hold &= run.trigger != "cascade";
    if let Some(result) = &run.result {
        for base in &result.bases {
            spec.pins.insert(base.name.clone(), base.digest.clone());
        }
        let found = &result.facts;
        for (fact, found) in [
            (&mut spec.facts.branch, &found.branch),
            (&mut spec.facts.git_tag, &found.git_tag),
            (&mut spec.facts.repository, &found.repository),
            (&mut spec.facts.commit, &found.commit),
        ] {
            if fact.is_empty() {
                fact.clone_from(found);
            }
        }
        if let ContextSource::Url {
            url, commit: None, ..
        } = &mut spec.context
            && let Some(pinned) = at_commit(url, &found.commit)
        {
            *url = pinned;
        }
    }
    let owner = run.task_id.clone().zip(run.task_name.clone());
    let mut draft = draft(
        app,
        run.trust_domain.clone(),
        owner,
        spec,
        queue,
        secrets,
        "rerun",
        by,
    );
    draft.run.rerun_of = Some(run.id.clone());
    // A stranger's commit that nobody has approved stays one.
    draft.run.origin.needs_approval = run.approval == Some(Approval::Pending);
    draft.run.origin.one_at_a_time = matches!(run.group, Some(RunGroup::Ref(_)));
    draft.run.origin.lane.clone_from(&run.lane);
    draft.run.origin.commit.clone_from(&run.commit);
    draft.run.platform.clone_from(&run.platform);
    draft.run.timeout_secs = run.timeout_secs;
    draft.run.warm_key.clone_from(&run.warm_key);
    Ok(draft)
}

/// The same git context at the commit that was found behind its reference then. A tarball or an artifact has none.
fn at_commit(url: &str, commit: &str) -> Option<String> {
    if !is_commit(commit) || url.starts_with("oci://") {
        return None;
    }
    Some(match url.split_once('#') {
        None => format!("{url}#{commit}"),
        Some((repository, fragment)) => match fragment.split_once(':') {
            None => format!("{repository}#{commit}"),
            Some((_, folder)) => format!("{repository}#{commit}:{folder}"),
        },
    })
}

/// Returns `true` if a context is a git repository at a full commit, so that its content cannot change.
pub(crate) fn names_commit(url: &str) -> bool {
    let fragment = url.split_once('#').map_or("", |(_, fragment)| fragment);
    let reference = fragment.split(':').next().unwrap_or_default();
    is_commit(reference) && !url.starts_with("oci://")
}

fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[expect(
    clippy::too_many_arguments,
    reason = "each of them decides, and none has a default"
)]
fn draft(
    app: &App,
    domain: TrustDomain,
    owner: Option<(String, String)>,
    spec: RunSpec,
    mut queue: QueueOptions,
    secrets: RunSecrets,
    trigger: &str,
    by: Request,
) -> Draft {
    let (task_id, task_name) = owner.unzip();
    if let Some(Concurrency {
        group: group @ None,
        ..
    }) = &mut queue.concurrency
    {
        group.clone_from(&task_name);
    }
    let warm_key = match &task_name {
        Some(name) => domain.affinity_key(name),
        None => domain.affinity_key(&format!("{} {}", spec.facts.registry, context_key(&spec))),
    };
    Draft {
        run: NewRun {
            id: new_run_id(),
            task_id,
            task_name,
            queue,
            platform: spec.platforms.first().cloned().unwrap_or_default(),
            context_id: match &spec.context {
                ContextSource::Upload { id } => Some(id.clone()),
                _ => None,
            },
            secrets: None,
            trigger: trigger.into(),
            requested_by: by.requested_by,
            rerun_of: None,
            idempotency_key: by.idempotency_key,
            timeout_secs: Some(
                spec.timeout_secs
                    .unwrap_or(app.config.run_timeout.as_secs()),
            ),
            traceparent: by.traceparent,
            warm_key,
            max_attempts: app.config.max_attempts.max(1),
            origin: Origin {
                charged_to: by.charged_to,
                ..Origin::default()
            },
            trust_domain: domain,
            spec,
        },
        secrets,
    }
}

/// What stands for the files of a run without a task, where it looks for a runner that has built them before: an upload
/// has another id each time, so the images that are built stand for it.
fn context_key(spec: &RunSpec) -> String {
    match (&spec.context, &spec.work) {
        (ContextSource::Url { url, .. }, _) => url.clone(),
        (_, Work::Build(build)) => build.images.join(" "),
        (_, Work::Cmd { line }) => line.clone(),
        _ => String::new(),
    }
}

fn work_of(task: &Task) -> Work {
    let definition = &task.definition;
    if let Some(text) = &definition.text {
        Work::Text {
            name: format!("{}.yaml", definition.name),
            text: text.clone(),
        }
    } else if let Some(line) = &definition.cmd {
        Work::Cmd { line: line.clone() }
    } else if let Some(build) = &definition.build {
        Work::Build(build.clone())
    } else if let Some(path) = &definition.file {
        Work::File { path: path.clone() }
    } else {
        Work::Usual
    }
}

fn add_names<'n>(names: &mut Vec<String>, more: impl Iterator<Item = &'n String>) {
    for name in more {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
}

#[cfg(test)]
mod tests;
