//! A timer that ticks while two servers share it and one of them is killed at the tick: one run, and the timer says so.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use acrtask_tests::{
    World,
    service::{Runner, Server, SharedState},
};

mod common;
use common::{law_holds, postgres};

/// How long the timer has to be known before it ticks.
const SETTLED: Duration = Duration::from_secs(4);
/// How long after a tick its run is there, at the latest.
const LATE: Duration = Duration::from_secs(15);

/// Time since the last full minute, and which one that was.
fn minute() -> (Duration, u64) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let minute = now.as_secs() / 60;
    (now - Duration::from_secs(minute * 60), minute)
}

#[tokio::test]
async fn a_tick_starts_one_run_though_a_server_is_killed() {
    let Some(world) = World::find() else { return };
    let Some(db) = postgres().await else { return };
    let shared = SharedState::new(&db);
    let flags = shared.flags();
    let mut first = Server::start(&world, &flags);
    let second = Server::start_with(&world, &flags, Some(&first.token));
    let runner = Runner::start(&second, "r", &[]);
    let line = format!("{} echo tick", world.busybox());
    second.ok(&[
        "task",
        "create",
        "app",
        "--context",
        "/dev/null",
        "--cmd",
        &line,
    ]);
    let since = minute().0;
    if since + SETTLED > Duration::from_secs(60) {
        thread::sleep(Duration::from_secs(60) - since + Duration::from_millis(200));
    }
    let begun = minute().1;
    second.ok(&[
        "task",
        "timer",
        "add",
        "app",
        "--timer-name",
        "often",
        "--schedule",
        "* * * * *",
    ]);
    // One of the two handles it, and one of the two dies now.
    thread::sleep(Duration::from_secs(60) - minute().0);
    let tick = Instant::now();
    thread::sleep(Duration::from_millis(u64::from(
        minute().0.subsec_micros() % 40,
    )));
    first.kill();
    first.restart();
    let runs = loop {
        let page = second.json(&["runs", "list", "--task", "app", "-o", "json"]);
        let runs = page["items"].as_array().unwrap().clone();
        if !runs.is_empty() {
            break runs;
        }
        assert!(tick.elapsed() < LATE, "{}\n{}", first.log(), second.log());
        thread::sleep(Duration::from_millis(100));
    };
    let id = runs[0]["id"].as_str().unwrap();
    let run = second.wait_for_run(id, |run| {
        !["queued", "leased", "running"].contains(&run["state"].as_str().unwrap())
    });
    assert_eq!(run["state"], "succeeded", "{run:#}");
    assert_eq!(run["trigger"], "timer", "{run:#}");
    assert!(second.ok(&["runs", "logs", id]).stdout.contains("tick"));
    // Longer than a lease, and than any server takes to look again.
    thread::sleep(Duration::from_secs(8));
    let page = second.json(&["runs", "list", "--task", "app", "-o", "json"]);
    let passed = minute().1 - begun;
    let count = page["items"].as_array().unwrap().len() as u64;
    assert_eq!(count, passed, "{page:#}");
    let timers = second.json(&["task", "timer", "list", "app", "-o", "json"]);
    let last = &timers[0]["last"];
    assert!(last["run"].is_string(), "{timers:#}");
    assert_eq!(last["standsFor"], 1, "{timers:#}");
    second.ok(&["task", "timer", "remove", "app", "--timer-name", "often"]);
    drop((runner, first));
    law_holds(&db).await;
}
