//! Tests of `blobs.rs`.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use axum::{
    Router,
    body::Bytes as Body,
    extract::{Query, State},
    http::{HeaderMap, Method, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
};

use super::*;

async fn read_all(
    stream: impl Stream<Item = std::io::Result<Bytes>> + Send,
) -> std::io::Result<Vec<u8>> {
    let chunks: Vec<Bytes> = stream.try_collect().await?;
    Ok(chunks.concat())
}

fn stream_of_pieces(
    data: &[u8],
    size: usize,
) -> impl Stream<Item = std::io::Result<Bytes>> + Send + use<> {
    let pieces: Vec<_> = data
        .chunks(size)
        .map(|piece| Ok(Bytes::copy_from_slice(piece)))
        .collect();
    futures::stream::iter(pieces)
}

/// Checks the behavior that every kind of storage must have.
async fn check_storage(blobs: &Blobs) {
    let key = "logs/r1/1/0";
    blobs.put(key, Bytes::from_static(b"hello")).await.unwrap();
    blobs
        .put(key, Bytes::from_static(b"hello world"))
        .await
        .unwrap();
    assert_eq!(blobs.get(key, 1 << 30).await.unwrap(), "hello world");
    let part = blobs.get_stream(key, Some(6..9)).await.unwrap();
    assert_eq!(read_all(part).await.unwrap(), b"wor");
    let whole = blobs.get_stream(key, None).await.unwrap();
    assert_eq!(read_all(whole).await.unwrap(), b"hello world");
    let nothing = blobs.get_stream(key, Some(3..3)).await.unwrap();
    assert_eq!(read_all(nothing).await.unwrap(), b"");
    // Small, empty and multipart data.
    let large: Vec<u8> = (0..20_000_000_u32).map(|at| (at % 251) as u8).collect();
    for data in [&b"small"[..], b"", &large] {
        let length = blobs
            .put_stream("contexts/c1/0-x", stream_of_pieces(data, 70_000))
            .await
            .unwrap();
        assert_eq!(length, data.len() as u64);
        assert!(
            blobs.get("contexts/c1/0-x", 1 << 30).await.unwrap() == data,
            "{length} bytes"
        );
    }
    // A failed input stream stores nothing.
    for size in [10, 20_000_000] {
        let broken = stream_of_pieces(&large[..size], 70_000)
            .chain(futures::stream::iter([Err(std::io::Error::other("cut"))]));
        let error = blobs
            .put_stream("contexts/c2/0-x", broken)
            .await
            .unwrap_err();
        assert!(matches!(error, BlobError::Input(_)), "{error}");
        let missing = blobs.get("contexts/c2/0-x", 1 << 30).await.unwrap_err();
        assert!(matches!(missing, BlobError::NotFound(_)), "{missing}");
    }
    let keys = [
        key.to_owned(),
        "nothing/here".into(),
        "contexts/c1/0-x".into(),
    ];
    blobs.delete(&keys).await.unwrap();
    blobs.delete(&keys).await.unwrap();
    assert!(matches!(
        blobs.get(key, 1 << 30).await,
        Err(BlobError::NotFound(_))
    ));
    assert!(matches!(
        blobs.get_stream(key, None).await,
        Err(BlobError::NotFound(_))
    ));
}

#[tokio::test]
async fn folder_stores_blobs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/blobs");
    check_storage(&Blobs::open(path.to_str().unwrap()).unwrap()).await;
    assert!(
        !path.join("logs").exists(),
        "empty folders go with their blobs"
    );
    let url = format!("file://{}", path.display());
    check_storage(&Blobs::open(&url).unwrap()).await;
}

#[test]
fn unknown_storage_is_rejected() {
    for url in ["http://example.com/x", "gs://bucket", "file://host/x"] {
        let error = Blobs::open(url).unwrap_err();
        assert!(matches!(error, BlobError::Setup { .. }), "{error}");
    }
}

/// In-memory mock of the used part of S3. Requests must be signed.
#[derive(Clone, Default)]
struct S3(Arc<Mutex<Objects>>);

#[derive(Default)]
struct Objects {
    whole: HashMap<String, Bytes>,
    uploads: HashMap<String, HashMap<u32, Bytes>>,
}

