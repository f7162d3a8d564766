//! Where the files of a run come from: git, tarballs, standard input, artifacts, nothing.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::Path;

use acrtask_tests::{
    Outcome, Running, World, engine, new_run_id,
    project::{self, RegistryClient, commit, folder, git, one_step, write},
    service::Server,
};
use wiremock::{Mock, MockServer, ResponseTemplate, matchers::path};

/// The lines that the step `step` printed.
fn printed(outcome: &Outcome, step: &str) -> Vec<String> {
    outcome
        .events_named("output")
        .iter()
        .filter(|event| event["step"] == step)
        .flat_map(|event| event["text"].as_str().unwrap().lines())
        .map(str::to_owned)
        .collect()
}

/// `content` as the answer to GET `/name`.
async fn serve(name: &str, content: Vec<u8>) -> MockServer {
    let server = MockServer::start().await;
    Mock::given(path(name))
        .respond_with(ResponseTemplate::new(200).set_body_bytes(content))
        .mount(&server)
        .await;
    server
}

/// `acrtask run` of a context, from an empty folder.
fn start(world: &World, here: &Path, context: &str) -> Running {
    world.start(here, &["run", "-o", "json", context])
}

#[tokio::test]
async fn git_by_branch_tag_commit_pull_request_and_folder() {
    let Some(world) = World::find() else { return };
    let root = tempfile::tempdir().unwrap();
    let work = root.path().join("app.git");
    std::fs::create_dir(&work).unwrap();
    git(&work, &["init", "--quiet", "--initial-branch=main"]);
    let task = one_step("cat data; echo {{.Run.Branch}}/{{.Run.GitTag}}/{{.Run.Commit}}");
    write(&work, "acr-task.yaml", &task);
    write(&work, "data", "first\n");
    write(&work, "sub/acb.yaml", &one_step("cat data"));
    write(&work, "sub/data", "in the folder\n");
    let first = commit(&work, "first");
    git(&work, &["tag", "v1"]);
    write(&work, "data", "second\n");
    let second = commit(&work, "second");
    git(&work, &["checkout", "--quiet", "-b", "feature/x"]);
    write(&work, "data", "feature\n");
    let feature = commit(&work, "feature");
    git(&work, &["update-ref", "refs/pull/7/head", &feature]);
    git(&work, &["checkout", "--quiet", "main"]);
    let server = project::serve_git(root.path()).await;
    let here = tempfile::tempdir().unwrap();
    let url = format!("{}/app.git", server.uri());
    let cases = [
        (
            String::new(),
            vec!["second".into(), format!("main//{second}")],
        ),
        (
            "#feature/x".into(),
            vec!["feature".into(), format!("feature/x//{feature}")],
        ),
        ("#v1".into(), vec!["first".into(), format!("/v1/{first}")]),
        (
            format!("#{first}"),
            vec!["first".into(), format!("//{first}")],
        ),
        (
            "#pull/7/head".into(),
            vec!["feature".into(), format!("//{feature}")],
        ),
        ("#main:sub".into(), vec!["in the folder".to_owned()]),
    ];
    let runs: Vec<Running> = cases
        .iter()
        .map(|(fragment, _)| start(&world, here.path(), &format!("{url}{fragment}")))
        .collect();
    for ((fragment, expected), run) in cases.iter().zip(runs) {
        let outcome = run.wait();
        assert_eq!(outcome.code, Some(0), "{fragment}: {}", outcome.all());
        assert_eq!(
            &printed(&outcome, "one"),
            expected,
            "{fragment}: {}",
            outcome.all()
        );
        assert_eq!(engine::things_of(&outcome.run), Vec::<String>::new());
    }
    let outcome = start(&world, here.path(), &format!("{url}#nowhere")).wait();
    assert_eq!(outcome.code, Some(2), "{}", outcome.all());
    assert!(
        outcome
            .stderr
            .contains("has no branch, tag, commit or pull request `nowhere`"),
        "{}",
        outcome.all()
    );
    assert_eq!(outcome.stdout, "");
}

