//! Runners and pools: a runner gets only the properties that its registration token grants. A task
//! uses only the pools of the token that stored it.

use acrtask_tests::{
    TestEnvironment,
    service::{TestRunner, TestServer},
};
use serde_json::{Value, json};

use crate::requests::{create_limited_token, request, send};

/// Starts a runner that must be refused. Returns its exit code and output.
fn run_refused(
    server: &TestServer,
    environment: &TestEnvironment,
    token: &[&str],
    flags: &[&str],
) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let mut args = vec!["runner", "token", "-o", "json"];
    args.extend(token);
    let made = server.run_json(&args);
    let file = folder.path().join("token");
    std::fs::write(&file, made["secret"].as_str().unwrap()).unwrap();
    // The time limit ends a runner that is wrongly accepted.
    let output = environment
        .command_for("timeout")
        .args(["-s", "KILL", "20"])
        .arg(environment.program())
        .args([
            "runner",
            "start",
            "--server",
            &server.url,
            "--name",
            "rogue",
        ])
        .arg("--token-file")
        .arg(&file)
        .arg("--state-dir")
        .arg(folder.path().join("state"))
        .args(flags)
        .output()
        .unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    // The refusal must precede the use of the token.
    let runners = server.run_json(&["runner", "list", "-o", "json"]);
    assert!(!runners.to_string().contains("rogue"), "{text}{runners:#}");
    (output.status.code(), text)
}

#[tokio::test]
async fn runner_cannot_exceed_the_pool_labels_and_slots_of_its_token() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &["--no-runner"]);
    for (token, flags, message) in [
        (
            &[][..],
            &["--pool", "prod"][..],
            "is for the pool `default`",
        ),
        (
            &["--pool", "team"],
            &["--pool", "prod"],
            "is for the pool `team`",
        ),
        (
            &[],
            &["--label", "zone=prod"],
            "not for the label zone=prod",
        ),
        (
            &["--label", "zone=team"],
            &["--label", "zone=prod"],
            "not for the label zone=prod",
        ),
        (&["--max-slots", "2"], &["--slots", "3"], "at most 2 slots"),
        (&[], &["--slots", "17"], "at most 16 slots"),
    ] {
        let (code, text) = run_refused(&server, &environment, token, flags);
        assert_eq!(code, Some(2), "{flags:?}: {text}");
        assert!(text.contains(message), "{flags:?}: {text}");
    }
}

#[tokio::test]
async fn runner_of_a_team_gets_no_run_and_no_secret_of_others() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &["--no-runner"]);
    let image = environment.busybox();
    for name in ["prod/app", "team/app"] {
        let task = json!({
            "name": name, "cmd": format!("{image} echo ran"), "secrets": {"s": "shared"},
        });
        let path = "/secrets/shared";
        let admin = &server.token;
        send(
            &server,
            admin,
            "PUT",
            path,
            json!({"value": "hush-hush-hush"}),
        )
        .await;
        send(&server, admin, "POST", "/tasks", task).await;
    }
    let mut runs = Vec::new();
    for name in ["prod%2Fapp", "team%2Fapp"] {
        let path = format!("/tasks/{name}/runs");
        let run = send(&server, &server.token, "POST", &path, json!({})).await;
        runs.push(run["id"].as_str().unwrap().to_owned());
    }
    let runner = TestRunner::start_granted(&server, "team", &["--tasks", "team/*"]);
    server.wait_for_run(&runs[1], |run| run["state"] == "succeeded");
    assert_eq!(server.fetch_run(&runs[0])["state"], "queued");
    let why = server.run_ok(&["runs", "why", &runs[0]]);
    assert!(
        why.stdout.contains("is registered for other tasks"),
        "{}",
        why.transcript()
    );
    drop(runner);
}

#[tokio::test]
async fn limited_token_uses_only_its_granted_pools() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &["--no-runner"]);
    let scopes = ["read", "run", "write"];
    let plain = create_limited_token(&server, "plain", &scopes, "team/*");
    let args = [
        "token", "create", "gpu", "--tasks", "team/*", "--pool", "gpu", "--scope", "read",
        "--scope", "run", "--scope", "write", "-o", "json",
    ];
    let gpu = server.run_json(&args)["secret"]
        .as_str()
        .unwrap()
        .to_owned();
    let put = async |token: &str, pool: Option<&str>| {
        let mut task = json!({"name": "team/app", "cmd": "alpine true"});
        if let Some(pool) = pool {
            task["queue"] = json!({"pool": pool});
        }
        let (status, answer) = request(&server, token, "PUT", "/tasks/team%2Fapp", task).await;
        (
            status,
            answer["message"].as_str().unwrap_or_default().to_owned(),
        )
    };
    assert_eq!(put(&plain, Some("default")).await.0, 201);
    assert_eq!(put(&plain, None).await.0, 200);
    for pool in ["gpu", "prod", "GPU", "default/"] {
        let (status, message) = put(&plain, Some(pool)).await;
        assert_eq!(status, 403, "{pool}");
        assert!(
            message.contains("may not use the pool") && message.contains(pool),
            "{message}"
        );
    }
    assert_eq!(put(&gpu, Some("prod")).await.0, 403);
    assert_eq!(put(&gpu, Some("gpu")).await.0, 200);
    // The choice of an administrator may stay, but any other pool is refused again.
    assert_eq!(put(&server.token, Some("prod")).await.0, 200);
    assert_eq!(put(&plain, Some("prod")).await.0, 200);
    assert_eq!(put(&plain, Some("gpu")).await.0, 403);
    let tokens = send(&server, &server.token, "GET", "/tokens", Value::Null).await;
    let shown = tokens
        .as_array()
        .unwrap()
        .iter()
        .find(|it| it["name"] == "gpu");
    assert_eq!(shown.unwrap()["pools"], json!(["gpu"]));
}
