//! The client against a scripted server: its requests, its reactions to responses, and the secrets
//! that it keeps.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests")]

use std::time::Duration;

use acrtask_model::{Digest, ImageRef, Secret};
use acrtask_registry::{
    Credentials, Registry, RegistryError, Settings,
    manifest::{OCI_INDEX, OCI_MANIFEST, sha256},
};
use futures::StreamExt as _;
use wiremock::{
    Mock, MockServer, Request, ResponseTemplate,
    matchers::{any, method, path, query_param},
};

const INDEX: &str =
    r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;

fn host(server: &MockServer) -> String {
    server.address().to_string()
}

fn reference(server: &MockServer, rest: &str) -> ImageRef {
    format!("{}/{rest}", host(server)).parse().unwrap()
}

fn anonymous() -> Registry {
    Registry::new(Credentials::new(), Settings::default()).unwrap()
}

fn with_password(server: &MockServer) -> Registry {
    let credentials = Credentials::new().with(&host(server), "user", Secret::new("hunter2"));
    Registry::new(credentials, Settings::default()).unwrap()
}

fn found(body: &str) -> ResponseTemplate {
    ResponseTemplate::new(200)
        .insert_header("Docker-Content-Digest", sha256(body.as_bytes()).as_str())
        .set_body_raw(body.to_owned(), OCI_INDEX)
}

fn authorization(request: &Request) -> Option<&str> {
    request
        .headers
        .get("authorization")
        .map(|value| value.to_str().unwrap())
}

/// Returns an error with its help, as a user sees it.
fn shown(error: &RegistryError, server: &MockServer) -> String {
    let mut text = error.to_string();
    if let Some(help) = error.help() {
        text += &format!(" | {help}");
    }
    text.replace(&host(server), "HOST")
}

#[tokio::test]
async fn resolve_sends_head_with_every_media_type() {
    let server = MockServer::start().await;
    Mock::given(method("HEAD"))
        .and(path("/v2/team/app/manifests/1"))
        .respond_with(found(INDEX))
        .expect(1)
        .mount(&server)
        .await;
    let resolved = anonymous()
        .resolve(&reference(&server, "team/app:1"))
        .await
        .unwrap();
    assert_eq!(resolved.digest, sha256(INDEX.as_bytes()));
    assert_eq!(resolved.media_type, OCI_INDEX);
    assert_eq!(resolved.size, INDEX.len() as u64);
    let request = &server.received_requests().await.unwrap()[0];
    let accept: Vec<&str> = request
        .headers
        .get_all("accept")
        .iter()
        .map(|value| value.to_str().unwrap())
        .collect();
    // Some registries read only the first line.
    assert_eq!(accept.len(), 1, "{accept:?}");
    for media_type in [
        OCI_INDEX,
        OCI_MANIFEST,
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    ] {
        assert!(
            accept.iter().any(|value| value.contains(media_type)),
            "{media_type} in {accept:?}"
        );
    }
}

#[tokio::test]
async fn resolve_falls_back_to_get_without_usable_head() {
    for head in [ResponseTemplate::new(405), ResponseTemplate::new(200)] {
        let server = MockServer::start().await;
        Mock::given(method("HEAD"))
            .respond_with(head)
            .mount(&server)
            .await;
        Mock::given(method("GET"))
            .respond_with(ResponseTemplate::new(200).set_body_raw(INDEX, OCI_INDEX))
            .mount(&server)
            .await;
        let resolved = anonymous()
            .resolve(&reference(&server, "app"))
            .await
            .unwrap();
        assert_eq!(resolved.digest, sha256(INDEX.as_bytes()));
    }
}

#[tokio::test]
async fn content_with_a_wrong_digest_is_refused() {
    let server = MockServer::start().await;
    let wrong = sha256(b"something else");
    Mock::given(any())
        .respond_with(
            ResponseTemplate::new(200)
                .insert_header("Docker-Content-Digest", wrong.as_str())
                .set_body_raw(INDEX, OCI_INDEX),
        )
        .mount(&server)
        .await;
    let registry = anonymous();
    let by_tag = registry
        .manifest(&reference(&server, "app:1"))
        .await
        .unwrap_err();
    assert!(
        matches!(by_tag, RegistryError::Invalid { .. }),
        "{by_tag:?}"
    );
    let requested = reference(&server, &format!("app@{}", sha256(b"requested")));
    let by_digest = registry.resolve(&requested).await.unwrap_err();
    assert!(
        by_digest.to_string().contains("its digest should be"),
        "{by_digest}"
    );
    let blob = registry
        .blob_bytes(&reference(&server, "app"), &sha256(b"requested"), 1 << 20)
        .await
        .unwrap_err();
    assert!(blob.to_string().contains("its digest should be"), "{blob}");
}

