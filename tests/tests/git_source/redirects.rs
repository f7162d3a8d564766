//! Redirected repositories: renamed, moved to another host, or named without `.git`.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn renamed_repository_is_fetched_with_its_login() {
    let repositories = Repositories::default();
    for name in ["new", "lib"] {
        repositories.create(name);
    }
    let lib = repositories.commit("lib", &[("file", "lib")]);
    repositories.commit("new", &[("file", "app")]);
    for login in [None, Some(("ci", TOKEN))] {
        let server = HttpGit::start(&repositories.root(), login);
        // Without `.git`, as GitLab names it.
        let address = format!("http://{}/lib", server.address());
        if login.is_none() {
            add_submodule(&repositories, "new", "lib", &address, &lib);
        } else {
            let work = repositories.work_path("new");
            let key = "submodule.lib.url";
            git(&work, &["config", "--file", ".gitmodules", key, &address]);
            git(&work, &["commit", "--quiet", "--all", "--message", "url"]);
            git(&work, &["push", "--quiet", "origin", "HEAD"]);
        }
        server.redirect("old.git", &server.url("middle"));
        server.redirect("middle.git", &server.url("new"));
        server.redirect("lib", &server.url("lib"));
        let (_folder, mut options) = runner_options();
        options.git.submodules = true;
        if login.is_some() {
            options.git_credentials.push(git_credential("127.0.0.1"));
        }
        let (sender, reports) = std::sync::mpsc::channel();
        options.progress = Some(std::sync::Arc::new(move |progress| {
            let _ = sender.send(progress);
        }));
        let workspace = fetch_context(&server.url("old"), &options).await.unwrap();
        assert_eq!(read(&workspace, "file"), "app");
        assert_eq!(read(&workspace, "lib/file"), "lib");
        let reported = format!("{:?}", reports.try_iter().collect::<Vec<_>>());
        let moved = format!("has moved to {};", server.url("new"));
        assert!(reported.contains(&moved), "{reported}");
        // An exact commit is found there too.
        let commit = git(&repositories.work_path("new"), &["rev-parse", "HEAD"]);
        options.git = at_commit(&commit);
        let workspace = fetch_context(&server.url("old"), &options).await.unwrap();
        assert_eq!(read(&workspace, "file"), "app");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redirect_to_another_origin_sends_no_login_and_obeys_the_rules() {
    let (own, other) = (Repositories::default(), Repositories::default());
    let server = HttpGit::start(&own.root(), Some(("ci", TOKEN)));
    let elsewhere = HttpGit::start(&other.root(), None);
    other.create("open");
    other.commit("open", &[("file", "open")]);
    let port = elsewhere.address();
    let (_, port) = port.rsplit_once(':').unwrap();
    // Another port of the same host, and another host.
    for (name, host) in [("port", "127.0.0.1"), ("host", "localhost")] {
        let url = format!("http://{host}:{port}/open.git");
        server.redirect(&format!("{name}.git"), &url);
        let (_folder, mut options) = runner_options();
        options.git_credentials.push(git_credential("127.0.0.1"));
        let workspace = fetch_context(&server.url(name), &options).await.unwrap();
        assert_eq!(read(&workspace, "file"), "open", "{name}");
    }
    let requests = elsewhere.requests();
    assert!(!requests.is_empty());
    assert!(
        requests
            .iter()
            .all(|request| !request.headers.contains_key("authorization")),
        "{requests:?}"
    );
    let (_folder, options) = runner_options();
    for (name, to, reason) in [
        ("page", "http://localhost/login?", "not a repository"),
        ("file", "file:///srv/app.git", "redirects to `file:`"),
        (
            "clear",
            "http://git.example.com/app.git",
            "http:// has neither",
        ),
    ] {
        server.redirect(&format!("{name}.git"), to);
        let error = error_text(
            &fetch_context(&server.url(name), &options)
                .await
                .unwrap_err(),
        );
        assert!(error.contains(reason), "{name}: {error}");
    }
    server.redirect("circle.git", &server.url("circle"));
    assert!(
        fetch_context(&server.url("circle"), &options)
            .await
            .is_err()
    );
}

/// The complete path: a stored login, a server that may reach private addresses, and the output of
/// `doctor`.
#[test]
fn renamed_repository_runs_and_doctor_shows_its_new_address() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let repositories = Repositories::default();
    repositories.create("new");
    let task = project::task_with_one_step("echo from the new place");
    repositories.commit("new", &[("acr-task.yaml", &task)]);
    let git_server = HttpGit::start(&repositories.root(), Some(("ci", TOKEN)));
    git_server.redirect("old.git", &git_server.url("new"));
    let server = TestServer::start(&environment, &["--allow-private-addresses"]);
    let url = format!("{}#main", git_server.url("old"));
    let registry = environment.registry.as_str();
    let folder = project::create_folder(&[("token", TOKEN)]);
    let ok = |args: &[&str]| {
        let outcome = server.start_client(folder.path(), args).wait();
        assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
        outcome
    };
    ok(&[
        "task",
        "create",
        "moved",
        "--registry",
        registry,
        "--context",
        &url,
    ]);
    let host = git_server.address();
    let set = [
        "credential",
        "set",
        &host,
        "--username",
        "ci",
        "--from-file",
        "token",
    ];
    ok(&set);
    let run = ok(&["task", "run", "moved"]);
    assert!(
        run.transcript().contains("from the new place"),
        "{}",
        run.transcript()
    );
    let new = git_server.url("new");
    assert!(
        run.transcript().contains(&format!("has moved to {new}")),
        "{}",
        run.transcript()
    );
    let doctor = server
        .start_client(folder.path(), &["doctor", "moved"])
        .wait();
    let advice = format!("acrtask task update moved --context '{new}#main'");
    assert!(
        doctor.transcript().contains(&advice),
        "{}",
        doctor.transcript()
    );
    assert!(
        !doctor.transcript().contains("credential set"),
        "{}",
        doctor.transcript()
    );
}
