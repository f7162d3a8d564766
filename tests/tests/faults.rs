//! What breaks while a run is under way: the control plane, the runner, the builder, the connection, the database, the
//! disk. After each the conservation law holds and no line of a log is lost or told twice.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use acrtask_tests::{
    Outcome, World,
    postgres::Postgres,
    project::{folder, one_step},
    proxy::Proxy,
    second_engine::SecondEngine,
    service::{LEASE, Runner, Server, SharedState},
};
use serde_json::Value;

mod common;
use common::{database, law_holds, postgres};

/// A lease that is over, and what is done about it, in time.
const REASSIGNED: Duration = Duration::from_secs(LEASE * 3 / 2);

/// A step that counts aloud, slowly.
fn counting(to: u32) -> String {
    one_step(&format!(
        "i=0; while [ $i -lt {to} ]; do i=$((i+1)); echo line-$i; sleep 0.05; done"
    ))
}

/// The lines that the step `one` printed, as the server's log of the attempt that counts has them.
fn logged(server: &Server, run: &str) -> Vec<String> {
    let outcome = server.ok(&["runs", "logs", run, "-o", "json"]);
    printed(&outcome)
}

fn printed(outcome: &Outcome) -> Vec<String> {
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

fn all_lines(to: u32) -> Vec<String> {
    (1..=to).map(|i| format!("line-{i}")).collect()
}

fn attempts(server: &Server, run: &str) -> u64 {
    server.run_of(run)["attempt"].as_u64().unwrap()
}

#[tokio::test]
async fn the_server_is_killed_and_the_build_goes_on() {
    let Some(world) = World::find() else { return };
    let mut server = Server::start(&world, &["--no-runner"]);
    let runner = Runner::start(&server, "r", &[]);
    let files = folder(&[("acr-task.yaml", &counting(120))]);
    let run = server.run(files.path(), &["run", "-o", "json", "."]);
    for seen in ["line-20\"", "line-60\""] {
        run.wait_for(seen);
        server.kill();
        thread::sleep(Duration::from_secs(1));
        server.restart();
    }
    let id = run.run.clone();
    let outcome = run.wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    assert_eq!(printed(&outcome), all_lines(120));
    assert_eq!(logged(&server, &id), all_lines(120));
    assert_eq!(attempts(&server, &id), 1);
    drop(runner);
    law_holds(&database(&server)).await;
}

#[tokio::test]
async fn the_runner_is_killed_and_another_one_takes_over() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &["--no-runner"]);
    let mut first = Runner::start(&server, "first", &[]);
    let files = folder(&[("acr-task.yaml", &counting(60))]);
    let run = server.run(files.path(), &["run", "-o", "json", "."]);
    run.wait_for("line-20\"");
    let second = Runner::start(&server, "second", &[]);
    first.kill();
    let killed = Instant::now();
    let id = run.run.clone();
    server.wait_for_run(&id, |run| run["attempt"] == 2 && run["state"] == "running");
    assert!(killed.elapsed() < REASSIGNED, "{:?}", killed.elapsed());
    let outcome = run.wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    let shown = server.run_of(&id);
    assert_eq!(shown["runner"], "second", "{shown:#}");
    assert_eq!(logged(&server, &id), all_lines(60));
    // What the first attempt said is kept too.
    let of_first = server.ok(&["runs", "logs", &id, "--attempt", "1", "-o", "json"]);
    assert!(printed(&of_first).len() >= 20, "{}", of_first.all());
    // The same runner comes back and removes what it left on its engine.
    first.restart();
    first.wait_online(&server);
    drop((first, second));
    law_holds(&database(&server)).await;
}

#[tokio::test]
async fn a_runner_that_was_stopped_past_its_lease_is_refused_and_pushes_nothing() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &["--no-runner"]);
    let first = Runner::start(&server, "zombie", &[]);
    // Each attempt makes another image, so that it is seen whose was pushed.
    let task = "version: v1.1.0
steps:
  - {id: image, build: --no-cache -t $Registry/faults/fenced:$ID .}
  - {id: one, cmd: $Registry/faults/fenced:$ID sh -c 'echo waiting; sleep 4'}
  - {id: out, push: [$Registry/faults/fenced:$ID]}
";
    let docker = format!(
        "FROM {}\nRUN cat /proc/sys/kernel/random/uuid > /id\n",
        world.busybox()
    );
    let files = folder(&[("acr-task.yaml", task), ("Dockerfile", &docker)]);
    let run = server.run(files.path(), &["run", "-o", "json", "."]);
    run.wait_for("\"text\":\"waiting\"");
    first.signal("STOP");
    let second = Runner::start(&server, "second", &[]);
    let id = run.run.clone();
    let outcome = run.wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    let shown = server.run_of(&id);
    assert_eq!(
        (&shown["runner"], &shown["attempt"]),
        (&Value::from("second"), &Value::from(2))
    );
    let pushed = world.digest("faults/fenced", &id).await.unwrap();
    first.signal("CONT");
    first.wait_online(&server);
    // Its container has slept enough by now: were it not fenced, it would push within this time.
    thread::sleep(Duration::from_secs(6));
    assert_eq!(world.digest("faults/fenced", &id).await.unwrap(), pushed);
    assert_eq!(
        server.run_of(&id),
        shown,
        "a lost attempt changed something"
    );
    assert!(
        first.log().contains("is not this runner's any more"),
        "{}",
        first.log()
    );
    // It takes the next run as if nothing had been.
    drop(second);
    let files = folder(&[("acr-task.yaml", &one_step("echo again"))]);
    let outcome = server.run(files.path(), &["run", "-o", "json", "."]).wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    law_holds(&database(&server)).await;
}

