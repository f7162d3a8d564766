//! Tests of `notify.rs`.

use std::time::Duration;

use wiremock::{
    Mock, MockServer, ResponseTemplate,
    matchers::{method, path},
};

use super::*;
use crate::{
    Config,
    notifications::tests::{finish_run, start_run, start_server, until},
    webhooks::testing::TestServer,
};

async fn with_task(server: &TestServer, url: &str, notify: Value) {
    server.put("/secrets/hook", json!({"value": url})).await;
    server
        .put("/secrets/key", json!({"value": "whsec_c2VjcmV0"}))
        .await;
    let body = json!({"name": "app", "cmd": "alpine true", "notify": notify});
    server.put("/tasks/app", body).await;
}

async fn run_task(server: &TestServer, state: RunState) -> acrtask_model::RunId {
    let run: Run = serde_json::from_value(server.post("/tasks/app/runs", json!({})).await).unwrap();
    start_run(server, &run.id).await;
    finish_run(server, &run.id, state).await;
    run.id
}

#[tokio::test]
async fn notifications_are_signed_and_retried() {
    let server = start_server().await;
    let recipient = MockServer::start().await;
    Mock::given(method("POST"))
        .respond_with(ResponseTemplate::new(503))
        .up_to_n_times(1)
        .mount(&recipient)
        .await;
    Mock::given(method("POST"))
        .and(path("/a/secret/path"))
        .respond_with(ResponseTemplate::new(204))
        .mount(&recipient)
        .await;
    let url = format!("{}/a/secret/path", recipient.uri());
    let notify = json!([
        {"url": "hook", "signWith": "key"},
        {"url": "hook", "template": "slack", "on": ["succeeded"]},
    ]);
    with_task(&server, &url, notify).await;
    let failed = run_task(&server, RunState::Failed).await;
    let requests = until("two requests arrived", async || {
        let requests = recipient.received_requests().await.unwrap();
        (requests.len() == 2).then_some(requests)
    })
    .await;
    let [first, second] = &requests[..] else {
        panic!();
    };
    assert_eq!(first.body, second.body);
    let body: Value = serde_json::from_slice(&second.body).unwrap();
    assert_eq!(
        (&body["state"], &body["task"], &body["run"], &body["reason"]),
        (
            &json!("failed"),
            &json!("app"),
            &json!(failed),
            &json!("the step `test` failed")
        )
    );
    // A recipient verifies the signature like this.
    let text = |name: &str| second.headers[name].to_str().unwrap().to_owned();
    let time: i64 = text("webhook-timestamp").parse().unwrap();
    let id = text("webhook-id");
    assert_eq!(
        first.headers["webhook-id"],
        id.as_str(),
        "a repetition has the same id"
    );
    let signed = format!("{id}.{time}.{}", String::from_utf8_lossy(&second.body));
    let mut mac = Hmac::<Sha256>::new_from_slice(b"secret").unwrap();
    mac.update(signed.as_bytes());
    let expected = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
    assert_eq!(text("webhook-signature"), expected);
    // A recipient of successes gets only this result.
    let good = run_task(&server, RunState::Succeeded).await;
    let slack = until("both recipients got the result", async || {
        let requests = recipient.received_requests().await.unwrap();
        let bodies = requests[2..].iter();
        let bodies: Vec<Value> = bodies
            .map(|request| serde_json::from_slice(&request.body).unwrap())
            .collect();
        (bodies.len() == 2).then(|| {
            let text = bodies.iter().find_map(|body| body["text"].as_str());
            text.map(str::to_owned)
        })
    })
    .await;
    assert_eq!(slack.unwrap(), format!("*app* succeeded: {good}"));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(recipient.received_requests().await.unwrap().len(), 4);
}

#[tokio::test]
async fn private_addresses_are_refused() {
    let server = TestServer::with_config(Config {
        poll: Duration::from_millis(30),
        ..Config::default()
    })
    .await;
    let recipient = MockServer::start().await;
    for url in [
        recipient.uri(),
        recipient.uri().replace("http://", "https://"),
        "https://169.254.169.254/latest".into(),
        "https://localhost:1/x".into(),
        "nothing at all".into(),
    ] {
        with_task(&server, &url, json!([{"url": "hook"}])).await;
        let run = run_task(&server, RunState::Failed).await;
        let store = &server.inner.app().store;
        let refused = until("the address was refused", async || {
            let failed = store
                .failed_notifications(vec![run.to_string()])
                .await
                .unwrap();
            failed.first().cloned()
        })
        .await;
        assert!(!refused.last_error.contains(&url), "{}", refused.last_error);
    }
    assert!(recipient.received_requests().await.unwrap().is_empty());
}

#[test]
fn slack_text_escapes_markup() {
    let run: Run = serde_json::from_value(json!({
        "id": "r1", "task": "a<b", "state": "failed", "reason": "<!channel> & more", "trigger": "commit",
        "attempt": 1, "queue": {}, "spec": {"variables": {"commit": "0123456789abcdef", "branch": "x<y"}},
        "createdAt": "2026-01-01T00:00:00Z", "logLength": 0,
    }))
    .unwrap();
    assert_eq!(
        slack_body(&run, None)["text"],
        "*a&lt;b* failed: r1 (x&lt;y at 0123456789ab)\n&lt;!channel&gt; &amp; more"
    );
}
