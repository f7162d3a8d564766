//! Newer tags of base images at a service: one that is pushed is proposed with a diff that git applies, and one that a
//! rule gives to a build argument is built with, once.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::{Duration, Instant};

use acrtask_tests::{
    World,
    base_images::BaseImages,
    git_server::{HttpGit, Repositories, git},
    new_run_id,
    project::{RegistryClient, folder},
    service::Server,
};
use serde_json::{Value, json};

/// The only rule of a task, and how it stands.
fn rule(server: &Server, task: &str) -> Value {
    let found = server.json(&["base", "proposals", task, "--all", "-o", "json"]);
    assert_eq!(found["items"].as_array().unwrap().len(), 1, "{found:#}");
    found["items"][0].clone()
}

fn apply(server: &Server, definition: &Value) {
    let text = definition.to_string();
    let files = folder(&[("task.yaml", &text)]);
    let outcome = server
        .client(files.path(), &["task", "apply", "-f", "task.yaml"])
        .wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_tag_is_proposed_as_a_diff() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &[]);
    let repository = format!("tags/{}/base", new_run_id());
    let (image, app) = (
        format!("{}/{repository}", world.registry),
        format!("{}/tags/{}/app:1", world.registry, new_run_id()),
    );
    let images = BaseImages::of(&world).await;
    let client = RegistryClient::new(&world.registry, None);
    images.put(&client, &repository, "1.2", "old").await;
    let dockerfile = format!("FROM {image}:1.2\nRUN true\n");
    let files = folder(&[("Dockerfile", &dockerfile)]);
    apply(
        &server,
        &json!({
            "name": "app",
            "text": format!("steps:\n  - build: -t {app} .\n  - push: [{app}]\n"),
            "triggers": {"baseImage": {"tags": [{"image": image, "semver": "^1"}]}},
        }),
    );
    let run = ["task", "run", "app", "--context", "."];
    let outcome = server.client(files.path(), &run).wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    server.ok(&["base", "check"]);
    assert_eq!(rule(&server, "app")["state"], "current");
    let none = server.ok(&["base", "proposals", "--diff", "app"]);
    assert!(
        none.stderr.contains("no newer tag is proposed"),
        "{}",
        none.all()
    );
    // Another kind, an older one, and one beyond the range count for nothing.
    for (tag, note) in [
        ("1.10", "new"),
        ("1.1", "older"),
        ("1.11-debug", "x"),
        ("2.0", "y"),
    ] {
        images.put(&client, &repository, tag, note).await;
    }
    server.ok(&["base", "check"]);
    let found = rule(&server, "app");
    assert_eq!(found["state"], "proposed", "{found:#}");
    assert_eq!(
        (&found["used"], &found["newest"]),
        (&json!("1.2"), &json!("1.10"))
    );
    let why = server.ok(&["images", "why", &app]).stdout;
    assert!(why.contains("Newer tags") && why.contains("1.10"), "{why}");
    let shown = server.ok(&["base", "show", &format!("{image}:1.2")]).stdout;
    assert!(shown.contains("Newer tags"), "{shown}");
    // Git takes the diff, and what it leaves builds on the newer tag.
    let outcome = server
        .client(files.path(), &["base", "proposals", "--diff", "app"])
        .wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    git(files.path(), &["init", "-q"]);
    std::fs::write(files.path().join("newer.diff"), &outcome.stdout).unwrap();
    git(files.path(), &["apply", "newer.diff"]);
    let text = std::fs::read_to_string(files.path().join("Dockerfile")).unwrap();
    assert_eq!(text, format!("FROM {image}:1.10\nRUN true\n"));
    let outcome = server.client(files.path(), &run).wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    server.ok(&["base", "check"]);
    let taken = rule(&server, "app");
    assert_eq!(
        (&taken["state"], &taken["used"]),
        (&json!("current"), &json!("1.10"))
    );
    // A folder without it says what to give.
    images.put(&client, &repository, "1.12", "newest").await;
    server.ok(&["base", "check"]);
    let elsewhere = folder(&[("README", "")]);
    let outcome = server
        .client(elsewhere.path(), &["base", "proposals", "--diff", "app"])
        .wait();
    assert_eq!(outcome.code, Some(2), "{}", outcome.all());
    assert!(
        outcome.stderr.contains("no Dockerfile in"),
        "{}",
        outcome.all()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_tag_is_built_with_and_stays() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &["--allow-private-addresses"]);
    let repository = format!("tags/{}/base", new_run_id());
    let (image, app) = (
        format!("{}/{repository}", world.registry),
        format!("{}/tags/{}/app:1", world.registry, new_run_id()),
    );
    let images = BaseImages::of(&world).await;
    let client = RegistryClient::new(&world.registry, None);
    images.put(&client, &repository, "v1.0.0", "old").await;
    let dockerfile =
        format!("ARG BASE_TAG=v1.0.0\nFROM {image}:$BASE_TAG\nRUN cat /etc/passwd > /seen\n");
    let files = folder(&[]);
    let repositories = Repositories::default();
    repositories.create("app");
    repositories.commit("app", &[("Dockerfile", &dockerfile)]);
    let git_server = HttpGit::start(&repositories.root(), None);
    let url = format!("{}#main", git_server.url("app"));
    apply(
        &server,
        &json!({
            "name": "app", "context": url, "build": {"images": [app]},
            "triggers": {"baseImage": {"tags": [{"image": image, "semver": "^1", "buildArg": "BASE_TAG"}]}},
        }),
    );
    let outcome = server.client(files.path(), &["task", "run", "app"]).wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    server.ok(&["base", "check"]);
    assert_eq!(rule(&server, "app")["state"], "current");
    images.put(&client, &repository, "v1.1.0", "new").await;
    server.ok(&["base", "check"]);
    let begun = Instant::now();
    let taken = loop {
        let found = rule(&server, "app");
        if found["state"] == "current" {
            break found;
        }
        assert!(
            ["building", "waiting"].contains(&found["state"].as_str().unwrap()),
            "{found:#}"
        );
        assert!(begun.elapsed() < Duration::from_secs(60), "{found:#}");
        std::thread::sleep(Duration::from_millis(200));
    };
    assert_eq!(taken["used"], "v1.1.0", "{taken:#}");
    let shown = server.json(&["images", "show", &app, "-o", "json"]);
    assert_eq!(
        shown["bases"][0]["name"],
        format!("{image}:v1.1.0"),
        "{shown:#}"
    );
    let runs = server.json(&["runs", "list", "-o", "json"]);
    let tried: Vec<&Value> = runs["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|run| run["trigger"] == "base-tag")
        .collect();
    assert_eq!(tried.len(), 1, "{runs:#}");
    // Whoever starts the next run gets it too.
    let outcome = server.client(files.path(), &["task", "run", "app"]).wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    let shown = server.json(&["images", "show", &app, "-o", "json"]);
    assert_eq!(
        shown["bases"][0]["name"],
        format!("{image}:v1.1.0"),
        "{shown:#}"
    );
    let task = server.json(&["task", "show", "app", "-o", "json"]);
    let tags = task
        .get("baseTags")
        .or_else(|| task["task"].get("baseTags"));
    assert_eq!(tags, Some(&json!({image: "v1.1.0"})), "{task:#}");
}
