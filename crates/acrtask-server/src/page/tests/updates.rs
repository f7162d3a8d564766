//! Updates of open pages, and the steps of a live run.

use acrtask_api::run::{Run, RunResult};
use acrtask_model::{Event, RunState};
use acrtask_model::{
    EventKind, StepId, StepState,
    events::{StepSummary, Stream, Vertex},
};
use axum::http::{StatusCode, header};
use serde_json::Value;

use super::{PageServer, target_of};

fn event(run: &Run, second: u32, kind: EventKind) -> String {
    let event = Event {
        time: format!("2026-01-01T00:00:{second:02}Z").parse().unwrap(),
        run: run.id.clone(),
        kind,
    };
    format!("{}\n", serde_json::to_string(&event).unwrap())
}

fn step(id: &str) -> StepId {
    StepId::new(id).unwrap()
}

/// Log of a run with a finished build and a running test.
fn log_of_live_run(run: &Run) -> String {
    let summary = |id: &str, line: &str, after: &[&str]| StepSummary {
        id: step(id),
        r#type: "cmd".into(),
        line: line.into(),
        after: after.iter().map(|id| step(id)).collect(),
    };
    let vertex = |name: &str, cached| EventKind::Vertex {
        step: step("build"),
        vertex: Vertex {
            vertex: format!("sha256:{name}"),
            name: name.into(),
            started: Some("2026-01-01T00:00:01Z".parse().unwrap()),
            completed: Some("2026-01-01T00:00:02Z".parse().unwrap()),
            inputs: Vec::new(),
            cached,
            error: String::new(),
        },
    };
    let output = |id: &str, text: &str| EventKind::Output {
        step: step(id),
        stream: Stream::Stdout,
        vertex: None,
        text: text.into(),
    };
    let events = [
        EventKind::RunStarted {
            steps: vec![
                summary("build", "-t app .", &[]),
                summary("lint", "app lint <all>", &[]),
                summary("test", "app test", &["build", "lint"]),
            ],
            engine: "engine 1".into(),
            builder: "builder 1".into(),
        },
        EventKind::StepStarted {
            step: step("build"),
            attempt: 1,
        },
        vertex("a", true),
        vertex("b", false),
        output("build", "building"),
        EventKind::StepFinished {
            step: step("build"),
            state: StepState::Succeeded,
            elapsed_ms: 4000,
            log_tail: Vec::new(),
            excerpt: None,
        },
        EventKind::StepStarted {
            step: step("test"),
            attempt: 1,
        },
        output("test", "\x1b[31mtest 1 failed\x1b[0m"),
    ];
    let events = events.into_iter().zip(1..);
    events
        .map(|(kind, second)| event(run, second, kind))
        .collect()
}

async fn start() -> (PageServer, Run, u32, String) {
    let server = PageServer::start().await;
    server.server.register_runner("mine").await;
    server.create_task("mine").await;
    let run = server.start_task("mine").await;
    let attempt = server.server.lease_run(&run.id, "nmine").await;
    let log = log_of_live_run(&run);
    server
        .server
        .append_log(&run.id, attempt, "nmine", 0, &log)
        .await;
    (server, run, attempt, log)
}

#[tokio::test]
async fn live_run_shows_its_steps_and_newest_lines() {
    let (server, run, ..) = start().await;
    let cookie = server.sign_in_as_admin().await;
    let page = server
        .expect_page(&format!("/runs/{}", run.id), &cookie)
        .await;
    let live = format!("data-live=\"/runs/{}/live\"", run.id);
    for text in [
        live.as_str(),
        "step test, 1 of 3 steps finished.",
        "<td class=\"nowrap\">1 of 2</td>",
        "<td class=\"nowrap\">4.0 s</td>",
        "<bdi>app lint &lt;all&gt;</bdi>",
        "<svg class=\"graph\"",
        "Newest lines of the log",
        "<span class=\"fg1\">test 1 failed</span>",
        "action=\"/runs/",
        "icon-running.svg",
    ] {
        assert!(page.contains(text), "{text}: {page}");
    }
    assert!(!page.contains("/rerun"), "{page}");
}

