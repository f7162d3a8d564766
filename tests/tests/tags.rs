//! Newer tags of base images at a service. A newer tag is proposed as a diff that git can apply. If
//! a rule maps the tag to a build argument, the service rebuilds with it once.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::{Duration, Instant};

use acrtask_tests::{
    TestEnvironment,
    base_images::BaseImages,
    git_server::{HttpGit, Repositories, git},
    new_run_id,
    project::{RegistryClient, create_folder},
    service::TestServer,
};
use serde_json::{Value, json};

/// Returns the state of the only tag rule of a task.
fn show_rule(server: &TestServer, task: &str) -> Value {
    let found = server.run_json(&["base", "proposals", task, "--all", "-o", "json"]);
    assert_eq!(found["items"].as_array().unwrap().len(), 1, "{found:#}");
    found["items"][0].clone()
}

fn apply_task(server: &TestServer, definition: &Value) {
    let text = definition.to_string();
    let files = create_folder(&[("task.yaml", &text)]);
    let outcome = server
        .start_client(files.path(), &["task", "apply", "-f", "task.yaml"])
        .wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
}

#[tokio::test(flavor = "multi_thread")]
async fn newer_tag_is_proposed_as_a_diff() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &[]);
    let repository = format!("tags/{}/base", new_run_id());
    let (image, app) = (
        format!("{}/{repository}", environment.registry),
        format!("{}/tags/{}/app:1", environment.registry, new_run_id()),
    );
    let images = BaseImages::load(&environment).await;
    let client = RegistryClient::new(&environment.registry, None);
    images.push(&client, &repository, "1.2", "old").await;
    let dockerfile = format!("FROM {image}:1.2\nRUN true\n");
    let files = create_folder(&[("Dockerfile", &dockerfile)]);
    apply_task(
        &server,
        &json!({
            "name": "app",
            "text": format!("steps:\n  - build: -t {app} .\n  - push: [{app}]\n"),
            "triggers": {"baseImage": {"tags": [{"image": image, "semver": "^1"}]}},
        }),
    );
    let run = ["task", "run", "app", "--context", "."];
    let outcome = server.start_client(files.path(), &run).wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    server.run_ok(&["base", "check"]);
    assert_eq!(show_rule(&server, "app")["state"], "current");
    let none = server.run_ok(&["base", "proposals", "--diff", "app"]);
    assert!(
        none.stderr.contains("no newer tags for"),
        "{}",
        none.transcript()
    );
    // Tags of another kind, older tags and tags beyond the range are ignored.
    for (tag, note) in [
        ("1.10", "new"),
        ("1.1", "older"),
        ("1.11-debug", "x"),
        ("2.0", "y"),
    ] {
        images.push(&client, &repository, tag, note).await;
    }
    server.run_ok(&["base", "check"]);
    let found = show_rule(&server, "app");
    assert_eq!(found["state"], "proposed", "{found:#}");
    assert_eq!(
        (&found["used"], &found["newest"]),
        (&json!("1.2"), &json!("1.10"))
    );
    let why = server.run_ok(&["images", "why", &app]).stdout;
    assert!(why.contains("Newer tags") && why.contains("1.10"), "{why}");
    let shown = server
        .run_ok(&["base", "show", &format!("{image}:1.2")])
        .stdout;
    assert!(shown.contains("Newer tags"), "{shown}");
    // Git applies the diff, and the result builds on the newer tag.
    let outcome = server
        .start_client(files.path(), &["base", "proposals", "--diff", "app"])
        .wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    git(files.path(), &["init", "-q"]);
    std::fs::write(files.path().join("newer.diff"), &outcome.stdout).unwrap();
    git(files.path(), &["apply", "newer.diff"]);
    let text = std::fs::read_to_string(files.path().join("Dockerfile")).unwrap();
    assert_eq!(text, format!("FROM {image}:1.10\nRUN true\n"));
    let outcome = server.start_client(files.path(), &run).wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    server.run_ok(&["base", "check"]);
    let taken = show_rule(&server, "app");
    assert_eq!(
        (&taken["state"], &taken["used"]),
        (&json!("current"), &json!("1.10"))
    );
    // For a folder without a Dockerfile, the error names the missing argument.
    images.push(&client, &repository, "1.12", "newest").await;
    server.run_ok(&["base", "check"]);
    let elsewhere = create_folder(&[("README", "")]);
    let outcome = server
        .start_client(elsewhere.path(), &["base", "proposals", "--diff", "app"])
        .wait();
    assert_eq!(outcome.code, Some(2), "{}", outcome.transcript());
    assert!(
        outcome.stderr.contains("no Dockerfile in"),
        "{}",
        outcome.transcript()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn newer_tag_is_used_for_this_and_later_builds() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &["--allow-private-addresses"]);
    let repository = format!("tags/{}/base", new_run_id());
    let (image, app) = (
        format!("{}/{repository}", environment.registry),
        format!("{}/tags/{}/app:1", environment.registry, new_run_id()),
    );
    let images = BaseImages::load(&environment).await;
    let client = RegistryClient::new(&environment.registry, None);
    images.push(&client, &repository, "v1.0.0", "old").await;
    let dockerfile =
        format!("ARG BASE_TAG=v1.0.0\nFROM {image}:$BASE_TAG\nRUN cat /etc/passwd > /seen\n");
    let files = create_folder(&[]);
    let repositories = Repositories::default();
    repositories.create("app");
    repositories.commit("app", &[("Dockerfile", &dockerfile)]);
    let git_server = HttpGit::start(&repositories.root(), None);
    let url = format!("{}#main", git_server.url("app"));
    apply_task(
        &server,
        &json!({
            "name": "app", "context": url, "build": {"images": [app]},
            "triggers": {"baseImage": {"tags": [{"image": image, "semver": "^1", "buildArg": "BASE_TAG"}]}},
        }),
    );
    let outcome = server
        .start_client(files.path(), &["task", "run", "app"])
        .wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    server.run_ok(&["base", "check"]);
    assert_eq!(show_rule(&server, "app")["state"], "current");
    images.push(&client, &repository, "v1.1.0", "new").await;
    server.run_ok(&["base", "check"]);
    let begun = Instant::now();
    let taken = loop {
        let found = show_rule(&server, "app");
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
    let shown = server.run_json(&["images", "show", &app, "-o", "json"]);
    assert_eq!(
        shown["bases"][0]["name"],
        format!("{image}:v1.1.0"),
        "{shown:#}"
    );
    let runs = server.run_json(&["runs", "list", "-o", "json"]);
    let tried: Vec<&Value> = runs["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|run| run["trigger"] == "baseTag")
        .collect();
    assert_eq!(tried.len(), 1, "{runs:#}");
    // Every later run uses the new tag too.
    let outcome = server
        .start_client(files.path(), &["task", "run", "app"])
        .wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    let shown = server.run_json(&["images", "show", &app, "-o", "json"]);
    assert_eq!(
        shown["bases"][0]["name"],
        format!("{image}:v1.1.0"),
        "{shown:#}"
    );
    let task = server.run_json(&["task", "show", "app", "-o", "json"]);
    let tags = task
        .get("baseTags")
        .or_else(|| task["task"].get("baseTags"));
    assert_eq!(tags, Some(&json!({image: "v1.1.0"})), "{task:#}");
}
