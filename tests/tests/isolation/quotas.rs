//! Quotas: a token or task that exceeds its share is refused with an error that names the quota.

use acrtask_tests::{
    TestEnvironment,
    service::{TestRunner, TestServer},
};
use serde_json::{Value, json};

use crate::requests::{create_limited_token, request, send};

const RUNNER: [&str; 3] = ["read", "run", "write"];

fn set_quota(server: &TestServer, subject: &str, kind: &str, limit: &str) {
    server.run_ok(&["quota", "set", subject, kind, limit]);
}

async fn create_task(server: &TestServer, name: &str, line: &str) {
    let task = json!({"name": name, "cmd": line});
    send(server, &server.token, "POST", "/tasks", task).await;
}

#[tokio::test]
async fn runs_beyond_the_quota_are_refused_by_name() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &["--no-runner"]);
    let team = create_limited_token(&server, "team", &RUNNER, "team/*");
    for name in ["team/a", "team/b"] {
        create_task(&server, name, "alpine true").await;
    }
    set_quota(&server, "task:team/a", "queuedRuns", "3");
    let start = async |token: &str, name: &str| {
        let path = format!("/tasks/{name}/runs");
        request(&server, token, "POST", &path, json!({})).await
    };
    // All requests at once: never more runs than the quota.
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
        "another task has a separate quota"
    );
    // The program shows the quota and raises it.
    let shown = server.run_ok(&["quota", "show", "team/a"]);
    assert!(
        shown.stdout.contains("queuedRuns"),
        "{}",
        shown.transcript()
    );
    let quotas = send(&server, &team, "GET", "/quotas?task=team%2Fa", Value::Null).await;
    let queued = quotas
        .as_array()
        .unwrap()
        .iter()
        .find(|it| it["kind"] == "queuedRuns");
    assert_eq!(queued.unwrap()["used"], 3, "{quotas:#}");
    set_quota(&server, "task:team/a", "queuedRuns", "4");
    assert_eq!(start(&team, "team%2Fa").await.0, 201);
    let forbidden = json!({"subject": "task:team/a", "kind": "queuedRuns", "limit": 9});
    assert_eq!(
        request(&server, &team, "PUT", "/quotas", forbidden).await.0,
        403
    );
    // Quotas of other tasks are not shown.
    create_task(&server, "prod/x", "alpine true").await;
    set_quota(&server, "task:prod/x", "queuedRuns", "7");
    let listed = send(&server, &team, "GET", "/quotas", Value::Null).await;
    assert!(!listed.to_string().contains("prod/x"), "{listed:#}");
}

#[tokio::test]
async fn uploads_beyond_the_quota_are_refused_by_name() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &["--no-runner"]);
    let team = create_limited_token(&server, "team", &RUNNER, "team/*");
    // Each upload counts at least 4 KiB.
    set_quota(&server, "token:*", "unfinishedContexts", "2");
    set_quota(&server, "token:*", "contextBytes", "20000");
    let upload = async |size: u64, letter: &str| {
        let body = json!({"size": size, "digest": format!("sha256:{}", letter.repeat(64))});
        request(&server, &team, "POST", "/contexts", body).await
    };
    let (status, refused) = upload(20_001, "a").await;
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
    let other = create_limited_token(&server, "other", &RUNNER, "other/*");
    let body = json!({"size": 100, "digest": format!("sha256:{}", "c".repeat(64))});
    assert_eq!(
        request(&server, &other, "POST", "/contexts", body).await.0,
        201
    );
}

#[tokio::test]
async fn endless_log_ends_its_run_with_a_visible_mark() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &["--no-runner"]);
    let runner = TestRunner::start(&server, "one", &["--slots", "1"]);
    let line = format!(
        "{} sh -c 'yes endless | head -c 200000000; sleep 300'",
        environment.busybox()
    );
    create_task(&server, "team/loud", &line).await;
    create_task(
        &server,
        "team/quiet",
        &format!("{} echo fine", environment.busybox()),
    )
    .await;
    set_quota(&server, "task:team/loud", "logBytesPerRun", "1M");
    let run = send(
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
    let log = server.run_ok(&["runs", "logs", id]);
    let tail: String = log.stdout.chars().rev().take(2000).collect();
    let tail: String = tail.chars().rev().collect();
    assert!(tail.contains("the log exceeded a limit"), "{tail}");
    // The runner is free again.
    let next = send(
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
async fn full_disk_refuses_new_objects_by_name() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(
        &environment,
        &["--no-runner", "--min-free-disk", "1000000G"],
    );
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
