//! Tests of webhooks that a team manages for the tasks of its prefix.

use acrtask_api::{
    run::Page,
    webhook::{Delivery, Webhook},
};
use reqwest::Method;
use serde_json::{Value, json};

use super::testing::{SECRET, TestDelivery, TestServer};

const CONTEXT: &str = "https://github.com/team/app.git";

/// Creates a token for the tasks of `pattern`.
async fn create_token(server: &TestServer, scope: &str, pattern: &str) -> String {
    let body = json!({"name": "of the test", "scopes": [scope], "tasks": pattern});
    let token = server.post("/tokens", body).await;
    token["secret"].as_str().unwrap().to_owned()
}

async fn request(
    server: &TestServer,
    token: &str,
    method: Method,
    path: &str,
    body: Value,
) -> (u16, Value) {
    let mut request = server
        .http
        .request(method, server.url(&format!("/api/v1{path}")))
        .bearer_auth(token);
    if !body.is_null() {
        request = request.json(&body);
    }
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    let text = answer.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::Null))
}

fn webhook(tasks: Option<&str>) -> Value {
    json!({"provider": "github", "secrets": [SECRET], "tasks": tasks})
}

#[tokio::test]
async fn webhook_of_a_prefix_starts_only_its_tasks() {
    let server = TestServer::new().await;
    for name in ["team/app", "teams/app", "other/app"] {
        server.add_task(name, CONTEXT, json!({})).await;
    }
    let team = create_token(&server, "write", "team/*").await;
    let put = request(
        &server,
        &team,
        Method::PUT,
        "/webhooks/forge",
        webhook(Some("team/*")),
    );
    assert_eq!(put.await.0, 200);
    let push = TestDelivery::from_fixture("github", "push");
    let receipt = server.deliver("forge", &push).await;
    assert_eq!(receipt.runs.len(), 1, "{receipt:?}");
    let run = server.run(&receipt.runs[0]).await;
    assert_eq!(run.task_name.as_deref(), Some("team/app"));
    // The team sees its delivery, other teams do not.
    let other = create_token(&server, "write", "other/*").await;
    let path = format!("/deliveries/{}", receipt.delivery);
    for (token, seen) in [(&team, 1), (&other, 0)] {
        let (_, page) = request(&server, token, Method::GET, "/deliveries", Value::Null).await;
        let page: Page<Delivery> = serde_json::from_value(page).unwrap();
        assert_eq!(page.items.len(), seen);
        let (status, _) = request(&server, token, Method::GET, &path, Value::Null).await;
        assert_eq!(status, if seen == 1 { 200 } else { 404 });
        let again = format!("{path}/redeliver");
        let (status, _) = request(&server, token, Method::POST, &again, json!({})).await;
        assert_eq!(status, if seen == 1 { 200 } else { 404 });
        let (_, refused) = request(
            &server,
            token,
            Method::GET,
            "/deliveries/refused",
            Value::Null,
        )
        .await;
        assert_eq!(refused, json!([]));
    }
    let mut forged = push.clone();
    forged.sign("github", "another secret");
    assert_eq!(server.send("forge", &forged).await.0, 401);
    let (_, refused) = request(
        &server,
        &team,
        Method::GET,
        "/deliveries/refused",
        Value::Null,
    )
    .await;
    assert_eq!(refused.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn pushed_images_start_only_tasks_of_the_prefix() {
    let server = TestServer::new().await;
    for name in ["team/app", "other/app"] {
        let body = json!({
            "name": name, "cmd": "alpine true",
            "triggers": {"registryPush": {"repositories": ["**"]}},
        });
        server
            .put(&format!("/tasks/{}", name.replace('/', "%2F")), body)
            .await;
    }
    let body = json!({"provider": "distribution", "secrets": [SECRET], "tasks": "other/*"});
    server.put("/webhooks/registry", body).await;
    let push = TestDelivery::from_fixture("registries/distribution", "push");
    let receipt = server.deliver("registry", &push).await;
    let tasks: Vec<_> = server
        .runs()
        .await
        .into_iter()
        .map(|run| run.task_name)
        .collect();
    assert_eq!(tasks, [Some("other/app".to_owned())], "{receipt:?}");
}

#[tokio::test]
async fn team_cannot_reach_webhooks_of_others() {
    let server = TestServer::new().await;
    server.put("/webhooks/global", webhook(None)).await;
    server
        .put("/webhooks/other", webhook(Some("other/*")))
        .await;
    let team = create_token(&server, "write", "team/*").await;
    for (name, tasks, expected) in [
        ("mine", None, 403),
        ("mine", Some("*"), 400),
        ("mine", Some("t*"), 403),
        ("mine", Some("other/*"), 403),
        ("global", Some("team/*"), 409),
        ("other", Some("team/*"), 409),
        ("mine", Some("team/*"), 200),
        ("mine", Some("team/web/*"), 200),
    ] {
        let path = format!("/webhooks/{name}");
        let (status, answer) = request(&server, &team, Method::PUT, &path, webhook(tasks)).await;
        assert_eq!(status, expected, "{name} {tasks:?}: {answer}");
    }
    for name in ["global", "other"] {
        let path = format!("/webhooks/{name}");
        for method in [Method::GET, Method::DELETE] {
            let (status, _) = request(&server, &team, method, &path, Value::Null).await;
            assert_eq!(status, 404);
        }
    }
    let (_, list) = request(&server, &team, Method::GET, "/webhooks", Value::Null).await;
    let list: Vec<Webhook> = serde_json::from_value(list).unwrap();
    let names: Vec<_> = list.iter().map(|webhook| webhook.name.as_str()).collect();
    assert_eq!(names, ["mine"]);
    let reader = create_token(&server, "run", "team/*").await;
    let (status, _) = request(&server, &reader, Method::GET, "/webhooks", Value::Null).await;
    assert_eq!(status, 403);
    let path = "/webhooks/mine";
    let (status, _) = request(&server, &team, Method::DELETE, path, Value::Null).await;
    assert_eq!(status, 204);
    // Deliveries to an earlier webhook of this name stay hidden from the team.
    server.put("/webhooks/mine", webhook(None)).await;
    let ping = TestDelivery::from_fixture("github", "ping");
    server.deliver("mine", &ping).await;
    let all: Page<Delivery> = server.get("/deliveries").await;
    assert_eq!(all.items.len(), 1);
    let later = all.items[0].received_at.as_millisecond();
    server
        .inner
        .app()
        .store
        .delete_webhook("mine")
        .await
        .unwrap();
    let definition = acrtask_api::webhook::WebhookDefinition {
        provider: "github".into(),
        tasks: Some("team/*".into()),
        ..Default::default()
    };
    let store = &server.inner.app().store;
    let sealed = server
        .inner
        .app()
        .vault
        .seal(&super::secrets_aad("mine"), b"[]");
    store
        .put_webhook("mine", &definition, &sealed, later + 1)
        .await
        .unwrap();
    let (_, page) = request(&server, &team, Method::GET, "/deliveries", Value::Null).await;
    assert_eq!(page["items"], json!([]));
}
