//! Build caches: a run reuses entries of runs in its own trust domain, and of no other.

use acrtask_tests::{
    Outcome, TestEnvironment, new_run_id,
    project::{RegistryClient, create_folder},
    service::TestServer,
};
use sha2::Digest as _;

use crate::stored_task::{self, store_task};

/// Runs the stored task with this Dockerfile as its only file.
fn run_task(server: &TestServer, name: &str, dockerfile: &str) -> Outcome {
    stored_task::run_task(server, name, &[("Dockerfile", dockerfile)])
}

/// Returns a Dockerfile that prints the content of a cache mount and writes `mark` to it.
fn mount_dockerfile(environment: &TestEnvironment, id: &str, mark: &str) -> String {
    format!(
        "FROM {}\nRUN --mount=type=cache,id={id},target=/c \
         echo found-$(cat /c/mark 2>/dev/null || echo nothing)-before-{mark} && echo {mark} > /c/mark\n",
        environment.busybox()
    )
}

/// Returns `true` if the builder took the layer of the `RUN` with `mark` from its cache.
fn is_cached(outcome: &Outcome, mark: &str) -> bool {
    outcome.events_named("vertex").into_iter().any(|event| {
        let name = event["name"].as_str().unwrap_or_default();
        event["cached"] == true && name.contains("RUN") && name.contains(mark)
    })
}

#[test]
fn cache_mounts_are_not_shared_between_tasks() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &[]);
    let id = format!("mount-{}", new_run_id());
    store_task(&environment, &server, "prod/a", "build: .", None);
    let victim = run_task(
        &server,
        "prod/a",
        &mount_dockerfile(&environment, &id, "a1"),
    );
    assert!(
        victim.stdout.contains("found-nothing-before-a1"),
        "{}",
        victim.transcript()
    );
    // No build line can change the namespace.
    for (name, step) in [
        ("team/plain", "build: ."),
        (
            "team/empty",
            "build: --build-arg BUILDKIT_CACHE_MOUNT_NS= .",
        ),
        (
            "team/root",
            "build: --build-arg BUILDKIT_CACHE_MOUNT_NS=/../.. .",
        ),
        (
            "team/twice",
            "build: --build-arg BUILDKIT_CACHE_MOUNT_NS=x --build-arg BUILDKIT_CACHE_MOUNT_NS= .",
        ),
        (
            "team/words",
            "cmd: docker build --build-arg BUILDKIT_CACHE_MOUNT_NS= .",
        ),
        (
            "team/buildx",
            "cmd: docker buildx build --provenance=true .",
        ),
    ] {
        store_task(&environment, &server, name, step, None);
        let mark = name.replace('/', "-");
        let attacker = run_task(&server, name, &mount_dockerfile(&environment, &id, &mark));
        let found = format!("found-nothing-before-{mark}");
        assert!(
            attacker.stdout.contains(&found),
            "{name}: {}",
            attacker.transcript()
        );
    }
    let again = run_task(
        &server,
        "prod/a",
        &mount_dockerfile(&environment, &id, "a2"),
    );
    assert!(
        again.stdout.contains("found-a1-before-a2"),
        "{}",
        again.transcript()
    );
    // Local runs do not share the cache either. Their namespace is the same in the next test run,
    // so the layer must differ.
    let local_mark = format!("local-{id}");
    let files = create_folder(&[
        (
            "Dockerfile",
            &mount_dockerfile(&environment, &id, &local_mark),
        ),
        (
            "acr-task.yaml",
            "version: v1.1.0\nsteps:\n  - {id: image, build: .}\n",
        ),
    ]);
    let local = environment.run_acrtask(files.path(), &["run", "-o", "json", "."]);
    let found = format!("found-nothing-before-{local_mark}");
    assert!(local.stdout.contains(&found), "{}", local.transcript());
}

#[test]
fn layer_with_a_secret_is_not_cached_for_another_task() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &[]);
    let mark = new_run_id();
    let dockerfile = format!(
        "FROM {}\nRUN --mount=type=secret,id=s sha256sum < /run/secrets/s && echo {mark}\n",
        environment.busybox()
    );
    let secrets = create_folder(&[
        ("a", "secret-of-the-victim"),
        ("b", "secret-of-the-attacker"),
    ]);
    for (name, task) in [("a", "prod/a"), ("b", "team/b")] {
        let set = ["secret", "set", name, "--from-file", name];
        let set = server.start_client(secrets.path(), &set).wait();
        assert_eq!(set.code, Some(0), "{}", set.transcript());
        store_task(
            &environment,
            &server,
            task,
            "build: --secret id=s .",
            Some(name),
        );
    }
    let hash = |text: &str| -> String {
        let digest = sha2::Sha256::digest(text);
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let (of_victim, of_attacker) = (hash("secret-of-the-victim"), hash("secret-of-the-attacker"));
    let victim = run_task(&server, "prod/a", &dockerfile);
    assert!(
        victim.stdout.contains(&of_victim),
        "{}",
        victim.transcript()
    );
    let attacker = run_task(&server, "team/b", &dockerfile);
    assert!(!is_cached(&attacker, &mark), "{}", attacker.transcript());
    assert!(
        attacker.stdout.contains(&of_attacker),
        "{}",
        attacker.transcript()
    );
    assert!(
        !attacker.stdout.contains(&of_victim),
        "{}",
        attacker.transcript()
    );
    // Each trust domain still reuses its own layers.
    for task in ["prod/a", "team/b"] {
        let again = run_task(&server, task, &dockerfile);
        assert!(is_cached(&again, &mark), "{task}: {}", again.transcript());
    }
}

