//! Tests of uploads, logs and their links.

use acrtask_api::run::RunResult;
use acrtask_model::{Event, EventKind, RunId, RunState, StepId};
use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::*;

async fn create_upload(arm: &ArmServer) -> (String, String) {
    let upload: Value = arm
        .of_registry(Method::POST, "/listBuildSourceUploadUrl", Value::Null)
        .await
        .json(StatusCode::OK);
    let text = |name: &str| upload[name].as_str().unwrap().to_owned();
    (text("uploadUrl"), text("relativePath"))
}

async fn put(arm: &ArmServer, link: &str, query: &str, body: Vec<u8>) -> TestResponse {
    let length = body.len().to_string();
    let headers = [
        ("content-length", length.as_str()),
        ("x-ms-blob-type", "BlockBlob"),
    ];
    arm.blob(Method::PUT, &format!("{link}{query}"), &headers, body)
        .await
}

fn block_query(name: &str) -> String {
    let id = STANDARD.encode(name).replace('=', "%3D");
    format!("&comp=block&blockid={id}")
}

async fn read_context(arm: &ArmServer, path: &str) -> Vec<u8> {
    let id = path.strip_prefix(acrtask_arm::UPLOAD_PREFIX).unwrap();
    let context = arm.server.app.store.context(id).await.unwrap();
    assert!(context.complete);
    let mut bytes = Vec::new();
    for part in arm.server.app.store.context_parts(id).await.unwrap() {
        let part = arm
            .server
            .app
            .blobs
            .get(&part.blob, part.length)
            .await
            .unwrap();
        bytes.extend_from_slice(&part);
    }
    assert_eq!(bytes.len() as u64, context.size);
    bytes
}

#[tokio::test]
async fn single_upload_becomes_a_context() {
    let arm = ArmServer::start().await;
    let (link, path) = create_upload(&arm).await;
    let body = json!({"type": "DockerBuildRequest", "imageNames": ["app:1"], "sourceLocation": path,
        "platform": {"os": "linux"}, "dockerFilePath": "Dockerfile"});
    let early = arm
        .of_registry(Method::POST, "/scheduleRun", body.clone())
        .await;
    let text = message(&early, StatusCode::BAD_REQUEST);
    assert!(text.contains("is not complete"), "{text}");
    let stored = put(&arm, &link, "", b"files".to_vec()).await;
    assert_eq!(stored.status, StatusCode::CREATED, "{}", stored.text());
    assert_eq!(read_context(&arm, &path).await, b"files");
    let run: Value = arm
        .of_registry(Method::POST, "/scheduleRun", body)
        .await
        .json(StatusCode::OK);
    assert_eq!(run["properties"]["status"], "Queued");
    let again = put(&arm, &link, "", b"other".to_vec()).await;
    assert_eq!(again.status, StatusCode::CONFLICT);
    assert_eq!(
        header_text(&again.headers, "x-ms-error-code"),
        "BlobAlreadyExists"
    );
}

#[tokio::test]
async fn blocks_are_ordered_by_their_list() {
    let arm = ArmServer::start().await;
    let (link, path) = create_upload(&arm).await;
    for (name, text) in [
        ("c", "unused"),
        ("b", "world"),
        ("a", "old"),
        ("a", "hello "),
    ] {
        let stored = put(&arm, &link, &block_query(name), text.into()).await;
        assert_eq!(stored.status, StatusCode::CREATED, "{}", stored.text());
    }
    let list = |names: &[&str]| {
        let blocks: String = names
            .iter()
            .map(|name| format!("<Latest>{}</Latest>", STANDARD.encode(name)))
            .collect();
        format!("<?xml version='1.0'?><BlockList>{blocks}</BlockList>").into_bytes()
    };
    let unknown = put(&arm, &link, "&comp=blocklist", list(&["a", "x"])).await;
    assert_eq!(unknown.status, StatusCode::BAD_REQUEST);
    let stored = put(&arm, &link, "&comp=blocklist", list(&["a", "b"])).await;
    assert_eq!(stored.status, StatusCode::CREATED, "{}", stored.text());
    assert_eq!(read_context(&arm, &path).await, b"hello world");
    let late = put(&arm, &link, &block_query("d"), b"x".to_vec()).await;
    assert_eq!(late.status, StatusCode::CONFLICT);
}