async fn serve_s3(
    State(s3): State<S3>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    Query(query): Query<HashMap<String, String>>,
    body: Body,
) -> Response {
    let signed = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.starts_with("AWS4-HMAC-SHA256 Credential=me/"));
    if !signed {
        return StatusCode::FORBIDDEN.into_response();
    }
    let path = uri.path().to_owned();
    let mut objects = s3.0.lock().unwrap_or_else(PoisonError::into_inner);
    if path == "/bucket" && query.contains_key("delete") {
        let asked = String::from_utf8(body.to_vec()).unwrap();
        let mut answer = "<DeleteResult>".to_owned();
        for key in asked.split("<Key>").skip(1) {
            let key = key.split("</Key>").next().unwrap();
            objects.whole.remove(&format!("/bucket/{key}"));
            answer += &format!("<Deleted><Key>{key}</Key></Deleted>");
        }
        return (answer + "</DeleteResult>").into_response();
    }
    assert!(path.starts_with("/bucket/prefix/"), "{path}");
    let etag = (header::ETAG, "\"e\"".to_owned());
    match (method, query.get("uploadId")) {
        (Method::POST, None) => {
            let id = format!("u{}", objects.uploads.len());
            objects.uploads.insert(id.clone(), HashMap::new());
            format!("<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>").into_response()
        }
        (Method::PUT, Some(id)) => {
            let number = query["partNumber"].parse().unwrap();
            objects.uploads.get_mut(id).unwrap().insert(number, body);
            [etag].into_response()
        }
        (Method::POST, Some(id)) => {
            let parts = objects.uploads.remove(id).unwrap();
            let mut parts: Vec<_> = parts.into_iter().collect();
            parts.sort_by_key(|(number, _)| *number);
            let whole: Vec<u8> = parts.into_iter().flat_map(|(_, part)| part).collect();
            objects.whole.insert(path, whole.into());
            "<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>"
                .into_response()
        }
        (Method::DELETE, Some(id)) => {
            objects.uploads.remove(id);
            StatusCode::NO_CONTENT.into_response()
        }
        (Method::PUT, None) => {
            objects.whole.insert(path, body);
            [etag].into_response()
        }
        (_, _) => {
            let Some(found) = objects.whole.get(&path).cloned() else {
                return StatusCode::NOT_FOUND.into_response();
            };
            let modified = (
                header::LAST_MODIFIED,
                "Mon, 02 Nov 2026 10:00:00 GMT".to_owned(),
            );
            let Some(range) = headers.get(header::RANGE) else {
                return ([etag, modified], found).into_response();
            };
            let (first, last) = range.to_str().unwrap()["bytes=".len()..]
                .split_once('-')
                .unwrap();
            let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
            let shown = (
                header::CONTENT_RANGE,
                format!("bytes {first}-{last}/{}", found.len()),
            );
            (
                StatusCode::PARTIAL_CONTENT,
                [etag, modified, shown],
                found.slice(first..=last),
            )
                .into_response()
        }
    }
}

#[tokio::test]
async fn s3_bucket_over_http_needs_permission() {
    let s3_state = S3::default();
    let service = Router::new()
        .fallback(serve_s3)
        .layer(axum::extract::DefaultBodyLimit::disable())
        .with_state(s3_state.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, service).await });
    let settings = [
        ("AWS_ENDPOINT", format!("http://{address}")),
        ("AWS_ALLOW_HTTP", "true".to_owned()),
        ("AWS_REGION", "here".to_owned()),
        ("AWS_ACCESS_KEY_ID", "me".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "hunter2".to_owned()),
    ]
    .map(|(key, value)| (key.to_owned(), value));
    let blobs = Blobs::open_with("s3://bucket/prefix", &settings).unwrap();
    check_storage(&blobs).await;
    assert!(!format!("{blobs:?}").contains("hunter2"));
    {
        let objects = s3_state.0.lock().unwrap();
        assert!(objects.whole.is_empty());
        assert!(objects.uploads.is_empty(), "the aborted upload is gone");
    }
    // Plain HTTP is used only if it is allowed.
    let secure: Vec<_> = settings
        .into_iter()
        .filter(|(key, _)| key != "AWS_ALLOW_HTTP")
        .collect();
    let blobs = Blobs::open_with("s3://bucket/prefix", &secure).unwrap();
    let refused = blobs.put("a", Bytes::from_static(b"x")).await;
    assert!(
        matches!(refused, Err(BlobError::Failed { .. })),
        "{refused:?}"
    );
}

