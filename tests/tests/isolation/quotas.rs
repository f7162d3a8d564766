//! Quotas: a token or a task that takes more than its share is refused, with an error that names the quota.

use acrtask_tests::{
    World,
    service::{Runner, Server},
};
use serde_json::{Value, json};

use crate::requests::{done, limited_token, request};

const RUNNER: [&str; 3] = ["read", "run", "write"];

fn set(server: &Server, subject: &str, kind: &str, limit: &str) {
    server.ok(&["quota", "set", subject, kind, limit]);
}

async fn task(server: &Server, name: &str, line: &str) {
    let task = json!({"name": name, "cmd": line});
    done(server, &server.token, "POST", "/tasks", task).await;
}

#[tokio::test]
async fn a_flood_of_runs_is_refused_by_name() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &["--no-runner"]);
    let team = limited_token(&server, "team", &RUNNER, "team/*");
    for name in ["team/a", "team/b"] {
        task(&server, name, "alpine true").await;
    }
    set(&server, "task:team/a", "queuedRuns", "3");
    let start = async |token: &str, name: &str| {
        let path = format!("/tasks/{name}/runs");
        request(&server, token, "POST", &path, json!({})).await
    };
    // All at once: never more than the quota.
    let answers = futures::future::join_all((0..12).map(|_| start(&team, "team%2Fa"))).await;
    let created = answers.iter().filter(|(status, _)| *status == 201).count();
    assert_eq!(created, 3, "{answers:?}");
    let (status, refused) = start(&team, "team%2Fa").await;
    assert_eq!((status, &refused["code"]), (429, &json!("quota")));
    let message = refused["message"].as_str().unwrap();
    assert_eq!(
        message,
        "the quota queuedRuns of task:team/a is 3, and 3 are used"
    );
    let help = refused["help"].as_str().unwrap();
    assert!(
        help.contains("acrtask quota set task:team/a queuedRuns LIMIT"),
        "{help}"
    );
    assert_eq!(
        start(&team, "team%2Fb").await.0,
        201,
        "another task has its own"
    );
    // The program shows it and raises it.
    let shown = server.ok(&["quota", "show", "team/a"]);
    assert!(shown.stdout.contains("queuedRuns"), "{}", shown.all());
    let quotas = done(&server, &team, "GET", "/quotas?task=team%2Fa", Value::Null).await;
    let queued = quotas
        .as_array()
        .unwrap()
        .iter()
        .find(|it| it["kind"] == "queuedRuns");
    assert_eq!(queued.unwrap()["used"], 3, "{quotas:#}");
    set(&server, "task:team/a", "queuedRuns", "4");
    assert_eq!(start(&team, "team%2Fa").await.0, 201);
    let forbidden = json!({"subject": "task:team/a", "kind": "queuedRuns", "limit": 9});
    assert_eq!(
        request(&server, &team, "PUT", "/quotas", forbidden).await.0,
        403
    );
    // Nothing of others is shown.
    task(&server, "prod/x", "alpine true").await;
    set(&server, "task:prod/x", "queuedRuns", "7");
    let listed = done(&server, &team, "GET", "/quotas", Value::Null).await;
    assert!(!listed.to_string().contains("prod/x"), "{listed:#}");
}

#[tokio::test]
async fn endless_uploads_are_refused_by_name() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &["--no-runner"]);
    let team = limited_token(&server, "team", &RUNNER, "team/*");
    set(&server, "token:*", "unfinishedContexts", "2");
    set(&server, "token:*", "contextBytes", "1000");
    let upload = async |size: u64, letter: &str| {
        let body = json!({"size": size, "digest": format!("sha256:{}", letter.repeat(64))});
        request(&server, &team, "POST", "/contexts", body).await
    };
    let (status, refused) = upload(1001, "a").await;
    assert_eq!(status, 429, "{refused}");
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("contextBytes"),
        "{refused}"
    );
    for letter in ["a", "b"] {
        assert_eq!(upload(100, letter).await.0, 201);
    }
    let (status, refused) = upload(100, "c").await;
    assert_eq!(status, 429, "{refused}");
    let message = refused["message"].as_str().unwrap();
    assert!(
        message.contains("unfinishedContexts") && message.contains("is 2"),
        "{message}"
    );
    let other = limited_token(&server, "other", &RUNNER, "other/*");
    let body = json!({"size": 100, "digest": format!("sha256:{}", "c".repeat(64))});
    assert_eq!(
        request(&server, &other, "POST", "/contexts", body).await.0,
        201
    );
}

#[tokio::test]
async fn an_endless_log_ends_its_run_with_a_visible_mark() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &["--no-runner"]);
    let runner = Runner::start(&server, "one", &["--slots", "1"]);
    let line = format!(
        "{} sh -c 'yes endless | head -c 200000000; sleep 300'",
        world.busybox()
    );
    task(&server, "team/loud", &line).await;
    task(
        &server,
        "team/quiet",
        &format!("{} echo fine", world.busybox()),
    )
    .await;
    set(&server, "task:team/loud", "logBytesPerRun", "1M");
    let run = done(
        &server,
        &server.token,
        "POST",
        "/tasks/team%2Floud/runs",
        json!({}),
    )
    .await;
    let id = run["id"].as_str().unwrap();
    let run = server.wait_for_run(id, |run| run["finishedAt"].is_string());
    assert_eq!(run["state"], "error", "{run:#}");
    let reason = run["reason"].as_str().unwrap();
    assert!(
        reason.contains("logBytesPerRun of task:team/loud is 1048576"),
        "{reason}"
    );
    let length = run["logLength"].as_u64().unwrap();
    assert!((500_000..1_100_000).contains(&length), "{length}");
    let log = server.ok(&["runs", "logs", id]);
    let tail: String = log.stdout.chars().rev().take(2000).collect();
    let tail: String = tail.chars().rev().collect();
    assert!(tail.contains("the log has reached a limit"), "{tail}");
    // Its runner is free again.
    let next = done(
        &server,
        &server.token,
        "POST",
        "/tasks/team%2Fquiet/runs",
        json!({}),
    )
    .await;
    server.wait_for_run(next["id"].as_str().unwrap(), |run| {
        run["state"] == "succeeded"
    });
    drop(runner);
}

#[tokio::test]
async fn a_full_disk_refuses_what_is_new_by_name() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &["--no-runner", "--min-free-disk", "1000000G"]);
    let token = server.token.clone();
    let context = json!({"size": 9, "digest": format!("sha256:{}", "a".repeat(64))});
    for (path, body) in [
        ("/tasks", json!({"name": "team/app", "text": "steps: []"})),
        ("/tasks/team%2Fapp/runs", json!({})),
        ("/contexts", context),
    ] {
        let (status, refused) = request(&server, &token, "POST", path, body).await;
        assert_eq!(status, 507, "{path}: {refused}");
        assert!(
            refused["message"]
                .as_str()
                .unwrap()
                .contains("--min-free-disk"),
            "{refused}"
        );
    }
}
