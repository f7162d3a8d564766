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
    /// A session with the scope `run`.
    Run,
    /// A session with the scope `write`.
    Write,
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
    use Requirement::{Nothing, Read, Run, Session, Write};
    vec![
        ("GET", "/", Read, Empty),
        ("GET", "/live", Read, Empty),
        ("GET", "/runs", Read, Empty),
        ("GET", "/runs/{id}", Read, Hidden),
        ("GET", "/runs/{id}/live", Read, Hidden),
        ("GET", "/runs/{id}/log", Read, Hidden),
        ("GET", "/runs/{id}/log/live", Read, Hidden),
        ("GET", "/runs/{id}/log.txt", Read, Hidden),
        ("POST", "/runs/{id}/cancel", Run, Hidden),
        ("POST", "/runs/{id}/rerun", Run, Hidden),
        ("POST", "/runs/{id}/approve", Write, Hidden),
        ("GET", "/tasks", Read, Empty),
        ("GET", "/tasks/{*name}", Read, Hidden),
        ("POST", "/tasks/{*name}", Run, Hidden),
        ("GET", "/images", Read, Empty),
        ("GET", "/images/{*name}", Read, Hidden),
        ("GET", "/bases", Read, Empty),
        ("GET", "/bases/{*name}", Read, Hidden),
        ("GET", "/cascades", Read, Empty),
        ("GET", "/cascades/{id}", Read, Hidden),
        ("GET", "/cascades/{id}/live", Read, Hidden),
        ("POST", "/cascades/{id}/{action}", Write, Hidden),
        ("GET", "/deliveries", Read, Empty),
        ("GET", "/deliveries/{id}", Read, Hidden),
        ("GET", "/runners", Read, Empty),
        ("GET", "/me", Session, Free),
        ("GET", "/sign-in", Nothing, Free),
        ("POST", "/sign-in", Nothing, Free),
        ("POST", "/sign-out", Nothing, Free),
        ("GET", "/assets/{hash}/{name}", Nothing, Free),
    ]
}

/// A server with runs, a stale image, a cascade and a runner of the task `team/mine`, and with a
/// delivery.
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
        server.push_stale_image("team/mine").await;
        server.record_delivery("d1", "pushed <main>").await;
        let run = server.fail_task("team/mine", "").await;
        server.start_task("team/mine").await;
        Self {
            server,
            run: run.id.to_string(),
        }
    }

    fn path(&self, row: &Row) -> String {
        let style = acrtask_page::asset_url("style.css");
        let name = match (row.0, row.1.split('/').nth(1)) {
            ("POST", Some("tasks")) => "team/mine/-/run",
            (_, Some("images")) => "r.io/mine:1",
            (_, Some("bases")) => "r.io/base:1",
            _ => "team/mine",
        };
        row.1
            .replace("/cascades/{id}", "/cascades/1")
            .replace("/deliveries/{id}", "/deliveries/d1")
            .replace("{action}", "pause")
            .replace("{id}", &self.run)
            .replace("{*name}", name)
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
            // A form is sent again from its page.
            let path = fixture.path(&row);
            let page = match row.0 {
                "POST" => path.strip_suffix("/-/run").or_else(|| {
                    let (page, _) = path.rsplit_once('/')?;
                    Some(page)
                }),
                _ => None,
            };
            let page = acrtask_page::encode_query(page.unwrap_or(&path));
            assert_eq!(
                target_of(&response),
                format!("/sign-in?next={page}"),
                "{what}"
            );
            assert!(response.body.is_empty(), "{what}");
        }
    }
}

#[tokio::test]
async fn pages_need_their_scopes() {
    let fixture = Fixture::new().await;
    let server = &fixture.server;
    let without = server.sign_in_limited(&[], None).await;
    let reader = server.sign_in_limited(&[Scope::Read], None).await;
    let runner = server.sign_in_limited(&[Scope::Run], None).await;
    let writer = server.sign_in_limited(&[Scope::Write], None).await;
    for row in table() {
        let what = format!("{} {}", row.0, row.1);
        let (cookie, lesser) = match row.2 {
            Requirement::Nothing => continue,
            Requirement::Session => (&without, None),
            Requirement::Read => (&reader, Some(&without)),
            Requirement::Run => (&runner, Some(&reader)),
            Requirement::Write => (&writer, Some(&runner)),
        };
        if let Some(lesser) = lesser {
            let status = fixture.send(&row, Some(lesser)).await.status;
            assert_eq!(status, StatusCode::FORBIDDEN, "{what}");
        }
        let response = fixture.send(&row, Some(cookie)).await;
        let expected = match row {
            // The run does not wait for an approval.
            ("POST", "/runs/{id}/approve", ..) => StatusCode::CONFLICT,
            ("POST", ..) => StatusCode::SEE_OTHER,
            _ => StatusCode::OK,
        };
        assert_eq!(response.status, expected, "{what}: {}", response.text());
    }
}

#[tokio::test]
async fn session_for_other_tasks_sees_nothing_of_the_task() {
    let fixture = Fixture::new().await;
    let server = &fixture.server;
    for limit in ["other", "team/min", "other/*", "team/mine/*"] {
        let scopes = [Scope::Read, Scope::Run, Scope::Write];
        let cookie = server.sign_in_limited(&scopes, Some(limit)).await;
        let rows = table().into_iter();
        for row in rows.filter(|row| row.0 == "GET" || row.3 != OtherTask::Free) {
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
                    for hidden in ["<td>", "r.io/"] {
                        assert!(!text.contains(hidden), "{what}: {text}");
                    }
                }
            }
        }
        let overview = server.expect_page("/", &cookie).await;
        for count in [
            "running",
            "waiting",
            "failed in the last day",
            "stale images",
            "active cascades",
        ] {
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
        assert!(overview.contains("<b>1</b> stale images"), "{overview}");
        assert!(overview.contains("<b>1</b> active cascades"), "{overview}");
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
