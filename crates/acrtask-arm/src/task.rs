//! Requests for tasks, converted to task definitions.
//!
//! A stored document contains no value of a secret. A request with a marker in the place of a value
//! leaves the value unchanged.

use std::collections::BTreeMap;

use acrtask_api::{
    run::SecretText,
    spec::BuildSpec,
    task::{
        BaseImageTrigger, BaseImageTriggerType, CommitEvent, CommitTrigger, QueueOptions,
        TaskDefinition, Timer, Triggers,
    },
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    Refusal,
    request::{
        Argument, Credentials, Platform, decode_text, filled, object, objects, or_default,
        parse_part, refuse_values_file, repository_url, unknown_identity,
    },
};

/// Marker in the place of the value of a secret.
pub(crate) const MARKER: &str = "********";
/// User name for access tokens of git hosts. They accept any.
pub(crate) const TOKEN_USER: &str = "x-access-token";
/// Longest name of a task in ARM, in characters.
const MAX_NAME: usize = 50;

/// A request to create or replace a task.
#[derive(Debug, Clone, PartialEq)]
pub struct PutTask {
    /// Definition of the task.
    pub definition: TaskDefinition,
    /// Secrets that the definition names.
    pub secrets: Vec<SecretInput>,
    /// Logins of the task. Other logins are removed.
    pub logins: Vec<Login>,
    /// Document to store, without secrets.
    pub document: Value,
}

/// Secret of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretInput {
    /// Name of the secret.
    pub name: String,
    /// Value. `None`: the stored value stays.
    pub value: Option<SecretText>,
}

