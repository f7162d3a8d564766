//! Tests of tasks as ARM documents.

use acrtask_api::task::{NotifyTemplate, Task};
use serde_json::json;

use super::*;
use crate::{TaskDocument, merge_patch, task_document};

fn docker_task() -> Value {
    json!({
        "location": "westeurope",
        "tags": {"team": "a"},
        "identity": {"type": "SystemAssigned"},
        "properties": {
            "status": "Enabled",
            "platform": {"os": "Linux", "architecture": "arm64", "variant": null},
            "agentConfiguration": {"cpu": 4},
            "logTemplate": "acr/tasks:{{.Run.OS}}",
            "timeout": 600,
            "step": {
                "type": "Docker", "imageNames": ["app:{{.Run.ID}}"], "isPushEnabled": true, "noCache": false,
                "dockerFilePath": "Dockerfile", "target": "final",
                "arguments": [{"name": "a", "value": "b", "isSecret": false}, {"name": "s", "value": "hunter2", "isSecret": true}],
                "contextPath": "https://forge.test/o/r.git#main", "contextAccessToken": "ghp_x",
            },
            "trigger": {
                "timerTriggers": [{"name": "daily", "schedule": "0 4 * * *"}],
                "sourceTriggers": [{"name": "src", "status": "Enabled", "sourceTriggerEvents": ["commit", "pullrequest"],
                    "sourceRepository": {"sourceControlType": "Github", "repositoryUrl": "https://forge.test/o/r", "branch": "main",
                        "sourceControlAuthProperties": {"token": "ghp_x", "tokenType": "PAT"}}}],
                "baseImageTrigger": {"name": "base", "baseImageTriggerType": "All", "status": "Disabled"},
            },
            "credentials": {"customRegistries": {"other.test": {"userName": {"type": "Opaque", "value": "u"},
                "password": {"type": "Opaque", "value": "swordfish"}}}},
        },
    })
}

fn parsed(body: &Value) -> PutTask {
    parse_task("app", body, "registry.test", None).unwrap()
}

fn stored(definition: TaskDefinition) -> Task {
    let time = jiff::Timestamp::from_second(1_800_000_000).unwrap();
    Task {
        id: "t1".into(),
        definition,
        generation: 1,
        base_tags: BTreeMap::new(),
        source: None,
        created_at: time,
        updated_at: time,
    }
}

fn document(task: &Task, stored: Option<&Value>, is_current: bool, with_markers: bool) -> Value {
    let logins = [
        ("forge.test".to_owned(), TOKEN_USER.to_owned()),
        ("other.test".to_owned(), "u".to_owned()),
    ];
    let of = TaskDocument {
        task,
        registry: "myreg",
        stored,
        is_current,
        logins: &logins,
    };
    task_document(of, with_markers)
}

#[test]
fn docker_task_becomes_a_build() {
    insta::assert_debug_snapshot!(parsed(&docker_task()));
}

