//! What builds make: several platforms, attestations, caches.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use acrtask_tests::{
    Outcome, World,
    project::{RegistryClient, folder},
};
use serde_json::Value;

/// A run of a build with `flags` and a push of what it makes, `images/NAME:ID`.
fn build(world: &World, name: &str, flags: &str, dockerfile: &str) -> Outcome {
    let task = format!(
        "version: v1.1.0
steps:
  - {{id: image, build: '{flags} -t $Registry/images/{name}:$ID .'}}
  - {{id: out, push: [$Registry/images/{name}:$ID]}}
"
    );
    let files = folder(&[
        ("acr-task.yaml", &task),
        ("Dockerfile", dockerfile),
        ("data", "x"),
    ]);
    world.acrtask(files.path(), &["run", "-o", "json"])
}

/// What the registry has of it.
async fn pushed(world: &World, outcome: &Outcome, name: &str) -> (String, Value) {
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    let client = RegistryClient::new(&world.registry, None);
    let name = format!("images/{name}:{}", outcome.run);
    client.manifest(&name).await.expect("it is there")
}

#[tokio::test]
async fn an_index_for_several_platforms() {
    let Some(world) = World::find() else { return };
    let flags = "--platform linux/amd64,linux/arm64";
    let outcome = build(&world, "many", flags, "FROM scratch\nCOPY data /data\n");
    let (digest, index) = pushed(&world, &outcome, "many").await;
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
async fn provenance_is_beside_the_image() {
    let Some(world) = World::find() else { return };
    let dockerfile = format!("FROM {}\nCOPY data /data\n", world.busybox());
    for mode in ["min", "max"] {
        let flags = format!("--provenance mode={mode}");
        let outcome = build(&world, "proven", &flags, &dockerfile);
        let (_, index) = pushed(&world, &outcome, "proven").await;
        let entries = index["manifests"].as_array().expect("an index");
        let attestation = entries
            .iter()
            .find(|entry| {
                entry["annotations"]["vnd.docker.reference.type"] == "attestation-manifest"
            })
            .unwrap_or_else(|| panic!("no attestation: {index}"));
        let client = RegistryClient::new(&world.registry, None);
        let name = format!("images/proven@{}", attestation["digest"].as_str().unwrap());
        let (_, manifest) = client.manifest(&name).await.unwrap();
        let layer = manifest["layers"][0]["digest"].as_str().unwrap();
        let statement = client.blob("images/proven", layer).await;
        let text = statement.to_string();
        assert!(text.contains("slsa.dev/provenance"), "{text}");
        // What it stands on is in it by digest.
        let base = outcome.events_named("base_used")[0]["digest"].clone();
        let hash = base.as_str().unwrap().trim_start_matches("sha256:");
        assert!(text.contains(hash), "{text}");
    }
}

#[test]
fn a_missing_scanner_is_named() {
    let Some(world) = World::find() else { return };
    let scanner = format!("{}/images/no-scanner:1", world.registry);
    let flags = format!("--sbom generator={scanner}");
    let outcome = build(
        &world,
        "scanned",
        &flags,
        &format!("FROM {}\n", world.busybox()),
    );
    assert_eq!(outcome.code, Some(1), "{}", outcome.all());
    assert_eq!(outcome.state("image"), "failed");
    assert!(outcome.stderr.contains(&scanner), "{}", outcome.all());
}

#[tokio::test]
async fn caches_are_exported_and_imported() {
    let Some(world) = World::find() else { return };
    let dockerfile = format!("FROM {}\nRUN echo made > /made\n", world.busybox());
    let client = RegistryClient::new(&world.registry, None);
    // Inside of the image.
    let outcome = build(&world, "inline", "--cache-to type=inline", &dockerfile);
    let (_, manifest) = pushed(&world, &outcome, "inline").await;
    let config = manifest["config"]["digest"].as_str().unwrap();
    let config = client.blob("images/inline", config).await;
    assert!(config.get("moby.buildkit.cache.v0").is_some(), "{config}");
    // The same, as `docker build` has it.
    let flags = "--build-arg BUILDKIT_INLINE_CACHE=1";
    let outcome = build(&world, "inline-arg", flags, &dockerfile);
    let (_, manifest) = pushed(&world, &outcome, "inline-arg").await;
    let config = manifest["config"]["digest"].as_str().unwrap();
    let config = client.blob("images/inline-arg", config).await;
    assert!(config.get("moby.buildkit.cache.v0").is_some(), "{config}");
    // Beside it in the registry, under a name of one's own.
    let cache = format!("{}/images/cache:{}", world.registry, outcome.run);
    let to = format!("--cache-to type=registry,ref={cache},mode=max");
    let outcome = build(&world, "cached", &to, &dockerfile);
    pushed(&world, &outcome, "cached").await;
    let tag = cache.rsplit_once(':').unwrap().1;
    assert!(
        client
            .manifest(&format!("images/cache:{tag}"))
            .await
            .is_some()
    );
    let from = format!("--cache-from type=registry,ref={cache}");
    let outcome = build(&world, "cached", &from, &dockerfile);
    pushed(&world, &outcome, "cached").await;
    let importing = outcome.events_named("vertex").into_iter();
    let mut importing = importing.filter(|v| {
        v["name"]
            .as_str()
            .unwrap()
            .contains("importing cache manifest")
    });
    let vertex = importing
        .next_back()
        .unwrap_or_else(|| panic!("no import: {}", outcome.all()));
    assert!(vertex["error"].is_null(), "{vertex}");
}

/// A cache in a folder of the workspace, written by one build and read by a step and by the next build.
#[test]
fn a_cache_in_the_workspace() {
    let Some(world) = World::find() else { return };
    let task = "version: v1.1.0
steps:
  - {id: image, build: '--cache-to type=local,dest=cache -t app .'}
  - {id: see, cmd: $Registry/base/busybox:1.36 cat cache/index.json}
  - {id: again, build: '--cache-from type=local,src=cache -t app .'}
";
    let dockerfile = format!("FROM {}\nRUN echo made > /made\n", world.busybox());
    let files = folder(&[("acr-task.yaml", task), ("Dockerfile", &dockerfile)]);
    let outcome = world.acrtask(files.path(), &["run", "-o", "json"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    let printed = outcome.events_named("output");
    let index = printed.iter().find(|event| event["step"] == "see").unwrap();
    assert!(
        index["text"].as_str().unwrap().contains("manifests"),
        "{index}"
    );
    assert!(
        !files.path().join("cache").exists(),
        "the context was written to"
    );
}

#[test]
fn a_cache_outside_of_the_workspace_is_out_of_reach() {
    let Some(world) = World::find() else { return };
    let outside = tempfile::tempdir().unwrap();
    let place = outside.path().join("cache");
    for flag in [
        "--cache-to type=local,dest=",
        "--cache-from type=local,src=",
    ] {
        let flags = format!("{flag}{}", place.display());
        let outcome = build(&world, "escape", &flags, "FROM scratch\nCOPY data /\n");
        assert!(!place.exists(), "{flag}: {}", outcome.all());
        assert_eq!(outcome.code, Some(1), "{flag}: {}", outcome.all());
        assert!(
            outcome.stderr.contains("outside /workspace"),
            "{flag}: {}",
            outcome.all()
        );
    }
}
