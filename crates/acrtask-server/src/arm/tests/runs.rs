//! Tests of runs: requests, idempotency, lists, changes and task runs.

use acrtask_api::run::RunResult;
use acrtask_model::{RunId, RunState};

use super::*;

async fn schedule_with(arm: &ArmServer, id: &str, body: &Value) -> TestResponse {
    let request = Request::builder()
        .method(Method::POST)
        .uri(in_registry("/scheduleRun"))
        .header(header::HOST, "arm.test:8443")
        .header(
            header::AUTHORIZATION,
            format!("Bearer {}", arm.server.admin),
        )
        .header("x-ms-client-request-id", id)
        .body(Body::from(body.to_string()))
        .unwrap();
    arm.send(request).await
}

async fn list(arm: &ArmServer, query: &str) -> Vec<String> {
    let path = format!("{}/runs?{query}", acrtask_arm::registry_id("myreg"));
    let found: Value = arm
        .call(Method::GET, &path, Value::Null)
        .await
        .json(StatusCode::OK);
    assert!(found.get("nextLink").is_none());
    let names = found["value"].as_array().unwrap().iter();
    names
        .map(|run| run["name"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn repeated_request_returns_the_same_run() {
    let arm = ArmServer::start().await;
    let name = |response: TestResponse| {
        let run: Value = response.json(StatusCode::OK);
        run["name"].as_str().unwrap().to_owned()
    };
    let first = name(schedule_with(&arm, "one", &encoded_run("a")).await);
    assert_eq!(
        name(schedule_with(&arm, "one", &encoded_run("a")).await),
        first
    );
    assert_ne!(
        name(schedule_with(&arm, "one", &encoded_run("b")).await),
        first
    );
    assert_ne!(
        name(schedule_with(&arm, "two", &encoded_run("a")).await),
        first
    );
    let long = schedule_with(&arm, &"x".repeat(200), &encoded_run("a")).await;
    message(&long, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn refusals_name_the_cause_and_the_remedy() {
    let arm = ArmServer::start().await;
    let build = |member: &str, value: Value| {
        let mut body = json!({"type": "DockerBuildRequest", "imageNames": ["a"], "dockerFilePath": "Dockerfile"});
        body[member] = value;
        body
    };
    for (body, words) in [
        (json!([]), "send an object"),
        (json!({}), "write DockerBuildRequest"),
        (build("platform", json!({"os": "Windows"})), "write `linux`"),
        (
            build("sourceLocation", json!("source/../c1")),
            "does not exist",
        ),
        (
            build("sourceLocation", json!("/etc")),
            "which the runner does not have",
        ),
        (
            build("dockerFilePath", json!("../D")),
            "outside the context",
        ),
        (
            build("agentPoolName", json!("nosuch")),
            "the agent pool `nosuch` has no runner",
        ),
        (
            json!({"type": "TaskRunRequest", "taskId": "nosuch"}),
            "the task `nosuch` does not exist",
        ),
        (
            json!({"type": "EncodedTaskRunRequest", "encodedTaskContent": ""}),
            "is empty",
        ),
    ] {
        let refused = arm.of_registry(Method::POST, "/scheduleRun", body).await;
        assert!(refused.status.is_client_error(), "{}", refused.text());
        let text = message(&refused, refused.status);
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[tokio::test]
async fn lists_filter_by_task_state_and_image() {
    let arm = ArmServer::start().await;
    arm.of_registry(Method::PUT, "/tasks/app", docker_task())
        .await
        .json::<Value>(StatusCode::OK);
    let body = json!({"type": "TaskRunRequest", "taskId": format!("{}/tasks/APP", acrtask_arm::registry_id("myreg"))});
    let of_task: Value = arm
        .of_registry(Method::POST, "/scheduleRun", body)
        .await
        .json(StatusCode::OK);
    let of_task = of_task["name"].as_str().unwrap();
    arm.server.app.clock.set(crate::api::testing::NOW + 1000);
    let quick = arm.schedule().await;
    // A run of no registry is not listed.
    arm.server.start_run().await;
    assert_eq!(list(&arm, "").await, [quick.as_str(), of_task]);
    assert_eq!(list(&arm, "$top=1").await, [quick.as_str()]);
    assert_eq!(list(&arm, "$filter=TaskName%20eq%20'app'").await, [of_task]);
    assert_eq!(list(&arm, "$filter=Status%20eq%20'Failed'").await, [""; 0]);

    let runner = arm.server.register_runner("mine").await;
    let id = RunId::new(quick.as_str()).unwrap();
    let attempt = arm.server.lease_run(&id, &runner).await;
    let result: RunResult =
        crate::api::testing::result_of_build(("registry.test:5000/app:1", 'a'), &[]);
    arm.server
        .finish_run(&id, attempt, &runner, RunState::Succeeded, "", result)
        .await;
    let digest = crate::api::testing::letter_digest('a');
    let filter = format!("$filter=contains(OutputImageManifests,%20'app@{digest}')");
    assert_eq!(list(&arm, &filter).await, [quick.as_str()]);
    let shown: Value = arm
        .of_registry(Method::GET, &format!("/runs/{quick}"), Value::Null)
        .await
        .json(StatusCode::OK);
    assert_eq!(
        shown["properties"]["outputImages"][0],
        json!({"digest": digest, "registry": "registry.test:5000", "repository": "app", "tag": "1"})
    );
    for (query, word) in [
        ("$top=x", "$top"),
        ("$filter=Name%20eq%20'a'", "not supported"),
    ] {
        let path = format!("{}/runs?{query}", acrtask_arm::registry_id("myreg"));
        let refused = arm.call(Method::GET, &path, Value::Null).await;
        let text = message(&refused, StatusCode::BAD_REQUEST);
        assert!(text.contains(word), "{text}");
    }
}

#[tokio::test]
async fn archive_flag_is_stored() {
    let arm = ArmServer::start().await;
    let run = arm.schedule().await;
    for (body, flag) in [
        (json!({"isArchiveEnabled": true}), true),
        (json!({}), true),
        (json!({"properties": {"isArchiveEnabled": false}}), false),
    ] {
        let patched: Value = arm
            .of_registry(Method::PATCH, &format!("/runs/{run}"), body)
            .await
            .json(StatusCode::OK);
        assert_eq!(patched["properties"]["isArchiveEnabled"], flag);
    }
}

#[tokio::test]
async fn task_run_repeats_only_with_another_content() {
    let arm = ArmServer::start().await;
    let put = |tag: &str| {
        let body = json!({"properties": {"forceUpdateTag": tag, "runRequest": {
            "type": "EncodedTaskRunRequest", "encodedTaskContent": encoded_run("x")["encodedTaskContent"],
            "values": [{"name": "s", "value": "hunter2", "isSecret": true}]}}});
        let arm = &arm;
        async move {
            let found: Value = arm
                .of_registry(Method::PUT, "/taskRuns/one", body)
                .await
                .json(StatusCode::OK);
            assert!(!found.to_string().contains("hunter2"), "{found}");
            let run = &found["properties"]["runResult"];
            assert_eq!(run["properties"]["status"], "Queued");
            run["name"].as_str().unwrap().to_owned()
        }
    };
    let first = put("a").await;
    assert_eq!(put("a").await, first);
    assert_ne!(put("b").await, first);
    let listed: Value = arm
        .of_registry(Method::GET, "/taskRuns", Value::Null)
        .await
        .json(StatusCode::OK);
    assert_eq!(listed["value"].as_array().unwrap().len(), 1);
    let removed = arm
        .of_registry(Method::DELETE, "/taskRuns/ONE", Value::Null)
        .await;
    assert_eq!(removed.status, StatusCode::OK);
    let missing = arm
        .of_registry(Method::GET, "/taskRuns/one", Value::Null)
        .await;
    message(&missing, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn full_disk_refuses_only_operations_that_store_data() {
    let folder = tempfile::tempdir().unwrap();
    let arm = ArmServer::with(Config {
        floor: crate::floor::DiskFloor {
            bytes: u64::MAX,
            folders: vec![folder.path().to_owned()],
        },
        ..Config::default()
    })
    .await;
    for (path, body) in [
        ("/scheduleRun", encoded_run("x")),
        ("/listBuildSourceUploadUrl", Value::Null),
    ] {
        let refused = arm.of_registry(Method::POST, path, body).await;
        let text = message(&refused, StatusCode::INSUFFICIENT_STORAGE);
        assert!(text.contains("--min-free-disk"), "{text}");
    }
    let listed = arm.of_registry(Method::GET, "/runs", Value::Null).await;
    assert_eq!(listed.status, StatusCode::OK);
}
