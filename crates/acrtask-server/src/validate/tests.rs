//! Tests of the checks of tasks and runs.

use super::*;

fn task(json: serde_json::Value) -> TaskDefinition {
    serde_json::from_value(json).unwrap()
}

#[test]
fn valid_tasks_have_no_problems() {
    for json in [
        serde_json::json!({"name": "app", "context": "https://example.com/a.git#main:sub", "file": "acr-task.yaml"}),
        serde_json::json!({"name": "team/app", "context": "git@example.com:a/b.git"}),
        serde_json::json!({"name": "team/app", "context": "github.com/a/b"}),
        serde_json::json!({"name": "x", "context": "oci://example.com/a:1", "timeout": "1h30m", "platform": "linux/arm/v7"}),
        serde_json::json!({"name": "x", "text": "steps: []"}),
        serde_json::json!({"name": "x", "text": "{{.Values.steps}}: not yet\n- YAML"}),
        serde_json::json!({"name": "x", "text": "version: v1.1.0\nsecrets:\n  - id: a\n    keyvault: https://vault.example.com/a\nsteps:\n  - build: -t $Registry/app:$Commit ."}),
        serde_json::json!({"name": "x", "cmd": "alpine echo hello", "queue": {"concurrency": {"max": 1}}}),
        serde_json::json!({"name": "x", "context": "https://example.com/a.tar.gz", "build": {"images": ["app:$ID"]}}),
    ] {
        assert_eq!(
            check_task(&task(json.clone())),
            Problems::default(),
            "{json}"
        );
    }
}

#[test]
fn all_problems_of_a_task_are_reported_at_once() {
    let problems = check_task(&task(serde_json::json!({
        "name": "a b",
        "context": "https://me:hunter2@example.com/a.git",
        "file": "../acr-task.yaml",
        "text": "",
        "registry": "https://example.com",
        "secrets": {"a b": "c"},
        "env": {"A=B": ""},
        "aliasImages": {"docker": "x"},
        "platform": "amd64",
        "timeout": "soon",
        "queue": {"priority": 11, "pool": "", "labels": {"": "x"}, "concurrency": {"max": 0}},
        "triggers": {"timers": {"nightly": {"schedule": "0 3 * *"}}}
    })));
    insta::assert_snapshot!(problems.texts.join("\n"));
    assert!(!problems.to_string().contains("hunter2"));
}

#[test]
fn problems_of_an_inline_file_are_reported_with_their_lines() {
    let problems = check_task(&task(serde_json::json!({
        "name": "x",
        "text": "steps:\n  - cmd: alpine\n    build: .\n  - push: reg/app\n    when: [missing]\n",
    })));
    insta::assert_snapshot!(problems.texts.join("\n"));
    let problems = check_task(&task(
        serde_json::json!({"name": "x", "text": "steps: [\n"}),
    ));
    assert!(problems.texts[0].starts_with("`text`, line"), "{problems}");
}

#[test]
fn tasks_that_every_run_refuses_are_not_stored() {
    for json in [
        serde_json::json!({"name": "x", "cmd": "/hello:1"}),
        serde_json::json!({"name": "x", "cmd": "Hello:1"}),
        serde_json::json!({"name": "x", "cmd": "alpine echo `date`"}),
        serde_json::json!({"name": "x", "text": "version: v1.1.0\nsteps:\n  - cmd: Hello:1\n"}),
        serde_json::json!({"name": "x", "context": "https://h.example/a.git", "build": {"images": ["App:1"]}}),
        serde_json::json!({"name": "x", "context": "some/folder"}),
        serde_json::json!({"name": "x", "context": "-"}),
        serde_json::json!({"name": "x", "context": "https://github.com/org/repo"}),
    ] {
        let problems = check_task(&task(json.clone()));
        assert!(!problems.is_empty(), "{json}");
    }
    // Templates can turn a line into anything.
    for json in [
        serde_json::json!({"name": "x", "cmd": "{{.Values.image}} echo"}),
        serde_json::json!({"name": "x", "cmd": "$Registry/base/busybox:1.36 echo hello"}),
        serde_json::json!({"name": "x", "context": "https://h.example/a.git", "build": {"images": ["app:{{.Run.Branch}}", "$Registry/app:$ID"]}}),
    ] {
        assert_eq!(
            check_task(&task(json.clone())),
            Problems::default(),
            "{json}"
        );
    }
}

#[test]
fn unsupported_contexts_are_refused() {
    for context in [
        "/etc",
        "./here",
        "~/x",
        "file:///etc",
        "ext::sh -c id",
        "ext::sh",
        "--upload-pack=x",
        " https://example.com",
        "",
        "https://token@example.com/a.git",
    ] {
        let definition = task(serde_json::json!({"name": "x", "context": context}));
        assert!(!check_task(&definition).is_empty(), "{context}");
    }
}

#[test]
fn task_names_are_checked() {
    for good in ["a", "team/app", "A.b_c-1", &"x".repeat(100)] {
        check_task_name(good).unwrap();
    }
    for bad in [
        "",
        "/",
        "a/",
        "/a",
        "a//b",
        "..",
        "a/../b",
        "a b",
        "ü",
        &"x".repeat(101),
    ] {
        check_task_name(bad).unwrap_err();
    }
}
