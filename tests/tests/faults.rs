//! Faults during a run: server, runner, builder, connection, database and disk. After each fault
//! the conservation law holds, and no log line is lost or duplicated.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use acrtask_tests::{
    Outcome, TestEnvironment,
    postgres::TestDb,
    project::{create_folder, task_with_one_step},
    proxy::Proxy,
    second_engine::SecondEngine,
    service::{LEASE, SharedState, TestRunner, TestServer},
};
use serde_json::Value;

mod common;
use common::{assert_triggers_accounted, create_postgres_database, database_url};

/// Longest time until an expired lease leads to a new attempt.
const REASSIGNED: Duration = Duration::from_secs(LEASE * 3 / 2);

/// Returns a task whose step prints numbered lines slowly.
fn counting_task(to: u32) -> String {
    task_with_one_step(&format!(
        "i=0; while [ $i -lt {to} ]; do i=$((i+1)); echo line-$i; sleep 0.05; done"
    ))
}

/// Returns the lines of the step `one` in the server's log of the last attempt.
fn logged_lines(server: &TestServer, run: &str) -> Vec<String> {
    let outcome = server.run_ok(&["runs", "logs", run, "-o", "json"]);
    printed_lines(&outcome)
}

fn printed_lines(outcome: &Outcome) -> Vec<String> {
    outcome
        .events_named("output")
        .iter()
        .filter(|event| event["step"] == "one")
        .flat_map(|event| {
            event["text"]
                .as_str()
                .unwrap()
                .lines()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .collect()
}

fn expected_lines(to: u32) -> Vec<String> {
    (1..=to).map(|i| format!("line-{i}")).collect()
}

fn fetch_attempts(server: &TestServer, run: &str) -> u64 {
    server.fetch_run(run)["attempt"].as_u64().unwrap()
}

#[tokio::test]
async fn run_continues_when_its_server_is_killed() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let mut server = TestServer::start(&environment, &["--no-runner"]);
    let runner = TestRunner::start(&server, "r", &[]);
    let files = create_folder(&[("acr-task.yaml", &counting_task(120))]);
    let run = server.run(files.path(), &["run", "-o", "json", "."]);
    for line in ["line-20\"", "line-60\""] {
        run.wait_for(line);
        server.kill();
        thread::sleep(Duration::from_secs(1));
        server.restart();
    }
    let id = run.run.clone();
    let outcome = run.wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    assert_eq!(printed_lines(&outcome), expected_lines(120));
    assert_eq!(logged_lines(&server, &id), expected_lines(120));
    assert_eq!(fetch_attempts(&server, &id), 1);
    drop(runner);
    assert_triggers_accounted(&database_url(&server)).await;
}

#[tokio::test]
async fn another_runner_takes_over_when_a_runner_is_killed() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &["--no-runner"]);
    let mut first = TestRunner::start(&server, "first", &[]);
    let files = create_folder(&[("acr-task.yaml", &counting_task(60))]);
    let run = server.run(files.path(), &["run", "-o", "json", "."]);
    run.wait_for("line-20\"");
    let second = TestRunner::start(&server, "second", &[]);
    first.kill();
    let killed = Instant::now();
    let id = run.run.clone();
    server.wait_for_run(&id, |run| run["attempt"] == 2 && run["state"] == "running");
    assert!(killed.elapsed() < REASSIGNED, "{:?}", killed.elapsed());
    let outcome = run.wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    let shown = server.fetch_run(&id);
    assert_eq!(shown["runner"], "second", "{shown:#}");
    assert_eq!(logged_lines(&server, &id), expected_lines(60));
    // The log of the first attempt is kept too.
    let of_first = server.run_ok(&["runs", "logs", &id, "--attempt", "1", "-o", "json"]);
    assert!(
        printed_lines(&of_first).len() >= 20,
        "{}",
        of_first.transcript()
    );
    // The first runner restarts and removes the containers it left on its engine.
    first.restart();
    first.wait_online(&server);
    drop((first, second));
    assert_triggers_accounted(&database_url(&server)).await;
}

