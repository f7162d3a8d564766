//! What the program does around a run: signals, `--watch`, `--cmd`, standard input, the quick build,
//! a terminal.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{path::Path, process::Command};

use acrtask_tests::{World, engine, project};

/// A folder with a task file whose only step `one` runs `script` in the base image's shell.
fn one_step(script: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let line = format!("$Registry/base/busybox:1.36 sh -c '{script}'");
    let task = format!(
        "version: v1.1.0\nsteps:\n  - id: one\n    cmd: {}\n",
        serde_json::json!(line)
    );
    std::fs::write(folder.path().join("acr-task.yaml"), task).unwrap();
    folder
}

#[test]
fn a_signal_stops_the_run_and_everything_is_removed() {
    let Some(world) = World::find() else { return };
    for signal in ["INT", "TERM"] {
        let folder = one_step("echo ready; sleep 600");
        let run = world.start(folder.path(), &["run", "-o", "json"]);
        run.wait_for("\"text\":\"ready\"");
        run.signal(signal);
        let outcome = run.wait();
        assert_eq!(outcome.code, Some(130), "{signal}: {}", outcome.all());
        assert_eq!(outcome.state("one"), "canceled");
        assert_eq!(outcome.events_named("run_finished")[0]["state"], "canceled");
        assert_eq!(engine::things_of(&outcome.run), Vec::<String>::new());
    }
}

#[test]
fn a_second_signal_ends_at_once_and_the_next_start_cleans_up() {
    let Some(world) = World::find() else { return };
    let folder = one_step("trap : TERM; echo ready; while true; do sleep 1; done");
    let run = world.start(folder.path(), &["run", "-o", "plain"]);
    run.wait_for("| ready");
    run.signal("INT");
    run.wait_for("stopping; a second Ctrl-C ends at once");
    run.signal("INT");
    let outcome = run.wait();
    assert_eq!(outcome.code, Some(130), "{}", outcome.all());
    let label = format!("label=io.acrtask.run={}", outcome.run);
    assert!(outcome.stderr.contains(&label), "{}", outcome.all());
    let next = world.acrtask(one_step("true").path(), &["run"]);
    assert_eq!(next.code, Some(0), "{}", next.all());
    assert_eq!(engine::things_of(&outcome.run), Vec::<String>::new());
}

#[test]
fn watch_runs_the_newest_state_and_one_run_at_a_time() {
    let Some(world) = World::find() else { return };
    let folder = one_step("cat state; grep -q fast state || sleep 600");
    let write =
        |state: &str| std::fs::write(folder.path().join("state"), format!("{state}\n")).unwrap();
    write("slow");
    let run = world.start(folder.path(), &["run", "--watch", "-o", "json"]);
    run.wait_for("\"text\":\"slow\"");
    // The run that is under way is stopped.
    write("fast 1");
    run.wait_for("\"text\":\"fast 1\"");
    run.wait_for("watching . for changes");
    // A mistake in the task file does not end the watch.
    let task = std::fs::read_to_string(folder.path().join("acr-task.yaml")).unwrap();
    std::fs::write(
        folder.path().join("acr-task.yaml"),
        "steps: [{cmd: x, push: [y]}]\n",
    )
    .unwrap();
    run.wait_for("1 error");
    std::fs::write(folder.path().join("acr-task.yaml"), task).unwrap();
    write("fast 2");
    run.wait_for("\"text\":\"fast 2\"");
    run.signal("INT");
    let outcome = run.wait();
    assert_eq!(outcome.code, Some(130), "{}", outcome.all());
    let mut open = 0;
    for event in outcome.events() {
        match event["event"].as_str().unwrap() {
            "run_started" => open += 1,
            "run_finished" => open -= 1,
            _ => {}
        }
        assert!(
            (0..=1).contains(&open),
            "two runs at a time: {}",
            outcome.all()
        );
    }
    assert_eq!(
        outcome.events_named("run_finished")[0]["state"],
        "canceled",
        "{}",
        outcome.all()
    );
    assert_eq!(engine::things_of(&outcome.run), Vec::<String>::new());
}

#[test]
fn cmd_runs_one_image_without_a_file() {
    let Some(world) = World::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    let cmd = "$Registry/base/busybox:1.36 echo 'from {{.Run.ID}}'";
    let outcome = world.acrtask(
        folder.path(),
        &["run", "-o", "json", "--cmd", cmd, "/dev/null"],
    );
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    assert_eq!(
        outcome.events_named("output")[0]["text"],
        format!("from {}", outcome.run)
    );
}

#[test]
fn the_task_file_and_the_context_from_standard_input() {
    let Some(world) = World::find() else { return };
    let folder = one_step("cat data.txt");
    std::fs::write(folder.path().join("data.txt"), "from the folder\n").unwrap();
    let task = std::fs::read_to_string(folder.path().join("acr-task.yaml")).unwrap();
    std::fs::remove_file(folder.path().join("acr-task.yaml")).unwrap();
    let outcome = world
        .start_with(
            folder.path(),
            &["run", "-o", "plain", "-f", "-"],
            &[],
            &task,
        )
        .wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    assert!(
        outcome.stdout.contains("one | from the folder\n"),
        "{}",
        outcome.all()
    );

    std::fs::write(folder.path().join("acr-task.yaml"), &task).unwrap();
    let tar = Command::new("tar")
        .args(["-C", folder.path().to_str().unwrap(), "-c", "."])
        .output()
        .unwrap();
    assert!(tar.status.success());
    let tar = String::from_utf8(tar.stdout).expect("a tar of ASCII files is ASCII");
    let elsewhere = tempfile::tempdir().unwrap();
    let outcome = world
        .start_with(elsewhere.path(), &["run", "-o", "plain", "-"], &[], &tar)
        .wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    assert!(
        outcome.stdout.contains("one | from the folder\n"),
        "{}",
        outcome.all()
    );
}

