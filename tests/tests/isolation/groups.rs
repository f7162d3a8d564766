//! Concurrency groups: no task cancels, blocks or learns of runs of tasks that its token does not reach.

use acrtask_tests::{World, service::Server};
use serde_json::{Value, json};

use crate::requests::{done, limited_token, request};

const WRITER: [&str; 3] = ["read", "run", "write"];

fn task(name: &str, group: Option<&str>) -> Value {
    let mut concurrency = json!({"max": 1, "cancelSuperseded": true});
    if let Some(group) = group {
        concurrency["group"] = group.into();
    }
    json!({"name": name, "cmd": "alpine true", "queue": {"concurrency": concurrency}})
}

async fn put(server: &Server, token: &str, name: &str, group: Option<&str>) -> (u16, Value) {
    let path = format!("/tasks/{}", name.replace('/', "%2F"));
    request(server, token, "PUT", &path, task(name, group)).await
}

async fn start(server: &Server, token: &str, name: &str) -> String {
    let path = format!("/tasks/{}/runs", name.replace('/', "%2F"));
    let run = done(server, token, "POST", &path, json!({})).await;
    run["id"].as_str().unwrap().to_owned()
}

async fn state(server: &Server, run: &str) -> Value {
    let run = done(
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
async fn a_limited_token_names_no_group_of_others() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &["--no-runner"]);
    let admin = server.token.clone();
    let team = limited_token(&server, "team", &WRITER, "team/*");
    let one = limited_token(&server, "one", &WRITER, "team/one");
    assert_eq!(put(&server, &admin, "prod/deploy", None).await.0, 201);
    let victim = start(&server, &admin, "prod/deploy").await;
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
        let (status, answer) = put(&server, &team, "team/app", Some(group)).await;
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
            task("team/app", Some(group)),
        );
        assert_eq!(created.await.0, 403, "{group}");
    }
    // A name below its limit is its own, also where it looks like a path to elsewhere.
    for group in ["team/../prod/deploy", "team/./app", "team//app", "team/"] {
        let (status, answer) = put(&server, &team, "team/app", Some(group)).await;
        assert_eq!(status, 422, "{group}: {answer}");
    }
    for group in ["team/app", "team/other", "team/prod/deploy"] {
        let (status, answer) = put(&server, &team, "team/app", Some(group)).await;
        assert!((200..300).contains(&status), "{group}: {answer}");
        start(&server, &team, "team/app").await;
        assert_eq!(state(&server, &victim).await, "queued", "{group}");
    }
    assert_eq!(put(&server, &one, "team/one", None).await.0, 201);
    assert_eq!(
        put(&server, &one, "team/one", Some("team/one")).await.0,
        200
    );
    assert_eq!(
        put(&server, &one, "team/one", Some("team/app")).await.0,
        403
    );
    // What an administrator has shared stays as it is, and only as it is.
    assert_eq!(
        put(&server, &admin, "team/app", Some("prod/deploy"))
            .await
            .0,
        200
    );
    assert_eq!(
        put(&server, &team, "team/app", Some("prod/deploy")).await.0,
        200
    );
    let mut raised = task("team/app", Some("prod/deploy"));
    raised["queue"]["concurrency"]["max"] = 9.into();
    let (status, _) = request(&server, &team, "PUT", "/tasks/team%2Fapp", raised).await;
    assert_eq!(status, 403);
    assert_eq!(state(&server, &victim).await, "queued");
}

#[tokio::test]
async fn a_shared_group_names_no_run_of_others() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &["--no-runner"]);
    let admin = server.token.clone();
    let team = limited_token(&server, "team", &WRITER, "team/*");
    let shared = |name: &str| {
        let mut task = task(name, Some("shared"));
        task["queue"]["concurrency"]["cancelSuperseded"] = false.into();
        task
    };
    for name in ["prod/deploy", "team/app"] {
        done(&server, &admin, "POST", "/tasks", shared(name)).await;
    }
    let secret = start(&server, &admin, "prod/deploy").await;
    let blocked = start(&server, &team, "team/app").await;
    let why = format!("/runs/{blocked}/why");
    let seen = done(&server, &admin, "GET", &why, Value::Null).await;
    assert_eq!(seen["behind"], secret.as_str(), "{seen:#}");
    let seen = done(&server, &team, "GET", &why, Value::Null).await;
    assert!(seen["behind"].is_null(), "{seen:#}");
    let summary = seen["summary"].as_str().unwrap();
    assert!(
        summary.contains("one run of tasks that this token may not see"),
        "{summary}"
    );
    // The run that replaces it is named to its own people only.
    done(
        &server,
        &admin,
        "PUT",
        "/tasks/prod%2Fdeploy",
        task("prod/deploy", Some("shared")),
    )
    .await;
    let newer = start(&server, &admin, "prod/deploy").await;
    assert_eq!(state(&server, &blocked).await, "canceled");
    for path in [
        "/runs".to_owned(),
        format!("/runs/{blocked}"),
        format!("/runs/{blocked}/why"),
        "/tasks/team%2Fapp/triggers".to_owned(),
    ] {
        let seen = done(&server, &team, "GET", &path, Value::Null)
            .await
            .to_string();
        for hidden in [&secret, &newer] {
            assert!(!seen.contains(hidden.as_str()), "{path}: {seen}");
        }
    }
}