#[tokio::test]
async fn runner_with_an_expired_lease_is_refused_and_pushes_nothing() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &["--no-runner"]);
    let first = TestRunner::start(&server, "zombie", &[]);
    // Each attempt builds a different image, so that the digest shows which attempt pushed.
    let task = "version: v1.1.0
steps:
  - {id: image, build: --no-cache -t $Registry/faults/fenced:$ID .}
  - {id: one, cmd: $Registry/faults/fenced:$ID sh -c 'echo waiting; sleep 4'}
  - {id: out, push: [$Registry/faults/fenced:$ID]}
";
    let docker = format!(
        "FROM {}\nRUN cat /proc/sys/kernel/random/uuid > /id\n",
        environment.busybox()
    );
    let files = create_folder(&[("acr-task.yaml", task), ("Dockerfile", &docker)]);
    let run = server.run(files.path(), &["run", "-o", "json", "."]);
    run.wait_for("\"text\":\"waiting\"");
    first.signal("STOP");
    let second = TestRunner::start(&server, "second", &[]);
    let id = run.run.clone();
    let outcome = run.wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    let shown = server.fetch_run(&id);
    assert_eq!(
        (&shown["runner"], &shown["attempt"]),
        (&Value::from("second"), &Value::from(2))
    );
    let pushed = environment
        .fetch_digest("faults/fenced", &id)
        .await
        .unwrap();
    first.signal("CONT");
    first.wait_online(&server);
    // The container's step is over by now. Without fencing, the runner would push within this time.
    thread::sleep(Duration::from_secs(6));
    assert_eq!(
        environment
            .fetch_digest("faults/fenced", &id)
            .await
            .unwrap(),
        pushed
    );
    assert_eq!(
        server.fetch_run(&id),
        shown,
        "an expired attempt changed the run"
    );
    assert!(first.log().contains("lease was lost"), "{}", first.log());
    // The fenced runner executes the next run normally.
    drop(second);
    let files = create_folder(&[("acr-task.yaml", &task_with_one_step("echo again"))]);
    let outcome = server.run(files.path(), &["run", "-o", "json", "."]).wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    assert_triggers_accounted(&database_url(&server)).await;
}

#[tokio::test]
async fn run_survives_cut_and_slow_connections() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &["--no-runner"]);
    let proxy = Proxy::start(&server.url);
    let runner = TestRunner::start_at(&server, &proxy.url, "far", &[], &[]);
    let files = create_folder(&[("acr-task.yaml", &counting_task(160))]);
    let run = server.run(files.path(), &["run", "-o", "json", "."]);
    run.wait_for("line-10\"");
    proxy.delay_chunks(Duration::from_millis(100));
    run.wait_for("line-40\"");
    proxy.delay_chunks(Duration::ZERO);
    for _ in 0..3 {
        proxy.drop_connections();
        thread::sleep(Duration::from_millis(400));
    }
    proxy.cut();
    thread::sleep(Duration::from_secs(LEASE / 3));
    proxy.restore();
    let id = run.run.clone();
    let outcome = run.wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    assert_eq!(printed_lines(&outcome), expected_lines(160));
    assert_eq!(logged_lines(&server, &id), expected_lines(160));
    assert_eq!(fetch_attempts(&server, &id), 1, "{}", runner.log());
    drop(runner);
    assert_triggers_accounted(&database_url(&server)).await;
}

#[tokio::test]
async fn run_fails_with_a_reason_when_its_builder_is_killed() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let Some(mut engine) = SecondEngine::start() else {
        return;
    };
    let server = TestServer::start(&environment, &["--no-runner"]);
    let runner = TestRunner::start_at(
        &server,
        &server.url,
        "r",
        &["--docker-host", &engine.host],
        &[("DOCKER_HOST", &engine.host)],
    );
    let task = "version: v1.1.0
steps:
  - {id: image, build: -t $Registry/faults/killed:$ID .}
