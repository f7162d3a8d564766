//! Tests of authorization. One table lists every operation of the OpenAPI document.

use std::collections::BTreeSet;

use acrtask_api::{
    admin::Scope,
    run::{Context, Run},
};
use acrtask_model::events::BaseRole;
use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use super::testing::TestServer;
use crate::auth;

/// Requirement of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Requirement {
    /// No token.
    Nothing,
    /// Any token.
    Token,
    /// A token with this scope.
    Scope(Scope),
}

/// Response to a token whose task limit excludes the task of the operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OtherTask {
    /// The operation has no task. The limit does not matter.
    Free,
    /// 404: the token does not see the task.
    Hidden,
    /// 403.
    Forbidden,
    /// A list without the hidden entries.
    Empty,
}

struct Row {
    method: Method,
    path: &'static str,
    requirement: Requirement,
    other_task: OtherTask,
    body: Value,
}

fn row(
    method: Method,
    path: &'static str,
    requirement: Requirement,
    other_task: OtherTask,
    body: Value,
) -> Row {
    Row {
        method,
        path,
        requirement,
        other_task,
        body,
    }
}

fn table() -> Vec<Row> {
    use OtherTask::{Empty, Forbidden, Free, Hidden};
    use Requirement::{Nothing, Scope as Of, Token};
    let (get, post, put, delete, patch) = (
        Method::GET,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::PATCH,
    );
    let (read, run, write, admin) = (
        Of(Scope::Read),
        Of(Scope::Run),
        Of(Scope::Write),
        Of(Scope::Admin),
    );
    let none = || Value::Null;
    let cmd = || json!({"spec": {"source": {"type": "cmd", "line": "alpine true"}}});
    let task = || json!({"name": "mine", "cmd": "alpine true"});
    let webhook =
        || json!({"provider": "github", "secrets": ["a secret of the test"], "tasks": "mine*"});
    vec![
        row(get.clone(), "/openapi.json", Nothing, Free, none()),
        row(get.clone(), "/schemas/task.json", Nothing, Free, none()),
        row(get.clone(), "/schemas/acr-task.json", Nothing, Free, none()),
        row(
            post.clone(),
            "/auth/exchange",
            Nothing,
            Free,
            json!({"token": "x"}),
        ),
        row(get.clone(), "/me", Token, Free, none()),
        row(get.clone(), "/runs", read, Empty, none()),
        row(post.clone(), "/runs", run, Forbidden, cmd()),
        row(get.clone(), "/runs/{id}", read, Hidden, none()),
        row(get.clone(), "/runs/{id}/why", read, Hidden, none()),
        row(get.clone(), "/runs/{id}/attempts", read, Hidden, none()),
        row(get.clone(), "/runs/{id}/log", read, Hidden, none()),
        row(get.clone(), "/runs/{id}/outline", read, Hidden, none()),
        row(get.clone(), "/runs/{id}/lines", read, Hidden, none()),
        row(get.clone(), "/runs/{id}/search", read, Hidden, none()),
        row(get.clone(), "/runs/{id}/events", read, Hidden, none()),
        row(post.clone(), "/runs/{id}/rerun", run, Hidden, none()),
        row(post.clone(), "/runs/{id}/cancel", run, Hidden, none()),
        row(
            post.clone(),
            "/contexts",
            run,
            Free,
            json!({"size": 1, "digest": format!("sha256:{}", "a".repeat(64))}),
        ),
        row(get.clone(), "/contexts/{id}", run, Free, none()),
        row(patch, "/contexts/{id}", run, Free, none()),
        row(get.clone(), "/quotas", read, Free, none()),
        row(
            put.clone(),
            "/quotas",
            admin,
            Free,
            json!({"subject": "task:*", "kind": "queuedRuns", "limit": 1000}),
        ),
        row(get.clone(), "/tasks", read, Empty, none()),
        row(post.clone(), "/tasks", write, Forbidden, task()),
        row(get.clone(), "/tasks/{name}", read, Hidden, none()),
        row(put.clone(), "/tasks/{name}", write, Forbidden, task()),
        row(post.clone(), "/tasks/{name}/enable", write, Hidden, none()),
        row(post.clone(), "/tasks/{name}/disable", write, Hidden, none()),
        row(post.clone(), "/tasks/{name}/runs", run, Hidden, none()),
        row(get.clone(), "/tasks/{name}/triggers", read, Hidden, none()),
        row(post.clone(), "/tasks/{name}/probe", run, Hidden, none()),
        row(get.clone(), "/tasks/{name}/timers", read, Hidden, none()),
        row(
            put.clone(),
            "/tasks/{name}/timers/{timer}",
            write,
            Hidden,
            json!({"schedule": "0 3 * * *"}),
        ),
        row(
            delete.clone(),
            "/tasks/{name}/timers/{timer}",
            write,
            Hidden,
            none(),
        ),
        row(
            get.clone(),
            "/tasks/{name}/trigger-url",
            read,
            Hidden,
            none(),
        ),
        row(
            post.clone(),
            "/tasks/{name}/trigger-url",
            write,
            Hidden,
            none(),
        ),
        row(
            delete.clone(),
            "/tasks/{name}/trigger-url",
            write,
            Hidden,
            none(),
        ),
        row(get.clone(), "/secrets", read, Empty, none()),
        row(
            put.clone(),
            "/secrets/{name}",
            write,
            Forbidden,
            json!({"value": "a secret", "task": "mine"}),
        ),
        row(delete.clone(), "/secrets/{name}", write, Forbidden, none()),
        row(get.clone(), "/credentials", read, Empty, none()),
        row(
            put.clone(),
            "/credentials/{host}",
            write,
            Forbidden,
            json!({"username": "u", "password": "a password"}),
        ),
        row(
            delete.clone(),
            "/credentials/{host}",
            write,
            Forbidden,
            none(),
        ),
        row(get.clone(), "/tokens", admin, Free, none()),
        row(
            post.clone(),
            "/tokens",
            admin,
            Free,
            json!({"name": "x", "scopes": ["read"]}),
        ),
        row(delete.clone(), "/tokens/{id}", admin, Free, none()),
        row(post.clone(), "/runs/{id}/approve", write, Hidden, none()),
        row(get.clone(), "/webhooks", write, Empty, none()),
        row(get.clone(), "/webhooks/{name}", write, Hidden, none()),
        row(put.clone(), "/webhooks/{name}", write, Forbidden, webhook()),
        row(delete.clone(), "/webhooks/{name}", write, Hidden, none()),
        row(get.clone(), "/deliveries", read, Empty, none()),
        row(get.clone(), "/deliveries/refused", read, Empty, none()),
        row(get.clone(), "/deliveries/{id}", read, Hidden, none()),
        row(
            post.clone(),
            "/deliveries/{id}/redeliver",
            write,
            Hidden,
            none(),
        ),
        row(get.clone(), "/federations", admin, Free, none()),
        row(
            put,
            "/federations/{name}",
            admin,
            Free,
            json!({"name": "mine", "issuer": "https://x", "audience": "a", "subject": "s:*", "scopes": ["read"]}),
        ),
        row(delete.clone(), "/federations/{name}", admin, Free, none()),
        row(get.clone(), "/runners", read, Free, none()),
        row(get, "/runners/{name}", read, Free, none()),
        row(post.clone(), "/runners/{name}/drain", admin, Free, none()),
        row(post.clone(), "/runners/{name}/resume", admin, Free, none()),
        row(post.clone(), "/runner-tokens", admin, Free, none()),
        row(delete.clone(), "/runners/{name}", admin, Free, none()),
        row(Method::GET, "/images", read, Empty, none()),
        row(Method::GET, "/images/tree", read, Empty, none()),
        row(Method::GET, "/images/{image}", read, Hidden, none()),
        row(
            Method::GET,
            "/images/{image}/record",
            read,
            Forbidden,
            none(),
        ),
        row(Method::GET, "/bases", read, Empty, none()),
        row(Method::POST, "/bases/check", run, Empty, none()),
        row(Method::GET, "/bases/proposals", read, Empty, none()),
        row(Method::GET, "/bases/{base}", read, Hidden, none()),
        row(
            Method::POST,
            "/bases/{base}/pause",
            write,
            Forbidden,
            none(),
        ),
        row(
            Method::POST,
            "/bases/{base}/resume",
            write,
            Forbidden,
            none(),
        ),
        row(
            Method::GET,
            "/bases/{base}/blast-radius",
            read,
            Hidden,
            none(),
        ),
        row(Method::GET, "/cascades", read, Empty, none()),
        row(Method::POST, "/cascades/plan", read, Forbidden, none()),
        row(Method::GET, "/cascades/settings", read, Free, none()),
        row(Method::PUT, "/cascades/settings", admin, Free, json!({})),
        row(Method::GET, "/cascades/{id}", read, Hidden, none()),
        row(
            post.clone(),
            "/cascades/{id}/pause",
            write,
            Forbidden,
            none(),
        ),
        row(
            post.clone(),
            "/cascades/{id}/resume",
            write,
            Forbidden,
            none(),
        ),
        row(
            post.clone(),
            "/cascades/{id}/approve",
            write,
            Forbidden,
            none(),
        ),
        row(
            post.clone(),
            "/cascades/{id}/cancel",
            write,
            Forbidden,
            none(),
        ),
        row(
            post.clone(),
            "/cascades/{id}/retry",
            write,
            Forbidden,
            none(),
        ),
        row(
            post.clone(),
            "/cascades/{id}/promote",
            write,
            Forbidden,
            none(),
        ),
        row(post, "/cascades/{id}/rollback", write, Forbidden, none()),
        row(delete, "/tasks/{name}", write, Hidden, none()),
    ]
}

