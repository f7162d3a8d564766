//! How a webhook comes to a forge, and what the doctor says of it.

use acrtask_tests::{
    World,
    forge::Forge,
    git_server::{HttpGit, Repositories},
    project,
    service::Server,
};
use serde_json::{Value, json};

use super::place::{FORGE_TOKEN, TOKEN};

/// The verdict of the doctor on one thing.
fn verdict<'a>(report: &'a Value, name: &str) -> &'a Value {
    let checks = report["checks"].as_array().unwrap();
    let found = checks.iter().find(|check| check["name"] == name);
    &found.unwrap_or_else(|| panic!("{name}: {report:#}"))["verdict"]
}

#[test]
fn the_doctor_says_what_is_wrong() {
    let Some(world) = World::find() else { return };
    let repositories = Repositories::default();
    repositories.create("app");
    repositories.commit("app", &[("file", "")]);
    let git_server = HttpGit::start(&repositories.root(), Some(("ci", TOKEN)));
    let mut server = Server::start(&world, &["--no-runner", "--allow-private-addresses"]);
    let files = project::folder(&[(
        "app.yaml",
        &format!(
            "name: app\ncontext: {}#main\nregistry: {}\nsecrets: {{ NPM: NPM_TOKEN }}\ntriggers: {{ commit: {{}} }}\n",
            git_server.url("app"),
            world.registry
        ),
    )]);
    let run = |server: &Server, args: &[&str]| server.client(files.path(), args).wait();
    let applied = run(&server, &["task", "apply", "--file", "app.yaml"]);
    assert_eq!(applied.code, Some(0), "{}", applied.all());
    let outcome = run(&server, &["doctor", "app", "-o", "json"]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.all());
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
        assert_eq!(verdict(&report, name), expected, "{name}: {report:#}");
    }
    // With the login the server reads what this machine alone does not.
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
    assert_eq!(set.code, Some(0), "{}", set.all());
    let outcome = run(&server, &["doctor", "app", "-o", "json"]);
    let report: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(verdict(&report, "repository"), "ok", "{report:#}");
    assert!(!outcome.all().contains(TOKEN));
    let unknown = run(&server, &["doctor", "nothing"]);
    assert_eq!(unknown.code, Some(2), "{}", unknown.all());
    server.kill();
    let away = run(&server, &["doctor", "-o", "json"]);
    assert_eq!(away.code, Some(1), "{}", away.all());
    let report: Value = serde_json::from_str(&away.stdout).unwrap();
    assert_eq!(verdict(&report, "server"), "wrong", "{report:#}");
}

#[test]
fn a_webhook_is_entered_at_the_forge_and_its_ping_arrives() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &["--no-runner"]);
    let forge = Forge::start();
    let files = project::folder(&[("token", FORGE_TOKEN)]);
    let run = |args: &[&str]| server.client(files.path(), args).wait();
    let created = run(&[
        "task",
        "create",
        "app",
        "--context",
        "http://127.0.0.1:9/org/app.git#main",
        "--registry",
        &world.registry,
        "--commit-trigger-enabled",
        "true",
    ]);
    assert_eq!(created.code, Some(0), "{}", created.all());
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
    assert_eq!(first.code, Some(0), "{}", first.all());
    assert!(
        first.stderr.contains("the forge's ping has arrived"),
        "{}",
        first.all()
    );
    let hooks = forge.hooks();
    assert_eq!(hooks.len(), 1);
    assert_eq!(hooks[0]["events"], json!(["push"]));
    assert_eq!(
        hooks[0]["config"]["url"],
        format!("{}/hooks/org-app", server.url)
    );
    // Once more: nothing is made, and the secret stays what it is.
    let updated = run(&[
        "task",
        "update",
        "app",
        "--pull-request-trigger-enabled",
        "true",
    ]);
    assert_eq!(updated.code, Some(0), "{}", updated.all());
    let again = setup(&[]);
    // The ping is the same as before, so that only the forge knows how it was answered.
    assert_eq!(again.code, Some(0), "{}", again.all());
    let hooks = forge.hooks();
    assert_eq!(hooks.len(), 1);
    assert_eq!(hooks[0]["events"], json!(["push", "pull_request"]));
    let said = [first.all(), again.all(), server.log()].concat();
    assert!(!said.contains(FORGE_TOKEN));
    let secret = hooks[0]["config"]["secret"].as_str().unwrap();
    assert!(
        !said.contains(secret),
        "it is not shown where nobody needs it"
    );
}
