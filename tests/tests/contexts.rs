//! Sources of the files of a run: git, tarballs, standard input, artifacts, none.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::Path;

use acrtask_tests::{
    Outcome, RunningProgram, TestEnvironment, engine, new_run_id,
    project::{
        self, RegistryClient, commit_all, create_folder, git, task_with_one_step, write_file,
    },
    service::TestServer,
};
use wiremock::{Mock, MockServer, ResponseTemplate, matchers::path};

/// Returns the lines that the step `step` printed.
fn printed_lines(outcome: &Outcome, step: &str) -> Vec<String> {
    outcome
        .events_named("output")
        .iter()
        .filter(|event| event["step"] == step)
        .flat_map(|event| event["text"].as_str().unwrap().lines())
        .map(str::to_owned)
        .collect()
}

/// Serves `content` at GET `/name`.
async fn serve(name: &str, content: Vec<u8>) -> MockServer {
    let server = MockServer::start().await;
    Mock::given(path(name))
        .respond_with(ResponseTemplate::new(200).set_body_bytes(content))
        .mount(&server)
        .await;
    server
}

/// Starts `acrtask run` with a context, in the folder `here`.
fn start_run(environment: &TestEnvironment, here: &Path, context: &str) -> RunningProgram {
    environment.start(here, &["run", "-o", "json", context])
}

#[tokio::test]
async fn git_context_is_selected_by_branch_tag_commit_pull_request_and_folder() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let root = tempfile::tempdir().unwrap();
    let work = root.path().join("app.git");
    std::fs::create_dir(&work).unwrap();
    git(&work, &["init", "--quiet", "--initial-branch=main"]);
    let task = task_with_one_step("cat data; echo {{.Run.Branch}}/{{.Run.GitTag}}/{{.Run.Commit}}");
    write_file(&work, "acr-task.yaml", &task);
    write_file(&work, "data", "first\n");
    write_file(&work, "sub/acb.yaml", &task_with_one_step("cat data"));
    write_file(&work, "sub/data", "in the folder\n");
    let first = commit_all(&work, "first");
    git(&work, &["tag", "v1"]);
    write_file(&work, "data", "second\n");
    let second = commit_all(&work, "second");
    git(&work, &["checkout", "--quiet", "-b", "feature/x"]);
    write_file(&work, "data", "feature\n");
    let feature = commit_all(&work, "feature");
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
    let runs: Vec<RunningProgram> = cases
        .iter()
        .map(|(fragment, _)| start_run(&environment, here.path(), &format!("{url}{fragment}")))
        .collect();
    for ((fragment, expected), run) in cases.iter().zip(runs) {
        let outcome = run.wait();
        assert_eq!(
            outcome.code,
            Some(0),
            "{fragment}: {}",
            outcome.transcript()
        );
        assert_eq!(
            &printed_lines(&outcome, "one"),
            expected,
            "{fragment}: {}",
            outcome.transcript()
        );
        assert_eq!(engine::list_remains(&outcome.run), Vec::<String>::new());
    }
    let outcome = start_run(&environment, here.path(), &format!("{url}#nowhere")).wait();
    assert_eq!(outcome.code, Some(2), "{}", outcome.transcript());
    assert!(
        outcome
            .stderr
            .contains("has no branch, tag, commit or pull request `nowhere`"),
        "{}",
        outcome.transcript()
    );
    assert_eq!(outcome.stdout, "");
}