fn operations() -> BTreeSet<(String, String)> {
    let document = serde_json::to_value(super::openapi()).unwrap();
    let mut found = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let Some(path) = path.strip_prefix(acrtask_api::BASE) else {
            // A secret in its path authorizes it, as `trigger_url_tests.rs` shows.
            assert_eq!(path, "/trigger/{token}");
            continue;
        };
        for method in item.as_object().unwrap().keys() {
            found.insert((method.to_uppercase(), path.to_owned()));
        }
    }
    found
}

/// A server with one resource of each kind.
struct AuthorizationFixture {
    server: TestServer,
    run: String,
    context: String,
}

impl AuthorizationFixture {
    async fn new() -> Self {
        let server = TestServer::start().await;
        server.register_runner("mine").await;
        let task = json!({"name": "mine", "cmd": "alpine true"});
        server
            .post("/tasks", task)
            .await
            .json::<Value>(StatusCode::CREATED);
        let run: Run = server
            .post("/tasks/mine/runs", json!({}))
            .await
            .json(StatusCode::CREATED);
        // Cancel the run, so that its events end.
        server
            .post(&format!("/runs/{}/cancel", run.id), json!({}))
            .await;
        let base = |name| (name, 'b', BaseRole::Runtime);
        let bases = [base("base:1"), base("r.io/moved:1")];
        server
            .complete_push("mine", ("r.io/mine:1", 'a'), &bases)
            .await;
        server.record_digest("r.io/moved:1", 'c').await;
        server.wait_for_cascade(1).await;
        server.start_run().await;
        for (path, body) in [
            ("/secrets/mine", json!({"value": "a secret"})),
            ("/secrets/own", json!({"value": "a secret", "task": "mine"})),
            (
                "/secrets/prefix",
                json!({"value": "a secret", "tasks": "mine*"}),
            ),
            (
                "/webhooks/mine",
                json!({"provider": "github", "secrets": ["a secret"], "tasks": "mine*"}),
            ),
            (
                "/webhooks/all",
                json!({"provider": "github", "secrets": ["a secret"]}),
            ),
        ] {
            server.put(path, body).await.json::<Value>(StatusCode::OK);
        }
        let login = json!({"username": "u", "password": "a password"});
        server
            .put("/credentials/mine", login)
            .await
            .json::<Value>(StatusCode::OK);
        let federation = json!({"name": "mine", "issuer": "https://x", "audience": "a", "subject": "s:*", "scopes": ["read"]});
        server
            .put("/federations/mine", federation)
            .await
            .json::<Value>(StatusCode::OK);
        let size = json!({"size": 5, "digest": format!("sha256:{}", "b".repeat(64))});
        let context: Context = server
            .post("/contexts", size)
            .await
            .json(StatusCode::CREATED);
        Self {
            run: run.id.to_string(),
            context: context.id,
            server,
        }
    }

