//! Checkouts of real repositories: by path, and over HTTP from git's own server.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use acrtask_model::Secret;
use acrtask_source::{
    ContextSpec, GitCredential, Limits, Options, Origin, SourceError, Workspace, fetch,
};
use tempfile::TempDir;
use wiremock::{Mock, MockServer, Request, Respond, ResponseTemplate, matchers::any};

/// Bare repository with a history:
/// `main` has three commits, `feature/x` one more. `v1` is an annotated tag of the first commit.
/// There is also a pull request.
struct TestRepository {
    folder: TempDir,
    first: String,
    middle: String,
    main: String,
    pull: String,
}

fn git(folder: &Path, args: &[&str]) -> String {
    let output = Command::new("git")
        .current_dir(folder)
        .args(args)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .envs(["AUTHOR", "COMMITTER"].iter().flat_map(|who| {
            [
                (format!("GIT_{who}_NAME"), "A"),
                (format!("GIT_{who}_EMAIL"), "a@example.com"),
                (format!("GIT_{who}_DATE"), "2026-01-01T00:00:00Z"),
            ]
        }))
        .output()
        .expect("these tests need the program git");
    assert!(
        output.status.success(),
        "git {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn repository() -> TestRepository {
    let folder = tempfile::tempdir().unwrap();
    let work = folder.path().join("work");
    std::fs::create_dir(&work).unwrap();
    let write = |name: &str, content: &str| {
        let path = work.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    };
    let commit = |message: &str| {
        git(&work, &["add", "--all"]);
        git(&work, &["commit", "--quiet", "--message", message]);
        git(&work, &["rev-parse", "HEAD"])
    };
    git(&work, &["init", "--quiet", "--initial-branch=main"]);
    write("file", "first");
    write("sub/app/Dockerfile", "FROM scratch\n");
    std::os::unix::fs::symlink("/etc", work.join("sub/etc")).unwrap();
    std::os::unix::fs::symlink("app", work.join("sub/alias")).unwrap();
    let first = commit("first");
    git(&work, &["tag", "--annotate", "v1", "--message", "v1"]);
    write("file", "middle");
    let middle = commit("middle");
    write("file", "second");
    let main = commit("second");
    git(&work, &["checkout", "--quiet", "-b", "feature/x"]);
    write("file", "feature");
    commit("feature");
    git(&work, &["checkout", "--quiet", "--detach", "main"]);
    write("file", "pull");
    let pull = commit("pull");
    git(&work, &["update-ref", "refs/pull/1/head", &pull]);
    git(&work, &["checkout", "--quiet", "main"]);
    let bare = folder.path().join("repo.git");
    git(
        folder.path(),
        &["clone", "--quiet", "--mirror", "work", "repo.git"],
    );
    git(&bare, &["config", "http.uploadpack", "true"]);
    TestRepository {
        folder,
        first,
        middle,
        main,
        pull,
    }
}

impl TestRepository {
    fn url(&self) -> String {
        format!("file://{}", self.folder.path().join("repo.git").display())
    }
}

fn scratch() -> (TempDir, Options) {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        scratch_dir: folder.path().to_owned(),
        ..Options::default()
    };
    (folder, options)
}

async fn fetched(url: &str, options: &Options) -> Result<Workspace, SourceError> {
    let spec = ContextSpec::parse(url).unwrap_or_else(|error| panic!("{error}"));
    assert!(matches!(spec, ContextSpec::Git(_)), "{url}");
    fetch(&spec, options).await
}

fn file(workspace: &Workspace) -> String {
    std::fs::read_to_string(workspace.root.join("file")).unwrap()
}

#[tokio::test]
async fn fetch_checks_out_every_kind_of_reference() {
    let origin = repository();
    let short = &origin.main[..9];
    for (reference, content, branch, tag) in [
        ("", "second", Some("main"), None),
        ("#main", "second", Some("main"), None),
        ("#refs/heads/main", "second", Some("main"), None),
        ("#feature/x", "feature", Some("feature/x"), None),
        ("#v1", "first", None, Some("v1")),
        ("#refs/tags/v1", "first", None, Some("v1")),
        ("#pull/1/head", "pull", None, None),
        ("#refs/pull/1/head", "pull", None, None),
        (&format!("#{}", origin.first), "first", None, None),
        (&format!("#{}", origin.pull), "pull", None, None),
        (&format!("#{short}"), "second", None, None),
    ] {
        let (folder, options) = scratch();
        let workspace = fetched(&format!("{}{reference}", origin.url()), &options)
            .await
            .unwrap();
        assert_eq!(file(&workspace), content, "{reference}");
        let variables = &workspace.variables;
        assert_eq!(variables.branch.as_deref(), branch, "{reference}");
        assert_eq!(variables.tag.as_deref(), tag, "{reference}");
        assert_eq!(variables.repository.as_deref(), Some(origin.url().as_str()));
        assert_eq!(
            variables.commit,
            Some(git(&workspace.root, &["rev-parse", "HEAD"]))
        );
        assert!(!workspace.borrowed);
        drop(workspace);
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            0,
            "the folder is removed"
        );
    }
}

