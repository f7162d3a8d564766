//! Build caches: a run finds what runs of its own trust domain left there, and nothing of any other.

use acrtask_tests::{
    Outcome, World, new_run_id,
    project::{RegistryClient, folder},
    service::Server,
};
use sha2::Digest as _;

use crate::stored::{self, store_task};

/// Runs the stored task with this Dockerfile as its only file.
fn run_task(server: &Server, name: &str, dockerfile: &str) -> Outcome {
    stored::run_task(server, name, &[("Dockerfile", dockerfile)])
}

/// A Dockerfile that shows what a cache mount holds, and puts `mark` there.
fn mounting(world: &World, id: &str, mark: &str) -> String {
    format!(
        "FROM {}\nRUN --mount=type=cache,id={id},target=/c \
         echo found-$(cat /c/mark 2>/dev/null || echo nothing)-before-{mark} && echo {mark} > /c/mark\n",
        world.busybox()
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
fn cache_mounts_of_one_task_are_not_seen_by_another() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &[]);
    let id = format!("mount-{}", new_run_id());
    store_task(&world, &server, "prod/a", "build: .", None);
    let victim = run_task(&server, "prod/a", &mounting(&world, &id, "a1"));
    assert!(
        victim.stdout.contains("found-nothing-before-a1"),
        "{}",
        victim.all()
    );
    // The namespace cannot be left, whatever the line says.
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
        store_task(&world, &server, name, step, None);
        let mark = name.replace('/', "-");
        let attacker = run_task(&server, name, &mounting(&world, &id, &mark));
        let found = format!("found-nothing-before-{mark}");
        assert!(
            attacker.stdout.contains(&found),
            "{name}: {}",
            attacker.all()
        );
    }
    let again = run_task(&server, "prod/a", &mounting(&world, &id, "a2"));
    assert!(
        again.stdout.contains("found-a1-before-a2"),
        "{}",
        again.all()
    );
    // On one's own machine neither. Its namespace is the same in the next test run, so the layer has to differ.
    let local_mark = format!("local-{id}");
    let files = folder(&[
        ("Dockerfile", &mounting(&world, &id, &local_mark)),
        (
            "acr-task.yaml",
            "version: v1.1.0\nsteps:\n  - {id: image, build: .}\n",
        ),
    ]);
    let local = world.acrtask(files.path(), &["run", "-o", "json", "."]);
    let found = format!("found-nothing-before-{local_mark}");
    assert!(local.stdout.contains(&found), "{}", local.all());
}

#[test]
fn a_layer_made_with_a_secret_is_no_hit_for_another_task() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &[]);
    let mark = new_run_id();
    let dockerfile = format!(
        "FROM {}\nRUN --mount=type=secret,id=s sha256sum < /run/secrets/s && echo {mark}\n",
        world.busybox()
    );
    let secrets = folder(&[
        ("a", "secret-of-the-victim"),
        ("b", "secret-of-the-attacker"),
    ]);
    for (name, task) in [("a", "prod/a"), ("b", "team/b")] {
        let set = ["secret", "set", name, "--from-file", name];
        let set = server.client(secrets.path(), &set).wait();
        assert_eq!(set.code, Some(0), "{}", set.all());
        store_task(&world, &server, task, "build: --secret id=s .", Some(name));
    }
    let hash = |text: &str| -> String {
        let digest = sha2::Sha256::digest(text);
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let (of_victim, of_attacker) = (hash("secret-of-the-victim"), hash("secret-of-the-attacker"));
    let victim = run_task(&server, "prod/a", &dockerfile);
    assert!(victim.stdout.contains(&of_victim), "{}", victim.all());
    let attacker = run_task(&server, "team/b", &dockerfile);
    assert!(!is_cached(&attacker, &mark), "{}", attacker.all());
    assert!(attacker.stdout.contains(&of_attacker), "{}", attacker.all());
    assert!(!attacker.stdout.contains(&of_victim), "{}", attacker.all());
    // The domain's own layers stay warm.
    for task in ["prod/a", "team/b"] {
        let again = run_task(&server, task, &dockerfile);
        assert!(is_cached(&again, &mark), "{task}: {}", again.all());
    }
}

