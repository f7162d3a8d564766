//! Imported build caches. A cache record affects every build of its builder. Therefore a runner
//! imports only caches that runs of the same trust domain have exported.

use acrtask_model::ImageRef;
use acrtask_registry::{Credentials, Descriptor, Manifest, Registry, Settings, manifest::sha256};
use acrtask_tests::{
    Outcome, TestEnvironment, engine, new_run_id, project::create_folder, service::TestServer,
};
use async_compression::tokio::bufread::{GzipDecoder, GzipEncoder};
use serde_json::Value;
use tokio::io::AsyncReadExt as _;

use crate::stored_task::{run_task, store_task};

/// Returns the name under which BuildKit reports the import of a cache. `None` if the build
/// imported none.
fn imported_cache(outcome: &Outcome) -> Option<String> {
    let vertices = outcome.events_named("vertex").into_iter();
    let mut names = vertices.filter_map(|event| Some(event["name"].as_str()?.to_owned()));
    names.find_map(|name| {
        Some(
            name.strip_prefix("importing cache manifest from ")?
                .to_owned(),
        )
    })
}

fn warnings(outcome: &Outcome) -> String {
    let warnings = outcome.events_named("warning").into_iter();
    let messages: Vec<String> = warnings.map(|event| event.to_string()).collect();
    messages.join("\n")
}

fn registry_client() -> Registry {
    Registry::new(Credentials::new(), Settings::default()).unwrap()
}

/// Stores the cache `from` as `to`, with `honest` replaced by `evil` in its layer. Every record
/// gets a creation date newer than any other.
async fn edit_cache(from: &ImageRef, to: &ImageRef, honest: &str, evil: &str) -> Manifest {
    let registry = registry_client();
    let manifest = registry.manifest(from).await.unwrap();
    let mut document: Value = serde_json::from_slice(&manifest.raw).unwrap();
    let list = if document["layers"].is_array() {
        "layers"
    } else {
        "manifests"
    };
    let blobs: Vec<Descriptor> = serde_json::from_value(document[list].clone()).unwrap();
    let mut replaced = None;
    for (number, blob) in blobs.iter().enumerate() {
        let packed = registry
            .blob_bytes(from, &blob.digest, 1 << 28)
            .await
            .unwrap();
        let mut content = Vec::new();
        let unpacked = GzipDecoder::new(&*packed).read_to_end(&mut content).await;
        let text = String::from_utf8_lossy(&content).into_owned();
        if unpacked.is_err() || !text.contains(honest) {
            continue;
        }
        assert_eq!(honest.len(), evil.len());
        let position = content
            .windows(honest.len())
            .position(|window| window == honest.as_bytes());
        let position = position.unwrap();
        content[position..position + evil.len()].copy_from_slice(evil.as_bytes());
        let mut packed = Vec::new();
        GzipEncoder::new(&*content)
            .read_to_end(&mut packed)
            .await
            .unwrap();
        let size = packed.len();
        let digest = registry.put_blob(to, packed.into()).await.unwrap();
        document[list][number]["digest"] = digest.as_str().into();
        document[list][number]["size"] = size.into();
        document[list][number]["annotations"]["containerd.io/uncompressed"] =
            sha256(&content).as_str().into();
        replaced = Some((blob.digest.clone(), digest));
    }
    let (old, new) = replaced.expect("a layer has the file");
    let is_config = |blob: &Value| {
        let media_type = blob["mediaType"].as_str().unwrap_or_default();
        media_type == "application/vnd.buildkit.cacheconfig.v0"
    };
    let config = [document["config"].clone()];
    let all = document[list].as_array().unwrap();
    let config = all
        .iter()
        .chain(&config)
        .find(|blob| is_config(blob))
        .unwrap();
    let old_config = config["digest"].as_str().unwrap().to_owned();
    let bytes = registry
        .blob_bytes(from, &old_config.parse().unwrap(), 1 << 24)
        .await
        .unwrap();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let mut config: Value =
        serde_json::from_str(&text.replace(old.as_str(), new.as_str())).unwrap();
    for record in config["records"].as_array_mut().unwrap() {
        for layer in record["layers"].as_array_mut().into_iter().flatten() {
            layer["createdAt"] = "2099-01-01T00:00:00Z".into();
        }
    }
    let config = serde_json::to_vec(&config).unwrap();
    let size = config.len();
    let config = registry.put_blob(to, config.into()).await.unwrap();
    let replace = |blob: &mut Value| {
        if blob["digest"] == old_config.as_str() {
            blob["digest"] = config.as_str().into();
            blob["size"] = size.into();
        }
    };
    document[list]
        .as_array_mut()
        .unwrap()
        .iter_mut()
        .for_each(replace);
    if document["config"].is_object() {
        replace(&mut document["config"]);
    }
    let raw = serde_json::to_vec(&document).unwrap();
    let digest = registry
        .put_manifest(to, &manifest.media_type, raw.into())
        .await
        .unwrap();
    registry.manifest(&to.at(digest)).await.unwrap()
}