#[tokio::test]
async fn connections_are_cut_and_slow() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &["--no-runner"]);
    let proxy = Proxy::before(&server.url);
    let runner = Runner::start_at(&server, &proxy.url, "far", &[], &[]);
    let files = folder(&[("acr-task.yaml", &counting(160))]);
    let run = server.run(files.path(), &["run", "-o", "json", "."]);
    run.wait_for("line-10\"");
    proxy.slow(Duration::from_millis(100));
    run.wait_for("line-40\"");
    proxy.slow(Duration::ZERO);
    for _ in 0..3 {
        proxy.drop_all();
        thread::sleep(Duration::from_millis(400));
    }
    proxy.cut();
    thread::sleep(Duration::from_secs(LEASE / 3));
    proxy.mend();
    let id = run.run.clone();
    let outcome = run.wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    assert_eq!(printed(&outcome), all_lines(160));
    assert_eq!(logged(&server, &id), all_lines(160));
    assert_eq!(attempts(&server, &id), 1, "{}", runner.log());
    drop(runner);
    law_holds(&database(&server)).await;
}

#[tokio::test]
async fn the_builder_is_killed_in_the_middle_of_a_build() {
    let Some(world) = World::find() else { return };
    let Some(mut engine) = SecondEngine::start() else {
        return;
    };
    let server = Server::start(&world, &["--no-runner"]);
    let runner = Runner::start_at(
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
    let docker = format!("FROM {}\nRUN echo it began; sleep 600\n", world.busybox());
    let files = folder(&[("acr-task.yaml", task), ("Dockerfile", &docker)]);
    let run = server.run(files.path(), &["run", "-o", "json", "."]);
    run.wait_for("it began");
    engine.kill();
    let id = run.run.clone();
    let outcome = run.wait();
    assert!(matches!(outcome.code, Some(1 | 3)), "{}", outcome.all());
    let shown = server.run_of(&id);
    assert!(
        shown["reason"].as_str().is_some_and(|why| !why.is_empty()),
        "{shown:#}"
    );
    law_holds(&database(&server)).await;
    // With its engine the runner comes back.
    engine.restart();
    let ok = format!("FROM {}\nRUN echo made\n", world.busybox());
    let files = folder(&[("acr-task.yaml", task), ("Dockerfile", &ok)]);
    let outcome = server.run(files.path(), &["run", "-o", "json", "."]).wait();
    assert_eq!(outcome.code, Some(0), "{}\n{}", outcome.all(), runner.log());
    law_holds(&database(&server)).await;
}

/// A small disk, mounted for as long as this lives.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// Nothing where this machine does not let us.
    fn of(kib: u32) -> Option<Self> {
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
async fn the_disk_of_the_runner_is_full() {
    let Some(world) = World::find() else { return };
    let Some(disk) = SmallDisk::of(1024) else {
        return;
    };
    let server = Server::start(&world, &["--no-runner"]);
    let proxy = Proxy::before(&server.url);
    let state = disk.0.path().to_str().unwrap();
    let runner = Runner::start_at(
        &server,
        &proxy.url,
        "small",
        &["--state-dir", state, "--min-free-disk", "0"],
        &[],
    );
    // Nothing leaves the runner for a while, and what the step prints is more than its disk holds.
    let files = folder(&[(
        "acr-task.yaml",
        &one_step("echo line-1; sleep 2; head -c 3000000 /dev/urandom | base64; echo the end"),
    )]);
    let run = server.run(files.path(), &["run", "-o", "json", "."]);
    run.wait_for("line-1\"");
    proxy.cut();
    thread::sleep(Duration::from_secs(LEASE / 2 + 1));
    proxy.mend();
    let id = run.run.clone();
    let outcome = run.wait();
    let shown = server.run_of(&id);
    // Either it waited for room and all of it is there, or it failed and says why; never a log that ends silently.
    if shown["state"] == "succeeded" {
        assert!(logged(&server, &id).iter().any(|line| line == "the end"));
    } else {
        assert_eq!(outcome.code, Some(3), "{}", outcome.code.unwrap_or(-1));
        let why = shown["reason"].as_str().unwrap();
        assert!(why.contains("disk") || why.contains("space"), "{why}");
    }
    // The next run has the disk again.
    let files = folder(&[("acr-task.yaml", &one_step("echo again"))]);
    let outcome = server.run(files.path(), &["run", "-o", "json", "."]).wait();
    assert_eq!(outcome.code, Some(0), "{}\n{}", outcome.all(), runner.log());
    drop(runner);
    law_holds(&database(&server)).await;
}

#[tokio::test]
async fn a_runner_that_drains_finishes_what_it_holds() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &["--no-runner"]);
    let mut first = Runner::start(&server, "first", &[]);
    let files = folder(&[("acr-task.yaml", &counting(60))]);
    let run = server.run(files.path(), &["run", "-o", "json", "."]);
    run.wait_for("line-5\"");
    first.signal("TERM");
    first.wait_state(&server, "draining");
    let queued = server.run(files.path(), &["run", "-o", "json", "."]);
    assert_eq!(first.ended(), Some(0), "{}", first.log());
    let outcome = run.wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    assert_eq!(printed(&outcome), all_lines(60));
    // What came meanwhile waited for the next runner.
    let second = Runner::start(&server, "second", &[]);
    let outcome = queued.wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    drop(second);
    // And with a deadline that is over, what is left goes back to the queue.
    let mut third = Runner::start(&server, "third", &["--drain-timeout", "1s"]);
    let run = server.run(files.path(), &["run", "-o", "json", "."]);
    run.wait_for("line-5\"");
    third.signal("TERM");
    third.ended();
    let fourth = Runner::start(&server, "fourth", &[]);
    let outcome = run.wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    drop(fourth);
    law_holds(&database(&server)).await;
}

