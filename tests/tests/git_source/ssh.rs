//! Repositories behind an SSH key: which keys and hosts are taken, and the whole way from a server's secret store.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_private_repository_by_ssh_key() {
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
        SshKey::from_login("127.0.0.1", &Secret::new(login)).expect("it is a key")
    };

    let (folder, mut options) = options();
    options.ssh_keys = vec![key(&server.private_key(), Some(server.known_hosts()))];
    let workspace = fetched(&format!("{url}#main"), &options).await.unwrap();
    assert_eq!(read(&workspace, "file"), "second");
    assert_eq!(workspace.facts.branch.as_deref(), Some("main"));
    // The key is in no file; the agent that had it is gone.
    let body = server.private_key().lines().nth(1).unwrap().to_owned();
    assert_eq!(files_with(folder.path(), &body), Vec::<PathBuf>::new());
    let folder_name = folder.path().display().to_string();
    let begun = Instant::now();
    while command_lines().contains(&folder_name) {
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "a process is left"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(workspace);
    options.git = exactly(&first);
    let workspace = fetched(&format!("{url}#main"), &options).await.unwrap();
    assert_eq!(read(&workspace, "file"), "first");
    assert!(workspace.root.join(".git/shallow").exists());
    // A key with the line ends of another system, and spaces around it.
    options.ssh_keys[0].private_key = Secret::new(format!(
        "\r\n{}\r\n\r\n",
        server.private_key().replace('\n', "\r\n")
    ));
    fetched(&url, &options).await.unwrap();

    let refused = async |private_key: &str, known_hosts: Option<String>| {
        let (folder, mut options) = self::options();
        options.ssh_keys = vec![key(private_key, known_hosts)];
        let error = said(&fetched(&url, &options).await.unwrap_err());
        assert!(
            !error.contains(private_key.lines().nth(1).unwrap_or("none")),
            "{error}"
        );
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            0,
            "it is removed"
        );
        error
    };
    let known = Some(server.known_hosts());
    let error = refused(&server.other_private_key(""), known.clone()).await;
    assert!(error.contains("Permission denied (publickey)"), "{error}");
    assert!(error.contains("add its public half there"), "{error}");
    let error = refused(&server.other_private_key("passphrase"), known.clone()).await;
    assert!(error.contains("has a passphrase"), "{error}");
    let error = refused(
        "-----BEGIN OPENSSH PRIVATE KEY-----\nnonsense\n-----END OPENSSH PRIVATE KEY-----",
        known.clone(),
    )
    .await;
    assert!(error.contains("cannot be read"), "{error}");
    // The host is not known: nothing is said about it, or something about another one.
    let error = refused(&server.private_key(), None).await;
    assert!(
        error.contains("the host's own key is not known") && error.contains("ssh-keyscan -p"),
        "{error}"
    );
    let another = server.known_hosts().replace("127.0.0.1", "127.0.0.2");
    let error = refused(&server.private_key(), Some(another)).await;
    assert!(error.contains("host key is known for"), "{error}");
    assert!(
        error.contains("give the host's lines of known_hosts"),
        "{error}"
    );
    // It shows another key than the known one.
    server.new_host_key();
    let error = refused(&server.private_key(), known).await;
    assert!(error.contains("IDENTIFICATION HAS CHANGED"), "{error}");
    assert!(error.contains("find out why"), "{error}");
    let (_folder, mut options) = self::options();
    options.ssh_keys = vec![key(&server.private_key(), Some(server.known_hosts()))];
    fetched(&url, &options).await.unwrap();
    // The key of another host is not tried.
    options.ssh_keys[0].host = "git.example.com".into();
    let error = said(&fetched(&url, &options).await.unwrap_err());
    assert!(
        error.contains("does not get this machine's SSH keys"),
        "{error}"
    );
}