/// Changes the seal of the cache so that it covers another manifest.
async fn move_seal(cache: &ImageRef, edited: &Manifest) {
    let registry = registry_client();
    let tag = format!("{}.seal", cache.tag().unwrap());
    let seal = cache.with_tag(&tag).unwrap();
    let manifest = registry.manifest(&seal).await.unwrap();
    let mut document: Value = serde_json::from_slice(&manifest.raw).unwrap();
    document["manifests"][0]["digest"] = edited.digest.as_str().into();
    document["manifests"][0]["size"] = edited.raw.len().into();
    let raw = serde_json::to_vec(&document).unwrap();
    registry
        .put_manifest(&seal, &manifest.media_type, raw.into())
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn edited_cache_changes_no_layer_of_another_task() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &[]);
    let unique = new_run_id();
    let (honest, evil) = (format!("honest-{unique}"), format!("forged-{unique}"));
    let dockerfile = |mark: &str| {
        format!(
            "FROM {}\nCOPY payload /payload\nRUN cat /payload && echo {mark}\n",
            environment.busybox()
        )
    };
    let files = |mark: &str| {
        [
            ("Dockerfile", dockerfile(mark)),
            ("payload", honest.clone()),
        ]
    };
    let run = |task: &str, mark: &str| {
        let files = files(mark);
        let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, &**text)).collect();
        run_task(&server, task, &files)
    };
    let name = |tag: &str| format!("{}/iso/cache:{tag}-{unique}", environment.registry);
    let cache: ImageRef = name("own").parse().unwrap();
    let export = format!("build: --cache-to type=registry,mode=max,ref={cache} .");
    store_task(&environment, &server, "team/export", &export, None);
    run("team/export", "export");
    let image = format!("{}/iso/shared-{unique}:1", environment.registry);
    store_task(&environment, &server, "prod/victim", "build: .", None);

    // A cache of the attacker, and the task's own caches after a push to their tags.
    let edited = edit_cache(&cache, &name("edited").parse().unwrap(), &honest, &evil).await;
    let same = edit_cache(&cache, &cache, &honest, &evil).await;
    assert_eq!(edited.digest, same.digest);
    for (number, line) in [
        format!("--cache-from type=registry,ref={}", name("edited")),
        format!("--cache-from {}", name("edited")),
        format!("--cache-from type=registry,ref={cache}@{}", edited.digest),
        format!(
            "--cache-from type=registry,ref={}",
            cache.at(edited.digest.clone())
        ),
        format!("--cache-from type=registry,ref={cache}"),
    ]
    .iter()
    .enumerate()
    {
        let task = format!("team/a{number}");
        store_task(
            &environment,
            &server,
            &task,
            &format!("build: {line} ."),
            None,
        );
        let attack = run(&task, &task);
        assert!(
            warnings(&attack).contains("is not used: no run of this task"),
            "{}",
            attack.transcript()
        );
        assert_eq!(imported_cache(&attack), None, "{}", attack.transcript());
        let victim = run("prod/victim", &format!("after-{task}"));
        assert!(
            victim.stdout.contains(&honest),
            "{line}: {}",
            victim.transcript()
        );
        assert!(
            !victim.stdout.contains(&evil),
            "{line}: {}",
            victim.transcript()
        );
    }
    // The task imports what its seal covers, not what the tag or a moved seal refers to.
    let line = format!(
        "build: --cache-from {cache} --cache-to type=registry,mode=max,ref={cache} -t {image} ."
    );
    store_task(&environment, &server, "team/export", &line, None);
    let sealed = run("team/export", "sealed");
    let from = imported_cache(&sealed).unwrap_or_else(|| panic!("{}", sealed.transcript()));
    // From the runner, because BuildKit could get another manifest from the registry.
    assert!(from.starts_with("local:"), "{from}");
    assert!(!sealed.stdout.contains(&evil), "{}", sealed.transcript());
    let victim = run("prod/victim", "after-sealed");
    assert!(!victim.stdout.contains(&evil), "{}", victim.transcript());
    move_seal(&cache, &edited).await;
    let moved = run("team/export", "moved");
    assert_eq!(imported_cache(&moved), None, "{}", moved.transcript());
    let victim = run("prod/victim", "at-last");
    assert!(!victim.stdout.contains(&evil), "{}", victim.transcript());
    engine::docker_output(&["image", "rm", "-f", &image]);
}

#[test]
fn foreign_frontends_are_refused() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &[]);
    for (line, expected) in [
        ("# syntax=REGISTRY/base/busybox:1.36", "--allow frontends"),
        (
            "#Syntax = REGISTRY/docker/dockerfile:1",
            "--allow frontends",
        ),
        (
            "# check=skip=all\n# syntax=evil/frontend",
            "--allow frontends",
        ),
    ] {
        let line = line.replace("REGISTRY", &environment.registry);
        let dockerfile = format!("{line}\nFROM {}\n", environment.busybox());
        let files = create_folder(&[
            ("Dockerfile", &dockerfile),
            ("acr-task.yaml", "version: v1.1.0\nsteps:\n  - build: .\n"),
        ]);
        let outcome = server
            .run(files.path(), &["run", "-o", "plain", "."])
            .wait();
        assert_eq!(outcome.code, Some(1), "{line}: {}", outcome.transcript());
        assert!(
            outcome.transcript().contains(expected),
            "{line}: {}",
            outcome.transcript()
        );
    }
    // The argument is refused too. The line itself selects the builder's own frontend.
    let task = format!(
        "version: v1.1.0\nsteps:\n  - build: --build-arg BUILDKIT_SYNTAX={}/evil .\n",
        environment.registry
    );
    let dockerfile = format!("# syntax = \nFROM {}\n", environment.busybox());
    let files = create_folder(&[("Dockerfile", &dockerfile), ("acr-task.yaml", &task)]);
    let outcome = server
        .run(files.path(), &["run", "-o", "plain", "."])
        .wait();
    assert_eq!(outcome.code, Some(1), "{}", outcome.transcript());
    assert!(
        outcome.transcript().contains("--allow frontends"),
        "{}",
        outcome.transcript()
    );
}
