//! How a new base is noticed: told by the registry, or by looking; and what a registry in trouble does to that.

use std::{
    thread,
    time::{Duration, Instant},
};

use acrtask_tests::{
    World,
    project::{RegistryClient, folder},
    proxy::Proxy,
    registry::{Listener, OwnRegistry},
    service::free_port,
};
use serde_json::Value;

use crate::fleet::{Fleet, member, node};

const TOKEN: &str = "what-the-registry-proves-itself-with";

/// A fleet of one application on a base in a registry of the test's own, which tells `url` of pushes.
async fn with_own_registry(fleet: &Fleet, url: &str) -> Option<(OwnRegistry, RegistryClient)> {
    let listener = Listener {
        url: url.to_owned(),
        token: TOKEN.into(),
    };
    let registry = OwnRegistry::start(Some(&listener))?;
    let client = RegistryClient::new(&registry.host, None);
    fleet.push_to(&client, "os", "first").await;
    let base = fleet.image_at(&registry.host, "os");
    fleet.tasks(&[member("app", &format!("FROM {base}\n"))]);
    fleet.build(&["app"]);
    fleet.server.ok(&["base", "check", &base]);
    Some((registry, client))
}

fn make_webhook(fleet: &Fleet) {
    let files = folder(&[("token", TOKEN)]);
    let args = [
        "webhook",
        "create",
        "registry",
        "--provider",
        "distribution",
        "--secret-file",
        "token",
    ];
    let outcome = fleet.server.client(files.path(), &args).wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notification_acts_at_once() {
    let Some(world) = World::find() else { return };
    // By looking alone it would take an hour.
    let fleet = Fleet::with(&world, &["--base-interval", "1h"]).await;
    make_webhook(&fleet);
    let hook = format!("{}/hooks/registry", fleet.server.url);
    let Some((registry, client)) = with_own_registry(&fleet, &hook).await else {
        return;
    };
    let new = fleet.push_to(&client, "os", "second").await;
    let pushed = Instant::now();
    let cascade = fleet.wait(1, |_| true);
    assert!(pushed.elapsed() < Duration::from_secs(3), "{cascade:#}");
    let cascade = fleet.wait_over(1);
    let app = node(&cascade, "app").unwrap();
    assert_eq!(app["state"], "succeeded", "{cascade:#}");
    assert_eq!(
        app["pins"][fleet.image_at(&registry.host, "os")],
        new.as_str()
    );
    assert_eq!(fleet.note("app").await, "second");
    let deliveries = fleet.server.ok(&["webhook", "deliveries"]).stdout;
    assert!(deliveries.contains("registry"), "{deliveries}");
    fleet.rests_after(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notification_that_is_lost_costs_time_alone() {
    let Some(world) = World::find() else { return };
    let fleet = Fleet::with(&world, &["--base-interval", "2s"]).await;
    make_webhook(&fleet);
    // Nobody listens there.
    let lost = format!("http://127.0.0.1:{}/hooks/registry", free_port());
    let Some((_registry, client)) = with_own_registry(&fleet, &lost).await else {
        return;
    };
    fleet.push_to(&client, "os", "second").await;
    fleet.wait_over(1);
    assert_eq!(fleet.note("app").await, "second");
    let deliveries = fleet.server.json(&["webhook", "deliveries", "-o", "json"]);
    assert_eq!(deliveries["items"].as_array().unwrap().len(), 0);
    fleet.rests_after(1);
}

/// How a base stands.
fn status(fleet: &Fleet, base: &str) -> Value {
    let shown = fleet.server.json(&["base", "show", base, "-o", "json"]);
    shown[0].clone()
}

fn wait_status(fleet: &Fleet, base: &str, status_is: &str) -> Value {
    let begun = Instant::now();
    loop {
        let found = status(fleet, base);
        if found["status"] == status_is {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{found:#}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// A fleet of one application on a base that is asked for through a proxy.
async fn behind(proxy: &Proxy, fleet: &Fleet) -> String {
    fleet.push("os", "first").await;
    let base = fleet.image_at(proxy.host(), "os");
    fleet.tasks(&[member("app", &format!("FROM {base}\n"))]);
    fleet.build(&["app"]);
    wait_status(fleet, &base, "ok");
    base
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_asks_to_wait_is_left_alone_until_then() {
    let Some(world) = World::find() else { return };
    let fleet = Fleet::start(&world).await;
    let proxy = Proxy::before(&format!("http://{}", world.registry));
    let base = behind(&proxy, &fleet).await;
    let wait = Duration::from_secs(5);
    proxy.answer_with(Some(&format!(
        "429 Too Many Requests\r\nRetry-After: {}",
        wait.as_secs()
    )));
    wait_status(&fleet, &base, "limited");
    let limited = Instant::now();
    let came = proxy.came();
    // There is a new base, and the registry would tell.
    fleet.push("os", "second").await;
    proxy.answer_with(None);
    while limited.elapsed() < wait - Duration::from_secs(1) {
        assert_eq!(proxy.came(), came, "it was asked to wait");
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(status(&fleet, &base)["status"], "limited");
    assert_eq!(fleet.cascades(), Vec::<Value>::new());
    fleet.wait_over(1);
    assert_eq!(fleet.note("app").await, "second");
    assert_eq!(status(&fleet, &base)["status"], "ok");
    fleet.rests_after(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_down_for_a_while_loses_nothing() {
    let Some(world) = World::find() else { return };
    let fleet = Fleet::start(&world).await;
    let proxy = Proxy::before(&format!("http://{}", world.registry));
    let base = behind(&proxy, &fleet).await;
    proxy.cut();
    wait_status(&fleet, &base, "unreachable");
    fleet.push("os", "second").await;
    thread::sleep(Duration::from_secs(2));
    // A base of which nothing is known is no reason for anything.
    assert_eq!(fleet.cascades(), Vec::<Value>::new());
    proxy.mend();
    fleet.wait_over(1);
    assert_eq!(fleet.note("app").await, "second");
    fleet.rests_after(1);
    // And it goes away when the cascade has begun: the build fails, and is tried again.
    fleet.settings(&serde_json::json!({"retries": 8}));
    fleet.push("os", "third").await;
    fleet.wait(2, |_| true);
    proxy.cut();
    fleet.wait(2, |cascade| {
        node(cascade, "app").is_some_and(|node| node["attempts"].as_u64() >= Some(2))
    });
    proxy.mend();
    let cascade = fleet.wait_over(2);
    let app = node(&cascade, "app").unwrap();
    assert_eq!(app["state"], "succeeded", "{cascade:#}");
    assert_eq!(fleet.note("app").await, "third");
}