/// A build whose own context is a private repository, while the run's files come from elsewhere.
#[test]
fn a_build_takes_its_context_from_a_private_repository() {
    let Some(world) = World::find() else { return };
    let repositories = Repositories::default();
    for name in ["app", "lib"] {
        repositories.create(name);
    }
    let lib = repositories.commit("lib", &[("file", "of the library\n")]);
    let dockerfile = format!(
        "FROM {}/base/busybox:1.36\nCOPY . /all/\nRUN cat /all/lib/file && ! test -e /all/.git && echo no history\n",
        world.registry
    );
    repositories.commit("app", &[("image/Dockerfile", "FROM nothing\n")]);
    repositories.commit("app", &[("Dockerfile", &dockerfile)]);
    add_submodule(&repositories, "app", "lib", "../lib.git", &lib);
    let Some(git_server) = SshGit::start(&repositories.root()) else {
        return;
    };
    let server = Server::start(&world, &["--no-runner"]);
    let runner = Runner::start(&server, "reaching", &["--allow-private-addresses"]);
    let task = format!(
        "version: v1.1.0\nsteps:\n  - build: --progress=plain -t $Registry/from-ssh:1 {}#main\n  - push: [$Registry/from-ssh:1]\n",
        git_server.url("app")
    );
    let definition = json!({ "name": "app", "text": task, "registry": world.registry });
    let files = project::folder(&[
        ("app.yaml", &definition.to_string()),
        ("key", &git_server.private_key()),
        ("known_hosts", &git_server.known_hosts()),
        (
            "of_another",
            "127.0.0.1 ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl\n",
        ),
    ]);
    let run = |args: &[&str]| server.client(files.path(), args).wait();
    let applied = run(&["task", "apply", "--file", "app.yaml"]);
    assert_eq!(applied.code, Some(0), "{}", applied.all());
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
        assert_eq!(set.code, Some(0), "{}", set.all());
    };
    // The host has to be the one that is known.
    set("of_another");
    let outcome = run(&["task", "run", "app", "-o", "plain"]);
    assert_ne!(outcome.code, Some(0), "{}", outcome.all());
    assert!(outcome.all().contains("known"), "{}", outcome.all());
    set("known_hosts");
    let outcome = run(&["task", "run", "app", "-o", "plain"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    assert!(
        outcome.all().contains("of the library") && outcome.all().contains("no history"),
        "{}",
        outcome.all()
    );
    let body = git_server.private_key().lines().nth(1).unwrap().to_owned();
    let said = [outcome.all(), server.log(), runner.log()].concat();
    assert!(!said.contains(&body));
}

/// The whole way: a key of the secret store, a task that asks for submodules, its file and facts from the repository.
#[test]
fn a_task_of_a_private_repository_runs_at_a_server() {
    let Some(world) = World::find() else { return };
    let repositories = Repositories::default();
    for name in ["app", "lib"] {
        repositories.create(name);
    }
    let lib = repositories.commit("lib", &[("file", "of the library\n")]);
    let task = "version: v1.1.0\nsteps:\n  - id: one\n    cmd: $Registry/base/busybox:1.36 sh -c 'cat lib/file; echo at {{.Run.Commit}} {{.Run.Branch}} {{.Run.Repository}}'\n";
    repositories.commit("app", &[("acr-task.yaml", task)]);
    add_submodule(&repositories, "app", "lib", "../lib.git", &lib);
    let commit = git(&repositories.work("app"), &["rev-parse", "HEAD"]);
    let Some(git_server) = SshGit::start(&repositories.root()) else {
        return;
    };
    let url = git_server.url("app");
    let server = Server::start(&world, &["--no-runner"]);
    let runner = Runner::start(&server, "reaching", &["--allow-private-addresses"]);
    let definition = format!(
        "name: private\ncontext: {url}#main\nregistry: {}\n",
        world.registry
    );
    let files = project::folder(&[
        ("private.yaml", &definition),
        ("key", &git_server.private_key()),
        ("known_hosts", &git_server.known_hosts()),
    ]);
    let run = |args: &[&str]| server.client(files.path(), args).wait();
    let applied = run(&["task", "apply", "--file", "private.yaml"]);
    assert_eq!(applied.code, Some(0), "{}", applied.all());

    let outcome = run(&["task", "run", "private", "-o", "plain"]);
    assert_ne!(outcome.code, Some(0), "{}", outcome.all());
    assert!(
        outcome.all().contains("store an SSH key"),
        "{}",
        outcome.all()
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
    assert_eq!(set.code, Some(0), "{}", set.all());
    let outcome = run(&["task", "run", "private", "-o", "plain"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    assert!(
        outcome.stdout.contains("of the library"),
        "{}",
        outcome.all()
    );
    let facts = format!("at {commit} main {url}");
    assert!(outcome.stdout.contains(&facts), "{}", outcome.all());
    // Nothing of the key is in what the server says and keeps in clear.
    let body = git_server.private_key().lines().nth(1).unwrap().to_owned();
    let said = [outcome.all(), server.log(), runner.log()].concat();
    assert!(!said.contains(&body));
    assert_eq!(files_with(&server.data(), &body), Vec::<PathBuf>::new());
}
