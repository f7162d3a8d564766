//! Tests with a separate BuildKit: the engine runs its images, and they are pushed from its cache.
//!
//! `ACRTASK_TEST_BUILDKITD` is its address, `unix:///...` or `tcp://...`. For TLS,
//! `ACRTASK_TEST_BUILDKITD_TLS` is the folder of the certificates. Without the address these tests
//! are skipped.

use acrtask_buildkit::{Endpoint, TlsFiles};

use crate::harness::engine;

fn buildkitd() -> Option<Endpoint> {
    let Ok(url) = std::env::var("ACRTASK_TEST_BUILDKITD") else {
        eprintln!("skipped: ACRTASK_TEST_BUILDKITD names no buildkitd");
        return None;
    };
    let endpoint = Endpoint::parse(&url).unwrap();
    Some(match std::env::var("ACRTASK_TEST_BUILDKITD_TLS") {
        Ok(folder) => endpoint.with_tls(TlsFiles::in_folder(folder)),
        Err(_) => endpoint,
    })
}

#[tokio::test]
async fn separate_buildkit_builds_runs_and_pushes() {
    let engine = engine!();
    let Some(endpoint) = buildkitd() else { return };
    let mut task = engine
        .task(
            "steps:\n  - id: build\n    build: -t $R/$ID/sep:1 --build-arg ID=$ID .\n  - id: test\n    cmd: $R/$ID/sep:1\n  \
             - id: tag\n    cmd: docker tag $R/$ID/sep:1 $R/$ID/sep:2\n  - id: push\n    push: [\"$R/$ID/sep:1\", \"$R/$ID/sep:2\"]\n",
        )
        .file("Dockerfile", "FROM $BASH\nARG ID\nRUN echo $ID > /id\nCMD [\"cat\", \"/id\"]\n");
    task.options.builder = Some(endpoint);
    let ran = task.run().await.ok();
    assert_eq!(ran.output("test").trim(), ran.id.as_str());
    assert_eq!(ran.report.pushed.len(), 2, "{}", ran.story());
    // The tested image is part of the pushed one: the platform's manifest has the digest of the
    // build.
    for event in &ran.events {
        if let acrtask_model::EventKind::ImagePushed {
            digest, platforms, ..
        } = &event.kind
        {
            let built = &ran.report.built[0].digest;
            assert!(
                digest == built || platforms.values().any(|d| d == built),
                "{}",
                ran.story()
            );
        }
    }
}
