//! The question before each push.

use std::time::Duration;

use acrtask_proto::runner::{Abandon, to_runner::Message};
use tokio::sync::oneshot;

use super::{
    room::Room,
    script::{Act, Running},
};

fn push(running: &Running) -> oneshot::Receiver<Result<(), String>> {
    let (answer, pushed) = oneshot::channel();
    running.act(Act::Push(answer));
    pushed
}

#[tokio::test]
async fn a_push_is_asked_for_each_time() {
    let mut room = Room::new().await;
    let (id, running) = room.begin("r1", 1).await;
    push(&running).await.unwrap().unwrap();
    push(&running).await.unwrap().unwrap();
    room.plane.with(|state| {
        assert_eq!(state.fences.len(), 2);
        assert_eq!(state.fences[0].of, Some(id.proto()));
        assert_ne!(state.fences[0].nonce, state.fences[1].nonce);
        state.grants = false;
    });
    let refused = push(&running).await.unwrap().unwrap_err();
    assert!(refused.contains("another runner"), "{refused}");
}

#[tokio::test]
async fn a_push_waits_for_the_control_plane_to_come_back() {
    let mut room = Room::new().await;
    let (_, running) = room.begin("r1", 1).await;
    room.plane.with(|state| state.fence_mute = true);
    let mut pushed = push(&running);
    room.plane
        .until("it is asked", |state| {
            (!state.fences.is_empty()).then_some(())
        })
        .await;
    room.plane.cut();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(pushed.try_recv().is_err(), "nobody has answered");
    room.plane.with(|state| state.fence_mute = false);
    pushed.await.unwrap().unwrap();
    room.plane.with(|state| assert!(state.fences.len() >= 2));
}

#[tokio::test]
async fn an_attempt_that_was_lost_does_not_push() {
    let mut room = Room::new().await;
    let (id, running) = room.begin("r1", 1).await;
    room.plane.with(|state| state.fence_mute = true);
    let pushed = push(&running);
    room.plane
        .until("it is asked", |state| {
            (!state.fences.is_empty()).then_some(())
        })
        .await;
    room.plane.take_away(&id);
    room.plane.tell(Message::Abandon(Abandon {
        of: Some(id.proto()),
        reason: "given to b".into(),
    }));
    pushed.await.unwrap().unwrap_err();
    assert!(running.cancel.is_cancelled());
    room.no_logs().await;
    room.plane.with(|state| {
        assert!(state.finished.is_empty() && state.declined.is_empty());
    });
}