fn dockerfile(folder: &Path, world: &World) {
    let text = format!(
        "FROM {} AS first\nARG PLAIN\nARG TOKEN\nRUN echo plain=$PLAIN token=$TOKEN\n\
         RUN --mount=type=secret,id=key wc -c < /run/secrets/key > /length\nFROM first\nRUN false\n",
        world.busybox()
    );
    std::fs::write(folder.join("Containerfile"), text).unwrap();
    std::fs::write(folder.join("key.txt"), "hidden-key").unwrap();
}

#[tokio::test]
async fn the_quick_build_builds_and_pushes() {
    let Some(world) = World::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    dockerfile(folder.path(), &world);
    let id = acrtask_tests::new_run_id();
    let tag = format!("quick/app:{id}");
    let args = [
        "build",
        "-o",
        "json",
        "-t",
        &tag,
        "-f",
        "Containerfile",
        "--target",
        "first",
        "--build-arg",
        "PLAIN=seen",
        "--secret-build-arg",
        "TOKEN",
        "--secret-file",
        "key=key.txt",
        "--no-cache",
        ".",
    ];
    let outcome = world
        .start_with(folder.path(), &args, &[("TOKEN", "hidden-token")], "")
        .wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    let pushed = &outcome.events_named("image_pushed")[0];
    assert_eq!(pushed["name"], format!("{}/{tag}", world.registry));
    assert_eq!(
        world.digest("quick/app", &id).await.as_deref(),
        pushed["digest"].as_str()
    );
    let all = outcome.all();
    assert!(all.contains("plain=seen token=***"), "{all}");
    assert!(
        !all.contains("hidden-token") && !all.contains("hidden-key"),
        "{all}"
    );
}

#[tokio::test]
async fn the_quick_build_pushes_nothing_when_told_so_or_when_it_fails() {
    let Some(world) = World::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    dockerfile(folder.path(), &world);
    let id = acrtask_tests::new_run_id();
    let tag = format!("quick/app:{id}");
    let build = [
        "build",
        "-o",
        "plain",
        "-t",
        &tag,
        "-f",
        "Containerfile",
        "--secret-file",
        "key=key.txt",
    ];
    let outcome = world.acrtask(
        folder.path(),
        &[&build[..], &["--target", "first", "--no-push"]].concat(),
    );
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    assert_eq!(world.digest("quick/app", &id).await, None);
    let outcome = world.acrtask(folder.path(), &build);
    assert_eq!(outcome.code, Some(1), "{}", outcome.all());
    assert!(
        outcome.stdout.contains(">>> RUN false"),
        "no excerpt: {}",
        outcome.all()
    );
    assert!(outcome.stderr.contains("error: run"), "{}", outcome.all());
    assert_eq!(world.digest("quick/app", &id).await, None);
}

/// Through `script`, which gives the program a terminal.
#[test]
fn a_terminal_has_its_cursor_back_and_the_summary_at_the_end() {
    let Some(world) = World::find() else { return };
    let folder = one_step("echo from the step; exit 7");
    let program = world.program().display();
    let run = format!(
        "stty cols 80 rows 24; exec '{program}' run -r {} --id {}",
        world.registry,
        acrtask_tests::new_run_id()
    );
    let output = world
        .command_of("script")
        .args(["-qec", &run, "/dev/null"])
        .current_dir(folder.path())
        .env("TERM", "xterm-256color")
        .output()
        .expect("`script` of util-linux is there");
    assert_eq!(output.status.code(), Some(1));
    let mut terminal = vt100::Parser::new(24, 80, 0);
    terminal.process(&output.stdout);
    let shown = terminal.screen().contents();
    assert!(!terminal.screen().hide_cursor(), "{shown}");
    assert!(!shown.contains("[+]"), "the frame is still there: {shown}");
    for part in [
        "one | from the step",
        "one  failed",
        "exit code 7",
        "error: run",
    ] {
        assert!(shown.contains(part), "no {part:?} in: {shown}");
    }
}

/// A quoted text over two lines, the second not deeper than its key, as libyaml accepts it.
#[test]
fn a_quoted_line_may_go_on_in_any_column() {
    let Some(world) = World::find() else { return };
    let task = "version: v1.1.0\nsteps:\n- id: one\n  cmd: \"$Registry/base/busybox:1.36 echo one\n  two\"\n";
    let folder = project::folder(&[("acr-task.yaml", task)]);
    let outcome = world.acrtask(folder.path(), &["run", "-o", "plain", "."]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    assert!(
        outcome.stdout.contains("one | one two"),
        "{}",
        outcome.all()
    );
}
