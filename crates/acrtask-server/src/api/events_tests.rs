//! Tests of `events.rs`.

use acrtask_api::run::RunResult;
use acrtask_store::Report;
use axum::http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use proptest::prelude::*;
use tower::ServiceExt as _;

use super::*;
use crate::api::testing::{TestResponse, TestServer};

/// An event of the stream: kind, id and data.
type Sent = (String, String, String);

fn parse_events(text: &str) -> Vec<Sent> {
    text.split("\n\n")
        .filter(|block| !block.is_empty() && !block.starts_with(':'))
        .map(|block| {
            let mut sent = ("message".to_owned(), String::new(), String::new());
            for line in block.lines() {
                let (field, value) = line.split_once(": ").expect("a field");
                match field {
                    "event" => sent.0 = value.into(),
                    "id" => sent.1 = value.into(),
                    "data" => sent.2 = value.into(),
                    other => panic!("{other}"),
                }
            }
            sent
        })
        .collect()
}

fn message(id: usize, data: &str) -> Sent {
    ("message".into(), id.to_string(), data.into())
}

fn attempt(number: u32) -> Sent {
    (
        "attempt".into(),
        "0".into(),
        format!("{{\"attempt\":{number}}}"),
    )
}

fn end(data: &str) -> Sent {
    ("end".into(), String::new(), data.into())
}

async fn read_events(server: &TestServer, path: &str) -> Vec<Sent> {
    let response: TestResponse = server.get(path).await;
    assert_eq!(response.status, StatusCode::OK, "{}", response.text());
    assert_eq!(response.headers[header::CONTENT_TYPE], "text/event-stream");
    parse_events(&response.text())
}

const SUCCEEDED: &str = r#"{"state":"succeeded","reason":null}"#;

#[tokio::test]
async fn finished_run_is_read_from_any_offset() {
    let server = TestServer::start().await;
    let runner = server.register_runner("one").await;
    let run = server.start_run().await.id;
    let number = server.lease_run(&run, &runner).await;
    // One line spans two chunks.
    server
        .append_log(&run, number, &runner, 0, "{\"a\":1}\n{\"b\"")
        .await;
    server
        .append_log(&run, number, &runner, 12, ":2}\n{\"c\":3}\n")
        .await;
    let log = "{\"a\":1}\n{\"b\":2}\n{\"c\":3}\n";
    server
        .finish_run(
            &run,
            number,
            &runner,
            RunState::Succeeded,
            log,
            RunResult::default(),
        )
        .await;
    let path = format!("/runs/{run}/events");
    let (a, b, c) = (
        message(8, "{\"a\":1}"),
        message(16, "{\"b\":2}"),
        message(24, "{\"c\":3}"),
    );
    let all = vec![attempt(1), a.clone(), b.clone(), c.clone(), end(SUCCEEDED)];
    assert_eq!(read_events(&server, &path).await, all);
    assert_eq!(
        read_events(&server, &format!("{path}?attempt=1")).await,
        all
    );
    let rest = vec![b, c.clone(), end(SUCCEEDED)];
    assert_eq!(
        read_events(&server, &format!("{path}?offset=8")).await,
        rest
    );
    let mut request = TestServer::request(Method::GET, &path, Some(&server.admin), None);
    request
        .headers_mut()
        .insert("last-event-id", "16".parse().unwrap());
    assert_eq!(
        parse_events(&server.send(request).await.text()),
        [c, end(SUCCEEDED)]
    );
    assert_eq!(
        read_events(&server, &format!("{path}?offset=24")).await,
        [end(SUCCEEDED)]
    );
    for wrong in ["offset=x", "offset=-1", "from=1"] {
        let response = server.get(&format!("{path}?{wrong}")).await;
        response.problem(StatusCode::BAD_REQUEST);
    }
}

