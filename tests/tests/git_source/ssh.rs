//! Repositories behind an SSH key: accepted keys and hosts, and the complete path from the server's
//! secret store.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn private_repository_is_fetched_with_an_ssh_key() {
    let repositories = Repositories::default();
    repositories.create("app");
    let first = repositories.commit("app", &[("file", "first")]);
    repositories.commit("app", &[("file", "second")]);
    let Some(mut server) = SshGit::start(&repositories.root()) else {
        return;
    };
    let url = server.url("app");
    let key = |text: &str, known_hosts: Option<String>| {
        let login = format!("{text}\n{}", known_hosts.unwrap_or_default());
        SshKey::from_login("127.0.0.1", &Secret::new(login)).expect("a valid SSH key")
    };

    let (folder, mut options) = runner_options();
    options.ssh_keys = vec![key(&server.private_key(), Some(server.known_hosts()))];
    let workspace = fetch_context(&format!("{url}#main"), &options)
        .await
        .unwrap();
    assert_eq!(read(&workspace, "file"), "second");
    assert_eq!(workspace.variables.branch.as_deref(), Some("main"));
    // No file contains the key, and the agent that had it has ended.
    let body = server.private_key().lines().nth(1).unwrap().to_owned();
    assert_eq!(files_with(folder.path(), &body), Vec::<PathBuf>::new());
    let folder_name = folder.path().display().to_string();
    let begun = Instant::now();
    while command_lines().contains(&folder_name) {
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "a process still runs"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(workspace);
    options.git = at_commit(&first);
    let workspace = fetch_context(&format!("{url}#main"), &options)
        .await
        .unwrap();
    assert_eq!(read(&workspace, "file"), "first");
    assert!(workspace.root.join(".git/shallow").exists());
    // A key with the line ends of another system and surrounding white space.
    options.ssh_keys[0].private_key = Secret::new(format!(
        "\r\n{}\r\n\r\n",
        server.private_key().replace('\n', "\r\n")
    ));
    fetch_context(&url, &options).await.unwrap();

    let refused = async |private_key: &str, known_hosts: Option<String>| {
        let (folder, mut options) = self::runner_options();
        options.ssh_keys = vec![key(private_key, known_hosts)];
        let error = error_text(&fetch_context(&url, &options).await.unwrap_err());
        assert!(
            !error.contains(private_key.lines().nth(1).unwrap_or("none")),
            "{error}"
        );
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            0,
            "the failed checkout is left over"
        );
        error
    };
    let known_hosts = Some(server.known_hosts());
    let error = refused(&server.other_private_key(""), known_hosts.clone()).await;
    assert!(error.contains("Permission denied (publickey)"), "{error}");
    assert!(error.contains("add its public key there"), "{error}");
    let error = refused(&server.other_private_key("passphrase"), known_hosts.clone()).await;
    assert!(error.contains("has a passphrase"), "{error}");
    let error = refused(
        "-----BEGIN OPENSSH PRIVATE KEY-----\nnonsense\n-----END OPENSSH PRIVATE KEY-----",
        known_hosts.clone(),
    )
    .await;
    assert!(error.contains("is unreadable"), "{error}");
    // The host is unknown: no entry at all, or an entry of another host.
    let error = refused(&server.private_key(), None).await;
    assert!(
        error.contains("the host key of") && error.contains("ssh-keyscan -p"),
        "{error}"
    );
    let another = server.known_hosts().replace("127.0.0.1", "127.0.0.2");
    let error = refused(&server.private_key(), Some(another)).await;
    assert!(error.contains("host key is known for"), "{error}");
    assert!(
        error.contains("add the host's known_hosts lines"),
        "{error}"
    );
    // The host now has another key than the recorded one.
    server.new_host_key();
    let error = refused(&server.private_key(), known_hosts).await;
    assert!(error.contains("IDENTIFICATION HAS CHANGED"), "{error}");
    assert!(error.contains("find out why"), "{error}");
    let (_folder, mut options) = self::runner_options();
    options.ssh_keys = vec![key(&server.private_key(), Some(server.known_hosts()))];
    fetch_context(&url, &options).await.unwrap();
    // The key of another host is not tried.
    options.ssh_keys[0].host = "git.example.com".into();
    let error = error_text(&fetch_context(&url, &options).await.unwrap_err());
    assert!(
        error.contains("cannot use this machine's SSH keys"),
        "{error}"
    );
}

