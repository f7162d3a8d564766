//! Submodules: fetched only on request, restricted by the rules for addresses, and never executed.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn submodules_are_fetched_on_request() {
    let (own, other) = (Repositories::default(), Repositories::default());
    let server = HttpGit::start(&own.root(), Some(("ci", TOKEN)));
    let elsewhere = HttpGit::start(&other.root(), None);
    for name in ["app", "lib", "deep"] {
        own.create(name);
    }
    other.create("open");
    let open = other.commit("open", &[("file", "open")]);
    let deep = own.commit("deep", &[("file", "deep")]);
    own.commit("deep", &[("file", "newer than what is used")]);
    own.commit("lib", &[("file", "lib")]);
    add_submodule(&own, "lib", "sub/deep", "../deep.git", &deep);
    let lib = git(&own.work_path("lib"), &["rev-parse", "HEAD"]);
    own.commit("app", &[("file", "app")]);
    add_submodule(&own, "app", "relative", "../lib.git", &lib);
    add_submodule(&own, "app", "absolute", &server.url("deep"), &deep);
    // A submodule on another host name, which gets no credential.
    let open_url = elsewhere.url("open").replace("127.0.0.1", "localhost");
    add_submodule(&own, "app", "open", &open_url, &open);
    let url = format!("{}#main", server.url("app"));

    let (folder, mut options) = runner_options();
    options.git_credentials.push(git_credential("127.0.0.1"));
    let workspace = fetch_context(&url, &options).await.unwrap();
    assert_eq!(
        std::fs::read_dir(workspace.root.join("relative"))
            .unwrap()
            .count(),
        0
    );
    drop(workspace);

    options.git.submodules = true;
    let workspace = fetch_context(&url, &options).await.unwrap();
    for (path, content) in [
        ("file", "app"),
        ("relative/file", "lib"),
        ("relative/sub/deep/file", "deep"),
        ("absolute/file", "deep"),
        ("open/file", "open"),
    ] {
        assert_eq!(read(&workspace, path), content, "{path}");
    }
    assert_eq!(
        workspace.variables.repository.as_deref(),
        Some(&server.url("app")[..])
    );
    assert_eq!(files_with(folder.path(), TOKEN), Vec::<PathBuf>::new());
    assert!(!workspace.root.join("pwned").exists() && !workspace.root.join("open/pwned").exists());
    let requests: Vec<_> = elsewhere.requests();
    assert!(!requests.is_empty());
    assert!(
        requests
            .iter()
            .all(|request| !request.headers.contains_key("authorization")),
        "{requests:?}"
    );
}

/// Known attacks on git through submodules, as far as they can be committed.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_submodules_are_refused_and_run_nothing() {
    let here = tempfile::tempdir().unwrap();
    let mark = here.path().join("pwned");
    let touch = format!("touch {}", mark.display());
    for (path, address) in [
        ("m", format!("ext::sh -c {}", touch.replace(' ', "% "))),
        ("m", format!("--upload-pack={touch}")),
        ("m", "-u./payload".to_owned()),
        (
            "m",
            format!("ssh://-oProxyCommand={}/x", touch.replace(' ', "$IFS")),
        ),
        ("m", format!("git@-oProxyCommand={touch}:x")),
        ("m", "file:///etc".to_owned()),
        ("m", "/etc".to_owned()),
        ("m", "../../../../../etc".to_owned()),
        ("m", "http://169.254.169.254/latest.git".to_owned()),
        ("m", "https://localhost:1/x.git".to_owned()),
        ("m", "git://example.com/x.git".to_owned()),
        ("m", "git@github.com:a/b.git".to_owned()),
    ] {
        let repositories = Repositories::default();
        repositories.create("app");
        let commit = repositories.commit(
            "app",
            &[
                ("file", "app"),
                ("payload", &format!("#!/bin/sh\n{touch}\n")),
            ],
        );
        add_submodule(&repositories, "app", path, &address, &commit);
        let server = HttpGit::start(&repositories.root(), None);
        let (folder, mut options) = runner_options();
        options.git.submodules = true;
        let error = error_text(
            &fetch_context(&server.url("app"), &options)
                .await
                .unwrap_err(),
        );
        assert!(error.contains("the submodule `m` of"), "{address}: {error}");
        assert!(!mark.exists(), "{address} ran");
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            0,
            "the failed checkout is left over"
        );
    }
}

