//! Tests of broken streams, lost messages, silence and revoked leases.

use std::{sync::Arc, time::Duration};

use acrtask_model::{EventKind, RunState, Secret};
use acrtask_proto::runner::Lease;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tonic::{Status, transport::Endpoint};

use super::{
    fake_server::{FakeServer, KEY},
    script::Action,
    test_runner::{Setup, TestRunner, id, lease},
};
use crate::{
    AgentError,
    context::{self, ExpectedContext, Source},
};

#[tokio::test]
async fn long_log_arrives_over_several_streams() {
    let mut runner = TestRunner::new().await;
    let (id, running) = runner.start_run("r1", 1).await;
    let server = runner.server.clone();
    let cutting = tokio::spawn(async move {
        for _ in 0..6 {
            let before = server.with(|state| {
                state.cut_after = Some(3);
                state.hellos.len()
            });
            server
                .until("the runner reconnects", |state| {
                    (state.hellos.len() > before).then_some(())
                })
                .await;
        }
    });
    // Far more than may be in flight.
    for _ in 0..10 {
        running.send(Action::Print(10_000));
    }
    running.send(Action::End(RunState::Succeeded));
    let (finished, events) = runner.server.wait_finished(&id).await;
    assert!(finished.log_length > 16 << 20);
    let output = events
        .iter()
        .filter(|event| matches!(event.kind, EventKind::Output { .. }));
    assert_eq!(output.count(), 100_000);
    runner.server.with(|state| {
        assert!(state.largest_chunk <= acrtask_proto::MAX_CHUNK);
        let leases = &state.hellos[1].attempts;
        assert_eq!(leases.as_slice(), [id.to_proto()]);
    });
    runner.wait_without_logs().await;
    cutting.abort();
}

#[tokio::test]
async fn lost_chunks_are_sent_again() {
    let mut runner = TestRunner::new().await;
    let (id, running) = runner.start_run("r1", 1).await;
    runner.server.with(|state| state.lose = 2);
    for _ in 0..5 {
        running.send(Action::Print(3000));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    running.send(Action::End(RunState::Succeeded));
    runner.server.wait_finished(&id).await;
}

#[tokio::test]
async fn missing_end_of_a_log_is_sent_again() {
    let mut runner = TestRunner::new().await;
    let (id, running) = runner.start_run("r1", 1).await;
    runner.server.with(|state| state.forgets_end = true);
    running.send(Action::Print(100));
    running.send(Action::End(RunState::Succeeded));
    let (_, events) = runner.server.wait_finished(&id).await;
    assert_eq!(events.len(), 102);
    runner.wait_without_logs().await;
}

#[tokio::test]
async fn build_continues_during_an_outage() {
    let mut runner = TestRunner::new().await;
    let (id, running) = runner.start_run("r1", 1).await;
    let away = Status::unavailable("restarting");
    runner.server.with(|state| state.refuse = Some(away));
    runner.server.cut_stream();
    running.send(Action::Print(50));
    running.send(Action::End(RunState::Failed));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!running.cancel.is_cancelled());
    assert_eq!(runner.logs(), ["r1.1"]);
    runner.server.with(|state| state.refuse = None);
    let (finished, events) = runner.server.wait_finished(&id).await;
    assert_eq!(finished.state, "failed");
    assert_eq!(events.len(), 52);
    runner.wait_without_logs().await;
}

#[tokio::test]
async fn lost_attempt_is_stopped_without_a_report() {
    let mut runner = TestRunner::new().await;
    let (lost, gone) = runner.start_run("r1", 1).await;
    let (kept, goes_on) = runner.start_run("r2", 1).await;
    runner.server.revoke_lease(&lost);
    runner.server.cut_stream();
    gone.cancel.cancelled().await;
    goes_on.send(Action::End(RunState::Succeeded));
    runner.server.wait_finished(&kept).await;
    runner.wait_without_logs().await;
    assert!(!goes_on.cancel.is_cancelled());
    runner.server.with(|state| {
        assert!(!state.finished.contains_key(&lost));
        assert!(state.declined.is_empty());
    });
}

#[tokio::test]
async fn lease_is_lost_without_renewal() {
    let mut runner = TestRunner::new().await;
    let (lost, gone) = runner.start_run("r1", 1).await;
    let (_, goes_on) = runner.start_run("r2", 1).await;
    runner.server.revoke_lease(&lost);
    gone.cancel.cancelled().await;
    runner
        .server
        .with(|state| assert_eq!(state.hellos.len(), 1, "on the same stream"));
    assert!(!goes_on.cancel.is_cancelled());
}

