//! Logs: what is stored of them, and who reads them while they grow.

use std::{sync::Arc, time::Duration};

use acrtask_model::{RunId, RunState};
use acrtask_proto::{MAX_CHUNK, runner::Attempt};
use acrtask_server::{App, Config, logs::read_log, serve::Server};
use futures::TryStreamExt as _;

use crate::{
    place::Place,
    support::{FakeRunner, Line, enqueue, eventually, new_run, on_both, reaches},
};

on_both!(
    chunks_that_come_again_overlap_or_leave_a_gap,
    an_end_before_the_log_is_whole_is_no_end,
    a_log_that_is_not_the_runners_is_no_success,
    a_log_of_two_connections_is_checked,
    a_reader_sees_a_log_grow,
    a_large_log_is_read_from_anywhere,
);

async fn begun(server: &Server) -> (Line, Attempt) {
    let runner = FakeRunner::register(server, "one").await;
    let mut line = runner.connect(server).await;
    enqueue(server.app(), new_run("rone")).await;
    let of = line.lease().await.of.unwrap();
    line.start(&of).await;
    (line, of)
}

async fn stored(app: &Arc<App>, offset: u64) -> Vec<u8> {
    let run = RunId::new("rone").unwrap();
    let parts: Vec<bytes::Bytes> = read_log(app.clone(), run, 1, offset)
        .try_collect()
        .await
        .unwrap();
    parts.concat()
}

async fn chunks_that_come_again_overlap_or_leave_a_gap(place: Place) {
    let server = place.server(Config::default()).await;
    let (mut line, of) = begun(&server).await;
    let log = b"0123456789abcdefghij";
    line.log(&of, 0, &log[..10]).await;
    assert_eq!(line.log_ack(&of).await, 10);
    // Again, whole and in part: that is no news, and would read like a gap.
    line.log(&of, 0, &log[..10]).await;
    line.log(&of, 2, &log[2..5]).await;
    // A gap is told, and nothing is stored behind it.
    line.log(&of, 12, &log[12..15]).await;
    assert_eq!(line.log_ack(&of).await, 10);
    assert_eq!(stored(server.app(), 0).await, &log[..10]);
    // Of what overlaps the rest is stored, and what was sent right behind it too.
    line.log(&of, 8, &log[8..14]).await;
    line.log(&of, 14, &log[14..20]).await;
    let mut acknowledged = 0;
    while acknowledged < 20 {
        let ack = line.log_ack(&of).await;
        if ack < 20 && ack <= acknowledged {
            line.log(&of, ack, &log[usize::try_from(ack).unwrap()..])
                .await;
        }
        acknowledged = ack.max(acknowledged);
    }
    assert_eq!(stored(server.app(), 0).await, log);
    assert_eq!(stored(server.app(), 9).await, &log[9..]);
    assert_eq!(line.finish(&of, RunState::Succeeded, log).await, 20);
    // Of all that was sent, no blob is left that holds no part of the log.
    let run = RunId::new("rone").unwrap();
    let chunks = server
        .app()
        .store
        .log_chunks(&run, 1, 0, 100)
        .await
        .unwrap();
    eventually("only blobs of the log are left", || async {
        let left = files(&place.folder().join("blobs/logs"));
        let known = |file: &String| chunks.iter().any(|chunk| chunk.blob.ends_with(file));
        (left.len() == chunks.len() && left.iter().all(known)).then_some(())
    })
    .await;
}

/// Returns the names of all files below a folder.
fn files(folder: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    found
}

async fn an_end_before_the_log_is_whole_is_no_end(place: Place) {
    let server = place.server(Config::default()).await;
    let app = server.app();
    let (mut line, of) = begun(&server).await;
    line.log(&of, 0, b"half").await;
    let log = b"half and half";
    assert_eq!(line.finish(&of, RunState::Succeeded, log).await, 4);
    let run = RunId::new("rone").unwrap();
    assert_eq!(app.store.run(&run).await.unwrap().state, RunState::Running);
    // Sent at once behind the rest, it is the end.
    line.log(&of, 4, &log[4..]).await;
    assert_eq!(line.finish(&of, RunState::Succeeded, log).await, 13);
    reaches(&app.store, &run, RunState::Succeeded).await;
}

async fn a_log_that_is_not_the_runners_is_no_success(place: Place) {
    let server = place.server(Config::default()).await;
    let (mut line, of) = begun(&server).await;
    line.log(&of, 0, b"damaged").await;
    assert_eq!(line.finish(&of, RunState::Succeeded, b"written").await, 7);
    let run = RunId::new("rone").unwrap();
    let row = server.app().store.run(&run).await.unwrap();
    assert_eq!(row.state, RunState::Error);
    let reason = row.reason.unwrap();
    assert!(
        reason.starts_with("its log is not the one that the runner wrote"),
        "{reason}"
    );
}

async fn a_log_of_two_connections_is_checked(place: Place) {
    let server = place.server(Config::default()).await;
    let runner = FakeRunner::register(&server, "one").await.slots(2);
    let mut line = runner.connect(&server).await;
    let mut of = Vec::new();
    for name in ["rgood", "rbad"] {
        enqueue(server.app(), new_run(name)).await;
        of.push(line.lease().await.of.unwrap());
        let of = of.last().unwrap();
        line.start(of).await;
        line.log(of, 0, b"one ").await;
        line.log_ack(of).await;
    }
    let again = runner.holding(&[&of[0], &of[1]]);
    let mut line = again.connect(&server).await;
    for (of, log) in of.iter().zip([b"one two", b"ohe two"]) {
        line.log(of, 4, b"two").await;
        assert_eq!(line.finish(of, RunState::Succeeded, log).await, 7);
    }
    for (name, state) in [("rgood", RunState::Succeeded), ("rbad", RunState::Error)] {
        let run = RunId::new(name).unwrap();
        let row = server.app().store.run(&run).await.unwrap();
        assert_eq!(row.state, state, "{name}");
    }
}

async fn a_reader_sees_a_log_grow(place: Place) {
    let server = place.server(Config::default()).await;
    let app = server.app().clone();
    let (mut line, of) = begun(&server).await;
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
        line.log(&of, log.len() as u64, text.as_bytes()).await;
        log.extend(text.into_bytes());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    line.finish(&of, RunState::Succeeded, &log).await;
    for seen in readers.join_all().await {
        assert_eq!(seen, log);
    }
    assert_eq!(app.logs.watched(), 0);
}

async fn a_large_log_is_read_from_anywhere(place: Place) {
    let server = place.server(Config::default()).await;
    let (mut line, of) = begun(&server).await;
    let log: Vec<u8> = (0..8 * MAX_CHUNK + 123)
        .map(|n| u8::try_from(n * 7919 % 251).unwrap())
        .collect();
    // All at once: what is under way is bounded by the server.
    for (n, chunk) in log.chunks(MAX_CHUNK).enumerate() {
        line.log(&of, (n * MAX_CHUNK) as u64, chunk).await;
    }
    let length = log.len() as u64;
    assert_eq!(line.finish(&of, RunState::Succeeded, &log).await, length);
    for offset in [
        0,
        1,
        MAX_CHUNK - 1,
        MAX_CHUNK,
        5 * MAX_CHUNK + 17,
        log.len() - 1,
        log.len(),
    ] {
        let seen = stored(server.app(), offset as u64).await;
        assert!(seen == log[offset..], "from {offset}");
    }
}