#[tokio::test]
async fn fetch_is_shallow() {
    let origin = repository();
    let (_folder, options) = scratch();
    let workspace = fetched(&format!("{}#main", origin.url()), &options)
        .await
        .unwrap();
    assert_eq!(git(&workspace.root, &["rev-list", "--count", "HEAD"]), "1");
    assert_eq!(git(&workspace.root, &["status", "--porcelain"]), "");
}

#[tokio::test]
async fn subfolder_must_stay_in_the_repository() {
    let origin = repository();
    for (folder, expected) in [
        ("sub/app", Ok("sub/app")),
        ("sub/alias", Ok("sub/app")),
        ("sub/etc", Err("it leads out of the context")),
        ("file", Err("it is not a folder")),
        ("missing", Err("it does not exist")),
    ] {
        let (_scratch, options) = scratch();
        match (
            fetched(&format!("{}#main:{folder}", origin.url()), &options).await,
            expected,
        ) {
            (Ok(workspace), Ok(end)) => assert!(workspace.root.ends_with(end), "{folder}"),
            (Err(error), Err(reason)) => {
                assert!(error.to_string().contains(reason), "{folder}: {error}")
            }
            (got, _) => panic!("{folder}: {got:?}"),
        }
    }
}

#[tokio::test]
async fn errors_name_the_missing_object() {
    let origin = repository();
    let empty = origin.folder.path().join("empty.git");
    git(
        origin.folder.path(),
        &["init", "--quiet", "--bare", "empty.git"],
    );
    for (url, expected) in [
        (
            format!("{}#nope", origin.url()),
            "has no branch, tag, commit or pull request `nope`",
        ),
        (
            format!("{}#{}", origin.url(), "d".repeat(40)),
            "has no branch, tag, commit or pull request",
        ),
        (
            format!("file://{}", empty.display()),
            "the repository is empty",
        ),
        (
            format!("file://{}/none.git", origin.folder.path().display()),
            "cannot read the references of file://",
        ),
    ] {
        let (folder, options) = scratch();
        let error = fetched(&url, &options).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{url}: {error}");
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            0,
            "the folder is removed"
        );
    }
}

#[tokio::test]
async fn submodules_and_filters_are_ignored_by_default() {
    let origin = repository();
    let work = origin.folder.path().join("work");
    std::fs::write(work.join(".gitattributes"), "file filter=evil\n").unwrap();
    std::fs::write(
        work.join(".gitmodules"),
        format!(
            "[submodule \"m\"]\n\tpath = m\n\turl = {}\n\tupdate = !touch pwned\n",
            origin.url()
        ),
    )
    .unwrap();
    git(&work, &["add", "--all"]);
    git(
        &work,
        &[
            "update-index",
            "--add",
            "--cacheinfo",
            &format!("160000,{},m", origin.main),
        ],
    );
    git(&work, &["commit", "--quiet", "--message", "submodule"]);
    let (_folder, options) = scratch();
    let workspace = fetched(&format!("file://{}", work.display()), &options)
        .await
        .unwrap();
    assert_eq!(file(&workspace), "second");
    assert_eq!(
        std::fs::read_dir(workspace.root.join("m")).unwrap().count(),
        0
    );
    assert!(!workspace.root.join("pwned").exists());
}

