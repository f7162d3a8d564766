//! Tasks as ARM documents, and changes of their parts.
//!
//! In the details of a task a marker replaces the value of each secret.

use acrtask_api::task::{BaseImageTriggerType, CommitEvent, Task, TaskDefinition, Triggers};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};

use crate::{
    TENANT, registry_id,
    task::{MARKER, TOKEN_USER, host_of},
};

/// Default timeout of a task in ARM, in seconds.
const DEFAULT_TIMEOUT: u64 = 3600;
/// A stored task and what its document shows beside the definition.
#[derive(Debug, Clone, Copy)]
pub struct TaskDocument<'t> {
    /// The task.
    pub task: &'t Task,
    /// Name of the registry.
    pub registry: &'t str,
    /// Document of the last request.
    pub stored: Option<&'t Value>,
    /// The document describes the current definition.
    pub is_current: bool,
    /// Hosts and user names of the logins of the task.
    pub logins: &'t [(String, String)],
}

/// Returns a task as an ARM document. `with_markers`: a marker replaces each secret, else secrets
/// are left out.
pub fn task_document(of: TaskDocument<'_>, with_markers: bool) -> Value {
    let TaskDocument { task, registry, .. } = of;
    let mut document = match of.stored {
        Some(stored) if of.is_current => stored.clone(),
        stored => {
            let mut document = json!({ "properties": properties_of(&task.definition) });
            for name in ["location", "tags", "identity"] {
                if let Some(value) = stored.and_then(|stored| stored.get(name)) {
                    document[name] = value.clone();
                }
            }
            document
        }
    };
    let name = &task.definition.name;
    document["id"] = json!(format!("{}/tasks/{name}", registry_id(registry)));
    document["name"] = json!(name);
    document["type"] = json!("Microsoft.ContainerRegistry/registries/tasks");
    if !document["location"].is_string() {
        document["location"] = json!("local");
    }
    if document["identity"]["type"] == "SystemAssigned" {
        document["identity"]["principalId"] = json!(TENANT);
        document["identity"]["tenantId"] = json!(TENANT);
    }
    let properties = &mut document["properties"];
    properties["creationDate"] = json!(task.created_at.to_string());
    properties["provisioningState"] = json!("Succeeded");
    let defaults = [
        ("status", json!("Enabled")),
        ("timeout", json!(DEFAULT_TIMEOUT)),
        ("platform", json!({"os": "linux", "architecture": "amd64"})),
        ("agentConfiguration", json!({"cpu": 2})),
        ("isSystemTask", json!(false)),
    ];
    for (name, value) in defaults {
        if properties[name].is_null() {
            properties[name] = value;
        }
    }
    if properties["agentPoolName"].is_string()
        && let Some(properties) = properties.as_object_mut()
    {
        properties.remove("agentConfiguration");
    }
    add_trigger_defaults(&mut properties["trigger"]);
    add_logins(properties, of.logins, with_markers);
    if with_markers {
        for list in ["arguments", "values"] {
            for argument in properties["step"][list]
                .as_array_mut()
                .into_iter()
                .flatten()
            {
                if argument["isSecret"] == true {
                    argument["value"] = json!(MARKER);
                }
            }
        }
    }
    document
}

/// Adds a status to each trigger. `az -o table` needs it.
fn add_trigger_defaults(trigger: &mut Value) {
    let complete = |trigger: &mut Value| {
        if trigger["status"].is_null() {
            trigger["status"] = json!("Enabled");
        }
    };
    for list in ["timerTriggers", "sourceTriggers"] {
        if let Some(triggers) = trigger.get_mut(list).and_then(Value::as_array_mut) {
            triggers.iter_mut().for_each(complete);
        }
    }
    if let Some(base) = trigger
        .get_mut("baseImageTrigger")
        .filter(|it| it.is_object())
    {
        complete(base);
    }
}

/// Adds the logins of the task. The login of the context's host is the access token of the step.
fn add_logins(properties: &mut Value, logins: &[(String, String)], with_markers: bool) {
    let context = properties["step"]["contextPath"].as_str();
    let host = context.and_then(host_of).map(str::to_owned);
    let mut registries = Map::new();
    for (login, username) in logins {
        if Some(login) == host.as_ref() && username == TOKEN_USER {
            if with_markers {
                properties["step"]["contextAccessToken"] = json!(MARKER);
            }
        } else if with_markers {
            let opaque = |text: &str| json!({"type": "Opaque", "value": text});
            let entry = json!({"userName": opaque(username), "password": opaque(MARKER)});
            registries.insert(login.clone(), entry);
        } else {
            registries.insert(login.clone(), json!({}));
        }
    }
    if !registries.is_empty() {
        properties["credentials"] = json!({ "customRegistries": registries });
    }
}

/// Returns the properties of a task that ARM did not create.
fn properties_of(definition: &TaskDefinition) -> Value {
    let mut properties = json!({
        "status": status_of(definition.enabled),
        "step": step_of(definition),
        "trigger": trigger_of(&definition.triggers),
    });
    if let Some(platform) = &definition.platform {
        let mut parts = platform.split('/');
        for name in ["os", "architecture", "variant"] {
            if let Some(part) = parts.next() {
                properties["platform"][name] = json!(part);
            }
        }
    }
    if let Some(seconds) = definition.timeout.as_deref().and_then(parse_seconds) {
        properties["timeout"] = json!(seconds);
    }
    if let Some(pool) = &definition.queue.pool {
        properties["agentPoolName"] = json!(pool);
    }
    properties
}

