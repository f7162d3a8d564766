//! `acrtask build` with several names, platforms and sources. The basic cases are in `program.rs`.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use acrtask_tests::{
    TestEnvironment, engine,
    project::{RegistryClient, commit_all, create_folder, git, serve_git, write_file},
};

#[tokio::test]
async fn repository_folder_is_pushed_under_several_names() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let root = tempfile::tempdir().unwrap();
    let work = root.path().join("app.git");
    write_file(
        &work,
        "svc/Dockerfile",
        &format!("FROM {}\nCOPY data /data\n", environment.busybox()),
    );
    write_file(&work, "svc/data", "x");
    git(&work, &["init", "--quiet", "--initial-branch=main"]);
    commit_all(&work, "first");
    let server = serve_git(root.path()).await;
    let here = tempfile::tempdir().unwrap();
    let url = format!("{}/app.git#main:svc", server.uri());
    let id = acrtask_tests::new_run_id();
    let (one, two) = (format!("quick/one:{id}"), format!("quick/two:{id}"));
    let args = ["build", "-o", "json", "-t", &one, "-t", &two, &url];
    let outcome = environment.run_acrtask(here.path(), &args);
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    let first = environment.fetch_digest("quick/one", &id).await;
    assert!(first.is_some());
    assert_eq!(first, environment.fetch_digest("quick/two", &id).await);
    assert_eq!(engine::list_remains(&outcome.run), Vec::<String>::new());
}

#[tokio::test]
async fn image_for_several_platforms_is_pushed() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let files = create_folder(&[("Dockerfile", "FROM scratch\nCOPY data /\n"), ("data", "x")]);
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
    let outcome = environment.run_acrtask(files.path(), &args);
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    let client = RegistryClient::new(&environment.registry, None);
    let (digest, index) = client.fetch_manifest(&tag).await.unwrap();
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
fn invalid_build_arguments_are_refused_before_the_run() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let empty = tempfile::tempdir().unwrap();
    for (args, message) in [
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
        let outcome = environment.run_acrtask(empty.path(), args);
        assert_eq!(outcome.code, Some(2), "{args:?}: {}", outcome.transcript());
        assert!(
            outcome.stderr.contains(message),
            "{args:?}: {}",
            outcome.transcript()
        );
        assert_eq!(outcome.stdout, "", "{args:?}");
    }
    // Without a Dockerfile the build fails, and the error names the file.
    let outcome = environment.run_acrtask(empty.path(), &["build", "-t", "app", "--no-push", "."]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.transcript());
    assert!(
        outcome.stderr.contains("Dockerfile"),
        "{}",
        outcome.transcript()
    );
}

/// `-f` is relative to the current folder. It may be outside the context or on standard input.
#[test]
fn dockerfile_is_located_as_docker_does() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let dockerfile = |name: &str| {
        let run = acrtask_tests::new_run_id();
        format!(
            "FROM {}\nRUN echo made by {name} {run}\n",
            environment.busybox()
        )
    };
    let files = create_folder(&[
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
        let started = environment.start_with(&files.path().join(here), &all, &[], &stdin);
        let outcome = started.wait();
        assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
        let made = format!("made by {made} ");
        assert!(
            outcome.transcript().contains(&made),
            "{args:?}: {}",
            outcome.transcript()
        );
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
    let outcome = environment.run_acrtask(files.path(), &absent);
    assert_eq!(outcome.code, Some(2), "{}", outcome.transcript());
    assert!(outcome.stderr.contains("absent"), "{}", outcome.stderr);
}
