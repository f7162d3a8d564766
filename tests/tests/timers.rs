//! Timer of two servers, one of which is killed when the timer fires. The firing starts exactly one
//! run and is recorded.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use acrtask_tests::{
    TestEnvironment,
    service::{SharedState, TestRunner, TestServer},
};

mod common;
use common::{assert_triggers_accounted, create_postgres_database};

/// Minimum time between the creation of the timer and its first firing.
const SETTLED: Duration = Duration::from_secs(4);
/// Longest time between a firing and its run.
const LATE: Duration = Duration::from_secs(15);

/// Returns the time since the last full minute, and the number of that minute.
fn time_in_minute() -> (Duration, u64) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let minute = now.as_secs() / 60;
    (now - Duration::from_secs(minute * 60), minute)
}

#[tokio::test]
async fn firing_starts_one_run_when_a_server_is_killed() {
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
    let runner = TestRunner::start(&second, "r", &[]);
    let line = format!("{} echo tick", environment.busybox());
    second.run_ok(&[
        "task",
        "create",
        "app",
        "--context",
        "/dev/null",
        "--cmd",
        &line,
    ]);
    let since = time_in_minute().0;
    if since + SETTLED > Duration::from_secs(60) {
        thread::sleep(Duration::from_secs(60) - since + Duration::from_millis(200));
    }
    let begun = time_in_minute().1;
    second.run_ok(&[
        "task",
        "timer",
        "add",
        "app",
        "--timer-name",
        "often",
        "--schedule",
        "* * * * *",
    ]);
    // One of the two servers handles the firing. One of them is killed now.
    thread::sleep(Duration::from_secs(60) - time_in_minute().0);
    let tick = Instant::now();
    thread::sleep(Duration::from_millis(u64::from(
        time_in_minute().0.subsec_micros() % 40,
    )));
    first.kill();
    first.restart();
    let runs = loop {
        let page = second.run_json(&["runs", "list", "--task", "app", "-o", "json"]);
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
    assert!(second.run_ok(&["runs", "logs", id]).stdout.contains("tick"));
    // Longer than a lease, and than the interval in which a server checks the timers.
    thread::sleep(Duration::from_secs(8));
    let page = second.run_json(&["runs", "list", "--task", "app", "-o", "json"]);
    let passed = time_in_minute().1 - begun;
    let count = page["items"].as_array().unwrap().len() as u64;
    assert_eq!(count, passed, "{page:#}");
    let timers = second.run_json(&["task", "timer", "list", "app", "-o", "json"]);
    let last = &timers[0]["last"];
    assert!(last["run"].is_string(), "{timers:#}");
    assert_eq!(last["firingCount"], 1, "{timers:#}");
    second.run_ok(&["task", "timer", "remove", "app", "--timer-name", "often"]);
    drop((runner, first));
    assert_triggers_accounted(&db).await;
}
