//! Each exit code with its causes. Code 130 is tested in `interrupt.rs`, code 124 also in the
//! scenarios.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use acrtask_tests::{
    TestEnvironment, engine,
    project::{create_folder, task_with_one_step},
};

#[test]
fn each_cause_has_its_exit_code() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let dockerfile = format!("FROM {}\n", environment.busybox());
    let build = "steps: [{build: -t app .}]";
    let ok = task_with_one_step("true");
    let cases: &[(&str, &[&str], i32, &str)] = &[
        (&ok, &[], 0, ""),
        (&task_with_one_step("exit 9"), &[], 1, "exit code 9"),
        (
            &task_with_one_step("sleep 600"),
            &["--timeout", "2s"],
            124,
            "timed out",
        ),
        // Usage errors.
        (&ok, &["--no-such-flag"], 2, "--no-such-flag"),
        (&ok, &["--timeout", "soon"], 2, "soon"),
        (&ok, &["-f", "other.yaml"], 2, "other.yaml"),
        (&ok, &["no-such-folder"], 2, "no-such-folder"),
        (&ok, &["--values", "none.yaml"], 2, "none.yaml"),
        (&ok, &["--builder", "ftp://host"], 2, "ftp://host"),
        (&ok, &["--watch", "/dev/null"], 2, "--watch"),
        // Errors in the task file.
        ("steps: [{cmd: x, push: [y]}]", &[], 2, "acr-task.yaml"),
        ("steps: {", &[], 2, "acr-task.yaml"),
        // Unreachable engines and builders.
        (
            &ok,
            &["--docker-host", "unix:///nowhere.sock"],
            3,
            "/nowhere.sock",
        ),
        (
            &ok,
            &["--docker-host", "tcp://127.0.0.1:1"],
            3,
            "127.0.0.1:1",
        ),
        (
            build,
            &["--builder", "unix:///nowhere.sock"],
            3,
            "/nowhere.sock",
        ),
        (build, &["--builder", "tcp://127.0.0.1:1"], 3, "127.0.0.1:1"),
    ];
    for (task, flags, code, message) in cases {
        let files = create_folder(&[("acr-task.yaml", task), ("Dockerfile", &dockerfile)]);
        let args = [&["run", "-o", "json"], *flags].concat();
        let outcome = environment.run_acrtask(files.path(), &args);
        assert_eq!(
            outcome.code,
            Some(*code),
            "{flags:?}: {}",
            outcome.transcript()
        );
        assert!(
            outcome.stderr.contains(message),
            "{flags:?}: {}",
            outcome.transcript()
        );
        // Errors before the start of a run go to standard error only.
        assert_eq!(
            outcome.stdout.is_empty(),
            matches!(code, 2 | 3),
            "{flags:?}: {}",
            outcome.transcript()
        );
        assert_eq!(engine::list_remains(&outcome.run), Vec::<String>::new());
    }
}

#[test]
fn unreachable_registry_exits_with_code_3() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let dockerfile = format!("FROM {}\n", environment.busybox());
    let push = "steps: [{build: '-t 127.0.0.1:1/app:1 .'}, {push: ['127.0.0.1:1/app:1']}]";
    let pull = "steps: [{cmd: '127.0.0.1:1/app:none true'}]";
    for task in [push, pull] {
        let files = create_folder(&[("acr-task.yaml", task), ("Dockerfile", &dockerfile)]);
        let outcome = environment.run_acrtask(files.path(), &["run", "-o", "json"]);
        assert!(
            outcome.transcript().contains("127.0.0.1:1"),
            "{}",
            outcome.transcript()
        );
        assert_eq!(outcome.code, Some(3), "{}", outcome.transcript());
        assert_eq!(engine::list_remains(&outcome.run), Vec::<String>::new());
    }
}
