//! Tests of the client against mock servers and broken connections.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use acrtask_model::{Digest, RunId};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use wiremock::{
    Mock, MockServer, Request, Respond, ResponseTemplate,
    matchers::{header, method, path, query_param},
};

use super::{
    events::{EventStream, StreamItem},
    upload::PackedFile,
    *,
};
use crate::error::CliError;

const QUICK: Retry = Retry {
    total: Duration::from_secs(5),
    first: Duration::from_millis(1),
};

fn client(url: &str) -> Client {
    Client::new(&Connection {
        url: server_url(url).unwrap(),
        token: Some(Secret::new("t0k3n")),
        ca: None,
        allow_plaintext: false,
    })
    .unwrap()
    .retrying(QUICK)
}

fn problem(code: &str, message: &str) -> serde_json::Value {
    json!({ "code": code, "message": message, "help": "do this" })
}

#[test]
fn server_addresses_are_normalized_and_plaintext_is_rejected() {
    for (text, url) in [
        ("ci.example.com", "https://ci.example.com/"),
        ("https://ci.example.com:443/", "https://ci.example.com/"),
        ("http://127.0.0.1:7070/api/v1", "http://127.0.0.1:7070/"),
        (
            "https://example.com/acrtask/",
            "https://example.com/acrtask",
        ),
    ] {
        assert_eq!(server_url(text).unwrap().as_str(), url, "{text}");
    }
    for bad in [
        "",
        "ftp://x",
        "https://me:hunter2@x",
        "https://x?y",
        "https://",
    ] {
        let error = server_url(bad).unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
    let far = |allow_plaintext| {
        Client::new(&Connection {
            url: server_url("http://ci.example.com").unwrap(),
            token: None,
            ca: None,
            allow_plaintext,
        })
    };
    assert!(matches!(far(false), Err(ConnectionError::Plaintext(_))));
    assert!(far(true).is_ok());
}

/// The name contains characters that need escaping in a path.
#[tokio::test]
async fn name_with_slashes_is_one_path_segment() {
    let server = MockServer::start().await;
    Mock::given(path("/below/api/v1/tasks/team%2Fapp%3F%20.."))
        .and(header("authorization", "Bearer t0k3n"))
        .respond_with(ResponseTemplate::new(200).set_body_json(json!(1)))
        .mount(&server)
        .await;
    let client = client(&format!("{}/below/", server.uri()));
    let got: u32 = client.get(&["tasks", "team/app? .."], &[]).await.unwrap();
    assert_eq!(got, 1);
}

#[tokio::test]
async fn errors_have_message_help_and_exit_code() {
    let server = MockServer::start().await;
    for (at, status, body) in [
        (
            "unknown",
            401,
            problem("unauthorized", "the token is not known"),
        ),
        (
            "forbidden",
            403,
            problem("forbidden", "the token may not `write`"),
        ),
        (
            "missing",
            404,
            problem("not-found", "the run x does not exist"),
        ),
        ("broken", 500, problem("internal", "something broke")),
        ("odd", 418, json!("a teapot")),
    ] {
        Mock::given(path(format!("/api/v1/{at}")))
            .respond_with(ResponseTemplate::new(status).set_body_json(body))
            .mount(&server)
            .await;
    }
    let client = client(&server.uri());
    let mut text = String::new();
    for at in ["unknown", "forbidden", "missing", "broken", "odd"] {
        let error = client.get::<()>(&[at], &[]).await.unwrap_err();
        let shown = CliError::from(error);
        text += &format!(
            "{at}: exit {}\n{}",
            shown.exit().code(),
            shown.render(crate::render::style::Style::PLAIN)
        );
    }
    let text = text.replace(&server.uri(), "http://SERVER");
    insta::assert_snapshot!(text);
}

/// Following a redirect would send the token to another server.
#[tokio::test]
async fn redirects_are_not_followed() {
    let server = MockServer::start().await;
    let elsewhere = MockServer::start().await;
    Mock::given(method("GET"))
        .respond_with(
            ResponseTemplate::new(302).insert_header("location", elsewhere.uri().as_str()),
        )
        .mount(&server)
        .await;
    let refused = client(&server.uri()).get::<()>(&["me"], &[]).await;
    assert!(matches!(refused, Err(ApiError::UnexpectedResponse { .. })));
    assert!(elsewhere.received_requests().await.unwrap().is_empty());
}

/// Responder that returns each response in turn, and repeats the last one.
struct InTurn(Vec<ResponseTemplate>, AtomicUsize);

impl Respond for InTurn {
    fn respond(&self, _: &Request) -> ResponseTemplate {
        let at = self.1.fetch_add(1, Ordering::SeqCst);
        self.0[at.min(self.0.len() - 1)].clone()
    }
}

fn in_turn(answers: Vec<ResponseTemplate>) -> InTurn {
    InTurn(answers, AtomicUsize::new(0))
}

#[tokio::test]
async fn busy_server_is_retried_after_its_delay() {
    let server = MockServer::start().await;
    let busy = ResponseTemplate::new(503)
        .insert_header("retry-after", "1")
        .set_body_json(problem("busy", "later"));
    let done = ResponseTemplate::new(201).set_body_json(json!({ "id": "t" }));
    Mock::given(method("POST"))
        .respond_with(in_turn(vec![busy.clone(), done]))
        .mount(&server)
        .await;
    let started = std::time::Instant::now();
    let made: serde_json::Value = client(&server.uri())
        .post(&["tokens"], &json!({}))
        .await
        .unwrap();
    assert_eq!(made["id"], "t");
    assert!(started.elapsed() >= Duration::from_secs(1));
    // A server that stays busy is an error.
    let server = MockServer::start().await;
    Mock::given(method("GET"))
        .respond_with(busy)
        .mount(&server)
        .await;
    let short = Retry {
        total: Duration::from_millis(500),
        ..QUICK
    };
    let refused = client(&server.uri())
        .retrying(short)
        .get::<()>(&["me"], &[])
        .await;
    let shown = CliError::from(refused.unwrap_err());
    assert_eq!(shown.exit().code(), 3);
}

/// A request that may have arrived is not repeated, unless it has an idempotency key.
#[tokio::test]
async fn post_is_never_repeated() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = requests.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut bytes = vec![0; 4096];
            let _ = stream.read(&mut bytes).await;
            counter.fetch_add(1, Ordering::SeqCst);
            // Closes the connection without a response.
        }
    });
    let client = client(&url).retrying(Retry {
        total: Duration::from_millis(300),
        first: Duration::from_millis(20),
    });
    let result = client.post::<()>(&["tokens"], &json!({})).await;
    assert!(matches!(result, Err(ApiError::Unreachable { .. })));
    assert_eq!(requests.load(Ordering::SeqCst), 1);
    client.start_run(&["runs"], &json!({})).await.unwrap_err();
    assert!(requests.load(Ordering::SeqCst) > 2);
}

