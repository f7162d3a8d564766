//! Tests of `why.rs`.

use std::collections::BTreeMap;

use acrtask_api::admin::Runner;
use acrtask_model::RunId;
use acrtask_store::{Blocker, RunGroup};
use serde_json::json;

use super::*;
use crate::api::testing::Server;

fn runner(name: &str, state: RunnerState, busy: u32) -> Runner {
    Runner {
        id: format!("n{name}"),
        name: name.into(),
        state,
        pool: "default".into(),
        labels: BTreeMap::from([("disk".to_owned(), "ssd".to_owned())]),
        platforms: vec!["linux/amd64".into()],
        slots: 2,
        tasks: None,
        busy,
        features: BTreeMap::new(),
        free_disk: 1 << 30,
        version: "0.1.0".into(),
        last_seen_at: None,
    }
}

async fn queued(server: &Server, queue: serde_json::Value, platforms: serde_json::Value) -> RunRow {
    let body = json!({
        "spec": {"work": {"do": "cmd", "line": "alpine true"}, "platforms": platforms},
        "queue": queue,
    });
    let run: acrtask_api::run::Run = server
        .post("/runs", body)
        .await
        .json(axum::http::StatusCode::CREATED);
    server.app.store.run(&run.id).await.unwrap()
}

fn shown(run: &RunRow, position: &Position, runners: Vec<Runner>) -> String {
    let seen: Vec<Seen> = runners.into_iter().map(Seen::new).collect();
    let waiting = explain(run, position, &seen);
    let mut text = format!("{:?}: {}\n", waiting.ahead, waiting.summary);
    for verdict in waiting.runners {
        let would = if verdict.would_do {
            "would do"
        } else {
            "would not"
        };
        text += &format!("  {} {would}: {}\n", verdict.runner, verdict.why);
    }
    text
}

#[tokio::test]
async fn a_waiting_run_says_why() {
    use RunnerState::{Draining, Offline, Online};
    let server = Server::start().await;
    let plain = queued(&server, json!({}), json!([])).await;
    let picky = queued(
        &server,
        json!({"pool": "big", "labels": {"gpu": "yes"}}),
        json!(["linux/arm64"]),
    )
    .await;
    let first = Position::default();
    let third = Position {
        ahead: 2,
        behind: None,
    };
    let mut arm = runner("arm", Online, 0);
    arm.pool = "big".into();
    arm.platforms = vec!["linux/arm64".into()];
    let mut granted = runner("granted", Online, 0);
    granted.tasks = Some("prod/*".into());
    let mut held = plain.clone();
    held.group = Some(RunGroup::Named("deploy".into()));
    held.held = true;
    let behind = Position {
        ahead: 0,
        behind: Some(Blocker {
            run: RunId::new("rother").unwrap(),
            task: None,
            count: 1,
        }),
    };
    let mut text = String::new();
    for (what, run, position, runners) in [
        ("no runner at all", &plain, &first, vec![]),
        ("a free one", &plain, &first, vec![runner("a", Online, 0)]),
        (
            "only busy ones",
            &plain,
            &first,
            vec![runner("a", Online, 2), runner("b", Online, 3)],
        ),
        (
            "others before it",
            &plain,
            &third,
            vec![runner("a", Online, 2)],
        ),
        (
            "not connected",
            &plain,
            &first,
            vec![runner("a", Offline, 0), runner("b", Offline, 0)],
        ),
        ("draining", &plain, &first, vec![runner("a", Draining, 0)]),
        (
            "none that would do",
            &picky,
            &first,
            vec![runner("a", Online, 0), arm],
        ),
        ("one for other tasks", &plain, &first, vec![granted]),
        ("its group", &held, &behind, vec![runner("a", Online, 0)]),
    ] {
        text += &format!("{what}\n{}\n", shown(run, position, runners));
    }
    insta::assert_snapshot!(text);
}

#[tokio::test]
async fn a_run_that_does_not_wait_says_so() {
    let server = Server::start().await;
    let runner = server.runner("one").await;
    let run = server.start_run().await;
    let path = format!("/runs/{}/why", run.id);
    let ask = async || -> Waiting { server.get(&path).await.json(axum::http::StatusCode::OK) };
    let waiting = ask().await;
    assert_eq!(waiting.ahead, Some(0));
    assert_eq!(waiting.runners.len(), 1);
    let attempt = server.lease(&run.id, &runner).await;
    let running = ask().await;
    assert_eq!(running.ahead, None);
    assert_eq!(running.summary, "it does not wait: one carries it out");
    server
        .finish(
            &run.id,
            attempt,
            &runner,
            RunState::Failed,
            "",
            acrtask_api::run::RunResult::default(),
        )
        .await;
    assert_eq!(ask().await.summary, "it is over: failed, a step failed");
}