#[tokio::test]
async fn tarball_contexts_are_read_from_a_file_a_url_and_a_registry() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let task = task_with_one_step("cat deep/data");
    let files = create_folder(&[("acr-task.yaml", &task), ("deep/data", "from afar\n")]);
    let packed = project::tarball(files.path());
    let here = tempfile::tempdir().unwrap();
    std::fs::write(here.path().join("context.tar.gz"), &packed).unwrap();
    let server = serve("/context.tar.gz", packed).await;
    let id = new_run_id();
    RegistryClient::new(&environment.registry, None)
        .put_artifact("contexts/files", &id, files.path())
        .await;
    for context in [
        "context.tar.gz".into(),
        format!("{}/context.tar.gz", server.uri()),
        format!("oci://{}/contexts/files:{id}", environment.registry),
    ] {
        let outcome = start_run(&environment, here.path(), &context).wait();
        assert_eq!(outcome.code, Some(0), "{context}: {}", outcome.transcript());
        assert_eq!(printed_lines(&outcome, "one"), ["from afar"], "{context}");
    }
    for (context, code, message) in [
        ("missing.tar.gz".to_owned(), 2, "missing.tar.gz"),
        (format!("{}/other.tar.gz", server.uri()), 2, "404"),
        ("http://127.0.0.1:1/context.tar.gz".into(), 3, "127.0.0.1:1"),
        (
            format!("oci://{}/contexts/files:none-{id}", environment.registry),
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
        let outcome = start_run(&environment, here.path(), &context).wait();
        assert_eq!(
            outcome.code,
            Some(code),
            "{context}: {}",
            outcome.transcript()
        );
        assert!(
            outcome.stderr.contains(message),
            "{context}: {}",
            outcome.transcript()
        );
        assert_eq!(outcome.stdout, "", "{context}");
    }
}

#[test]
fn task_file_of_a_folder_is_found_by_its_default_names() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let files = create_folder(&[
        ("acb.yaml", &task_with_one_step("echo from acb")),
        ("other/task.yaml", &task_with_one_step("echo from other")),
    ]);
    let outcome = start_run(&environment, files.path(), ".").wait();
    assert_eq!(
        printed_lines(&outcome, "one"),
        ["from acb"],
        "{}",
        outcome.transcript()
    );
    write_file(
        files.path(),
        "acr-task.yaml",
        &task_with_one_step("echo from acr-task"),
    );
    let outcome = start_run(&environment, files.path(), ".").wait();
    assert_eq!(
        printed_lines(&outcome, "one"),
        ["from acr-task"],
        "{}",
        outcome.transcript()
    );
    let args = ["run", "-o", "json", "-f", "other/task.yaml", "."];
    let outcome = environment.run_acrtask(files.path(), &args);
    assert_eq!(
        printed_lines(&outcome, "one"),
        ["from other"],
        "{}",
        outcome.transcript()
    );
    // Without a context, the file is read from this folder and the workspace is empty.
    write_file(
        files.path(),
        "empty.yaml",
        &task_with_one_step("ls -A | wc -l"),
    );
    let args = ["run", "-o", "json", "-f", "empty.yaml", "/dev/null"];
    let outcome = environment.run_acrtask(files.path(), &args);
    assert_eq!(
        printed_lines(&outcome, "one"),
        ["0"],
        "{}",
        outcome.transcript()
    );
    let empty = tempfile::tempdir().unwrap();
    let outcome = start_run(&environment, empty.path(), ".").wait();
    assert_eq!(outcome.code, Some(2), "{}", outcome.transcript());
    assert!(
        outcome.stderr.contains("acr-task.yaml or acb.yaml"),
        "{}",
        outcome.transcript()
    );
}

