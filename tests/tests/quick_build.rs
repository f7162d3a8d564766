//! `acrtask build` beyond one folder and one platform; the rest is in `program.rs`.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use acrtask_tests::{
    World, engine,
    project::{RegistryClient, commit, folder, git, serve_git, write},
};

#[tokio::test]
async fn a_folder_of_a_repository_with_several_names() {
    let Some(world) = World::find() else { return };
    let root = tempfile::tempdir().unwrap();
    let work = root.path().join("app.git");
    write(
        &work,
        "svc/Dockerfile",
        &format!("FROM {}\nCOPY data /data\n", world.busybox()),
    );
    write(&work, "svc/data", "x");
    git(&work, &["init", "--quiet", "--initial-branch=main"]);
    commit(&work, "first");
    let server = serve_git(root.path()).await;
    let here = tempfile::tempdir().unwrap();
    let url = format!("{}/app.git#main:svc", server.uri());
    let id = acrtask_tests::new_run_id();
    let (one, two) = (format!("quick/one:{id}"), format!("quick/two:{id}"));
    let args = ["build", "-o", "json", "-t", &one, "-t", &two, &url];
    let outcome = world.acrtask(here.path(), &args);
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    let first = world.digest("quick/one", &id).await;
    assert!(first.is_some());
    assert_eq!(first, world.digest("quick/two", &id).await);
    assert_eq!(engine::things_of(&outcome.run), Vec::<String>::new());
}

#[tokio::test]
async fn several_platforms() {
    let Some(world) = World::find() else { return };
    let files = folder(&[("Dockerfile", "FROM scratch\nCOPY data /\n"), ("data", "x")]);
    let id = acrtask_tests::new_run_id();
    let tag = format!("quick/many:{id}");
    let args = [
        "build",
        "-o",
        "json",
        "-t",
        &tag,
        "--platform",
        "linux/amd64,linux/arm64",
        ".",
    ];
    let outcome = world.acrtask(files.path(), &args);
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    let client = RegistryClient::new(&world.registry, None);
    let (digest, index) = client.manifest(&tag).await.unwrap();
    assert_eq!(
        index["manifests"].as_array().map(Vec::len),
        Some(2),
        "{index}"
    );
    assert_eq!(
        outcome.events_named("image_pushed")[0]["digest"],
        digest.as_str()
    );
}

#[test]
fn what_cannot_be_built_is_refused_before_anything_starts() {
    let Some(world) = World::find() else { return };
    let empty = tempfile::tempdir().unwrap();
    for (args, said) in [
        (&["build", "."][..], "--image"),
        (&["build", "-t", "UPPER", "."], "UPPER"),
        (&["build", "-t", "app", "/dev/null"], "/dev/null"),
        (&["build", "-t", "app", "no-such-folder"], "no-such-folder"),
        (
            &[
                "build",
                "-t",
                "app",
                "--secret-build-arg",
                "NOT_SET_ANYWHERE",
                ".",
            ],
            "NOT_SET_ANYWHERE",
        ),
    ] {
        let outcome = world.acrtask(empty.path(), args);
        assert_eq!(outcome.code, Some(2), "{args:?}: {}", outcome.all());
        assert!(outcome.stderr.contains(said), "{args:?}: {}", outcome.all());
        assert_eq!(outcome.stdout, "", "{args:?}");
    }
    // Without a Dockerfile the build fails, and names it.
    let outcome = world.acrtask(empty.path(), &["build", "-t", "app", "--no-push", "."]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.all());
    assert!(outcome.stderr.contains("Dockerfile"), "{}", outcome.all());
}

/// `-f` is relative to the current folder, and may be outside of the context or on standard input.
#[test]
fn a_dockerfile_is_found_as_docker_finds_it() {
    let Some(world) = World::find() else { return };
    let dockerfile = |name: &str| {
        let run = acrtask_tests::new_run_id();
        format!("FROM {}\nRUN echo made by {name} {run}\n", world.busybox())
    };
    let files = folder(&[
        ("app/Dockerfile", &dockerfile("top")),
        ("app/src/Dockerfile", &dockerfile("source")),
        ("app/lower/dockerfile", &dockerfile("lower-case")),
        ("outside", &dockerfile("outside")),
    ]);
    let outside = files.path().join("outside").display().to_string();
    let stdin = dockerfile("input");
    for (here, args, made) in [
        ("app/src", &["-f", "Dockerfile", ".."][..], "source"),
        ("app/src", &[".."], "top"),
        ("app", &["-f", "src/Dockerfile", "."], "source"),
        ("app", &["-f", &outside, "."], "outside"),
        ("app", &["-f", "-", "."], "input"),
        ("app", &["lower"], "lower-case"),
    ] {
        let all = [&["build", "--no-push", "-t", "quick/found:1"][..], args].concat();
        let started = world.start_with(&files.path().join(here), &all, &[], &stdin);
        let outcome = started.wait();
        assert_eq!(outcome.code, Some(0), "{}", outcome.all());
        let made = format!("made by {made} ");
        assert!(outcome.all().contains(&made), "{args:?}: {}", outcome.all());
    }
    let absent = [
        "build",
        "--no-push",
        "-t",
        "quick/found:1",
        "-f",
        "absent",
        ".",
    ];
    let outcome = world.acrtask(files.path(), &absent);
    assert_eq!(outcome.code, Some(2), "{}", outcome.all());
    assert!(outcome.stderr.contains("absent"), "{}", outcome.stderr);
}
