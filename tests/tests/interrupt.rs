//! Interrupted and killed runs, and the resources they leave. The effect of a signal on a single
//! container is tested in `program.rs`.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    path::Path,
    time::{Duration, Instant},
};

use acrtask_tests::{
    Outcome, RunningProgram, TestEnvironment, engine, new_run_id,
    project::{self, create_folder, task_with_one_step},
};
use wiremock::{Mock, MockServer, ResponseTemplate, matchers::any};

/// Longest time that a run may take to stop and clean up.
const SOON: Duration = Duration::from_secs(15);

/// Returns the names of the entries of `folder`.
fn entry_names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

/// Returns `true` if the command line of a process on this machine contains `token`.
fn is_running(token: &str) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .any(|line| String::from_utf8_lossy(&line).contains(token))
}

/// Sends SIGINT, as Ctrl-C does. Asserts that the run ends soon with the matching exit code.
fn interrupt(run: RunningProgram) -> Outcome {
    let requested = Instant::now();
    run.signal("INT");
    let outcome = run.wait();
    assert!(
        requested.elapsed() < SOON,
        "{:?}: {}",
        requested.elapsed(),
        outcome.transcript()
    );
    assert_eq!(outcome.code, Some(130), "{}", outcome.transcript());
    outcome
}

#[test]
fn interrupted_build_is_stopped_inside_buildkit() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let token = new_run_id();
    let dockerfile = format!(
        "FROM {}\nRUN echo it began; sleep 600; echo end-{token}\n",
        environment.busybox()
    );
    let task = "version: v1.1.0
steps:
  - {id: image, build: -t $Registry/interrupt/app:$ID .}
  - {id: test, cmd: $Registry/interrupt/app:$ID true}
  - {id: out, push: [$Registry/interrupt/app:$ID]}
";
    let files = create_folder(&[("acr-task.yaml", task), ("Dockerfile", &dockerfile)]);
    let run = environment.start(files.path(), &["run", "-o", "json"]);
    run.wait_for("\"text\":\"it began\"");
    let is_visible = is_running(&format!("end-{token}"));
    let requested = Instant::now();
    let outcome = interrupt(run);
    assert_eq!(
        outcome.step_state("image"),
        "canceled",
        "{}",
        outcome.transcript()
    );
    // The signal prevents these steps from starting.
    for step in ["test", "out"] {
        let finished = outcome.events_named("step_finished");
        let event = finished.iter().find(|event| event["step"] == step).unwrap();
        assert_eq!(event["state"], "skipped", "{event}");
        assert_eq!(event["cause"]["type"], "interrupted", "{event}");
    }
    assert_eq!(engine::list_remains(&outcome.run), Vec::<String>::new());
    // Without access to the processes of the engine, this check is skipped.
    while is_visible && is_running(&format!("end-{token}")) {
        assert!(requested.elapsed() < SOON, "BuildKit continues the build");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn summary_shows_the_interrupted_steps() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let task = "version: v1.1.0
steps:
  - {id: server, cmd: $Registry/base/busybox:1.36 sh -c 'echo serving; sleep 600', detach: true}
  - {id: quick, cmd: $Registry/base/busybox:1.36 true, when: ['-']}
  - {id: slow, cmd: $Registry/base/busybox:1.36 sh -c 'echo ready; sleep 600', when: [quick, server]}
  - {id: later, cmd: $Registry/base/busybox:1.36 true}
";
    let files = create_folder(&[("acr-task.yaml", task)]);
    let run = environment.start(files.path(), &["run", "-o", "plain"]);
    run.wait_for("slow   | ready");
    let outcome = interrupt(run);
    let line_of = |step: &str| {
        let mut lines = outcome.stdout.lines().rev();
        let found = lines.find(|line| line.split_whitespace().next() == Some(step));
        found.unwrap_or_default().to_owned()
    };
    assert!(
        line_of("quick").contains("succeeded"),
        "{}",
        outcome.transcript()
    );
    assert!(
        line_of("slow").contains("canceled"),
        "{}",
        outcome.transcript()
    );
    assert!(
        line_of("later").contains("skipped"),
        "{}",
        outcome.transcript()
    );
    assert!(
        outcome.stderr.contains("interrupted"),
        "{}",
        outcome.transcript()
    );
    assert_eq!(engine::list_remains(&outcome.run), Vec::<String>::new());
}