#[tokio::test]
async fn task_file_cannot_use_local_files_keys_or_addresses() {
    let origin = repository();
    for (url, expected) in [
        (origin.url(), "cannot name a path of this machine"),
        (
            "ssh://git@example.com/a.git".into(),
            "cannot use this machine's SSH keys",
        ),
        (
            "git@example.com:a.git".into(),
            "cannot use this machine's SSH keys",
        ),
        ("git://example.com/a.git".into(), "neither encryption"),
        ("http://example.com/a.git".into(), "neither encryption"),
        ("https://127.0.0.1/a.git".into(), "not a public address"),
        ("https://localhost/a.git".into(), "not a public address"),
        (
            "https://169.254.169.254/a.git".into(),
            "not a public address",
        ),
        ("https://[::1]/a.git".into(), "not a public address"),
        ("https://2130706433/a.git".into(), "not a public address"),
    ] {
        let (_folder, mut options) = scratch();
        options.origin = Origin::TaskFile;
        let error = fetched(&url, &options).await.unwrap_err();
        assert!(
            matches!(error, SourceError::Refused { .. }),
            "{url}: {error:?}"
        );
        assert!(error.to_string().contains(expected), "{url}: {error}");
    }
}

/// Git's own HTTP server behind a password.
struct Backend {
    root: PathBuf,
    authorization: Option<String>,
    /// Supports the newest version of the protocol. The first version sends only commits with a
    /// reference.
    newest: bool,
}

impl Respond for Backend {
    fn respond(&self, request: &Request) -> ResponseTemplate {
        let header = |name: &str| {
            request
                .headers
                .get(name)
                .map(|value| value.to_str().unwrap().to_owned())
        };
        if self.authorization.is_some() && header("authorization") != self.authorization {
            return ResponseTemplate::new(401)
                .insert_header("WWW-Authenticate", "Basic realm=\"git\"");
        }
        let mut child = Command::new("git")
            .arg("http-backend")
            .env("GIT_PROJECT_ROOT", &self.root)
            .env("GIT_HTTP_EXPORT_ALL", "1")
            .env("REQUEST_METHOD", request.method.as_str())
            .env("PATH_INFO", request.url.path())
            .env("QUERY_STRING", request.url.query().unwrap_or_default())
            .env("CONTENT_TYPE", header("content-type").unwrap_or_default())
            .env(
                "HTTP_CONTENT_ENCODING",
                header("content-encoding").unwrap_or_default(),
            )
            .env(
                "GIT_PROTOCOL",
                header("git-protocol")
                    .filter(|_| self.newest)
                    .unwrap_or_default(),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(&request.body)
            .unwrap();
        let output = child.wait_with_output().unwrap().stdout;
        let split = output
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .unwrap();
        let mut status = 200;
        let mut response = Vec::new();
        for line in String::from_utf8_lossy(&output[..split]).lines() {
            let (name, value) = line.split_once(": ").unwrap();
            match name {
                "Status" => status = value[..3].parse().unwrap(),
                _ => response.push((name.to_owned(), value.to_owned())),
            }
        }
        let content_type = response
            .iter()
            .find(|(name, _)| name == "Content-Type")
            .map_or("", |(_, value)| value);
        ResponseTemplate::new(status).set_body_raw(output[split + 4..].to_vec(), content_type)
    }
}

/// user:hunter2
const BASIC: &str = "Basic dXNlcjpodW50ZXIy";

async fn server(origin: &TestRepository, authorization: Option<&str>) -> MockServer {
    serve(Backend {
        root: origin.folder.path().to_owned(),
        authorization: authorization.map(str::to_owned),
        newest: true,
    })
    .await
}

async fn serve(backend: Backend) -> MockServer {
    let server = MockServer::start().await;
    Mock::given(any())
        .respond_with(backend)
        .mount(&server)
        .await;
    server
}

fn password(host: &str) -> GitCredential {
    GitCredential {
        host: host.into(),
        username: "user".into(),
        password: Secret::new("hunter2"),
    }
}

/// Returns every file below `folder` that contains `text`.
fn files_with(folder: &Path, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(files_with(&path, text));
        } else if std::fs::read(&path)
            .is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(text))
        {
            found.push(path);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn fetch_over_http_works_with_and_without_a_password() {
    let origin = repository();
    let open = server(&origin, None).await;
    let (_folder, options) = scratch();
    let workspace = fetched(&format!("http://{}/repo.git#v1", open.address()), &options)
        .await
        .unwrap();
    assert_eq!(file(&workspace), "first");

    let private = server(&origin, Some(BASIC)).await;
    let url = format!("http://{}/repo.git", private.address());
    let error = fetched(&url, &options).await.unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("cannot read the references of http://"),
        "{error}"
    );
    assert_eq!(
        error.help().as_deref(),
        Some("the repository does not exist, or is private: give a credential for its host")
    );

    let (folder, mut options) = scratch();
    options.git_credentials.push(password("127.0.0.1"));
    let workspace = fetched(&format!("{url}#main"), &options).await.unwrap();
    assert_eq!(file(&workspace), "second");
    for text in ["hunter2", BASIC] {
        assert_eq!(files_with(folder.path(), text), Vec::<PathBuf>::new());
    }

    let (_folder, mut options) = scratch();
    let in_url = format!("http://user:hunter2@{}/repo.git", private.address());
    let workspace = fetched(&in_url, &options).await.unwrap();
    assert_eq!(
        workspace.variables.repository.as_deref(),
        Some(url.as_str())
    );

    options.git_credentials.push(GitCredential {
        password: Secret::new("wrong-one"),
        ..password("127.0.0.1")
    });
    let error = fetched(&url, &options).await.unwrap_err();
    assert!(!format!("{error} {error:?}").contains("wrong-one"));
}

