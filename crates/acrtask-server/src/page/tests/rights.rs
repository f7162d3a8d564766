//! Rights of sessions. One table lists every page.

use std::collections::BTreeSet;

use acrtask_api::admin::Scope;
use axum::{
    body::Body,
    http::{Method, StatusCode},
};

use super::{PageServer, target_of};
use crate::{
    api::testing::{NOW, TestResponse},
    page::ROUTES,
};

/// Requirement of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Requirement {
    /// No session.
    Nothing,
    /// Any session.
    Session,
    /// A session with the scope `read`.
    Read,
}

/// Response to a session whose task limit excludes the task of the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OtherTask {
    /// The page has no task.
    Free,
    /// 404.
    Hidden,
    /// A page without the task and its runs.
    Empty,
}

type Row = (&'static str, &'static str, Requirement, OtherTask);

fn table() -> Vec<Row> {
    use OtherTask::{Empty, Free, Hidden};
    use Requirement::{Nothing, Read, Session};
    vec![
        ("GET", "/", Read, Empty),
        ("GET", "/runs", Read, Empty),
        ("GET", "/runs/{id}", Read, Hidden),
        ("GET", "/runs/{id}/log", Read, Hidden),
        ("GET", "/runs/{id}/log.txt", Read, Hidden),
        ("GET", "/tasks", Read, Empty),
        ("GET", "/tasks/{*name}", Read, Hidden),
        ("GET", "/runners", Read, Empty),
        ("GET", "/me", Session, Free),
        ("GET", "/sign-in", Nothing, Free),
        ("POST", "/sign-in", Nothing, Free),
        ("POST", "/sign-out", Nothing, Free),
        ("GET", "/assets/{hash}/{name}", Nothing, Free),
    ]
}

/// A server with a failed run and a waiting run of the task `team/mine`, and a runner for it.
struct Fixture {
    server: PageServer,
    run: String,
}

impl Fixture {
    async fn new() -> Self {
        let server = PageServer::start().await;
        server
            .server
            .register_runner_for("mine", None, Some("team/mine"))
            .await;
        server.create_task("team/mine").await;
        let run = server.fail_task("team/mine", "").await;
        server.start_task("team/mine").await;
        Self {
            server,
            run: run.id.to_string(),
        }
    }

    fn path(&self, row: &Row) -> String {
        let style = acrtask_page::asset_url("style.css");
        row.1
            .replace("{id}", &self.run)
            .replace("{*name}", "team/mine")
            .replace("/assets/{hash}/{name}", &style)
    }

    async fn send(&self, row: &Row, cookie: Option<&str>) -> TestResponse {
        let method: Method = row.0.parse().unwrap();
        let request = PageServer::request(method, &self.path(row), cookie)
            .header("sec-fetch-site", "same-origin");
        self.server
            .server
            .send(request.body(Body::empty()).unwrap())
            .await
    }
}

#[test]
fn every_route_is_in_the_table() {
    let table = table();
    let listed: BTreeSet<_> = table.iter().map(|row| (row.0, row.1)).collect();
    assert_eq!(listed.len(), table.len(), "a page is listed twice");
    assert_eq!(listed, ROUTES.iter().copied().collect());
    // The router has no routes beyond the list.
    let source = include_str!("../mod.rs");
    let routed = source.matches(".route(\"").count();
    let paths: BTreeSet<_> = ROUTES.iter().map(|(_, path)| path).collect();
    assert_eq!(routed, paths.len());
}

#[tokio::test]
async fn pages_without_a_session_lead_to_the_sign_in() {
    let fixture = Fixture::new().await;
    for row in table() {
        let what = format!("{} {}", row.0, row.1);
        for cookie in [
            None,
            Some("acrtask=wrong"),
            Some(&*format!("acrtask={}", "a".repeat(43))),
        ] {
            let response = fixture.send(&row, cookie).await;
            if row.2 == Requirement::Nothing {
                assert!(!response.status.is_server_error(), "{what}");
                continue;
            }
            let path = fixture.path(&row).replace('/', "%2F");
            assert_eq!(
                target_of(&response),
                format!("/sign-in?next={path}"),
                "{what}"
            );
            assert!(response.body.is_empty(), "{what}");
        }
    }
}

