use acrtask_registry::{
    Credentials, Settings,
    manifest::{OCI_INDEX, OCI_MANIFEST, sha256},
};
use serde_json::{Value, json};

use super::*;
use crate::{layout::Layout, referrers::fallback_tag};

async fn put_blob(layout: &Layout, content: &[u8]) -> Digest {
    let digest = sha256(content);
    let bytes = bytes::Bytes::copy_from_slice(content);
    let stream = futures::stream::iter([Ok::<_, std::io::Error>(bytes)]);
    layout.put_stream(&digest, stream).await.unwrap();
    digest
}

fn image(config: &Digest, layer: &Digest, size: usize, subject: Option<&Digest>) -> Value {
    let mut manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": size}],
    });
    if let Some(subject) = subject {
        manifest["artifactType"] = json!("application/x-sbom");
        manifest["subject"] = json!({"mediaType": OCI_INDEX, "digest": subject, "size": 1});
    }
    manifest
}

struct Source {
    folder: tempfile::TempDir,
    index: Digest,
    platforms: [Digest; 2],
    sbom: Digest,
    signature: Digest,
}

/// Creates a folder with an index of two images, a referrer of one of them, and a tag of cosign.
async fn create_source() -> Source {
    let folder = tempfile::tempdir().unwrap();
    let layout = Layout::new(folder.path());
    layout.create().await.unwrap();
    let config = put_blob(&layout, b"{}").await;
    let mut platforms = Vec::new();
    for arch in ["amd64", "arm64"] {
        let layer = put_blob(&layout, arch.as_bytes()).await;
        let manifest = image(&config, &layer, arch.len(), None).to_string();
        platforms.push(put_blob(&layout, manifest.as_bytes()).await);
    }
    let entry = |digest: &Digest, arch: &str| {
        json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": 1,
               "platform": {"os": "linux", "architecture": arch}})
    };
    let index = json!({
        "schemaVersion": 2, "mediaType": OCI_INDEX,
        "manifests": [entry(&platforms[0], "amd64"), entry(&platforms[1], "arm64")],
    });
    let index = put_blob(&layout, index.to_string().as_bytes()).await;
    let layer = put_blob(&layout, b"sbom").await;
    let sbom = image(&config, &layer, 4, Some(&platforms[1])).to_string();
    let sbom = put_blob(&layout, sbom.as_bytes()).await;
    let layer = put_blob(&layout, b"signature").await;
    let signature = image(&config, &layer, 9, None).to_string();
    let signature = put_blob(&layout, signature.as_bytes()).await;
    let mut entries = Vec::new();
    for (digest, tag) in [
        (&index, Some("v1".to_owned())),
        (&sbom, None),
        (&signature, Some(format!("{}.sig", fallback_tag(&index)))),
    ] {
        let manifest = layout.manifest(digest).await.unwrap().unwrap();
        entries.push((manifest.descriptor(), tag));
    }
    layout.add_entries(&entries).await.unwrap();
    Source {
        folder,
        index,
        platforms: platforms.try_into().unwrap(),
        sbom,
        signature,
    }
}

async fn copy_to(source: &Source, target: &std::path::Path, platform: Option<&str>) -> CopyReport {
    acrtask_registry::install_crypto_provider();
    let registry = Registry::new(Credentials::default(), Settings::default()).unwrap();
    let (lines, _received) = tokio::sync::mpsc::unbounded_channel();
    let request = Copy {
        source: format!("oci:{}:v1", source.folder.path().display())
            .parse()
            .unwrap(),
        target: format!("oci:{}", target.display()).parse().unwrap(),
        platform: platform.map(str::to_owned),
    };
    copy(&registry, &request, &lines).await.unwrap()
}

#[tokio::test]
async fn copy_contains_platforms_referrers_and_companions() {
    let source = create_source().await;
    let target = tempfile::tempdir().unwrap();
    let report = copy_to(&source, target.path(), None).await;
    assert_eq!(report.digest, source.index);
    assert_eq!(report.manifests.len(), 5);
    assert_eq!(report.blobs.copied, 5);
    let role = |digest: &Digest| {
        let found = report.manifests.iter().find(|one| one.digest == *digest);
        found.unwrap().role
    };
    assert_eq!(role(&source.platforms[0]), Role::Part);
    assert_eq!(role(&source.sbom), Role::Referrer);
    assert_eq!(role(&source.signature), Role::Companion);

    let layout = Layout::new(target.path());
    let tags: Vec<String> = layout
        .entries()
        .await
        .unwrap()
        .into_iter()
        .filter_map(|entry| entry.tag)
        .collect();
    assert_eq!(tags.len(), 2);
    assert!(tags.contains(&"v1".to_owned()), "{tags:?}");
    let subjects = layout.subjects().await.unwrap();
    assert_eq!(
        subjects[&source.platforms[1]],
        std::slice::from_ref(&source.sbom)
    );

    // A repeated copy transfers nothing, and relocations what is missing.
    let again = copy_to(&source, target.path(), None).await;
    assert_eq!((again.blobs.copied, again.blobs.existing), (0, 5));
    assert!(again.manifests.iter().all(|one| one.existed));
    let blob = sha256(b"amd64").as_str().replace(':', "/");
    std::fs::remove_file(target.path().join("blobs").join(blob)).unwrap();
    let again = copy_to(&source, target.path(), None).await;
    assert_eq!((again.blobs.copied, again.blobs.existing), (1, 4));
    assert_eq!(layout.entries().await.unwrap().len(), 3);
}

#[tokio::test]
async fn platform_is_copied_alone_with_its_referrers() {
    let source = create_source().await;
    let target = tempfile::tempdir().unwrap();
    let report = copy_to(&source, target.path(), Some("linux/arm64")).await;
    assert_eq!(report.digest, source.platforms[1]);
    let digests: Vec<&Digest> = report.manifests.iter().map(|one| &one.digest).collect();
    assert_eq!(digests, [&source.platforms[1], &source.sbom]);
}

#[tokio::test]
async fn damaged_content_is_not_copied() {
    let source = create_source().await;
    let target = tempfile::tempdir().unwrap();
    let blob = sha256(b"arm64").as_str().replace(':', "/");
    std::fs::write(source.folder.path().join("blobs").join(blob), b"amd64").unwrap();
    acrtask_registry::install_crypto_provider();
    let registry = Registry::new(Credentials::default(), Settings::default()).unwrap();
    let (lines, _received) = tokio::sync::mpsc::unbounded_channel();
    let request = Copy {
        source: format!("oci:{}:v1", source.folder.path().display())
            .parse()
            .unwrap(),
        target: format!("oci:{}:v1", target.path().display())
            .parse()
            .unwrap(),
        platform: None,
    };
    let error = copy(&registry, &request, &lines).await.unwrap_err();
    assert!(error.contains("has the digest"), "{error}");
    assert!(
        Layout::new(target.path())
            .entries()
            .await
            .unwrap()
            .is_empty()
    );
}