fn context(received: u64, complete: bool) -> ResponseTemplate {
    ResponseTemplate::new(200).set_body_json(json!({
        "id": "c1", "received": received, "size": 10, "complete": complete, "partLimit": 4
    }))
}

async fn upload(server: &MockServer) -> (Result<String, ApiError>, Vec<u64>) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), b"0123456789").unwrap();
    let digest: Digest = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
    let mut seen = Vec::new();
    let done = client(&server.uri())
        .upload(
            &PackedFile {
                path: file.path(),
                size: 10,
                digest: &digest,
            },
            |received| seen.push(received),
        )
        .await;
    (done, seen)
}

async fn received_parts(server: &MockServer) -> Vec<(String, String)> {
    let requests = server.received_requests().await.unwrap();
    requests
        .iter()
        .filter(|request| request.method.as_str() == "PATCH")
        .map(|request| {
            let offset = request.headers["upload-offset"]
                .to_str()
                .unwrap()
                .to_owned();
            (offset, String::from_utf8(request.body.clone()).unwrap())
        })
        .collect()
}

#[tokio::test]
async fn upload_uses_the_servers_part_size() {
    let server = MockServer::start().await;
    Mock::given(method("POST"))
        .respond_with(context(0, false))
        .mount(&server)
        .await;
    Mock::given(method("PATCH"))
        .respond_with(in_turn(vec![
            context(4, false),
            context(8, false),
            context(10, true),
        ]))
        .mount(&server)
        .await;
    let (done, seen) = upload(&server).await;
    assert_eq!(done.unwrap(), "c1");
    assert_eq!(seen, [0, 4, 8, 10]);
    let wanted = [("0", "0123"), ("4", "4567"), ("8", "89")];
    let wanted = wanted.map(|(offset, body)| (offset.to_owned(), body.to_owned()));
    assert_eq!(received_parts(&server).await, wanted);
}

#[tokio::test]
async fn upload_is_skipped_if_the_server_has_the_bytes() {
    let server = MockServer::start().await;
    Mock::given(method("POST"))
        .respond_with(context(10, true))
        .mount(&server)
        .await;
    let (done, _) = upload(&server).await;
    assert_eq!(done.unwrap(), "c1");
    assert!(received_parts(&server).await.is_empty());
}

