//! Features of the program around a run: signals, `--watch`, `--cmd`, standard input, the quick
//! build, and a terminal.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{path::Path, process::Command};

use acrtask_tests::{TestEnvironment, engine, project};

/// Creates a folder with a task file whose only step `one` runs `script` in the shell of the base
/// image.
fn create_one_step_folder(script: &str) -> tempfile::TempDir {
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
fn signal_stops_the_run_and_removes_its_resources() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    for signal in ["INT", "TERM"] {
        let folder = create_one_step_folder("echo ready; sleep 600");
        let run = environment.start(folder.path(), &["run", "-o", "json"]);
        run.wait_for("\"text\":\"ready\"");
        run.signal(signal);
        let outcome = run.wait();
        assert_eq!(
            outcome.code,
            Some(130),
            "{signal}: {}",
            outcome.transcript()
        );
        assert_eq!(outcome.step_state("one"), "canceled");
        assert_eq!(outcome.events_named("run_finished")[0]["state"], "canceled");
        assert_eq!(engine::list_remains(&outcome.run), Vec::<String>::new());
    }
}

#[test]
fn second_signal_exits_at_once_and_the_next_start_cleans_up() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let folder = create_one_step_folder("trap : TERM; echo ready; while true; do sleep 1; done");
    let run = environment.start(folder.path(), &["run", "-o", "plain"]);
    run.wait_for("| ready");
    run.signal("INT");
    run.wait_for("stopping; press Ctrl-C again to exit at once");
    run.signal("INT");
    let outcome = run.wait();
    assert_eq!(outcome.code, Some(130), "{}", outcome.transcript());
    let label = format!("label=io.acrtask.run={}", outcome.run);
    assert!(outcome.stderr.contains(&label), "{}", outcome.transcript());
    let next = environment.run_acrtask(create_one_step_folder("true").path(), &["run"]);
    assert_eq!(next.code, Some(0), "{}", next.transcript());
    assert_eq!(engine::list_remains(&outcome.run), Vec::<String>::new());
}

#[test]
fn watch_runs_the_latest_files_and_one_run_at_a_time() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let folder = create_one_step_folder("cat state; grep -q fast state || sleep 600");
    let write =
        |state: &str| std::fs::write(folder.path().join("state"), format!("{state}\n")).unwrap();
    write("slow");
    let run = environment.start(folder.path(), &["run", "--watch", "-o", "json"]);
    run.wait_for("\"text\":\"slow\"");
    // The active run is stopped.
    write("fast 1");
    run.wait_for("\"text\":\"fast 1\"");
    run.wait_for("watching . for changes");
    // An error in the task file does not end the watch.
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
    assert_eq!(outcome.code, Some(130), "{}", outcome.transcript());
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
            outcome.transcript()
        );
    }
    assert_eq!(
        outcome.events_named("run_finished")[0]["state"],
        "canceled",
        "{}",
        outcome.transcript()
    );
    assert_eq!(engine::list_remains(&outcome.run), Vec::<String>::new());
}

#[test]
fn cmd_runs_one_image_without_a_file() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let cmd = "$Registry/base/busybox:1.36 echo 'from {{.Run.ID}}'";
    let outcome = environment.run_acrtask(
        folder.path(),
        &["run", "-o", "json", "--cmd", cmd, "/dev/null"],
    );
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    assert_eq!(
        outcome.events_named("output")[0]["text"],
        format!("from {}", outcome.run)
    );
}

