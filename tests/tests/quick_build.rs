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