/// A submodule with a slash at the end of its URL, one with `update = none`, and one without a URL.
#[tokio::test(flavor = "multi_thread")]
async fn submodule_settings_are_parsed_as_git_does() {
    let repositories = Repositories::default();
    let server = HttpGit::start(&repositories.root(), None);
    for name in ["app", "lib"] {
        repositories.create(name);
    }
    let lib = repositories.commit("lib", &[("file", "lib")]);
    repositories.commit("app", &[("file", "app")]);
    add_submodule(&repositories, "app", "slash", "../lib.git/", &lib);
    add_submodule(&repositories, "app", "skipped", "../none.git", &lib);
    let work = repositories.work_path("app");
    let set = |key: &str, value: &[&str]| {
        let args = [&["config", "--file", ".gitmodules", key][..], value].concat();
        git(&work, &args);
        git(
            &work,
            &["commit", "--quiet", "--all", "--message", "modules"],
        );
        git(&work, &["push", "--quiet", "--force", "origin", "HEAD"]);
    };
    set("submodule.skipped.update", &["none"]);
    // A submodule that `.gitmodules` does not list.
    std::fs::create_dir_all(work.join("vendor/unnamed")).unwrap();
    let unnamed = format!("160000,{lib},vendor/unnamed");
    git(&work, &["update-index", "--add", "--cacheinfo", &unnamed]);
    set("submodule.slash.branch", &["main"]);
    let (_folder, mut options) = runner_options();
    options.git.submodules = true;
    let workspace = fetch_context(&server.url("app"), &options).await.unwrap();
    assert_eq!(read(&workspace, "slash/file"), "lib");
    assert!(!workspace.root.join("skipped/file").exists());
    drop(workspace);

    // Skipped submodules are reported.
    let (sender, reports) = std::sync::mpsc::channel();
    options.git.submodules = false;
    options.progress = Some(std::sync::Arc::new(move |progress| {
        let _ = sender.send(progress);
    }));
    drop(fetch_context(&server.url("app"), &options).await.unwrap());
    let reported = format!("{:?}", reports.try_iter().collect::<Vec<_>>());
    assert!(reported.contains("left out: slash;"), "{reported}");
    let unnamed = "no submodule mapping found in .gitmodules";
    assert!(reported.contains(unnamed), "{reported}");
    assert!(reported.contains("for vendor/unnamed,"), "{reported}");

    options.git.submodules = true;
    let unset = [
        "config",
        "--file",
        ".gitmodules",
        "--unset",
        "submodule.slash.url",
    ];
    git(&work, &unset);
    set("submodule.slash.branch", &["other"]);
    let error = error_text(
        &fetch_context(&server.url("app"), &options)
            .await
            .unwrap_err(),
    );
    assert!(error.contains("the submodule `slash` of"), "{error}");
    assert!(error.contains("has no `url` for it"), "{error}");
}

/// A run requested through the API fetches submodules, as the program does.
#[tokio::test(flavor = "multi_thread")]
async fn runs_requested_through_the_api_fetch_submodules() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let repositories = Repositories::default();
    let git_server = HttpGit::start(&repositories.root(), None);
    for name in ["app", "lib"] {
        repositories.create(name);
    }
    let lib = repositories.commit("lib", &[("file", "of the library")]);
    let task = project::task_with_one_step("ls lib");
    repositories.commit("app", &[("acr-task.yaml", &task)]);
    add_submodule(&repositories, "app", "lib", "../lib.git", &lib);
    let server = TestServer::start(&environment, &["--allow-private-addresses"]);
    for (more, expected) in [(json!({}), true), (json!({"submodules": false}), false)] {
        let mut context = json!({"type": "url", "url": git_server.url("app")});
        let more = more.as_object().unwrap().clone();
        context.as_object_mut().unwrap().extend(more);
        let facts = json!({"registry": environment.registry});
        let request = json!({"spec": {"context": context, "variables": facts}});
        let answer = reqwest::Client::new()
            .post(format!("{}/api/v1/runs", server.url))
            .bearer_auth(&server.token)
            .json(&request)
            .send()
            .await
            .unwrap();
        let status = answer.status();
        let run: serde_json::Value = answer.json().await.unwrap();
        assert_eq!(status.as_u16(), 201, "{run:#}");
        let id = run["id"].as_str().unwrap();
        let done = server.wait_for_run(id, |run| !run["result"].is_null());
        assert_eq!(done["state"], "succeeded", "{done:#}");
        let log = server.run_ok(&["runs", "logs", id]).stdout;
        let has_file = log.lines().any(|line| line.ends_with("| file"));
        assert_eq!(has_file, expected, "{log}");
        assert_eq!(log.contains("left out: lib;"), !expected, "{log}");
    }
}