#[tokio::test]
async fn run_canceled_before_its_first_attempt_only_ends() {
    let server = TestServer::start().await;
    let run = server.start_run().await.id;
    server
        .post(&format!("/runs/{run}/cancel"), serde_json::json!({}))
        .await;
    assert_eq!(
        read_events(&server, &format!("/runs/{run}/events")).await,
        [end(r#"{"state":"canceled","reason":"canceled by admin"}"#)]
    );
}

/// A reader of an open event stream.
struct EventStream {
    body: Body,
    text: String,
}

impl EventStream {
    async fn open(server: &TestServer, path: &str) -> Self {
        let request = TestServer::request(Method::GET, path, Some(&server.admin), None);
        let response = server.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        Self {
            body: response.into_body(),
            text: String::new(),
        }
    }

    async fn read_until(&mut self, count: usize) -> Vec<Sent> {
        let wait = async {
            loop {
                let sent = parse_events(&self.text);
                if sent.len() >= count {
                    return sent;
                }
                let frame = self.body.frame().await.expect("another frame").unwrap();
                let data = frame.into_data().unwrap();
                self.text.push_str(std::str::from_utf8(&data).unwrap());
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait)
            .await
            .expect("in time")
    }
}

#[tokio::test]
async fn reader_follows_a_run_across_attempts() {
    let server = TestServer::start().await;
    let runner = server.register_runner("one").await;
    let run = server.start_run().await.id;
    let mut live = EventStream::open(&server, &format!("/runs/{run}/events")).await;
    let first = server.lease_run(&run, &runner).await;
    server
        .append_log(&run, first, &runner, 0, "{\"a\":1}\n{\"cut off")
        .await;
    assert_eq!(
        live.read_until(2).await,
        [attempt(1), message(8, "{\"a\":1}")]
    );
    // The runner is lost, and a second attempt starts.
    let later = server.app.clock.now_ms() + 60_000;
    server.app.clock.set(later);
    assert_eq!(
        server
            .app
            .store
            .expire_leases(later, 10)
            .await
            .unwrap()
            .len(),
        1
    );
    let second = server.lease_run(&run, &runner).await;
    assert_eq!(second, 2);
    server
        .append_log(&run, second, &runner, 0, "{\"b\":2}\n")
        .await;
    let sent = live.read_until(4).await;
    assert_eq!(sent[2..], [attempt(2), message(8, "{\"b\":2}")]);
    server
        .finish_run(
            &run,
            second,
            &runner,
            RunState::Succeeded,
            "{\"b\":2}\n",
            RunResult::default(),
        )
        .await;
    assert_eq!(live.read_until(5).await[4], end(SUCCEEDED));
    assert!(live.body.frame().await.is_none(), "the stream has ended");
    let path = format!("/runs/{run}/events");
    // Reconnect at an offset in the first attempt.
    assert_eq!(
        read_events(&server, &format!("{path}?attempt=1&offset=8")).await,
        [attempt(2), message(8, "{\"b\":2}"), end(SUCCEEDED)]
    );
    // Reconnect at an offset beyond the log of this attempt.
    assert_eq!(
        read_events(&server, &format!("{path}?offset=1000")).await,
        [attempt(2), message(8, "{\"b\":2}"), end(SUCCEEDED)]
    );
    assert_eq!(server.app.logs.watched_runs(), 0);
}

#[tokio::test]
async fn many_readers_receive_a_line_at_once() {
    let server = TestServer::start().await;
    let runner = server.register_runner("one").await;
    let run = server.start_run().await.id;
    let number = server.lease_run(&run, &runner).await;
    let mut readers = Vec::new();
    for _ in 0..50 {
        readers.push(EventStream::open(&server, &format!("/runs/{run}/events")).await);
    }
    for reader in &mut readers {
        reader.read_until(1).await;
    }
    server
        .append_log(&run, number, &runner, 0, "{\"a\":1}\n")
        .await;
    let begin = std::time::Instant::now();
    for reader in &mut readers {
        assert_eq!(reader.read_until(2).await[1], message(8, "{\"a\":1}"));
    }
    assert!(
        begin.elapsed() < Duration::from_secs(10),
        "{:?}",
        begin.elapsed()
    );
}

#[tokio::test]
async fn streams_end_when_the_server_closes() {
    let server = TestServer::start().await;
    let run = server.start_run().await.id;
    let mut live = EventStream::open(&server, &format!("/runs/{run}/events")).await;
    server.app.closing.cancel();
    let frame = tokio::time::timeout(Duration::from_secs(5), live.body.frame())
        .await
        .unwrap();
    assert!(
        frame.is_none(),
        "no `end` event, so that the reader reconnects"
    );
}

#[tokio::test]
async fn idle_stream_is_kept_alive() {
    let server = TestServer::start().await;
    let run = server.start_run().await.id;
    let mut follower = Follower::new(server.app.clone(), run, None, 0);
    follower.keep_alive = Duration::from_millis(20);
    for _ in 0..3 {
        let sent = follower.next_bytes().await.unwrap().unwrap();
        assert_eq!(sent, ": alive\n\n");
    }
}

#[tokio::test]
async fn stream_of_a_log_with_a_missing_chunk_fails() {
    let server = TestServer::start().await;
    let runner = server.register_runner("one").await;
    let run = server.start_run().await.id;
    let number = server.lease_run(&run, &runner).await;
    let gone = Report::LogChunk {
        offset: 0,
        length: 8,
        blob: "logs/gone".into(),
    };
    server.report(&run, number, &runner, gone).await;
    let mut live = EventStream::open(&server, &format!("/runs/{run}/events")).await;
    live.read_until(1).await;
    assert!(live.body.frame().await.unwrap().is_err());
}

proptest! {
    /// Events and offsets do not depend on the chunks of a log.
    #[test]
    fn events_do_not_depend_on_chunks(lines in proptest::collection::vec("[a-z{}]{0,12}", 0..12), cuts in proptest::collection::vec(0..200_usize, 0..8)) {
        let log: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let mut whole = Vec::new();
        let end = write_events(&mut Vec::new(), 0, log.as_bytes(), &mut whole);
        prop_assert_eq!(end, log.len() as u64);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(log.len())).collect();
        cuts.extend([0, log.len()]);
        cuts.sort_unstable();
        let (mut partial, mut offset, mut out) = (Vec::new(), 0, Vec::new());
        for pair in cuts.windows(2) {
            offset = write_events(&mut partial, offset, &log.as_bytes()[pair[0]..pair[1]], &mut out);
        }
        prop_assert_eq!(out, whole);
        prop_assert_eq!(offset, log.len() as u64);
    }
}
