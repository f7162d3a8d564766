//! Path from a push to an image: a real git server with a password, deliveries signed as GitHub
//! signs them, a server with its runner, a real registry, and a fake forge that receives commit
//! statuses.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../common/mod.rs"]
mod common;
mod fixture;
mod forks;
mod server_crashes;
mod setup;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use acrtask_tests::{
    TestEnvironment,
    forge::{deliver, deliver_signed},
};
use serde_json::{Value, json};

use fixture::{FORGE_TOKEN, LIMIT, WebhookFixture, only_run, task_file};

/// Thread that searches the command lines of all processes for secrets until it is stopped.
struct CommandLineWatch {
    stop: Arc<AtomicBool>,
    reader: Option<thread::JoinHandle<Vec<String>>>,
}

impl CommandLineWatch {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let reader = thread::spawn(move || {
            let mut found = Vec::new();
            while !stopped.load(Ordering::SeqCst) {
                let processes = std::fs::read_dir("/proc").unwrap().flatten();
                for entry in processes {
                    let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                    let line = String::from_utf8_lossy(&line).replace('\0', " ");
                    if line.contains("hunter2") {
                        found.push(line);
                    }
                }
                thread::sleep(Duration::from_millis(5));
            }
            found
        });
        Self {
            stop,
            reader: Some(reader),
        }
    }

    fn stop(mut self) -> Vec<String> {
        self.stop.store(true, Ordering::SeqCst);
        self.reader.take().unwrap().join().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn push_builds_an_image_and_updates_the_commit_status() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    check_push(&environment, WebhookFixture::new(&environment)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn push_builds_an_image_and_updates_the_commit_status_on_postgresql() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let Some(database) = common::create_postgres_database().await else {
        return;
    };
    check_push(
        &environment,
        WebhookFixture::with_database(&environment, &database),
    )
    .await;
    common::assert_triggers_accounted(&database).await;
}

/// Checks the path from a push to an image and a commit status. Then sends the delivery again,
/// forged and changed.
async fn check_push(environment: &TestEnvironment, fixture: WebhookFixture) {
    fixture.create_task("app", &[]);
    let before = fixture.resolve_reference("main");
    let commit = fixture
        .repositories
        .commit("app", &[("src/file", "second\n")]);
    // A newer commit, which must not be built.
    fixture
        .repositories
        .commit("app", &[("src/file", "third\n")]);
    // The forge fails once. The run does not wait for it.
    fixture.forge.fail_next(1);
    let watch = CommandLineWatch::start();
    let push = fixture.push_event(&before, &commit, &["src/file"]);
    let (status, receipt) = fixture.deliver("push", "delivery-1", &push);
    assert_eq!(status, 200, "{receipt:#}");
    let id = only_run(&receipt);
    let run = fixture.wait_finished(&id, "succeeded");
    assert_eq!(watch.stop(), Vec::<String>::new());

    // The run used exactly that commit.
    assert_eq!(run["spec"]["context"]["commit"], commit.as_str(), "{run:#}");
    let facts = &run["result"]["variables"];
    assert_eq!(facts["commit"], commit.as_str(), "{run:#}");
    assert_eq!(facts["branch"], "main", "{run:#}");
    let pushed = environment.fetch_digest(&fixture.image, &commit).await;
    assert_eq!(
        run["result"]["images"][0]["digest"].as_str(),
        pushed.as_deref(),
        "{run:#}"
    );
    assert!(pushed.is_some());

    // The forge received statuses, and the last one is the final state.
    let statuses = fixture.forge.wait_for("org/app", &commit, "success");
    let states: Vec<&str> = statuses
        .iter()
        .map(|request| request.body["state"].as_str().unwrap())
        .collect();
    assert_eq!(states.last(), Some(&"success"), "{states:?}");
    assert!(
        states[..states.len() - 1]
            .iter()
            .all(|state| *state == "pending")
    );
    let last = statuses.last().unwrap();
    assert_eq!(last.body["context"], "acrtask/app");
    // The server has no page that a browser could open.
    assert!(last.body.get("target_url").is_none(), "{last:#?}");
    assert!(last.authorization.contains(FORGE_TOKEN), "{last:#?}");

    // The delivery and its run are shown.
    let delivery = fixture.show_delivery(&receipt["delivery"]);
    assert_eq!(delivery["senderId"], "delivery-1");
    let outcome = &delivery["decisions"][0];
    assert_eq!(outcome["action"], "runStarted", "{delivery:#}");
    assert_eq!(outcome["run"], id.as_str());
    let list = fixture.run_ok(&["webhook", "deliveries"]).stdout;
    assert!(list.contains(&format!("run {id}")), "{list}");
    let shown = fixture.run_ok(&["task", "show", "app"]).stdout;
    assert!(shown.contains(&id), "{shown}");

    // A repeated delivery starts nothing. It is recognized by its id, and by its body, because
    // GitHub signs only the body.
    let (status, again) = fixture.deliver("push", "delivery-1", &push);
    assert_eq!((status, &again["runs"]), (200, &json!([])), "{again:#}");
    assert_eq!(again["duplicate"], true, "{again:#}");
    assert_eq!(again["delivery"], receipt["delivery"]);
    let (status, again) = fixture.deliver("push", "delivery-2", &push);
    assert_eq!((status, &again["runs"]), (200, &json!([])), "{again:#}");
    let replayed = fixture.show_delivery(&again["delivery"])["decisions"][0].clone();
    assert_eq!(replayed["action"], "ignored", "{replayed:#}");
    let reason = replayed["reason"].as_str().unwrap();
    let first = receipt["delivery"].as_str().unwrap();
    assert!(reason.contains(first), "{reason}");
    // A forged delivery, and one that was changed on the way.
    let body = fixture
        .push_event(&commit, &before, &["src/file"])
        .to_string();
    let (status, _) = deliver(&fixture.hook_url(), "wrong", "push", "delivery-3", &push).unwrap();
    assert_eq!(status, 401);
    let (status, _) = deliver_signed(
        &fixture.hook_url(),
        "push",
        "delivery-4",
        &body,
        "sha256=00",
    )
    .unwrap();
    assert_eq!(status, 401);
    assert_eq!(fixture.list_runs("app").len(), 1);

    // No output contains a secret.
    let log = fixture
        .run_client(&["runs", "logs", "-o", "json", &id])
        .transcript();
    let output = [log, fixture.server.log()].concat();
    assert!(!output.contains("hunter2"), "{output}");

    let doctor = fixture.run_client(&["doctor", "app"]);
    assert_eq!(doctor.code, Some(0), "{}", doctor.transcript());
    assert!(
        doctor.stdout.contains("has rejected 2 deliveries"),
        "{}",
        doctor.transcript()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn ignored_deliveries_show_their_reason() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let fixture = WebhookFixture::new(&environment);
    fixture.create_task("app", &["--ignore-path", "docs/**"]);
    let before = fixture.resolve_reference("main");
    let commit = fixture
        .repositories
        .commit("app", &[("docs/index.md", "second\n")]);
    let push = fixture.push_event(&before, &commit, &["docs/index.md"]);
    let (_, receipt) = fixture.deliver("push", "delivery-1", &push);
    assert_eq!(receipt["runs"], json!([]), "{receipt:#}");
    let outcome = fixture.show_delivery(&receipt["delivery"])["decisions"][0].clone();
    assert_eq!(outcome["action"], "ignored", "{outcome:#}");
    let reason = outcome["reason"].as_str().unwrap();
    assert!(reason.contains("none of the 1 changed files"), "{reason}");
    let shown = fixture.run_ok(&["task", "show", "app"]).stdout;
    assert!(shown.contains("none of the 1 changed"), "{shown}");

    // The branch is deleted.
    let mut gone = fixture.push_event(&commit, &"0".repeat(40), &[]);
    gone["commits"] = json!([]);
    gone["head_commit"] = Value::Null;
    gone["deleted"] = true.into();
    let (_, receipt) = fixture.deliver("push", "delivery-2", &gone);
    let delivery = fixture.show_delivery(&receipt["delivery"]);
    assert_eq!(receipt["runs"], json!([]), "{receipt:#}");
    let outcome = &delivery["decisions"][0];
    let reason = outcome["reason"].as_str().unwrap();
    assert!(reason.contains("was deleted"), "{delivery:#}");

    // A repository that the webhook does not allow.
    let mut other = push.clone();
    other["repository"] =
        json!({ "full_name": "org/other", "clone_url": "https://git.example.com/org/other.git" });
    let (status, receipt) = fixture.deliver("push", "delivery-3", &other);
    assert!(status < 300, "{receipt:#}");
    assert!(
        receipt["note"]
            .as_str()
            .unwrap()
            .contains("is not allowed to report events of"),
        "{receipt:#}"
    );
    assert!(fixture.list_runs("app").is_empty());

    // After the task includes those files, redelivery evaluates the same delivery again.
    fixture.run_ok(&["task", "update", "app", "--ignore-path", ""]);
    let first = fixture
        .server
        .run_json(&["webhook", "deliveries", "-o", "json"]);
    let first = first["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|item| item["senderId"] == "delivery-1")
        .unwrap()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let again = fixture
        .server
        .run_json(&["webhook", "redeliver", &first, "-o", "json"]);
    assert_eq!(again["redeliveryOf"], first.as_str(), "{again:#}");
    let id = again["decisions"][0]["run"].as_str().unwrap().to_owned();
    fixture.wait_finished(&id, "succeeded");
    assert!(
        environment
            .fetch_digest(&fixture.image, &commit)
            .await
            .is_some()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn fork_pull_request_waits_for_approval_and_closing_cancels_runs() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let fixture = WebhookFixture::new(&environment);
    fixture.create_task("app", &["--pull-request-trigger-enabled", "true"]);
    let theirs = fixture.commit_pull_request(7, &[("src/file", "theirs\n")]);
    let opened = fixture.pull_request_event("opened", 7, "fork/app", &theirs);
    let (_, receipt) = fixture.deliver("pull_request", "delivery-1", &opened);
    let id = only_run(&receipt);
    let run = fixture.server.fetch_run(&id);
    assert_eq!(run["state"], "queued", "{run:#}");
    assert_eq!(run["approval"], "pending", "{run:#}");
    let why = fixture.run_ok(&["runs", "why", &id]).stdout;
    assert!(
        why.contains(&format!("acrtask runs approve {id}")) && why.contains(&theirs),
        "{why}"
    );
    let statuses = fixture.forge.wait_for("org/app", &theirs, "pending");
    let description = statuses[0].body["description"].as_str().unwrap();
    assert!(description.contains("approval"), "{description}");
    // The run waits, although a runner is free.
    thread::sleep(Duration::from_secs(2));
    assert_eq!(fixture.server.fetch_run(&id)["state"], "queued");
    let approved = fixture.run_ok(&["runs", "approve", &id]);
    assert!(
        approved.stderr.contains(&theirs),
        "{}",
        approved.transcript()
    );
    fixture.wait_finished(&id, "succeeded");
    assert!(
        environment
            .fetch_digest(&fixture.image, &theirs)
            .await
            .is_some()
    );
    fixture.forge.wait_for("org/app", &theirs, "success");
    let twice = fixture.run_ok(&["runs", "approve", &id]);
    assert!(
        twice.stderr.contains("is already approved"),
        "{}",
        twice.transcript()
    );

    // A pull request of the own repository starts at once. Closing it cancels its run.
    let slow = task_file(
        &fixture.image,
        "  - id: slow\n    cmd: $Registry/base/busybox:1.36 sleep 300\n",
    );
    let own = fixture.commit_pull_request(8, &[("acr-task.yaml", &slow)]);
    let opened = fixture.pull_request_event("opened", 8, "org/app", &own);
    let (_, receipt) = fixture.deliver("pull_request", "delivery-2", &opened);
    let running = only_run(&receipt);
    fixture
        .server
        .wait_for_run(&running, |run| run["state"] == "running");
    // Closing also cancels a run of a fork that was never approved.
    let never = fixture.commit_pull_request(9, &[("src/file", "never\n")]);
    let opened = fixture.pull_request_event("opened", 9, "fork/app", &never);
    let waiting = only_run(&fixture.deliver("pull_request", "delivery-3", &opened).1);
    let begun = Instant::now();
    for (n, number, from, commit) in [(4, 8, "org/app", &own), (5, 9, "fork/app", &never)] {
        let closed = fixture.pull_request_event("closed", number, from, commit);
        let (_, receipt) = fixture.deliver("pull_request", &format!("delivery-{n}"), &closed);
        assert_eq!(receipt["runs"], json!([]), "{receipt:#}");
    }
    for id in [&running, &waiting] {
        let run = fixture.wait_finished(id, "canceled");
        assert!(
            run["reason"].as_str().unwrap().contains("closed"),
            "{run:#}"
        );
    }
    assert!(begun.elapsed() < LIMIT);
    fixture.forge.wait_for("org/app", &own, "error");
    assert!(
        environment
            .fetch_digest(&fixture.image, &never)
            .await
            .is_none()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn newest_commit_supersedes_older_runs_with_newest_wins() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    check_newest_wins(&environment, WebhookFixture::new(&environment)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn newest_commit_supersedes_older_runs_on_postgresql() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let Some(database) = common::create_postgres_database().await else {
        return;
    };
    check_newest_wins(
        &environment,
        WebhookFixture::with_database(&environment, &database),
    )
    .await;
    common::assert_triggers_accounted(&database).await;
}

async fn check_newest_wins(environment: &TestEnvironment, fixture: WebhookFixture) {
    fixture.create_task("app", &["--newest-wins"]);
    let slow = task_file(
        &fixture.image,
        "  - id: slow\n    cmd: $Registry/base/busybox:1.36 sleep 300\n",
    );
    let start = fixture.resolve_reference("main");
    let first = fixture
        .repositories
        .commit("app", &[("acr-task.yaml", &slow)]);
    let push = fixture.push_event(&start, &first, &["acr-task.yaml"]);
    let older = only_run(&fixture.deliver("push", "delivery-1", &push).1);
    fixture
        .server
        .wait_for_run(&older, |run| run["state"] == "running");
    let quick = task_file(&fixture.image, "");
    let second = fixture
        .repositories
        .commit("app", &[("acr-task.yaml", &quick)]);
    let push = fixture.push_event(&first, &second, &["acr-task.yaml"]);
    let newer = only_run(&fixture.deliver("push", "delivery-2", &push).1);
    let run = fixture.wait_finished(&older, "canceled");
    assert_eq!(run["reason"], format!("superseded by {newer}"), "{run:#}");
    fixture.wait_finished(&newer, "succeeded");
    assert!(
        environment
            .fetch_digest(&fixture.image, &first)
            .await
            .is_none()
    );
    assert!(
        environment
            .fetch_digest(&fixture.image, &second)
            .await
            .is_some()
    );
    fixture.forge.wait_for("org/app", &first, "error");
    fixture.forge.wait_for("org/app", &second, "success");
}
