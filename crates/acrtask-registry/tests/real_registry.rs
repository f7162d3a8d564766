//! The client against a real registry.
//!
//! `ACRTASK_TEST_REGISTRY` names an open registry (`127.0.0.1:5000`). `ACRTASK_TEST_AUTH_REGISTRY`
//! names one that requires the user `ACRTASK_TEST_AUTH_USER` and the password
//! `ACRTASK_TEST_AUTH_PASSWORD`. `cargo xtask test` sets all of them.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests")]

use std::collections::BTreeMap;

use acrtask_model::{Digest, ImageRef, Secret};
use acrtask_registry::{
    Credentials, IndexEntry, ManifestBody, Registry, RegistryError, Settings,
    attestation::PROVENANCE,
    manifest::{OCI_INDEX, OCI_MANIFEST, sha256},
};
use serde_json::json;

/// Returns the value of the variable. `None` only if `ACRTASK_TEST_SKIP_ENGINE` allows to skip the
/// test.
fn setting(name: &str) -> Option<String> {
    match std::env::var(name) {
        Ok(value) => Some(value),
        Err(_) if std::env::var("ACRTASK_TEST_SKIP_ENGINE").is_ok_and(|value| value == "1") => {
            eprintln!("skipped: {name} is not set");
            None
        }
        Err(_) => panic!(
            "{name} is not set: run the tests with `cargo xtask test`, or set it to a registry's HOST:PORT; ACRTASK_TEST_SKIP_ENGINE=1 skips this test"
        ),
    }
}

/// Returns the name of a repository that no other test uses.
fn repository(host: &str, test: &str) -> String {
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_nanos();
    format!(
        "{host}/test-registry/{test}-{}-{nanos:x}",
        std::process::id()
    )
}

fn parsed(text: String) -> ImageRef {
    text.parse().unwrap()
}

fn client(credentials: Credentials) -> Registry {
    Registry::new(credentials, Settings::default()).unwrap()
}

/// Pushes an image for `architecture` with one layer that consists of `content`.
async fn push_image(
    registry: &Registry,
    target: &ImageRef,
    architecture: &str,
    content: &str,
) -> Digest {
    let config = json!({"os": "linux", "architecture": architecture, "rootfs": {"type": "layers", "diff_ids": []}}).to_string();
    let descriptor = |media_type: &str, text: &str| json!({"mediaType": media_type, "digest": sha256(text.as_bytes()), "size": text.len()});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", content)],
    })
    .to_string();
    registry.put_blob(target, config.into()).await.unwrap();
    registry
        .put_blob(target, content.to_owned().into())
        .await
        .unwrap();
    registry
        .put_manifest(target, OCI_MANIFEST, manifest.into())
        .await
        .unwrap()
}

#[tokio::test]
async fn pushed_image_can_be_resolved_tagged_and_read() {
    let Some(host) = setting("ACRTASK_TEST_REGISTRY") else {
        return;
    };
    let registry = client(Credentials::new());
    let image = parsed(format!("{}:1", repository(&host, "push")));
    let missing = registry.resolve(&image).await.unwrap_err();
    assert!(missing.is_not_found(), "{missing:?}");

    let digest = push_image(&registry, &image, "amd64", "layer one").await;
    let resolved = registry.resolve(&image).await.unwrap();
    assert_eq!(resolved.digest, digest);
    assert_eq!(resolved.media_type, OCI_MANIFEST);

    assert_eq!(registry.tag(&image, "other").await.unwrap(), digest);
    let other = registry
        .resolve(&image.with_tag("other").unwrap())
        .await
        .unwrap();
    assert_eq!(other.digest, digest);

    let platforms = registry.platforms(&image.at(digest.clone())).await.unwrap();
    let shown: Vec<String> = platforms
        .iter()
        .map(|(platform, digest)| format!("{platform}={digest}"))
        .collect();
    assert_eq!(shown, [format!("linux/amd64={digest}")]);

    let layer = registry
        .blob_bytes(&image, &sha256(b"layer one"), 100)
        .await
        .unwrap();
    assert_eq!(&layer[..], b"layer one");
}

/// Moves the tag to the manifest with the digest `to`. Returns the previous digest of the tag.
async fn move_tag(registry: &Registry, tag: &ImageRef, to: &Digest) -> Option<Digest> {
    let before = match registry.resolve(tag).await {
        Ok(found) => Some(found.digest),
        Err(error) => {
            assert!(error.is_not_found(), "{error:?}");
            None
        }
    };
    let source = tag.at(to.clone());
    let moved = registry.tag(&source, tag.tag().unwrap()).await.unwrap();
    assert_eq!(moved, *to);
    let found = registry.resolve(tag).await.unwrap();
    let stored = registry.manifest(&source).await.unwrap();
    assert_eq!(
        (found.digest, found.media_type),
        (to.clone(), stored.media_type)
    );
    before
}

