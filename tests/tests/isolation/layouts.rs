//! Images in OCI layout folders that a task writes. The builder would complete such a folder from
//! its own store. So a folder without all content must be refused.

use std::path::Path;

use acrtask_model::ImageRef;
use acrtask_registry::{Credentials, ManifestBody, Registry, Settings, manifest::sha256};
use acrtask_tests::{TestEnvironment, project::create_folder, service::TestServer};
use serde_json::json;

/// Content of an image for one platform.
struct ImageParts {
    manifest: Vec<u8>,
    config: Vec<u8>,
    layers: Vec<Vec<u8>>,
}

impl ImageParts {
    async fn read(image: &ImageRef) -> Self {
        let registry = Registry::new(Credentials::new(), Settings::default()).unwrap();
        let mut manifest = registry.manifest(image).await.unwrap();
        if let ManifestBody::Index(index) = &manifest.body {
            let child = image.at(index.manifests[0].digest.clone());
            manifest = registry.manifest(&child).await.unwrap();
        }
        let ManifestBody::Image(body) = &manifest.body else {
            panic!("an image")
        };
        let blob = async |digest| {
            let bytes = registry.blob_bytes(image, digest, 1 << 30).await;
            bytes.unwrap().to_vec()
        };
        let mut layers = Vec::new();
        for layer in &body.layers {
            layers.push(blob(&layer.digest).await);
        }
        Self {
            config: blob(&body.config.digest).await,
            manifest: manifest.raw.to_vec(),
            layers,
        }
    }

    /// Writes the parts as an OCI layout and returns the digest of the manifest.
    fn write(&self, folder: &Path) -> String {
        let blobs = folder.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        let parts = [&self.manifest, &self.config]
            .into_iter()
            .chain(&self.layers);
        for part in parts {
            std::fs::write(blobs.join(hex(part)), part).unwrap();
        }
        let digest = sha256(&self.manifest).to_string();
        let entry = json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest,
            "size": self.manifest.len(),
        });
        let index = json!({"schemaVersion": 2, "manifests": [entry]});
        std::fs::write(folder.join("index.json"), index.to_string()).unwrap();
        std::fs::write(
            folder.join("oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )
        .unwrap();
        digest
    }
}

fn hex(bytes: &[u8]) -> String {
    sha256(bytes)
        .as_str()
        .trim_start_matches("sha256:")
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn incomplete_oci_layout_is_refused() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &[]);
    let honest = ImageParts::read(&environment.busybox().parse().unwrap()).await;
    let layer = hex(&honest.layers[0]);
    let elsewhere = tempfile::tempdir().unwrap();
    let outside = elsewhere.path().join("layer");
    std::fs::write(&outside, &honest.layers[0]).unwrap();
    // A different layer under the configuration of the honest image.
    let mut other = ImageParts::read(&environment.busybox().parse().unwrap()).await;
    let empty = vec![0; 1024];
    let text = String::from_utf8(other.manifest.clone()).unwrap();
    other.manifest = text.replace(&layer, &hex(&empty)).into_bytes();
    other.layers[0] = empty;

    for (case, parts, expected) in [
        ("whole", &honest, None),
        (
            "without a layer",
            &honest,
            Some("does not have blobs/sha256/"),
        ),
        ("with a link", &honest, Some("blobs/sha256/")),
        ("with a wrong layer", &honest, Some("has the digest")),
        (
            "with other layers",
            &other,
            Some("its configuration says that the layer"),
        ),
    ] {
        let task = "version: v1.1.0\nsteps:\n  - build: --build-context x=oci-layout://layout .\n";
        let files = create_folder(&[
            ("acr-task.yaml", task),
            ("Dockerfile", "FROM x\nRUN echo from-the-layout\n"),
        ]);
        let layout = files.path().join("layout");
        let digest = parts.write(&layout);
        let stored = layout.join("blobs/sha256").join(&layer);
        match case {
            "without a layer" => std::fs::remove_file(&stored).unwrap(),
            "with a link" => {
                std::fs::remove_file(&stored).unwrap();
                std::os::unix::fs::symlink(&outside, &stored).unwrap();
            }
            "with a wrong layer" => std::fs::write(&stored, "other").unwrap(),
            _ => {}
        }
        for reference in ["layout", &format!("layout@{digest}")] {
            let task = task.replace("//layout", &format!("//{reference}"));
            std::fs::write(files.path().join("acr-task.yaml"), task).unwrap();
            let outcome = server
                .run(files.path(), &["run", "-o", "plain", "."])
                .wait();
            let all = outcome.transcript();
            let Some(expected) = expected else {
                assert_eq!(outcome.code, Some(0), "{case}: {all}");
                assert!(all.contains("from-the-layout"), "{case}: {all}");
                continue;
            };
            assert_eq!(outcome.code, Some(1), "{case}: {all}");
            assert!(all.contains("the OCI layout is not used"), "{case}: {all}");
            assert!(all.contains(expected), "{case}: {all}");
        }
    }
}