/// A part arrived, but its response was lost. The server rejects the repetition and returns the
/// offset.
#[tokio::test]
async fn upload_resumes_at_the_servers_offset() {
    let server = MockServer::start().await;
    Mock::given(method("POST"))
        .respond_with(context(0, false))
        .mount(&server)
        .await;
    let wrong = ResponseTemplate::new(409).set_body_json(problem("conflict", "at 8"));
    Mock::given(method("PATCH"))
        .respond_with(in_turn(vec![
            ResponseTemplate::new(502),
            wrong,
            context(10, true),
        ]))
        .mount(&server)
        .await;
    Mock::given(method("GET"))
        .and(path("/api/v1/contexts/c1"))
        .respond_with(context(8, false))
        .mount(&server)
        .await;
    let (done, _) = upload(&server).await;
    assert_eq!(done.unwrap(), "c1");
    let parts = received_parts(&server).await;
    assert_eq!(parts.last().unwrap(), &("8".to_owned(), "89".to_owned()));
}

/// An upload that the server lost starts again, a limited number of times.
#[tokio::test]
async fn lost_upload_starts_again() {
    let server = MockServer::start().await;
    let gone = ResponseTemplate::new(404).set_body_json(problem("not-found", "no such context"));
    Mock::given(method("POST"))
        .respond_with(context(0, false))
        .mount(&server)
        .await;
    Mock::given(method("PATCH"))
        .respond_with(in_turn(vec![gone.clone(), context(10, true)]))
        .mount(&server)
        .await;
    assert_eq!(upload(&server).await.0.unwrap(), "c1");
    let server = MockServer::start().await;
    Mock::given(method("POST"))
        .respond_with(context(0, false))
        .mount(&server)
        .await;
    Mock::given(method("PATCH"))
        .respond_with(gone)
        .mount(&server)
        .await;
    assert!(upload(&server).await.0.unwrap_err().is_not_found());
}

fn event(n: u32) -> String {
    json!({ "time": "2026-01-02T03:04:05Z", "run": "r1", "event": "progress", "message": n.to_string() })
        .to_string()
}

fn follow(url: &str) -> EventStream {
    client(url)
        .events(&RunId::new("r1").unwrap())
        .retrying(QUICK)
}

/// Collects the whole stream as short texts.
async fn collect(mut events: EventStream) -> Vec<String> {
    let mut seen = Vec::new();
    loop {
        match events.next().await.unwrap() {
            StreamItem::Event(event) => match event.kind {
                acrtask_model::EventKind::Progress { message } => seen.push(message),
                other => panic!("{other:?}"),
            },
            StreamItem::Attempt(attempt) => seen.push(format!("attempt {attempt}")),
            StreamItem::Disconnected(_) => seen.push("cut".into()),
            StreamItem::End => return seen,
        }
        assert!(seen.len() < 1000, "{seen:?}");
    }
}

fn sse(text: &str) -> ResponseTemplate {
    ResponseTemplate::new(200).set_body_raw(text.to_owned(), "text/event-stream")
}

/// The connection ends in the middle of an event, and the server is unavailable for a moment. The
/// stream then continues behind the last complete event of the same attempt.
#[tokio::test]
async fn stream_continues_after_an_interruption() {
    let server = MockServer::start().await;
    let (one, two, three) = (event(1), event(2), event(3));
    Mock::given(query_param("offset", "0"))
        .respond_with(sse(&format!(
            ": hello\n\nevent: attempt\nid: 0\ndata: {{\"attempt\":1}}\n\nid: 10\ndata: {one}\n\nid: 20\ndata: {two}\n\nid: 30\ndata: {{\"ti"
        )))
        .mount(&server)
        .await;
    Mock::given(query_param("offset", "20"))
        .and(query_param("attempt", "1"))
        .respond_with(in_turn(vec![
            ResponseTemplate::new(502),
            ResponseTemplate::new(503).set_body_json(problem("closing", "shutting down")),
            sse(&format!(
                "id: 30\ndata: {three}\n\nid: 40\ndata: {{\"event\":\"of the future\"}}\n\nevent: end\ndata: {{\"state\":\"succeeded\"}}\n\n"
            )),
        ]))
        .mount(&server)
        .await;
    assert_eq!(
        collect(follow(&server.uri())).await,
        ["1", "2", "cut", "cut", "3"]
    );
}

