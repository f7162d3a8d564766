//! Tests of `images.rs` and of stale images: images of runs in a real database.

use acrtask_api::image::{BaseEffect, BasePolicy, BlastRadius};
use acrtask_model::events::BaseRole;
use acrtask_store::PollResult;
use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use super::*;
use crate::api::testing::{NOW, TestServer, letter_digest};

/// Creates a task and completes a run that pushed `image` from these bases.
async fn result_of_build(
    server: &TestServer,
    task: &str,
    triggers: Value,
    image: (&str, char),
    bases: &[(&str, char, BaseRole)],
) {
    let body = json!({"name": task, "cmd": "alpine true", "triggers": triggers});
    server
        .post("/tasks", body)
        .await
        .json::<Value>(StatusCode::CREATED);
    server.complete_push(task, image, bases).await;
}

/// Starts a server with the dependencies base -> middle -> app and tool, and an independent image.
async fn server_with_images() -> TestServer {
    use BaseRole::{BuildTime, Runtime};
    let server = TestServer::start().await;
    server.register_runner("mine").await;
    let none = || json!({});
    result_of_build(
        &server,
        "middle",
        none(),
        ("r.io/middle:1", 'a'),
        &[("base:1", '1', Runtime)],
    )
    .await;
    let two = [
        ("r.io/middle:1", 'a', Runtime),
        ("golang:1", '2', BuildTime),
    ];
    result_of_build(&server, "app", none(), ("r.io/app:1", 'b'), &two).await;
    let all = json!({"baseImage": {"type": "All"}});
    let stage = [
        ("golang:1", '2', BuildTime),
        ("r.io/middle:1", 'a', BuildTime),
    ];
    result_of_build(&server, "tool", all, ("r.io/tool:1", 'c'), &stage).await;
    let off = json!({"baseImage": {"enabled": false}});
    result_of_build(
        &server,
        "off",
        off,
        ("r.io/off:1", 'd'),
        &[("base:1", '1', Runtime)],
    )
    .await;
    server
}

/// Records the digest of this letter for a tag.
async fn record_digest(server: &TestServer, name: &str, letter: char) {
    let store = &server.app.store;
    let now = server.app.clock.now_ms();
    let wanted = [(name.to_owned(), String::new())].into();
    store.set_watches(&wanted, now).await.unwrap();
    store.mark_watches_due(None, now).await.unwrap();
    for watch in store.claim_watches(now, 1000, 100).await.unwrap() {
        if watch.name == name {
            let seen = PollResult::Digest {
                digest: letter_digest(letter),
                etag: None,
                platforms: None,
            };
            store
                .record_poll(&watch, &seen, now, now + 1)
                .await
                .unwrap();
        } else {
            store.release_watch(&watch, now).await.unwrap();
        }
    }
}

fn names(page: &Page<Image>) -> Vec<&str> {
    page.items.iter().map(|image| image.name.as_str()).collect()
}

