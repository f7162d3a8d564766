//! Snapshot tests of `images.rs`.

use serde_json::json;

use super::*;

fn sha(letter: char) -> String {
    format!("sha256:{}", letter.to_string().repeat(64))
}

fn now() -> Timestamp {
    "2026-01-02T03:04:05Z".parse().unwrap()
}

fn detail() -> ImageDetail {
    serde_json::from_value(json!({
        "name": "r.io/app:1", "digest": sha('a'), "task": "app", "run": "one", "builtAt": "2025-12-30T03:04:05Z",
        "platforms": ["linux/amd64"], "newest": true,
        "stale": [{"reference": "docker.io/library/base:1", "role": "runtime", "from": sha('1'), "to": sha('2')}],
        "policy": "runtime",
        "bases": [
            {"name": "docker.io/library/base:1", "role": "runtime", "digest": sha('1'), "evidence": "provenance",
             "currentDigest": sha('2'), "effect": "stale"},
            {"name": "r.io/tools:1", "role": "build_time", "digest": sha('3'), "evidence": "provenance",
             "effect": "ignored", "builtBy": "tools"}
        ],
        "history": [
            {"digest": sha('a'), "run": "one", "task": "app", "builtAt": "2025-12-30T03:04:05Z"},
            {"digest": sha('9'), "run": "zero", "task": "app", "builtAt": "2025-12-01T00:00:00Z"}
        ]
    }))
    .unwrap()
}

#[test]
fn images_are_rendered_as_a_list_and_one_by_one() {
    let detail = detail();
    let mut older = detail.image.clone();
    older.name = "r.io/app:0".into();
    older.newest = false;
    older.stale.clear();
    let both = [older, detail.image.clone()];
    let shown = [
        render_images(&both, false, now(), Style::PLAIN),
        render_images(&both[1..], true, now(), Style::PLAIN),
        render_images(&[], true, now(), Style::PLAIN),
        render_image(&detail, now(), Style::PLAIN),
        render_staleness(&detail, now(), Style::PLAIN),
    ];
    insta::assert_snapshot!(shown.join("---\n"));
}

#[test]
fn rebuild_state_of_a_stale_image_is_described() {
    let describe = |rebuild| {
        let rebuild: Option<Rebuild> = serde_json::from_value(rebuild).unwrap();
        rebuild_text(rebuild.as_ref())
    };
    let shown = [
        describe(json!(null)),
        describe(json!({"cascade": 7, "state": "pending", "reason": "waits for lib"})),
        describe(json!({"cascade": 7, "state": "running", "run": "r1"})),
        describe(
            json!({"cascade": 7, "state": "failed", "run": "r1", "reason": "the step build failed"}),
        ),
        describe(json!({"cascade": 7, "state": "canceled", "reason": "canceled by sam"})),
        describe(
            json!({"cascade": 7, "state": "succeeded", "run": "r1", "reason": "its tag was rolled back, and stays until the next digest change of a base"}),
        ),
        describe(
            json!({"reason": "app pushes r.io/app:1 -> app: a task that rebuilds its own base would be rebuilt forever"}),
        ),
    ];
    insta::assert_snapshot!(shown.join("\n---\n"));
}

#[test]
fn image_trees_and_blast_radius_are_rendered() {
    let tree: Vec<ImageTree> = serde_json::from_value(json!([
        {"name": "docker.io/library/base:1", "images": [
            {"name": "r.io/left:1", "task": "left", "stale": true, "images": [{"name": "r.io/app:1", "task": "app",
             "images": [{"name": "r.io/top:1", "task": "top"}]}]},
            {"name": "r.io/right:1", "task": "right", "images": [{"name": "r.io/app:1", "task": "app", "repeated": true}]}
        ]}
    ]))
    .unwrap();
    let blast: BlastRadius = serde_json::from_value(json!({
        "base": "docker.io/library/base:1",
        "images": [
            {"name": "r.io/left:1", "task": "left", "distance": 1, "rebuilt": true,
             "through": {"docker.io/library/base:1": ["runtime"]}},
            {"name": "r.io/app:1", "distance": 2, "rebuilt": false,
             "through": {"r.io/left:1": ["build_time"], "r.io/right:1": ["runtime"]}}
        ]
    }))
    .unwrap();
    let shown = [
        render_trees(&tree, Style::PLAIN),
        render_trees(&[], Style::PLAIN),
        render_blast_radius(&blast, Style::PLAIN),
    ];
    insta::assert_snapshot!(shown.join("---\n"));
}

#[test]
fn base_tags_are_rendered_as_a_list_and_one_by_one() {
    let all: Vec<Base> = serde_json::from_value(json!([
        {"name": "docker.io/library/base:1", "status": "ok", "digest": sha('2'), "platforms": {"linux/amd64": sha('3')},
         "checkedAt": "2026-01-02T03:00:00Z", "changedAt": "2026-01-01T03:00:00Z", "nextCheckAt": "2026-01-02T03:05:00Z",
         "usedBy": 3, "changes": [
            {"from": sha('1'), "to": sha('2'), "changedAt": "2026-01-01T03:00:00Z", "platforms": ["linux/amd64"], "movedBack": true}
         ]},
        {"name": "r.io/base:1", "loginOf": "app", "status": "denied", "detail": "cannot check r.io/base:1: no",
         "checkedAt": "2026-01-02T03:00:00Z", "nextCheckAt": "2026-01-02T03:05:00Z", "usedBy": 1},
        {"name": "r.io/other:1", "status": "new", "paused": true, "nextCheckAt": "2026-01-02T03:05:00Z", "usedBy": 1}
    ]))
    .unwrap();
    let shown = [
        render_bases(&all, now(), Style::PLAIN),
        render_base(&all[..2], now(), Style::PLAIN),
    ];
    insta::assert_snapshot!(shown.join("---\n"));
}
