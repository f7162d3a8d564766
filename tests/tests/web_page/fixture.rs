//! A server with tasks, runs, images, a cascade and deliveries, so that each page has content.

use std::path::Path;

use acrtask_tests::{TestEnvironment, new_run_id, project::create_folder, service::TestServer};
use serde_json::{Value, json};

/// Text that attacks a page: markup, a script, a changed writing direction and a terminal escape.
pub(crate) const HOSTILE: &str =
    "\"'><script>alert(1)</script><img src=x onerror=alert(1)>\u{202e}";

/// Task whose steps run until files are created.
pub(crate) const LIVE_TASK: &str = "version: v1.1.0
steps:
  - {id: prepare, cmd: BUSYBOX echo prepared}
  - {id: count, cmd: BUSYBOX sh -c 'for i in $(seq 1 600); do echo number-$i; done; sleep 6; echo counted-all'}
  - {id: finish, cmd: BUSYBOX echo finished-well}
";

/// Returns a server with its own runner.
pub(crate) fn start_server(environment: &TestEnvironment) -> TestServer {
    TestServer::start(environment, &[])
}

/// Creates a task with this task file.
pub(crate) async fn create_task(
    environment: &TestEnvironment,
    server: &TestServer,
    name: &str,
    text: &str,
) {
    let text = text.replace("BUSYBOX", &environment.busybox());
    let task = json!({"name": name, "description": "A task of the tests", "text": text});
    send_task(server, &task).await;
}

async fn send_task(server: &TestServer, task: &Value) {
    let sent = reqwest::Client::new()
        .post(format!("{}/api/v1/tasks", server.url))
        .bearer_auth(&server.token)
        .json(task)
        .send()
        .await
        .unwrap();
    let status = sent.status();
    assert_eq!(status, 201, "{}", sent.text().await.unwrap());
}

/// Starts a run of a task and returns its id.
pub(crate) fn start_task(server: &TestServer, name: &str) -> String {
    let run = server.run_json(&["task", "run", name, "--no-wait", "-o", "json"]);
    run["id"].as_str().unwrap().to_owned()
}

/// Waits until a run is finished, and returns its state.
pub(crate) fn finish_run(server: &TestServer, id: &str) -> Value {
    let is_final = |run: &Value| {
        let state = run["state"].as_str().unwrap();
        !["queued", "leased", "running"].contains(&state)
    };
    server.wait_for_run(id, is_final)
}

/// Ids and names of the content of [`fill_server`].
#[derive(Debug)]
pub(crate) struct Content {
    /// Run that failed with a hostile log.
    pub(crate) failed: String,
    /// Run of parallel steps that succeeded.
    pub(crate) succeeded: String,
    /// Run that waits for a runner with a label.
    pub(crate) waiting: String,
    /// Name of a base that changed.
    pub(crate) base: String,
    /// Name of a stale image.
    pub(crate) image: String,
}

impl Content {
    /// Returns a path of each page.
    pub(crate) fn paths(&self) -> Vec<(&'static str, String)> {
        let escaped = |name: &str| name.replace(':', "%3A");
        vec![
            ("overview", "/".to_owned()),
            ("runs", "/runs".into()),
            (
                "runs-filtered",
                "/runs?state=failed%2Ctimed_out%2Cerror&task=shop%2F*".into(),
            ),
            ("run-failed", format!("/runs/{}", self.failed)),
            ("run-succeeded", format!("/runs/{}", self.succeeded)),
            ("run-waiting", format!("/runs/{}", self.waiting)),
            ("log", format!("/runs/{}/log", self.succeeded)),
            (
                "log-failure",
                format!("/runs/{}/log?at=test:11#test%3AL11", self.failed),
            ),
            ("tasks", "/tasks".into()),
            ("task", "/tasks/shop/web".into()),
            ("images", "/images".into()),
            ("image", format!("/images/{}", escaped(&self.image))),
            ("bases", "/bases".into()),
            ("base", format!("/bases/{}", escaped(&self.base))),
            ("cascades", "/cascades".into()),
            ("cascade", "/cascades/1".into()),
            ("deliveries", "/deliveries".into()),
            ("runners", "/runners".into()),
            ("session", "/me".into()),
            ("not-found", "/runs/none".into()),
        ]
    }
}