#[tokio::test]
async fn untagged_manifest_is_promoted_and_rolled_back() {
    let Some(host) = setting("ACRTASK_TEST_REGISTRY") else {
        return;
    };
    let registry = client(Credentials::new());
    let tag = parsed(format!("{}:1", repository(&host, "staged")));

    // Pushes by digest. The repository has no tag, not even `latest`.
    let first = push_image(&registry, &tag.untagged(), "amd64", "first").await;
    let second = push_image(&registry, &tag.untagged(), "arm64", "second").await;
    let entries = [&first, &second].map(|digest| tag.at(digest.clone()));
    let mut all: Vec<IndexEntry> = Vec::new();
    for entry in &entries {
        all.extend(registry.entries(entry).await.unwrap());
    }
    let index = registry
        .put_index_untagged(&tag, &all, BTreeMap::new())
        .await
        .unwrap();
    for name in [tag.clone(), tag.with_tag("latest").unwrap()] {
        let missing = registry.resolve(&name).await.unwrap_err();
        assert!(missing.is_not_found(), "{name}: {missing:?}");
    }
    let found = registry.resolve(&tag.at(index.clone())).await.unwrap();
    assert_eq!(found.media_type, OCI_INDEX);

    // Moves the tag to an image, then to an index, and back.
    assert_eq!(move_tag(&registry, &tag, &first).await, None);
    assert_eq!(move_tag(&registry, &tag, &index).await, Some(first.clone()));
    assert_eq!(move_tag(&registry, &tag, &index).await, Some(index.clone()));
    assert_eq!(move_tag(&registry, &tag, &first).await, Some(index));

    // A missing manifest receives no tag, and the existing tag stays.
    let nowhere = tag.at(sha256(b"nowhere"));
    let error = registry.tag(&nowhere, "1").await.unwrap_err();
    assert!(error.is_not_found(), "{error:?}");
    assert_eq!(registry.resolve(&tag).await.unwrap().digest, first);
}

#[tokio::test]
async fn streamed_blob_is_uploaded_once() {
    let Some(host) = setting("ACRTASK_TEST_REGISTRY") else {
        return;
    };
    let registry = client(Credentials::new());
    let target = parsed(repository(&host, "stream"));
    let content = vec![7_u8; 300_000];
    let digest = sha256(&content);
    let size = content.len() as u64;
    let chunks = |content: &[u8]| {
        let chunks: Vec<Result<bytes::Bytes, std::io::Error>> = content
            .chunks(4096)
            .map(|chunk| Ok(chunk.to_vec().into()))
            .collect();
        futures::stream::iter(chunks)
    };
    // The registry refuses content with another digest.
    let other = chunks(&[8; 300_000]);
    let refused = registry
        .put_blob_stream(&target, &digest, size, &[], async || Ok(other))
        .await;
    assert!(refused.is_err());
    let right = chunks(&content);
    registry
        .put_blob_stream(&target, &digest, size, &[], async || Ok(right))
        .await
        .unwrap();
    let read = registry.blob_bytes(&target, &digest, size).await.unwrap();
    assert_eq!(read, content);
    // The client does not open the content of an existing blob.
    let unopened = async || -> Result<futures::stream::Empty<Result<bytes::Bytes, std::io::Error>>, RegistryError> {
        panic!("the registry has the blob")
    };
    registry
        .put_blob_stream(&target, &digest, size, &[], unopened)
        .await
        .unwrap();
    // The registry mounts a blob of another repository.
    let elsewhere: ImageRef = format!("{}-elsewhere", target.untagged()).parse().unwrap();
    let unread = async || -> Result<futures::stream::Empty<Result<bytes::Bytes, std::io::Error>>, RegistryError> {
        panic!("another repository has the blob")
    };
    let mounts = [elsewhere.clone(), target.clone()];
    registry
        .put_blob_stream(&elsewhere, &digest, size, &mounts, unread)
        .await
        .unwrap();
    let read = registry
        .blob_bytes(&elsewhere, &digest, size)
        .await
        .unwrap();
    assert_eq!(read, content);
}