/// A build whose own context is a private repository, while the files of the run come from
/// elsewhere.
#[test]
fn build_fetches_its_context_from_a_private_repository() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let repositories = Repositories::default();
    for name in ["app", "lib"] {
        repositories.create(name);
    }
    let lib = repositories.commit("lib", &[("file", "of the library\n")]);
    let dockerfile = format!(
        "FROM {}/base/busybox:1.36\nCOPY . /all/\nRUN cat /all/lib/file && ! test -e /all/.git && echo no history\n",
        environment.registry
    );
    repositories.commit("app", &[("image/Dockerfile", "FROM nothing\n")]);
    repositories.commit("app", &[("Dockerfile", &dockerfile)]);
    add_submodule(&repositories, "app", "lib", "../lib.git", &lib);
    let Some(git_server) = SshGit::start(&repositories.root()) else {
        return;
    };
    let server = TestServer::start(&environment, &["--no-runner"]);
    let runner = TestRunner::start(&server, "reaching", &["--allow-private-addresses"]);
    let task = format!(
        "version: v1.1.0\nsteps:\n  - build: --progress=plain -t $Registry/from-ssh:1 {}#main\n  - push: [$Registry/from-ssh:1]\n",
        git_server.url("app")
    );
    let definition = json!({ "name": "app", "text": task, "registry": environment.registry });
    let files = project::create_folder(&[
        ("app.yaml", &definition.to_string()),
        ("key", &git_server.private_key()),
        ("known_hosts", &git_server.known_hosts()),
        (
            "of_another",
            "127.0.0.1 ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl\n",
        ),
    ]);
    let run = |args: &[&str]| server.start_client(files.path(), args).wait();
    let applied = run(&["task", "apply", "--file", "app.yaml"]);
    assert_eq!(applied.code, Some(0), "{}", applied.transcript());
    let set = |known_hosts: &str| {
        let set = run(&[
            "credential",
            "set",
            "127.0.0.1",
            "--username",
            "git",
            "--known-hosts",
            known_hosts,
            "--from-file",
            "key",
            "--task",
            "app",
        ]);
        assert_eq!(set.code, Some(0), "{}", set.transcript());
    };
    // The key of the host must match.
    set("of_another");
    let outcome = run(&["task", "run", "app", "-o", "plain"]);
    assert_ne!(outcome.code, Some(0), "{}", outcome.transcript());
    assert!(
        outcome.transcript().contains("known"),
        "{}",
        outcome.transcript()
    );
    set("known_hosts");
    let outcome = run(&["task", "run", "app", "-o", "plain"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    assert!(
        outcome.transcript().contains("of the library")
            && outcome.transcript().contains("no history"),
        "{}",
        outcome.transcript()
    );
    let body = git_server.private_key().lines().nth(1).unwrap().to_owned();
    let output = [outcome.transcript(), server.log(), runner.log()].concat();
    assert!(!output.contains(&body));
}

/// The complete path: a key in the secret store, a task with submodules, and run variables from the
/// repository.
#[test]
fn task_of_a_private_repository_runs_at_a_server() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let repositories = Repositories::default();
    for name in ["app", "lib"] {
        repositories.create(name);
    }
    let lib = repositories.commit("lib", &[("file", "of the library\n")]);
    let task = "version: v1.1.0\nsteps:\n  - id: one\n    cmd: $Registry/base/busybox:1.36 sh -c 'cat lib/file; echo at {{.Run.Commit}} {{.Run.Branch}} {{.Run.Repository}}'\n";
    repositories.commit("app", &[("acr-task.yaml", task)]);
    add_submodule(&repositories, "app", "lib", "../lib.git", &lib);
    let commit = git(&repositories.work_path("app"), &["rev-parse", "HEAD"]);
    let Some(git_server) = SshGit::start(&repositories.root()) else {
        return;
    };
    let url = git_server.url("app");
    let server = TestServer::start(&environment, &["--no-runner"]);
    let runner = TestRunner::start(&server, "reaching", &["--allow-private-addresses"]);
    let definition = format!(
        "name: private\ncontext: {url}#main\nregistry: {}\n",
        environment.registry
    );
    let files = project::create_folder(&[
        ("private.yaml", &definition),
        ("key", &git_server.private_key()),
        ("known_hosts", &git_server.known_hosts()),
    ]);
    let run = |args: &[&str]| server.start_client(files.path(), args).wait();
    let applied = run(&["task", "apply", "--file", "private.yaml"]);
    assert_eq!(applied.code, Some(0), "{}", applied.transcript());

    let outcome = run(&["task", "run", "private", "-o", "plain"]);
    assert_ne!(outcome.code, Some(0), "{}", outcome.transcript());
    assert!(
        outcome.transcript().contains("store an SSH key"),
        "{}",
        outcome.transcript()
    );
    let set = [
        "credential",
        "set",
        "127.0.0.1",
        "--username",
        "git",
        "--known-hosts",
        "known_hosts",
        "--from-file",
        "key",
    ];
    let set = run(&set);
    assert_eq!(set.code, Some(0), "{}", set.transcript());
    let outcome = run(&["task", "run", "private", "-o", "plain"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    assert!(
        outcome.stdout.contains("of the library"),
        "{}",
        outcome.transcript()
    );
    let facts = format!("at {commit} main {url}");
    assert!(outcome.stdout.contains(&facts), "{}", outcome.transcript());
    // Neither the output of the server nor its unencrypted files contain the key.
    let body = git_server.private_key().lines().nth(1).unwrap().to_owned();
    let output = [outcome.transcript(), server.log(), runner.log()].concat();
    assert!(!output.contains(&body));
    assert_eq!(files_with(&server.data_dir(), &body), Vec::<PathBuf>::new());
}
