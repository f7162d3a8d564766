//! Detection of a new base by notification and by polling, and the effect of registry failures on
//! it.

use std::{
    thread,
    time::{Duration, Instant},
};

use acrtask_tests::{
    TestEnvironment,
    project::{RegistryClient, create_folder},
    proxy::Proxy,
    registry::{NotificationEndpoint, TestRegistry},
    service::free_port,
};
use serde_json::Value;

use crate::fleet::{TestFleet, find_node, new_member};

const TOKEN: &str = "what-the-registry-proves-itself-with";

/// Sets up an application on a base in a separate registry, which sends notifications of pushes to
/// `url`.
async fn set_up_registry(fleet: &TestFleet, url: &str) -> Option<(TestRegistry, RegistryClient)> {
    let listener = NotificationEndpoint {
        url: url.to_owned(),
        token: TOKEN.into(),
    };
    let registry = TestRegistry::start(Some(&listener))?;
    let client = RegistryClient::new(&registry.host, None);
    fleet.push_to(&client, "os", "first").await;
    let base = fleet.image_name_at(&registry.host, "os");
    fleet.create_tasks(&[new_member("app", &format!("FROM {base}\n"))]);
    fleet.run_tasks(&["app"]);
    fleet.server.run_ok(&["base", "check", &base]);
    Some((registry, client))
}

fn create_webhook(fleet: &TestFleet) {
    let files = create_folder(&[("token", TOKEN)]);
    let args = [
        "webhook",
        "create",
        "registry",
        "--provider",
        "distribution",
        "--secret-file",
        "token",
    ];
    let outcome = fleet.server.start_client(files.path(), &args).wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
}

#[tokio::test(flavor = "multi_thread")]
async fn notification_starts_a_cascade_at_once() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    // Polling alone would take an hour.
    let fleet = TestFleet::start_with(&environment, &["--base-interval", "1h"]).await;
    create_webhook(&fleet);
    let hook = format!("{}/hooks/registry", fleet.server.url);
    let Some((registry, client)) = set_up_registry(&fleet, &hook).await else {
        return;
    };
    let new = fleet.push_to(&client, "os", "second").await;
    let pushed = Instant::now();
    let cascade = fleet.wait_for_cascade(1, |_| true);
    assert!(pushed.elapsed() < Duration::from_secs(10), "{cascade:#}");
    let cascade = fleet.wait_finished(1);
    let app = find_node(&cascade, "app").unwrap();
    assert_eq!(app["state"], "succeeded", "{cascade:#}");
    assert_eq!(
        app["pins"][fleet.image_name_at(&registry.host, "os")],
        new.as_str()
    );
    assert_eq!(fleet.base_note("app").await, "second");
    let deliveries = fleet.server.run_ok(&["webhook", "deliveries"]).stdout;
    assert!(deliveries.contains("registry"), "{deliveries}");
    fleet.assert_fresh_after(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_notification_only_delays_the_cascade() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let fleet = TestFleet::start_with(&environment, &["--base-interval", "2s"]).await;
    create_webhook(&fleet);
    // No process listens on this port.
    let lost = format!("http://127.0.0.1:{}/hooks/registry", free_port());
    let Some((_registry, client)) = set_up_registry(&fleet, &lost).await else {
        return;
    };
    fleet.push_to(&client, "os", "second").await;
    fleet.wait_finished(1);
    assert_eq!(fleet.base_note("app").await, "second");
    let deliveries = fleet
        .server
        .run_json(&["webhook", "deliveries", "-o", "json"]);
    assert_eq!(deliveries["items"].as_array().unwrap().len(), 0);
    fleet.assert_fresh_after(1);
}

/// Returns the record of a base.
fn show_base(fleet: &TestFleet, base: &str) -> Value {
    let shown = fleet.server.run_json(&["base", "show", base, "-o", "json"]);
    shown[0].clone()
}

fn wait_status(fleet: &TestFleet, base: &str, status_is: &str) -> Value {
    let begun = Instant::now();
    loop {
        let found = show_base(fleet, base);
        if found["status"] == status_is {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{found:#}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Sets up an application on a base that is reached through a proxy.
async fn set_up_proxied_base(proxy: &Proxy, fleet: &TestFleet) -> String {
    fleet.push("os", "first").await;
    let base = fleet.image_name_at(proxy.host(), "os");
    fleet.create_tasks(&[new_member("app", &format!("FROM {base}\n"))]);
    fleet.run_tasks(&["app"]);
    wait_status(fleet, &base, "ok");
    base
}

#[tokio::test(flavor = "multi_thread")]
async fn rate_limited_registry_is_not_polled_before_retry_after() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let fleet = TestFleet::start(&environment).await;
    let proxy = Proxy::start(&format!("http://{}", environment.registry));
    let base = set_up_proxied_base(&proxy, &fleet).await;
    let wait = Duration::from_secs(5);
    proxy.answer_with(Some(&format!(
        "429 Too Many Requests\r\nRetry-After: {}",
        wait.as_secs()
    )));
    wait_status(&fleet, &base, "limited");
    let limited = Instant::now();
    let accepted = proxy.accepted();
    // The new base exists, and the registry would respond again.
    fleet.push("os", "second").await;
    proxy.answer_with(None);
    while limited.elapsed() < wait - Duration::from_secs(1) {
        assert_eq!(
            proxy.accepted(),
            accepted,
            "polled before the requested time"
        );
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(show_base(&fleet, &base)["status"], "limited");
    assert_eq!(fleet.list_cascades(), Vec::<Value>::new());
    fleet.wait_finished(1);
    assert_eq!(fleet.base_note("app").await, "second");
    assert_eq!(show_base(&fleet, &base)["status"], "ok");
    fleet.assert_fresh_after(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn registry_outage_loses_no_base_change() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let fleet = TestFleet::start(&environment).await;
    let proxy = Proxy::start(&format!("http://{}", environment.registry));
    let base = set_up_proxied_base(&proxy, &fleet).await;
    proxy.cut();
    wait_status(&fleet, &base, "unreachable");
    fleet.push("os", "second").await;
    thread::sleep(Duration::from_secs(2));
    // An unreachable base triggers nothing.
    assert_eq!(fleet.list_cascades(), Vec::<Value>::new());
    proxy.restore();
    fleet.wait_finished(1);
    assert_eq!(fleet.base_note("app").await, "second");
    fleet.assert_fresh_after(1);
    // The registry fails again after the start of a cascade: the build fails and is retried.
    fleet.apply_settings(&serde_json::json!({"retries": 8}));
    fleet.push("os", "third").await;
    fleet.wait_for_cascade(2, |_| true);
    proxy.cut();
    fleet.wait_for_cascade(2, |cascade| {
        find_node(cascade, "app").is_some_and(|node| node["attempts"].as_u64() >= Some(2))
    });
    proxy.restore();
    let cascade = fleet.wait_finished(2);
    let app = find_node(&cascade, "app").unwrap();
    assert_eq!(app["state"], "succeeded", "{cascade:#}");
    assert_eq!(fleet.base_note("app").await, "third");
}