#[test]
fn tasks_of_the_operators_prefix_share_their_caches() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &["--trust-domain", "team/*"]);
    let mark = new_run_id();
    for name in ["team/a", "team/b", "teams/c"] {
        store_task(&world, &server, name, "build: .", None);
    }
    let made = run_task(&server, "team/a", &mounting(&world, &mark, &mark));
    assert!(!is_cached(&made, &mark), "{}", made.all());
    let shared = run_task(&server, "team/b", &mounting(&world, &mark, &mark));
    assert!(is_cached(&shared, &mark), "{}", shared.all());
    let other = run_task(&server, "teams/c", &mounting(&world, &mark, &mark));
    assert!(!is_cached(&other, &mark), "{}", other.all());
    assert!(
        other.stdout.contains("found-nothing-before"),
        "{}",
        other.all()
    );
}

#[test]
fn runs_without_a_task_share_with_those_of_their_token_alone() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &[]);
    let mark = new_run_id();
    let files = folder(&[
        ("Dockerfile", &mounting(&world, &mark, &mark)),
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
        let outcome = world.start_with(files.path(), &args, &variables, "").wait();
        assert_eq!(outcome.code, Some(0), "{}", outcome.all());
        outcome
    };
    let create = [
        "token", "create", "other", "--scope", "read", "--scope", "run", "-o", "json",
    ];
    let other = server.json(&create);
    let other = other["secret"].as_str().unwrap();
    assert!(!is_cached(&run(&server.token), &mark));
    assert!(is_cached(&run(&server.token), &mark));
    let theirs = run(other);
    assert!(!is_cached(&theirs, &mark), "{}", theirs.all());
    assert!(
        theirs.stdout.contains("found-nothing-before"),
        "{}",
        theirs.all()
    );
}

#[tokio::test]
async fn the_namespace_is_in_no_log_image_or_provenance() {
    let Some(world) = World::find() else { return };
    let state = tempfile::tempdir().unwrap();
    let variables = [("XDG_STATE_HOME", state.path().to_str().unwrap())];
    let dockerfile = format!(
        "FROM {}\nRUN --mount=type=cache,target=/c cat /etc/hosts; hostname; env; echo seen\n",
        world.busybox()
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
        let files = folder(&[("acr-task.yaml", &task), ("Dockerfile", &dockerfile)]);
        let args = ["run", "-o", "json", "."];
        let outcome = world.start_with(files.path(), &args, &variables, "").wait();
        assert_eq!(outcome.code, Some(0), "{name}: {}", outcome.all());
        assert!(outcome.stdout.contains("seen"), "{}", outcome.all());
        let namespace = std::fs::read_to_string(state.path().join("acrtask/build-namespace"));
        let namespace = namespace.unwrap();
        assert_eq!(namespace.len(), 32);
        assert!(
            !outcome.all().contains(&namespace),
            "{name}: {}",
            outcome.all()
        );
        let texts = published(&world, &format!("isolation/{name}"), &outcome.run).await;
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

/// The manifests of an image, its configurations, and its attestations.
async fn published(world: &World, repository: &str, tag: &str) -> Vec<String> {
    let client = RegistryClient::new(&world.registry, None);
    let (_, first) = client
        .manifest(&format!("{repository}:{tag}"))
        .await
        .unwrap();
    let mut manifests = vec![first.clone()];
    for entry in first["manifests"].as_array().into_iter().flatten() {
        let name = format!("{repository}@{}", entry["digest"].as_str().unwrap());
        manifests.push(client.manifest(&name).await.unwrap().1);
    }
    let mut texts = Vec::new();
    for manifest in manifests {
        texts.push(manifest.to_string());
        let layers = manifest["layers"].as_array().into_iter().flatten();
        for blob in layers.chain([&manifest["config"]]) {
            let media = blob["mediaType"].as_str().unwrap_or_default();
            if media.contains("json") {
                let digest = blob["digest"].as_str().unwrap();
                texts.push(client.blob(repository, digest).await.to_string());
            }
        }
    }
    texts
}