#[tokio::test]
async fn new_attempt_restarts_the_stream() {
    let server = MockServer::start().await;
    let (one, two) = (event(1), event(2));
    Mock::given(query_param("offset", "0"))
        .respond_with(sse(&format!(
            "event: attempt\nid: 0\ndata: {{\"attempt\":1}}\n\nid: 10\ndata: {one}\n\nevent: attempt\nid: 0\ndata: {{\"attempt\":2}}\n\nid: 7\ndata: {two}\n\n"
        )))
        .mount(&server)
        .await;
    Mock::given(query_param("offset", "7"))
        .and(query_param("attempt", "2"))
        .respond_with(sse("event: end\ndata: {}\n\n"))
        .mount(&server)
        .await;
    assert_eq!(
        collect(follow(&server.uri())).await,
        ["1", "attempt 2", "2"]
    );
}

/// Empty responses are retried slowly, and a limited number of times.
#[tokio::test]
async fn server_with_empty_streams_is_given_up() {
    let server = MockServer::start().await;
    Mock::given(method("GET"))
        .respond_with(sse(""))
        .mount(&server)
        .await;
    let mut events = follow(&server.uri()).retrying(Retry {
        total: Duration::from_millis(200),
        first: Duration::from_millis(20),
    });
    let refused = loop {
        match events.next().await {
            Ok(StreamItem::Disconnected(_)) => {}
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, ApiError::EmptyStream { .. }));
    assert!(server.received_requests().await.unwrap().len() < 12);
}

#[tokio::test]
async fn missing_run_is_an_error_at_once() {
    let server = MockServer::start().await;
    Mock::given(method("GET"))
        .respond_with(ResponseTemplate::new(404).set_body_json(problem("not-found", "no run r1")))
        .mount(&server)
        .await;
    let mut events = follow(&server.uri());
    assert!(events.next().await.unwrap_err().is_not_found());
}

/// The stream is interrupted at every byte in turn: each event still arrives once and in order.
#[tokio::test]
async fn interruption_at_any_byte_loses_and_repeats_nothing() {
    let lines: Vec<String> = (0..3).map(event).collect();
    let stream_from = |from: usize| {
        let mut text = String::from(": alive\n\n");
        if from == 0 {
            text += "event: attempt\nid: 0\ndata: {\"attempt\":1}\n\n";
        }
        for (at, line) in lines.iter().enumerate().skip(from) {
            text += &format!("id: {}\ndata: {line}\n\n", at + 1);
        }
        text + "event: end\ndata: {}\n\n"
    };
    let length = stream_from(0).len();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let cut_at = Arc::new(AtomicUsize::new(0));
    let cut = cut_at.clone();
    let texts: Vec<String> = (0..=3).map(stream_from).collect();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut bytes = vec![0; 8192];
            let read = stream.read(&mut bytes).await.unwrap();
            let request = String::from_utf8_lossy(&bytes[..read]).into_owned();
            let offset = request.split("offset=").nth(1).unwrap();
            let offset: usize = offset[..1].parse().unwrap();
            let text = &texts[offset];
            // The first response is truncated, the next ones are complete.
            let end = cut.swap(usize::MAX, Ordering::SeqCst).min(text.len());
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                text.len()
            );
            let _ = stream.write_all(head.as_bytes()).await;
            let _ = stream.write_all(&text.as_bytes()[..end]).await;
        }
    });
    for at in 0..length {
        cut_at.store(at, Ordering::SeqCst);
        let seen = collect(follow(&url)).await;
        let events: Vec<&str> = seen
            .iter()
            .map(String::as_str)
            .filter(|word| *word != "cut")
            .collect();
        assert_eq!(events, ["0", "1", "2"], "cut at {at}");
    }
}

/// An untrusted certificate is reported as such, without a retry and before any response is read.
#[tokio::test]
async fn untrusted_server_is_not_retried() {
    use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};
    acrtask_registry::install_crypto_provider();
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = own.signing_key.serialize_der().try_into().unwrap();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!(
        "https://localhost:{}",
        listener.local_addr().unwrap().port()
    );
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = connections.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            counter.fetch_add(1, Ordering::SeqCst);
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                let mut bytes = vec![0; 4096];
                let _ = stream.read(&mut bytes).await;
                let _ = stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n7")
                    .await;
            });
        }
    });
    let refused = client(&url).get::<u32>(&["me"], &[]).await.unwrap_err();
    assert!(matches!(refused, ApiError::Untrusted { .. }), "{refused:?}");
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    // With its authority in --ca, the server is trusted.
    let ca = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(ca.path(), own.cert.pem()).unwrap();
    let trusting = Client::new(&Connection {
        url: server_url(&url).unwrap(),
        token: None,
        ca: Some(ca.path().to_owned()),
        allow_plaintext: false,
    })
    .unwrap();
    assert_eq!(trusting.get::<u32>(&["me"], &[]).await.unwrap(), 7);
}