#[test]
fn task_file_and_context_are_read_from_standard_input() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let folder = create_one_step_folder("cat data.txt");
    std::fs::write(folder.path().join("data.txt"), "from the folder\n").unwrap();
    let task = std::fs::read_to_string(folder.path().join("acr-task.yaml")).unwrap();
    std::fs::remove_file(folder.path().join("acr-task.yaml")).unwrap();
    let outcome = environment
        .start_with(
            folder.path(),
            &["run", "-o", "plain", "-f", "-"],
            &[],
            &task,
        )
        .wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    assert!(
        outcome.stdout.contains("one | from the folder\n"),
        "{}",
        outcome.transcript()
    );

    std::fs::write(folder.path().join("acr-task.yaml"), &task).unwrap();
    let tar = Command::new("tar")
        .args(["-C", folder.path().to_str().unwrap(), "-c", "."])
        .output()
        .unwrap();
    assert!(tar.status.success());
    let tar = String::from_utf8(tar.stdout).expect("a tar of ASCII files is ASCII");
    let elsewhere = tempfile::tempdir().unwrap();
    let outcome = environment
        .start_with(elsewhere.path(), &["run", "-o", "plain", "-"], &[], &tar)
        .wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    assert!(
        outcome.stdout.contains("one | from the folder\n"),
        "{}",
        outcome.transcript()
    );
}

fn write_dockerfile(folder: &Path, environment: &TestEnvironment) {
    let text = format!(
        "FROM {} AS first\nARG PLAIN\nARG TOKEN\nRUN echo plain=$PLAIN token=$TOKEN\n\
         RUN --mount=type=secret,id=key wc -c < /run/secrets/key > /length\nFROM first\nRUN false\n",
        environment.busybox()
    );
    std::fs::write(folder.join("Containerfile"), text).unwrap();
    std::fs::write(folder.join("key.txt"), "hidden-key").unwrap();
}

#[tokio::test]
async fn quick_build_builds_and_pushes() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    write_dockerfile(folder.path(), &environment);
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
    let outcome = environment
        .start_with(folder.path(), &args, &[("TOKEN", "hidden-token")], "")
        .wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    let pushed = &outcome.events_named("image_pushed")[0];
    assert_eq!(pushed["name"], format!("{}/{tag}", environment.registry));
    assert_eq!(
        environment.fetch_digest("quick/app", &id).await.as_deref(),
        pushed["digest"].as_str()
    );
    let all = outcome.transcript();
    assert!(all.contains("plain=seen token=***"), "{all}");
    assert!(
        !all.contains("hidden-token") && !all.contains("hidden-key"),
        "{all}"
    );
}

#[tokio::test]
async fn quick_build_pushes_nothing_with_no_push_or_after_a_failure() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    write_dockerfile(folder.path(), &environment);
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
    let outcome = environment.run_acrtask(
        folder.path(),
        &[&build[..], &["--target", "first", "--no-push"]].concat(),
    );
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    assert_eq!(environment.fetch_digest("quick/app", &id).await, None);
    let outcome = environment.run_acrtask(folder.path(), &build);
    assert_eq!(outcome.code, Some(1), "{}", outcome.transcript());
    assert!(
        outcome.stdout.contains(">>> RUN false"),
        "no excerpt: {}",
        outcome.transcript()
    );
    assert!(
        outcome.stderr.contains("error: run"),
        "{}",
        outcome.transcript()
    );
    assert_eq!(environment.fetch_digest("quick/app", &id).await, None);
}

/// Uses `script`, which gives the program a terminal.
#[test]
fn terminal_ends_with_a_visible_cursor_and_the_summary() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let folder = create_one_step_folder("echo from the step; exit 7");
    let program = environment.program().display();
    let run = format!(
        "stty cols 80 rows 24; exec '{program}' run -r {} --id {}",
        environment.registry,
        acrtask_tests::new_run_id()
    );
    let output = environment
        .command_for("script")
        .args(["-qec", &run, "/dev/null"])
        .current_dir(folder.path())
        .env("TERM", "xterm-256color")
        .output()
        .expect("these tests need `script` of util-linux");
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

/// A quoted text over two lines, the second not deeper than its key. libyaml accepts this.
#[test]
fn quoted_line_may_continue_in_any_column() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let task = "version: v1.1.0\nsteps:\n- id: one\n  cmd: \"$Registry/base/busybox:1.36 echo one\n  two\"\n";
    let folder = project::create_folder(&[("acr-task.yaml", task)]);
    let outcome = environment.run_acrtask(folder.path(), &["run", "-o", "plain", "."]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    assert!(
        outcome.stdout.contains("one | one two"),
        "{}",
        outcome.transcript()
    );
}