#[tokio::test]
async fn tarballs_from_a_file_a_url_and_a_registry() {
    let Some(world) = World::find() else { return };
    let task = one_step("cat deep/data");
    let files = folder(&[("acr-task.yaml", &task), ("deep/data", "from afar\n")]);
    let packed = project::tarball(files.path());
    let here = tempfile::tempdir().unwrap();
    std::fs::write(here.path().join("context.tar.gz"), &packed).unwrap();
    let server = serve("/context.tar.gz", packed).await;
    let id = new_run_id();
    RegistryClient::new(&world.registry, None)
        .put_artifact("contexts/files", &id, files.path())
        .await;
    for context in [
        "context.tar.gz".into(),
        format!("{}/context.tar.gz", server.uri()),
        format!("oci://{}/contexts/files:{id}", world.registry),
    ] {
        let outcome = start(&world, here.path(), &context).wait();
        assert_eq!(outcome.code, Some(0), "{context}: {}", outcome.all());
        assert_eq!(printed(&outcome, "one"), ["from afar"], "{context}");
    }
    for (context, code, said) in [
        ("missing.tar.gz".to_owned(), 2, "missing.tar.gz"),
        (format!("{}/other.tar.gz", server.uri()), 2, "404"),
        ("http://127.0.0.1:1/context.tar.gz".into(), 3, "127.0.0.1:1"),
        (
            format!("oci://{}/contexts/files:none-{id}", world.registry),
            2,
            "none-",
        ),
        (
            "oci://127.0.0.1:1/contexts/files:1".into(),
            3,
            "127.0.0.1:1",
        ),
        ("http://127.0.0.1:1/app.git".into(), 3, "127.0.0.1:1"),
    ] {
        let outcome = start(&world, here.path(), &context).wait();
        assert_eq!(outcome.code, Some(code), "{context}: {}", outcome.all());
        assert!(
            outcome.stderr.contains(said),
            "{context}: {}",
            outcome.all()
        );
        assert_eq!(outcome.stdout, "", "{context}");
    }
}

#[test]
fn the_task_file_of_a_folder_is_found_by_its_usual_names() {
    let Some(world) = World::find() else { return };
    let files = folder(&[
        ("acb.yaml", &one_step("echo from acb")),
        ("other/task.yaml", &one_step("echo from other")),
    ]);
    let outcome = start(&world, files.path(), ".").wait();
    assert_eq!(printed(&outcome, "one"), ["from acb"], "{}", outcome.all());
    write(
        files.path(),
        "acr-task.yaml",
        &one_step("echo from acr-task"),
    );
    let outcome = start(&world, files.path(), ".").wait();
    assert_eq!(
        printed(&outcome, "one"),
        ["from acr-task"],
        "{}",
        outcome.all()
    );
    let args = ["run", "-o", "json", "-f", "other/task.yaml", "."];
    let outcome = world.acrtask(files.path(), &args);
    assert_eq!(
        printed(&outcome, "one"),
        ["from other"],
        "{}",
        outcome.all()
    );
    // Without a context, a file of this folder; its workspace is empty.
    write(files.path(), "empty.yaml", &one_step("ls -A | wc -l"));
    let args = ["run", "-o", "json", "-f", "empty.yaml", "/dev/null"];
    let outcome = world.acrtask(files.path(), &args);
    assert_eq!(printed(&outcome, "one"), ["0"], "{}", outcome.all());
    let empty = tempfile::tempdir().unwrap();
    let outcome = start(&world, empty.path(), ".").wait();
    assert_eq!(outcome.code, Some(2), "{}", outcome.all());
    assert!(
        outcome.stderr.contains("acr-task.yaml and acb.yaml"),
        "{}",
        outcome.all()
    );
}

