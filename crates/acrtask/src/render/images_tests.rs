//! Tests of `images.rs`: what people see.

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
        "stale": [{"name": "docker.io/library/base:1", "role": "runtime", "used": sha('1'), "now": sha('2')}],
        "policy": "runtime",
        "bases": [
            {"name": "docker.io/library/base:1", "role": "runtime", "digest": sha('1'), "evidence": "provenance",
             "now": sha('2'), "effect": "stale"},
            {"name": "r.io/tools:1", "role": "build_time", "digest": sha('3'), "evidence": "provenance",
             "effect": "doesNotCount", "builtBy": "tools"}
        ],
        "history": [
            {"digest": sha('a'), "run": "one", "task": "app", "builtAt": "2025-12-30T03:04:05Z"},
            {"digest": sha('9'), "run": "zero", "task": "app", "builtAt": "2025-12-01T00:00:00Z"}
        ]
    }))
    .unwrap()
}

#[test]
fn images_as_a_list_and_one_by_one() {
    let detail = detail();
    let mut older = detail.image.clone();
    older.name = "r.io/app:0".into();
    older.newest = false;
    older.stale.clear();
    let both = [older, detail.image.clone()];
    let shown = [
        images(&both, false, now(), Style::PLAIN),
        images(&both[1..], true, now(), Style::PLAIN),
        images(&[], true, now(), Style::PLAIN),
        image(&detail, now(), Style::PLAIN),
        why(&detail, now(), Style::PLAIN),
    ];
    insta::assert_snapshot!(shown.join("---\n"));
}

#[test]
fn what_cascades_do_about_a_stale_image() {
    let said = |rebuild| {
        let rebuild: Option<Rebuild> = serde_json::from_value(rebuild).unwrap();
        self::rebuild(rebuild.as_ref())
    };
    let shown = [
        said(json!(null)),
        said(json!({"cascade": 7, "state": "pending", "why": "waits for lib"})),
        said(json!({"cascade": 7, "state": "running", "run": "r1"})),
        said(json!({"cascade": 7, "state": "failed", "run": "r1", "why": "the step build failed"})),
        said(json!({"cascade": 7, "state": "canceled", "why": "canceled by sam"})),
        said(
            json!({"cascade": 7, "state": "succeeded", "run": "r1", "why": "its tag was put back, and stays until a base moves again"}),
        ),
        said(
            json!({"why": "app pushes r.io/app:1 -> app: a task that rebuilds its own base never comes to rest"}),
        ),
    ];
    insta::assert_snapshot!(shown.join("\n---\n"));
}

#[test]
fn what_stands_on_what() {
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
        trees(&tree, Style::PLAIN),
        trees(&[], Style::PLAIN),
        blast_radius(&blast, Style::PLAIN),
    ];
    insta::assert_snapshot!(shown.join("---\n"));
}

#[test]
fn base_tags_as_a_list_and_one_by_one() {
    let all: Vec<Base> = serde_json::from_value(json!([
        {"name": "docker.io/library/base:1", "status": "ok", "digest": sha('2'), "platforms": {"linux/amd64": sha('3')},
         "checkedAt": "2026-01-02T03:00:00Z", "changedAt": "2026-01-01T03:00:00Z", "nextCheckAt": "2026-01-02T03:05:00Z",
         "usedBy": 3, "changes": [
            {"old": sha('1'), "new": sha('2'), "at": "2026-01-01T03:00:00Z", "platforms": ["linux/amd64"], "movedBack": true}
         ]},
        {"name": "r.io/base:1", "loginOf": "app", "status": "denied", "detail": "cannot look at r.io/base:1: no",
         "checkedAt": "2026-01-02T03:00:00Z", "nextCheckAt": "2026-01-02T03:05:00Z", "usedBy": 1},
        {"name": "r.io/other:1", "status": "new", "paused": true, "nextCheckAt": "2026-01-02T03:05:00Z", "usedBy": 1}
    ]))
    .unwrap();
    let shown = [
        bases(&all, now(), Style::PLAIN),
        base(&all[..2], now(), Style::PLAIN),
    ];
    insta::assert_snapshot!(shown.join("---\n"));
}