#[tokio::test]
async fn content_in_memory_has_a_size_limit() {
    let server = MockServer::start().await;
    let body = vec![b' '; 5 << 20];
    Mock::given(any())
        .respond_with(ResponseTemplate::new(200).set_body_raw(body.clone(), OCI_INDEX))
        .mount(&server)
        .await;
    let error = anonymous()
        .manifest(&reference(&server, "app"))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            RegistryError::TooLarge {
                limit: 4_194_304,
                ..
            }
        ),
        "{error:?}"
    );
    let mut stream = anonymous()
        .blob(&reference(&server, "app"), &sha256(&body), 1000)
        .await
        .unwrap();
    let mut last = None;
    while let Some(item) = stream.next().await {
        last = Some(item);
    }
    assert!(matches!(
        last,
        Some(Err(RegistryError::TooLarge { limit: 1000, .. }))
    ));
}

async fn token_server(server: &MockServer, answer: &str) {
    Mock::given(path("/token"))
        .respond_with(
            ResponseTemplate::new(200).set_body_raw(answer.to_owned(), "application/json"),
        )
        .mount(server)
        .await;
}

/// Responds with `INDEX` to the given token, and to any other request with a challenge for the
/// server's own `/token`.
async fn guarded(server: &MockServer, token: &'static str) {
    let challenge = format!(
        r#"Bearer realm="http://{}/token",service="here",scope="repository:app:pull""#,
        host(server)
    );
    Mock::given(path("/v2/app/manifests/1"))
        .respond_with(move |request: &Request| {
            if authorization(request) == Some(&format!("Bearer {token}")) {
                found(INDEX)
            } else {
                ResponseTemplate::new(401).insert_header("WWW-Authenticate", challenge.as_str())
            }
        })
        .mount(server)
        .await;
}