#[tokio::test]
async fn silence_reopens_the_stream_and_keeps_the_lease() {
    let mut runner = TestRunner::new().await;
    let (id, running) = runner.start_run("r1", 1).await;
    runner.server.with(|state| state.mute = true);
    runner
        .server
        .until("the runner opens another stream", |state| {
            (state.hellos.len() > 1).then_some(())
        })
        .await;
    runner.server.with(|state| state.mute = false);
    assert!(!running.cancel.is_cancelled());
    running.send(Action::End(RunState::Succeeded));
    runner.server.wait_finished(&id).await;
}

#[tokio::test]
async fn later_attempt_starts_while_the_earlier_one_stops() {
    let mut runner = TestRunner::with_setup(Setup {
        slots: 1,
        slow_stop: true,
        ..Setup::default()
    })
    .await;
    let (first, stopping) = runner.start_run("r1", 1).await;
    runner.server.revoke_lease(&first);
    let (second, running) = runner.start_run("r1", 2).await;
    assert!(stopping.cancel.is_cancelled());
    running.send(Action::End(RunState::Succeeded));
    let (finished, _) = runner.server.wait_finished(&second).await;
    assert_eq!(finished.state, "succeeded");
    stopping.may_end.notify_one();
    runner.wait_without_logs().await;
    runner
        .server
        .with(|state| assert!(!state.finished.contains_key(&first)));
}

#[tokio::test]
async fn repeated_lease_starts_one_run() {
    let mut runner = TestRunner::new().await;
    let (id, running) = runner.start_run("r1", 1).await;
    runner.server.lease(&id, lease());
    runner
        .server
        .until("the runner confirms the lease again", |state| {
            (state.started.len() + state.accepted.len() > 1).then_some(())
        })
        .await;
    running.send(Action::End(RunState::Succeeded));
    runner.server.wait_finished(&id).await;
    assert!(runner.begins.try_recv().is_err());
}

#[tokio::test]
async fn removed_runner_stops_all_runs_and_reports_the_reason() {
    let mut runner = TestRunner::new().await;
    let (_, running) = runner.start_run("r1", 1).await;
    let removed = Status::unauthenticated("it was removed");
    runner.server.with(|state| state.refuse = Some(removed));
    runner.server.cut_stream();
    let exit = runner.wait_exit().await;
    assert!(running.cancel.is_cancelled());
    match exit {
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

/// Returns a tar archive with one file, and a lease of it.
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
async fn broken_download_continues_where_it_stopped() {
    let mut runner = TestRunner::new().await;
    let (tar, wanted) = upload();
    let run = id("r1", 1);
    runner.server.with(|state| {
        state.context = tar;
        state.context_breaks_at = Some(100_000);
    });
    runner.server.lease(&run, wanted);
    let running = runner.next_run().await;
    assert_eq!(
        running.job.upload.as_deref(),
        Some(&["file".to_owned()][..])
    );
    runner
        .server
        .with(|state| assert_eq!(state.context_offsets, [0, 100_000]));
    running.send(Action::End(RunState::Succeeded));
    runner.server.wait_finished(&run).await;
    // No file remains.
    let work = runner.folder.path().join("state/work");
    assert_eq!(std::fs::read_dir(work).unwrap().count(), 0);
}

#[tokio::test]
async fn stalled_download_is_requested_again() {
    let server = FakeServer::start().await;
    let (tar, wanted) = upload();
    server.with(|state| {
        state.context = tar;
        state.context_breaks_at = Some(100_000);
        state.context_stalls = true;
    });
    let endpoint = Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
    let channel = Some(endpoint.connect().await.unwrap());
    let folder = tempfile::tempdir().unwrap();
    let source = Source {
        channel: watch::channel(channel).1,
        key: Arc::new(Secret::new(KEY)),
        work: folder.path().to_owned(),
        silence: Duration::from_millis(300),
    };
    let wanted = ExpectedContext {
        size: wanted.context_size,
        digest: wanted.context_digest,
    };
    let run = id("r1", 1);
    let fetching = context::fetch(&source, &run, &wanted);
    let fetched = tokio::time::timeout(Duration::from_secs(20), fetching).await;
    let files = fetched.expect("the download never completes").unwrap();
    assert!(files.root.join("file").exists());
    server.with(|state| assert_eq!(state.context_offsets, [0, 100_000]));
}

#[tokio::test]
async fn damaged_download_is_not_used() {
    let runner = TestRunner::new().await;
    let (mut tar, wanted) = upload();
    tar[1000] ^= 1;
    runner.server.with(|state| state.context = tar);
    let run = id("r1", 1);
    runner.server.lease(&run, wanted);
    let (finished, _) = runner.server.wait_finished(&run).await;
    assert_eq!(finished.state, "error");
    assert!(
        finished.reason.contains("arrived damaged"),
        "{}",
        finished.reason
    );
}
