//! Base images at a service: what an image was built from is known, a new digest of its base is seen, and what stands on
//! it is stale until it is built again.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::Path;

use acrtask_tests::{World, new_run_id, project::folder, service::Server};
use serde_json::Value;

/// Builds and pushes `image` here, from the busybox of the tests with this note in it.
fn push_base(world: &World, image: &str, note: &str) {
    let dockerfile = format!("FROM {}\nRUN echo {note} > /note\n", world.busybox());
    let files = folder(&[("Dockerfile", &dockerfile)]);
    let args = ["build", "-t", image, "--local", "."];
    let outcome = world.start(files.path(), &args).wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
}

fn names(list: &Value) -> Vec<&str> {
    list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|image| image["name"].as_str().unwrap())
        .collect()
}

fn build(server: &Server, task: &str, files: &Path) {
    let args = [
        "task",
        "run",
        task,
        "--context",
        ".",
        "--file",
        "acr-task.yaml",
    ];
    let outcome = server.client(files, &args).wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
}

#[test]
fn a_new_base_makes_what_stands_on_it_stale() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &[]);
    let id = new_run_id();
    let name = |what: &str| format!("{}/bases/{id}/{what}:1", world.registry);
    let (base, middle, app) = (name("base"), name("middle"), name("app"));
    push_base(&world, &base, "first");
    let files = |image: &str, from: &str| {
        let dockerfile = format!("FROM {from}\nRUN cat /note > /seen\n");
        let task = format!(
            "version: v1.1.0\nsteps:\n  - {{id: image, build: -t {image} .}}\n  - {{id: out, push: [{image}]}}\n"
        );
        folder(&[("acr-task.yaml", &task), ("Dockerfile", &dockerfile)])
    };
    let (middle_files, app_files) = (files(&middle, &base), files(&app, &middle));
    for task in ["middle", "app"] {
        let cmd = format!("{} true", world.busybox());
        server.ok(&[
            "task",
            "create",
            task,
            "--context",
            "/dev/null",
            "--cmd",
            &cmd,
        ]);
    }
    build(&server, "middle", middle_files.path());
    build(&server, "app", app_files.path());
    // What they were built from is known, and by whom.
    let shown = server.json(&["images", "show", &app, "-o", "json"]);
    let on = &shown["bases"][0];
    assert_eq!(on["name"], middle.as_str(), "{shown:#}");
    assert_eq!(on["role"], "runtime", "{shown:#}");
    assert_eq!(on["builtBy"], "middle", "{shown:#}");
    assert_eq!(on["effect"], "wouldRebuild", "{shown:#}");
    let blast = server.json(&["base", "blast-radius", &base, "-o", "json"]);
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
    let tree = server.ok(&["images", "tree", &base]).stdout;
    assert!(tree.starts_with(&format!("{base}\n└─ {middle}")), "{tree}");
    // Nothing has moved.
    let checked = server.json(&["base", "check", &base, "-o", "json"]);
    assert_eq!(checked[0]["status"], "ok", "{checked:#}");
    assert_eq!(checked[0]["usedBy"], 1, "{checked:#}");
    let stale = || server.json(&["images", "list", "--stale", "-o", "json"]);
    assert_eq!(names(&stale()), Vec::<&str>::new());
    // The base moves: what stands on it is stale, and what stands on that is not until it was built.
    push_base(&world, &base, "second");
    let checked = server.json(&["base", "check", &base, "-o", "json"]);
    assert!(checked[0]["changedAt"].is_string(), "{checked:#}");
    let found = stale();
    assert_eq!(names(&found), [middle.as_str()], "{found:#}");
    assert_eq!(found["items"][0]["stale"][0]["now"], checked[0]["digest"]);
    let why = server.ok(&["images", "why", &middle]).stdout;
    assert!(why.contains("it is stale"), "{why}");
    // Built again, it is fresh, and what stands on it is stale: its tag is looked at as soon as it is pushed.
    build(&server, "middle", middle_files.path());
    server.ok(&["base", "check"]);
    let found = stale();
    assert_eq!(names(&found), [app.as_str()], "{found:#}");
    build(&server, "app", app_files.path());
    server.ok(&["base", "check"]);
    assert_eq!(names(&stale()), Vec::<&str>::new());
    let moves = server.json(&["base", "show", &base, "-o", "json"]);
    assert_eq!(
        moves[0]["changes"].as_array().unwrap().len(),
        1,
        "{moves:#}"
    );
}
