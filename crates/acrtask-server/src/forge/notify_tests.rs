//! Tests of `notify.rs`.

use std::time::Duration;

use wiremock::{
    Mock, MockServer, ResponseTemplate,
    matchers::{method, path},
};

use super::*;
use crate::{
    Config,
    forge::tests::{begin, end, until, world},
    webhooks::testing::World,
};

async fn with_task(world: &World, url: &str, notify: Value) {
    world.put("/secrets/hook", json!({"value": url})).await;
    world
        .put("/secrets/key", json!({"value": "whsec_c2VjcmV0"}))
        .await;
    let body = json!({"name": "app", "cmd": "alpine true", "notify": notify});
    world.put("/tasks/app", body).await;
}

async fn run(world: &World, state: RunState) -> acrtask_model::RunId {
    let run: Run = serde_json::from_value(world.post("/tasks/app/runs", json!({})).await).unwrap();
    begin(world, &run.id).await;
    end(world, &run.id, state).await;
    run.id
}

#[tokio::test]
async fn results_are_told_signed_and_again_where_nobody_listened() {
    let world = world().await;
    let listener = MockServer::start().await;
    Mock::given(method("POST"))
        .respond_with(ResponseTemplate::new(503))
        .up_to_n_times(1)
        .mount(&listener)
        .await;
    Mock::given(method("POST"))
        .and(path("/a/secret/path"))
        .respond_with(ResponseTemplate::new(204))
        .mount(&listener)
        .await;
    let url = format!("{}/a/secret/path", listener.uri());
    let notify = json!([
        {"url": "hook", "signWith": "key"},
        {"url": "hook", "template": "slack", "on": ["succeeded"]},
    ]);
    with_task(&world, &url, notify).await;
    let failed = run(&world, RunState::Failed).await;
    let requests = until("it is told", async || {
        let requests = listener.received_requests().await.unwrap();
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
    // As whoever takes the deliveries of others checks them.
    let text = |name: &str| second.headers[name].to_str().unwrap().to_owned();
    let time: i64 = text("webhook-timestamp").parse().unwrap();
    let id = text("webhook-id");
    assert_eq!(
        first.headers["webhook-id"],
        id.as_str(),
        "who listens can tell that it is the same"
    );
    let signed = format!("{id}.{time}.{}", String::from_utf8_lossy(&second.body));
    let mut mac = Hmac::<Sha256>::new_from_slice(b"secret").unwrap();
    mac.update(signed.as_bytes());
    let expected = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
    assert_eq!(text("webhook-signature"), expected);
    // Who only wants successes hears of this one.
    let good = run(&world, RunState::Succeeded).await;
    let slack = until("both are told", async || {
        let requests = listener.received_requests().await.unwrap();
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
    assert_eq!(listener.received_requests().await.unwrap().len(), 4);
}

#[tokio::test]
async fn a_private_address_is_not_asked() {
    let world = World::with(Config {
        poll: Duration::from_millis(30),
        ..Config::default()
    })
    .await;
    let listener = MockServer::start().await;
    for url in [
        listener.uri(),
        listener.uri().replace("http://", "https://"),
        "https://169.254.169.254/latest".into(),
        "https://localhost:1/x".into(),
        "nothing at all".into(),
    ] {
        with_task(&world, &url, json!([{"url": "hook"}])).await;
        let run = run(&world, RunState::Failed).await;
        let store = &world.server.app().store;
        let refused = until("it is refused", async || {
            let untold = store.untold_notices(vec![run.to_string()]).await.unwrap();
            untold.first().cloned()
        })
        .await;
        assert!(!refused.last_error.contains(&url), "{}", refused.last_error);
    }
    assert!(listener.received_requests().await.unwrap().is_empty());
}

#[test]
fn words_of_others_are_no_markup() {
    let run: Run = serde_json::from_value(json!({
        "id": "r1", "task": "a<b", "state": "failed", "reason": "<!channel> & more", "trigger": "commit",
        "attempt": 1, "queue": {}, "spec": {"facts": {"commit": "0123456789abcdef", "branch": "x<y"}},
        "createdAt": "2026-01-01T00:00:00Z", "logLength": 0,
    }))
    .unwrap();
    assert_eq!(
        slack(&run, None)["text"],
        "*a&lt;b* failed: r1 (x&lt;y at 0123456789ab)\n&lt;!channel&gt; &amp; more"
    );
}