#[test]
fn documents_contain_no_secrets() {
    let put = parsed(&docker_task());
    let task = stored(put.definition);
    for with_markers in [false, true] {
        let shown = document(&task, Some(&put.document), true, with_markers);
        let text = shown.to_string();
        for secret in ["hunter2", "ghp_x", "swordfish"] {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
        assert_eq!(text.contains(MARKER), with_markers);
    }
    insta::assert_json_snapshot!(document(&task, Some(&put.document), true, true));
}

#[test]
fn details_of_a_task_put_back_change_nothing() {
    let put = parsed(&docker_task());
    let task = stored(put.definition.clone());
    for current in [true, false] {
        let details = document(&task, Some(&put.document), current, true);
        let again = parse_task("app", &details, "registry.test", Some(&put.definition)).unwrap();
        assert_eq!(again.definition, put.definition, "{current}");
        assert!(again.secrets.iter().all(|secret| secret.value.is_none()));
        assert!(again.logins.iter().all(|login| login.password.is_none()));
        let hosts: Vec<&str> = again
            .logins
            .iter()
            .map(|login| login.host.as_str())
            .collect();
        assert_eq!(hosts, ["other.test", "forge.test"]);
    }
}

#[test]
fn native_tasks_have_documents() {
    let mut definition = parsed(&docker_task()).definition;
    definition.build = None;
    definition.cmd = Some("alpine echo \"hi\"".into());
    let shown = document(&stored(definition.clone()), None, false, false);
    insta::assert_json_snapshot!(shown);
    definition.cmd = None;
    let shown = document(&stored(definition), None, false, false);
    assert_eq!(shown["properties"]["step"]["type"], "FileTask");
}

#[test]
fn members_that_arm_does_not_have_stay() {
    let mut existing = parsed(&docker_task()).definition;
    existing.description = "text".into();
    existing.queue.priority = 3;
    existing.env.insert("A".into(), "b".into());
    existing.notify = vec![acrtask_api::task::Notify {
        url: "hook".into(),
        template: NotifyTemplate::Slack,
        on: Vec::new(),
        sign_with: None,
    }];
    if let Some(timer) = existing.triggers.timers.get_mut("daily") {
        timer.timezone = Some("Europe/Berlin".into());
    }
    let again = parse_task("app", &docker_task(), "registry.test", Some(&existing)).unwrap();
    assert_eq!(again.definition, existing);
}

#[test]
fn patches_merge_by_name_and_remove_only_logins() {
    let put = parsed(&docker_task());
    let task = stored(put.definition.clone());
    let details = document(&task, Some(&put.document), true, true);
    let merged = merge_patch(
        &details,
        &json!({"properties": {
            "platform": {"architecture": "arm", "variant": null},
            "step": {"type": "Docker", "arguments": null, "noCache": true},
            "trigger": {"timerTriggers": [{"name": "weekly", "schedule": "0 5 * * 1"}, {"name": "daily", "status": "Disabled"}]},
            "credentials": {"customRegistries": {"other.test": null, "new.test": {"userName": {"value": "u"}, "password": {"value": "p"}}}},
        }}),
    );
    let again = parsed(&merged);
    let definition = &again.definition;
    assert_eq!(definition.platform.as_deref(), Some("linux/arm"));
    let build = definition.build.as_ref().unwrap();
    assert!(build.no_cache);
    assert_eq!(build.args["a"], "b");
    let timers = &definition.triggers.timers;
    assert!(timers["weekly"].enabled);
    assert!(!timers["daily"].enabled);
    assert_eq!(timers["daily"].schedule, "0 4 * * *");
    let hosts: Vec<&str> = again
        .logins
        .iter()
        .map(|login| login.host.as_str())
        .collect();
    assert_eq!(hosts, ["new.test", "forge.test"]);
}

#[test]
fn step_of_another_kind_replaces_the_old_one() {
    let details = document(
        &stored(parsed(&docker_task()).definition),
        None,
        false,
        true,
    );
    let merged = merge_patch(
        &details,
        &json!({"properties": {"step": {"type": "FileTask", "taskFilePath": "task.yaml"}}}),
    );
    let again = parsed(&merged).definition;
    assert_eq!(again.file.as_deref(), Some("task.yaml"));
    assert_eq!(again.build, None);
    assert_eq!(
        again.context.as_deref(),
        Some("https://forge.test/o/r.git#main")
    );
}

#[test]
fn arrays_in_the_place_of_objects_are_refused() {
    for pointer in [
        "/properties",
        "/properties/step",
        "/properties/step/arguments/0",
        "/properties/trigger",
        "/properties/trigger/timerTriggers/0",
        "/properties/trigger/sourceTriggers/0",
        "/properties/trigger/sourceTriggers/0/sourceRepository",
        "/properties/credentials",
    ] {
        let mut body = docker_task();
        let part = body.pointer_mut(pointer).unwrap();
        // serde accepts the members of a struct as an array.
        *part = part.as_object().unwrap().values().cloned().collect();
        let refused = parse_task("app", &body, "r.test", None);
        assert!(refused.is_err(), "{pointer}");
        *body.pointer_mut(pointer).unwrap() = json!("text");
        let refused = parse_task("app", &body, "r.test", None);
        assert!(refused.is_err(), "{pointer}");
    }
}

#[test]
fn unsupported_tasks_are_refused_with_words() {
    let with = |pointer: &str, value: Value| {
        let mut body = docker_task();
        *body.pointer_mut(pointer).unwrap() = value;
        body
    };
    let base = "/properties/trigger/baseImageTrigger";
    let login = "/properties/credentials/customRegistries/other.test";
    let bodies = [
        json!({}),
        with("/identity", json!({"type": "UserAssigned"})),
        with("/properties/platform", json!({"os": "Windows"})),
        with(
            "/properties/step",
            json!({"type": "EncodedTask", "encodedTaskContent": "%"}),
        ),
        with(
            "/properties/step",
            json!({"type": "FileTask", "valuesFilePath": "v.yaml"}),
        ),
        with(base, json!({"updateTriggerEndpoint": "https://x.test"})),
        with(
            "/properties/trigger/sourceTriggers",
            json!([{"sourceTriggerEvents": ["tag"]}]),
        ),
        with("/properties/trigger/sourceTriggers", json!([{}, {}])),
        with(
            "/properties/trigger/timerTriggers",
            json!([{"name": "a"}, {"name": "a"}]),
        ),
        with(login, json!({"identity": "[system]"})),
        with(
            login,
            json!({"userName": {"type": "Vaultsecret", "value": "https://v"}}),
        ),
        with(login, json!({"password": {"value": "p"}})),
        with("/properties", json!([])),
    ];
    let mut refusals: Vec<String> = bodies
        .iter()
        .map(|body| {
            let refused = parse_task("app", body, "r.test", None);
            refused.unwrap_err().to_string()
        })
        .collect();
    for name in ["", "a/b", "a.b", &"a".repeat(51)] {
        let refused = parse_task(name, &docker_task(), "r.test", None);
        refusals.push(refused.unwrap_err().to_string());
    }
    insta::assert_snapshot!(refusals.join("\n"));
}

/// Returns the JSON pointer of each value in a document.
fn pointers(value: &Value, prefix: &str, found: &mut Vec<String>) {
    found.push(prefix.to_owned());
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                pointers(
                    member,
                    &format!("{prefix}/{}", name.replace('/', "~1")),
                    found,
                );
            }
        }
        Value::Array(items) => {
            for (number, item) in items.iter().enumerate() {
                pointers(item, &format!("{prefix}/{number}"), found);
            }
        }
        _ => {}
    }
}

