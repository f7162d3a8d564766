//! Tests of `contexts.rs`.

use acrtask_api::{run::Run, task::Task};
use axum::http::{Method, Request};
use serde_json::json;

use super::*;
use crate::{
    Config,
    api::testing::{TestResponse, TestServer},
};

fn digest(data: &[u8]) -> String {
    let hash = Sha256::digest(data);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Starts a server that accepts small parts.
async fn start_with_part_limit(part_limit: u64) -> TestServer {
    TestServer::with(Config {
        part_limit,
        ..Config::default()
    })
    .await
}

async fn start_upload(server: &TestServer, data: &[u8]) -> Context {
    server
        .post(
            "/contexts",
            json!({"size": data.len(), "digest": digest(data)}),
        )
        .await
        .json(StatusCode::CREATED)
}

async fn send_part(
    server: &TestServer,
    id: &str,
    offset: u64,
    body: impl Into<Body>,
) -> TestResponse {
    let request = Request::builder()
        .method(Method::PATCH)
        .uri(format!("{BASE}/contexts/{id}"))
        .header(header::AUTHORIZATION, format!("Bearer {}", server.admin))
        .header("upload-offset", offset)
        .body(body.into())
        .unwrap();
    server.send(request).await
}

fn count_blobs(server: &TestServer) -> usize {
    fn count(folder: &std::path::Path) -> usize {
        std::fs::read_dir(folder).map_or(0, |entries| {
            entries
                .map(|entry| {
                    let entry = entry.unwrap();
                    if entry.file_type().unwrap().is_dir() {
                        count(&entry.path())
                    } else {
                        1
                    }
                })
                .sum()
        })
    }
    count(&server.folder.path().join("blobs"))
}

#[tokio::test]
async fn context_is_uploaded_in_parts_and_used_by_a_run() {
    let server = start_with_part_limit(60_000).await;
    let data = vec![7_u8; 100_000];
    let context = start_upload(&server, &data).await;
    assert_eq!(context.received, 0);
    let run = json!({"spec": {"context": {"type": "upload", "id": context.id}}});
    server
        .post("/runs", run.clone())
        .await
        .problem(StatusCode::UNPROCESSABLE_ENTITY);
    let half: Context = send_part(&server, &context.id, 0, data[..60_000].to_vec())
        .await
        .json(StatusCode::OK);
    assert_eq!((half.received, half.complete), (60_000, false));
    let shown: Context = server
        .get(&format!("/contexts/{}", context.id))
        .await
        .json(StatusCode::OK);
    assert_eq!(shown, half);
    let whole: Context = send_part(&server, &context.id, 60_000, data[60_000..].to_vec())
        .await
        .json(StatusCode::OK);
    assert_eq!((whole.received, whole.complete), (100_000, true));
    let run: Run = server.post("/runs", run).await.json(StatusCode::CREATED);
    let row = server.app.store.run(&run.id).await.unwrap();
    assert_eq!(row.context_id.as_deref(), Some(context.id.as_str()));
    // The same bytes need no second upload.
    let reused: Context = server
        .post(
            "/contexts",
            json!({"size": data.len(), "digest": digest(&data)}),
        )
        .await
        .json(StatusCode::OK);
    assert_eq!(reused.id, context.id);
    send_part(&server, &context.id, 100_000, "x")
        .await
        .problem(StatusCode::CONFLICT);
}

#[tokio::test]
async fn part_at_a_wrong_offset_is_refused_with_the_expected_one() {
    let server = start_with_part_limit(5).await;
    let context = start_upload(&server, b"hello world").await;
    send_part(&server, &context.id, 0, "hello")
        .await
        .json::<Context>(StatusCode::OK);
    for offset in [0, 4, 6, 11] {
        let problem = send_part(&server, &context.id, offset, "x")
            .await
            .problem(StatusCode::CONFLICT);
        assert_eq!(
            problem.message,
            format!("the part begins at {offset}, and the next one must begin at 5")
        );
    }
    assert_eq!(count_blobs(&server), 1);
    let missing = TestServer::request(
        Method::PATCH,
        &format!("/contexts/{}", context.id),
        Some(&server.admin),
        None,
    );
    server.send(missing).await.problem(StatusCode::BAD_REQUEST);
    send_part(&server, "cnothere", 0, "x")
        .await
        .problem(StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn limits_are_named_and_leave_nothing() {
    let server = TestServer::with(Config {
        context_limit: 1000,
        part_limit: 100,
        ..Config::default()
    })
    .await;
    let problem = server
        .post("/contexts", json!({"size": 1001, "digest": digest(b"x")}))
        .await
        .problem(StatusCode::PAYLOAD_TOO_LARGE);
    insta::assert_snapshot!(problem.message);
    server
        .post("/contexts", json!({"size": 0, "digest": digest(b"")}))
        .await
        .problem(StatusCode::BAD_REQUEST);
    let context = start_upload(&server, &[1; 150]).await;
    assert_eq!(context.part_limit, 100);
    // Send a part with an announced length, then one without.
    let problem = send_part(&server, &context.id, 0, vec![1; 101])
        .await
        .problem(StatusCode::PAYLOAD_TOO_LARGE);
    assert!(problem.message.contains("100 bytes"), "{problem:?}");
    let chunks = futures::stream::iter((0..30).map(|_| Ok::<_, std::io::Error>(vec![1_u8; 10])));
    send_part(&server, &context.id, 0, Body::from_stream(chunks))
        .await
        .problem(StatusCode::PAYLOAD_TOO_LARGE);
    send_part(&server, &context.id, 0, vec![1; 100])
        .await
        .json::<Context>(StatusCode::OK);
    send_part(&server, &context.id, 100, vec![1; 51])
        .await
        .problem(StatusCode::UNPROCESSABLE_ENTITY);
    // An empty part changes nothing.
    let same: Context = send_part(&server, &context.id, 100, "")
        .await
        .json(StatusCode::OK);
    assert_eq!((same.received, same.complete), (100, false));
    assert_eq!(count_blobs(&server), 1);
}

#[tokio::test]
async fn small_parts_are_refused_except_the_last() {
    let server = TestServer::start().await;
    let data = vec![1_u8; (1 << 20) + 1];
    let context = start_upload(&server, &data).await;
    let refused = send_part(&server, &context.id, 0, "x").await;
    let problem = refused.problem(StatusCode::UNPROCESSABLE_ENTITY);
    assert!(problem.message.contains("at least 1048576"), "{problem:?}");
    // The length is not announced.
    let chunks = futures::stream::iter([Ok::<_, std::io::Error>(vec![1_u8; 1 << 19])]);
    send_part(&server, &context.id, 0, Body::from_stream(chunks))
        .await
        .problem(StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(count_blobs(&server), 0);
    let half: Context = send_part(&server, &context.id, 0, vec![1; 1 << 20])
        .await
        .json(StatusCode::OK);
    assert_eq!(half.received, 1 << 20);
    let whole: Context = send_part(&server, &context.id, 1 << 20, "\u{1}")
        .await
        .json(StatusCode::OK);
    assert!(whole.complete);
    // A context has at most 10,000 parts.
    let large = Context {
        size: 40 << 30,
        ..whole
    };
    assert!(large.size.div_ceil(large.min_part()) <= Context::MAX_PARTS);
}

#[tokio::test]
async fn interrupted_part_does_not_count() {
    let server = TestServer::start().await;
    let context = start_upload(&server, &[1; 150]).await;
    let chunks = futures::stream::iter([
        Ok(vec![1_u8; 50]),
        Err(std::io::Error::other("the connection was cut")),
    ]);
    send_part(&server, &context.id, 0, Body::from_stream(chunks))
        .await
        .problem(StatusCode::BAD_REQUEST);
    let shown: Context = server
        .get(&format!("/contexts/{}", context.id))
        .await
        .json(StatusCode::OK);
    assert_eq!(shown.received, 0);
    assert_eq!(count_blobs(&server), 0);
}

#[tokio::test]
async fn upload_with_a_wrong_digest_restarts() {
    let server = start_with_part_limit(3).await;
    let context = start_upload(&server, b"right").await;
    send_part(&server, &context.id, 0, "wro")
        .await
        .json::<Context>(StatusCode::OK);
    let problem = send_part(&server, &context.id, 3, "ng")
        .await
        .problem(StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(problem.code, "mismatch");
    assert_eq!(count_blobs(&server), 0);
    let shown: Context = server
        .get(&format!("/contexts/{}", context.id))
        .await
        .json(StatusCode::OK);
    assert_eq!((shown.received, shown.complete), (0, false));
    send_part(&server, &context.id, 0, "rig")
        .await
        .json::<Context>(StatusCode::OK);
    let whole: Context = send_part(&server, &context.id, 3, "ht")
        .await
        .json(StatusCode::OK);
    assert!(whole.complete);
}

#[tokio::test]
async fn only_one_of_two_equal_parts_counts() {
    let server = TestServer::start().await;
    let context = start_upload(&server, b"hello world").await;
    let (one, other) = tokio::join!(
        send_part(&server, &context.id, 0, "hello world"),
        send_part(&server, &context.id, 0, "hello world"),
    );
    let mut statuses = [one.status, other.status];
    statuses.sort();
    assert_eq!(
        statuses[0],
        StatusCode::OK,
        "{} {}",
        one.text(),
        other.text()
    );
    assert_eq!(statuses[1], StatusCode::CONFLICT);
    assert_eq!(count_blobs(&server), 1);
}

#[tokio::test]
async fn files_belong_to_the_principal_that_uploaded_them() {
    let server = TestServer::start().await;
    let ann = server.create_token(&[Scope::Run], None).await;
    let bob = server
        .create_token(&[Scope::Run, Scope::Read, Scope::Write], None)
        .await;
    let data = b"the files of ann";
    let input = json!({"size": data.len(), "digest": digest(data)});
    let ask = |method: Method, path: String, token: &str, body: Option<serde_json::Value>| {
        let (server, token) = (&server, token.to_owned());
        async move { server.send_as(method, &path, &token, body.as_ref()).await }
    };
    let upload = |token: String, id: String| {
        let request = Request::builder()
            .method(Method::PATCH)
            .uri(format!("{BASE}/contexts/{id}"))
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .header("upload-offset", 0)
            .body(Body::from(data.to_vec()))
            .unwrap();
        server.send(request)
    };
    let begun = ask(Method::POST, "/contexts".into(), &ann, Some(input.clone())).await;
    let ours: Context = begun.json(StatusCode::CREATED);
    // Only its owner can continue an upload.
    let intruder = upload(bob.clone(), ours.id.clone()).await;
    intruder.problem(StatusCode::NOT_FOUND);
    let whole: Context = upload(ann.clone(), ours.id.clone())
        .await
        .json(StatusCode::OK);
    assert!(whole.complete);
    // The digest grants no access, and does not reveal that the server has the files.
    let begun = ask(Method::POST, "/contexts".into(), &bob, Some(input.clone())).await;
    let theirs: Context = begun.json(StatusCode::CREATED);
    assert_ne!(theirs.id, ours.id);
    assert!(!theirs.complete);
    let repeated = ask(Method::POST, "/contexts".into(), &ann, Some(input)).await;
    let repeated: Context = repeated.json(StatusCode::OK);
    assert_eq!(repeated.id, ours.id);
    // The id grants no access either: the response is the same as for an unknown id.
    let path = format!("/contexts/{}", ours.id);
    let hidden = ask(Method::GET, path.clone(), &bob, None).await;
    hidden.problem(StatusCode::NOT_FOUND);
    ask(Method::GET, path, &ann, None)
        .await
        .json::<Context>(StatusCode::OK);
    let run = |id: &str| json!({"spec": {"context": {"type": "upload", "id": id}}});
    let refused = ask(Method::POST, "/runs".into(), &bob, Some(run(&ours.id))).await;
    let refused = refused.problem(StatusCode::UNPROCESSABLE_ENTITY);
    let missing = ask(Method::POST, "/runs".into(), &bob, Some(run("cmissing"))).await;
    let missing = missing.problem(StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(
        refused.message.replace(&ours.id, "cmissing"),
        missing.message
    );
    let task = json!({"name": "app", "cmd": "alpine true"});
    server
        .post("/tasks", task)
        .await
        .json::<Task>(StatusCode::CREATED);
    let start = json!({"context": {"type": "upload", "id": ours.id}});
    let started = ask(Method::POST, "/tasks/app/runs".into(), &bob, Some(start)).await;
    started.problem(StatusCode::UNPROCESSABLE_ENTITY);
    let made = ask(Method::POST, "/runs".into(), &ann, Some(run(&ours.id))).await;
    let made: Run = made.json(StatusCode::CREATED);
    // Principals that may see a run may rerun it with the same files. An admin may use any files.
    let path = format!("/runs/{}/rerun", made.id);
    ask(Method::POST, path, &bob, None)
        .await
        .json::<Run>(StatusCode::CREATED);
    server
        .post("/runs", run(&ours.id))
        .await
        .json::<Run>(StatusCode::CREATED);
    // In the domain of a task, files of an author are only for authors.
    let start = json!({"context": {"type": "upload", "id": ours.id}});
    let made: Run = server
        .post("/tasks/app/runs", start)
        .await
        .json(StatusCode::CREATED);
    let path = format!("/runs/{}/rerun", made.id);
    let refused = ask(Method::POST, path.clone(), &ann, None).await;
    let refused = refused.problem(StatusCode::CONFLICT);
    assert!(refused.message.contains("uploaded files"), "{refused:?}");
    ask(Method::POST, path, &bob, None)
        .await
        .json::<Run>(StatusCode::CREATED);
}
