//! Tests of `timers.rs`.

use acrtask_api::run::Run;
use axum::http::Method;
use serde_json::json;

use super::*;
use crate::{
    api::testing::{NOW, TestServer},
    timers,
};

const HOUR: i64 = 3_600_000;

async fn server_with_task() -> TestServer {
    let server = TestServer::start().await;
    server
        .post("/tasks", json!({"name": "team/app", "cmd": "alpine true"}))
        .await
        .json::<Task>(StatusCode::CREATED);
    server
}

async fn list_timers(server: &TestServer) -> Vec<TaskTimer> {
    let response = server.get("/tasks/team%2Fapp/timers").await;
    response.json(StatusCode::OK)
}

#[tokio::test]
async fn timer_is_set_shown_and_deleted() {
    let server = server_with_task().await;
    assert_eq!(list_timers(&server).await, []);
    let path = "/tasks/team%2Fapp/timers/night";
    let made: TaskTimer = server
        .put(
            path,
            json!({"schedule": "0 3 * * *", "timezone": "Europe/Berlin", "jitter": "10m"}),
        )
        .await
        .json(StatusCode::CREATED);
    assert_eq!(made.name, "night");
    assert_eq!(made.problem, None);
    // 2026-09-21T14:13:20Z.
    let next = made.next.unwrap();
    assert_eq!(next.to_string(), "2026-09-22T01:00:00Z");
    assert!(made.next_start.unwrap() > next);
    let changed: TaskTimer = server
        .put(path, json!({"schedule": "30 * * * *", "missed": "skip"}))
        .await
        .json(StatusCode::OK);
    assert_eq!(changed.timer.timezone, None);
    assert_eq!(changed.next_start, None);
    assert_eq!(list_timers(&server).await, [changed]);
    let task: Task = server.get("/tasks/team%2Fapp").await.json(StatusCode::OK);
    assert_eq!(
        task.definition.triggers.timers["night"].schedule,
        "30 * * * *"
    );
    assert_eq!(server.delete(path).await.status, StatusCode::NO_CONTENT);
    let problem = server.delete(path).await.problem(StatusCode::NOT_FOUND);
    assert_eq!(problem.message, "the task `team/app` has no timer `night`");
    assert_eq!(list_timers(&server).await, []);
}

#[tokio::test]
async fn invalid_timer_is_refused_with_all_problems() {
    let server = server_with_task().await;
    let wrong = json!({"schedule": "61 3 * *", "timezone": "Mars", "jitter": "soon"});
    let problem = server
        .put("/tasks/team%2Fapp/timers/night", wrong)
        .await
        .problem(StatusCode::UNPROCESSABLE_ENTITY);
    insta::assert_snapshot!(problem.message.replace("; ", "\n"));
    let problem = server
        .put(
            "/tasks/team%2Fapp/timers/a%20b",
            json!({"schedule": "0 3 * * *"}),
        )
        .await
        .problem(StatusCode::BAD_REQUEST);
    assert!(
        problem.message.contains("the name of a timer"),
        "{problem:?}"
    );
    server
        .put("/tasks/none/timers/a", json!({"schedule": "0 3 * * *"}))
        .await
        .problem(StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn timers_of_a_task_file_cannot_be_changed() {
    let server = TestServer::start().await;
    let definition = serde_json::from_value(json!({"name": "app", "cmd": "alpine true",
        "triggers": {"timers": {"night": {"schedule": "0 3 * * *"}}}}))
    .unwrap();
    let store = &server.app.store;
    store
        .create_task("t1", &definition, Some("tasks/app.yaml"), NOW)
        .await
        .unwrap();
    let path = "/tasks/app/timers/night";
    let timer = json!({"schedule": "0 4 * * *"});
    let problem = server.put(path, timer).await.problem(StatusCode::CONFLICT);
    assert_eq!(
        problem.message,
        "the task `app` is defined in the file tasks/app.yaml"
    );
    server.delete(path).await.problem(StatusCode::CONFLICT);
}

#[tokio::test]
async fn firing_is_shown_at_its_timer_its_run_and_among_the_triggers() {
    let server = server_with_task().await;
    let app = &server.app;
    for (name, schedule) in [("night", "0 * * * *"), ("off", "0 * * * *")] {
        let timer = json!({"schedule": schedule, "enabled": name == "night"});
        let path = format!("/tasks/team%2Fapp/timers/{name}");
        let response = server.put(&path, timer).await;
        response.json::<TaskTimer>(StatusCode::CREATED);
    }
    timers::handle_due(app).await.unwrap();
    app.clock.set(NOW + HOUR);
    timers::handle_due(app).await.unwrap();
    let timers = list_timers(&server).await;
    let last = timers[0].last.clone().unwrap();
    assert_eq!(last.action, DecisionAction::RunStarted);
    assert_eq!(last.state.as_deref(), Some("queued"));
    assert_eq!((&timers[1].last, timers[1].next), (&None, None));
    let id = last.run.unwrap();
    let run: Run = server
        .get(&format!("/runs/{id}"))
        .await
        .json(StatusCode::OK);
    assert_eq!(run.trigger, "timer");
    let firing = run.firing.unwrap();
    assert_eq!((firing.timer.as_str(), firing.firing_count), ("night", 1));
    assert_eq!(firing.scheduled_at, last.scheduled_at);
    // A disabled task starts no run at its next firing.
    server
        .post("/tasks/team%2Fapp/disable", json!({}))
        .await
        .json::<Task>(StatusCode::OK);
    app.clock.set(NOW + 2 * HOUR);
    timers::handle_due(app).await.unwrap();
    let timers = list_timers(&server).await;
    let problem = timers[0].problem.as_deref();
    assert_eq!(problem, Some("the task is disabled"));
    let page: Page<Trigger> = server
        .get("/tasks/team%2Fapp/triggers?limit=1")
        .await
        .json(StatusCode::OK);
    let shown = &page.items[0];
    assert_eq!(shown.decision.action, DecisionAction::Ignored);
    assert_eq!(shown.decision.reason, "the task is disabled");
    assert_eq!(shown.firing.as_ref().unwrap().timer, "night");
    let path = format!(
        "/tasks/team%2Fapp/triggers?cursor={}",
        page.next.unwrap().replace('/', "%2F")
    );
    let page: Page<Trigger> = server.get(&path).await.json(StatusCode::OK);
    assert_eq!(page.items.len(), 1);
    assert_eq!(page.items[0].decision.run.as_ref(), Some(&id));
    assert_eq!(page.items[0].state.as_deref(), Some("queued"));
    assert_eq!(page.next, None);
    let path = "/tasks/team%2Fapp/triggers?cursor=x";
    let response = server.send_as(Method::GET, path, &server.admin, None).await;
    response.problem(StatusCode::UNPROCESSABLE_ENTITY);
}