#[tokio::test]
async fn a_build_step_takes_git_a_tarball_and_an_artifact() {
    let Some(world) = World::find() else { return };
    let root = tempfile::tempdir().unwrap();
    let work = root.path().join("image.git");
    let dockerfile = format!("FROM {}\nCOPY data /data\n", world.busybox());
    write(&work, "svc/Dockerfile", &dockerfile);
    write(&work, "svc/data", "from git\n");
    write(
        &work,
        "svc/Other",
        &format!("{dockerfile}RUN echo other >> /data\n"),
    );
    git(&work, &["init", "--quiet", "--initial-branch=main"]);
    commit(&work, "first");
    let server = project::serve_git(root.path()).await;
    let files = folder(&[("Dockerfile", &dockerfile), ("data", "from a tarball\n")]);
    let tarball = serve("/files.tar.gz", project::tarball(files.path())).await;
    let id = new_run_id();
    write(files.path(), "data", "from an artifact\n");
    RegistryClient::new(&world.registry, None)
        .put_artifact("contexts/image", &id, files.path())
        .await;
    let (git_url, tar_url) = (server.uri(), tarball.uri());
    let task = format!(
        "version: v1.1.0
steps:
  - id: from-git
    build: -t $Registry/contexts/a:$ID {git_url}/image.git#main:svc
    when: ['-']
  - id: with-file
    build: -t $Registry/contexts/b:$ID -f Other {git_url}/image.git#main:svc
    when: ['-']
  - id: from-tarball
    build: -t $Registry/contexts/c:$ID {tar_url}/files.tar.gz
    when: ['-']
  - id: from-artifact
    build: -t $Registry/contexts/d:$ID oci://$Registry/contexts/image:{id}
    when: ['-']
  - {{id: see-git, cmd: $Registry/contexts/a:$ID cat /data, when: [from-git]}}
  - {{id: see-file, cmd: $Registry/contexts/b:$ID cat /data, when: [with-file]}}
  - {{id: see-tarball, cmd: $Registry/contexts/c:$ID cat /data, when: [from-tarball]}}
  - {{id: see-artifact, cmd: $Registry/contexts/d:$ID cat /data, when: [from-artifact]}}
"
    );
    let here = folder(&[("acr-task.yaml", &task)]);
    let outcome = start(&world, here.path(), ".").wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    assert_eq!(printed(&outcome, "see-git"), ["from git"]);
    assert_eq!(printed(&outcome, "see-file"), ["from git", "other"]);
    assert_eq!(printed(&outcome, "see-tarball"), ["from a tarball"]);
    assert_eq!(printed(&outcome, "see-artifact"), ["from an artifact"]);
    // The Dockerfile is one of the context, whatever path the line names.
    let outside = folder(&[("key", "FROM the-key-of-the-machine\n")]);
    let key = outside.path().join("key").display().to_string();
    let up = format!("../../../../../..{key}");
    for file in [key.as_str(), &up, "link", "folder/key"] {
        let task = format!(
            "version: v1.1.0\nsteps:\n  - build: -f {file} oci://$Registry/contexts/links:{id}\n"
        );
        let links = folder(&[("Dockerfile", &dockerfile)]);
        std::os::unix::fs::symlink(&key, links.path().join("link")).unwrap();
        std::os::unix::fs::symlink(outside.path(), links.path().join("folder")).unwrap();
        let registry = RegistryClient::new(&world.registry, None);
        registry
            .put_artifact("contexts/links", &id, links.path())
            .await;
        let here = folder(&[("acr-task.yaml", &task)]);
        let outcome = start(&world, here.path(), ".").wait();
        assert_eq!(outcome.code, Some(1), "{file}: {}", outcome.all());
        assert!(
            !outcome.all().contains("the-key-of"),
            "{file}: {}",
            outcome.all()
        );
    }
}

#[test]
fn an_ignore_file_that_is_a_device_stops_nothing() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &[]);
    let task = "version: v1.1.0\nsteps:\n  - {id: see, cmd: $Registry/base/busybox:1.36 ls -a}\n";
    for target in ["/dev/zero", "/dev/ptmx", "/proc/self/mem"] {
        let files = folder(&[("acr-task.yaml", task), ("seen", "x")]);
        std::os::unix::fs::symlink(target, files.path().join(".dockerignore")).unwrap();
        let outcome = start(&world, files.path(), ".").wait();
        assert_eq!(outcome.code, Some(0), "{target}: {}", outcome.all());
        assert!(printed(&outcome, "see").contains(&"seen".to_owned()));
        // An archive is not read before the runner has it.
        let archive = files.path().join("context.tar.gz");
        std::fs::write(&archive, project::tarball(files.path())).unwrap();
        let archive = archive.display().to_string();
        let args = ["run", "-o", "json", "-r", &world.registry, &archive];
        let outcome = server.client(files.path(), &args).wait();
        // A link out of the context may be refused before the run begins.
        assert!(
            outcome.code.is_some_and(|code| code < 4),
            "{target}: {}",
            outcome.all()
        );
    }
}

#[test]
fn a_dockerfile_outside_of_its_context() {
    let Some(world) = World::find() else { return };
    let dockerfile = format!("FROM {}\nCOPY . /all\nRUN ls /all\n", world.busybox());
    let task = "version: v1.1.0
steps:
  - build: -t $Registry/contexts/out:$ID -f docker/Dockerfile app
  - {id: see, cmd: $Registry/contexts/out:$ID ls /all}
";
    let files = folder(&[
        ("acr-task.yaml", task),
        ("docker/Dockerfile", &dockerfile),
        ("app/data", "x"),
    ]);
    let outcome = start(&world, files.path(), ".").wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    assert_eq!(printed(&outcome, "see"), ["data"]);
}

