//! Runners and pools: a runner is what its registration token says, and a task runs where its token may use runners.

use acrtask_tests::{
    World,
    service::{Runner, Server},
};
use serde_json::{Value, json};

use crate::requests::{done, limited_token, request};

/// Starts a runner with the program, and returns its exit code and what it printed, once it ended.
fn ended(server: &Server, world: &World, token: &[&str], flags: &[&str]) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let mut args = vec!["runner", "token", "-o", "json"];
    args.extend(token);
    let made = server.json(&args);
    let file = folder.path().join("token");
    std::fs::write(&file, made["secret"].as_str().unwrap()).unwrap();
    // One that is taken would run for ever.
    let output = world
        .command_of("timeout")
        .args(["-s", "KILL", "20"])
        .arg(world.program())
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
    // It was refused before its token was used.
    let runners = server.json(&["runner", "list", "-o", "json"]);
    assert!(!runners.to_string().contains("rogue"), "{text}{runners:#}");
    (output.status.code(), text)
}

#[tokio::test]
async fn a_runner_takes_no_pool_label_or_slots_beyond_its_token() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &["--no-runner"]);
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
        let (code, text) = ended(&server, &world, token, flags);
        assert_eq!(code, Some(2), "{flags:?}: {text}");
        assert!(text.contains(message), "{flags:?}: {text}");
    }
}

#[tokio::test]
async fn a_runner_of_a_team_gets_no_run_and_no_secret_of_others() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &["--no-runner"]);
    let image = world.busybox();
    for name in ["prod/app", "team/app"] {
        let task = json!({
            "name": name, "cmd": format!("{image} echo ran"), "secrets": {"s": "shared"},
        });
        let path = "/secrets/shared";
        let admin = &server.token;
        done(
            &server,
            admin,
            "PUT",
            path,
            json!({"value": "hush-hush-hush"}),
        )
        .await;
        done(&server, admin, "POST", "/tasks", task).await;
    }
    let mut runs = Vec::new();
    for name in ["prod%2Fapp", "team%2Fapp"] {
        let path = format!("/tasks/{name}/runs");
        let run = done(&server, &server.token, "POST", &path, json!({})).await;
        runs.push(run["id"].as_str().unwrap().to_owned());
    }
    let runner = Runner::start_granted(&server, "team", &["--tasks", "team/*"]);
    server.wait_for_run(&runs[1], |run| run["state"] == "succeeded");
    assert_eq!(server.run_of(&runs[0])["state"], "queued");
    let why = server.ok(&["runs", "why", &runs[0]]);
    assert!(
        why.stdout.contains("is registered for other tasks"),
        "{}",
        why.all()
    );
    drop(runner);
}

#[tokio::test]
async fn a_limited_token_uses_the_pools_that_it_was_given() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &["--no-runner"]);
    let scopes = ["read", "run", "write"];
    let plain = limited_token(&server, "plain", &scopes, "team/*");
    let args = [
        "token", "create", "gpu", "--tasks", "team/*", "--pool", "gpu", "--scope", "read",
        "--scope", "run", "--scope", "write", "-o", "json",
    ];
    let gpu = server.json(&args)["secret"].as_str().unwrap().to_owned();
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
    // An administrator's choice stays, and another one is refused again.
    assert_eq!(put(&server.token, Some("prod")).await.0, 200);
    assert_eq!(put(&plain, Some("prod")).await.0, 200);
    assert_eq!(put(&plain, Some("gpu")).await.0, 403);
    let tokens = done(&server, &server.token, "GET", "/tokens", Value::Null).await;
    let shown = tokens
        .as_array()
        .unwrap()
        .iter()
        .find(|it| it["name"] == "gpu");
    assert_eq!(shown.unwrap()["pools"], json!(["gpu"]));
}
