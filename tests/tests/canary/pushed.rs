//! Search of the images that runs pushed to the registry.

use std::collections::BTreeSet;

use acrtask_tests::{TestEnvironment, project::RegistryClient};
use serde_json::Value;

use crate::marks::{Canary, search_all};

/// Searches every manifest, configuration, attestation and layer of the pushed images.
pub(crate) async fn search_images(
    environment: &TestEnvironment,
    repository: &str,
    runs: &[Value],
    canaries: &[Canary],
    found: &mut BTreeSet<String>,
) {
    let registry = RegistryClient::new(&environment.registry, None);
    let mut waiting = vec![format!("{repository}:built")];
    for run in runs.iter().filter(|run| run["task"] == "canary") {
        waiting.push(format!("{repository}:{}", run["id"].as_str().unwrap()));
    }
    let mut blobs = 0;
    while let Some(name) = waiting.pop() {
        let Some((_, manifest)) = registry.fetch_manifest(&name).await else {
            panic!("{name} was not pushed");
        };
        search_all(
            canaries,
            &format!("the manifest of {name}"),
            manifest.to_string().as_bytes(),
            found,
        );
        for inner in manifest["manifests"].as_array().into_iter().flatten() {
            waiting.push(format!(
                "{repository}@{}",
                inner["digest"].as_str().unwrap()
            ));
        }
        let parts = manifest["layers"].as_array().into_iter().flatten();
        for part in parts.chain(manifest.get("config")) {
            let mut bytes = registry
                .fetch_blob(repository, part["digest"].as_str().unwrap())
                .await;
            if bytes.starts_with(&[0x1f, 0x8b]) {
                bytes = unzip(&bytes);
            }
            blobs += 1;
            let media = part["mediaType"].as_str().unwrap_or_default();
            let is_configuration = Some(part) == manifest.get("config");
            for canary in canaries {
                // Docker records build arguments in the history of the image. This is the
                // documented reason to use a secret mount instead.
                if canary.way != "secret build argument" || !is_configuration {
                    canary.search(&format!("{media} of {name}"), &bytes, found);
                }
            }
        }
    }
    assert!(blobs >= 4, "{blobs} blobs");
}

fn unzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut child = std::process::Command::new("gzip")
        .arg("-dc")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let writing = std::thread::spawn(move || input.write_all(&bytes));
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap().unwrap();
    output.stdout
}
