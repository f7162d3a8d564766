//! Output of the program: its log formats, and very large output of a step.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use acrtask_tests::{
    TestEnvironment, new_run_id,
    project::{create_folder, task_with_one_step},
};
use serde_json::Value;

#[test]
fn each_event_is_one_json_line() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let files = create_folder(&[(
        "acr-task.yaml",
        &task_with_one_step("echo out; echo err >&2"),
    )]);
    let outcome = environment.run_acrtask(files.path(), &["run", "-o", "json"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    let events = outcome.events();
    let names: Vec<&str> = events
        .iter()
        .map(|e| e["event"].as_str().unwrap())
        .collect();
    let first = names.iter().find(|name| **name != "progress");
    assert_eq!(first, Some(&"run_started"), "{names:?}");
    assert_eq!(names.last(), Some(&"run_finished"), "{names:?}");
    for event in &events {
        assert_eq!(event["run"], outcome.run.as_str());
        assert!(event["time"].as_str().unwrap().ends_with('Z'), "{event}");
    }
    for (stream, text) in [("stdout", "out"), ("stderr", "err")] {
        let found = |e: &&Value| e["stream"] == stream && e["text"] == text;
        assert_eq!(events.iter().filter(found).count(), 1, "{stream}");
    }
    assert_eq!(outcome.stderr, "");
}

#[test]
fn plain_lines_begin_with_their_step() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let task = "version: v1.1.0
steps:
  - {id: a, cmd: $Registry/base/busybox:1.36 sh -c 'seq 1 50', when: ['-']}
  - {id: longer, cmd: $Registry/base/busybox:1.36 sh -c 'seq 101 150', when: ['-']}
";
    let files = create_folder(&[("acr-task.yaml", task)]);
    let outcome = environment.run_acrtask(files.path(), &["run"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    for (prefix, numbers) in [("a      | ", 1..=50), ("longer | ", 101..=150)] {
        let lines = outcome
            .stdout
            .lines()
            .filter_map(|line| line.strip_prefix(prefix));
        let found: Vec<u32> = lines.filter_map(|line| line.parse().ok()).collect();
        assert_eq!(
            found,
            numbers.collect::<Vec<u32>>(),
            "{}",
            outcome.transcript()
        );
    }
    assert!(!outcome.stdout.contains('\x1b'), "no colour in a pipe");
}

/// Returns the allocated memory of the process, in KiB. `None` if the process has ended.
///
/// Pages of the program file are not counted, because they are most of the resident memory of an
/// unoptimized program.
fn allocated_kib(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("RssAnon:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// 100 MiB from one step arrive complete and in order, without being held in memory.
#[test]
fn large_output_is_complete_without_filling_memory() {
    const LINES: u64 = 1 << 20;
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    // Each line is a number of seven digits and padding: 100 bytes with its line end.
    let script = format!(
        "yes {} | head -n {LINES} | nl -v 1000000 -s \"\" -w 7",
        "x".repeat(92)
    );
    let files = create_folder(&[("acr-task.yaml", &task_with_one_step(&script))]);
    let log = files.path().join("log");
    let mut child = environment
        .command()
        .args([
            "run",
            "-o",
            "plain",
            "-r",
            &environment.registry,
            "--id",
            &new_run_id(),
        ])
        .args(["-f", "acr-task.yaml", "/dev/null"])
        .current_dir(files.path())
        .stdout(File::create(&log).unwrap())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let mut kilobytes = 0;
    let status = loop {
        kilobytes = kilobytes.max(allocated_kib(child.id()).unwrap_or_default());
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > Duration::from_secs(140) {
            child.kill().unwrap();
            panic!("not done after {:?}", begun.elapsed());
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success());
    let mut next = 1_000_000;
    for line in BufReader::new(File::open(&log).unwrap()).lines() {
        let line = line.unwrap();
        let Some(number) = line.strip_prefix("one | ").and_then(|text| text.get(..7)) else {
            continue;
        };
        if line.ends_with('x') && !line.contains("cmd:") {
            assert_eq!(number, next.to_string(), "a line is lost or out of order");
            next += 1;
        }
    }
    assert_eq!(next, 1_000_000 + LINES);
    assert!(kilobytes > 0 && kilobytes < 32 << 10, "{kilobytes} KiB");
}

/// A run whose standard error has lost its reader: `acrtask run . 2>&1 >/dev/null | head`.
#[test]
fn closed_standard_error_does_not_stop_a_run() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let files = create_folder(&[("acr-task.yaml", &task_with_one_step("sleep 1; echo out"))]);
    let mut child = environment
        .command()
        .args(["run", "-o", "plain", "-r", &environment.registry])
        .args(["--id", &new_run_id(), "."])
        .current_dir(files.path())
        .env("ACRTASK_LOG", "debug")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    stderr.read_line(&mut String::new()).unwrap();
    drop(stderr);
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("not done after {:?}", begun.elapsed());
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(status.code(), Some(0));
}

/// A prompt or progress bar without a line end is visible while its step runs.
#[test]
fn unfinished_line_is_shown_while_its_step_runs() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let script = "printf \"Proceed? [y/N] \"; sleep 30";
    let files = create_folder(&[("acr-task.yaml", &task_with_one_step(script))]);
    let mut child = environment
        .command()
        .args(["run", "-o", "plain", "-r", &environment.registry])
        .args(["--id", &new_run_id(), "."])
        .current_dir(files.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut lines = lines.map_while(Result::ok);
    let prompt = lines.find(|line| line.starts_with("one | Proceed? [y/N]"));
    let waited = begun.elapsed();
    let interrupt = format!("kill -INT {}", child.id());
    Command::new("sh")
        .args(["-c", &interrupt])
        .status()
        .unwrap();
    lines.for_each(drop);
    child.wait().unwrap();
    assert!(prompt.is_some(), "the prompt was not shown");
    assert!(waited < Duration::from_secs(25), "{waited:?}");
}
