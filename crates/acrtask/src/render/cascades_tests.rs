//! Tests of `cascades.rs`: what people see.

use serde_json::{Value, json};

use super::*;

fn sha(letter: char) -> String {
    format!("sha256:{}", letter.to_string().repeat(64))
}

fn now() -> Timestamp {
    "2026-01-02T03:04:05Z".parse().unwrap()
}

fn node(task: &str, state: &str, more: Value) -> Value {
    let mut node = json!({"task": task, "state": state, "attempts": 0});
    let all = node.as_object_mut().unwrap();
    all.extend(more.as_object().unwrap().clone());
    node
}

fn on_base() -> Value {
    json!({"docker.io/library/alpine:3.20": sha('2')})
}

/// Two sides of a diamond, one of which failed, and what stands on them.
fn going_on() -> CascadeDetail {
    serde_json::from_value(json!({
        "id": 7, "phase": "active", "created": "2026-01-02T03:02:05Z", "follows": 6,
        "changes": on_base(), "promotion": "held", "holds": true,
        "counts": {"pending": 1, "ready": 1, "running": 1, "succeeded": 1, "failed": 1, "stale": 1, "skipped": 1},
        "nodes": [
            node("app/a", "pending", json!({"why": "waits for app/left", "after": ["left", "middle"]})),
            node("app/b", "stale", json!({"why": "it stands on right, which was not built", "after": ["right"]})),
            node("app/c", "skipped", json!({"why": "what it stands on came out unchanged", "after": ["middle"]})),
            node("left", "running", json!({
                "run": "run-left", "attempts": 2, "pins": on_base(), "startedAt": "2026-01-02T03:04:00Z",
                "estimateMs": 12000, "after": ["middle"]
            })),
            node("middle", "succeeded", json!({
                "run": "run-middle", "attempts": 1, "pins": on_base(), "startedAt": "2026-01-02T03:02:35Z",
                "endedAt": "2026-01-02T03:03:40Z", "images": [{"name": "r.io/middle:1", "digest": sha('a')}]
            })),
            node("other", "ready", json!({"why": "4 runs are under way, as many as may be", "after": ["elsewhere"]})),
            node("right", "failed", json!({
                "run": "run-right", "attempts": 1, "pins": on_base(), "why": "the step build failed",
                "startedAt": "2026-01-02T03:02:35Z", "endedAt": "2026-01-02T03:02:36Z"
            })),
        ],
        "images": [
            {"name": "r.io/middle:1", "before": sha('9'), "after": sha('a'), "state": "held"},
            {"name": "r.io/new:1", "after": sha('b'), "state": "moved"},
        ]
    }))
    .unwrap()
}

fn over() -> CascadeDetail {
    let mut detail = going_on();
    detail.summary.phase = CascadePhase::Over;
    detail.summary.over_at = Some(now());
    detail.summary.promotion = CascadePromotion::Promoted;
    detail.summary.counts = serde_json::from_value(json!({"succeeded": 7})).unwrap();
    for node in &mut detail.nodes {
        node.state = CascadeNodeState::Succeeded;
        node.why = None;
    }
    for image in &mut detail.images {
        image.state = CascadeImageState::Moved;
    }
    detail
}

/// Its tags are being put back, which one of them does not allow.
fn going_back() -> CascadeDetail {
    let mut detail = over();
    detail.summary.promotion_note = Some("its tags are being put back".into());
    detail.images[0].state = CascadeImageState::RolledBack;
    detail.images[1].why = Some("there was no such tag before".into());
    detail
}

fn waiting() -> CascadeDetail {
    let mut detail = going_on();
    detail.summary.waits_for_approval = true;
    detail.summary.paused = true;
    detail.summary.follows = None;
    detail
}

#[test]
fn cascades_as_a_list() {
    let mut settling = going_on().summary;
    settling.id = 8;
    settling.phase = CascadePhase::Settling;
    settling.settles_at = Some("2026-01-02T03:04:15Z".parse().unwrap());
    settling.promotion = CascadePromotion::None;
    settling.counts = serde_json::from_value(json!({"ready": 3})).unwrap();
    for name in ["a:1", "b:1"] {
        let digest = settling.changes.values().next().unwrap().clone();
        settling.changes.insert(format!("r.io/{name}"), digest);
    }
    let all = [
        settling,
        waiting().summary,
        going_on().summary,
        over().summary,
    ];
    let shown = [
        list(&all, now(), Style::PLAIN),
        list(&[], now(), Style::PLAIN),
    ];
    insta::assert_snapshot!(shown.join("---\n"));
}

#[test]
fn cascades_as_trees() {
    let mut settling = waiting();
    settling.summary.phase = CascadePhase::Settling;
    settling.summary.waits_for_approval = false;
    settling.summary.settles_at = Some("2026-01-02T03:04:15Z".parse().unwrap());
    settling.nodes.clear();
    settling.images.clear();
    settling.summary.counts = serde_json::from_value(json!({})).unwrap();
    let shown = [going_on(), waiting(), settling, over(), going_back()]
        .map(|detail| cascade(&detail, now(), Style::PLAIN));
    insta::assert_snapshot!(shown.join("---\n"));
}

/// Tasks that wait for each other cannot be, but nothing may be lost or run on for ever where they are.
#[test]
fn each_task_is_shown_once_whatever_it_waits_for() {
    let mut detail = going_on();
    detail.nodes[0].after = vec!["app/b".into()];
    detail.nodes[1].after = vec!["app/a".into(), "gone".into()];
    let lines = tree(&detail, now(), Style::PLAIN);
    for node in &detail.nodes {
        let name = format!(" {}  ", node.task);
        let found = lines.iter().filter(|line| line.text.contains(&name));
        assert_eq!(found.count(), 1, "{}", node.task);
    }
}

#[test]
fn the_frame_of_a_cascade_fits_and_keeps_what_matters() {
    let size = |columns, rows| Size { columns, rows };
    let shown = [size(100, 40), size(60, 9), size(40, 6)]
        .map(|size| frame(&going_on(), now(), size, Style::PLAIN).join("\n"));
    insta::assert_snapshot!(shown.join("\n---\n"));
    for rows in 2..20 {
        for columns in [20, 50, 200] {
            let lines = frame(&waiting(), now(), size(columns, rows), Style::COLORED);
            assert!(lines.len() < rows);
            let wide = lines.iter().find(|line| text::width(line) >= columns);
            assert_eq!(wide, None);
        }
    }
}

#[test]
fn each_change_is_told_once() {
    let shown = [
        changes(None, &going_on(), now(), Style::PLAIN),
        changes(Some(&going_on()), &going_on(), now(), Style::PLAIN),
        changes(Some(&going_on()), &waiting(), now(), Style::PLAIN),
        changes(Some(&going_on()), &over(), now(), Style::PLAIN),
    ];
    insta::assert_snapshot!(shown.join("---\n"));
}