#[tokio::test]
async fn build_step_accepts_git_tarball_and_artifact_contexts() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let root = tempfile::tempdir().unwrap();
    let work = root.path().join("image.git");
    let dockerfile = format!("FROM {}\nCOPY data /data\n", environment.busybox());
    write_file(&work, "svc/Dockerfile", &dockerfile);
    write_file(&work, "svc/data", "from git\n");
    write_file(
        &work,
        "svc/Other",
        &format!("{dockerfile}RUN echo other >> /data\n"),
    );
    git(&work, &["init", "--quiet", "--initial-branch=main"]);
    commit_all(&work, "first");
    let server = project::serve_git(root.path()).await;
    let files = create_folder(&[("Dockerfile", &dockerfile), ("data", "from a tarball\n")]);
    let tarball = serve("/files.tar.gz", project::tarball(files.path())).await;
    let id = new_run_id();
    write_file(files.path(), "data", "from an artifact\n");
    RegistryClient::new(&environment.registry, None)
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
    let here = create_folder(&[("acr-task.yaml", &task)]);
    let outcome = start_run(&environment, here.path(), ".").wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    assert_eq!(printed_lines(&outcome, "see-git"), ["from git"]);
    assert_eq!(printed_lines(&outcome, "see-file"), ["from git", "other"]);
    assert_eq!(printed_lines(&outcome, "see-tarball"), ["from a tarball"]);
    assert_eq!(
        printed_lines(&outcome, "see-artifact"),
        ["from an artifact"]
    );
    // The Dockerfile comes from the context, whatever path the line names.
    let outside = create_folder(&[("key", "FROM the-key-of-the-machine\n")]);
    let key = outside.path().join("key").display().to_string();
    let up = format!("../../../../../..{key}");
    for file in [key.as_str(), &up, "link", "folder/key"] {
        let task = format!(
            "version: v1.1.0\nsteps:\n  - build: -f {file} oci://$Registry/contexts/links:{id}\n"
        );
        let links = create_folder(&[("Dockerfile", &dockerfile)]);
        std::os::unix::fs::symlink(&key, links.path().join("link")).unwrap();
        std::os::unix::fs::symlink(outside.path(), links.path().join("folder")).unwrap();
        let registry = RegistryClient::new(&environment.registry, None);
        registry
            .put_artifact("contexts/links", &id, links.path())
            .await;
        let here = create_folder(&[("acr-task.yaml", &task)]);
        let outcome = start_run(&environment, here.path(), ".").wait();
        assert_eq!(outcome.code, Some(1), "{file}: {}", outcome.transcript());
        assert!(
            !outcome.transcript().contains("the-key-of"),
            "{file}: {}",
            outcome.transcript()
        );
    }
}

#[test]
fn ignore_file_that_is_a_device_does_not_block_the_run() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &[]);
    let task = "version: v1.1.0\nsteps:\n  - {id: see, cmd: $Registry/base/busybox:1.36 ls -a}\n";
    for target in ["/dev/zero", "/dev/ptmx", "/proc/self/mem"] {
        let files = create_folder(&[("acr-task.yaml", task), ("seen", "x")]);
        std::os::unix::fs::symlink(target, files.path().join(".dockerignore")).unwrap();
        let outcome = start_run(&environment, files.path(), ".").wait();
        assert_eq!(outcome.code, Some(0), "{target}: {}", outcome.transcript());
        assert!(printed_lines(&outcome, "see").contains(&"seen".to_owned()));
        // Only the runner reads the archive.
        let archive = files.path().join("context.tar.gz");
        std::fs::write(&archive, project::tarball(files.path())).unwrap();
        let archive = archive.display().to_string();
        let args = ["run", "-o", "json", "-r", &environment.registry, &archive];
        let outcome = server.start_client(files.path(), &args).wait();
        // A link out of the context may be refused before the run begins.
        assert!(
            outcome.code.is_some_and(|code| code < 4),
            "{target}: {}",
            outcome.transcript()
        );
    }
}

#[test]
fn dockerfile_outside_of_its_context_is_used() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let dockerfile = format!("FROM {}\nCOPY . /all\nRUN ls /all\n", environment.busybox());
    let task = "version: v1.1.0
steps:
  - build: -t $Registry/contexts/out:$ID -f docker/Dockerfile app
  - {id: see, cmd: $Registry/contexts/out:$ID ls /all}
";
    let files = create_folder(&[
        ("acr-task.yaml", task),
        ("docker/Dockerfile", &dockerfile),
        ("app/data", "x"),
    ]);
    let outcome = start_run(&environment, files.path(), ".").wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    assert_eq!(printed_lines(&outcome, "see"), ["data"]);
}

