//! Repositories behind a password, and names that look like something else.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_private_repository_by_token() {
    let repositories = Repositories::default();
    repositories.create("app");
    let commit = repositories.commit("app", &[("file", "one")]);
    let server = HttpGit::start(&repositories.root(), Some(("ci", TOKEN)));

    let (folder, mut options) = options();
    options.git_credentials.push(token("127.0.0.1"));
    let workspace = fetched(&format!("{}#main", server.url("app")), &options)
        .await
        .unwrap();
    assert_eq!(read(&workspace, "file"), "one");
    let facts = &workspace.facts;
    assert_eq!(facts.commit.as_deref(), Some(&commit[..]));
    assert_eq!(facts.branch.as_deref(), Some("main"));
    assert_eq!(facts.repository.as_deref(), Some(&server.url("app")[..]));
    assert_eq!(files_with(folder.path(), TOKEN), Vec::<PathBuf>::new());

    let error = fetched(&server.url("app"), &self::options().1)
        .await
        .unwrap_err();
    assert!(
        said(&error).contains("give a credential for its host"),
        "{}",
        said(&error)
    );
    options.git_credentials[0].password = Secret::new("hunter2-wrong");
    let error = fetched(&server.url("app"), &options).await.unwrap_err();
    assert!(!said(&error).contains("hunter2"), "{}", said(&error));
    // The password of another host is not tried.
    options.git_credentials = vec![token("localhost"), token("127.0.0.1.example.com")];
    fetched(&server.url("app"), &options).await.unwrap_err();
    let sent = server.requests().into_iter();
    let logins: Vec<String> = sent
        .filter_map(|request| request.headers.get("authorization").cloned())
        .collect();
    assert!(logins.iter().all(|login| login.starts_with("Basic ")));
    assert!(!logins.is_empty());
}

/// Trying again would not help, so the exit code is that of a mistake, as it is locally.
#[test]
fn wrong_context_at_a_server_is_a_mistake() {
    let Some(world) = World::find() else { return };
    let repositories = Repositories::default();
    repositories.create("app");
    repositories.commit("app", &[("file", "one")]);
    let git_server = HttpGit::start(&repositories.root(), None);
    let url = git_server.url("app");
    let server = Server::start(&world, &["--allow-private-addresses"]);
    let folder = tempfile::tempdir().unwrap();
    for (context, file, message) in [
        (format!("{url}#main"), "acr-task.yaml", "acr-task.yaml"),
        (format!("{url}#main"), "ci/missing.yaml", "ci/missing.yaml"),
        (format!("{url}#none"), "acr-task.yaml", "none"),
        (
            format!("{url}#main:no/folder"),
            "acr-task.yaml",
            "no/folder",
        ),
    ] {
        let args = ["run", "-f", file, &context];
        let outcome = server.run(folder.path(), &args).wait();
        assert_eq!(outcome.code, Some(2), "{context}: {}", outcome.all());
        assert!(outcome.stderr.contains(message), "{}", outcome.all());
        let run = server.run_of(&outcome.run);
        assert_eq!(run["state"], "failed", "{run:#}");
        assert_eq!(run["result"]["refused"], true, "{run:#}");
    }
    // A server that does not answer may answer later.
    let away = "http://127.0.0.1:1/app.git#main";
    let outcome = server.run(folder.path(), &["run", away]).wait();
    assert_eq!(outcome.code, Some(3), "{}", outcome.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_look_like_options_are_names() {
    let repositories = Repositories::default();
    repositories.create("app");
    let commit = repositories.commit("app", &[("file", "odd")]);
    let bare = repositories.bare("app");
    let names = [
        "--upload-pack=touch_pwned",
        "-h",
        "--exec=pwned",
        "$(touch_pwned)",
        "`touch_pwned`",
        "a;touch_pwned",
        "main|x",
        "main&x",
        "'x\"",
        "%2e%2e",
    ];
    for name in names {
        // Git's own commands refuse some of these; a server may have them.
        let path = bare.join("refs/heads").join(name);
        std::fs::write(path, format!("{commit}\n")).unwrap();
    }
    let server = HttpGit::start(&repositories.root(), None);
    for name in names {
        let (folder, mut options) = options();
        let url = format!("{}#refs/heads/{name}", server.url("app"));
        for exact in [false, true] {
            options.git = if exact {
                exactly(&commit)
            } else {
                GitOptions::default()
            };
            let workspace = fetched(&url, &options).await.unwrap();
            assert_eq!(read(&workspace, "file"), "odd");
            assert_eq!(workspace.facts.branch.as_deref(), Some(name));
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
            let files: Vec<_> = std::fs::read_dir(&workspace.root)
                .unwrap()
                .flatten()
                .collect();
            assert_eq!(files.len(), 2, "the file and .git: {files:?}");
        }
    }
}
