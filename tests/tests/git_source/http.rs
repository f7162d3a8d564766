//! Repositories behind a password, and branch names that resemble options.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn private_repository_is_fetched_with_a_token() {
    let repositories = Repositories::default();
    repositories.create("app");
    let commit = repositories.commit("app", &[("file", "one")]);
    let server = HttpGit::start(&repositories.root(), Some(("ci", TOKEN)));

    let (folder, mut options) = runner_options();
    options.git_credentials.push(git_credential("127.0.0.1"));
    let workspace = fetch_context(&format!("{}#main", server.url("app")), &options)
        .await
        .unwrap();
    assert_eq!(read(&workspace, "file"), "one");
    let variables = &workspace.variables;
    assert_eq!(variables.commit.as_deref(), Some(&commit[..]));
    assert_eq!(variables.branch.as_deref(), Some("main"));
    assert_eq!(
        variables.repository.as_deref(),
        Some(&server.url("app")[..])
    );
    assert_eq!(files_with(folder.path(), TOKEN), Vec::<PathBuf>::new());

    let error = fetch_context(&server.url("app"), &self::runner_options().1)
        .await
        .unwrap_err();
    assert!(
        error_text(&error).contains("give a credential for its host"),
        "{}",
        error_text(&error)
    );
    options.git_credentials[0].password = Secret::new("hunter2-wrong");
    let error = fetch_context(&server.url("app"), &options)
        .await
        .unwrap_err();
    assert!(
        !error_text(&error).contains("hunter2"),
        "{}",
        error_text(&error)
    );
    // The password of another host is not tried.
    options.git_credentials = vec![
        git_credential("localhost"),
        git_credential("127.0.0.1.example.com"),
    ];
    fetch_context(&server.url("app"), &options)
        .await
        .unwrap_err();
    let sent = server.requests().into_iter();
    let logins: Vec<String> = sent
        .filter_map(|request| request.headers.get("authorization").cloned())
        .collect();
    assert!(logins.iter().all(|login| login.starts_with("Basic ")));
    assert!(!logins.is_empty());
}

/// A retry would not help, so the exit code is that of a user error, as in a local run.
#[test]
fn wrong_context_at_a_server_exits_with_a_user_error() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let repositories = Repositories::default();
    repositories.create("app");
    repositories.commit("app", &[("file", "one")]);
    let git_server = HttpGit::start(&repositories.root(), None);
    let url = git_server.url("app");
    let server = TestServer::start(&environment, &["--allow-private-addresses"]);
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
        assert_eq!(outcome.code, Some(2), "{context}: {}", outcome.transcript());
        assert!(outcome.stderr.contains(message), "{}", outcome.transcript());
        let run = server.fetch_run(&outcome.run);
        assert_eq!(run["state"], "failed", "{run:#}");
        assert_eq!(run["result"]["refused"], true, "{run:#}");
    }
    // A server that does not respond now may respond later.
    let unreachable = "http://127.0.0.1:1/app.git#main";
    let outcome = server.run(folder.path(), &["run", unreachable]).wait();
    assert_eq!(outcome.code, Some(3), "{}", outcome.transcript());
}

#[tokio::test(flavor = "multi_thread")]
async fn branch_names_are_never_parsed_as_options() {
    let repositories = Repositories::default();
    repositories.create("app");
    let commit = repositories.commit("app", &[("file", "odd")]);
    let bare = repositories.bare_path("app");
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
        // Git's own commands refuse some of these names, but a server can contain them.
        let path = bare.join("refs/heads").join(name);
        std::fs::write(path, format!("{commit}\n")).unwrap();
    }
    let server = HttpGit::start(&repositories.root(), None);
    for name in names {
        let (folder, mut options) = runner_options();
        let url = format!("{}#refs/heads/{name}", server.url("app"));
        for exact in [false, true] {
            options.git = if exact {
                at_commit(&commit)
            } else {
                GitOptions::default()
            };
            let workspace = fetch_context(&url, &options).await.unwrap();
            assert_eq!(read(&workspace, "file"), "odd");
            assert_eq!(workspace.variables.branch.as_deref(), Some(name));
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
            let files: Vec<_> = std::fs::read_dir(&workspace.root)
                .unwrap()
                .flatten()
                .collect();
            assert_eq!(files.len(), 2, "the file and .git: {files:?}");
        }
    }
}