#[tokio::test]
async fn uploads_have_limits() {
    let arm = ArmServer::with(Config {
        context_limit: 10,
        ..Config::default()
    })
    .await;
    let (link, _) = create_upload(&arm).await;
    let large = put(&arm, &link, "", vec![0; 11]).await;
    assert_eq!(large.status, StatusCode::PAYLOAD_TOO_LARGE);
    let empty = put(&arm, &link, "", Vec::new()).await;
    assert_eq!(empty.status, StatusCode::BAD_REQUEST);
    let without = arm.blob(Method::PUT, &link, &[], "abc").await;
    assert_eq!(without.status, StatusCode::LENGTH_REQUIRED);
    let headers = [("content-length", "5")];
    let short = arm.blob(Method::PUT, &link, &headers, "abc").await;
    assert_eq!(short.status, StatusCode::BAD_REQUEST);
    let headers = [("content-length", "3")];
    let long = arm.blob(Method::PUT, &link, &headers, "abcdef").await;
    assert_eq!(long.status, StatusCode::BAD_REQUEST);
    for (name, status) in [("a", 201), ("b", 201), ("c", 422)] {
        let stored = put(&arm, &link, &block_query(name), vec![0; 5]).await;
        assert_eq!(stored.status.as_u16(), status, "{}", stored.text());
    }
    // A block can be replaced by one of the same size only within the limit.
    let get = arm.blob(Method::GET, &link, &[], "").await;
    assert_eq!(get.status, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn uploads_count_against_the_quotas_of_their_token() {
    let arm = ArmServer::start().await;
    // Each upload counts at least 4 KiB.
    let quota = json!({"subject": "token:*", "kind": "contextBytes", "limit": 15_000});
    let set = arm.server.put("/quotas", quota).await;
    assert!(set.status.is_success(), "{}", set.text());
    let token = arm.server.create_token(&ALL_SCOPES, None).await;
    let path = in_registry("/listBuildSourceUploadUrl");
    let create = || arm.call_as(Some(&token), Method::POST, &path, &Value::Null);
    let link = |created: TestResponse| {
        let upload: Value = created.json(StatusCode::OK);
        upload["uploadUrl"].as_str().unwrap().to_owned()
    };
    let (first, second) = (link(create().await), link(create().await));
    let stored = put(&arm, &first, &block_query("a"), vec![0; 6_000]).await;
    assert_eq!(stored.status, StatusCode::CREATED, "{}", stored.text());
    let refused = put(&arm, &second, "", vec![0; 6_000]).await;
    assert_eq!(
        refused.status,
        StatusCode::TOO_MANY_REQUESTS,
        "{}",
        refused.text()
    );
}

#[tokio::test]
async fn link_of_a_revoked_token_uploads_nothing() {
    let arm = ArmServer::start().await;
    let token = arm.server.create_token(&ALL_SCOPES, None).await;
    let path = in_registry("/listBuildSourceUploadUrl");
    let upload: Value = arm
        .call_as(Some(&token), Method::POST, &path, &Value::Null)
        .await
        .json(StatusCode::OK);
    let (id, _) = crate::auth::parse_token(&token).unwrap();
    arm.server.app.store.revoke_token(id).await.unwrap();
    let refused = put(
        &arm,
        upload["uploadUrl"].as_str().unwrap(),
        "",
        b"x".to_vec(),
    )
    .await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN, "{}", refused.text());
}

#[tokio::test]
async fn uploads_of_others_are_no_context() {
    let arm = ArmServer::start().await;
    let (link, path) = create_upload(&arm).await;
    put(&arm, &link, "", b"files".to_vec()).await;
    let token = arm.server.create_token(&ALL_SCOPES, None).await;
    let body =
        json!({"type": "DockerBuildRequest", "imageNames": ["app:1"], "sourceLocation": path});
    let path = in_registry("/scheduleRun");
    let refused = arm.call_as(Some(&token), Method::POST, &path, &body).await;
    let text = message(&refused, StatusCode::BAD_REQUEST);
    assert!(text.contains("is not complete or does not exist"), "{text}");
}

#[tokio::test]
async fn wrong_and_expired_links_are_refused() {
    let arm = ArmServer::start().await;
    let (link, _) = create_upload(&arm).await;
    let (other, _) = create_upload(&arm).await;
    let (before, signature) = link.split_once("&sig=").unwrap();
    let (_, other_signature) = other.split_once("&sig=").unwrap();
    let as_log = link.replace("/blobs/contexts/", "/blobs/logs/");
    let later = link.replace("se=20", "se=21");
    for wrong in [
        before.to_owned(),
        format!("{before}&sig="),
        format!("{before}&sig=%"),
        format!("{before}&sig={}", &signature[1..]),
        format!("{before}&sig={other_signature}"),
        later,
    ] {
        let refused = put(&arm, &wrong, "", b"x".to_vec()).await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN, "{wrong}");
    }
    let refused = arm.blob(Method::GET, &as_log, &[], "").await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    let now = crate::api::testing::NOW;
    arm.server.app.clock.set(now + 2 * 3_600_000);
    let refused = put(&arm, &link, "", b"x".to_vec()).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    assert!(refused.text().contains("expired"), "{}", refused.text());
    arm.server.app.clock.set(now + 2 * 3_600_000 - 1000);
    let stored = put(&arm, &link, "", b"x".to_vec()).await;
    assert_eq!(stored.status, StatusCode::CREATED);
}

