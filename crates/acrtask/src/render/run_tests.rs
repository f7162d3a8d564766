//! Answers of a server in, tables out.

use serde_json::json;

use super::*;

fn now() -> Timestamp {
    "2026-01-02T03:10:00Z".parse().unwrap()
}

fn over() -> Run {
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    serde_json::from_value(json!({
        "id": "rdone", "task": "app", "state": "failed", "reason": "step test failed", "trigger": "manual",
        "requestedBy": "laptop", "domain": "the task tapp", "attempt": 2, "runner": "one", "queue": {},
        "spec": { "context": { "from": "url", "url": "https://example.com/a.git#main" }, "work": { "do": "file", "path": "ci.yaml" } },
        "createdAt": "2026-01-02T03:04:05Z", "startedAt": "2026-01-02T03:04:10Z", "finishedAt": "2026-01-02T03:05:22Z",
        "logLength": 1000,
        "result": {
            "steps": [
                { "id": "build", "state": "succeeded", "elapsedMs": 61000 },
                { "id": "test", "state": "failed", "reason": "exit code 1", "exit_code": 1, "ignored": false, "elapsedMs": 900 }
            ],
            "images": [{ "step": "build", "name": "reg.example.com/app:1", "digest": digest }],
            "bases": [{ "step": "build", "role": "runtime", "name": "reg.example.com/base:1", "digest": digest, "evidence": "provenance" }]
        }
    }))
    .unwrap()
}

fn queued() -> Run {
    serde_json::from_value(json!({
        "id": "rwaits", "state": "queued", "trigger": "manual", "attempt": 0, "queue": {},
        "spec": { "context": { "from": "none" }, "work": { "do": "cmd", "line": "a b" } },
        "createdAt": "2026-01-02T03:09:50Z", "logLength": 0
    }))
    .unwrap()
}

#[test]
fn runs_as_a_table_and_one_by_one() {
    let all = [queued(), over()];
    let listed: Vec<RunSummary> = all
        .iter()
        .map(|run| serde_json::from_value(json!(run)).unwrap())
        .collect();
    let mut text = runs(&listed, now(), Style::PLAIN);
    for one in &all {
        text += &format!("\n--- {}\n{}", one.id, run(one, now(), Style::PLAIN));
    }
    insta::assert_snapshot!(text);
}

#[test]
fn a_run_of_a_cascade_names_the_bases_that_made_it_necessary() {
    let digest = |digit: &str| format!("sha256:{}", digit.repeat(64));
    let mut one = queued();
    one.trigger = "cascade".into();
    one.cascade = Some(
        serde_json::from_value(json!({
            "id": 7, "attempt": 1, "moved": [
                {"name": "docker.io/library/alpine:3.20", "from": digest("a"), "to": digest("b")},
                {"name": "reg.example.com/tools:1", "from": digest("1"), "to": digest("2")}
            ]
        }))
        .unwrap(),
    );
    let first = run(&one, now(), Style::PLAIN);
    let of = one.cascade.as_mut().unwrap();
    (of.attempt, of.moved) = (2, Vec::new());
    let second = run(&one, now(), Style::PLAIN);
    insta::assert_snapshot!(format!("{first}\n{second}"), @r"
    run      rwaits
    state    queued
    context  none
    work     cmd: a b
    trigger  cascade 7
    created  2026-01-02T03:09:50Z (10s ago)

    Moved bases
      docker.io/library/alpine:3.20  aaaaaaaaaaaa -> bbbbbbbbbbbb
      reg.example.com/tools:1        111111111111 -> 222222222222

    run      rwaits
    state    queued
    context  none
    work     cmd: a b
    trigger  cascade 7, start 2
    created  2026-01-02T03:09:50Z (10s ago)
    ");
}

#[test]
fn verdicts() {
    let mut one = over();
    assert_eq!(verdict(&one).unwrap(), "run rdone failed: step test failed");
    one.state = RunState::Canceled;
    one.reason = Some("canceled by laptop".into());
    assert_eq!(
        verdict(&one).unwrap(),
        "run rdone was stopped: canceled by laptop"
    );
    one.state = RunState::Succeeded;
    assert_eq!(verdict(&one), None);
}

#[test]
fn why_a_run_waits() {
    let waiting: Waiting = serde_json::from_value(json!({
        "ahead": 2, "summary": "2 runs come before it",
        "runners": [
            { "runner": "one", "wouldDo": true, "why": "no free slot" },
            { "runner": "far", "wouldDo": false, "why": "pool is far" }
        ],
        "behind": "rother"
    }))
    .unwrap();
    insta::assert_snapshot!(why(&waiting, Style::PLAIN));
}

#[test]
fn tasks_and_runners_as_tables() {
    let task: Task = serde_json::from_value(json!({
        "id": "t1", "name": "app", "context": "https://example.com/a.git", "generation": 3,
        "triggers": { "commit": {}, "timers": { "night": { "schedule": "0 3 * * *" } } },
        "createdAt": "2026-01-02T03:04:05Z", "updatedAt": "2026-01-02T03:04:05Z"
    }))
    .unwrap();
    let runner: Runner = serde_json::from_value(json!({
        "id": "n1", "name": "one", "state": "online", "pool": "default", "labels": { "disk": "ssd" },
        "platforms": ["linux/amd64"], "slots": 2, "busy": 1, "features": {}, "freeDisk": 12_345_678_901u64,
        "version": "0.1.0", "lastSeenAt": "2026-01-02T03:09:58Z"
    }))
    .unwrap();
    insta::assert_snapshot!(format!(
        "{}\n{}\n{}",
        tasks(&[task], Style::PLAIN),
        runners(&[runner], now(), Style::PLAIN),
        runners(&[], now(), Style::PLAIN)
    ));
}