fn parse_seconds(text: &str) -> Option<i64> {
    text.parse().ok().or_else(|| {
        let time: jiff::SignedDuration = text.parse().ok()?;
        Some(time.as_secs())
    })
}

fn status_of(enabled: bool) -> &'static str {
    if enabled { "Enabled" } else { "Disabled" }
}

fn step_of(definition: &TaskDefinition) -> Value {
    let plain =
        |(name, value): (&String, String)| json!({"name": name, "value": value, "isSecret": false});
    let secret = |name: &String| json!({"name": name, "isSecret": true});
    let mut step = if let Some(build) = &definition.build {
        let arguments = build
            .args
            .iter()
            .map(|(name, value)| plain((name, value.clone())));
        let arguments: Vec<Value> = arguments
            .chain(build.secret_args.iter().map(secret))
            .collect();
        json!({
            "type": "Docker",
            "imageNames": build.images,
            "isPushEnabled": !definition.no_push,
            "noCache": build.no_cache,
            "dockerFilePath": build.dockerfile,
            "arguments": arguments,
            "target": build.target,
        })
    } else {
        let values = definition.values.iter().map(|(name, value)| {
            let text = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            plain((name, text))
        });
        let values: Vec<Value> = values
            .chain(definition.secrets.keys().map(secret))
            .collect();
        let text = match (&definition.text, &definition.cmd) {
            (Some(text), _) => Some(text.clone()),
            // JSON texts are valid in YAML.
            (None, Some(cmd)) => Some(format!(
                "version: v1.1.0\nsteps:\n  - cmd: {}\n",
                json!(cmd)
            )),
            (None, None) => None,
        };
        match text {
            Some(text) => json!({
                "type": "EncodedTask",
                "encodedTaskContent": STANDARD.encode(text),
                "values": values,
            }),
            None => json!({
                "type": "FileTask",
                "taskFilePath": definition.file.as_deref().unwrap_or("acr-task.yaml"),
                "values": values,
            }),
        }
    };
    if let Some(context) = &definition.context {
        step["contextPath"] = json!(context);
    }
    step
}

fn trigger_of(triggers: &Triggers) -> Value {
    let mut document = json!({});
    let timers: Vec<Value> = triggers
        .timers
        .iter()
        .map(|(name, timer)| {
            json!({"name": name, "schedule": timer.schedule, "status": status_of(timer.enabled)})
        })
        .collect();
    if !timers.is_empty() {
        document["timerTriggers"] = json!(timers);
    }
    if let Some(base) = &triggers.base_image {
        document["baseImageTrigger"] = json!({
            "name": "defaultBaseimageTriggerName",
            "baseImageTriggerType": if base.r#type == BaseImageTriggerType::All { "All" } else { "Runtime" },
            "status": status_of(base.enabled),
        });
    }
    if let Some(commit) = &triggers.commit {
        let events = commit.events.iter().filter_map(|event| match event {
            CommitEvent::Push => Some("commit"),
            CommitEvent::PullRequest => Some("pullrequest"),
            CommitEvent::Tag => None,
        });
        let events: Vec<&str> = events.collect();
        let events = if events.is_empty() {
            vec!["commit"]
        } else {
            events
        };
        document["sourceTriggers"] = json!([{
            "name": "defaultSourceTriggerName",
            "status": status_of(commit.enabled),
            "sourceTriggerEvents": events,
            "sourceRepository": {"branch": commit.branches.first()},
        }]);
    }
    document
}

/// Returns the details of a task with the members of a `PATCH`. Absent and `null` members stay.
/// Triggers merge by name. `null` removes a login.
pub fn merge_patch(details: &Value, patch: &Value) -> Value {
    let mut merged = details.clone();
    merge(&mut merged, patch, "");
    merged
}

fn merge(target: &mut Value, patch: &Value, key: &str) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            // A step of another kind shares no members with the old one.
            if key == "step"
                && patch.get("type").is_some_and(|kind| {
                    !kind.is_null() && target.get("type").is_some_and(|old| old != kind)
                })
            {
                target.retain(|name, _| name == "contextPath" || name == "contextAccessToken");
            }
            for (name, value) in patch {
                match (value, target.get_mut(name)) {
                    (Value::Null, _) if key == "customRegistries" => {
                        target.remove(name);
                    }
                    (Value::Null, _) => {}
                    (value, Some(old)) => merge(old, value, name),
                    (value, None) => {
                        target.insert(name.clone(), value.clone());
                    }
                }
            }
        }
        (Value::Array(target), Value::Array(patch))
            if key == "timerTriggers" || key == "sourceTriggers" =>
        {
            for entry in patch {
                match target.iter_mut().find(|old| old["name"] == entry["name"]) {
                    Some(old) => merge(old, entry, ""),
                    None => target.push(entry.clone()),
                }
            }
        }
        (target, patch) => *target = patch.clone(),
    }
}
