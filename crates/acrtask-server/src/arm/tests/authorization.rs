//! Authorization: one table lists every operation of the ARM API.

use acrtask_arm::{Operation, RegistryOperation};

use super::*;
use crate::auth;

/// Response to a token whose task limit excludes the task of the operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OtherTask {
    /// The operation has no task.
    Free,
    /// 404.
    Hidden,
    /// 403.
    Forbidden,
    /// A list without the hidden entries.
    Empty,
}

struct Row {
    method: Method,
    path: &'static str,
    scope: Option<Scope>,
    other_task: OtherTask,
    body: Value,
}

fn table() -> Vec<Row> {
    use OtherTask::{Empty, Forbidden, Free, Hidden};
    let row = |method: &str, path, scope, other_task, body| Row {
        method: method.parse().unwrap(),
        path,
        scope,
        other_task,
        body,
    };
    let (read, run, write) = (Some(Scope::Read), Some(Scope::Run), Some(Scope::Write));
    let none = || Value::Null;
    let task_run = || json!({"properties": {"runRequest": encoded_run("named")}});
    vec![
        row("GET", "", None, Free, none()),
        row("GET", "/listUsages", None, Free, none()),
        row("GET", "/webhooks", None, Free, none()),
        row("POST", "/listBuildSourceUploadUrl", run, Free, none()),
        row("POST", "/scheduleRun", run, Forbidden, encoded_run("x")),
        row("GET", "/runs", read, Empty, none()),
        row("GET", "/runs/{run}", read, Hidden, none()),
        row(
            "PATCH",
            "/runs/{run}",
            run,
            Hidden,
            json!({"isArchiveEnabled": true}),
        ),
        row("POST", "/runs/{run}/cancel", run, Hidden, none()),
        row("POST", "/runs/{run}/listLogSasUrl", read, Hidden, none()),
        row("GET", "/tasks", read, Empty, none()),
        row("GET", "/tasks/mine", read, Hidden, none()),
        row("POST", "/tasks/mine/listDetails", read, Hidden, none()),
        row("PUT", "/tasks/mine", write, Forbidden, docker_task()),
        row(
            "PATCH",
            "/tasks/mine",
            write,
            Hidden,
            json!({"properties": {"status": "Enabled"}}),
        ),
        row("GET", "/taskRuns", read, Empty, none()),
        row("GET", "/taskRuns/named", read, Hidden, none()),
        row("POST", "/taskRuns/named/listDetails", read, Hidden, none()),
        row("PUT", "/taskRuns/new", run, Forbidden, task_run()),
        row("DELETE", "/taskRuns/named", run, Hidden, none()),
        row("DELETE", "/tasks/mine", write, Hidden, none()),
    ]
}

struct Fixture {
    arm: ArmServer,
    run: String,
}

impl Fixture {
    async fn new() -> Self {
        let arm = ArmServer::start().await;
        let fixture = Self {
            run: arm.schedule().await,
            arm,
        };
        fixture.restore().await;
        fixture
    }

    /// Creates the task and the task run that an operation may have deleted.
    async fn restore(&self) {
        let put = self
            .arm
            .of_registry(Method::PUT, "/tasks/mine", docker_task());
        put.await.json::<Value>(StatusCode::OK);
        let body = json!({"properties": {"runRequest": encoded_run("named")}});
        let put = self.arm.of_registry(Method::PUT, "/taskRuns/named", body);
        put.await.json::<Value>(StatusCode::OK);
    }

    async fn send(&self, row: &Row, token: Option<&str>) -> TestResponse {
        let path = in_registry(&row.path.replace("{run}", &self.run));
        self.arm
            .call_as(token, row.method.clone(), &path, &row.body)
            .await
    }
}

#[test]
fn table_has_the_scope_of_each_operation() {
    for row in table() {
        let path = format!("{}{}", acrtask_arm::registry_id("myreg"), row.path);
        let operation = Operation::parse(row.method.as_str(), &path).unwrap();
        assert_eq!(
            operation.required_scope(),
            row.scope,
            "{} {}",
            row.method,
            row.path
        );
        // A new operation without a row fails to compile here.
        let Operation::OfRegistry(_, operation) = operation else {
            panic!("{path}");
        };
        use RegistryOperation as Of;
        match operation {
            Of::Show
            | Of::CreateUpload
            | Of::ScheduleRun
            | Of::ListRuns
            | Of::ShowRun(_)
            | Of::UpdateRun(_)
            | Of::CancelRun(_)
            | Of::LinkLog(_)
            | Of::ListTasks
            | Of::ShowTask(_)
            | Of::ShowTaskDetails(_)
            | Of::PutTask(_)
            | Of::UpdateTask(_)
            | Of::DeleteTask(_)
            | Of::ListTaskRuns
            | Of::ShowTaskRun(_)
            | Of::PutTaskRun(_)
            | Of::DeleteTaskRun(_)
            | Of::ListUsages
            | Of::ListNothing => {}
        }
    }
}