#[tokio::test]
async fn tags_are_listed_in_pages() {
    let Some(host) = setting("ACRTASK_TEST_REGISTRY") else {
        return;
    };
    let registry = client(Credentials::new());
    let image = parsed(format!("{}:t0", repository(&host, "tags")));
    let missing = registry.tags(&image, None).await.unwrap_err();
    assert!(missing.is_not_found(), "{missing:?}");
    push_image(&registry, &image, "amd64", "layer one").await;
    // Reads the manifest once. A registry that replaces it at this moment may not find it.
    let manifest = registry.manifest(&image).await.unwrap();
    // More tags than one requested page.
    let mut wanted = vec!["t0".to_owned()];
    for at in (1..1003).step_by(50) {
        let names: Vec<String> = (at..(at + 50).min(1003)).map(|n| format!("t{n}")).collect();
        let tagged = names.iter().map(async |name| {
            let tag = image.with_tag(name).unwrap();
            let raw = manifest.raw.clone();
            registry.put_manifest(&tag, OCI_MANIFEST, raw).await
        });
        for digest in futures::future::join_all(tagged).await {
            digest.unwrap();
        }
        wanted.extend(names);
    }
    let (mut found, mut sizes, mut next) = (Vec::new(), Vec::new(), None);
    loop {
        let page = registry.tags(&image, next.as_ref()).await.unwrap();
        sizes.push(page.tags.len());
        found.extend(page.tags);
        next = page.next;
        if next.is_none() {
            break;
        }
    }
    wanted.sort();
    found.sort();
    assert_eq!(found, wanted);
    // Older registries ignore the requested page size.
    assert!(sizes == [1000, 3] || sizes == [1003], "{sizes:?}");
}

#[tokio::test]
async fn put_index_copies_images_of_other_repositories() {
    let Some(host) = setting("ACRTASK_TEST_REGISTRY") else {
        return;
    };
    let registry = client(Credentials::new());
    let amd64 = parsed(format!("{}:1", repository(&host, "amd64")));
    let arm64 = parsed(format!("{}:1", repository(&host, "arm64")));
    let amd64_digest = push_image(&registry, &amd64, "amd64", "for amd64").await;
    let arm64_digest = push_image(&registry, &arm64, "arm64", "for arm64").await;
    let mut entries: Vec<IndexEntry> = Vec::new();
    for source in [&amd64, &arm64] {
        entries.extend(registry.entries(source).await.unwrap());
    }
    // `docker manifest annotate --variant v8`
    entries[1].descriptor.platform.as_mut().unwrap().variant = Some("v8".into());

    let target = parsed(format!("{}:multi", repository(&host, "index")));
    let digest = registry
        .put_index(&target, &entries, BTreeMap::new())
        .await
        .unwrap();
    let resolved = registry.resolve(&target).await.unwrap();
    assert_eq!(
        (resolved.digest, resolved.media_type.as_str()),
        (digest, OCI_INDEX)
    );
    let platforms = registry.platforms(&target).await.unwrap();
    let shown: Vec<String> = platforms
        .iter()
        .map(|(platform, digest)| format!("{platform}={digest}"))
        .collect();
    assert_eq!(
        shown,
        [
            format!("linux/amd64={amd64_digest}"),
            format!("linux/arm64/v8={arm64_digest}")
        ]
    );
    // The new repository contains copies of the blobs.
    let layer = registry
        .blob_bytes(&target, &sha256(b"for arm64"), 100)
        .await
        .unwrap();
    assert_eq!(&layer[..], b"for arm64");

    let copy = parsed(format!("{}:copy", repository(&host, "copy")));
    assert_eq!(
        registry.copy(&target, &copy).await.unwrap(),
        registry.resolve(&target).await.unwrap().digest
    );
    registry
        .blob_bytes(&copy, &sha256(b"for amd64"), 100)
        .await
        .unwrap();
}