    fn path(&self, row: &Row) -> String {
        let id = if row.path.starts_with("/contexts") {
            self.context.as_str()
        } else if row.path.starts_with("/cascades") {
            "1"
        } else {
            self.run.as_str()
        };
        row.path
            .replace("{id}", id)
            .replace("{name}", "mine")
            .replace("{host}", "mine")
            .replace("{image}", "r.io%2Fmine:1")
            .replace("{base}", "base:1")
            .replace("{timer}", "night")
            .replace("/search", "/search?q=x")
    }

    async fn send_row(&self, row: &Row, token: Option<&str>) -> super::testing::TestResponse {
        let body = (!row.body.is_null()).then_some(&row.body);
        let request = TestServer::request(row.method.clone(), &self.path(row), token, body);
        self.server.send(request).await
    }
}

#[test]
fn every_operation_is_in_the_table() {
    let table = table();
    let listed: BTreeSet<(String, String)> = table
        .iter()
        .map(|row| (row.method.to_string(), row.path.to_owned()))
        .collect();
    assert_eq!(listed.len(), table.len(), "an operation is listed twice");
    assert_eq!(listed, operations());
}

#[test]
fn document_describes_the_required_scope_of_each_operation() {
    let document = serde_json::to_value(super::openapi()).unwrap();
    for row in table() {
        let path = format!("{}{}", acrtask_api::BASE, row.path);
        let operation = &document["paths"][path.as_str()][row.method.as_str().to_lowercase()];
        let expected = match row.requirement {
            Requirement::Nothing => Value::Null,
            Requirement::Token => json!([{ "token": [] }]),
            Requirement::Scope(scope) => json!([{ "token": [auth::scope_name(scope)] }]),
        };
        assert_eq!(operation["security"], expected, "{} {path}", row.method);
    }
}

