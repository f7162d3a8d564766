//! Broken streams, lost messages, silence, and attempts that were given to others meanwhile.

use std::{sync::Arc, time::Duration};

use acrtask_model::{EventKind, RunState, Secret};
use acrtask_proto::runner::Lease;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tonic::{Status, transport::Endpoint};

use super::{
    plane::{KEY, Plane},
    room::{Room, Setup, id, lease},
    script::Act,
};
use crate::{
    AgentError,
    context::{self, Source, Wanted},
};

#[tokio::test]
async fn a_long_log_arrives_whole_over_many_streams() {
    let mut room = Room::new().await;
    let (id, running) = room.begin("r1", 1).await;
    let plane = room.plane.clone();
    let cutting = tokio::spawn(async move {
        for _ in 0..6 {
            let before = plane.with(|state| {
                state.cut_after = Some(3);
                state.hellos.len()
            });
            plane
                .until("it connects again", |state| {
                    (state.hellos.len() > before).then_some(())
                })
                .await;
        }
    });
    // Far more than may be under way.
    for _ in 0..10 {
        running.act(Act::Print(10_000));
    }
    running.act(Act::End(RunState::Succeeded));
    let (finished, events) = room.plane.finished(&id).await;
    assert!(finished.log_length > 16 << 20);
    let output = events
        .iter()
        .filter(|event| matches!(event.kind, EventKind::Output { .. }));
    assert_eq!(output.count(), 100_000);
    room.plane.with(|state| {
        assert!(state.largest_chunk <= acrtask_proto::MAX_CHUNK);
        let held = &state.hellos[1].held;
        assert_eq!(held.as_slice(), [id.proto()]);
    });
    room.no_logs().await;
    cutting.abort();
}

#[tokio::test]
async fn what_is_lost_on_the_way_is_sent_again() {
    let mut room = Room::new().await;
    let (id, running) = room.begin("r1", 1).await;
    room.plane.with(|state| state.lose = 2);
    for _ in 0..5 {
        running.act(Act::Print(3000));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    running.act(Act::End(RunState::Succeeded));
    room.plane.finished(&id).await;
}

#[tokio::test]
async fn a_control_plane_that_lacks_the_end_gets_it_again() {
    let mut room = Room::new().await;
    let (id, running) = room.begin("r1", 1).await;
    room.plane.with(|state| state.forgets_end = true);
    running.act(Act::Print(100));
    running.act(Act::End(RunState::Succeeded));
    let (_, events) = room.plane.finished(&id).await;
    assert_eq!(events.len(), 102);
    room.no_logs().await;
}

#[tokio::test]
async fn a_build_goes_on_while_the_control_plane_is_away() {
    let mut room = Room::new().await;
    let (id, running) = room.begin("r1", 1).await;
    let away = Status::unavailable("restarting");
    room.plane.with(|state| state.refuse = Some(away));
    room.plane.cut();
    running.act(Act::Print(50));
    running.act(Act::End(RunState::Failed));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!running.cancel.is_cancelled());
    assert_eq!(room.logs(), ["r1.1"]);
    room.plane.with(|state| state.refuse = None);
    let (finished, events) = room.plane.finished(&id).await;
    assert_eq!(finished.state, "failed");
    assert_eq!(events.len(), 52);
    room.no_logs().await;
}

#[tokio::test]
async fn what_was_given_to_others_meanwhile_is_stopped_and_nothing_is_said() {
    let mut room = Room::new().await;
    let (lost, gone) = room.begin("r1", 1).await;
    let (kept, goes_on) = room.begin("r2", 1).await;
    room.plane.take_away(&lost);
    room.plane.cut();
    gone.cancel.cancelled().await;
    goes_on.act(Act::End(RunState::Succeeded));
    room.plane.finished(&kept).await;
    room.no_logs().await;
    assert!(!goes_on.cancel.is_cancelled());
    room.plane.with(|state| {
        assert!(!state.finished.contains_key(&lost));
        assert!(state.declined.is_empty());
    });
}

#[tokio::test]
async fn a_lease_that_is_not_renewed_is_lost() {
    let mut room = Room::new().await;
    let (lost, gone) = room.begin("r1", 1).await;
    let (_, goes_on) = room.begin("r2", 1).await;
    room.plane.take_away(&lost);
    gone.cancel.cancelled().await;
    room.plane
        .with(|state| assert_eq!(state.hellos.len(), 1, "on the same stream"));
    assert!(!goes_on.cancel.is_cancelled());
}

#[tokio::test]
async fn silence_is_a_dead_stream_and_no_lost_lease() {
    let mut room = Room::new().await;
    let (id, running) = room.begin("r1", 1).await;
    room.plane.with(|state| state.mute = true);
    room.plane
        .until("it opens another stream", |state| {
            (state.hellos.len() > 1).then_some(())
        })
        .await;
    room.plane.with(|state| state.mute = false);
    assert!(!running.cancel.is_cancelled());
    running.act(Act::End(RunState::Succeeded));
    room.plane.finished(&id).await;
}

