//! Base images that are made in a moment: the layer of the tests' busybox, and a note: a file in a layer of its own, so
//! that nothing which was built on another note is found in a cache; and a label, which everything inherits that is built
//! from it.

use std::process::Command;

use serde_json::{Value, json};

use crate::{
    World,
    project::{RegistryClient, folder, sha256},
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What base images are made of.
#[derive(Debug, Clone)]
pub struct BaseImages {
    /// The layer's descriptor, and its bytes.
    layer: Value,
    bytes: Vec<u8>,
    config: Value,
}

impl BaseImages {
    /// Takes it from the tests' registry.
    pub async fn of(world: &World) -> Self {
        let client = RegistryClient::new(&world.registry, None);
        let (_, manifest) = client
            .manifest("base/busybox:1.36")
            .await
            .expect("the tests' registry has its base image");
        let layers = manifest["layers"].as_array().expect("an image");
        assert_eq!(layers.len(), 1, "{manifest:#}");
        let digest = layers[0]["digest"].as_str().expect("a digest");
        let config = manifest["config"]["digest"].as_str().expect("a digest");
        Self {
            layer: layers[0].clone(),
            bytes: client.bytes("base/busybox", digest).await,
            config: client.blob("base/busybox", config).await,
        }
    }

    /// Pushes one with this note; its digest.
    pub async fn put(
        &self,
        to: &RegistryClient,
        repository: &str,
        tag: &str,
        note: &str,
    ) -> String {
        let architecture = self.config["architecture"].as_str().expect("it has one");
        let manifest = self.manifest(to, repository, architecture, note).await;
        to.put_manifest(repository, tag, MANIFEST, &manifest).await
    }

    /// Pushes one for several processors, each with its note; the digest of the index.
    pub async fn put_index(
        &self,
        to: &RegistryClient,
        repository: &str,
        tag: &str,
        notes: &[(&str, &str)],
    ) -> String {
        let mut entries = Vec::new();
        for (architecture, note) in notes {
            let manifest = self.manifest(to, repository, architecture, note).await;
            let scratch = format!("{tag}-{architecture}");
            let digest = to
                .put_manifest(repository, &scratch, MANIFEST, &manifest)
                .await;
            entries.push(json!({
                "mediaType": MANIFEST, "digest": digest, "size": manifest.to_string().len(),
                "platform": {"os": "linux", "architecture": architecture},
            }));
        }
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
        to.put_manifest(repository, tag, INDEX, &index).await
    }

    async fn manifest(
        &self,
        to: &RegistryClient,
        repository: &str,
        architecture: &str,
        note: &str,
    ) -> Value {
        let mut config = self.config.clone();
        let layer = layer(note);
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

/// A tar of the file `/note`: the same bytes for the same note.
fn layer(note: &str) -> Vec<u8> {
    let files = folder(&[("note", note)]);
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

/// The note that the image `REPOSITORY:TAG` (or `@DIGEST`) has from the base that it stands on, at the bottom of all.
pub async fn note_of(registry: &RegistryClient, name: &str) -> String {
    let repository = name.split(['@', ':']).next().unwrap_or_default();
    let (_, mut manifest) = registry
        .manifest(name)
        .await
        .unwrap_or_else(|| panic!("there is no {name}"));
    if let Some(entries) = manifest["manifests"].as_array() {
        let image = entries
            .iter()
            .find(|entry| entry["platform"]["architecture"] != "unknown")
            .expect("an index of images");
        let digest = image["digest"].as_str().expect("a digest");
        let found = registry.manifest(&format!("{repository}@{digest}")).await;
        manifest = found.expect("what the index names is there").1;
    }
    let digest = manifest["config"]["digest"].as_str().expect("an image");
    let config = registry.blob(repository, digest).await;
    config["config"]["Labels"]["note"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}
