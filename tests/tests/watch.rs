//! `--watch`: what is a change and what is none. That one run follows the other is in `program.rs`.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use acrtask_tests::{
    World, engine,
    project::{folder, one_step, write},
};

#[test]
fn what_a_build_does_not_see_is_no_change() {
    let Some(world) = World::find() else { return };
    let files = folder(&[
        ("acr-task.yaml", &one_step("cat deep/state")),
        (".dockerignore", "*.log\ntarget\n"),
        ("deep/state", "first\n"),
        ("target/out", ""),
    ]);
    let run = world.start(files.path(), &["run", "--watch", "-o", "json"]);
    run.wait_for("\"text\":\"first\"");
    run.wait_for("watching . for changes");
    write(files.path(), "noise.log", "x");
    write(files.path(), "target/out", "x");
    write(files.path(), ".git/index", "x");
    write(files.path(), "deep/state", "second\n");
    run.wait_for("\"text\":\"second\"");
    run.wait_for("deep/state changed: running again");
    run.signal("INT");
    let outcome = run.wait();
    assert_eq!(outcome.code, Some(130), "{}", outcome.all());
    for ignored in ["noise.log changed", "target/out changed", ".git"] {
        assert!(!outcome.stderr.contains(ignored), "{}", outcome.all());
    }
    assert_eq!(
        outcome.events_named("run_started").len(),
        2,
        "{}",
        outcome.all()
    );
    assert_eq!(engine::things_of(&outcome.run), Vec::<String>::new());
}

#[test]
fn a_failed_run_does_not_end_the_watch() {
    let Some(world) = World::find() else { return };
    let files = folder(&[
        ("acr-task.yaml", &one_step("cat state; grep -q good state")),
        ("state", "bad\n"),
    ]);
    let run = world.start(files.path(), &["run", "--watch", "-o", "plain"]);
    run.wait_for("one | bad");
    run.wait_for("watching . for changes");
    write(files.path(), "state", "good\n");
    run.wait_for("one | good");
    run.signal("TERM");
    let outcome = run.wait();
    assert_eq!(outcome.code, Some(130), "{}", outcome.all());
}
