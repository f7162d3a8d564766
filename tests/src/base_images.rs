//! Small base images that tests create in a moment.
//!
//! Each consists of the layer of the tests' busybox and a note. The note is a file in a separate
//! layer, so that a build on another note never hits the cache. It is also a label, which every
//! image built from the base inherits.

use std::process::Command;

use serde_json::{Value, json};

use crate::{
    TestEnvironment,
    project::{RegistryClient, create_folder, sha256},
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Parts that all base images share.
#[derive(Debug, Clone)]
pub struct BaseImages {
    /// Descriptor and content of the layer.
    layer: Value,
    bytes: Vec<u8>,
    config: Value,
}

impl BaseImages {
    /// Loads the parts from the registry of the tests.
    pub async fn load(environment: &TestEnvironment) -> Self {
        let client = RegistryClient::new(&environment.registry, None);
        let (_, manifest) = client
            .fetch_manifest("base/busybox:1.36")
            .await
            .expect("the tests' registry has its base image");
        let layers = manifest["layers"].as_array().expect("an image");
        assert_eq!(layers.len(), 1, "{manifest:#}");
        let digest = layers[0]["digest"].as_str().expect("a digest");
        let config = manifest["config"]["digest"].as_str().expect("a digest");
        Self {
            layer: layers[0].clone(),
            bytes: client.fetch_blob("base/busybox", digest).await,
            config: client.fetch_json("base/busybox", config).await,
        }
    }

    /// Pushes a base image with this note and returns its digest.
    pub async fn push(
        &self,
        to: &RegistryClient,
        repository: &str,
        tag: &str,
        note: &str,
    ) -> String {
        let architecture = self.config["architecture"]
            .as_str()
            .expect("the image has an architecture");
        let manifest = self.push_content(to, repository, architecture, note).await;
        to.put_manifest(repository, tag, MANIFEST, &manifest).await
    }

    /// Pushes a base image for several architectures, each with its note. Returns the digest of the
    /// index.
    pub async fn push_index(
        &self,
        to: &RegistryClient,
        repository: &str,
        tag: &str,
        notes: &[(&str, &str)],
    ) -> String {
        let mut entries = Vec::new();
        for (architecture, note) in notes {
            let manifest = self.push_content(to, repository, architecture, note).await;
            let image_tag = format!("{tag}-{architecture}");
            let digest = to
                .put_manifest(repository, &image_tag, MANIFEST, &manifest)
                .await;
            entries.push(json!({
                "mediaType": MANIFEST, "digest": digest, "size": manifest.to_string().len(),
                "platform": {"os": "linux", "architecture": architecture},
            }));
        }
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
        to.put_manifest(repository, tag, INDEX, &index).await
    }

    async fn push_content(
        &self,
        to: &RegistryClient,
        repository: &str,
        architecture: &str,
        note: &str,
    ) -> Value {
        let mut config = self.config.clone();
        let layer = note_layer(note);
        let diff_id = format!("sha256:{}", sha256(&layer));
        let diff_ids = config["rootfs"]["diff_ids"].as_array_mut();
        diff_ids.expect("an image has layers").push(diff_id.into());
        config["history"] = json!([{"created_by": "busybox"}, {"created_by": "a note"}]);
        config["architecture"] = architecture.into();
        config["config"]["Labels"] = json!({"note": note});
        let config = config.to_string().into_bytes();
        let (config, size) = to.put_blob(repository, config).await;
        to.put_blob(repository, self.bytes.clone()).await;
        let (note, note_size) = to.put_blob(repository, layer).await;
        json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": config, "size": size},
            "layers": [self.layer, {"mediaType": LAYER, "digest": note, "size": note_size}],
        })
    }
}

/// Packs the file `/note` into a tar. The same note gives the same bytes.
fn note_layer(note: &str) -> Vec<u8> {
    let files = create_folder(&[("note", note)]);
    let tar = Command::new("tar")
        .arg("-C")
        .arg(files.path())
        .args(["-c", "--mtime=@0", "--owner=0", "--group=0", "--mode=644"])
        .arg("note")
        .output()
        .expect("these tests need the program tar");
    assert!(tar.status.success(), "tar");
    tar.stdout
}

/// Returns the note of the lowest base of the image `REPOSITORY:TAG` (or `@DIGEST`).
pub async fn read_base_note(registry: &RegistryClient, name: &str) -> String {
    let repository = name.split(['@', ':']).next().unwrap_or_default();
    let (_, mut manifest) = registry
        .fetch_manifest(name)
        .await
        .unwrap_or_else(|| panic!("there is no {name}"));
    if let Some(entries) = manifest["manifests"].as_array() {
        let image = entries
            .iter()
            .find(|entry| entry["platform"]["architecture"] != "unknown")
            .expect("an index of images");
        let digest = image["digest"].as_str().expect("a digest");
        let found = registry
            .fetch_manifest(&format!("{repository}@{digest}"))
            .await;
        manifest = found.expect("the image of the index exists").1;
    }
    let digest = manifest["config"]["digest"].as_str().expect("an image");
    let config = registry.fetch_json(repository, digest).await;
    config["config"]["Labels"]["note"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}