#[test]
fn tasks_of_one_trust_domain_share_their_caches() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &["--trust-domain", "team/*"]);
    let mark = new_run_id();
    for name in ["team/a", "team/b", "teams/c"] {
        store_task(&environment, &server, name, "build: .", None);
    }
    let made = run_task(
        &server,
        "team/a",
        &mount_dockerfile(&environment, &mark, &mark),
    );
    assert!(!is_cached(&made, &mark), "{}", made.transcript());
    let shared = run_task(
        &server,
        "team/b",
        &mount_dockerfile(&environment, &mark, &mark),
    );
    assert!(is_cached(&shared, &mark), "{}", shared.transcript());
    let other = run_task(
        &server,
        "teams/c",
        &mount_dockerfile(&environment, &mark, &mark),
    );
    assert!(!is_cached(&other, &mark), "{}", other.transcript());
    assert!(
        other.stdout.contains("found-nothing-before"),
        "{}",
        other.transcript()
    );
}

#[test]
fn runs_without_a_task_share_caches_only_within_their_token() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &[]);
    let mark = new_run_id();
    let files = create_folder(&[
        ("Dockerfile", &mount_dockerfile(&environment, &mark, &mark)),
        (
            "acr-task.yaml",
            "version: v1.1.0\nsteps:\n  - {id: image, build: .}\n",
        ),
    ]);
    let run = |token: &str| {
        let mut variables = server.variables();
        variables.push(("ACRTASK_TOKEN".into(), token.to_owned()));
        let variables: Vec<(&str, &str)> = variables
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let args = ["run", "-o", "json", "."];
        let outcome = environment
            .start_with(files.path(), &args, &variables, "")
            .wait();
        assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
        outcome
    };
    let create = [
        "token", "create", "other", "--scope", "read", "--scope", "run", "-o", "json",
    ];
    let other = server.run_json(&create);
    let other = other["secret"].as_str().unwrap();
    assert!(!is_cached(&run(&server.token), &mark));
    assert!(is_cached(&run(&server.token), &mark));
    let theirs = run(other);
    assert!(!is_cached(&theirs, &mark), "{}", theirs.transcript());
    assert!(
        theirs.stdout.contains("found-nothing-before"),
        "{}",
        theirs.transcript()
    );
}

#[tokio::test]
async fn cache_namespace_appears_in_no_log_image_or_provenance() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let state = tempfile::tempdir().unwrap();
    let variables = [("XDG_STATE_HOME", state.path().to_str().unwrap())];
    let dockerfile = format!(
        "FROM {}\nRUN --mount=type=cache,target=/c cat /etc/hosts; hostname; env; echo seen\n",
        environment.busybox()
    );
    for (name, flags) in [
        ("plain", ""),
        ("min", "--provenance mode=min"),
        ("true", "--provenance true"),
        ("max", "--provenance mode=max"),
        ("v1", "--provenance mode=max,version=v1"),
    ] {
        let task = format!(
            "version: v1.1.0\nsteps:\n  - {{id: image, build: \"{flags} -t $Registry/isolation/{name}:$ID .\"}}\n  \
             - {{id: out, push: [$Registry/isolation/{name}:$ID]}}\n"
        );
        let files = create_folder(&[("acr-task.yaml", &task), ("Dockerfile", &dockerfile)]);
        let args = ["run", "-o", "json", "."];
        let outcome = environment
            .start_with(files.path(), &args, &variables, "")
            .wait();
        assert_eq!(outcome.code, Some(0), "{name}: {}", outcome.transcript());
        assert!(outcome.stdout.contains("seen"), "{}", outcome.transcript());
        let namespace = std::fs::read_to_string(state.path().join("acrtask/build-namespace"));
        let namespace = namespace.unwrap();
        assert_eq!(namespace.len(), 32);
        assert!(
            !outcome.transcript().contains(&namespace),
            "{name}: {}",
            outcome.transcript()
        );
        let texts = published_texts(&environment, &format!("isolation/{name}"), &outcome.run).await;
        assert!(
            texts.iter().any(|text| text.contains("echo seen")),
            "{texts:?}"
        );
        assert_eq!(
            texts.iter().any(|text| text.contains("slsa.dev")),
            name != "plain"
        );
        for text in texts {
            assert!(!text.contains(&namespace), "{name}: {text}");
        }
    }
}

/// Returns the manifests, configurations and attestations of an image.
async fn published_texts(
    environment: &TestEnvironment,
    repository: &str,
    tag: &str,
) -> Vec<String> {
    let client = RegistryClient::new(&environment.registry, None);
    let (_, first) = client
        .fetch_manifest(&format!("{repository}:{tag}"))
        .await
        .unwrap();
    let mut manifests = vec![first.clone()];
    for entry in first["manifests"].as_array().into_iter().flatten() {
        let name = format!("{repository}@{}", entry["digest"].as_str().unwrap());
        manifests.push(client.fetch_manifest(&name).await.unwrap().1);
    }
    let mut texts = Vec::new();
    for manifest in manifests {
        texts.push(manifest.to_string());
        let layers = manifest["layers"].as_array().into_iter().flatten();
        for blob in layers.chain([&manifest["config"]]) {
            let media = blob["mediaType"].as_str().unwrap_or_default();
            if media.contains("json") {
                let digest = blob["digest"].as_str().unwrap();
                texts.push(client.fetch_json(repository, digest).await.to_string());
            }
        }
    }
    texts
}
