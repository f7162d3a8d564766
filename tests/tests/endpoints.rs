//! Tasks that build with a separate buildkitd. Its `unix://` or `tcp://` URL is in
//! `ACRTASK_TEST_BUILDKITD`; for `tcp://`, `ACRTASK_TEST_BUILDKITD_TLS` is a folder with `ca.pem`,
//! `cert.pem` and `key.pem`. Without the variable the tests start a second engine and use its
//! BuildKit.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use acrtask_tests::{
    Outcome, TestEnvironment, engine,
    project::{RegistryClient, create_folder},
    separate_buildkit::SeparateBuildkit,
};

/// Separate buildkitd with the flags that select it.
struct Builder {
    flags: Vec<String>,
    _started: Option<SeparateBuildkit>,
}

impl Builder {
    /// Finds or starts a buildkitd. A started one is used through TCP and TLS if `tls` is set.
    fn start(tls: bool) -> Option<Self> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        if let Some(url) = variable("ACRTASK_TEST_BUILDKITD").filter(|_| !tls) {
            let folder = variable("ACRTASK_TEST_BUILDKITD_TLS");
            return Some(Self {
                flags: builder_flags(url, folder),
                _started: None,
            });
        }
        let started = SeparateBuildkit::start()?;
        let flags = if tls {
            let folder = started.certificates.display().to_string();
            builder_flags(started.tcp.clone(), Some(folder))
        } else {
            builder_flags(started.unix.clone(), None)
        };
        Some(Self {
            flags,
            _started: Some(started),
        })
    }
}

fn builder_flags(url: String, folder: Option<String>) -> Vec<String> {
    let mut flags = vec!["--builder".to_owned(), url];
    if let Some(folder) = folder {
        for file in ["ca", "cert", "key"] {
            flags.extend([format!("--builder-{file}"), format!("{folder}/{file}.pem")]);
        }
    }
    flags
}

fn run(environment: &TestEnvironment, folder: &std::path::Path, flags: &[String]) -> Outcome {
    let mut args: Vec<&str> = vec!["run", "-o", "json"];
    args.extend(flags.iter().map(String::as_str));
    environment.run_acrtask(folder, &args)
}

#[tokio::test]
async fn image_pushed_from_cache_is_the_tested_image() {
    let (Some(environment), Some(builder)) = (TestEnvironment::find(), Builder::start(true)) else {
        return;
    };
    let task = "version: v1.1.0
steps:
  - {id: image, build: -t $Registry/endpoints/app:$ID -t $Registry/endpoints/app:$ID-b .}
  - {id: one, cmd: $Registry/endpoints/app:$ID cat /made}
  - {id: two, cmd: $Registry/endpoints/app:$ID-b cat /made, when: [image]}
  - {id: out, push: [$Registry/endpoints/app:$ID, $Registry/endpoints/app:$ID-b], when: [one, two]}
";
    let dockerfile = format!(
        "FROM {}\nARG RUN\nRUN echo made > /made\n",
        environment.busybox()
    );
    let files = create_folder(&[("acr-task.yaml", task), ("Dockerfile", &dockerfile)]);
    let outcome = run(&environment, files.path(), &builder.flags);
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    let started = &outcome.events_named("run_started")[0];
    let builder = started["builder"].as_str().unwrap();
    assert!(builder.starts_with("buildkitd "), "{builder}");
    let built = outcome.events_named("image_built")[0]["digest"].clone();
    let pushed = outcome.events_named("image_pushed");
    assert_eq!(pushed.len(), 2, "{}", outcome.transcript());
    for tag in [outcome.run.clone(), format!("{}-b", outcome.run)] {
        let there = environment.fetch_digest("endpoints/app", &tag).await;
        assert_eq!(there.as_deref(), built.as_str(), "{}", outcome.transcript());
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
    assert_eq!(loads.count(), 1, "{}", outcome.transcript());
    assert_eq!(engine::list_remains(&outcome.run), Vec::<String>::new());
}

#[tokio::test]
async fn image_for_several_platforms_is_pushed() {
    let (Some(environment), Some(builder)) = (TestEnvironment::find(), Builder::start(false))
    else {
        return;
    };
    let task = "version: v1.1.0
steps:
  - {id: image, build: '--platform linux/amd64,linux/arm64 -t $Registry/endpoints/many:$ID .'}
  - {id: out, push: [$Registry/endpoints/many:$ID]}
";
    let files = create_folder(&[
        ("acr-task.yaml", task),
        ("Dockerfile", "FROM scratch\nCOPY data /data\n"),
        ("data", "x"),
    ]);
    let outcome = run(&environment, files.path(), &builder.flags);
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    let pushed = &outcome.events_named("image_pushed")[0];
    let client = RegistryClient::new(&environment.registry, None);
    let name = format!("endpoints/many:{}", outcome.run);
    let (digest, index) = client.fetch_manifest(&name).await.unwrap();
    assert_eq!(pushed["digest"], digest.as_str());
    assert_eq!(index["manifests"].as_array().unwrap().len(), 2, "{index}");
    assert_eq!(
        pushed["platforms"].as_object().unwrap().len(),
        2,
        "{pushed}"
    );
}

#[test]
fn failed_build_shows_its_excerpt_and_local_cache_is_written() {
    let (Some(environment), Some(builder)) = (TestEnvironment::find(), Builder::start(false))
    else {
        return;
    };
    let task = "version: v1.1.0
steps:
  - id: image
    build: --cache-to type=local,dest=cache -t app .
  - {id: see, cmd: $Registry/base/busybox:1.36 cat cache/index.json}
  - {id: broken, build: -t broken -f Broken .}
";
    let dockerfile = format!("FROM {}\nRUN echo made > /made\n", environment.busybox());
    let broken = format!("FROM {}\nRUN echo before; exit 5\n", environment.busybox());
    let files = create_folder(&[
        ("acr-task.yaml", task),
        ("Dockerfile", &dockerfile),
        ("Broken", &broken),
    ]);
    let outcome = run(&environment, files.path(), &builder.flags);
    assert_eq!(outcome.code, Some(1), "{}", outcome.transcript());
    assert_eq!(
        outcome.step_state("image"),
        "succeeded",
        "{}",
        outcome.transcript()
    );
    assert_eq!(
        outcome.step_state("see"),
        "succeeded",
        "{}",
        outcome.transcript()
    );
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