";
    let docker = format!(
        "FROM {}\nRUN echo it began; sleep 600\n",
        environment.busybox()
    );
    let files = create_folder(&[("acr-task.yaml", task), ("Dockerfile", &docker)]);
    let run = server.run(files.path(), &["run", "-o", "json", "."]);
    run.wait_for("it began");
    engine.kill();
    let id = run.run.clone();
    let outcome = run.wait();
    assert!(
        matches!(outcome.code, Some(1 | 3)),
        "{}",
        outcome.transcript()
    );
    let shown = server.fetch_run(&id);
    assert!(
        shown["reason"].as_str().is_some_and(|why| !why.is_empty()),
        "{shown:#}"
    );
    assert_triggers_accounted(&database_url(&server)).await;
    // The runner works again when its engine does.
    engine.restart();
    let ok = format!("FROM {}\nRUN echo made\n", environment.busybox());
    let files = create_folder(&[("acr-task.yaml", task), ("Dockerfile", &ok)]);
    let outcome = server.run(files.path(), &["run", "-o", "json", "."]).wait();
    assert_eq!(
        outcome.code,
        Some(0),
        "{}\n{}",
        outcome.transcript(),
        runner.log()
    );
    assert_triggers_accounted(&database_url(&server)).await;
}

/// Small file system, mounted until the value is dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// Mounts a disk of `kib` KiB. `None` if this machine does not allow mounts.
    fn mount(kib: u32) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={kib}k,mode=700"),
                "tmpfs",
            ])
            .arg(folder.path())
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then_some(Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn full_disk_of_a_runner_never_truncates_a_log_silently() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let Some(disk) = SmallDisk::mount(1024) else {
        return;
    };
    let server = TestServer::start(&environment, &["--no-runner"]);
    let proxy = Proxy::start(&server.url);
    let state = disk.0.path().to_str().unwrap();
    let runner = TestRunner::start_at(
        &server,
        &proxy.url,
        "small",
        &["--state-dir", state, "--min-free-disk", "0"],
        &[],
    );
    // The runner cannot send anything for a while, and the step prints more than the disk can
    // store.
    let files = create_folder(&[(
        "acr-task.yaml",
        &task_with_one_step(
            "echo line-1; sleep 2; head -c 3000000 /dev/urandom | base64; echo the end",
        ),
    )]);
    let run = server.run(files.path(), &["run", "-o", "json", "."]);
    run.wait_for("line-1\"");
    proxy.cut();
    thread::sleep(Duration::from_secs(LEASE / 2 + 1));
    proxy.restore();
    let id = run.run.clone();
    let outcome = run.wait();
    let shown = server.fetch_run(&id);
    // Either the step waited for space and the log is complete, or the run failed with a reason. A
    // log never ends silently.
    if shown["state"] == "succeeded" {
        assert!(
            logged_lines(&server, &id)
                .iter()
                .any(|line| line == "the end")
        );
    } else {
        assert_eq!(outcome.code, Some(3), "{}", outcome.code.unwrap_or(-1));
        let why = shown["reason"].as_str().unwrap();
        assert!(why.contains("disk") || why.contains("space"), "{why}");
    }
    // The next run can use the disk again.
    let files = create_folder(&[("acr-task.yaml", &task_with_one_step("echo again"))]);
    let outcome = server.run(files.path(), &["run", "-o", "json", "."]).wait();
    assert_eq!(
        outcome.code,
        Some(0),
        "{}\n{}",
        outcome.transcript(),
        runner.log()
    );
    drop(runner);
    assert_triggers_accounted(&database_url(&server)).await;
}

#[tokio::test]
async fn draining_runner_finishes_its_active_attempts() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &["--no-runner"]);
    let mut first = TestRunner::start(&server, "first", &[]);
    let files = create_folder(&[("acr-task.yaml", &counting_task(60))]);
    let run = server.run(files.path(), &["run", "-o", "json", "."]);
    run.wait_for("line-5\"");
    first.signal("TERM");
    first.wait_state(&server, "draining");
    let queued = server.run(files.path(), &["run", "-o", "json", "."]);
    assert_eq!(first.wait_for_exit(), Some(0), "{}", first.log());
    let outcome = run.wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    assert_eq!(printed_lines(&outcome), expected_lines(60));
    // The run queued meanwhile waited for the next runner.
    let second = TestRunner::start(&server, "second", &[]);
    let outcome = queued.wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    drop(second);
    // After the drain timeout, the remaining run returns to the queue.
    let mut third = TestRunner::start(&server, "third", &["--drain-timeout", "1s"]);
    let run = server.run(files.path(), &["run", "-o", "json", "."]);
    run.wait_for("line-5\"");
    third.signal("TERM");
    third.wait_for_exit();
    let fourth = TestRunner::start(&server, "fourth", &[]);
    let outcome = run.wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    drop(fourth);
    assert_triggers_accounted(&database_url(&server)).await;
}

