//! The requests of `docs/webhooks.md` start runs.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use acrtask_tests::{World, checkout, project, service::Server};

/// The shell of the examples, in the order of the page.
fn examples() -> String {
    let page = std::fs::read_to_string(checkout().join("docs/webhooks.md")).unwrap();
    let blocks = page.split("```sh\n").skip(1);
    let blocks: Vec<_> = blocks.filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(blocks.len(), 4, "the page has four examples");
    blocks.join("\n")
}

#[test]
fn examples_of_generic_and_distribution_start_runs() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &["--no-runner", "--allow-private-addresses"]);
    let create = |name: &str, trigger: &str| {
        let definition = format!(
            "name: {name}\ncontext: https://git.example.com/team/app.git#main\nregistry: {}\n\
             triggers: {{{trigger}}}\n",
            world.registry
        );
        let files = project::folder(&[("task.yaml", &definition)]);
        let args = ["task", "apply", "--file", "task.yaml"];
        let outcome = server.client(files.path(), &args).wait();
        assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    };
    create("commits", "commit: {paths: {include: ['src/**']}}");
    let repository = format!("{}/base/*", world.registry);
    create(
        "images",
        &format!("registryPush: {{repositories: ['{repository}']}}"),
    );
    let folder = tempfile::tempdir().unwrap();
    let script = examples().replace("reg.example.com", &world.registry);
    let script = format!("set -euo pipefail\n{script}");
    let programs = world.program().parent().unwrap();
    let search = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let output = world
        .command_of("bash")
        .args(["-c", &script])
        .current_dir(folder.path())
        .envs(server.variables())
        .env("PATH", search)
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{printed}");
    for (task, trigger) in [("commits", "commit"), ("images", "registry-push")] {
        let runs = server.json(&["runs", "list", "--task", task, "-o", "json"]);
        let runs = runs["items"]
            .as_array()
            .or_else(|| runs.as_array())
            .unwrap();
        assert_eq!(runs.len(), 1, "{task}: {runs:#?}\n{printed}");
        assert_eq!(runs[0]["trigger"], trigger, "{runs:#?}");
    }
}
