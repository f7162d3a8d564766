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

/// Returns the time that this thread has computed.
fn computed() -> std::time::Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let nanoseconds = stat.split(' ').next().unwrap().parse().unwrap();
    std::time::Duration::from_nanos(nanoseconds)
}

#[test]
fn refused_definitions_cost_little() {
    let rule = |at: usize| {
        let pattern = r"(?u)\pL{200}";
        serde_json::json!({"image": format!("r.example/a{at}"), "pattern": pattern, "value": format!("v{at}")})
    };
    let timers = |count: usize, schedule: &str| -> serde_json::Value {
        let timers = (0..count).map(|at| {
            let timer = serde_json::json!({"schedule": schedule, "timezone": "Europe/Atlantis"});
            (format!("t{at}"), timer)
        });
        serde_json::Value::Object(timers.collect())
    };
    let rules = |count| (0..count).map(rule).collect::<Vec<_>>();
    for (name, json, limit) in [
        (
            "4 MiB",
            serde_json::json!({
                "text": "steps:\n- {cmd: a}\n".repeat(100_000),
                "triggers": {
                    "baseImage": {"tags": rules(20_000)},
                    "timers": timers(10_000, "0 0 30 2 *"),
                },
            }),
            "KiB as JSON",
        ),
        (
            "rules",
            serde_json::json!({"cmd": "x", "triggers": {"baseImage": {"tags": rules(2000)}}}),
            "has 2000 rules",
        ),
        (
            "patterns",
            serde_json::json!({"cmd": "x", "triggers": {"baseImage": {"tags": rules(50)}}}),
            "too large a regular expression",
        ),
        (
            "timers",
            serde_json::json!({"cmd": "x", "triggers": {"timers": timers(2000, "0 0 30 2 *")}}),
            "has 2000 timers",
        ),
        (
            "days",
            serde_json::json!({"cmd": "x", "triggers": {"timers": timers(50, "0 0 1 * MON#2")}}),
            "no month has such a day",
        ),
        (
            "names",
            serde_json::json!({"cmd": "x", "secrets": (0..15_000).map(|at| (format!("a {at}"), "b")).collect::<BTreeMap<_, _>>()}),
            "is not a secret name",
        ),
        (
            "images",
            serde_json::json!({"build": {"images": (0..20_000).map(|at| format!("A{at}")).collect::<Vec<_>>()}}),
            "has 20000 images",
        ),
    ] {
        let mut json = json;
        json["name"] = "app".into();
        let definition = task(json);
        let before = computed();
        let problems = check_task(&definition);
        let cost = computed() - before;
        assert!(problems.to_string().contains(limit), "{name}: {problems}");
        assert!(problems.texts.len() <= MAX_PROBLEMS, "{name}");
        if name == "4 MiB" {
            assert_eq!(problems.texts.len(), 1, "{problems}");
        }
        // Test builds are not optimized. Without the limits, each definition takes seconds.
        let most =
            std::time::Duration::from_millis(if cfg!(debug_assertions) { 1500 } else { 100 });
        assert!(cost < most, "{name}: {cost:?}");
    }
}
