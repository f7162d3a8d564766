//! Base images at a service. The service records the bases of an image and detects a new digest of
//! a base. Images built from the old digest are stale until they are rebuilt.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::Path;

use acrtask_tests::{TestEnvironment, new_run_id, project::create_folder, service::TestServer};
use serde_json::Value;

/// Builds `image` from the busybox of the tests with this note, and pushes it without the server.
fn push_base(environment: &TestEnvironment, image: &str, note: &str) {
    let dockerfile = format!("FROM {}\nRUN echo {note} > /note\n", environment.busybox());
    let files = create_folder(&[("Dockerfile", &dockerfile)]);
    let args = ["build", "-t", image, "--local", "."];
    let outcome = environment.start(files.path(), &args).wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
}

fn image_names(list: &Value) -> Vec<&str> {
    list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|image| image["name"].as_str().unwrap())
        .collect()
}

fn run_task(server: &TestServer, task: &str, files: &Path) {
    let args = [
        "task",
        "run",
        task,
        "--context",
        ".",
        "--file",
        "acr-task.yaml",
    ];
    let outcome = server.start_client(files, &args).wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
}

#[test]
fn new_base_digest_makes_dependents_stale() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &[]);
    let id = new_run_id();
    let name = |image: &str| format!("{}/bases/{id}/{image}:1", environment.registry);
    let (base, middle, app) = (name("base"), name("middle"), name("app"));
    push_base(&environment, &base, "first");
    let files = |image: &str, from: &str| {
        let dockerfile = format!("FROM {from}\nRUN cat /note > /seen\n");
        let task = format!(
            "version: v1.1.0\nsteps:\n  - {{id: image, build: -t {image} .}}\n  - {{id: out, push: [{image}]}}\n"
        );
        create_folder(&[("acr-task.yaml", &task), ("Dockerfile", &dockerfile)])
    };
    let (middle_files, app_files) = (files(&middle, &base), files(&app, &middle));
    for task in ["middle", "app"] {
        let cmd = format!("{} true", environment.busybox());
        server.run_ok(&[
            "task",
            "create",
            task,
            "--context",
            "/dev/null",
            "--cmd",
            &cmd,
        ]);
    }
    run_task(&server, "middle", middle_files.path());
    run_task(&server, "app", app_files.path());
    // The image shows its bases and the task that builds each of them.
    let shown = server.run_json(&["images", "show", &app, "-o", "json"]);
    let on = &shown["bases"][0];
    assert_eq!(on["name"], middle.as_str(), "{shown:#}");
    assert_eq!(on["role"], "runtime", "{shown:#}");
    assert_eq!(on["builtBy"], "middle", "{shown:#}");
    assert_eq!(on["effect"], "wouldRebuild", "{shown:#}");
    let blast = server.run_json(&["base", "blast-radius", &base, "-o", "json"]);
    let far: Vec<(&str, u64)> = blast["images"]
        .as_array()
        .unwrap()
        .iter()
        .map(|image| {
            let name = image["name"].as_str().unwrap();
            (name, image["distance"].as_u64().unwrap())
        })
        .collect();
    assert_eq!(far, [(middle.as_str(), 1), (app.as_str(), 2)], "{blast:#}");
    let tree = server.run_ok(&["images", "tree", &base]).stdout;
    assert!(tree.starts_with(&format!("{base}\n└─ {middle}")), "{tree}");
    // No base has changed.
    let checked = server.run_json(&["base", "check", &base, "-o", "json"]);
    assert_eq!(checked[0]["status"], "ok", "{checked:#}");
    assert_eq!(checked[0]["usedBy"], 1, "{checked:#}");
    let stale = || server.run_json(&["images", "list", "--stale", "-o", "json"]);
    assert_eq!(image_names(&stale()), Vec::<&str>::new());
    // The base changes. Images built from it are stale. Images built from those become stale only
    // after the rebuild.
    push_base(&environment, &base, "second");
    let checked = server.run_json(&["base", "check", &base, "-o", "json"]);
    assert!(checked[0]["changedAt"].is_string(), "{checked:#}");
    let found = stale();
    assert_eq!(image_names(&found), [middle.as_str()], "{found:#}");
    assert_eq!(found["items"][0]["stale"][0]["to"], checked[0]["digest"]);
    let why = server.run_ok(&["images", "why", &middle]).stdout;
    assert!(why.contains("the image is stale"), "{why}");
    // After the rebuild the image is fresh and its dependents are stale. A pushed tag is polled at
    // once.
    run_task(&server, "middle", middle_files.path());
    server.run_ok(&["base", "check"]);
    let found = stale();
    assert_eq!(image_names(&found), [app.as_str()], "{found:#}");
    run_task(&server, "app", app_files.path());
    server.run_ok(&["base", "check"]);
    assert_eq!(image_names(&stale()), Vec::<&str>::new());
    let moves = server.run_json(&["base", "show", &base, "-o", "json"]);
    assert_eq!(
        moves[0]["changes"].as_array().unwrap().len(),
        1,
        "{moves:#}"
    );
}
