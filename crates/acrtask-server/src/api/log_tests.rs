//! Tests of `log.rs`.

use acrtask_api::run::RunResult;
use acrtask_model::RunState;
use axum::http::StatusCode;

use super::*;
use crate::api::testing::TestServer;

#[tokio::test]
async fn log_is_downloaded_as_events_or_as_text() {
    let server = TestServer::start().await;
    let runner = server.register_runner("one").await;
    let run = server.start_run().await.id;
    let path = format!("/runs/{run}/log");
    assert_eq!(server.get(&path).await.text(), "");
    let number = server.lease_run(&run, &runner).await;
    let line = |text: &str| {
        format!(
            "{{\"time\":\"2026-01-02T03:04:05Z\",\"run\":\"{run}\",\"event\":\"output\",\"step\":\"build\",\"stream\":\"stdout\",\"text\":\"{text}\"}}\n"
        )
    };
    let log: String = (0..50).map(|at| line(&format!("line {at}"))).collect();
    let (one, other) = log.split_at(1000);
    server.append_log(&run, number, &runner, 0, one).await;
    server.append_log(&run, number, &runner, 1000, other).await;
    server
        .finish_run(
            &run,
            number,
            &runner,
            RunState::Succeeded,
            &log,
            RunResult::default(),
        )
        .await;
    let json = server.get(&format!("{path}?format=json")).await;
    assert_eq!(json.headers[header::CONTENT_TYPE], "application/x-ndjson");
    assert_eq!(json.text(), log);
    let text = server.get(&format!("{path}?format=text&attempt=1")).await;
    assert_eq!(
        text.headers[header::CONTENT_TYPE],
        "text/plain; charset=utf-8"
    );
    let expected: String = (0..50).map(|at| format!("build | line {at}\n")).collect();
    assert_eq!(text.text(), expected);
    server
        .get(&format!("{path}?attempt=2"))
        .await
        .problem(StatusCode::NOT_FOUND);
    server
        .get(&format!("{path}?format=pdf"))
        .await
        .problem(StatusCode::BAD_REQUEST);
}