/// Login of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// Host of the registry or git server.
    pub host: String,
    /// User name.
    pub username: String,
    /// Password or token. `None`: the stored one stays.
    pub password: Option<SecretText>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawTask {
    #[serde(deserialize_with = "object")]
    properties: RawProperties,
    #[serde(deserialize_with = "object")]
    identity: RawIdentity,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawIdentity {
    r#type: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawProperties {
    status: Option<String>,
    timeout: Option<u64>,
    #[serde(deserialize_with = "object")]
    platform: Platform,
    agent_pool_name: Option<String>,
    #[serde(deserialize_with = "object")]
    step: RawStep,
    #[serde(deserialize_with = "object")]
    trigger: RawTrigger,
    #[serde(deserialize_with = "object")]
    credentials: Credentials,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawStep {
    #[serde(deserialize_with = "or_default")]
    r#type: String,
    #[serde(deserialize_with = "or_default")]
    image_names: Vec<String>,
    is_push_enabled: Option<bool>,
    no_cache: Option<bool>,
    docker_file_path: Option<String>,
    target: Option<String>,
    #[serde(deserialize_with = "objects")]
    arguments: Vec<Argument>,
    context_path: Option<String>,
    context_access_token: Option<String>,
    task_file_path: Option<String>,
    values_file_path: Option<String>,
    encoded_task_content: Option<String>,
    encoded_values_content: Option<String>,
    #[serde(deserialize_with = "objects")]
    values: Vec<Argument>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawTrigger {
    #[serde(deserialize_with = "objects")]
    timer_triggers: Vec<RawTimer>,
    #[serde(deserialize_with = "objects")]
    source_triggers: Vec<RawSource>,
    base_image_trigger: Option<RawBase>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawTimer {
    #[serde(deserialize_with = "or_default")]
    name: String,
    #[serde(deserialize_with = "or_default")]
    schedule: String,
    status: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawSource {
    status: Option<String>,
    #[serde(deserialize_with = "or_default")]
    source_trigger_events: Vec<String>,
    #[serde(deserialize_with = "object")]
    source_repository: RawRepository,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawRepository {
    branch: Option<String>,
    #[serde(deserialize_with = "object")]
    source_control_auth_properties: RawAuth,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawAuth {
    token: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawBase {
    base_image_trigger_type: Option<String>,
    status: Option<String>,
    update_trigger_endpoint: Option<String>,
}

fn is_enabled(status: Option<&str>) -> bool {
    !status.is_some_and(|status| status.eq_ignore_ascii_case("disabled"))
}

/// Returns the value of a secret. `None` if it is the marker or absent.
fn new_value(value: Option<&str>) -> Option<SecretText> {
    filled(value)
        .filter(|value| *value != MARKER)
        .map(|value| SecretText(value.to_owned()))
}

/// Returns the host of a context's URL. `None` if it has none.
pub(crate) fn host_of(context: &str) -> Option<&str> {
    let rest = match context.split_once("://") {
        Some((_, rest)) => rest,
        None if context.contains(".git") => context,
        None => return None,
    };
    let host = rest.split(['/', '#', '?']).next()?;
    let host = host.rsplit('@').next()?;
    (!host.is_empty()).then_some(host)
}

/// Parses a request to create or replace the task `name` in a registry with the host `server`.
/// Members of `existing` that ARM does not have stay.
///
/// # Errors
/// Returns a refusal if acrtask cannot carry out the task.
pub fn parse_task(
    name: &str,
    body: &Value,
    server: &str,
    existing: Option<&TaskDefinition>,
) -> Result<PutTask, Refusal> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(good) {
        return Err(Refusal::new(format!(
            "`{name}` is not a name of 1 to {MAX_NAME} letters, digits, `-` and `_`"
        )));
    }
    let raw: RawTask = parse_part(body)?;
    match raw.identity.r#type.as_deref() {
        None | Some("" | "None" | "SystemAssigned") => {}
        Some(other) => return Err(unknown_identity(other)),
    }
    let properties = raw.properties;
    properties.credentials.check_identity()?;
    let step = &properties.step;
    refuse_values_file(
        step.values_file_path.as_deref(),
        step.encoded_values_content.as_deref(),
    )?;
    let mut definition = new_definition(name, server, &properties)?;
    if let Some(existing) = existing {
        keep_other_members(&mut definition, existing);
    }
    let arguments = step.arguments.iter().chain(&step.values);
    let secrets = arguments
        .filter(|argument| argument.is_secret)
        .map(|argument| SecretInput {
            name: argument.name.clone(),
            value: new_value(argument.value.as_deref()),
        });
    Ok(PutTask {
        secrets: secrets.collect(),
        logins: logins_of(&properties)?,
        document: stored_document(body),
        definition,
    })
}

fn new_definition(
    name: &str,
    server: &str,
    properties: &RawProperties,
) -> Result<TaskDefinition, Refusal> {
    let step = &properties.step;
    let mut definition = TaskDefinition {
        name: name.to_owned(),
        description: String::new(),
        enabled: is_enabled(properties.status.as_deref()),
        context: filled(step.context_path.as_deref())
            .filter(|path| *path != "/dev/null")
            .map(repository_url),
        submodules: true,
        lfs: false,
        file: None,
        text: None,
        cmd: None,
        build: None,
        registry: Some(server.to_owned()),
        values: Map::new(),
        secrets: BTreeMap::new(),
        env: BTreeMap::new(),
        alias_images: BTreeMap::new(),
        platform: properties.platform.to_text()?,
        timeout: properties.timeout.map(|seconds| format!("{seconds}s")),
        no_push: false,
        cache: true,
        queue: QueueOptions {
            pool: filled(properties.agent_pool_name.as_deref()).map(str::to_owned),
            ..QueueOptions::default()
        },
        triggers: triggers_of(&properties.trigger)?,
        notify: Vec::new(),
    };
    let mut arguments = &step.values;
    match step.r#type.to_ascii_lowercase().as_str() {
        "docker" => {
            arguments = &step.arguments;
            let mut build = BuildSpec {
                images: step.image_names.clone(),
                dockerfile: filled(step.docker_file_path.as_deref())
                    .unwrap_or("Dockerfile")
                    .to_owned(),
                target: filled(step.target.as_deref()).map(str::to_owned),
                no_cache: step.no_cache.unwrap_or_default(),
                ..BuildSpec::default()
            };
            for argument in arguments {
                let value = argument.value.clone().unwrap_or_default();
                if argument.is_secret {
                    build.secret_args.push(argument.name.clone());
                } else {
                    build.args.insert(argument.name.clone(), value);
                }
            }
            definition.build = Some(build);
            definition.no_push = step.is_push_enabled == Some(false);
        }
        "filetask" => definition.file = filled(step.task_file_path.as_deref()).map(str::to_owned),
        "encodedtask" => {
            let text = step.encoded_task_content.as_deref().unwrap_or_default();
            definition.text = Some(decode_text("encodedTaskContent", text)?);
        }
        _ => {
            return Err(Refusal::new(format!(
                "`{}` is not a kind of step: write Docker, FileTask or EncodedTask",
                step.r#type
            )));
        }
    }
    for argument in arguments {
        if argument.is_secret {
            let name = argument.name.clone();
            definition.secrets.insert(name.clone(), name);
        } else if definition.build.is_none() {
            let value = argument.value.clone().unwrap_or_default();
            definition
                .values
                .insert(argument.name.clone(), Value::String(value));
        }
    }
    Ok(definition)
}

/// Copies members that ARM does not have.
fn keep_other_members(definition: &mut TaskDefinition, existing: &TaskDefinition) {
    definition.description.clone_from(&existing.description);
    definition.submodules = existing.submodules;
    definition.lfs = existing.lfs;
    definition.env.clone_from(&existing.env);
    definition.alias_images.clone_from(&existing.alias_images);
    definition.cache = existing.cache;
    definition.notify.clone_from(&existing.notify);
    let pool = definition.queue.pool.take();
    definition.queue = QueueOptions {
        pool,
        ..existing.queue.clone()
    };
    if let (Some(build), Some(old)) = (&mut definition.build, &existing.build) {
        build.labels.clone_from(&old.labels);
    }
    let (triggers, old) = (&mut definition.triggers, &existing.triggers);
    triggers.registry_push.clone_from(&old.registry_push);
    triggers.url.clone_from(&old.url);
    if let (Some(base), Some(old)) = (&mut triggers.base_image, &old.base_image) {
        base.tags.clone_from(&old.tags);
    }
    if let (Some(commit), Some(old)) = (&mut triggers.commit, &old.commit) {
        let (enabled, branches, events) = (
            commit.enabled,
            commit.branches.clone(),
            commit.events.clone(),
        );
        *commit = CommitTrigger {
            enabled,
            branches,
            events,
            ..old.clone()
        };
    }
    for (name, timer) in &mut triggers.timers {
        if let Some(old) = old.timers.get(name) {
            timer.timezone.clone_from(&old.timezone);
            timer.jitter.clone_from(&old.jitter);
            timer.missed = old.missed;
        }
    }
}

fn triggers_of(raw: &RawTrigger) -> Result<Triggers, Refusal> {
    let mut triggers = Triggers::default();
    for timer in &raw.timer_triggers {
        let entry = Timer {
            enabled: is_enabled(timer.status.as_deref()),
            ..Timer::new(timer.schedule.clone())
        };
        if triggers.timers.insert(timer.name.clone(), entry).is_some() {
            return Err(Refusal::new(format!(
                "two timers have the name `{}`",
                timer.name
            )));
        }
    }
    if let Some(base) = &raw.base_image_trigger {
        if filled(base.update_trigger_endpoint.as_deref()).is_some() {
            return Err(Refusal::new(
                "`updateTriggerEndpoint` is not supported: leave it out, and set up notifications (`notify`)",
            ));
        }
        let kind = base.base_image_trigger_type.as_deref().unwrap_or("Runtime");
        triggers.base_image = Some(BaseImageTrigger {
            enabled: is_enabled(base.status.as_deref()),
            r#type: if kind.eq_ignore_ascii_case("All") {
                BaseImageTriggerType::All
            } else {
                BaseImageTriggerType::Runtime
            },
            tags: Vec::new(),
        });
    }
    if raw.source_triggers.len() > 1 {
        return Err(Refusal::new(
            "a task has at most one source trigger: write all events into it",
        ));
    }
    if let Some(source) = raw.source_triggers.first() {
        let mut events = Vec::new();
        for event in &source.source_trigger_events {
            events.push(match event.to_ascii_lowercase().as_str() {
                "commit" => CommitEvent::Push,
                "pullrequest" => CommitEvent::PullRequest,
                _ => {
                    return Err(Refusal::new(format!(
                        "`{event}` is not an event: write commit or pullrequest"
                    )));
                }
            });
        }
        let branch = filled(source.source_repository.branch.as_deref());
        triggers.commit = Some(CommitTrigger {
            enabled: is_enabled(source.status.as_deref()),
            branches: branch.map(str::to_owned).into_iter().collect(),
            events,
            ..CommitTrigger::default()
        });
    }
    Ok(triggers)
}

fn logins_of(properties: &RawProperties) -> Result<Vec<Login>, Refusal> {
    let mut logins = Vec::new();
    for (host, registry) in &properties.credentials.custom_registries {
        let Some(registry) = registry else { continue };
        if let Some(identity) = filled(registry.identity.as_deref()) {
            return Err(unknown_identity(identity));
        }
        let username = match &registry.user_name {
            Some(user) => user.text(host)?,
            None => None,
        };
        let password = match &registry.password {
            Some(password) => password.text(host)?,
            None => None,
        };
        let username = username
            .filter(|name| !name.is_empty())
            .ok_or_else(|| Refusal::new(format!("the login for `{host}` has no user name")))?;
        logins.push(Login {
            host: host.clone(),
            username,
            password: new_value(password.as_deref()),
        });
    }
    let step = &properties.step;
    let source = properties.trigger.source_triggers.first();
    let of_trigger = source.and_then(|source| {
        source
            .source_repository
            .source_control_auth_properties
            .token
            .as_deref()
    });
    let token = filled(step.context_access_token.as_deref()).or(filled(of_trigger));
    let host = step.context_path.as_deref().and_then(host_of);
    if let (Some(token), Some(host)) = (token, host)
        && !logins.iter().any(|login| login.host == host)
    {
        logins.push(Login {
            host: host.to_owned(),
            username: TOKEN_USER.into(),
            password: new_value(Some(token)),
        });
    }
    Ok(logins)
}

/// Returns the members of a request that are stored, without values of secrets.
fn stored_document(body: &Value) -> Value {
    let mut document = Map::new();
    for name in ["location", "tags", "identity", "properties"] {
        if let Some(value) = body.get(name).filter(|value| !value.is_null()) {
            document.insert(name.into(), value.clone());
        }
    }
    let mut document = Value::Object(document);
    let properties = &mut document["properties"];
    if let Some(properties) = properties.as_object_mut() {
        properties.remove("credentials");
    }
    let step = &mut properties["step"];
    if let Some(step) = step.as_object_mut() {
        step.remove("contextAccessToken");
    }
    for list in ["arguments", "values"] {
        for argument in step[list].as_array_mut().into_iter().flatten() {
            if argument["isSecret"] == true
                && let Some(argument) = argument.as_object_mut()
            {
                argument.remove("value");
            }
        }
    }
    let sources = properties["trigger"]["sourceTriggers"].as_array_mut();
    for source in sources.into_iter().flatten() {
        if let Some(repository) = source["sourceRepository"].as_object_mut() {
            repository.remove("sourceControlAuthProperties");
        }
    }
    document
}

#[cfg(test)]
#[path = "task_tests.rs"]
mod tests;
