//! Snapshot tests of `run.rs`.

use serde_json::json;

use super::*;

fn now() -> Timestamp {
    "2026-01-02T03:10:00Z".parse().unwrap()
}

fn finished_run() -> Run {
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    serde_json::from_value(json!({
        "id": "rdone", "task": "app", "state": "failed", "reason": "step test failed", "trigger": "manual",
        "requestedBy": "laptop", "domain": "the task tapp", "attempt": 2, "runner": "one", "queue": {},
        "spec": { "context": { "type": "url", "url": "https://example.com/a.git#main" }, "source": { "type": "file", "path": "ci.yaml" } },
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

fn queued_run() -> Run {
    serde_json::from_value(json!({
        "id": "rwaits", "state": "queued", "trigger": "manual", "attempt": 0, "queue": {},
        "spec": { "context": { "type": "none" }, "source": { "type": "cmd", "line": "a b" } },
        "createdAt": "2026-01-02T03:09:50Z", "logLength": 0
    }))
    .unwrap()
}

#[test]
fn runs_are_rendered_as_a_table_and_one_by_one() {
    let all = [queued_run(), finished_run()];
    let listed: Vec<RunSummary> = all
        .iter()
        .map(|run| serde_json::from_value(json!(run)).unwrap())
        .collect();
    let mut text = render_runs(&listed, now(), Style::PLAIN);
    for item in &all {
        text += &format!(
            "\n--- {}\n{}",
            item.id,
            render_run(item, now(), Style::PLAIN)
        );
    }
    insta::assert_snapshot!(text);
}

#[test]
fn cascade_run_lists_its_digest_changes() {
    let digest = |digit: &str| format!("sha256:{}", digit.repeat(64));
    let mut item = queued_run();
    item.trigger = "cascade".into();
    item.cascade = Some(
        serde_json::from_value(json!({
            "id": 7, "attempt": 1, "changes": [
                {"reference": "docker.io/library/alpine:3.20", "from": digest("a"), "to": digest("b")},
                {"reference": "reg.example.com/tools:1", "from": digest("1"), "to": digest("2")}
            ]
        }))
        .unwrap(),
    );
    let first = render_run(&item, now(), Style::PLAIN);
    let cascade = item.cascade.as_mut().unwrap();
    (cascade.attempt, cascade.changes) = (2, Vec::new());
    let second = render_run(&item, now(), Style::PLAIN);
    insta::assert_snapshot!(format!("{first}\n{second}"), @r"
    run      rwaits
    state    queued
    context  none
    source   cmd: a b
    trigger  cascade 7
    created  2026-01-02T03:09:50Z (10s ago)

    Digest changes
      docker.io/library/alpine:3.20  aaaaaaaaaaaa -> bbbbbbbbbbbb
      reg.example.com/tools:1        111111111111 -> 222222222222

    run      rwaits
    state    queued
    context  none
    source   cmd: a b
    trigger  cascade 7, start 2
    created  2026-01-02T03:09:50Z (10s ago)
    ");
}

#[test]
fn failure_message_names_state_and_reason() {
    let mut run = finished_run();
    assert_eq!(
        failure_message(&run).unwrap(),
        "run rdone failed: step test failed"
    );
    run.state = RunState::Canceled;
    run.reason = Some("canceled by laptop".into());
    assert_eq!(
        failure_message(&run).unwrap(),
        "run rdone was canceled: canceled by laptop"
    );
    run.state = RunState::Succeeded;
    assert_eq!(failure_message(&run), None);
}

#[test]
fn reasons_of_a_waiting_run_are_rendered() {
    let waiting: Waiting = serde_json::from_value(json!({
        "ahead": 2, "summary": "2 runs come before it",
        "runners": [
            { "runner": "one", "matches": true, "reason": "no free slot" },
            { "runner": "far", "matches": false, "reason": "pool is far" }
        ],
        "blockedBy": "rother"
    }))
    .unwrap();
    insta::assert_snapshot!(render_waiting(&waiting, Style::PLAIN));
}

#[test]
fn tasks_and_runners_are_rendered_as_tables() {
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
        render_tasks(&[task], Style::PLAIN),
        render_runners(&[runner], now(), Style::PLAIN),
        render_runners(&[], now(), Style::PLAIN)
    ));
}