#[tokio::test]
async fn attestations_are_read_from_an_index() {
    let Some(host) = setting("ACRTASK_TEST_REGISTRY") else {
        return;
    };
    let registry = client(Credentials::new());
    let target = parsed(format!("{}:1", repository(&host, "attested")));
    let image = push_image(&registry, &target, "amd64", "attested").await;
    let statement =
        json!({"_type": "https://in-toto.io/Statement/v0.1", "predicate": {"materials": []}})
            .to_string();
    let config = "{}";
    let layer = |predicate: &str| {
        json!({
            "mediaType": "application/vnd.in-toto+json",
            "digest": sha256(statement.as_bytes()),
            "size": statement.len(),
            "annotations": {"in-toto.io/predicate-type": predicate},
        })
    };
    let attestation = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": sha256(config.as_bytes()), "size": config.len()},
        "layers": [layer("https://slsa.dev/provenance/v0.2"), layer("https://spdx.dev/Document")],
    })
    .to_string();
    registry
        .put_blob(&target, statement.clone().into())
        .await
        .unwrap();
    registry.put_blob(&target, config.into()).await.unwrap();
    let attestation_size = attestation.len();
    let attestation = registry
        .put_manifest(
            &target.at(sha256(attestation.as_bytes())),
            OCI_MANIFEST,
            attestation.into(),
        )
        .await
        .unwrap();
    let mut entries = registry.entries(&target.at(image.clone())).await.unwrap();
    let mut companion = entries[0].clone();
    companion.source = target.at(attestation.clone());
    companion.descriptor.digest = attestation;
    companion.descriptor.size = attestation_size as u64;
    companion.descriptor.platform =
        Some(serde_json::from_value(json!({"os": "unknown", "architecture": "unknown"})).unwrap());
    companion.descriptor.annotations = BTreeMap::from([
        (
            "vnd.docker.reference.type".into(),
            "attestation-manifest".into(),
        ),
        ("vnd.docker.reference.digest".into(), image.to_string()),
    ]);
    entries.push(companion);
    let index = parsed(format!("{}:index", target.name()));
    registry
        .put_index(&index, &entries, BTreeMap::new())
        .await
        .unwrap();

    assert_eq!(
        registry.platforms(&index).await.unwrap().len(),
        1,
        "the attestation is not a platform"
    );
    let found = registry.attestations(&index, PROVENANCE).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].image, image);
    assert_eq!(
        found[0].statement["_type"],
        "https://in-toto.io/Statement/v0.1"
    );
    assert_eq!(registry.attestations(&index, "").await.unwrap().len(), 2);
    assert!(registry.attestations(&target, "").await.unwrap().is_empty());
}

#[tokio::test]
async fn private_registry_requires_its_password() {
    let Some(open) = setting("ACRTASK_TEST_REGISTRY") else {
        return;
    };
    let Some(host) = setting("ACRTASK_TEST_AUTH_REGISTRY") else {
        return;
    };
    let (Some(user), Some(password)) = (
        setting("ACRTASK_TEST_AUTH_USER"),
        setting("ACRTASK_TEST_AUTH_PASSWORD"),
    ) else {
        return;
    };
    let image = parsed(format!("{}:1", repository(&host, "private")));
    let denied = client(Credentials::new())
        .resolve(&image)
        .await
        .unwrap_err();
    assert!(matches!(denied, RegistryError::Denied { .. }), "{denied:?}");
    assert!(
        denied.help().unwrap().contains("--credential"),
        "{denied:?}"
    );
    let wrong = Credentials::new().with(&host, &user, Secret::new("not it"));
    let denied = client(wrong).resolve(&image).await.unwrap_err();
    assert!(
        denied.help().unwrap().contains("wrong or expired"),
        "{denied:?}"
    );

    let registry = client(Credentials::new().with(&host, &user, Secret::new(&password)));
    let digest = push_image(&registry, &image, "amd64", "private").await;
    // A client cannot mount blobs between registries.
    let copy = parsed(format!("{}:1", repository(&open, "from-private")));
    assert_eq!(registry.copy(&image, &copy).await.unwrap(), digest);
    let manifest = client(Credentials::new()).manifest(&copy).await.unwrap();
    assert!(matches!(manifest.body, ManifestBody::Image(_)));
}

#[tokio::test]
async fn copy_limits_the_depth_of_nested_indexes() {
    let Some(host) = setting("ACRTASK_TEST_REGISTRY") else {
        return;
    };
    let registry = client(Credentials::new());
    let source = parsed(format!("{}:0", repository(&host, "nested")));
    let mut inner = push_image(&registry, &source, "amd64", "at the bottom").await;
    let mut media_type = OCI_MANIFEST;
    let mut results = Vec::new();
    for level in 1..=10 {
        let at = source.with_tag(&level.to_string()).unwrap();
        let size = registry
            .resolve(&source.at(inner.clone()))
            .await
            .unwrap()
            .size;
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
            {"mediaType": media_type, "digest": inner, "size": size},
        ]});
        let raw = index.to_string().into();
        inner = registry.put_manifest(&at, OCI_INDEX, raw).await.unwrap();
        media_type = OCI_INDEX;
        let to = parsed(format!("{}:{level}", repository(&host, "nested-copy")));
        results.push(registry.copy(&at, &to).await.is_ok());
    }
    assert_eq!(results[..8], [true; 8]);
    assert_eq!(results[8..], [false; 2]);
}