fn output(text: &str) -> String {
    let event = Event {
        time: jiff::Timestamp::UNIX_EPOCH,
        run: RunId::new("r1").unwrap(),
        kind: EventKind::Output {
            step: StepId::new("s").unwrap(),
            stream: acrtask_model::events::Stream::Stdout,
            vertex: None,
            text: text.into(),
        },
    };
    format!("{}\n", serde_json::to_string(&event).unwrap())
}

async fn link_log(arm: &ArmServer, run: &str) -> String {
    let path = format!("/runs/{run}/listLogSasUrl");
    let link: Value = arm
        .of_registry(Method::POST, &path, Value::Null)
        .await
        .json(StatusCode::OK);
    link["logLink"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn log_grows_and_never_changes() {
    let arm = ArmServer::start().await;
    let runner = arm.server.register_runner("mine").await;
    let run = arm.schedule().await;
    let link = link_log(&arm, &run).await;
    let head = || arm.blob(Method::HEAD, &link, &[], "");
    let early = head().await;
    assert_eq!(early.status, StatusCode::NOT_FOUND);
    assert_eq!(
        header_text(&early.headers, "x-ms-error-code"),
        "BlobNotFound"
    );

    let id = RunId::new(run.as_str()).unwrap();
    let attempt = arm.server.lease_run(&id, &runner).await;
    let (mut events, mut seen) = (String::new(), Vec::new());
    for number in 0..5 {
        let more = output(&format!("line {number} äöü\nand more"));
        // A chunk may end within an event.
        let (one, two) = more.split_at(more.len() / 2);
        for part in [one, two] {
            let offset = events.len() as u64;
            arm.server
                .append_log(&id, attempt, &runner, offset, part)
                .await;
            events.push_str(part);
            let found = head().await;
            assert_eq!(found.status, StatusCode::OK);
            assert_eq!(header_text(&found.headers, "x-ms-meta-complete"), "");
            let length: usize = header_text(&found.headers, "content-length")
                .parse()
                .unwrap();
            while seen.len() < length {
                let range = format!("bytes={}-{}", seen.len(), seen.len() + 6);
                let piece = arm
                    .blob(Method::GET, &link, &[("x-ms-range", &range)], "")
                    .await;
                assert_eq!(piece.status, StatusCode::PARTIAL_CONTENT);
                let end = seen.len() + piece.body.len();
                let expected = format!("bytes {}-{}/{length}", seen.len(), end - 1);
                assert_eq!(header_text(&piece.headers, "content-range"), expected);
                seen.extend_from_slice(&piece.body);
            }
        }
    }
    let past = format!("bytes={}-", seen.len());
    let beyond = arm.blob(Method::GET, &link, &[("range", &past)], "").await;
    assert_eq!(beyond.status, StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(
        header_text(&beyond.headers, "x-ms-error-code"),
        "InvalidRange"
    );
    arm.server
        .finish_run(
            &id,
            attempt,
            &runner,
            RunState::Succeeded,
            &events,
            RunResult::default(),
        )
        .await;
    let found = head().await;
    assert_eq!(
        header_text(&found.headers, "x-ms-meta-complete"),
        "succeeded"
    );
    let whole = arm.blob(Method::GET, &link, &[], "").await;
    assert_eq!(whole.status, StatusCode::OK);
    let text = whole.text();
    assert_eq!(
        header_text(&found.headers, "content-length"),
        text.len().to_string()
    );
    assert!(whole.body.starts_with(&seen), "{text}");
    assert!(
        text.contains("s | line 4 äöü\r\ns | and more\r\n"),
        "{text}"
    );
    assert!(
        text.ends_with(&format!("Run ID: {run} was successful after 0s\r\n")),
        "{text}"
    );
    // A server without the state in memory returns the same bytes.
    let fresh = super::super::router(arm.server.app.clone());
    let request = Request::builder()
        .uri(link.strip_prefix("https://arm.test:8443").unwrap())
        .body(Body::empty())
        .unwrap();
    let response = fresh.oneshot(request).await.unwrap();
    let again = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(again, whole.body);
}

#[tokio::test]
async fn canceled_run_has_a_complete_log() {
    let arm = ArmServer::start().await;
    let run = arm.schedule().await;
    let link = link_log(&arm, &run).await;
    let cancel = format!("/runs/{run}/cancel");
    let canceled = arm.of_registry(Method::POST, &cancel, Value::Null).await;
    assert_eq!(
        (canceled.status, canceled.text()),
        (StatusCode::OK, String::new())
    );
    let found = arm.blob(Method::GET, &link, &[], "").await;
    assert_eq!(
        header_text(&found.headers, "x-ms-meta-complete"),
        "canceled"
    );
    assert!(
        found.text().contains("was canceled after"),
        "{}",
        found.text()
    );
}