/// Builds `image` from the busybox of the tests with this note, and pushes it without the server.
fn push_base(environment: &TestEnvironment, image: &str, note: &str) {
    let dockerfile = format!("FROM {}\nRUN echo {note} > /note\n", environment.busybox());
    let files = create_folder(&[("Dockerfile", &dockerfile)]);
    let args = ["build", "-t", image, "--local", "."];
    let outcome = environment.start(files.path(), &args).wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
}

fn run_folder(server: &TestServer, task: &str, folder: &Path) -> String {
    let args = [
        "task",
        "run",
        task,
        "--context",
        ".",
        "--file",
        "acr-task.yaml",
        "--no-wait",
        "-o",
        "json",
    ];
    let outcome = server.start_client(folder, &args).wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    let run: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let id = run["id"].as_str().unwrap().to_owned();
    let run = finish_run(server, &id);
    assert_eq!(run["state"], "succeeded", "{run:#}");
    id
}

fn apply_cascade_settings(server: &TestServer) {
    let settings = "settleSecs: 0\nrules:\n  - {tasks: shop/, mode: approval}\n";
    let files = create_folder(&[("settings.yaml", settings)]);
    let args = ["cascade", "settings", "set", "-f", "settings.yaml"];
    let outcome = server.start_client(files.path(), &args).wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
}

/// Fills a server: images on a base that changes afterwards, a cascade that waits for an approval,
/// failed and waiting runs.
pub(crate) async fn fill_server(environment: &TestEnvironment, server: &TestServer) -> Content {
    apply_cascade_settings(server);
    let id = new_run_id();
    let name = |image: &str| format!("{}/web/{id}/{image}:1", environment.registry);
    let (base, platform, web) = (name("base"), name("platform"), name("web"));
    push_base(environment, &base, "first");
    let busybox = environment.busybox();
    let files = |image: &str, from: &str| {
        let dockerfile = format!("FROM {from}\nRUN cat /note > /seen\n");
        let task = format!(
            "version: v1.1.0
steps:
  - {{id: image, build: -t {image} .}}
  - {{id: lint, cmd: {busybox} echo lint-is-clean, when: [-]}}
  - {{id: unit, cmd: '{image} sh -c \"echo running; cat /seen\"', when: [image]}}
  - {{id: smoke, cmd: '{image} echo ok', when: [image]}}
  - {{id: out, push: [{image}], when: [lint, unit, smoke]}}
"
        );
        create_folder(&[("acr-task.yaml", &task), ("Dockerfile", &dockerfile)])
    };
    for task in ["shop/platform", "shop/web"] {
        let text = "version: v1.1.0\nsteps:\n  - cmd: BUSYBOX true\n";
        create_task(environment, server, task, text).await;
    }
    run_folder(server, "shop/platform", files(&platform, &base).path());
    let succeeded = run_folder(server, "shop/web", files(&web, &platform).path());
    let hostile = HOSTILE.replace(['\'', '"'], "");
    let failing = format!(
        "version: v1.1.0
steps:
  - {{id: compile, cmd: BUSYBOX echo compiled}}
  - id: test
    cmd: |
      BUSYBOX sh -c 'for i in 1 2 3 4 5 6 7 8; do echo \"test $i ... ok\"; done; printf \"\\033[31mtest 9 ... FAILED\\033[0m\\n\"; echo \"{hostile}\"; exit 3'
  - {{id: publish, cmd: BUSYBOX echo never}}
"
    );
    create_task(environment, server, "shop/checks", &failing).await;
    let mut failed = String::new();
    for _ in 0..3 {
        failed = start_task(server, "shop/checks");
        let run = finish_run(server, &failed);
        assert_eq!(run["state"], "failed", "{run:#}");
    }
    let text = format!("version: v1.1.0\nsteps:\n  - cmd: {busybox} true\n");
    let gpu = json!({"name": "shop/gpu", "text": text, "queue": {"labels": {"gpu": "yes"}}});
    send_task(server, &gpu).await;
    let waiting = start_task(server, "shop/gpu");
    // The base changes, and a cascade waits for its approval.
    server.run_ok(&["base", "check"]);
    push_base(environment, &base, "second");
    server.run_ok(&["base", "check", &base]);
    let begun = std::time::Instant::now();
    while server.run_json(&["cascade", "list", "-o", "json"])["items"]
        .as_array()
        .is_none_or(Vec::is_empty)
    {
        assert!(begun.elapsed().as_secs() < 60, "no cascade was created");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    Content {
        failed,
        succeeded,
        waiting,
        base,
        image: platform,
    }
}
