//! The example requests of `docs/webhooks.md` start runs.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use acrtask_tests::{TestEnvironment, checkout, project, service::TestServer};

/// Returns the shell examples in the order of the page.
fn read_examples() -> String {
    let page = std::fs::read_to_string(checkout().join("docs/webhooks.md")).unwrap();
    let blocks = page.split("```sh\n").skip(1);
    let blocks: Vec<_> = blocks.filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(blocks.len(), 4, "the page has four examples");
    blocks.join("\n")
}

#[test]
fn examples_of_generic_and_distribution_start_runs() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &["--no-runner", "--allow-private-addresses"]);
    let create = |name: &str, trigger: &str| {
        let definition = format!(
            "name: {name}\ncontext: https://git.example.com/team/app.git#main\nregistry: {}\n\
             triggers: {{{trigger}}}\n",
            environment.registry
        );
        let files = project::create_folder(&[("task.yaml", &definition)]);
        let args = ["task", "apply", "--file", "task.yaml"];
        let outcome = server.start_client(files.path(), &args).wait();
        assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    };
    create("commits", "commit: {paths: {include: ['src/**']}}");
    let repository = format!("{}/base/*", environment.registry);
    create(
        "images",
        &format!("registryPush: {{repositories: ['{repository}']}}"),
    );
    let folder = tempfile::tempdir().unwrap();
    let script = read_examples().replace("reg.example.com", &environment.registry);
    let script = format!("set -euo pipefail\n{script}");
    let programs = environment.program().parent().unwrap();
    let search = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let output = environment
        .command_for("bash")
        .args(["-c", &script])
        .current_dir(folder.path())
        .envs(server.variables())
        .env("PATH", search)
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{printed}");
    for (task, trigger) in [("commits", "commit"), ("images", "registryPush")] {
        let runs = server.run_json(&["runs", "list", "--task", task, "-o", "json"]);
        let runs = runs["items"]
            .as_array()
            .or_else(|| runs.as_array())
            .unwrap();
        assert_eq!(runs.len(), 1, "{task}: {runs:#?}\n{printed}");
        assert_eq!(runs[0]["trigger"], trigger, "{runs:#?}");
    }
}
