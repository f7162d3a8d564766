//! Tests of tasks: put, change, show and delete them, with their secrets and logins.

use acrtask_model::ScopeChain;

use super::*;

async fn put(arm: &ArmServer, name: &str, body: &Value) -> TestResponse {
    arm.of_registry(Method::PUT, &format!("/tasks/{name}"), body.clone())
        .await
}

async fn details(arm: &ArmServer, name: &str) -> Value {
    arm.of_registry(
        Method::POST,
        &format!("/tasks/{name}/listDetails"),
        Value::Null,
    )
    .await
    .json(StatusCode::OK)
}

async fn secret_rows(
    arm: &ArmServer,
    name: &str,
) -> (Vec<Vec<u8>>, Vec<(String, String, Vec<u8>)>) {
    let store = &arm.server.app.store;
    let task = store.task(name).await.unwrap();
    let mut secrets = Vec::new();
    for row in store.secrets(Some(&task.id)).await.unwrap() {
        let chain = ScopeChain::of_task(&task.id, name);
        let (_, value) = store.secret(&chain, &row.name).await.unwrap().unwrap();
        secrets.push(value);
    }
    let logins = store.credentials(Some(&task.id)).await.unwrap();
    let logins = logins
        .into_iter()
        .map(|row| (row.host, row.username, row.password));
    (secrets, logins.collect())
}

#[tokio::test]
async fn details_put_back_keep_secrets_and_logins() {
    let arm = ArmServer::start().await;
    let mut body = docker_task();
    body["properties"]["credentials"] = json!({"customRegistries": {"other.test": {
        "userName": {"type": "Opaque", "value": "u"}, "password": {"type": "Opaque", "value": "swordfish"}}}});
    let shown: Value = put(&arm, "app", &body).await.json(StatusCode::OK);
    let text = shown.to_string();
    for secret in ["hunter2", "ghp_x", "swordfish", "********"] {
        assert!(!text.contains(secret), "{secret}: {text}");
    }
    let before = secret_rows(&arm, "app").await;
    assert_eq!((before.0.len(), before.1.len()), (1, 2));
    let mut found = details(&arm, "app").await;
    assert_eq!(
        found["properties"]["step"]["contextAccessToken"],
        "********"
    );
    put(&arm, "app", &found).await.json::<Value>(StatusCode::OK);
    assert_eq!(secret_rows(&arm, "app").await, before);

    // A marker without a stored value is refused, and nothing changes.
    let other = put(&arm, "new", &found).await;
    let text = message(&other, StatusCode::BAD_REQUEST);
    assert!(text.contains("the secret `s` has no value"), "{text}");
    let missing = arm
        .of_registry(Method::GET, "/tasks/new", Value::Null)
        .await;
    message(&missing, StatusCode::NOT_FOUND);

    // Absent secrets and logins are removed.
    let properties = found["properties"].as_object_mut().unwrap();
    properties.remove("credentials");
    properties["step"]["arguments"] = json!([]);
    put(&arm, "app", &found).await.json::<Value>(StatusCode::OK);
    let (secrets, logins) = secret_rows(&arm, "app").await;
    assert!(secrets.is_empty());
    assert_eq!(logins.len(), 1, "the access token of the context stays");
}

#[tokio::test]
async fn patch_changes_only_its_members() {
    let arm = ArmServer::start().await;
    put(&arm, "app", &docker_task())
        .await
        .json::<Value>(StatusCode::OK);
    let before = secret_rows(&arm, "app").await;
    let patch = json!({"properties": {
        "platform": {"os": "linux", "architecture": "arm"}, "status": null, "step": null,
        "trigger": {"timerTriggers": [{"name": "weekly", "schedule": "0 5 * * 1"}]}}});
    let shown: Value = arm
        .of_registry(Method::PATCH, "/tasks/APP", patch)
        .await
        .json(StatusCode::OK);
    let timers = &shown["properties"]["trigger"]["timerTriggers"];
    assert_eq!(
        (&timers[0]["name"], &timers[1]["name"]),
        (&json!("daily"), &json!("weekly"))
    );
    assert_eq!(timers[1]["status"], "Enabled");
    assert_eq!(secret_rows(&arm, "app").await, before);
    let task = arm.server.app.store.task("app").await.unwrap();
    assert_eq!(task.definition.platform.as_deref(), Some("linux/arm"));
    assert_eq!(task.definition.triggers.timers.len(), 2);
}

