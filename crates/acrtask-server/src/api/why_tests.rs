//! Tests of `why.rs`.

use std::collections::BTreeMap;

use acrtask_api::admin::Runner;
use acrtask_model::RunId;
use acrtask_store::{Blocker, RunGroup};
use serde_json::json;

use super::*;
use crate::api::testing::TestServer;

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

async fn enqueue(
    server: &TestServer,
    queue: serde_json::Value,
    platforms: serde_json::Value,
) -> RunRow {
    let body = json!({
        "spec": {"source": {"type": "cmd", "line": "alpine true"}, "platforms": platforms},
        "queue": queue,
    });
    let run: acrtask_api::run::Run = server
        .post("/runs", body)
        .await
        .json(axum::http::StatusCode::CREATED);
    server.app.store.run(&run.id).await.unwrap()
}

fn format_reason(run: &RunRow, position: &Position, runners: Vec<Runner>) -> String {
    let seen: Vec<RunnerView> = runners.into_iter().map(RunnerView::new).collect();
    let waiting = explain(run, position, &seen);
    let mut text = format!("{:?}: {}\n", waiting.ahead, waiting.summary);
    for verdict in waiting.runners {
        let would = if verdict.matches {
            "would do"
        } else {
            "would not"
        };
        text += &format!("  {} {would}: {}\n", verdict.runner, verdict.reason);
    }
    text
}

#[tokio::test]
async fn waiting_run_has_a_reason() {
    use RunnerState::{Draining, Offline, Online};
    let server = TestServer::start().await;
    let plain = enqueue(&server, json!({}), json!([])).await;
    let picky = enqueue(
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
    let mut blocked = plain.clone();
    blocked.group = Some(RunGroup::Named("deploy".into()));
    blocked.blocked = true;
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
        ("its group", &blocked, &behind, vec![runner("a", Online, 0)]),
    ] {
        text += &format!("{what}\n{}\n", format_reason(run, position, runners));
    }
    insta::assert_snapshot!(text);
}

#[tokio::test]
async fn run_that_does_not_wait_has_its_state_as_reason() {
    let server = TestServer::start().await;
    let runner = server.register_runner("one").await;
    let run = server.start_run().await;
    let path = format!("/runs/{}/why", run.id);
    let get_reason =
        async || -> Waiting { server.get(&path).await.json(axum::http::StatusCode::OK) };
    let waiting = get_reason().await;
    assert_eq!(waiting.ahead, Some(0));
    assert_eq!(waiting.runners.len(), 1);
    let attempt = server.lease_run(&run.id, &runner).await;
    let running = get_reason().await;
    assert_eq!(running.ahead, None);
    assert_eq!(running.summary, "it does not wait: one executes it");
    server
        .finish_run(
            &run.id,
            attempt,
            &runner,
            RunState::Failed,
            "",
            acrtask_api::run::RunResult::default(),
        )
        .await;
    assert_eq!(
        get_reason().await.summary,
        "it is finished: failed, a step failed"
    );
}
