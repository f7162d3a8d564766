//! Concurrency groups: no task cancels, blocks or reveals runs of tasks outside the scope of its
//! token.

use acrtask_tests::{TestEnvironment, service::TestServer};
use serde_json::{Value, json};

use crate::requests::{create_limited_token, request, send};

const WRITER: [&str; 3] = ["read", "run", "write"];

fn task_definition(name: &str, group: Option<&str>) -> Value {
    let mut concurrency = json!({"max": 1, "cancelSuperseded": true});
    if let Some(group) = group {
        concurrency["group"] = group.into();
    }
    json!({"name": name, "cmd": "alpine true", "queue": {"concurrency": concurrency}})
}

async fn put_task(
    server: &TestServer,
    token: &str,
    name: &str,
    group: Option<&str>,
) -> (u16, Value) {
    let path = format!("/tasks/{}", name.replace('/', "%2F"));
    request(server, token, "PUT", &path, task_definition(name, group)).await
}

async fn start_run(server: &TestServer, token: &str, name: &str) -> String {
    let path = format!("/tasks/{}/runs", name.replace('/', "%2F"));
    let run = send(server, token, "POST", &path, json!({})).await;
    run["id"].as_str().unwrap().to_owned()
}

async fn fetch_state(server: &TestServer, run: &str) -> Value {
    let run = send(
        server,
        &server.token,
        "GET",
        &format!("/runs/{run}"),
        Value::Null,
    )
    .await;
    run["state"].clone()
}

#[tokio::test]
async fn limited_token_cannot_use_groups_of_others() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &["--no-runner"]);
    let admin = server.token.clone();
    let team = create_limited_token(&server, "team", &WRITER, "team/*");
    let one = create_limited_token(&server, "one", &WRITER, "team/one");
    assert_eq!(put_task(&server, &admin, "prod/deploy", None).await.0, 201);
    let victim = start_run(&server, &admin, "prod/deploy").await;
    let approval = format!("approval of {victim}");
    let refused = [
        "prod/deploy",
        "PROD/deploy",
        " prod/deploy",
        "teamx/deploy",
        "team",
        "named prod/deploy",
        approval.as_str(),
        "*",
    ];
    for group in refused {
        let (status, answer) = put_task(&server, &team, "team/app", Some(group)).await;
        assert_eq!(status, 403, "{group}: {answer}");
        let message = answer["message"].as_str().unwrap();
        assert!(
            message.contains(group) && message.contains("`team/*`"),
            "{message}"
        );
        let created = request(
            &server,
            &team,
            "POST",
            "/tasks",
            task_definition("team/app", Some(group)),
        );
        assert_eq!(created.await.0, 403, "{group}");
    }
    // A group below the token's prefix is permitted, but not a path that leads elsewhere.
    for group in ["team/../prod/deploy", "team/./app", "team//app", "team/"] {
        let (status, answer) = put_task(&server, &team, "team/app", Some(group)).await;
        assert_eq!(status, 422, "{group}: {answer}");
    }
    for group in ["team/app", "team/other", "team/prod/deploy"] {
        let (status, answer) = put_task(&server, &team, "team/app", Some(group)).await;
        assert!((200..300).contains(&status), "{group}: {answer}");
        start_run(&server, &team, "team/app").await;
        assert_eq!(fetch_state(&server, &victim).await, "queued", "{group}");
    }
    assert_eq!(put_task(&server, &one, "team/one", None).await.0, 201);
    assert_eq!(
        put_task(&server, &one, "team/one", Some("team/one"))
            .await
            .0,
        200
    );
    assert_eq!(
        put_task(&server, &one, "team/one", Some("team/app"))
            .await
            .0,
        403
    );
    // A group shared by an administrator can be kept, but not changed.
    assert_eq!(
        put_task(&server, &admin, "team/app", Some("prod/deploy"))
            .await
            .0,
        200
    );
    assert_eq!(
        put_task(&server, &team, "team/app", Some("prod/deploy"))
            .await
            .0,
        200
    );
    let mut raised = task_definition("team/app", Some("prod/deploy"));
    raised["queue"]["concurrency"]["max"] = 9.into();
    let (status, _) = request(&server, &team, "PUT", "/tasks/team%2Fapp", raised).await;
    assert_eq!(status, 403);
    assert_eq!(fetch_state(&server, &victim).await, "queued");
}

#[tokio::test]
async fn shared_group_reveals_no_run_of_others() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &["--no-runner"]);
    let admin = server.token.clone();
    let team = create_limited_token(&server, "team", &WRITER, "team/*");
    let shared = |name: &str| {
        let mut task = task_definition(name, Some("shared"));
        task["queue"]["concurrency"]["cancelSuperseded"] = false.into();
        task
    };
    for name in ["prod/deploy", "team/app"] {
        send(&server, &admin, "POST", "/tasks", shared(name)).await;
    }
    let secret = start_run(&server, &admin, "prod/deploy").await;
    let blocked = start_run(&server, &team, "team/app").await;
    let why = format!("/runs/{blocked}/why");
    let seen = send(&server, &admin, "GET", &why, Value::Null).await;
    assert_eq!(seen["blockedBy"], secret.as_str(), "{seen:#}");
    let seen = send(&server, &team, "GET", &why, Value::Null).await;
    assert!(seen["blockedBy"].is_null(), "{seen:#}");
    let summary = seen["summary"].as_str().unwrap();
    assert!(
        summary.contains("one run of tasks that this token may not see"),
        "{summary}"
    );
    // The replacing run is visible only to tokens that may see its task.
    send(
        &server,
        &admin,
        "PUT",
        "/tasks/prod%2Fdeploy",
        task_definition("prod/deploy", Some("shared")),
    )
    .await;
    let newer = start_run(&server, &admin, "prod/deploy").await;
    assert_eq!(fetch_state(&server, &blocked).await, "canceled");
    for path in [
        "/runs".to_owned(),
        format!("/runs/{blocked}"),
        format!("/runs/{blocked}/why"),
        "/tasks/team%2Fapp/triggers".to_owned(),
    ] {
        let seen = send(&server, &team, "GET", &path, Value::Null)
            .await
            .to_string();
        for hidden in [&secret, &newer] {
            assert!(!seen.contains(hidden.as_str()), "{path}: {seen}");
        }
    }
}
