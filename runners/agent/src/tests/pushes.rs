//! Tests of the fence before each push.

use std::time::Duration;

use acrtask_proto::runner::{Abandon, to_runner::Message};
use tokio::sync::oneshot;

use super::{
    script::{Action, ScriptedRun},
    test_runner::TestRunner,
};

fn push(running: &ScriptedRun) -> oneshot::Receiver<Result<(), String>> {
    let (answer, pushed) = oneshot::channel();
    running.send(Action::Push(answer));
    pushed
}

#[tokio::test]
async fn each_push_asks_the_fence() {
    let mut runner = TestRunner::new().await;
    let (id, running) = runner.start_run("r1", 1).await;
    push(&running).await.unwrap().unwrap();
    push(&running).await.unwrap().unwrap();
    runner.server.with(|state| {
        assert_eq!(state.fences.len(), 2);
        assert_eq!(state.fences[0].of, Some(id.to_proto()));
        assert_ne!(state.fences[0].nonce, state.fences[1].nonce);
        state.grants = false;
    });
    let refused = push(&running).await.unwrap().unwrap_err();
    assert!(refused.contains("another runner"), "{refused}");
}

#[tokio::test]
async fn push_waits_during_an_outage() {
    let mut runner = TestRunner::new().await;
    let (_, running) = runner.start_run("r1", 1).await;
    runner.server.with(|state| state.fence_mute = true);
    let mut pushed = push(&running);
    runner
        .server
        .until("the fence is asked", |state| {
            (!state.fences.is_empty()).then_some(())
        })
        .await;
    runner.server.cut_stream();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(pushed.try_recv().is_err(), "the push still waits");
    runner.server.with(|state| state.fence_mute = false);
    pushed.await.unwrap().unwrap();
    runner.server.with(|state| assert!(state.fences.len() >= 2));
}

#[tokio::test]
async fn lost_attempt_does_not_push() {
    let mut runner = TestRunner::new().await;
    let (id, running) = runner.start_run("r1", 1).await;
    runner.server.with(|state| state.fence_mute = true);
    let pushed = push(&running);
    runner
        .server
        .until("the fence is asked", |state| {
            (!state.fences.is_empty()).then_some(())
        })
        .await;
    runner.server.revoke_lease(&id);
    runner.server.send(Message::Abandon(Abandon {
        of: Some(id.to_proto()),
        reason: "given to b".into(),
    }));
    pushed.await.unwrap().unwrap_err();
    assert!(running.cancel.is_cancelled());
    runner.wait_without_logs().await;
    runner.server.with(|state| {
        assert!(state.finished.is_empty() && state.declined.is_empty());
    });
}
