//! Repositories that their server redirects: renamed, moved to another host, or named without `.git`.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_repository_is_read_with_its_login() {
    let repositories = Repositories::default();
    for name in ["new", "lib"] {
        repositories.create(name);
    }
    let lib = repositories.commit("lib", &[("file", "lib")]);
    repositories.commit("new", &[("file", "app")]);
    for login in [None, Some(("ci", TOKEN))] {
        let server = HttpGit::start(&repositories.root(), login);
        // As GitLab names it, without `.git`.
        let address = format!("http://{}/lib", server.address());
        if login.is_none() {
            add_submodule(&repositories, "new", "lib", &address, &lib);
        } else {
            let work = repositories.work("new");
            let key = "submodule.lib.url";
            git(&work, &["config", "--file", ".gitmodules", key, &address]);
            git(&work, &["commit", "--quiet", "--all", "--message", "url"]);
            git(&work, &["push", "--quiet", "origin", "HEAD"]);
        }
        server.redirect("old.git", &server.url("middle"));
        server.redirect("middle.git", &server.url("new"));
        server.redirect("lib", &server.url("lib"));
        let (_folder, mut options) = options();
        options.git.submodules = true;
        if login.is_some() {
            options.git_credentials.push(token("127.0.0.1"));
        }
        let (sender, reports) = std::sync::mpsc::channel();
        options.progress = Some(std::sync::Arc::new(move |progress| {
            let _ = sender.send(progress);
        }));
        let workspace = fetched(&server.url("old"), &options).await.unwrap();
        assert_eq!(read(&workspace, "file"), "app");
        assert_eq!(read(&workspace, "lib/file"), "lib");
        let reported = format!("{:?}", reports.try_iter().collect::<Vec<_>>());
        let moved = format!("has moved to {};", server.url("new"));
        assert!(reported.contains(&moved), "{reported}");
        // An exact commit is found there too.
        let commit = git(&repositories.work("new"), &["rev-parse", "HEAD"]);
        options.git = exactly(&commit);
        let workspace = fetched(&server.url("old"), &options).await.unwrap();
        assert_eq!(read(&workspace, "file"), "app");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_origin_gets_no_login_and_is_held_to_the_rules() {
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
        let (_folder, mut options) = options();
        options.git_credentials.push(token("127.0.0.1"));
        let workspace = fetched(&server.url(name), &options).await.unwrap();
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
    let (_folder, options) = options();
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
        let error = said(&fetched(&server.url(name), &options).await.unwrap_err());
        assert!(error.contains(reason), "{name}: {error}");
    }
    server.redirect("circle.git", &server.url("circle"));
    assert!(fetched(&server.url("circle"), &options).await.is_err());
}

/// The whole way: a stored login, a server that may reach private addresses, and what `doctor` says.
#[test]
fn a_task_of_a_renamed_repository_runs_and_doctor_names_the_address() {
    let Some(world) = World::find() else { return };
    let repositories = Repositories::default();
    repositories.create("new");
    let task = project::one_step("echo from the new place");
    repositories.commit("new", &[("acr-task.yaml", &task)]);
    let git_server = HttpGit::start(&repositories.root(), Some(("ci", TOKEN)));
    git_server.redirect("old.git", &git_server.url("new"));
    let server = Server::start(&world, &["--allow-private-addresses"]);
    let url = format!("{}#main", git_server.url("old"));
    let registry = world.registry.as_str();
    let folder = project::folder(&[("token", TOKEN)]);
    let ok = |args: &[&str]| {
        let outcome = server.client(folder.path(), args).wait();
        assert_eq!(outcome.code, Some(0), "{}", outcome.all());
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
    assert!(run.all().contains("from the new place"), "{}", run.all());
    let new = git_server.url("new");
    assert!(
        run.all().contains(&format!("has moved to {new}")),
        "{}",
        run.all()
    );
    let doctor = server.client(folder.path(), &["doctor", "moved"]).wait();
    let advice = format!("acrtask task update moved --context '{new}#main'");
    assert!(doctor.all().contains(&advice), "{}", doctor.all());
    assert!(!doctor.all().contains("credential set"), "{}", doctor.all());
}
