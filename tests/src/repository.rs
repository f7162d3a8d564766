//! Repository that a test fills with images, indexes and referrers, as other programs write them.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::project::{RegistryClient, sha256};

/// Media type of an index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of an image.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Creation time of old images.
pub const OLD: &str = "2020-01-02T03:04:05Z";

/// Repository of a registry.
#[derive(Debug)]
pub struct Repository {
    /// Client of the registry.
    pub client: RegistryClient,
    /// Name of the repository.
    pub name: String,
}

impl Repository {
    /// Names a repository of the registry at `host`.
    pub fn new(host: &str, name: &str) -> Self {
        Self {
            client: RegistryClient::new(host, None),
            name: name.to_owned(),
        }
    }

    /// Stores an image with a unique layer. Stores it only by digest if `tag` is empty.
    pub async fn put_image(&self, tag: &str, note: &str, created: &str) -> String {
        self.put_image_for("amd64", tag, note, created).await
    }

    /// Stores an image for a processor, as [`Repository::put_image`] does.
    pub async fn put_image_for(
        &self,
        architecture: &str,
        tag: &str,
        note: &str,
        created: &str,
    ) -> String {
        let archive = tar_with_file("note", note.as_bytes());
        let diff_id = format!("sha256:{}", sha256(&archive));
        let (layer, layer_size) = self.client.put_blob(&self.name, gzip(&archive)).await;
        let config = json!({
            "created": created, "architecture": architecture, "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        });
        let config = config.to_string().into_bytes();
        let (config, size) = self.client.put_blob(&self.name, config).await;
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": size},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layer, "size": layer_size}],
        });
        self.put(tag, MANIFEST, &manifest).await
    }

    /// Stores an index of two new images. Returns its digest and theirs.
    pub async fn put_index(&self, tag: &str, note: &str) -> (String, [String; 2]) {
        let mut entries = Vec::new();
        let mut images = Vec::new();
        for architecture in ["amd64", "arm64"] {
            let note = format!("{note} {architecture}");
            let digest = self.put_image_for(architecture, "", &note, OLD).await;
            entries.push(
                json!({"mediaType": MANIFEST, "digest": digest, "size": self.size(&digest).await,
                                "platform": {"os": "linux", "architecture": architecture}}),
            );
            images.push(digest);
        }
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
        let digest = self.put(tag, INDEX, &index).await;
        (digest, images.try_into().expect("two images"))
    }

    /// Stores an artifact that refers to `subject`, and its fallback tag.
    pub async fn put_referrer(&self, subject: &str) -> String {
        let (empty, _) = self.client.put_blob(&self.name, b"{}".to_vec()).await;
        let part =
            json!({"mediaType": "application/vnd.oci.empty.v1+json", "digest": empty, "size": 2});
        let size = self.size(subject).await;
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/x-sbom",
            "config": part, "layers": [part],
            "subject": {"mediaType": INDEX, "digest": subject, "size": size},
        });
        let digest = self.put("", MANIFEST, &manifest).await;
        let size = manifest.to_string().len();
        let fallback = json!({
            "schemaVersion": 2, "mediaType": INDEX,
            "manifests": [{"mediaType": MANIFEST, "digest": digest, "size": size}],
        });
        self.put(&subject.replace(':', "-"), INDEX, &fallback).await;
        digest
    }

    /// Stores a manifest under a tag, or by its digest if `tag` is empty.
    pub async fn put(&self, tag: &str, media: &str, manifest: &Value) -> String {
        let by_digest = format!("sha256:{}", sha256(manifest.to_string().as_bytes()));
        let name = if tag.is_empty() { &by_digest } else { tag };
        self.client
            .put_manifest(&self.name, name, media, manifest)
            .await
    }

    /// Returns the digest of a tag or digest. `None` if it does not exist.
    pub async fn find(&self, name: &str) -> Option<String> {
        Some(self.fetch(name).await?.0)
    }

    async fn fetch(&self, name: &str) -> Option<(String, Value)> {
        let separator = if name.contains(':') { '@' } else { ':' };
        let name = format!("{}{separator}{name}", self.name);
        self.client.fetch_manifest(&name).await
    }

    /// Returns the size of a manifest of this module, which has the form of its JSON.
    async fn size(&self, digest: &str) -> usize {
        let found = self.fetch(digest).await;
        found.map_or(1, |(_, manifest)| manifest.to_string().len())
    }
}

/// Compresses bytes.
fn gzip(content: &[u8]) -> Vec<u8> {
    let mut gzip = Command::new("gzip")
        .args(["--no-name", "--stdout"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("these tests need the program gzip");
    // The content is smaller than the buffer of a pipe.
    let mut stdin = gzip.stdin.take().expect("a pipe");
    stdin.write_all(content).expect("gzip reads");
    drop(stdin);
    gzip.wait_with_output().expect("gzip ends").stdout
}

/// Returns an archive with one file.
fn tar_with_file(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    let fields = [
        (100, "0000644\0".to_owned()),
        (108, "0000000\0".into()),
        (116, "0000000\0".into()),
        (124, format!("{:011o}\0", content.len())),
        (136, "00000000000\0".into()),
        (148, "        ".into()),
        (156, "0".into()),
        (257, "ustar\x0000".into()),
    ];
    for (at, text) in &fields {
        header[*at..at + text.len()].copy_from_slice(text.as_bytes());
    }
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut archive = header.to_vec();
    archive.extend_from_slice(content);
    archive.resize(archive.len().div_ceil(512) * 512 + 1024, 0);
    archive
}
