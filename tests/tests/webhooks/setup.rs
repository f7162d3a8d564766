//! Setup of a webhook at a forge, and its diagnosis by `doctor`.

use acrtask_tests::{
    TestEnvironment,
    forge::Forge,
    git_server::{HttpGit, Repositories},
    project,
    service::TestServer,
};
use serde_json::{Value, json};

use super::fixture::{FORGE_TOKEN, TOKEN};

/// Returns the verdict of the doctor on one check.
fn find_verdict<'a>(report: &'a Value, name: &str) -> &'a Value {
    let checks = report["checks"].as_array().unwrap();
    let found = checks.iter().find(|check| check["name"] == name);
    &found.unwrap_or_else(|| panic!("{name}: {report:#}"))["verdict"]
}

#[test]
fn doctor_reports_every_problem_of_a_task() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let repositories = Repositories::default();
    repositories.create("app");
    repositories.commit("app", &[("file", "")]);
    let git_server = HttpGit::start(&repositories.root(), Some(("ci", TOKEN)));
    let mut server = TestServer::start(&environment, &["--no-runner", "--allow-private-addresses"]);
    let files = project::create_folder(&[(
        "app.yaml",
        &format!(
            "name: app\ncontext: {}#main\nregistry: {}\nsecrets: {{ NPM: NPM_TOKEN }}\ntriggers: {{ commit: {{}} }}\n",
            git_server.url("app"),
            environment.registry
        ),
    )]);
    let run = |server: &TestServer, args: &[&str]| server.start_client(files.path(), args).wait();
    let applied = run(&server, &["task", "apply", "--file", "app.yaml"]);
    assert_eq!(applied.code, Some(0), "{}", applied.transcript());
    let outcome = run(&server, &["doctor", "app", "-o", "json"]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.transcript());
    let report: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(report["ok"], false);
    for (name, expected) in [
        ("server", "ok"),
        ("clock", "ok"),
        ("token", "ok"),
        ("runners", "wrong"),
        ("webhook", "wrong"),
        ("secrets", "wrong"),
        ("registry", "ok"),
        ("source", "wrong"),
        ("repository", "wrong"),
        ("login", "ok"),
        ("clocks", "ok"),
    ] {
        assert_eq!(find_verdict(&report, name), expected, "{name}: {report:#}");
    }
    // With the login the server can read the repository, while this machine alone cannot.
    let host = git_server.url("app");
    let host = host.split('/').nth(2).unwrap();
    std::fs::write(files.path().join("token"), TOKEN).unwrap();
    let set = run(
        &server,
        &[
            "credential",
            "set",
            host,
            "--username",
            "ci",
            "--from-file",
            "token",
            "--task",
            "app",
        ],
    );
    assert_eq!(set.code, Some(0), "{}", set.transcript());
    let outcome = run(&server, &["doctor", "app", "-o", "json"]);
    let report: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(find_verdict(&report, "repository"), "ok", "{report:#}");
    assert!(!outcome.transcript().contains(TOKEN));
    let unknown = run(&server, &["doctor", "nothing"]);
    assert_eq!(unknown.code, Some(2), "{}", unknown.transcript());
    server.kill();
    let unreachable = run(&server, &["doctor", "-o", "json"]);
    assert_eq!(unreachable.code, Some(1), "{}", unreachable.transcript());
    let report: Value = serde_json::from_str(&unreachable.stdout).unwrap();
    assert_eq!(find_verdict(&report, "server"), "wrong", "{report:#}");
}

#[test]
fn webhook_is_registered_at_the_forge_and_its_ping_arrives() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &["--no-runner"]);
    let forge = Forge::start();
    let files = project::create_folder(&[("token", FORGE_TOKEN)]);
    let run = |args: &[&str]| server.start_client(files.path(), args).wait();
    let created = run(&[
        "task",
        "create",
        "app",
        "--context",
        "http://127.0.0.1:9/org/app.git#main",
        "--registry",
        &environment.registry,
        "--commit-trigger-enabled",
        "true",
    ]);
    assert_eq!(created.code, Some(0), "{}", created.transcript());
    let setup = |more: &[&str]| {
        let api = forge.url();
        let all = [
            &["webhook", "setup", "app", "--provider", "github"][..],
            &["--token-file", "token", "--api", &api],
            more,
        ];
        run(&all.concat())
    };
    let first = setup(&[]);
    assert_eq!(first.code, Some(0), "{}", first.transcript());
    assert!(
        first.stderr.contains("received the forge's ping"),
        "{}",
        first.transcript()
    );
    let hooks = forge.hooks();
    assert_eq!(hooks.len(), 1);
    assert_eq!(hooks[0]["events"], json!(["push"]));
    assert_eq!(
        hooks[0]["config"]["url"],
        format!("{}/hooks/org-app", server.url)
    );
    // A second setup creates nothing and keeps the secret.
    let updated = run(&[
        "task",
        "update",
        "app",
        "--pull-request-trigger-enabled",
        "true",
    ]);
    assert_eq!(updated.code, Some(0), "{}", updated.transcript());
    let again = setup(&[]);
    // The ping is the same as before, so only the forge has the status of the response.
    assert_eq!(again.code, Some(0), "{}", again.transcript());
    let hooks = forge.hooks();
    assert_eq!(hooks.len(), 1);
    assert_eq!(hooks[0]["events"], json!(["push", "pull_request"]));
    let output = [first.transcript(), again.transcript(), server.log()].concat();
    assert!(!output.contains(FORGE_TOKEN));
    let secret = hooks[0]["config"]["secret"].as_str().unwrap();
    assert!(!output.contains(secret), "the secret is in the output");
}