#[tokio::test]
async fn requests_without_a_valid_token_are_refused() {
    let fixture = AuthorizationFixture::new().await;
    let server = &fixture.server;
    let unknown = auth::new_token().text.0;
    for (at, row) in table().iter().enumerate() {
        // Advance the clock, so that the limit of failures per address does not apply.
        let now = super::testing::NOW + 600_000 * i64::try_from(at).unwrap();
        server.app.clock.set(now);
        let what = format!("{} {}", row.method, row.path);
        let without = fixture.send_row(row, None).await.status;
        let wrong = fixture.send_row(row, Some(&unknown)).await.status;
        if row.requirement == Requirement::Nothing {
            // The operation is refused because of its body, if at all, and not because of a token.
            let expected = if row.path == "/auth/exchange" {
                StatusCode::UNAUTHORIZED
            } else {
                StatusCode::OK
            };
            assert_eq!((without, wrong), (expected, expected), "{what}");
        } else {
            assert_eq!(without, StatusCode::UNAUTHORIZED, "{what}");
            assert_eq!(wrong, StatusCode::UNAUTHORIZED, "{what}");
        }
    }
}

#[tokio::test]
async fn each_scope_allows_exactly_its_operations() {
    let fixture = AuthorizationFixture::new().await;
    let server = &fixture.server;
    let all = [Scope::Read, Scope::Run, Scope::Write];
    let no_scope = server.create_token(&[], None).await;
    for row in table() {
        let what = format!("{} {}", row.method, row.path);
        match row.requirement {
            Requirement::Nothing => {}
            Requirement::Token => {
                assert_eq!(
                    fixture.send_row(&row, Some(&no_scope)).await.status,
                    StatusCode::OK
                );
            }
            Requirement::Scope(needed) => {
                let others: Vec<Scope> = all
                    .into_iter()
                    .filter(|scope| !scope.includes(needed))
                    .collect();
                let without = server.create_token(&others, None).await;
                let refused = fixture.send_row(&row, Some(&without)).await;
                let problem = refused.problem(StatusCode::FORBIDDEN);
                assert_eq!(problem.code, "forbidden", "{what}");
                let with = server.create_token(&[needed], None).await;
                let opened = fixture.send_row(&row, Some(&with)).await;
                for more in all.into_iter().filter(|scope| scope.includes(needed)) {
                    let more = server.create_token(&[more], None).await;
                    let status = fixture.send_row(&row, Some(&more)).await.status;
                    assert_ne!(status, StatusCode::FORBIDDEN, "{what}");
                }
                let refused = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN];
                assert!(
                    !refused.contains(&opened.status),
                    "{what}: {}",
                    opened.text()
                );
                assert!(
                    !opened.status.is_server_error(),
                    "{what}: {}",
                    opened.text()
                );
            }
        }
    }
}

#[tokio::test]
async fn token_for_other_tasks_sees_and_changes_nothing() {
    let fixture = AuthorizationFixture::new().await;
    let all = [Scope::Read, Scope::Run, Scope::Write];
    for limit in ["other", "min", "other/*", "mine/*"] {
        let token = fixture.server.create_token(&all, Some(limit)).await;
        for row in table() {
            let what = format!("{limit}: {} {}", row.method, row.path);
            let response = fixture.send_row(&row, Some(&token)).await;
            let status = response.status;
            match row.other_task {
                OtherTask::Free if row.requirement == Requirement::Scope(Scope::Admin) => {
                    assert_eq!(status, StatusCode::FORBIDDEN, "{what}");
                }
                OtherTask::Free => assert_ne!(status, StatusCode::FORBIDDEN, "{what}"),
                OtherTask::Hidden => assert_eq!(status, StatusCode::NOT_FOUND, "{what}"),
                OtherTask::Forbidden => assert_eq!(status, StatusCode::FORBIDDEN, "{what}"),
                OtherTask::Empty => {
                    let list: Value = response.json(StatusCode::OK);
                    let items = list.get("items").unwrap_or(&list);
                    assert_eq!(items, &json!([]), "{what}");
                }
            }
        }
    }
    // A limited token does not see a run without a task either.
    let token = fixture.server.create_token(&all, Some("mine")).await;
    let run = fixture.server.start_run().await;
    let path = format!("/runs/{}", run.id);
    let response = fixture
        .server
        .send_as(Method::GET, &path, &token, None)
        .await;
    response.problem(StatusCode::NOT_FOUND);
    let own = format!("/runs/{}", fixture.run);
    let response = fixture
        .server
        .send_as(Method::GET, &own, &token, None)
        .await;
    response.json::<Run>(StatusCode::OK);
}