#[tokio::test]
async fn token_is_requested_once_and_reused() {
    let server = MockServer::start().await;
    guarded(&server, "t1").await;
    Mock::given(path("/token"))
        .and(query_param("service", "here"))
        .and(query_param("scope", "repository:app:pull"))
        .respond_with(
            ResponseTemplate::new(200).set_body_raw(r#"{"token":"t1"}"#, "application/json"),
        )
        .expect(1)
        .mount(&server)
        .await;
    let registry = with_password(&server);
    for _ in 0..3 {
        registry
            .resolve(&reference(&server, "app:1"))
            .await
            .unwrap();
    }
    let requests = server.received_requests().await.unwrap();
    let token_request = requests
        .iter()
        .find(|request| request.url.path() == "/token")
        .unwrap();
    // user:hunter2
    assert_eq!(authorization(token_request), Some("Basic dXNlcjpodW50ZXIy"));
    assert!(
        requests
            .iter()
            .filter(|request| request.url.path() != "/token")
            .all(|request| {
                !authorization(request)
                    .unwrap_or_default()
                    .starts_with("Basic")
            })
    );
}

#[tokio::test]
async fn expired_token_is_replaced() {
    let server = MockServer::start().await;
    guarded(&server, "new").await;
    Mock::given(path("/token"))
        .respond_with(
            ResponseTemplate::new(200)
                .set_body_raw(r#"{"access_token":"old"}"#, "application/json"),
        )
        .up_to_n_times(1)
        .mount(&server)
        .await;
    token_server(&server, r#"{"access_token":"new"}"#).await;
    let registry = with_password(&server);
    let denied = registry
        .resolve(&reference(&server, "app:1"))
        .await
        .unwrap_err();
    assert!(matches!(denied, RegistryError::Denied { .. }), "{denied:?}");
    registry
        .resolve(&reference(&server, "app:1"))
        .await
        .unwrap();
}

#[tokio::test]
async fn identity_token_is_sent_by_post() {
    let server = MockServer::start().await;
    guarded(&server, "t").await;
    token_server(&server, r#"{"access_token":"t"}"#).await;
    let folder = tempfile::tempdir().unwrap();
    let config = format!(
        r#"{{"auths":{{"{}":{{"auth":"","identitytoken":"refresh-me"}}}}}}"#,
        host(&server)
    );
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let credentials = Credentials::new().with_docker_config(Some(folder.path()));
    let registry = Registry::new(credentials, Settings::default()).unwrap();
    registry
        .resolve(&reference(&server, "app:1"))
        .await
        .unwrap();
    let requests = server.received_requests().await.unwrap();
    let post = requests
        .iter()
        .find(|request| request.url.path() == "/token")
        .unwrap();
    assert_eq!(post.method.as_str(), "POST");
    let body = String::from_utf8(post.body.clone()).unwrap();
    for part in [
        "grant_type=refresh_token",
        "refresh_token=refresh-me",
        "service=here",
        "scope=repository%3Aapp%3Apull",
    ] {
        assert!(body.contains(part), "{part} in {body}");
    }
}

#[tokio::test]
async fn basic_challenge_receives_the_password() {
    let server = MockServer::start().await;
    Mock::given(any())
        .respond_with(|request: &Request| match authorization(request) {
            Some("Basic dXNlcjpodW50ZXIy") => found(INDEX),
            _ => ResponseTemplate::new(401)
                .insert_header("WWW-Authenticate", r#"Basic realm="here""#),
        })
        .mount(&server)
        .await;
    with_password(&server)
        .resolve(&reference(&server, "app:1"))
        .await
        .unwrap();
    let error = anonymous()
        .resolve(&reference(&server, "app:1"))
        .await
        .unwrap_err();
    assert_eq!(
        shown(&error, &server),
        "cannot resolve HOST/app:1: HOST denied access | no credential was found for HOST: log in with `docker login HOST`, or give `--credential HOST=USER:@FILE`"
    );
}

#[tokio::test]
async fn redirect_to_another_host_carries_no_credential() {
    let registry_server = MockServer::start().await;
    let storage = MockServer::start().await;
    let blob = b"a blob";
    let digest = sha256(blob);
    Mock::given(any())
        .respond_with(ResponseTemplate::new(200).set_body_bytes(blob.to_vec()))
        .mount(&storage)
        .await;
    let location = format!("http://{}/stored?signature=abc", host(&storage));
    Mock::given(any())
        .respond_with(move |request: &Request| match authorization(request) {
            Some(_) => ResponseTemplate::new(307).insert_header("Location", location.as_str()),
            None => ResponseTemplate::new(401).insert_header("WWW-Authenticate", "Basic"),
        })
        .mount(&registry_server)
        .await;
    let bytes = with_password(&registry_server)
        .blob_bytes(&reference(&registry_server, "app"), &digest, 1 << 20)
        .await
        .unwrap();
    assert_eq!(&bytes[..], blob);
    let seen = storage.received_requests().await.unwrap();
    assert_eq!(seen.len(), 1);
    assert_eq!(authorization(&seen[0]), None);
    assert!(seen[0].headers.get("referer").is_none());
}

#[tokio::test]
async fn upload_to_another_host_carries_no_credential() {
    let registry_server = MockServer::start().await;
    let storage = MockServer::start().await;
    Mock::given(method("PUT"))
        .respond_with(ResponseTemplate::new(201))
        .expect(1)
        .mount(&storage)
        .await;
    let location = format!("http://{}/upload?x=1", host(&storage));
    Mock::given(any())
        .respond_with(move |request: &Request| {
            match (authorization(request), request.method.as_str()) {
                (None, _) => ResponseTemplate::new(401).insert_header("WWW-Authenticate", "Basic"),
                (_, "POST") => {
                    ResponseTemplate::new(202).insert_header("Location", location.as_str())
                }
                _ => ResponseTemplate::new(404),
            }
        })
        .mount(&registry_server)
        .await;
    let target = reference(&registry_server, "app");
    with_password(&registry_server)
        .put_blob(&target, "a blob".into())
        .await
        .unwrap();
    let seen = storage.received_requests().await.unwrap();
    assert_eq!(authorization(&seen[0]), None);
    let digest = seen[0]
        .url
        .query_pairs()
        .find(|(key, _)| key == "digest")
        .unwrap()
        .1
        .into_owned();
    assert_eq!(digest.parse::<Digest>().unwrap(), sha256(b"a blob"));
}

#[tokio::test]
async fn rate_limited_calls_wait_up_to_a_limit() {
    let server = MockServer::start().await;
    Mock::given(any())
        .respond_with(ResponseTemplate::new(429).insert_header("Retry-After", "0"))
        .up_to_n_times(2)
        .mount(&server)
        .await;
    Mock::given(any())
        .respond_with(found(INDEX))
        .mount(&server)
        .await;
    anonymous()
        .resolve(&reference(&server, "app:1"))
        .await
        .unwrap();
    assert_eq!(server.received_requests().await.unwrap().len(), 3);

    for (header, retry_after, requests) in [
        ("0", Some(Duration::ZERO), 4),
        ("3600", Some(Duration::from_secs(3600)), 1),
    ] {
        let server = MockServer::start().await;
        Mock::given(any())
            .respond_with(ResponseTemplate::new(429).insert_header("Retry-After", header))
            .mount(&server)
            .await;
        match anonymous()
            .resolve(&reference(&server, "app:1"))
            .await
            .unwrap_err()
        {
            RegistryError::RateLimited {
                retry_after: got, ..
            } => assert_eq!(got, retry_after),
            other => panic!("{other:?}"),
        }
        assert_eq!(
            server.received_requests().await.unwrap().len(),
            requests,
            "{header}"
        );
    }
}

#[tokio::test]
async fn gateway_errors_are_retried() {
    let server = MockServer::start().await;
    Mock::given(any())
        .respond_with(ResponseTemplate::new(503))
        .up_to_n_times(1)
        .mount(&server)
        .await;
    Mock::given(any())
        .respond_with(found(INDEX))
        .mount(&server)
        .await;
    anonymous()
        .resolve(&reference(&server, "app:1"))
        .await
        .unwrap();
}

#[tokio::test]
async fn errors_name_the_attempt_and_give_advice() {
    let body = r#"{"errors":[{"code":"DENIED","message":"quota \u001b[31mexceeded"}]}"#;
    for (status, expected) in [
        (
            404,
            "cannot read the manifest of HOST/app:1: HOST does not have it | check the name and the tag; if it is private, give a credential for HOST",
        ),
        (
            403,
            "cannot read the manifest of HOST/app:1: HOST denied access: quota [31mexceeded | no credential was found for HOST: log in with `docker login HOST`, or give `--credential HOST=USER:@FILE`",
        ),
        (
            500,
            "cannot read the manifest of HOST/app:1: HOST responded with 500: quota [31mexceeded",
        ),
    ] {
        let server = MockServer::start().await;
        Mock::given(any())
            .respond_with(ResponseTemplate::new(status).set_body_string(body))
            .mount(&server)
            .await;
        let error = anonymous()
            .manifest(&reference(&server, "app:1"))
            .await
            .unwrap_err();
        assert_eq!(shown(&error, &server), expected);
    }
    let closed: ImageRef = "127.0.0.1:1/app:1".parse().unwrap();
    let error = anonymous().resolve(&closed).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot resolve 127.0.0.1:1/app:1: 127.0.0.1:1 cannot be reached"
    );
}

#[tokio::test]
async fn error_does_not_contain_a_refused_password() {
    let server = MockServer::start().await;
    guarded(&server, "never").await;
    Mock::given(path("/token"))
        .respond_with(ResponseTemplate::new(401))
        .mount(&server)
        .await;
    let error = with_password(&server)
        .resolve(&reference(&server, "app:1"))
        .await
        .unwrap_err();
    assert_eq!(
        shown(&error, &server),
        "cannot resolve HOST/app:1: HOST denied access | check the credential for HOST: it is wrong or expired, or does not allow this"
    );
    assert!(!format!("{error:?}").contains("hunter2"));
}

/// Registries may accept blobs slowly.
#[tokio::test]
#[ignore = "takes more than a minute"]
async fn upload_may_exceed_the_read_timeout() {
    let server = MockServer::start().await;
    let target = reference(&server, "app:1");
    Mock::given(method("HEAD"))
        .respond_with(ResponseTemplate::new(404))
        .mount(&server)
        .await;
    Mock::given(method("POST"))
        .respond_with(
            ResponseTemplate::new(202).insert_header("Location", "/v2/app/blobs/uploads/1"),
        )
        .mount(&server)
        .await;
    Mock::given(method("PUT"))
        .respond_with(ResponseTemplate::new(201))
        .mount(&server)
        .await;
    let pieces = futures::stream::iter(0..7).then(|_| async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        Ok::<_, std::io::Error>(bytes::Bytes::from_static(b"piece"))
    });
    let digest = sha256(&b"piece".repeat(7));
    let stored = anonymous()
        .put_blob_stream(&target, &digest, 35, &[], async || Ok(pieces))
        .await;
    stored.unwrap();
}
