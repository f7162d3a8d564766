//! `--watch`: changes that start a run and changes that do not. The order of runs is tested in
//! `program.rs`.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use acrtask_tests::{
    TestEnvironment, engine,
    project::{create_folder, task_with_one_step, write_file},
};

#[test]
fn changes_of_ignored_files_start_no_run() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let files = create_folder(&[
        ("acr-task.yaml", &task_with_one_step("cat deep/state")),
        (".dockerignore", "*.log\ntarget\n"),
        ("deep/state", "first\n"),
        ("target/out", ""),
    ]);
    let run = environment.start(files.path(), &["run", "--watch", "-o", "json"]);
    run.wait_for("\"text\":\"first\"");
    run.wait_for("watching . for changes");
    write_file(files.path(), "noise.log", "x");
    write_file(files.path(), "target/out", "x");
    write_file(files.path(), ".git/index", "x");
    write_file(files.path(), "deep/state", "second\n");
    run.wait_for("\"text\":\"second\"");
    run.wait_for("deep/state changed: running again");
    run.signal("INT");
    let outcome = run.wait();
    assert_eq!(outcome.code, Some(130), "{}", outcome.transcript());
    for ignored in ["noise.log changed", "target/out changed", ".git"] {
        assert!(
            !outcome.stderr.contains(ignored),
            "{}",
            outcome.transcript()
        );
    }
    assert_eq!(
        outcome.events_named("run_started").len(),
        2,
        "{}",
        outcome.transcript()
    );
    assert_eq!(engine::list_remains(&outcome.run), Vec::<String>::new());
}

#[test]
fn failed_run_does_not_end_the_watch() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let files = create_folder(&[
        (
            "acr-task.yaml",
            &task_with_one_step("cat state; grep -q good state"),
        ),
        ("state", "bad\n"),
    ]);
    let run = environment.start(files.path(), &["run", "--watch", "-o", "plain"]);
    run.wait_for("one | bad");
    run.wait_for("watching . for changes");
    write_file(files.path(), "state", "good\n");
    run.wait_for("one | good");
    run.signal("TERM");
    let outcome = run.wait();
    assert_eq!(outcome.code, Some(130), "{}", outcome.transcript());
}
