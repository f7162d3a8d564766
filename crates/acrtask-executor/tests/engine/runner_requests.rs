//! The parts of a runner's request: pins, a cache, credentials.

use acrtask_model::{Digest, ImageRef, events::BaseRole};
use acrtask_registry::Credentials;
use acrtask_spec::plan::StepCache;

use crate::harness::{Engine, Ran, engine};

/// Pushes `$R/NAME/base:1`, which prints `text`.
async fn make_base(engine: &Engine, name: &str, text: &str) -> Ran {
    let image = format!("$R/{name}/base:1");
    engine
        .task(&format!(
            "steps:\n  - build: -t {image} .\n  - push: [\"{image}\"]\n"
        ))
        .file(
            "Dockerfile",
            &format!("FROM $BUSYBOX\nRUN echo {text} > /text\nCMD [\"cat\", \"/text\"]\n"),
        )
        .run()
        .await
        .ok()
}

#[tokio::test]
async fn pinned_base_is_used_by_its_digest() {
    let engine = engine!();
    let folder = engine.task("").id.to_string();
    let old = make_base(&engine, &folder, "old").await;
    let digest = old.report.pushed[0].digest.clone();
    let new = make_base(&engine, &folder, "new").await;
    assert_ne!(digest, new.report.pushed[0].digest);

    let name = format!("{}/{folder}/base:1", engine.registry);
    let base: ImageRef = name.parse().unwrap();
    let dockerfile = format!(
        "FROM {name} AS base\nFROM base\nRUN cat /text > /seen\nCMD [\"cat\", \"/seen\"]\n"
    );
    let task = |pin: Option<&Digest>| {
        let mut task = engine
            .task(
                "steps:\n  - id: build\n    build: -t $R/$ID/pinned:1 .\n  - id: test\n    cmd: $R/$ID/pinned:1\n  \
                 - id: run\n    cmd: NAME\n  - id: word\n    cmd: docker build -t $R/$ID/word:1 .\n  \
                 - id: last\n    cmd: $R/$ID/word:1\n"
                    .replace("NAME", &name)
                    .as_str(),
            )
            .file("Dockerfile", &dockerfile);
        if let Some(digest) = pin {
            task.extra.pins.insert(base.clone(), digest.clone());
        }
        task.run()
    };
    let ran = task(Some(&digest)).await.ok();
    for step in ["test", "run", "last"] {
        assert_eq!(ran.output(step).trim(), "old", "{step}: {}", ran.story());
    }
    for used in &ran.report.bases {
        assert_eq!(used.name, name, "{}", ran.story());
        assert_eq!(used.digest, digest, "{}", ran.story());
    }
    let roles: Vec<BaseRole> = ran.report.bases.iter().map(|base| base.role).collect();
    assert!(
        roles.contains(&BaseRole::Runtime) && roles.contains(&BaseRole::Cmd),
        "{roles:?}"
    );
    // Without the pin the tag decides.
    let ran = task(None).await.ok();
    assert_eq!(ran.output("test").trim(), "new", "{}", ran.story());
    // A pin to the current digest of the tag does not change the image.
    let latest = &new.report.pushed[0].digest;
    let same = task(Some(latest)).await.ok();
    assert_eq!(same.report.built[0].digest, ran.report.built[0].digest);
}

#[tokio::test]
async fn pin_to_a_missing_digest_fails_the_step() {
    let engine = engine!();
    let mut task = engine.task("steps:\n  - id: run\n    cmd: $BUSYBOX true\n");
    let base = format!("{}/base/busybox:1.36", engine.registry);
    let gone = format!("sha256:{}", "0".repeat(64));
    task.extra
        .pins
        .insert(base.parse().unwrap(), gone.parse().unwrap());
    let ran = task.run().await.failed();
    assert!(ran.reason("run").contains(&gone), "{}", ran.reason("run"));
}

#[tokio::test]
async fn read_only_cache_is_not_exported() {
    let engine = engine!();
    let build = |reference: &ImageRef, export: bool| {
        let mut task = engine
            .task("steps:\n  - id: build\n    build: --no-cache -t $R/$ID/cached:1 .\n")
            .file("Dockerfile", "FROM $BUSYBOX\nRUN echo cached > /x\n");
        task.extra.cache = Some(StepCache {
            reference: reference.clone(),
            export,
        });
        task.run()
    };
    let registry =
        acrtask_registry::Registry::new(Credentials::new(), acrtask_registry::Settings::default())
            .unwrap();
    let fresh = engine.task("").id;
    let name = format!("{}/caches/{fresh}:cache_task", engine.registry);
    let reference: ImageRef = name.parse().unwrap();
    // A missing cache does not fail the build.
    let ran = build(&reference, false).await.ok();
    assert!(
        registry.resolve(&reference).await.is_err(),
        "{}",
        ran.story()
    );
    build(&reference, true).await.ok();
    assert!(registry.resolve(&reference).await.is_ok());
}

#[tokio::test]
async fn run_without_pushes_exports_no_cache() {
    let engine = engine!();
    let registry =
        acrtask_registry::Registry::new(Credentials::new(), acrtask_registry::Settings::default())
            .unwrap();
    let build = |reference: &ImageRef, no_push: bool| {
        let mut task = engine
            .task(&format!(
                "steps:\n  - id: build\n    build: -t $R/$ID/cached:1 --cache-to type=registry,ref={reference},mode=max --cache-to type=inline .\n"
            ))
            .file("Dockerfile", "FROM $BUSYBOX\nRUN echo cached > /x\n");
        task.options.no_push = no_push;
        task.run()
    };
    let fresh = engine.task("").id;
    let name = format!("{}/caches/{fresh}:cache_task", engine.registry);
    let reference: ImageRef = name.parse().unwrap();
    let ran = build(&reference, true).await.ok();
    assert!(ran.output("build").contains("--no-push"), "{}", ran.story());
    assert!(
        registry.resolve(&reference).await.is_err(),
        "{}",
        ran.story()
    );
    build(&reference, false).await.ok();
    assert!(registry.resolve(&reference).await.is_ok());
}

#[tokio::test]
async fn failed_cache_export_does_not_fail_the_build() {
    let engine = engine!();
    let mut task = engine
        .task("steps:\n  - id: build\n    build: -t $R/$ID/cached:1 .\n")
        .file("Dockerfile", "FROM $BUSYBOX\nRUN echo $RANDOM > /x\n");
    task.extra.cache = Some(StepCache {
        reference: "127.0.0.1:1/nowhere/app:cache_task".parse().unwrap(),
        export: true,
    });
    task.run().await.ok();
}

#[tokio::test]
async fn run_uses_its_own_credentials() {
    let engine = engine!();
    let var = |name: &str| std::env::var(name).unwrap();
    let host = var("ACRTASK_TEST_AUTH_REGISTRY");
    let task = |credentials: Option<Credentials>| {
        let mut task = engine
            .task(&format!(
                "steps:\n  - build: -t {host}/$ID/own:1 .\n  - id: push\n    push: [\"{host}/$ID/own:1\"]\n"
            ))
            .file("Dockerfile", "FROM $BUSYBOX\nRUN echo own > /x\n");
        task.extra.credentials = credentials;
        task.run()
    };
    let own = Credentials::new().with(
        &host,
        var("ACRTASK_TEST_AUTH_USER"),
        acrtask_model::Secret::new(var("ACRTASK_TEST_AUTH_PASSWORD")),
    );
    let ran = task(Some(own)).await.ok();
    assert_eq!(ran.report.pushed.len(), 1);
    task(None).await.failed();
}
