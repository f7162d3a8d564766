//! Values from untrusted users at a server with a runner and a task with a secret. No value may
//! become a step, a command or code, whatever its source.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use acrtask_tests::{Outcome, TestEnvironment, forge::deliver, project, service::TestServer};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Secret of the task.
const CANARY: &str = "hunter2-of-the-task";
/// Reversed secret, which masking does not recognize.
const REVERSED: &str = "ksat-eht-fo-2retnuh";

/// Server with a runner, and a task whose file uses a value, the branch and a secret.
struct Fixture {
    environment: TestEnvironment,
    server: TestServer,
    files: TempDir,
}

impl Fixture {
    fn new() -> Option<Self> {
        let environment = TestEnvironment::find()?;
        let image = environment.busybox();
        let text = format!(
            "steps:\n  - id: sleep\n    cmd: \"{image} sleep {{{{.Values.secs}}}}\"\n    env: [\"S={{{{.Secrets.s}}}}\"]\n  \
             - id: tag\n    cmd: {image} sh -c 'echo tag {{{{.Values.tag}}}} of $S'\n    env: [\"S={{{{.Secrets.s}}}}\"]\n"
        );
        let definition = json!({
            "name": "prod/app", "text": text, "secrets": {"s": "s"}, "values": {"secs": "0", "tag": "none"},
            "triggers": {"url": {"allowSet": ["tag"]}}
        });
        let files =
            project::create_folder(&[("canary", CANARY), ("task.yaml", &definition.to_string())]);
        let server = TestServer::start(&environment, &["--allow-private-addresses"]);
        let fixture = Self {
            environment,
            server,
            files,
        };
        fixture.run_ok(&["secret", "set", "s", "--from-file", "canary"]);
        fixture.run_ok(&["task", "apply", "-f", "task.yaml"]);
        Some(fixture)
    }

    fn run_ok(&self, args: &[&str]) -> Outcome {
        let outcome = self.server.start_client(self.files.path(), args).wait();
        assert_eq!(outcome.code, Some(0), "{args:?}: {}", outcome.transcript());
        outcome
    }

    /// Runs the program with a new token of these scopes.
    fn run_with(&self, scopes: &str, args: &[&str]) -> Outcome {
        let name = scopes.replace(',', "-");
        let token = self.server.run_json(&[
            "token", "create", &name, "--scope", scopes, "--tasks", "prod/*", "-o", "json",
        ]);
        let token = token["secret"].as_str().unwrap().to_owned();
        let mut variables = self.server.variables();
        for (name, value) in &mut variables {
            if name == "ACRTASK_TOKEN" {
                value.clone_from(&token);
            }
        }
        let variables: Vec<(&str, &str)> = variables
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        self.environment
            .start_plain(self.files.path(), args, &variables)
            .wait()
    }

    /// Waits for the end of a run. Returns the run and its log.
    fn wait_finished(&self, id: &str) -> (Value, String) {
        let run = self.server.wait_for_run(id, |run| {
            !["queued", "leased", "running"].contains(&run["state"].as_str().unwrap())
        });
        let log = self
            .server
            .start_client(self.files.path(), &["runs", "logs", id]);
        (run, log.wait().transcript())
    }

    /// Asserts that a run was refused before any step with an error that names the value.
    fn assert_refused(&self, run: &Value, log: &str, name: &str) {
        assert_eq!(run["state"], "failed", "{run:#}\n{log}");
        assert_eq!(run["result"]["refused"], true, "{run:#}\n{log}");
        assert_eq!(run["result"]["steps"], json!([]), "{run:#}\n{log}");
        assert!(
            log.contains("untrusted-value") && log.contains(name),
            "{log}"
        );
        assert!(!log.contains(REVERSED) && !log.contains(CANARY), "{log}");
    }
}

fn started_run(outcome: &Outcome) -> String {
    outcome.stdout.trim().lines().last().unwrap().to_owned()
}

#[test]
fn value_from_a_token_without_write_adds_no_step() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let evil = format!(
        "secs=0\"\n  - id: evil\n    cmd: \"{} sh -c 'echo $S | rev'\"\n    env: [\"S={{{{.Secrets.s}}}}\"]\n  - cmd: \"{0} true",
        fixture.environment.busybox()
    );
    let one_line = format!("secs=0; {} env", fixture.environment.busybox());
    for set in [evil.as_str(), &one_line] {
        let started = fixture.run_with(
            "read,run",
            &["task", "run", "prod/app", "--set", set, "--no-wait"],
        );
        assert_eq!(started.code, Some(0), "{}", started.transcript());
        let (run, log) = fixture.wait_finished(&started_run(&started));
        fixture.assert_refused(&run, &log, ".Values.secs");
    }
    // An ordinary value is accepted. A token that may write the task may set any text.
    for (scopes, set) in [
        ("read,run", "secs=0"),
        ("read,run,write", one_line.as_str()),
    ] {
        let args = ["task", "run", "prod/app", "--set", set, "--no-wait"];
        let started = fixture.run_with(scopes, &args);
        let (run, log) = fixture.wait_finished(&started_run(&started));
        assert_eq!(run["state"], "succeeded", "{log}");
        assert!(!log.contains(CANARY), "{log}");
    }
}

