//! Runs that are interrupted or killed, and what is left of them. What a signal does to a single container is in
//! `program.rs`.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    path::Path,
    time::{Duration, Instant},
};

use acrtask_tests::{
    Outcome, Running, World, engine, new_run_id,
    project::{self, folder, one_step},
};
use wiremock::{Mock, MockServer, ResponseTemplate, matchers::any};

/// How long a run may take to stop and to clean up.
const SOON: Duration = Duration::from_secs(15);

/// What lies in `folder`.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

/// Whether a process whose command line holds `token` runs on this machine.
fn is_running(token: &str) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .any(|line| String::from_utf8_lossy(&line).contains(token))
}

/// Sends the signal of Ctrl-C: the run must end soon, and say with its exit code why.
fn interrupt(run: Running) -> Outcome {
    let asked = Instant::now();
    run.signal("INT");
    let outcome = run.wait();
    assert!(
        asked.elapsed() < SOON,
        "{:?}: {}",
        asked.elapsed(),
        outcome.all()
    );
    assert_eq!(outcome.code, Some(130), "{}", outcome.all());
    outcome
}

#[test]
fn a_build_is_stopped_also_inside_of_buildkit() {
    let Some(world) = World::find() else { return };
    let token = new_run_id();
    let dockerfile = format!(
        "FROM {}\nRUN echo it began; sleep 600; echo end-{token}\n",
        world.busybox()
    );
    let task = "version: v1.1.0
steps:
  - {id: image, build: -t $Registry/interrupt/app:$ID .}
  - {id: test, cmd: $Registry/interrupt/app:$ID true}
  - {id: out, push: [$Registry/interrupt/app:$ID]}
";
    let files = folder(&[("acr-task.yaml", task), ("Dockerfile", &dockerfile)]);
    let run = world.start(files.path(), &["run", "-o", "json"]);
    run.wait_for("\"text\":\"it began\"");
    let is_seen = is_running(&format!("end-{token}"));
    let asked = Instant::now();
    let outcome = interrupt(run);
    assert_eq!(outcome.state("image"), "canceled", "{}", outcome.all());
    // Never started, because of the same signal.
    for step in ["test", "out"] {
        let finished = outcome.events_named("step_finished");
        let event = finished.iter().find(|event| event["step"] == step).unwrap();
        assert_eq!(event["state"], "skipped", "{event}");
        assert_eq!(event["because"]["why"], "interrupted", "{event}");
    }
    assert_eq!(engine::things_of(&outcome.run), Vec::<String>::new());
    // Where the engine's processes cannot be seen from here, there is nothing to look at.
    while is_seen && is_running(&format!("end-{token}")) {
        assert!(asked.elapsed() < SOON, "BuildKit goes on with the build");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn the_summary_says_what_was_stopped() {
    let Some(world) = World::find() else { return };
    let task = "version: v1.1.0
steps:
  - {id: server, cmd: $Registry/base/busybox:1.36 sh -c 'echo serving; sleep 600', detach: true}
  - {id: quick, cmd: $Registry/base/busybox:1.36 true, when: ['-']}
  - {id: slow, cmd: $Registry/base/busybox:1.36 sh -c 'echo ready; sleep 600', when: [quick, server]}
  - {id: later, cmd: $Registry/base/busybox:1.36 true}
";
    let files = folder(&[("acr-task.yaml", task)]);
    let run = world.start(files.path(), &["run", "-o", "plain"]);
    run.wait_for("slow   | ready");
    let outcome = interrupt(run);
    let line_of = |step: &str| {
        let mut lines = outcome.stdout.lines().rev();
        let found = lines.find(|line| line.split_whitespace().next() == Some(step));
        found.unwrap_or_default().to_owned()
    };
    assert!(line_of("quick").contains("succeeded"), "{}", outcome.all());
    assert!(line_of("slow").contains("canceled"), "{}", outcome.all());
    assert!(line_of("later").contains("skipped"), "{}", outcome.all());
    assert!(outcome.stderr.contains("interrupted"), "{}", outcome.all());
    assert_eq!(engine::things_of(&outcome.run), Vec::<String>::new());
}

#[tokio::test]
async fn a_context_that_does_not_come_can_be_interrupted() {
    let Some(world) = World::find() else { return };
    let server = MockServer::start().await;
    let never = ResponseTemplate::new(200).set_delay(Duration::from_secs(600));
    Mock::given(any()).respond_with(never).mount(&server).await;
    for context in ["context.tar.gz", "app.git"] {
        let scratch = tempfile::tempdir().unwrap();
        let variables = [("TMPDIR", scratch.path().to_str().unwrap())];
        let url = format!("{}/{context}", server.uri());
        let args = ["run", "-o", "json", &url];
        let run = world.start_with(scratch.path(), &args, &variables, "");
        run.wait_for("fetching");
        let asked = Instant::now();
        run.signal("INT");
        let outcome = run.wait();
        assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
        assert_eq!(outcome.code, Some(130), "{context}: {}", outcome.all());
        assert!(outcome.stderr.contains("interrupted"), "{}", outcome.all());
        assert_eq!(names(scratch.path()), Vec::<String>::new(), "{context}");
        assert!(!is_running(&url), "git goes on");
    }
}

#[test]
fn what_a_killed_run_left_is_removed_by_the_next_and_what_lives_is_not() {
    let Some(world) = World::find() else { return };
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
    let dockerfile = format!("FROM {}\n", world.busybox());
    let files = folder(&[("acr-task.yaml", task), ("Dockerfile", &dockerfile)]);
    let here = tempfile::tempdir().unwrap();
    std::fs::write(here.path().join("c.tar.gz"), project::tarball(files.path())).unwrap();
    let args = ["run", "-o", "plain", "c.tar.gz"];
    let killed = world.start_with(here.path(), &args, &variables, "");
    let lives = world.start_with(here.path(), &args, &variables, "");
    killed.wait_for("one   | ready");
    lives.wait_for("one   | ready");
    killed.signal("KILL");
    let killed = killed.wait();
    assert_eq!(killed.code, None, "{}", killed.all());
    let left = engine::things_of(&killed.run);
    assert!(
        left.len() >= 3,
        "a container, a network, a volume: {left:?}"
    );
    let alive = engine::things_of(&lives.run);
    let folders = names(scratch.path());
    assert!(folders.len() >= 2, "of each run: {folders:?}");

    let next = folder(&[("acr-task.yaml", &one_step("true"))]);
    let next = world
        .start_with(next.path(), &["run"], &variables, "")
        .wait();
    assert_eq!(next.code, Some(0), "{}", next.all());
    assert_eq!(engine::things_of(&killed.run), Vec::<String>::new());
    assert_eq!(engine::things_of(&lives.run), alive);
    assert!(names(scratch.path()).len() < folders.len(), "{folders:?}");
    lives.signal("TERM");
    let lives = lives.wait();
    assert_eq!(lives.code, Some(130), "{}", lives.all());
    assert_eq!(engine::things_of(&lives.run), Vec::<String>::new());
    assert_eq!(names(scratch.path()), Vec::<String>::new());
}