#[tokio::test]
async fn cancel_reaches_the_runner_within_a_second() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &[]);
    let files = folder(&[("acr-task.yaml", &one_step("echo began; sleep 600"))]);
    let run = server.run(files.path(), &["run", "-o", "json", "."]);
    run.wait_for("\"text\":\"began\"");
    let asked = Instant::now();
    run.signal("INT");
    run.wait_for("run_finished");
    // Stopping a container takes a second of grace of its own.
    assert!(
        asked.elapsed() < Duration::from_secs(4),
        "{:?}",
        asked.elapsed()
    );
    let id = run.run.clone();
    let outcome = run.wait();
    assert_eq!(outcome.code, Some(130), "{}", outcome.all());
    assert_eq!(server.run_of(&id)["state"], "canceled");
    law_holds(&database(&server)).await;
}

#[tokio::test]
async fn the_database_is_restarted() {
    let Some(world) = World::find() else { return };
    let Some(mut postgres) = Postgres::start() else {
        return;
    };
    let server = Server::start(&world, &["--no-runner", "--database", &postgres.url]);
    let runner = Runner::start(&server, "r", &[]);
    let files = folder(&[("acr-task.yaml", &counting(160))]);
    let run = server.run(files.path(), &["run", "-o", "json", "."]);
    for (seen, crash) in [("line-20\"", false), ("line-60\"", true)] {
        run.wait_for(seen);
        postgres.stop(crash);
        thread::sleep(Duration::from_secs(2));
        postgres.restart();
    }
    let id = run.run.clone();
    let outcome = run.wait();
    assert_eq!(outcome.code, Some(0), "{}\n{}", outcome.all(), server.log());
    assert_eq!(printed(&outcome), all_lines(160));
    assert_eq!(logged(&server, &id), all_lines(160));
    assert_eq!(attempts(&server, &id), 1);
    drop(runner);
    law_holds(&postgres.url).await;
}

/// Two servers share a PostgreSQL, and the runner knows both, after an address where nothing listens. The server that it
/// uses is killed and stays away.
#[tokio::test]
async fn runner_goes_on_at_another_server_when_its_own_is_gone() {
    let Some(world) = World::find() else { return };
    let Some(db) = postgres().await else { return };
    let shared = SharedState::new(&db);
    let flags = shared.flags();
    let mut first = Server::start(&world, &flags);
    let second = Server::start_with(&world, &flags, Some(&first.token));
    let servers = format!("http://127.0.0.1:1,{},{}", first.url, second.url);
    let mut runner = Runner::start_at(&second, &servers, "r", &[], &[]);
    let files = folder(&[("acr-task.yaml", &counting(160))]);
    let run = second.run(files.path(), &["run", "-o", "json", "."]);
    run.wait_for("line-20\"");
    assert!(
        first.log().contains("a runner is connected"),
        "{}",
        first.log()
    );
    first.kill();
    runner.wait_for(&format!("server=\"{}/\"", second.url));
    let id = run.run.clone();
    let outcome = run.wait();
    assert_eq!(outcome.code, Some(0), "{}\n{}", outcome.all(), runner.log());
    assert_eq!(printed(&outcome), all_lines(160));
    assert_eq!(logged(&second, &id), all_lines(160));
    assert_eq!(attempts(&second, &id), 1);
    // It takes new runs there, and one that is started again finds the server that is left.
    runner.kill();
    runner.restart();
    let next = second.run(files.path(), &["run", "-o", "json", "."]).wait();
    assert_eq!(next.code, Some(0), "{}\n{}", next.all(), runner.log());
    drop(runner);
    law_holds(&db).await;
}