/// Mock of Azure's blob service for small blobs. Requests must be signed.
async fn serve_azure(
    State(s3): State<S3>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let signed = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.starts_with("SharedKey me:"));
    if !signed {
        return StatusCode::FORBIDDEN.into_response();
    }
    let path = uri.path().to_owned();
    assert!(path.starts_with("/me/container/prefix/"), "{path}");
    let mut objects = s3.0.lock().unwrap_or_else(PoisonError::into_inner);
    let etag = (header::ETAG, "\"e\"".to_owned());
    if method == Method::PUT {
        objects.whole.insert(path, body);
        return (StatusCode::CREATED, [etag]).into_response();
    }
    let modified = (
        header::LAST_MODIFIED,
        "Mon, 02 Nov 2026 10:00:00 GMT".to_owned(),
    );
    match objects.whole.get(&path).cloned() {
        Some(found) => ([etag, modified], found).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

#[tokio::test]
async fn azure_container_stores_blobs() {
    let service = Router::new()
        .fallback(serve_azure)
        .with_state(S3::default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, service).await });
    let settings = [
        ("AZURE_STORAGE_ENDPOINT", format!("http://{address}/me")),
        ("AZURE_ALLOW_HTTP", "true".to_owned()),
        ("AZURE_STORAGE_ACCOUNT_NAME", "me".to_owned()),
        ("AZURE_STORAGE_ACCOUNT_KEY", "aHVudGVyMg==".to_owned()),
    ]
    .map(|(key, value)| (key.to_owned(), value));
    let blobs = Blobs::open_with("az://container/prefix", &settings).unwrap();
    blobs
        .put("logs/r1/1/0", Bytes::from_static(b"hello"))
        .await
        .unwrap();
    assert_eq!(blobs.get("logs/r1/1/0", 5).await.unwrap(), "hello");
    let missing = blobs.get("logs/r1/1/5", 5).await;
    assert!(
        matches!(missing, Err(BlobError::NotFound(_))),
        "{missing:?}"
    );
}

/// Storage of a service that sends `response` to every request.
fn responding_with(response: &'static str) -> Blobs {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 8192]);
            let head = "Connection: close\r\nETag: \"e\"\r\nLast-Modified: Mon, 02 Nov 2026 10:00:00 GMT\r\n";
            let (status, rest) = response.split_once("\r\n").unwrap();
            let _ = stream.write_all(format!("HTTP/1.1 {status}\r\n{head}{rest}").as_bytes());
        }
    });
    let settings = [
        ("AWS_ENDPOINT", format!("http://{address}")),
        ("AWS_ALLOW_HTTP", "true".to_owned()),
        ("AWS_REGION", "here".to_owned()),
        ("AWS_ACCESS_KEY_ID", "me".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "hunter2".to_owned()),
    ]
    .map(|(key, value)| (key.to_owned(), value));
    Blobs::open_with("s3://bucket/prefix", &settings).unwrap()
}

/// A response with another range or size must not become part of a log or context.
#[tokio::test]
async fn responses_with_wrong_lengths_are_rejected() {
    for (name, response) in [
        (
            "more than was kept",
            "200 OK\r\nContent-Length: 6\r\n\r\nhello!",
        ),
        (
            "a petabyte",
            "200 OK\r\nContent-Length: 1125899906842624\r\n\r\nhello",
        ),
    ] {
        let error = responding_with(response)
            .get("logs/r1/1/0", 5)
            .await
            .unwrap_err();
        assert!(
            matches!(error, BlobError::TooLarge { limit: 5, .. }),
            "{name}: {error:?}"
        );
    }
    for (name, response) in [
        (
            "another range",
            "206 P\r\nContent-Range: bytes 0-2/11\r\nContent-Length: 3\r\n\r\nhel",
        ),
        (
            "all in place of a part",
            "200 OK\r\nContent-Length: 11\r\n\r\nhello world",
        ),
        ("no range", "206 P\r\nContent-Length: 3\r\n\r\nhel"),
        (
            "more than the range",
            "206 P\r\nContent-Range: bytes 6-8/11\r\nContent-Length: 11\r\n\r\nhello world",
        ),
        (
            "less than the range",
            "206 P\r\nContent-Range: bytes 6-8/11\r\nContent-Length: 2\r\n\r\nwo",
        ),
    ] {
        let read = async {
            let stream = responding_with(response)
                .get_stream("contexts/c1/0", Some(6..9))
                .await;
            let parts = stream.map_err(std::io::Error::other)?;
            parts.try_collect::<Vec<Bytes>>().await
        };
        assert!(read.await.is_err(), "{name}");
    }
}