#[test]
fn build_reads_its_dockerfile_or_context_from_standard_input() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let dockerfile = format!("FROM {}\nRUN echo built > /made\n", environment.busybox());
    let task = |build: &str| {
        format!(
            "version: v1.1.0\nsteps:\n  - build: -t $Registry/contexts/stdin:$ID {build}\n  \
             - {{id: see, cmd: $Registry/contexts/stdin:$ID cat /made}}\n"
        )
    };
    for build in ["-f - .", "-"] {
        let files = create_folder(&[("acr-task.yaml", &task(build))]);
        let args = ["run", "-o", "json", "."];
        let outcome = environment
            .start_with(files.path(), &args, &[], &dockerfile)
            .wait();
        assert_eq!(outcome.code, Some(0), "{build}: {}", outcome.transcript());
        assert_eq!(printed_lines(&outcome, "see"), ["built"], "{build}");
    }
}

#[test]
fn build_at_a_server_preserves_modes_and_links() {
    use std::os::unix::fs::PermissionsExt as _;

    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &[]);
    let unique = new_run_id();
    let dockerfile = format!(
        "FROM {}\nCOPY files /files\nRUN cd /files && stat -c 'seen %n %a %h' * && echo {unique}\n",
        environment.busybox()
    );
    let files = create_folder(&[
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
        assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
        let lines = printed_lines(outcome, "image").into_iter();
        let mut seen: Vec<_> = lines.filter(|line| line.starts_with("seen ")).collect();
        seen.sort();
        seen
    };
    let local = seen(&environment.run_acrtask(files.path(), &args));
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
fn links_out_of_the_context_are_preserved() {
    use std::os::unix::fs::symlink;

    let Some(environment) = TestEnvironment::find() else {
        return;
    };
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
        let files = create_folder(&[
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
        let outcome = start_run(&environment, &context, ".").wait();
        assert_eq!(outcome.code, Some(0), "{flag}: {}", outcome.transcript());
        let expected = [
            "../../lib",
            "../../../../../../../../etc/hostname",
            "../../x",
            "/etc/passwd",
            "nowhere",
        ];
        assert_eq!(printed_lines(&outcome, "see"), expected, "{flag}");
        assert_eq!(printed_lines(&outcome, "inside"), ["x"], "{flag}");
        assert_eq!(printed_lines(&outcome, "output"), ["../../lib"], "{flag}");
    }
}

#[test]
fn build_reads_secrets_of_volumes_and_the_home_folder() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let dockerfile = format!(
        "FROM {}\nCOPY --from=app data /data\nRUN --mount=type=secret,id=rc --mount=type=secret,id=key \
         cat /run/secrets/rc /run/secrets/key | md5sum > /sum\n",
        environment.busybox()
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
    let files = create_folder(&[("acr-task.yaml", task), ("Dockerfile", &dockerfile)]);
    let outcome = start_run(&environment, files.path(), ".").wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    let sum = "80e4cb9d62685a6b7f1f9d89a798b834  -";
    assert_eq!(printed_lines(&outcome, "see"), ["data", sum]);
    assert!(!outcome.stdout.contains("key of a volume"));
}

#[test]
fn unreadable_build_path_is_refused_before_the_run() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
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
        let files = create_folder(&[("acr-task.yaml", &task), ("Dockerfile", "FROM scratch\n")]);
        let outcome = start_run(&environment, files.path(), ".").wait();
        assert_eq!(outcome.code, Some(2), "{line}: {}", outcome.transcript());
        assert!(
            outcome.stderr.contains("a build cannot read `/"),
            "{line}: {}",
            outcome.transcript()
        );
    }
}

#[test]
fn ignore_file_beside_an_outside_dockerfile_is_used() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &[]);
    let dockerfile = |unique: &str| {
        format!(
            "FROM {}\nCOPY . /all\nRUN echo seen $(ls -A /all) && echo {unique}\n",
            environment.busybox()
        )
    };
    let files = create_folder(&[
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
        let local = environment.run_acrtask(files.path(), &args);
        assert!(seen(&local.transcript()), "{name}: {}", local.transcript());
        std::fs::write(path(&file), dockerfile(&format!("{id}-server"))).unwrap();
        let remote = server.run(files.path(), &args).wait();
        assert!(
            seen(&remote.transcript()),
            "{name}: {}",
            remote.transcript()
        );
    }
}