#[test]
fn a_build_reads_its_dockerfile_or_its_context_from_standard_input() {
    let Some(world) = World::find() else { return };
    let dockerfile = format!("FROM {}\nRUN echo built > /made\n", world.busybox());
    let task = |build: &str| {
        format!(
            "version: v1.1.0\nsteps:\n  - build: -t $Registry/contexts/stdin:$ID {build}\n  \
             - {{id: see, cmd: $Registry/contexts/stdin:$ID cat /made}}\n"
        )
    };
    for build in ["-f - .", "-"] {
        let files = folder(&[("acr-task.yaml", &task(build))]);
        let args = ["run", "-o", "json", "."];
        let outcome = world
            .start_with(files.path(), &args, &[], &dockerfile)
            .wait();
        assert_eq!(outcome.code, Some(0), "{build}: {}", outcome.all());
        assert_eq!(printed(&outcome, "see"), ["built"], "{build}");
    }
}

#[test]
fn a_build_at_a_server_sees_the_modes_and_links_of_the_folder() {
    use std::os::unix::fs::PermissionsExt as _;

    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &[]);
    let unique = new_run_id();
    let dockerfile = format!(
        "FROM {}\nCOPY files /files\nRUN cd /files && stat -c 'seen %n %a %h' * && echo {unique}\n",
        world.busybox()
    );
    let files = folder(&[
        (
            "acr-task.yaml",
            "version: v1.1.0\nsteps:\n  - {id: image, build: .}\n",
        ),
        ("Dockerfile", &dockerfile),
        ("files/group", "x"),
        ("files/linked", "x"),
        ("files/none", "x"),
        ("files/program", "x"),
        ("files/sticky/x", "x"),
        ("files/user", "x"),
    ]);
    let path = |name: &str| files.path().join("files").join(name);
    std::fs::hard_link(path("linked"), path("link")).unwrap();
    for (name, mode) in [
        ("group", 0o2755),
        ("none", 0),
        ("program", 0o711),
        ("sticky", 0o1777),
        ("user", 0o4755),
    ] {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(path(name), mode).unwrap();
    }
    let args = ["run", "-o", "json", "."];
    let seen = |outcome: &Outcome| -> Vec<String> {
        assert_eq!(outcome.code, Some(0), "{}", outcome.all());
        let lines = printed(outcome, "image").into_iter();
        let mut seen: Vec<_> = lines.filter(|line| line.starts_with("seen ")).collect();
        seen.sort();
        seen
    };
    let local = seen(&world.acrtask(files.path(), &args));
    let expected = [
        "seen group 2755 1",
        "seen link 644 2",
        "seen linked 644 2",
        "seen none 0 1",
        "seen program 711 1",
        "seen sticky 1777 2",
        "seen user 4755 1",
    ];
    assert_eq!(local, expected);
    // Another layer, so that the engine builds it again.
    let dockerfile = dockerfile.replace(unique.as_str(), &format!("{unique}-server"));
    std::fs::write(files.path().join("Dockerfile"), dockerfile).unwrap();
    assert_eq!(seen(&server.run(files.path(), &args).wait()), expected);
}

#[test]
fn links_that_lead_out_of_the_context_stay_as_they_are() {
    use std::os::unix::fs::symlink;

    let Some(world) = World::find() else { return };
    for flag in ["", "--read-only "] {
        let task = format!(
            "version: v1.1.0
steps:
  - id: see
    cmd: {flag}$Registry/base/busybox:1.36 sh -c 'for name in lib far sub/up absolute dangling; do readlink $name; done'
  - {{id: inside, cmd: $Registry/base/busybox:1.36 cat to-data}}
  - id: image
    build: -t $Registry/contexts/links:$ID --output type=local,dest=out .
  - {{id: output, cmd: $Registry/base/busybox:1.36 readlink out/lib}}
"
        );
        let files = folder(&[
            ("svc/a/acr-task.yaml", &task),
            ("svc/a/Dockerfile", "FROM scratch\nCOPY . /\n"),
            ("svc/a/data", "x\n"),
            ("svc/a/sub/file", "x"),
            ("lib/file", "x"),
        ]);
        let context = files.path().join("svc/a");
        for (target, name) in [
            ("../../lib", "lib"),
            ("../../../../../../../../etc/hostname", "far"),
            ("../../x", "sub/up"),
            ("/etc/passwd", "absolute"),
            ("nowhere", "dangling"),
            ("data", "to-data"),
        ] {
            symlink(target, context.join(name)).unwrap();
        }
        let outcome = start(&world, &context, ".").wait();
        assert_eq!(outcome.code, Some(0), "{flag}: {}", outcome.all());
        let expected = [
            "../../lib",
            "../../../../../../../../etc/hostname",
            "../../x",
            "/etc/passwd",
            "nowhere",
        ];
        assert_eq!(printed(&outcome, "see"), expected, "{flag}");
        assert_eq!(printed(&outcome, "inside"), ["x"], "{flag}");
        assert_eq!(printed(&outcome, "output"), ["../../lib"], "{flag}");
    }
}