#[tokio::test]
async fn requests_without_a_valid_token_are_refused() {
    let fixture = Fixture::new().await;
    let unknown = auth::new_token().text.0;
    let subscription = acrtask_arm::SUBSCRIPTION;
    let directory = [
        "/subscriptions".to_owned(),
        "/tenants".to_owned(),
        format!("/subscriptions/{subscription}/resourceGroups"),
        format!("/subscriptions/{subscription}/resources"),
        "/subscriptions/unknown".to_owned(),
    ];
    let mut requests: Vec<(Method, String)> = directory
        .into_iter()
        .map(|path| (Method::GET, path))
        .collect();
    requests.extend(
        table()
            .into_iter()
            .map(|row| (row.method, in_registry(row.path))),
    );
    for (number, (method, path)) in requests.into_iter().enumerate() {
        // Advance the clock, so that the limit of failures per address does not apply.
        let now = crate::api::testing::NOW + 600_000 * i64::try_from(number).unwrap();
        fixture.arm.server.app.clock.set(now);
        for token in [None, Some(unknown.as_str())] {
            let call = fixture
                .arm
                .call_as(token, method.clone(), &path, &Value::Null);
            message(&call.await, StatusCode::UNAUTHORIZED);
        }
    }
}

#[tokio::test]
async fn each_scope_allows_exactly_its_operations() {
    let fixture = Fixture::new().await;
    let server = &fixture.arm.server;
    for row in table() {
        let name = format!("{} {}", row.method, row.path);
        let lacking: Vec<Scope> = ALL_SCOPES
            .into_iter()
            .filter(|scope| row.scope.is_some_and(|needed| !scope.includes(needed)))
            .collect();
        if let Some(needed) = row.scope {
            let without = server.create_token(&lacking, None).await;
            let refused = fixture.send(&row, Some(&without)).await;
            message(&refused, StatusCode::FORBIDDEN);
            let with = server.create_token(&[needed], None).await;
            let allowed = fixture.send(&row, Some(&with)).await;
            assert_eq!(allowed.status, StatusCode::OK, "{name}: {}", allowed.text());
        } else {
            let any = server.create_token(&[], None).await;
            let allowed = fixture.send(&row, Some(&any)).await;
            assert_eq!(allowed.status, StatusCode::OK, "{name}: {}", allowed.text());
        }
        fixture.restore().await;
    }
}

#[tokio::test]
async fn token_for_other_tasks_sees_and_changes_nothing() {
    let fixture = Fixture::new().await;
    let token = fixture
        .arm
        .server
        .create_token(&ALL_SCOPES, Some("other/*"))
        .await;
    for row in table() {
        let name = format!("{} {}", row.method, row.path);
        let response = fixture.send(&row, Some(&token)).await;
        match row.other_task {
            OtherTask::Free => assert_eq!(response.status, StatusCode::OK, "{name}"),
            OtherTask::Hidden => {
                assert_eq!(
                    response.status,
                    StatusCode::NOT_FOUND,
                    "{name}: {}",
                    response.text()
                );
            }
            OtherTask::Forbidden => {
                assert_eq!(
                    response.status,
                    StatusCode::FORBIDDEN,
                    "{name}: {}",
                    response.text()
                );
            }
            OtherTask::Empty => {
                let list: Value = response.json(StatusCode::OK);
                assert_eq!(list, json!({"value": []}), "{name}");
            }
        }
    }
}

#[tokio::test]
async fn run_of_another_registry_is_hidden() {
    let arm = ArmServer::start().await;
    let run = arm.schedule().await;
    let other = acrtask_arm::registry_id("other");
    for (method, path) in [
        (Method::GET, format!("/runs/{run}")),
        (Method::POST, format!("/runs/{run}/cancel")),
        (Method::POST, format!("/runs/{run}/listLogSasUrl")),
    ] {
        let response = arm
            .call(method, &format!("{other}{path}"), Value::Null)
            .await;
        message(&response, StatusCode::NOT_FOUND);
    }
    let listed: Value = arm
        .call(Method::GET, &format!("{other}/runs"), Value::Null)
        .await
        .json(StatusCode::OK);
    assert_eq!(listed, json!({"value": []}));
}

#[tokio::test]
async fn server_without_registries_has_no_arm_api() {
    let server = TestServer::start().await;
    let router = super::super::router(server.app.clone());
    let request = Request::builder()
        .uri("/metadata/endpoints")
        .body(Body::empty())
        .unwrap();
    let response = router.oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
}
