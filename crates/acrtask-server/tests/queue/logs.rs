//! Logs: stored chunks, verification, and readers that follow a growing log.

use std::{sync::Arc, time::Duration};

use acrtask_model::{RunId, RunState};
use acrtask_proto::{MAX_CHUNK, runner::Attempt};
use acrtask_server::{App, Config, logs::read_log, serve::Server};
use futures::TryStreamExt as _;

use crate::{
    support::{FakeRunner, RunnerStream, enqueue, new_run, on_both, wait_for_state, wait_until},
    test_db::TestDb,
};

on_both!(
    repeated_overlapping_and_gapped_chunks_are_stored_once,
    run_does_not_finish_before_its_log_is_complete,
    log_with_another_digest_ends_the_run_with_an_error,
    log_sent_over_two_connections_is_verified,
    readers_follow_a_growing_log,
    large_log_is_readable_from_any_offset,
);

async fn start_run(server: &Server) -> (RunnerStream, Attempt) {
    let runner = FakeRunner::register(server, "one").await;
    let mut stream = runner.connect(server).await;
    enqueue(server.app(), new_run("rone")).await;
    let attempt = stream.receive_lease().await.of.unwrap();
    stream.send_started(&attempt).await;
    (stream, attempt)
}

async fn read_stored_log(app: &Arc<App>, offset: u64) -> Vec<u8> {
    let run = RunId::new("rone").unwrap();
    let parts: Vec<bytes::Bytes> = read_log(app.clone(), run, 1, offset)
        .try_collect()
        .await
        .unwrap();
    parts.concat()
}

async fn repeated_overlapping_and_gapped_chunks_are_stored_once(db: TestDb) {
    let server = db.start_server(Config::default()).await;
    let (mut stream, attempt) = start_run(&server).await;
    let log = b"0123456789abcdefghij";
    stream.send_log(&attempt, 0, &log[..10]).await;
    assert_eq!(stream.receive_log_ack(&attempt).await, 10);
    // Repeats the chunk and a part of it. The server sends no acknowledgement, because that would
    // look like a gap.
    stream.send_log(&attempt, 0, &log[..10]).await;
    stream.send_log(&attempt, 2, &log[2..5]).await;
    // The server acknowledges the offset before a gap and stores nothing behind it.
    stream.send_log(&attempt, 12, &log[12..15]).await;
    assert_eq!(stream.receive_log_ack(&attempt).await, 10);
    assert_eq!(read_stored_log(server.app(), 0).await, &log[..10]);
    // The server stores the new part of an overlapping chunk, and the chunk that follows it.
    stream.send_log(&attempt, 8, &log[8..14]).await;
    stream.send_log(&attempt, 14, &log[14..20]).await;
    let mut acknowledged = 0;
    while acknowledged < 20 {
        let ack = stream.receive_log_ack(&attempt).await;
        if ack < 20 && ack <= acknowledged {
            stream
                .send_log(&attempt, ack, &log[usize::try_from(ack).unwrap()..])
                .await;
        }
        acknowledged = ack.max(acknowledged);
    }
    assert_eq!(read_stored_log(server.app(), 0).await, log);
    assert_eq!(read_stored_log(server.app(), 9).await, &log[9..]);
    assert_eq!(
        stream
            .finish_attempt(&attempt, RunState::Succeeded, log)
            .await,
        20
    );
    // No blob is left that does not belong to the log.
    let run = RunId::new("rone").unwrap();
    let chunks = server
        .app()
        .store
        .log_chunks(&run, 1, 0, 100)
        .await
        .unwrap();
    wait_until("only blobs of the log are left", || async {
        let left = list_files(&db.folder().join("blobs/logs"));
        let is_log_blob = |file: &String| chunks.iter().any(|chunk| chunk.blob.ends_with(file));
        (left.len() == chunks.len() && left.iter().all(is_log_blob)).then_some(())
    })
    .await;
}

/// Returns the names of all files below a folder.
fn list_files(folder: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            found.extend(list_files(&entry.path()));
        } else {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    found
}

async fn run_does_not_finish_before_its_log_is_complete(db: TestDb) {
    let server = db.start_server(Config::default()).await;
    let app = server.app();
    let (mut stream, attempt) = start_run(&server).await;
    stream.send_log(&attempt, 0, b"half").await;
    let log = b"half and half";
    assert_eq!(
        stream
            .finish_attempt(&attempt, RunState::Succeeded, log)
            .await,
        4
    );
    let run = RunId::new("rone").unwrap();
    assert_eq!(app.store.run(&run).await.unwrap().state, RunState::Running);
    // A finish report directly after the rest of the log ends the run.
    stream.send_log(&attempt, 4, &log[4..]).await;
    assert_eq!(
        stream
            .finish_attempt(&attempt, RunState::Succeeded, log)
            .await,
        13
    );
    wait_for_state(&app.store, &run, RunState::Succeeded).await;
}