#[test]
fn a_build_reads_secrets_of_volumes_and_the_home_folder() {
    let Some(world) = World::find() else { return };
    let dockerfile = format!(
        "FROM {}\nCOPY --from=app data /data\nRUN --mount=type=secret,id=rc --mount=type=secret,id=key \
         cat /run/secrets/rc /run/secrets/key | md5sum > /sum\n",
        world.busybox()
    );
    let task = r#"version: v1.1.0
volumes:
  - name: keys
    secret: {key: {{ "key of a volume" | b64enc }}}
steps:
  - id: home
    cmd: $Registry/base/busybox:1.36 sh -c 'mkdir ~/app && echo data > ~/app/data && echo rc > ~/.rc && cp Dockerfile ~/'
  - id: image
    build: >
      -t $Registry/contexts/home:$ID -f /acb/home/Dockerfile --build-context app=/acb/home/app
      --secret id=rc,src=/acb/home/.rc --secret id=key,src=/run/keys/key .
    volumeMounts: [{name: keys, mountPath: /run/keys}]
  - {id: see, cmd: "$Registry/contexts/home:$ID cat /data /sum"}
"#;
    let files = folder(&[("acr-task.yaml", task), ("Dockerfile", &dockerfile)]);
    let outcome = start(&world, files.path(), ".").wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    let sum = "80e4cb9d62685a6b7f1f9d89a798b834  -";
    assert_eq!(printed(&outcome, "see"), ["data", sum]);
    assert!(!outcome.stdout.contains("key of a volume"));
}

#[test]
fn a_path_that_a_build_cannot_read_is_refused_before_the_run() {
    let Some(world) = World::find() else { return };
    for line in [
        "/run/keys",
        "-f /run/keys/key .",
        "--build-context keys=/run/keys .",
        "--secret id=key,src=/etc/hostname .",
    ] {
        let task = format!(
            "version: v1.1.0
volumes: [{{name: keys, secret: {{key: eA==}}}}]
steps:
  - {{id: before, cmd: $Registry/base/busybox:1.36 true}}
  - build: -t $Registry/contexts/refused:$ID {line}
    volumeMounts: [{{name: keys, mountPath: /run/keys}}]
"
        );
        let files = folder(&[("acr-task.yaml", &task), ("Dockerfile", "FROM scratch\n")]);
        let outcome = start(&world, files.path(), ".").wait();
        assert_eq!(outcome.code, Some(2), "{line}: {}", outcome.all());
        assert!(
            outcome.stderr.contains("a build cannot read `/"),
            "{line}: {}",
            outcome.all()
        );
    }
}

#[test]
fn an_ignore_file_beside_a_dockerfile_outside_of_the_context_is_used() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &[]);
    let dockerfile = |unique: &str| {
        format!(
            "FROM {}\nCOPY . /all\nRUN echo seen $(ls -A /all) && echo {unique}\n",
            world.busybox()
        )
    };
    let files = folder(&[
        ("app/.dockerignore", "second\n"),
        ("app/first", "x"),
        ("app/second", "x"),
        ("docker/web", ""),
        ("docker/web.dockerignore", "first\n.dockerignore\n"),
        ("docker/plain", ""),
    ]);
    let path = |name: &str| files.path().join(name);
    for (name, expected) in [
        ("web", "seen second"),
        ("plain", "seen .dockerignore first"),
    ] {
        let seen = |text: &str| text.contains(expected);
        let id = new_run_id();
        let file = format!("docker/{name}");
        let args = [
            "build",
            "--no-push",
            "-t",
            "contexts/ignored",
            "-f",
            &file,
            "app",
        ];
        std::fs::write(path(&file), dockerfile(&format!("{id}-local"))).unwrap();
        let local = world.acrtask(files.path(), &args);
        assert!(seen(&local.all()), "{name}: {}", local.all());
        std::fs::write(path(&file), dockerfile(&format!("{id}-server"))).unwrap();
        let remote = server.run(files.path(), &args).wait();
        assert!(seen(&remote.all()), "{name}: {}", remote.all());
    }
}