#[test]
fn secret_from_a_token_without_write_adds_no_command() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let text = format!(
        "cmd: {} echo {{{{.Secrets.own}}}}",
        fixture.environment.busybox()
    );
    let definition = json!({"name": "prod/other", "text": format!("steps:\n  - {text}\n")});
    project::write_file(fixture.files.path(), "other.yaml", &definition.to_string());
    fixture.run_ok(&["task", "apply", "-f", "other.yaml"]);
    let set = format!("own=x; {} env", fixture.environment.busybox());
    let args = [
        "task",
        "run",
        "prod/other",
        "--set-secret",
        &set,
        "--no-wait",
    ];
    let started = fixture.run_with("read,run", &args);
    let (run, log) = fixture.wait_finished(&started_run(&started));
    fixture.assert_refused(&run, &log, ".own");
}

#[test]
fn value_from_a_trigger_url_adds_no_step_and_no_code() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let made = fixture.run_ok(&["task", "trigger-url", "create", "prod/app"]);
    let url = made.stdout.trim().to_owned();
    let call = |tag: &str| {
        let body = json!({"set": {"tag": tag}});
        let (status, called) = deliver(&url, "", "none", "none", &body).unwrap();
        assert_eq!(status, 201, "{called:#}");
        fixture.wait_finished(called["run"].as_str().unwrap())
    };
    for tag in [
        "v1\n  - id: evil\n    cmd: busybox env",
        "v1'; busybox env; '",
        "v1;echo${IFS}$S|rev",
        "$(rev</proc/self/environ)",
        "`env`",
        "v1 && env",
    ] {
        let (run, log) = call(tag);
        fixture.assert_refused(&run, &log, ".Values.tag");
    }
    let (run, log) = call("v1.2-rc+3");
    assert_eq!(run["state"], "succeeded", "{log}");
    assert!(log.contains("tag v1.2-rc+3 of ***"), "{log}");
}

#[test]
fn hostile_branch_name_is_refused_after_approval() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let image = fixture.environment.busybox();
    let text = format!(
        "steps:\n  - id: branch\n    cmd: {image} sh -c 'echo on {{{{.Run.Branch}}}}'\n    env: [\"S={{{{.Secrets.s}}}}\"]\n"
    );
    let repositories = acrtask_tests::git_server::Repositories::default();
    repositories.create("app");
    let commit = repositories.commit("app", &[("file", "first\n")]);
    let git = acrtask_tests::git_server::HttpGit::start(&repositories.root(), None);
    let bare = repositories.bare_path("app");
    acrtask_tests::git_server::git(&bare, &["update-ref", "refs/pull/7/head", &commit]);
    acrtask_tests::git_server::git(&bare, &["update-ref", "refs/pull/8/head", &commit]);
    let definition = json!({
        "name": "prod/branch", "context": format!("{}#main", git.url("app")), "text": text, "secrets": {"s": "s"},
        "triggers": {"commit": {"events": ["pullRequest"]}}
    });
    project::write_file(fixture.files.path(), "branch.yaml", &definition.to_string());
    project::write_file(fixture.files.path(), "hook", "hunter2-of-the-webhook");
    let mut server_args = vec!["task", "apply", "-f", "branch.yaml"];
    fixture.run_ok(&server_args);
    server_args = vec![
        "webhook",
        "create",
        "app",
        "--provider",
        "github",
        "--secret-file",
        "hook",
    ];
    fixture.run_ok(&server_args);
    let deliver_branch = |number: u64, branch: &str| {
        let repository =
            json!({"full_name": "org/app", "clone_url": git.url("app"), "default_branch": "main"});
        let head =
            json!({"full_name": "evil/app", "clone_url": "https://git.example.com/evil/app.git"});
        let body = json!({
            "action": "opened", "number": number, "repository": repository,
            "pull_request": {
                "title": "a change", "merged": false,
                "head": {"ref": branch, "sha": commit, "repo": head},
                "base": {"ref": "main", "sha": commit, "repo": repository}
            }
        });
        let hook = format!("{}/hooks/app", fixture.server.url);
        let id = format!("delivery-{number}");
        let (status, receipt) =
            deliver(&hook, "hunter2-of-the-webhook", "pull_request", &id, &body).unwrap();
        assert_eq!(status, 200, "{receipt:#}");
        receipt["runs"][0].as_str().unwrap().to_owned()
    };
    let id = deliver_branch(7, "x;echo${IFS}$S|rev");
    let listed = fixture.run_ok(&["runs", "list"]).stdout;
    assert!(listed.contains("branch `x;echo${IFS}$S|rev`"), "{listed}");
    let shown = fixture.run_ok(&["runs", "show", &id]).stdout;
    assert!(shown.contains("branch `x;echo${IFS}$S|rev`"), "{shown}");
    let approved = fixture.run_ok(&["runs", "approve", &id]).stderr;
    assert!(
        approved.contains("branch `x;echo${IFS}$S|rev`"),
        "{approved}"
    );
    let (run, log) = fixture.wait_finished(&id);
    fixture.assert_refused(&run, &log, ".Run.Branch");
    // A harmless branch runs.
    let id = deliver_branch(8, "feature/x");
    fixture.run_ok(&["runs", "approve", &id]);
    let (run, log) = fixture.wait_finished(&id);
    assert_eq!(run["state"], "succeeded", "{log}");
    assert!(log.contains("on feature/x"), "{log}");
}
