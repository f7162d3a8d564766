//! The same task through a separate buildkitd, which `ACRTASK_TEST_BUILDKITD` names (`unix://` or `tcp://`; for the
//! latter `ACRTASK_TEST_BUILDKITD_TLS` is a folder with `ca.pem`, `cert.pem` and `key.pem`). Skipped where it is not set.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use acrtask_tests::{
    Outcome, World, engine,
    project::{RegistryClient, folder},
};

/// The flags that lead to the builder; nothing where there is none.
#[expect(clippy::print_stderr, reason = "the test's own output")]
fn builder() -> Option<Vec<String>> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let Some(url) = variable("ACRTASK_TEST_BUILDKITD") else {
        eprintln!("skipped: ACRTASK_TEST_BUILDKITD names no buildkitd");
        return None;
    };
    let mut flags = vec!["--builder".to_owned(), url];
    if let Some(folder) = variable("ACRTASK_TEST_BUILDKITD_TLS") {
        for file in ["ca", "cert", "key"] {
            flags.extend([format!("--builder-{file}"), format!("{folder}/{file}.pem")]);
        }
    }
    Some(flags)
}

fn run(world: &World, folder: &std::path::Path, flags: &[String]) -> Outcome {
    let mut args: Vec<&str> = vec!["run", "-o", "json"];
    args.extend(flags.iter().map(String::as_str));
    world.acrtask(folder, &args)
}

#[tokio::test]
async fn what_is_pushed_from_its_cache_is_what_was_tested() {
    let (Some(world), Some(flags)) = (World::find(), builder()) else {
        return;
    };
    let task = "version: v1.1.0
steps:
  - {id: image, build: -t $Registry/endpoints/app:$ID -t $Registry/endpoints/app:$ID-b .}
  - {id: one, cmd: $Registry/endpoints/app:$ID cat /made}
  - {id: two, cmd: $Registry/endpoints/app:$ID-b cat /made, when: [image]}
  - {id: out, push: [$Registry/endpoints/app:$ID, $Registry/endpoints/app:$ID-b], when: [one, two]}
";
    let dockerfile = format!("FROM {}\nARG RUN\nRUN echo made > /made\n", world.busybox());
    let files = folder(&[("acr-task.yaml", task), ("Dockerfile", &dockerfile)]);
    let outcome = run(&world, files.path(), &flags);
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    let started = &outcome.events_named("run_started")[0];
    let builder = started["builder"].as_str().unwrap();
    assert!(builder.starts_with("buildkitd "), "{builder}");
    let built = outcome.events_named("image_built")[0]["digest"].clone();
    let pushed = outcome.events_named("image_pushed");
    assert_eq!(pushed.len(), 2, "{}", outcome.all());
    for tag in [outcome.run.clone(), format!("{}-b", outcome.run)] {
        let there = world.digest("endpoints/app", &tag).await;
        assert_eq!(there.as_deref(), built.as_str(), "{}", outcome.all());
    }
    let printed = outcome.events_named("output");
    for step in ["one", "two"] {
        assert!(
            printed
                .iter()
                .any(|e| e["step"] == step && e["text"] == "made"),
            "{step}"
        );
    }
    let loads = outcome.events_named("progress").into_iter();
    let loads = loads.filter(|e| e["message"].as_str().unwrap().starts_with("loading "));
    assert_eq!(loads.count(), 1, "{}", outcome.all());
    assert_eq!(engine::things_of(&outcome.run), Vec::<String>::new());
}

#[tokio::test]
async fn an_image_for_several_platforms() {
    let (Some(world), Some(flags)) = (World::find(), builder()) else {
        return;
    };
    let task = "version: v1.1.0
steps:
  - {id: image, build: '--platform linux/amd64,linux/arm64 -t $Registry/endpoints/many:$ID .'}
  - {id: out, push: [$Registry/endpoints/many:$ID]}
";
    let files = folder(&[
        ("acr-task.yaml", task),
        ("Dockerfile", "FROM scratch\nCOPY data /data\n"),
        ("data", "x"),
    ]);
    let outcome = run(&world, files.path(), &flags);
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    let pushed = &outcome.events_named("image_pushed")[0];
    let client = RegistryClient::new(&world.registry, None);
    let name = format!("endpoints/many:{}", outcome.run);
    let (digest, index) = client.manifest(&name).await.unwrap();
    assert_eq!(pushed["digest"], digest.as_str());
    assert_eq!(index["manifests"].as_array().unwrap().len(), 2, "{index}");
    assert_eq!(
        pushed["platforms"].as_object().unwrap().len(),
        2,
        "{pushed}"
    );
}

#[test]
fn a_failing_build_and_a_local_cache() {
    let (Some(world), Some(flags)) = (World::find(), builder()) else {
        return;
    };
    let task = "version: v1.1.0
steps:
  - id: image
    build: --cache-to type=local,dest=cache -t app .
  - {id: see, cmd: $Registry/base/busybox:1.36 cat cache/index.json}
  - {id: broken, build: -t broken -f Broken .}
";
    let dockerfile = format!("FROM {}\nRUN echo made > /made\n", world.busybox());
    let broken = format!("FROM {}\nRUN echo before; exit 5\n", world.busybox());
    let files = folder(&[
        ("acr-task.yaml", task),
        ("Dockerfile", &dockerfile),
        ("Broken", &broken),
    ]);
    let outcome = run(&world, files.path(), &flags);
    assert_eq!(outcome.code, Some(1), "{}", outcome.all());
    assert_eq!(outcome.state("image"), "succeeded", "{}", outcome.all());
    assert_eq!(outcome.state("see"), "succeeded", "{}", outcome.all());
    let finished = outcome.events_named("step_finished");
    let broken = finished
        .iter()
        .find(|event| event["step"] == "broken")
        .unwrap();
    assert_eq!(broken["exit_code"], 5, "{broken}");
    assert!(
        broken["excerpt"]
            .as_str()
            .unwrap()
            .contains(">>> RUN echo before; exit 5"),
        "{broken}"
    );
}