#[tokio::test]
async fn native_changes_appear_in_the_document() {
    let arm = ArmServer::start().await;
    let mut body = docker_task();
    body["tags"] = json!({"team": "a"});
    put(&arm, "app", &body).await.json::<Value>(StatusCode::OK);
    let mut native: Value = arm.server.get("/tasks/app").await.json(StatusCode::OK);
    for member in ["id", "generation", "createdAt", "updatedAt"] {
        native.as_object_mut().unwrap().remove(member);
    }
    native["enabled"] = json!(false);
    let replaced = arm.server.put("/tasks/app", native).await;
    assert_eq!(replaced.status, StatusCode::OK, "{}", replaced.text());
    let shown: Value = arm
        .of_registry(Method::GET, "/tasks/app", Value::Null)
        .await
        .json(StatusCode::OK);
    assert_eq!(shown["properties"]["status"], "Disabled");
    assert_eq!(shown["tags"], json!({"team": "a"}));
}

#[tokio::test]
async fn native_tasks_of_the_registry_are_listed() {
    let arm = ArmServer::start().await;
    for (name, registry) in [
        ("native", "registry.test:5000"),
        ("team/native", "registry.test:5000"),
        ("elsewhere", "third.test"),
    ] {
        let task = json!({"name": name, "cmd": "alpine true", "registry": registry});
        let created = arm.server.post("/tasks", task).await;
        assert_eq!(created.status, StatusCode::CREATED, "{}", created.text());
    }
    let listed: Value = arm
        .of_registry(Method::GET, "/tasks", Value::Null)
        .await
        .json(StatusCode::OK);
    let names: Vec<&Value> = listed["value"]
        .as_array()
        .unwrap()
        .iter()
        .map(|task| &task["name"])
        .collect();
    assert_eq!(names, ["native"]);
    let refused = put(&arm, "elsewhere", &docker_task()).await;
    message(&refused, StatusCode::CONFLICT);
}

#[tokio::test]
async fn deleted_task_leaves_no_document() {
    let arm = ArmServer::start().await;
    put(&arm, "app", &docker_task())
        .await
        .json::<Value>(StatusCode::OK);
    let removed = arm
        .of_registry(Method::DELETE, "/tasks/app", Value::Null)
        .await;
    assert_eq!(
        (removed.status, removed.text()),
        (StatusCode::OK, String::new())
    );
    let again = arm
        .of_registry(Method::DELETE, "/tasks/app", Value::Null)
        .await;
    message(&again, StatusCode::NOT_FOUND);
    let stored = arm
        .server
        .app
        .store
        .arm_document(acrtask_store::ArmKind::Task, "myreg", "app")
        .await
        .unwrap();
    assert_eq!(stored, None);
}

#[tokio::test]
async fn task_of_a_file_is_not_changed() {
    let arm = ArmServer::start().await;
    let definition = serde_json::from_value(
        json!({"name": "app", "cmd": "alpine true", "registry": "registry.test:5000"}),
    )
    .unwrap();
    let store = &arm.server.app.store;
    store
        .create_task("t1", &definition, Some("tasks/app.yaml"), 0)
        .await
        .unwrap();
    for (method, body) in [
        (Method::PUT, docker_task()),
        (Method::PATCH, json!({"properties": {"status": "Disabled"}})),
        (Method::DELETE, Value::Null),
    ] {
        let refused = arm.of_registry(method, "/tasks/app", body).await;
        let text = message(&refused, StatusCode::CONFLICT);
        assert!(text.contains("tasks/app.yaml"), "{text}");
    }
}