#[test]
fn no_value_of_a_request_causes_a_panic() {
    let values = [
        Value::Null,
        json!(true),
        json!(-1),
        json!(u64::MAX),
        json!(""),
        json!("text"),
        json!([]),
        json!([[], "x", {}, null]),
        json!({}),
        json!({"a": null, "isSecret": true, "name": "daily"}),
    ];
    let put = parsed(&docker_task());
    let details = document(&stored(put.definition), Some(&put.document), true, true);
    let run = json!({"type": "TaskRunRequest", "taskId": "t", "overrideTaskStepProperties": {
        "values": [{"name": "a", "value": "b", "isSecret": false}]}});
    for original in [docker_task(), details.clone(), run] {
        let mut all = Vec::new();
        pointers(&original, "", &mut all);
        for (pointer, value) in all
            .iter()
            .flat_map(|at| values.iter().map(move |it| (at, it)))
        {
            let mut body = original.clone();
            *body.pointer_mut(pointer).unwrap() = value.clone();
            let _ = crate::parse_run_request(&body, "r.test");
            for body in [merge_patch(&details, &body), body] {
                if let Ok(put) = parse_task("app", &body, "r.test", None) {
                    let task = stored(put.definition);
                    document(&task, Some(&put.document), true, true);
                    document(&task, Some(&put.document), false, false);
                }
            }
        }
    }
}