#[tokio::test]
async fn stalled_context_download_can_be_interrupted() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = MockServer::start().await;
    let never = ResponseTemplate::new(200).set_delay(Duration::from_secs(600));
    Mock::given(any()).respond_with(never).mount(&server).await;
    for context in ["context.tar.gz", "app.git"] {
        let scratch = tempfile::tempdir().unwrap();
        let variables = [("TMPDIR", scratch.path().to_str().unwrap())];
        let url = format!("{}/{context}", server.uri());
        let args = ["run", "-o", "json", &url];
        let run = environment.start_with(scratch.path(), &args, &variables, "");
        run.wait_for("fetching");
        let requested = Instant::now();
        run.signal("INT");
        let outcome = run.wait();
        assert!(requested.elapsed() < SOON, "{:?}", requested.elapsed());
        assert_eq!(
            outcome.code,
            Some(130),
            "{context}: {}",
            outcome.transcript()
        );
        assert!(
            outcome.stderr.contains("interrupted"),
            "{}",
            outcome.transcript()
        );
        assert_eq!(
            entry_names(scratch.path()),
            Vec::<String>::new(),
            "{context}"
        );
        assert!(!is_running(&url), "git still runs");
    }
}

#[test]
fn resources_of_a_killed_run_are_removed_but_not_those_of_an_active_run() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let scratch = tempfile::tempdir().unwrap();
    let variables = [("TMPDIR", scratch.path().to_str().unwrap())];
    let task = "version: v1.1.0
steps:
  - {id: image, build: -t $Registry/interrupt/kept:$ID .}
  - id: one
    cmd: $Registry/base/busybox:1.36 sh -c 'echo ready; sleep 600'
    volumeMounts: [{name: data, mountPath: /data}]
volumes:
  - {name: data, secret: {key: dmFsdWU=}}
";
    let dockerfile = format!("FROM {}\n", environment.busybox());
    let files = create_folder(&[("acr-task.yaml", task), ("Dockerfile", &dockerfile)]);
    let here = tempfile::tempdir().unwrap();
    std::fs::write(here.path().join("c.tar.gz"), project::tarball(files.path())).unwrap();
    let args = ["run", "-o", "plain", "c.tar.gz"];
    let killed = environment.start_with(here.path(), &args, &variables, "");
    let active = environment.start_with(here.path(), &args, &variables, "");
    killed.wait_for("one   | ready");
    active.wait_for("one   | ready");
    killed.signal("KILL");
    let killed = killed.wait();
    assert_eq!(killed.code, None, "{}", killed.transcript());
    let left = engine::list_resources(&killed.run);
    assert!(
        left.len() >= 3,
        "a container, a network, a volume: {left:?}"
    );
    let active_resources = engine::list_resources(&active.run);
    let folders = entry_names(scratch.path());
    assert!(folders.len() >= 2, "of each run: {folders:?}");

    let next = create_folder(&[("acr-task.yaml", &task_with_one_step("true"))]);
    let next = environment
        .start_with(next.path(), &["run"], &variables, "")
        .wait();
    assert_eq!(next.code, Some(0), "{}", next.transcript());
    assert_eq!(engine::list_remains(&killed.run), Vec::<String>::new());
    assert_eq!(engine::list_resources(&active.run), active_resources);
    assert!(
        entry_names(scratch.path()).len() < folders.len(),
        "{folders:?}"
    );
    active.signal("TERM");
    let active = active.wait();
    assert_eq!(active.code, Some(130), "{}", active.transcript());
    assert_eq!(engine::list_remains(&active.run), Vec::<String>::new());
    assert_eq!(entry_names(scratch.path()), Vec::<String>::new());
}