#[tokio::test]
async fn cancel_reaches_a_sleeping_container() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &[]);
    let files = create_folder(&[(
        "acr-task.yaml",
        &task_with_one_step("echo began; sleep 600"),
    )]);
    let run = server.run(files.path(), &["run", "-o", "json", "."]);
    run.wait_for("\"text\":\"began\"");
    let requested = Instant::now();
    run.signal("INT");
    run.wait_for("run_finished");
    assert!(
        requested.elapsed() < Duration::from_secs(10),
        "{:?}",
        requested.elapsed()
    );
    let id = run.run.clone();
    let outcome = run.wait();
    assert_eq!(outcome.code, Some(130), "{}", outcome.transcript());
    assert_eq!(server.fetch_run(&id)["state"], "canceled");
    assert_triggers_accounted(&database_url(&server)).await;
}

#[tokio::test]
async fn run_survives_restarts_of_the_database() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let Some(mut postgres) = TestDb::start() else {
        return;
    };
    let server = TestServer::start(&environment, &["--no-runner", "--database", &postgres.url]);
    let runner = TestRunner::start(&server, "r", &[]);
    let files = create_folder(&[("acr-task.yaml", &counting_task(160))]);
    let run = server.run(files.path(), &["run", "-o", "json", "."]);
    for (line, crash) in [("line-20\"", false), ("line-60\"", true)] {
        run.wait_for(line);
        postgres.stop(crash);
        thread::sleep(Duration::from_secs(2));
        postgres.restart();
    }
    let id = run.run.clone();
    let outcome = run.wait();
    assert_eq!(
        outcome.code,
        Some(0),
        "{}\n{}",
        outcome.transcript(),
        server.log()
    );
    assert_eq!(printed_lines(&outcome), expected_lines(160));
    assert_eq!(logged_lines(&server, &id), expected_lines(160));
    assert_eq!(fetch_attempts(&server, &id), 1);
    drop(runner);
    assert_triggers_accounted(&postgres.url).await;
}

/// Two servers share a PostgreSQL. The runner has three server URLs, and no process listens on the
/// first. The server that the runner uses is killed and stays down.
#[tokio::test]
async fn runner_continues_at_another_server_when_its_own_is_gone() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let Some(db) = create_postgres_database().await else {
        return;
    };
    let shared = SharedState::new(&db);
    let flags = shared.flags();
    let mut first = TestServer::start(&environment, &flags);
    let second = TestServer::start_with(&environment, &flags, Some(&first.token));
    let servers = format!("http://127.0.0.1:1,{},{}", first.url, second.url);
    let mut runner = TestRunner::start_at(&second, &servers, "r", &[], &[]);
    let files = create_folder(&[("acr-task.yaml", &counting_task(160))]);
    let run = second.run(files.path(), &["run", "-o", "json", "."]);
    run.wait_for("line-20\"");
    assert!(first.log().contains("runner connected"), "{}", first.log());
    first.kill();
    runner.wait_for(&format!("server=\"{}/\"", second.url));
    let id = run.run.clone();
    let outcome = run.wait();
    assert_eq!(
        outcome.code,
        Some(0),
        "{}\n{}",
        outcome.transcript(),
        runner.log()
    );
    assert_eq!(printed_lines(&outcome), expected_lines(160));
    assert_eq!(logged_lines(&second, &id), expected_lines(160));
    assert_eq!(fetch_attempts(&second, &id), 1);
    // The runner executes new runs there. After a restart it finds the remaining server.
    runner.kill();
    runner.restart();
    let next = second.run(files.path(), &["run", "-o", "json", "."]).wait();
    assert_eq!(
        next.code,
        Some(0),
        "{}\n{}",
        next.transcript(),
        runner.log()
    );
    drop(runner);
    assert_triggers_accounted(&db).await;
}
