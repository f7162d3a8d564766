//! Snapshot tests of `cascades.rs`.

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

/// Returns a diamond with one failed side, and its dependents.
fn active_cascade() -> CascadeDetail {
    serde_json::from_value(json!({
        "id": 7, "phase": "active", "createdAt": "2026-01-02T03:02:05Z", "follows": 6,
        "changes": on_base(), "promotion": "staged", "stagesImages": true,
        "counts": {"pending": 1, "ready": 1, "running": 1, "succeeded": 1, "failed": 1, "stale": 1, "skipped": 1},
        "nodes": [
            node("app/a", "pending", json!({"reason": "waits for app/left", "after": ["left", "middle"]})),
            node("app/b", "stale", json!({"reason": "right, which it is built from, was not built", "after": ["right"]})),
            node("app/c", "skipped", json!({"reason": "its bases are unchanged", "after": ["middle"]})),
            node("left", "running", json!({
                "run": "run-left", "attempts": 2, "pins": on_base(), "startedAt": "2026-01-02T03:04:00Z",
                "estimateMs": 12000, "after": ["middle"]
            })),
            node("middle", "succeeded", json!({
                "run": "run-middle", "attempts": 1, "pins": on_base(), "startedAt": "2026-01-02T03:02:35Z",
                "endedAt": "2026-01-02T03:03:40Z", "images": [{"name": "r.io/middle:1", "digest": sha('a')}]
            })),
            node("other", "ready", json!({"reason": "4 runs are under way, as many as may be", "after": ["elsewhere"]})),
            node("right", "failed", json!({
                "run": "run-right", "attempts": 1, "pins": on_base(), "reason": "the step build failed",
                "startedAt": "2026-01-02T03:02:35Z", "endedAt": "2026-01-02T03:02:36Z"
            })),
        ],
        "images": [
            {"name": "r.io/middle:1", "before": sha('9'), "after": sha('a'), "state": "staged"},
            {"name": "r.io/new:1", "after": sha('b'), "state": "promoted"},
        ]
    }))
    .unwrap()
}

fn finished_cascade() -> CascadeDetail {
    let mut detail = active_cascade();
    detail.summary.phase = CascadePhase::Finished;
    detail.summary.finished_at = Some(now());
    detail.summary.promotion = CascadePromotion::Promoted;
    detail.summary.counts = serde_json::from_value(json!({"succeeded": 7})).unwrap();
    for node in &mut detail.nodes {
        node.state = CascadeNodeState::Succeeded;
        node.reason = None;
    }
    for image in &mut detail.images {
        image.state = CascadeImageState::Promoted;
    }
    detail
}

/// Returns a cascade in a rollback that one tag does not allow.
fn rolled_back_cascade() -> CascadeDetail {
    let mut detail = finished_cascade();
    detail.summary.promotion_note = Some("restoring its tags".into());
    detail.images[0].state = CascadeImageState::RolledBack;
    detail.images[1].reason = Some("the tag did not exist before".into());
    detail
}

fn paused_cascade() -> CascadeDetail {
    let mut detail = active_cascade();
    detail.summary.awaiting_approval = true;
    detail.summary.paused = true;
    detail.summary.follows = None;
    detail
}

#[test]
fn cascades_are_rendered_as_a_list() {
    let mut settling = active_cascade().summary;
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
        paused_cascade().summary,
        active_cascade().summary,
        finished_cascade().summary,
    ];
    let shown = [
        render_cascades(&all, now(), Style::PLAIN),
        render_cascades(&[], now(), Style::PLAIN),
    ];
    insta::assert_snapshot!(shown.join("---\n"));
}

#[test]
fn cascades_are_rendered_as_trees() {
    let mut settling = paused_cascade();
    settling.summary.phase = CascadePhase::Settling;
    settling.summary.awaiting_approval = false;
    settling.summary.settles_at = Some("2026-01-02T03:04:15Z".parse().unwrap());
    settling.nodes.clear();
    settling.images.clear();
    settling.summary.counts = serde_json::from_value(json!({})).unwrap();
    let shown = [
        active_cascade(),
        paused_cascade(),
        settling,
        finished_cascade(),
        rolled_back_cascade(),
    ]
    .map(|detail| render_cascade(&detail, now(), Style::PLAIN));
    insta::assert_snapshot!(shown.join("---\n"));
}

/// A cycle of waiting tasks is invalid, but it must not lose a task or loop forever.
#[test]
fn each_task_is_shown_once_even_in_a_cycle() {
    let mut detail = active_cascade();
    detail.nodes[0].after = vec!["app/b".into()];
    detail.nodes[1].after = vec!["app/a".into(), "gone".into()];
    let lines = tree_lines(&detail, now(), Style::PLAIN);
    for node in &detail.nodes {
        let name = format!(" {}  ", node.task);
        let found = lines.iter().filter(|line| line.text.contains(&name));
        assert_eq!(found.count(), 1, "{}", node.task);
    }
}

#[test]
fn frame_fits_the_screen_and_keeps_important_tasks() {
    let size = |columns, rows| Size { columns, rows };
    let shown = [size(100, 40), size(60, 9), size(40, 6)]
        .map(|size| render_frame(&active_cascade(), now(), size, Style::PLAIN).join("\n"));
    insta::assert_snapshot!(shown.join("\n---\n"));
    for rows in 2..20 {
        for columns in [20, 50, 200] {
            let lines = render_frame(
                &paused_cascade(),
                now(),
                size(columns, rows),
                Style::COLORED,
            );
            assert!(lines.len() < rows);
            let wide = lines
                .iter()
                .find(|line| text::display_width(line) >= columns);
            assert_eq!(wide, None);
        }
    }
}

#[test]
fn each_change_is_reported_once() {
    let shown = [
        render_changes(None, &active_cascade(), now(), Style::PLAIN),
        render_changes(
            Some(&active_cascade()),
            &active_cascade(),
            now(),
            Style::PLAIN,
        ),
        render_changes(
            Some(&active_cascade()),
            &paused_cascade(),
            now(),
            Style::PLAIN,
        ),
        render_changes(
            Some(&active_cascade()),
            &finished_cascade(),
            now(),
            Style::PLAIN,
        ),
    ];
    insta::assert_snapshot!(shown.join("---\n"));
}