async fn log_with_another_digest_ends_the_run_with_an_error(db: TestDb) {
    let server = db.start_server(Config::default()).await;
    let (mut stream, attempt) = start_run(&server).await;
    stream.send_log(&attempt, 0, b"damaged").await;
    assert_eq!(
        stream
            .finish_attempt(&attempt, RunState::Succeeded, b"written")
            .await,
        7
    );
    let run = RunId::new("rone").unwrap();
    let row = server.app().store.run(&run).await.unwrap();
    assert_eq!(row.state, RunState::Error);
    let reason = row.reason.unwrap();
    assert!(
        reason.starts_with("the stored log is not the log of the runner"),
        "{reason}"
    );
}

async fn log_sent_over_two_connections_is_verified(db: TestDb) {
    let server = db.start_server(Config::default()).await;
    let runner = FakeRunner::register(&server, "one").await.with_slots(2);
    let mut stream = runner.connect(&server).await;
    let mut attempts = Vec::new();
    for name in ["rgood", "rbad"] {
        enqueue(server.app(), new_run(name)).await;
        attempts.push(stream.receive_lease().await.of.unwrap());
        let attempt = attempts.last().unwrap();
        stream.send_started(attempt).await;
        stream.send_log(attempt, 0, b"one ").await;
        stream.receive_log_ack(attempt).await;
    }
    let runner = runner.with_active(&[&attempts[0], &attempts[1]]);
    let mut stream = runner.connect(&server).await;
    for (attempt, log) in attempts.iter().zip([b"one two", b"ohe two"]) {
        stream.send_log(attempt, 4, b"two").await;
        assert_eq!(
            stream
                .finish_attempt(attempt, RunState::Succeeded, log)
                .await,
            7
        );
    }
    for (name, state) in [("rgood", RunState::Succeeded), ("rbad", RunState::Error)] {
        let run = RunId::new(name).unwrap();
        let row = server.app().store.run(&run).await.unwrap();
        assert_eq!(row.state, state, "{name}");
    }
}

async fn readers_follow_a_growing_log(db: TestDb) {
    let server = db.start_server(Config::default()).await;
    let app = server.app().clone();
    let (mut stream, attempt) = start_run(&server).await;
    let run = RunId::new("rone").unwrap();
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let (app, run) = (app.clone(), run.clone());
        readers.spawn(async move {
            let mut changes = app.logs.subscribe(&run);
            let mut seen = Vec::new();
            loop {
                let state = app.store.log_state(&run).await.unwrap();
                let parts = read_log(app.clone(), run.clone(), 1, seen.len() as u64);
                let parts: Vec<bytes::Bytes> = parts.try_collect().await.unwrap();
                seen.extend(parts.concat());
                if state.state.is_final() && state.length == seen.len() as u64 {
                    return seen;
                }
                changes.changed().await;
            }
        });
    }
    let mut log = Vec::new();
    for n in 0..50 {
        let text = format!("line {n}\n");
        stream
            .send_log(&attempt, log.len() as u64, text.as_bytes())
            .await;
        log.extend(text.into_bytes());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stream
        .finish_attempt(&attempt, RunState::Succeeded, &log)
        .await;
    for seen in readers.join_all().await {
        assert_eq!(seen, log);
    }
    assert_eq!(app.logs.watched_runs(), 0);
}

async fn large_log_is_readable_from_any_offset(db: TestDb) {
    let server = db.start_server(Config::default()).await;
    let (mut stream, attempt) = start_run(&server).await;
    let log: Vec<u8> = (0..8 * MAX_CHUNK + 123)
        .map(|n| u8::try_from(n * 7919 % 251).unwrap())
        .collect();
    // Sends all chunks at once. The server limits how many it processes concurrently.
    for (n, chunk) in log.chunks(MAX_CHUNK).enumerate() {
        stream
            .send_log(&attempt, (n * MAX_CHUNK) as u64, chunk)
            .await;
    }
    let length = log.len() as u64;
    assert_eq!(
        stream
            .finish_attempt(&attempt, RunState::Succeeded, &log)
            .await,
        length
    );
    for offset in [
        0,
        1,
        MAX_CHUNK - 1,
        MAX_CHUNK,
        5 * MAX_CHUNK + 17,
        log.len() - 1,
        log.len(),
    ] {
        let seen = read_stored_log(server.app(), offset as u64).await;
        assert!(seen == log[offset..], "from {offset}");
    }
}
