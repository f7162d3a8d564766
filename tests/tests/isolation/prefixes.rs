//! Secrets, logins and webhooks of a team, which it manages with a token limited to its prefix.

use acrtask_tests::{Outcome, TestEnvironment, project::create_folder, service::TestServer};
use serde_json::json;

use super::requests::create_limited_token;

/// Runs a command as the holder of `token`.
fn run_as(server: &TestServer, token: &str, args: &[&str]) -> Outcome {
    let folder = create_folder(&[
        ("password", &variable("ACRTASK_TEST_AUTH_PASSWORD")),
        ("secret", "a secret of the team"),
    ]);
    server.start_client_as(token, folder.path(), args).wait()
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run `cargo xtask test`"))
}

#[test]
fn team_with_a_prefix_reaches_only_its_own_tasks() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &[]);
    let registry = variable("ACRTASK_TEST_AUTH_REGISTRY");
    let user = variable("ACRTASK_TEST_AUTH_USER");
    let team = create_limited_token(&server, "team", &["write"], "team/*");
    let other = create_limited_token(&server, "other", &["write"], "other/*");
    let dockerfile = format!("FROM {}\nRUN echo made > /made\n", environment.busybox());
    for name in ["team/app", "other/app"] {
        let definition = json!({
            "name": name,
            "secrets": {"s": "SHARED"},
            "text": format!(
                "version: v1.1.0\nsteps:\n  - build: -t {registry}/{name}:1 .\n  - push: [{registry}/{name}:1]\n"
            ),
        });
        let files = create_folder(&[("task.yaml", &definition.to_string())]);
        let apply = ["task", "apply", "-f", "task.yaml"];
        let applied = server.start_client(files.path(), &apply).wait();
        assert_eq!(applied.code, Some(0), "{}", applied.transcript());
    }
    let login = |prefix: &'static str| {
        let mut args = vec!["credential", "set", &registry, "--username", &user];
        args.extend(["--from-file", "password", "--prefix", prefix]);
        args
    };
    let secret = |prefix: &'static str| {
        [
            "secret",
            "set",
            "SHARED",
            "--from-file",
            "secret",
            "--prefix",
            prefix,
        ]
    };
    for (token, prefix, expected) in [
        (&other, "team/", 1),
        (&team, "te", 1),
        (&team, "other/", 1),
        (&team, "team/", 0),
    ] {
        for outcome in [
            run_as(&server, token, &login(prefix)),
            run_as(&server, token, &secret(prefix)),
        ] {
            assert_eq!(
                outcome.code == Some(0),
                expected == 0,
                "{}",
                outcome.transcript()
            );
        }
    }
    for (token, list, seen) in [
        (&team, "secret", "SHARED"),
        (&team, "credential", &registry),
        (&other, "secret", ""),
        (&other, "credential", ""),
    ] {
        let listed = run_as(&server, token, &[list, "list"]);
        assert_eq!(listed.code, Some(0), "{}", listed.transcript());
        let found = listed.stdout.contains("team/*");
        assert_eq!(found, !seen.is_empty(), "{}", listed.transcript());
        assert!(listed.stdout.contains(seen), "{}", listed.transcript());
    }
    // The team pushes with its login. The other task has neither the secret nor the login.
    let start = |name: &str| {
        let files = create_folder(&[("Dockerfile", &dockerfile)]);
        let args = ["task", "run", name, "--context", "."];
        server.start_client(files.path(), &args).wait()
    };
    let pushed = start("team/app");
    assert_eq!(pushed.code, Some(0), "{}", pushed.transcript());
    let refused = start("other/app");
    assert_ne!(refused.code, Some(0), "{}", refused.transcript());
    assert!(
        refused.transcript().contains("SHARED"),
        "{}",
        refused.transcript()
    );
    let global = ["secret", "set", "SHARED", "--from-file", "secret"];
    let set = run_as(&server, &server.token, &global);
    assert_eq!(set.code, Some(0), "{}", set.transcript());
    let refused = start("other/app");
    assert_ne!(refused.code, Some(0), "{}", refused.transcript());
    assert!(
        refused.transcript().contains("acrtask credential set"),
        "{}",
        refused.transcript()
    );
    // Webhooks: the team manages its own one.
    let webhook = |prefix: &'static str, name: &'static str| {
        [
            "webhook",
            "create",
            name,
            "--provider",
            "github",
            "--prefix",
            prefix,
        ]
    };
    let all = run_as(
        &server,
        &server.token,
        &["webhook", "create", "all", "--provider", "github"],
    );
    assert_eq!(all.code, Some(0), "{}", all.transcript());
    for (token, args, expected) in [
        (&team, webhook("team/", "team"), true),
        (&team, webhook("t", "wide"), false),
        (&team, webhook("team/", "all"), false),
        (&other, webhook("other/", "team"), false),
    ] {
        let outcome = run_as(&server, token, &args);
        assert_eq!(
            outcome.code == Some(0),
            expected,
            "{}",
            outcome.transcript()
        );
    }
    let listed = run_as(&server, &team, &["webhook", "list"]);
    assert!(
        listed.stdout.contains("team/*") && !listed.stdout.contains("/hooks/all"),
        "{}",
        listed.transcript()
    );
    let deleted = run_as(&server, &other, &["webhook", "delete", "team"]);
    assert_ne!(deleted.code, Some(0), "{}", deleted.transcript());
    let prefix = ["secret", "delete", "SHARED", "--prefix", "team/"];
    let deleted = run_as(&server, &other, &prefix);
    assert_ne!(deleted.code, Some(0), "{}", deleted.transcript());
    let deleted = run_as(&server, &team, &prefix);
    assert_eq!(deleted.code, Some(0), "{}", deleted.transcript());
}