#[tokio::test]
async fn pages_need_the_scope_read() {
    let fixture = Fixture::new().await;
    let without = fixture.server.sign_in_limited(&[], None).await;
    let with = fixture.server.sign_in_limited(&[Scope::Read], None).await;
    for row in table() {
        let what = format!("{} {}", row.0, row.1);
        if row.2 == Requirement::Nothing {
            continue;
        }
        let status = fixture.send(&row, Some(&without)).await.status;
        let expected = match row.2 {
            Requirement::Read => StatusCode::FORBIDDEN,
            _ => StatusCode::OK,
        };
        assert_eq!(status, expected, "{what}");
        let status = fixture.send(&row, Some(&with)).await.status;
        assert_eq!(status, StatusCode::OK, "{what}");
    }
}

#[tokio::test]
async fn session_for_other_tasks_sees_nothing_of_the_task() {
    let fixture = Fixture::new().await;
    let server = &fixture.server;
    for limit in ["other", "team/min", "other/*", "team/mine/*"] {
        let scopes = [Scope::Read, Scope::Run, Scope::Write];
        let cookie = server.sign_in_limited(&scopes, Some(limit)).await;
        for row in table().into_iter().filter(|row| row.0 == "GET") {
            let what = format!("{limit}: {}", row.1);
            let response = fixture.send(&row, Some(&cookie)).await;
            let text = response.text();
            match row.3 {
                OtherTask::Free => assert_eq!(response.status, StatusCode::OK, "{what}"),
                OtherTask::Hidden => {
                    assert_eq!(response.status, StatusCode::NOT_FOUND, "{what}");
                }
                OtherTask::Empty => {
                    assert_eq!(response.status, StatusCode::OK, "{what}");
                    assert!(!text.contains("team/mine\""), "{what}: {text}");
                    assert!(!text.contains(&fixture.run), "{what}: {text}");
                    assert!(!text.contains("<td>"), "{what}: {text}");
                }
            }
        }
        let overview = server.expect_page("/", &cookie).await;
        for count in ["running", "waiting", "failed in the last day"] {
            assert!(
                overview.contains(&format!("<b>0</b> {count}")),
                "{overview}"
            );
        }
        assert!(
            overview.contains("<b>0 of 0</b> runners online"),
            "{overview}"
        );
        let filtered = server.expect_page("/runs?task=team/mine", &cookie).await;
        assert!(!filtered.contains(&fixture.run), "{filtered}");
    }
    // The task of the limit is visible, with the same counts as for an admin.
    let own = server.sign_in_limited(&[Scope::Read], Some("team/*")).await;
    let admin = server.sign_in_as_admin().await;
    for cookie in [own, admin] {
        let overview = server.expect_page("/", &cookie).await;
        assert!(overview.contains("<b>1</b> waiting"), "{overview}");
        assert!(
            overview.contains("<b>1</b> failed in the last day"),
            "{overview}"
        );
        assert!(overview.contains("<b>0</b> running"), "{overview}");
        server
            .expect_page(&format!("/runs/{}", fixture.run), &cookie)
            .await;
    }
}

#[tokio::test]
async fn rights_follow_the_token_at_every_request() {
    let fixture = Fixture::new().await;
    let server = &fixture.server;
    let token = server.server.create_token(&[Scope::Read], None).await;
    let cookie = server.sign_in(&token).await;
    let page = format!("/runs/{}", fixture.run);
    server.expect_page(&page, &cookie).await;
    let (id, _) = crate::auth::parse_token(&token).unwrap();
    server.server.app.clock.set(NOW + 1);
    server.server.app.store.revoke_token(id).await.unwrap();
    target_of(&server.get(&page, Some(&cookie)).await);
}
