//! Tests of `bases.rs`.

use acrtask_api::{
    admin::Scope,
    image::{Base, BaseStatus},
    run::Page,
};
use acrtask_model::events::BaseRole;
use acrtask_store::PollResult;
use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    api::testing::{NOW, TestServer, letter_digest},
    bases::update_watches,
};

const BASE: &str = "/bases/r.io%2Fbase:1";

/// Starts a server with two tasks whose images depend on `base`. One of them also depends on
/// `other`.
async fn server_with_bases() -> TestServer {
    let server = TestServer::start().await;
    server.register_runner("mine").await;
    let base = ("r.io/base:1", 'a', BaseRole::Runtime);
    for (task, bases) in [
        ("one", vec![base]),
        ("two", vec![base, ("r.io/other:1", 'b', BaseRole::Runtime)]),
    ] {
        let body = json!({"name": task, "cmd": "alpine true"});
        server
            .post("/tasks", body)
            .await
            .json::<Value>(StatusCode::CREATED);
        let image = format!("r.io/{task}:1");
        server.complete_push(task, (&image, 'f'), &bases).await;
    }
    let login = json!({"username": "u", "password": "a password", "task": "two"});
    server
        .put("/credentials/r.io", login)
        .await
        .json::<Value>(StatusCode::OK);
    update_watches(&server.app).await.unwrap();
    server
}

fn names_and_logins(bases: &[Base]) -> Vec<(&str, Option<&str>)> {
    bases
        .iter()
        .map(|base| (base.name.as_str(), base.login_of.as_deref()))
        .collect()
}

#[tokio::test]
async fn tags_are_listed_once_for_each_login() {
    let server = server_with_bases().await;
    let all: Page<Base> = server.get("/bases").await.json(StatusCode::OK);
    let expected = [
        ("r.io/base:1", None),
        ("r.io/base:1", Some("two")),
        ("r.io/other:1", Some("two")),
    ];
    assert_eq!(names_and_logins(&all.items), expected);
    assert_eq!(
        (all.items[0].status, all.items[0].used_by),
        (BaseStatus::New, 2)
    );
    // A page does not end within a name.
    let first: Page<Base> = server.get("/bases?limit=1").await.json(StatusCode::OK);
    assert_eq!(names_and_logins(&first.items), expected[..2]);
    let next = first.next.unwrap();
    let path = format!("/bases?limit=1&cursor={}", next.replace('/', "%2F"));
    let second: Page<Base> = server.get(&path).await.json(StatusCode::OK);
    assert_eq!(
        (names_and_logins(&second.items), second.next),
        (expected[2..].to_vec(), None)
    );
    let token = server.create_token(&[Scope::Read], Some("one")).await;
    let seen: Page<Base> = server
        .send_as(Method::GET, "/bases", &token, None)
        .await
        .json(StatusCode::OK);
    // Entries for the login of another task are hidden, and images of other tasks are not counted.
    assert_eq!(names_and_logins(&seen.items), [("r.io/base:1", None)]);
    assert_eq!(seen.items[0].used_by, 1);
    let one: Vec<Base> = server
        .send_as(Method::GET, BASE, &token, None)
        .await
        .json(StatusCode::OK);
    assert_eq!(names_and_logins(&one), [("r.io/base:1", None)]);
    server
        .send_as(Method::GET, "/bases/r.io%2Fother:1", &token, None)
        .await
        .problem(StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn base_tag_shows_its_digest_changes() {
    let server = server_with_bases().await;
    let store = &server.app.store;
    for (at, letter) in [(1, 'a'), (2, 'b')] {
        for watch in store.claim_watches(NOW + at, 1, 100).await.unwrap() {
            let seen = PollResult::Digest {
                digest: letter_digest(letter),
                etag: None,
                platforms: Some([("linux/amd64".to_owned(), letter_digest(letter))].into()),
            };
            store
                .record_poll(&watch, &seen, NOW + at, NOW + at)
                .await
                .unwrap();
        }
    }
    let bases: Vec<Base> = server.get(BASE).await.json(StatusCode::OK);
    assert_eq!(bases.len(), 2);
    let base = &bases[0];
    assert_eq!(
        (base.status, base.digest.as_ref()),
        (BaseStatus::Ok, Some(&letter_digest('b')))
    );
    assert_eq!(base.platforms["linux/amd64"], letter_digest('b'));
    assert_eq!(
        (base.changes.len(), &base.changes[0].from),
        (1, &letter_digest('a'))
    );
    assert_eq!(base.changes[0].platforms, ["linux/amd64"]);
    assert!(base.changed_at.is_some());
    server
        .get("/bases/none:1")
        .await
        .problem(StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn base_tag_is_paused_resumed_and_checked() {
    let server = server_with_bases().await;
    let store = &server.app.store;
    let paused: Vec<Base> = server
        .post(&format!("{BASE}/pause"), json!({}))
        .await
        .json(StatusCode::OK);
    assert!(paused.iter().all(|base| base.paused));
    assert_eq!(store.claim_watches(NOW, 1, 100).await.unwrap().len(), 1);
    let resumed: Vec<Base> = server
        .post(&format!("{BASE}/resume"), json!({}))
        .await
        .json(StatusCode::OK);
    assert!(resumed.iter().all(|base| !base.paused));
    for watch in store.claim_watches(NOW, 1, 100).await.unwrap() {
        store.release_watch(&watch, NOW + 300_000).await.unwrap();
    }
    assert_eq!(store.claim_watches(NOW, 1, 100).await.unwrap(), []);
    let body = json!({"name": "r.io/base:1"});
    let checked: Vec<Base> = server.post("/bases/check", body).await.json(StatusCode::OK);
    assert_eq!(checked.len(), 2);
    assert_eq!(store.claim_watches(NOW, 1, 100).await.unwrap().len(), 2);
    for name in ["none:1", "r.io/none:1"] {
        server
            .post("/bases/check", json!({"name": name}))
            .await
            .problem(StatusCode::NOT_FOUND);
        let path = format!("/bases/{}/pause", name.replace('/', "%2F"));
        server
            .post(&path, json!({}))
            .await
            .problem(StatusCode::NOT_FOUND);
    }
}