#[tokio::test(flavor = "multi_thread")]
async fn commit_is_found_if_the_server_refuses_it_by_name() {
    let origin = repository();
    for newest in [true, false] {
        let server = serve(Backend {
            root: origin.folder.path().to_owned(),
            authorization: None,
            newest,
        })
        .await;
        for commit in [&origin.middle[..], &origin.middle[..10]] {
            let (_folder, options) = scratch();
            let url = format!("http://{}/repo.git#{commit}", server.address());
            let workspace = fetched(&url, &options).await.unwrap();
            assert_eq!(file(&workspace), "middle");
            assert_eq!(
                workspace.variables.commit.as_deref(),
                Some(origin.middle.as_str())
            );
            let shallow = workspace.root.join(".git/shallow").exists();
            assert_eq!(shallow, newest && commit.len() == 40, "{newest} {commit}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn password_does_not_follow_a_redirect() {
    let origin = repository();
    let elsewhere = server(&origin, None).await;
    let redirecting = MockServer::start().await;
    let target = format!("http://{}", elsewhere.address());
    Mock::given(any())
        .respond_with(move |request: &Request| {
            let query = request.url.query().unwrap_or_default();
            let location = format!("{target}{}?{query}", request.url.path());
            ResponseTemplate::new(301).insert_header("Location", location)
        })
        .mount(&redirecting)
        .await;
    let url = format!("http://{}/repo.git", redirecting.address());
    let (_folder, options) = scratch();
    fetched(&url, &options)
        .await
        .expect("a moved repository without a password is followed");
    let before = elsewhere.received_requests().await.unwrap().len();

    let (_folder, mut options) = scratch();
    options.git_credentials.push(password("127.0.0.1"));
    fetched(&url, &options)
        .await
        .expect("it is followed without its password");
    let requests = elsewhere.received_requests().await.unwrap();
    assert!(requests.len() > before);
    let with_login = |request: &Request| request.headers.contains_key("authorization");
    assert!(!requests.iter().any(with_login));
}

#[tokio::test(flavor = "multi_thread")]
async fn task_file_may_use_private_addresses_if_the_operator_allows_it() {
    let origin = repository();
    let open = server(&origin, None).await;
    let url = format!("http://{}/repo.git", open.address());
    let (_folder, mut options) = scratch();
    options.origin = Origin::TaskFile;
    let error = fetched(&url, &options).await.unwrap_err();
    assert!(matches!(error, SourceError::Refused { .. }), "{error:?}");
    options.allow_private_addresses = true;
    fetched(&url, &options).await.unwrap();
}

/// Returns `true` if a process has `text` in its command line.
fn is_running(text: &str) -> bool {
    std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        std::fs::read(entry.path().join("cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).contains(text))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_server_leaves_no_process_behind() {
    let silent = MockServer::start().await;
    Mock::given(any())
        .respond_with(ResponseTemplate::new(200).set_delay(Duration::from_secs(60)))
        .mount(&silent)
        .await;
    let url = format!("http://{}/silent.git", silent.address());
    let (folder, mut options) = scratch();
    options.limits = Limits {
        time: Duration::from_secs(1),
        ..Limits::default()
    };
    let error = fetched(&url, &options).await.unwrap_err();
    assert!(matches!(error, SourceError::TimedOut { .. }), "{error:?}");
    let deadline = Instant::now() + Duration::from_secs(10);
    while is_running(&url) {
        assert!(Instant::now() < deadline, "git still runs");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        0,
        "the folder is removed"
    );
}