#[tokio::test]
async fn stream_of_a_finished_run_has_one_update_and_ends() {
    let (server, run, attempt, log) = start().await;
    let failed = RunState::Failed;
    server
        .server
        .finish_run(
            &run.id,
            attempt,
            "nmine",
            failed,
            &log,
            RunResult::default(),
        )
        .await;
    let cookie = server.sign_in_as_admin().await;
    let path = format!("/runs/{}/live?stream=1", run.id);
    let response = server.get(&path, Some(&cookie)).await;
    assert_eq!(response.status, StatusCode::OK);
    assert_eq!(response.headers[header::CONTENT_TYPE], "text/event-stream");
    let text = response.text();
    let data: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .collect();
    assert_eq!(data.len(), 1, "{text}");
    let update: Value = serde_json::from_str(data[0]).unwrap();
    assert_eq!(update["done"], true);
    let title = update["title"].as_str().unwrap();
    assert!(title.starts_with("failed run "), "{title}");
    let ids: Vec<&str> = update["fragments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|fragment| fragment["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["run-head", "run-actions", "run-steps", "run-outcome"]);
    // The log of the stream begins after the lines that the page has.
    let path = format!("/runs/{}/log/live?stream=1&after=3", run.id);
    let text = server.get(&path, Some(&cookie)).await.text();
    let data = text.lines().find_map(|line| line.strip_prefix("data: "));
    let update: Value = serde_json::from_str(data.unwrap()).unwrap();
    assert_eq!(
        (&update["last"], &update["done"]),
        (&8.into(), &true.into())
    );
    let lines = update["lines"].as_array().unwrap();
    assert_eq!(lines.len(), 5, "{update:#}");
    assert_eq!(lines[4]["label"], "test 2");
    assert_eq!(lines[4]["pieces"][0][0], "fg1");
    assert_eq!(lines[4]["pieces"][0][1], "test 1 failed");
}

#[tokio::test]
async fn failed_run_links_to_the_last_line_of_its_failed_step() {
    let (server, run, attempt, log) = start().await;
    let finished = EventKind::StepFinished {
        step: step("test"),
        state: StepState::Failed {
            reason: "exit code 3".into(),
            exit_code: Some(3),
            ignored: false,
        },
        elapsed_ms: 900,
        log_tail: Vec::new(),
        excerpt: None,
    };
    let end = event(&run, 20, finished);
    let offset = log.len() as u64;
    let store = &server.server;
    store
        .append_log(&run.id, attempt, "nmine", offset, &end)
        .await;
    let failed = RunState::Failed;
    let log = log + &end;
    store
        .finish_run(
            &run.id,
            attempt,
            "nmine",
            failed,
            &log,
            RunResult::default(),
        )
        .await;
    let cookie = server.sign_in_as_admin().await;
    let path = format!("/runs/{}", run.id);
    let page = server.expect_page(&path, &cookie).await;
    let link = "/log?attempt=1&#38;at=test:3#test%3AL3\">Open the log at the failure</a>";
    assert!(page.contains(link), "{page}");
    assert!(
        page.contains("<h2><bdi>Step test failed</bdi></h2>"),
        "{page}"
    );
    let log = server
        .expect_page(&format!("{path}/log?attempt=1&at=test:3"), &cookie)
        .await;
    assert!(log.contains("id=\"test:L3\""), "{log}");
    assert!(log.contains(">Failure</a>"), "{log}");
}

#[tokio::test]
async fn updates_do_not_keep_a_session_from_ending() {
    let server = PageServer::start().await;
    let clock = &server.server.app.clock;
    let cookie = server.sign_in_as_admin().await;
    let begin = crate::api::testing::NOW;
    for hour in 1..12 {
        clock.set(begin + hour * 3_600_000);
        server.expect_page("/live", &cookie).await;
    }
    clock.set(begin + crate::auth::IDLE_MS);
    target_of(&server.get("/live", Some(&cookie)).await);
}