#[tokio::test]
async fn images_are_listed_in_pages() {
    let server = server_with_images().await;
    let all: Page<Image> = server.get("/images").await.json(StatusCode::OK);
    let expected = ["r.io/app:1", "r.io/middle:1", "r.io/off:1", "r.io/tool:1"];
    assert_eq!(names(&all), expected);
    assert_eq!(all.next, None);
    let mut path = "/images?limit=3".to_owned();
    let first: Page<Image> = server.get(&path).await.json(StatusCode::OK);
    path += &format!("&cursor={}", first.next.as_deref().unwrap());
    let second: Page<Image> = server.get(&path).await.json(StatusCode::OK);
    assert_eq!(names(&first), expected[..3]);
    assert_eq!(
        (names(&second), second.next.clone()),
        (expected[3..].to_vec(), None)
    );
    for (query, expected) in [
        ("prefix=r.io/to", vec!["r.io/tool:1"]),
        ("task=middle&newest=true", vec!["r.io/middle:1"]),
        ("prefix=x", vec![]),
        ("stale=true", vec![]),
    ] {
        let some: Page<Image> = server
            .get(&format!("/images?{query}"))
            .await
            .json(StatusCode::OK);
        assert_eq!(names(&some), expected, "{query}");
    }
    server
        .get("/images?limit=0")
        .await
        .problem(StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn image_shows_the_bases_that_would_make_it_stale() {
    let server = server_with_images().await;
    let detail: ImageDetail = server
        .get("/images/r.io%2Fapp:1")
        .await
        .json(StatusCode::OK);
    assert_eq!(detail.policy, BasePolicy::Runtime);
    assert_eq!(
        (detail.image.task.as_deref(), detail.image.newest),
        (Some("app"), true)
    );
    assert_eq!(detail.image.built_at, timestamp(NOW));
    let shown: Vec<(&str, BaseEffect, Option<&str>)> = detail
        .bases
        .iter()
        .map(|base| (base.name.as_str(), base.effect, base.built_by.as_deref()))
        .collect();
    assert_eq!(
        shown,
        [
            ("docker.io/library/golang:1", BaseEffect::Ignored, None),
            ("r.io/middle:1", BaseEffect::WouldRebuild, Some("middle"))
        ]
    );
    assert_eq!(detail.history.len(), 1);
    record_digest(&server, "docker.io/library/golang:1", '3').await;
    let tool: ImageDetail = server
        .get("/images/r.io%2Ftool:1")
        .await
        .json(StatusCode::OK);
    assert_eq!(tool.bases[0].effect, BaseEffect::Stale);
    assert_eq!(tool.bases[0].current_digest, Some(letter_digest('3')));
    assert_eq!(tool.bases[1].effect, BaseEffect::WouldRebuild);
    for (path, status) in [
        ("/images/r.io%2Fnone:1", StatusCode::NOT_FOUND),
        ("/images/NO%20NAME", StatusCode::UNPROCESSABLE_ENTITY),
    ] {
        server.get(path).await.problem(status);
    }
}

#[tokio::test]
async fn images_are_stale_after_a_digest_change_of_a_tracked_base() {
    let server = server_with_images().await;
    record_digest(&server, "docker.io/library/base:1", '1').await;
    let stale = async || {
        let page: Page<Image> = server.get("/images?stale=true").await.json(StatusCode::OK);
        page.items
    };
    assert_eq!(stale().await, []);
    record_digest(&server, "docker.io/library/base:1", '9').await;
    record_digest(&server, "docker.io/library/golang:1", '8').await;
    let found = stale().await;
    let shown: Vec<(&str, &str)> = found
        .iter()
        .map(|image| (image.name.as_str(), image.stale[0].reference.as_str()))
        .collect();
    // `off` tracks no bases. For `app`, golang is not a runtime base.
    assert_eq!(
        shown,
        [
            ("r.io/middle:1", "docker.io/library/base:1"),
            ("r.io/tool:1", "docker.io/library/golang:1")
        ]
    );
    assert_eq!(
        (&found[0].stale[0].from, &found[0].stale[0].to),
        (&letter_digest('1'), &letter_digest('9'))
    );
    // The state is computed, not stored: a disabled task has no stale images.
    server
        .post("/tasks/tool/disable", json!({}))
        .await
        .json::<Value>(StatusCode::OK);
    assert_eq!(stale().await.len(), 1);
}

#[tokio::test]
async fn tree_shows_the_dependencies_of_images() {
    let server = server_with_images().await;
    record_digest(&server, "docker.io/library/base:1", '9').await;
    let tree = async |query: &str| {
        let page: Value = server
            .get(&format!("/images/tree{query}"))
            .await
            .json(StatusCode::OK);
        page["items"].clone()
    };
    let runtime = json!([
        {"name": "docker.io/library/base:1", "images": [
            {"name": "r.io/middle:1", "task": "middle", "stale": true, "images": [
                {"name": "r.io/app:1", "task": "app"}
            ]},
            {"name": "r.io/off:1", "task": "off"}
        ]},
        {"name": "r.io/tool:1", "task": "tool"}
    ]);
    assert_eq!(tree("").await, runtime);
    assert_eq!(tree("?root=base:1").await, json!([runtime[0]]));
    let all = tree("?all=true&root=golang:1").await;
    assert_eq!(
        all,
        json!([{"name": "docker.io/library/golang:1", "images": [
            {"name": "r.io/app:1", "task": "app"},
            {"name": "r.io/tool:1", "task": "tool"}
        ]}])
    );
    server
        .get("/images/tree?root=none:1")
        .await
        .problem(StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn blast_radius_includes_indirect_dependents() {
    let server = server_with_images().await;
    let blast: BlastRadius = server
        .get("/bases/base:1/blast-radius")
        .await
        .json(StatusCode::OK);
    assert_eq!(blast.base, "docker.io/library/base:1");
    let shown: Vec<(&str, u32, bool)> = blast
        .images
        .iter()
        .map(|image| (image.name.as_str(), image.distance, image.rebuilt))
        .collect();
    assert_eq!(
        shown,
        [
            ("r.io/middle:1", 1, true),
            ("r.io/off:1", 1, false),
            ("r.io/app:1", 2, true),
            ("r.io/tool:1", 2, true)
        ]
    );
    assert_eq!(
        blast.images[3].through["r.io/middle:1"],
        [BaseRole::BuildTime]
    );
    let golang: BlastRadius = server
        .get("/bases/golang:1/blast-radius")
        .await
        .json(StatusCode::OK);
    let rebuilt: Vec<bool> = golang.images.iter().map(|image| image.rebuilt).collect();
    assert_eq!(rebuilt, [false, true]);
    // A limited token sees only the images of its tasks.
    let token = server
        .create_token(&[acrtask_api::admin::Scope::Read], Some("off"))
        .await;
    let seen: BlastRadius = server
        .send_as(Method::GET, "/bases/base:1/blast-radius", &token, None)
        .await
        .json(StatusCode::OK);
    assert_eq!(seen.images.len(), 1);
    server
        .send_as(Method::GET, "/bases/golang:1/blast-radius", &token, None)
        .await
        .problem(StatusCode::NOT_FOUND);
    let digest = format!("/bases/base@{}/blast-radius", letter_digest('a'));
    server
        .get(&digest)
        .await
        .problem(StatusCode::UNPROCESSABLE_ENTITY);
}
