//! Results of builds: images for several platforms, attestations, and caches.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use acrtask_tests::{
    Outcome, TestEnvironment,
    project::{RegistryClient, create_folder},
};
use serde_json::Value;

/// Builds with `flags` and pushes the result as `images/NAME:ID`.
fn run_build(environment: &TestEnvironment, name: &str, flags: &str, dockerfile: &str) -> Outcome {
    let task = format!(
        "version: v1.1.0
steps:
  - {{id: image, build: '{flags} -t $Registry/images/{name}:$ID .'}}
  - {{id: out, push: [$Registry/images/{name}:$ID]}}
"
    );
    let files = create_folder(&[
        ("acr-task.yaml", &task),
        ("Dockerfile", dockerfile),
        ("data", "x"),
    ]);
    environment.run_acrtask(files.path(), &["run", "-o", "json"])
}

/// Returns the pushed manifest and its digest.
async fn fetch_pushed(
    environment: &TestEnvironment,
    outcome: &Outcome,
    name: &str,
) -> (String, Value) {
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    let client = RegistryClient::new(&environment.registry, None);
    let name = format!("images/{name}:{}", outcome.run);
    client
        .fetch_manifest(&name)
        .await
        .expect("the image was pushed")
}

#[tokio::test]
async fn image_for_several_platforms_is_an_index() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let flags = "--platform linux/amd64,linux/arm64";
    let outcome = run_build(
        &environment,
        "many",
        flags,
        "FROM scratch\nCOPY data /data\n",
    );
    let (digest, index) = fetch_pushed(&environment, &outcome, "many").await;
    let event = &outcome.events_named("image_pushed")[0];
    assert_eq!(event["digest"], digest.as_str());
    for entry in index["manifests"].as_array().unwrap() {
        let platform = format!(
            "{}/{}",
            entry["platform"]["os"].as_str().unwrap(),
            entry["platform"]["architecture"].as_str().unwrap()
        );
        assert_eq!(event["platforms"][&platform], entry["digest"], "{event}");
    }
    assert_eq!(event["platforms"].as_object().unwrap().len(), 2, "{event}");
}

#[tokio::test]
async fn provenance_is_attached_to_the_image() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let dockerfile = format!("FROM {}\nCOPY data /data\n", environment.busybox());
    for mode in ["min", "max"] {
        let flags = format!("--provenance mode={mode}");
        let outcome = run_build(&environment, "proven", &flags, &dockerfile);
        let (_, index) = fetch_pushed(&environment, &outcome, "proven").await;
        let entries = index["manifests"].as_array().expect("an index");
        let attestation = entries
            .iter()
            .find(|entry| {
                entry["annotations"]["vnd.docker.reference.type"] == "attestation-manifest"
            })
            .unwrap_or_else(|| panic!("no attestation: {index}"));
        let client = RegistryClient::new(&environment.registry, None);
        let name = format!("images/proven@{}", attestation["digest"].as_str().unwrap());
        let (_, manifest) = client.fetch_manifest(&name).await.unwrap();
        let layer = manifest["layers"][0]["digest"].as_str().unwrap();
        let statement = client.fetch_json("images/proven", layer).await;
        let text = statement.to_string();
        assert!(text.contains("slsa.dev/provenance"), "{text}");
        // The provenance contains the digest of the base.
        let base = outcome.events_named("base_used")[0]["digest"].clone();
        let hash = base.as_str().unwrap().trim_start_matches("sha256:");
        assert!(text.contains(hash), "{text}");
    }
}

#[test]
fn missing_scanner_is_named_in_the_error() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let scanner = format!("{}/images/no-scanner:1", environment.registry);
    let flags = format!("--sbom generator={scanner}");
    let outcome = run_build(
        &environment,
        "scanned",
        &flags,
        &format!("FROM {}\n", environment.busybox()),
    );
    assert_eq!(outcome.code, Some(1), "{}", outcome.transcript());
    assert_eq!(outcome.step_state("image"), "failed");
    assert!(
        outcome.stderr.contains(&scanner),
        "{}",
        outcome.transcript()
    );
}