#[tokio::test]
async fn a_later_attempt_begins_beside_the_earlier_one_that_is_being_stopped() {
    let mut room = Room::with(Setup {
        slots: 1,
        slow_stop: true,
        ..Setup::default()
    })
    .await;
    let (first, stopping) = room.begin("r1", 1).await;
    room.plane.take_away(&first);
    let (second, running) = room.begin("r1", 2).await;
    assert!(stopping.cancel.is_cancelled());
    running.act(Act::End(RunState::Succeeded));
    let (finished, _) = room.plane.finished(&second).await;
    assert_eq!(finished.state, "succeeded");
    stopping.let_go.notify_one();
    room.no_logs().await;
    room.plane
        .with(|state| assert!(!state.finished.contains_key(&first)));
}

#[tokio::test]
async fn a_lease_that_is_said_twice_is_one_run() {
    let mut room = Room::new().await;
    let (id, running) = room.begin("r1", 1).await;
    room.plane.lease(&id, lease());
    room.plane
        .until("it says again that it has it", |state| {
            (state.started.len() + state.accepted.len() > 1).then_some(())
        })
        .await;
    running.act(Act::End(RunState::Succeeded));
    room.plane.finished(&id).await;
    assert!(room.begins.try_recv().is_err());
}

#[tokio::test]
async fn a_runner_that_was_removed_stops_everything_and_says_why() {
    let mut room = Room::new().await;
    let (_, running) = room.begin("r1", 1).await;
    let removed = Status::unauthenticated("it was removed");
    room.plane.with(|state| state.refuse = Some(removed));
    room.plane.cut();
    let left = room.left().await;
    assert!(running.cancel.is_cancelled());
    match left {
        Err(error @ AgentError::KeyRefused { .. }) => {
            let text = error.to_string();
            assert!(
                text.contains("it was removed") && text.contains("register again"),
                "{text}"
            );
        }
        other => panic!("{other:?}"),
    }
}

/// A tar with one file.
fn upload() -> (Vec<u8>, Lease) {
    let data = vec![b'x'; 300_000];
    let mut header = [0u8; 512];
    header[..4].copy_from_slice(b"file");
    header[100..108].copy_from_slice(b"0000644\0");
    header[124..136].copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
    header[156] = b'0';
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = header.to_vec();
    tar.extend(&data);
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    let digest: String = Sha256::digest(&tar)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let lease = Lease {
        context_size: tar.len() as u64,
        context_digest: format!("sha256:{digest}"),
        ..lease()
    };
    (tar, lease)
}

#[tokio::test]
async fn an_upload_is_fetched_on_from_where_it_broke() {
    let mut room = Room::new().await;
    let (tar, wanted) = upload();
    let run = id("r1", 1);
    room.plane.with(|state| {
        state.context = tar;
        state.context_breaks_at = Some(100_000);
    });
    room.plane.lease(&run, wanted);
    let running = room.begun().await;
    assert_eq!(
        running.job.upload.as_deref(),
        Some(&["file".to_owned()][..])
    );
    room.plane
        .with(|state| assert_eq!(state.context_offsets, [0, 100_000]));
    running.act(Act::End(RunState::Succeeded));
    room.plane.finished(&run).await;
    // Nothing of it stays.
    let work = room.folder.path().join("state/work");
    assert_eq!(std::fs::read_dir(work).unwrap().count(), 0);
}

#[tokio::test]
async fn an_upload_that_stops_coming_is_asked_for_anew() {
    let plane = Plane::start().await;
    let (tar, wanted) = upload();
    plane.with(|state| {
        state.context = tar;
        state.context_breaks_at = Some(100_000);
        state.context_stalls = true;
    });
    let endpoint = Endpoint::from_shared(format!("http://{}", plane.address)).unwrap();
    let channel = Some(endpoint.connect().await.unwrap());
    let folder = tempfile::tempdir().unwrap();
    let source = Source {
        channel: watch::channel(channel).1,
        key: Arc::new(Secret::new(KEY)),
        work: folder.path().to_owned(),
        silence: Duration::from_millis(300),
    };
    let wanted = Wanted {
        size: wanted.context_size,
        digest: wanted.context_digest,
    };
    let run = id("r1", 1);
    let fetching = context::fetch(&source, &run, &wanted);
    let fetched = tokio::time::timeout(Duration::from_secs(20), fetching).await;
    let files = fetched.expect("it waits for ever").unwrap();
    assert!(files.root.join("file").exists());
    plane.with(|state| assert_eq!(state.context_offsets, [0, 100_000]));
}

#[tokio::test]
async fn an_upload_that_came_broken_is_not_used() {
    let room = Room::new().await;
    let (mut tar, wanted) = upload();
    tar[1000] ^= 1;
    room.plane.with(|state| state.context = tar);
    let run = id("r1", 1);
    room.plane.lease(&run, wanted);
    let (finished, _) = room.plane.finished(&run).await;
    assert_eq!(finished.state, "error");
    assert!(
        finished.reason.contains("came broken"),
        "{}",
        finished.reason
    );
}
