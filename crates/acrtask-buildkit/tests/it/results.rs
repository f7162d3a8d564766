//! Results of builds.

use acrtask_buildkit::*;

use crate::harness::{context, on_each};

#[tokio::test(flavor = "multi_thread")]
async fn local_export_writes_a_folder() {
    on_each(async |builder| {
        let dir = context(builder, &[("Dockerfile", "FROM BASE AS b\nRUN mkdir -p /o/d && echo hi > /o/d/f && ln -s d/f /o/l\nFROM scratch\nCOPY --from=b /o /\n")]);
        let out = tempfile::TempDir::new().unwrap();
        let mut request = builder.request(&dir);
        request.provenance = Provenance::Off;
        request.exports = vec![Export::Local { dir: out.path().join("deep/er") }];
        builder.build(request).await.outcome();
        assert_eq!(std::fs::read_to_string(out.path().join("deep/er/l")).unwrap(), "hi\n");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn archive_exports_write_tar_and_oci_layouts() {
    on_each(async |builder| {
        let dir = context(
            builder,
            &[("Dockerfile", "FROM BASE\nRUN echo hi > /marker-file\n")],
        );
        let out = tempfile::TempDir::new().unwrap();
        let path = |name: &str| out.path().join(name);
        for (export, file, inside) in [
            (Export::Tar(Sink::File(path("t"))), path("t"), "marker-file"),
            (
                Export::Oci {
                    names: vec!["x.example/y:1".into()],
                    archive: Sink::File(path("o")),
                },
                path("o"),
                "oci-layout",
            ),
        ] {
            let mut request = builder.request(&dir);
            request.exports = vec![export];
            builder.build(request).await.outcome();
            let bytes = std::fs::read(file).unwrap();
            assert!(
                bytes
                    .windows(inside.len())
                    .any(|window| window == inside.as_bytes()),
                "{inside}"
            );
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pushed_image_has_a_digest_and_lists_its_bases() {
    on_each(async |builder| {
        let other = format!("{}/base/bash:5.2", builder.registry);
        let dir = context(builder, &[("Dockerfile", &format!("FROM BASE AS b\nRUN --mount=from={other},target=/m true\nFROM {other}\nCOPY --from=b /bin /b\n"))]);
        let mut request = builder.request(&dir);
        let names = vec![format!("{}/acrtask/pushed:1", builder.registry)];
        request.exports = vec![Export::Image(ImageExport { names, push: true, insecure: true, ..Default::default() })];
        let built = builder.build(request).await;
        let outcome = built.outcome();
        assert!(outcome.image_digest.as_ref().is_some_and(|digest| digest.starts_with("sha256:")));
        let used: Vec<&str> = outcome.provenance.iter().map(|used| used.reference.as_str()).collect();
        assert_eq!(used, [other.as_str(), builder.base().as_str()]);
        assert!(outcome.provenance.iter().all(|used| used.digest.starts_with("sha256:") && used.platform.is_some()));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn provenance_is_available_without_an_attestation() {
    on_each(async |builder| {
        let dir = context(builder, &[("Dockerfile", "FROM BASE\nRUN true\n")]);
        let mut request = builder.request(&dir);
        request.provenance = Provenance::Off;
        let built = builder.build(request).await;
        let used: Vec<&str> = built
            .outcome()
            .provenance
            .iter()
            .map(|used| used.reference.as_str())
            .collect();
        assert_eq!(used, [builder.base().as_str()]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn caches_are_shared_through_a_registry_and_a_folder() {
    on_each(async |builder| {
        // Unlike in other builds, so that the endpoint has no cache for it.
        let salt = format!("{:?}", std::time::SystemTime::now());
        let folder = tempfile::TempDir::new().unwrap();
        let spec = |kind: &str, attrs: &[(&str, &str)]| CacheSpec {
            kind: kind.into(),
            attrs: attrs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
        };
        let reference = format!("{}/acrtask/cache:1", builder.registry);
        let path = folder.path().to_str().unwrap();
        for (export, import) in [
            (spec("registry", &[("ref", &reference), ("mode", "max"), ("registry.insecure", "true")]), spec("registry", &[("ref", &reference), ("registry.insecure", "true")])),
            (spec("local", &[("dest", path), ("mode", "max")]), spec("local", &[("src", path)])),
        ] {
            let dir = context(builder, &[("Dockerfile", &format!("FROM BASE\nRUN echo '{} {salt}' > /x\n", export.kind))]);
            let mut request = builder.request(&dir);
            request.no_cache = NoCache::UseCache;
            request.cache_exports = vec![export.clone()];
            builder.build(request).await.outcome();
            let mut request = builder.request(&dir);
            request.no_cache = NoCache::UseCache;
            request.cache_imports = vec![import.clone()];
            let built = builder.build(request).await;
            built.outcome();
            let imported = built.events.iter().any(|e| {
                matches!(e, BuildEvent::Vertex(v) if v.name.starts_with("importing cache manifest") && v.completed.is_some() && v.error.is_none())
            });
            assert!(imported, "{}: {:#?}", import.kind, built.events);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn log_contains_every_line() {
    on_each(async |builder| {
        let dir = context(builder, &[("Dockerfile", "FROM BASE\nRUN seq 1 20000\n")]);
        let built = builder.build(builder.request(&dir)).await;
        built.outcome();
        let log = built.log();
        assert_eq!(log.lines().count(), 20000);
        assert!(log.ends_with("20000\n"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn context_with_thousands_of_small_files_is_sent() {
    on_each(async |builder| {
        let dir = context(
            builder,
            &[(
                "Dockerfile",
                "FROM BASE\nCOPY . /c\nRUN find /c/d -type f | xargs cat | sha256sum\n",
            )],
        );
        let mut all = Vec::new();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        for n in 0..5000 {
            std::fs::write(dir.path().join(format!("d/{n:05}")), "same\n").unwrap();
            all.extend_from_slice(b"same\n");
        }
        let built = builder.build(builder.request(&dir)).await;
        built.outcome();
        use sha2::Digest;
        let want: String = sha2::Sha256::digest(&all)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert!(built.log().starts_with(&want), "{}", built.log());
    })
    .await;
}
