//! Each exit code, from what causes it. 130 is in `interrupt.rs`, 124 also among the scenarios.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use acrtask_tests::{
    World, engine,
    project::{folder, one_step},
};

#[test]
fn each_cause_has_its_code() {
    let Some(world) = World::find() else { return };
    let dockerfile = format!("FROM {}\n", world.busybox());
    let build = "steps: [{build: -t app .}]";
    let ok = one_step("true");
    let cases: &[(&str, &[&str], i32, &str)] = &[
        (&ok, &[], 0, ""),
        (&one_step("exit 9"), &[], 1, "exit code 9"),
        (
            &one_step("sleep 600"),
            &["--timeout", "2s"],
            124,
            "timed out",
        ),
        // The usage.
        (&ok, &["--no-such-flag"], 2, "--no-such-flag"),
        (&ok, &["--timeout", "soon"], 2, "soon"),
        (&ok, &["-f", "other.yaml"], 2, "other.yaml"),
        (&ok, &["no-such-folder"], 2, "no-such-folder"),
        (&ok, &["--values", "none.yaml"], 2, "none.yaml"),
        (&ok, &["--builder", "ftp://host"], 2, "ftp://host"),
        (&ok, &["--watch", "/dev/null"], 2, "--watch"),
        // The task file.
        ("steps: [{cmd: x, push: [y]}]", &[], 2, "acr-task.yaml"),
        ("steps: {", &[], 2, "acr-task.yaml"),
        // The engine and the builder.
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
    for (task, flags, code, said) in cases {
        let files = folder(&[("acr-task.yaml", task), ("Dockerfile", &dockerfile)]);
        let args = [&["run", "-o", "json"], *flags].concat();
        let outcome = world.acrtask(files.path(), &args);
        assert_eq!(outcome.code, Some(*code), "{flags:?}: {}", outcome.all());
        assert!(
            outcome.stderr.contains(said),
            "{flags:?}: {}",
            outcome.all()
        );
        // What is wrong before a run begins is talk, not data.
        assert_eq!(
            outcome.stdout.is_empty(),
            matches!(code, 2 | 3),
            "{flags:?}: {}",
            outcome.all()
        );
        assert_eq!(engine::things_of(&outcome.run), Vec::<String>::new());
    }
}

#[test]
fn a_registry_that_cannot_be_reached() {
    let Some(world) = World::find() else { return };
    let dockerfile = format!("FROM {}\n", world.busybox());
    let push = "steps: [{build: '-t 127.0.0.1:1/app:1 .'}, {push: ['127.0.0.1:1/app:1']}]";
    let pull = "steps: [{cmd: '127.0.0.1:1/app:none true'}]";
    for task in [push, pull] {
        let files = folder(&[("acr-task.yaml", task), ("Dockerfile", &dockerfile)]);
        let outcome = world.acrtask(files.path(), &["run", "-o", "json"]);
        assert!(outcome.all().contains("127.0.0.1:1"), "{}", outcome.all());
        assert_eq!(outcome.code, Some(3), "{}", outcome.all());
        assert_eq!(engine::things_of(&outcome.run), Vec::<String>::new());
    }
}