#[tokio::test]
async fn caches_are_exported_and_imported() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let dockerfile = format!("FROM {}\nRUN echo made > /made\n", environment.busybox());
    let client = RegistryClient::new(&environment.registry, None);
    // Inline cache in the image.
    let outcome = run_build(
        &environment,
        "inline",
        "--cache-to type=inline",
        &dockerfile,
    );
    let (_, manifest) = fetch_pushed(&environment, &outcome, "inline").await;
    let config = manifest["config"]["digest"].as_str().unwrap();
    let config = client.fetch_json("images/inline", config).await;
    assert!(config.get("moby.buildkit.cache.v0").is_some(), "{config}");
    // Inline cache as `docker build` requests it.
    let flags = "--build-arg BUILDKIT_INLINE_CACHE=1";
    let outcome = run_build(&environment, "inline-arg", flags, &dockerfile);
    let (_, manifest) = fetch_pushed(&environment, &outcome, "inline-arg").await;
    let config = manifest["config"]["digest"].as_str().unwrap();
    let config = client.fetch_json("images/inline-arg", config).await;
    assert!(config.get("moby.buildkit.cache.v0").is_some(), "{config}");
    // Separate cache in the registry under a given name.
    let cache = format!("{}/images/cache:{}", environment.registry, outcome.run);
    let to = format!("--cache-to type=registry,ref={cache},mode=max");
    let outcome = run_build(&environment, "cached", &to, &dockerfile);
    fetch_pushed(&environment, &outcome, "cached").await;
    let tag = cache.rsplit_once(':').unwrap().1;
    assert!(
        client
            .fetch_manifest(&format!("images/cache:{tag}"))
            .await
            .is_some()
    );
    let from = format!("--cache-from type=registry,ref={cache}");
    let outcome = run_build(&environment, "cached", &from, &dockerfile);
    fetch_pushed(&environment, &outcome, "cached").await;
    let importing = outcome.events_named("vertex").into_iter();
    let mut importing = importing.filter(|v| {
        v["name"]
            .as_str()
            .unwrap()
            .contains("importing cache manifest")
    });
    let vertex = importing
        .next_back()
        .unwrap_or_else(|| panic!("no import: {}", outcome.transcript()));
    assert!(vertex["error"].is_null(), "{vertex}");
}

/// A cache in a folder of the workspace. One build writes it, and a step and the next build read
/// it.
#[test]
fn cache_in_the_workspace_is_shared_between_builds() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let task = "version: v1.1.0
steps:
  - {id: image, build: '--cache-to type=local,dest=cache -t app .'}
  - {id: see, cmd: $Registry/base/busybox:1.36 cat cache/index.json}
  - {id: again, build: '--cache-from type=local,src=cache -t app .'}
";
    let dockerfile = format!("FROM {}\nRUN echo made > /made\n", environment.busybox());
    let files = create_folder(&[("acr-task.yaml", task), ("Dockerfile", &dockerfile)]);
    let outcome = environment.run_acrtask(files.path(), &["run", "-o", "json"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    let printed = outcome.events_named("output");
    let index = printed.iter().find(|event| event["step"] == "see").unwrap();
    assert!(
        index["text"].as_str().unwrap().contains("manifests"),
        "{index}"
    );
    assert!(
        !files.path().join("cache").exists(),
        "the build wrote to the context"
    );
}

#[test]
fn cache_outside_of_the_workspace_is_refused() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let outside = tempfile::tempdir().unwrap();
    let cache = outside.path().join("cache");
    for flag in [
        "--cache-to type=local,dest=",
        "--cache-from type=local,src=",
    ] {
        let flags = format!("{flag}{}", cache.display());
        let outcome = run_build(
            &environment,
            "escape",
            &flags,
            "FROM scratch\nCOPY data /\n",
        );
        assert!(!cache.exists(), "{flag}: {}", outcome.transcript());
        assert_eq!(outcome.code, Some(1), "{flag}: {}", outcome.transcript());
        assert!(
            outcome.stderr.contains("outside /workspace"),
            "{flag}: {}",
            outcome.transcript()
        );
    }
}
