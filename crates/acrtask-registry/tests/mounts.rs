//! Blobs that a registry refuses to mount from another of its repositories.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use acrtask_model::{Digest, ImageRef};
use acrtask_registry::{
    Credentials, Registry, Settings,
    manifest::{OCI_MANIFEST, sha256},
};
use wiremock::{Mock, MockServer, Request, ResponseTemplate, matchers::any};

fn reference(server: &MockServer, rest: &str) -> ImageRef {
    format!("{}/{rest}", server.address()).parse().unwrap()
}

/// Sets up a registry with an image of one layer at `from`. It refuses to mount blobs with
/// `status`.
async fn mock_registry_without_mounts(server: &MockServer, status: u16) -> Digest {
    let config = "{}";
    let layer = "a layer";
    let part = |media: &str, text: &str| {
        let digest = sha256(text.as_bytes());
        format!(
            r#"{{"mediaType":"{media}","digest":"{digest}","size":{}}}"#,
            text.len()
        )
    };
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{},"layers":[{}]}}"#,
        part("application/vnd.oci.image.config.v1+json", config),
        part("application/vnd.oci.image.layer.v1.tar", layer)
    );
    let digest = sha256(manifest.as_bytes());
    Mock::given(any())
        .respond_with(move |request: &Request| {
            let path = request.url.path();
            let query = request.url.query().unwrap_or_default();
            match (request.method.as_str(), path) {
                ("GET", path) if path.starts_with("/v2/from/manifests/") => {
                    ResponseTemplate::new(200).set_body_raw(manifest.clone(), OCI_MANIFEST)
                }
                ("GET", path) if path.ends_with(sha256(config.as_bytes()).as_str()) => {
                    ResponseTemplate::new(200).set_body_string(config)
                }
                ("GET", path) if path.starts_with("/v2/from/blobs/") => {
                    ResponseTemplate::new(200).set_body_string(layer)
                }
                ("POST", "/v2/to/blobs/uploads/") if query.contains("mount=") => {
                    ResponseTemplate::new(status)
                }
                ("POST", "/v2/to/blobs/uploads/") => {
                    ResponseTemplate::new(202).insert_header("Location", "/v2/to/blobs/uploads/1")
                }
                ("PUT", _) => ResponseTemplate::new(201),
                _ => ResponseTemplate::new(404),
            }
        })
        .mount(server)
        .await;
    digest
}

#[tokio::test]
async fn copy_uploads_a_blob_if_the_registry_refuses_to_mount_it() {
    for status in [401, 403, 404, 405] {
        let server = MockServer::start().await;
        let digest = mock_registry_without_mounts(&server, status).await;
        let (from, to) = (reference(&server, "from:1"), reference(&server, "to:1"));
        let copied = Registry::new(Credentials::new(), Settings::default())
            .unwrap()
            .copy(&from, &to)
            .await;
        assert_eq!(copied.unwrap(), digest, "{status}");
        let requests = server.received_requests().await.unwrap();
        let uploaded = requests
            .iter()
            .filter(|request| {
                request.method.as_str() == "PUT" && request.url.path().contains("uploads")
            })
            .count();
        assert_eq!(uploaded, 2, "{status}: the configuration and the layer");
    }
}
