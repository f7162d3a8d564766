//! Contexts from real git servers, over HTTP with a password and over SSH with a key: what is checked out, what is
//! refused, how much is sent, and that nothing of a repository runs.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    fs::Permissions,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use acrtask_model::Secret;
use acrtask_source::{
    ContextSpec, GitCredential, GitOptions, Options, Origin, SourceError, SshKey, Workspace, fetch,
};
use acrtask_tests::{
    World,
    git_server::{HttpGit, Repositories, SshGit, git, git_command},
    project,
    service::{Runner, Server},
};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

const TOKEN: &str = "hunter2-the-token";

/// What a runner fetches with, that its operator lets reach this machine.
fn options() -> (TempDir, Options) {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        origin: Origin::TaskFile,
        allow_private_addresses: true,
        scratch_dir: folder.path().to_owned(),
        ..Options::default()
    };
    (folder, options)
}

fn token(host: &str) -> GitCredential {
    GitCredential {
        host: host.into(),
        username: "ci".into(),
        password: Secret::new(TOKEN),
    }
}

fn exactly(commit: &str) -> GitOptions {
    GitOptions {
        commit: Some(commit.parse().unwrap()),
        ..GitOptions::default()
    }
}

async fn fetched(url: &str, options: &Options) -> Result<Workspace, SourceError> {
    let spec = ContextSpec::parse(url).unwrap_or_else(|error| panic!("{error}"));
    fetch(&spec, options).await
}

/// All that an error says, with its causes and its advice.
fn said(error: &SourceError) -> String {
    let mut text = format!("{error:?} {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    format!("{text}; {}", error.help().unwrap_or_default())
}

fn read(workspace: &Workspace, path: &str) -> String {
    std::fs::read_to_string(workspace.root.join(path))
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every file below `folder` that has `text` in it.
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

/// What the processes of this machine have in their command lines.
fn command_lines() -> String {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " ") + "\n")
        .collect()
}

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

#[tokio::test(flavor = "multi_thread")]
async fn exact_commits_tags_and_what_is_gone() {
    let repositories = Repositories::default();
    repositories.create("app");
    let work = repositories.work("app");
    let first = repositories.commit("app", &[("file", "first")]);
    git(&work, &["tag", "--annotate", "v1", "--message", "v1"]);
    git(&work, &["push", "--quiet", "origin", "v1"]);
    for n in 0..20 {
        repositories.commit("app", &[("file", &n.to_string())]);
    }
    let last = repositories.commit("app", &[("file", "last")]);
    // A branch that was deleted, and a commit that was pushed away.
    git(&work, &["checkout", "--quiet", "-b", "feature/gone"]);
    let on_branch = repositories.commit("app", &[("file", "feature")]);
    git(&work, &["push", "--quiet", "origin", ":feature/gone"]);
    git(&work, &["checkout", "--quiet", "main"]);
    let forced = repositories.commit("app", &[("file", "forced")]);
    git(&work, &["reset", "--quiet", "--hard", &last]);
    repositories.commit("app", &[("file", "instead")]);
    let server = HttpGit::start(&repositories.root(), None);
    let url = server.url("app");

    let check = async |reference: &str, commit: &str, content: &str| {
        let (_folder, mut options) = options();
        options.git = exactly(commit);
        let workspace = fetched(&format!("{url}{reference}"), &options)
            .await
            .unwrap();
        assert_eq!(read(&workspace, "file"), content, "{reference}");
        assert_eq!(workspace.facts.commit.as_deref(), Some(commit));
        let shallow = workspace.root.join(".git/shallow").exists();
        let facts = &workspace.facts;
        (facts.branch.clone(), facts.tag.clone(), shallow)
    };
    let main = || Some("main".to_owned());
    assert_eq!(check("#main", &last, "last").await, (main(), None, true));
    assert_eq!(check("", &last, "last").await, (None, None, true));
    assert_eq!(
        check("#v1", &first, "first").await,
        (None, Some("v1".into()), true)
    );
    // The server still has these, and gives out what is asked for by its name.
    assert_eq!(
        check("#main", &forced, "forced").await,
        (main(), None, true)
    );
    let gone = || Some("feature/gone".to_owned());
    assert_eq!(
        check("#feature/gone", &on_branch, "feature").await,
        (gone(), None, true)
    );

    // It has not any more.
    repositories.prune("app");
    let refused = async |reference: &str, commit: &str| {
        let (folder, mut options) = options();
        options.git = exactly(commit);
        let error = fetched(&format!("{url}{reference}"), &options)
            .await
            .unwrap_err();
        assert!(matches!(error, SourceError::CommitGone { .. }), "{error:?}");
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            0,
            "it is removed"
        );
        error
            .to_string()
            .replace(&url, "URL")
            .replace(commit, "COMMIT")
    };
    let of_main = "URL has no commit COMMIT in the history of `refs/heads/main`";
    assert_eq!(refused("#main", &forced).await, of_main);
    assert_eq!(
        refused("#feature/gone", &on_branch).await,
        "URL has no commit COMMIT"
    );
    assert_eq!(refused("#main", &"d".repeat(40)).await, of_main);

    // One that gives out tips alone: the history of the branch is fetched as far as it has to be.
    server.be_old();
    let middle = git(&work, &["rev-parse", "main~15"]);
    assert_eq!(check("#main", &last, "last").await, (main(), None, true));
    assert_eq!(check("", &middle, "6").await, (None, None, false));
    assert_eq!(refused("#main", &forced).await, of_main);
    // A commit that is no commit.
    let tree = git(&work, &["rev-parse", "HEAD^{tree}"]);
    let (_folder, mut options) = options();
    options.git = exactly(&tree);
    fetched(&url, &options).await.unwrap_err();
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

/// A gitlink at `path`, and what `.gitmodules` says about it.
fn add_submodule(repositories: &Repositories, name: &str, path: &str, url: &str, commit: &str) {
    let work = repositories.work(name);
    std::fs::create_dir_all(work.join(path)).unwrap();
    let mut modules = std::fs::File::options()
        .create(true)
        .append(true)
        .open(work.join(".gitmodules"))
        .unwrap();
    write!(
        modules,
        "[submodule \"{path}\"]\n\tpath = {path}\n\turl = {url}\n\tupdate = !touch pwned\n"
    )
    .unwrap();
    let entry = format!("160000,{commit},{path}");
    git(&work, &["update-index", "--add", "--cacheinfo", &entry]);
    git(&work, &["add", ".gitmodules"]);
    git(&work, &["commit", "--quiet", "--message", "submodule"]);
    git(&work, &["push", "--quiet", "--force", "origin", "HEAD"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn submodules_where_they_are_asked_for() {
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
    let lib = git(&own.work("lib"), &["rev-parse", "HEAD"]);
    own.commit("app", &[("file", "app")]);
    add_submodule(&own, "app", "relative", "../lib.git", &lib);
    add_submodule(&own, "app", "absolute", &server.url("deep"), &deep);
    // On another host, by name another one: it gets no credential.
    let open_url = elsewhere.url("open").replace("127.0.0.1", "localhost");
    add_submodule(&own, "app", "open", &open_url, &open);
    let url = format!("{}#main", server.url("app"));

    let (folder, mut options) = options();
    options.git_credentials.push(token("127.0.0.1"));
    let workspace = fetched(&url, &options).await.unwrap();
    assert_eq!(
        std::fs::read_dir(workspace.root.join("relative"))
            .unwrap()
            .count(),
        0
    );
    drop(workspace);

    options.git.submodules = true;
    let workspace = fetched(&url, &options).await.unwrap();
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
        workspace.facts.repository.as_deref(),
        Some(&server.url("app")[..])
    );
    assert_eq!(files_with(folder.path(), TOKEN), Vec::<PathBuf>::new());
    assert!(!workspace.root.join("pwned").exists() && !workspace.root.join("open/pwned").exists());
    let got: Vec<_> = elsewhere.requests();
    assert!(!got.is_empty());
    assert!(
        got.iter()
            .all(|request| !request.headers.contains_key("authorization")),
        "{got:?}"
    );
}

/// The attacks on submodules that git had to be changed for, as far as they can be committed.
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
        let (folder, mut options) = options();
        options.git.submodules = true;
        let error = said(&fetched(&server.url("app"), &options).await.unwrap_err());
        assert!(error.contains("the submodule `m` of"), "{address}: {error}");
        assert!(!mark.exists(), "{address} ran");
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            0,
            "it is removed"
        );
    }
}

/// A file that git gives to Git LFS: its pointer in the repository, its object at the server.
fn add_object(repositories: &Repositories, content: &[u8]) -> (String, String) {
    let oid: String = Sha256::digest(content)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let folder = repositories.root().join("lfs-objects");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(&oid), content).unwrap();
    let pointer = format!(
        "version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {}\n",
        content.len()
    );
    (oid, pointer)
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_git_lfs_where_they_are_asked_for() {
    let repositories = Repositories::default();
    repositories.create("app");
    repositories.create("lib");
    let large: Vec<u8> = (0..3_000_000u32).map(|n| (n * 7 % 251) as u8).collect();
    let (oid, pointer) = add_object(&repositories, &large);
    let (_, small) = add_object(&repositories, b"small");
    let attributes = "*.bin filter=lfs diff=lfs merge=lfs -text\n";
    let lib = repositories.commit(
        "lib",
        &[(".gitattributes", attributes), ("lib.bin", &small)],
    );
    repositories.commit(
        "app",
        &[
            (".gitattributes", attributes),
            ("large.bin", &pointer),
            ("again/large.bin", &pointer),
            ("small.bin", &small),
            ("not-a-pointer.bin", "plain"),
            ("no-attribute.txt", &pointer),
        ],
    );
    std::os::unix::fs::symlink("small.bin", repositories.work("app").join("link.bin")).unwrap();
    let program = repositories.work("app").join("large.bin");
    std::fs::set_permissions(program, Permissions::from_mode(0o755)).unwrap();
    add_submodule(&repositories, "app", "lib", "../lib.git", &lib);
    repositories.commit("app", &[]);
    let server = HttpGit::start(&repositories.root(), Some(("ci", TOKEN)));
    let url = format!("{}#main", server.url("app"));

    let (folder, mut options) = options();
    options.git_credentials.push(token("127.0.0.1"));
    let workspace = fetched(&url, &options).await.unwrap();
    assert_eq!(read(&workspace, "large.bin"), pointer);
    drop(workspace);
    options.git = GitOptions {
        lfs: true,
        submodules: true,
        ..GitOptions::default()
    };
    let workspace = fetched(&url, &options).await.unwrap();
    for path in ["large.bin", "again/large.bin"] {
        assert!(
            std::fs::read(workspace.root.join(path)).unwrap() == large,
            "{path}"
        );
    }
    for (path, content) in [
        ("small.bin", "small"),
        ("link.bin", "small"),
        ("not-a-pointer.bin", "plain"),
        ("no-attribute.txt", &pointer),
        ("lib/lib.bin", "small"),
    ] {
        assert_eq!(read(&workspace, path), content, "{path}");
    }
    assert!(workspace.root.join("link.bin").is_symlink());
    for (path, program) in [("large.bin", true), ("again/large.bin", false)] {
        let mode = workspace
            .root
            .join(path)
            .metadata()
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o111 != 0, program, "{path}: {mode:o}");
    }
    assert_eq!(files_with(folder.path(), TOKEN), Vec::<PathBuf>::new());
    let downloads = server.requests();
    let of_large = downloads
        .iter()
        .filter(|request| request.path.ends_with(&oid));
    assert_eq!(of_large.count(), 1, "one object is downloaded once");
    drop(workspace);

    // Another object than the pointer's, of the same length; a longer one; none.
    let object = repositories.root().join("lfs-objects").join(&oid);
    let mut wrong = large.clone();
    wrong[17] ^= 1;
    let longer = [&large[..], b"x"].concat();
    for (content, expected) in [
        (Some(wrong), "and its pointer says sha256:"),
        (
            Some(longer),
            "it has more than the 3000000 bytes of its pointer",
        ),
        (Some(large[1..].to_vec()), "it has 2999999 bytes"),
        (None, "the server says: 404 Object does not exist"),
    ] {
        match content {
            Some(content) => std::fs::write(&object, content).unwrap(),
            None => std::fs::remove_file(&object).unwrap(),
        }
        let error = said(&fetched(&url, &options).await.unwrap_err());
        assert!(
            error.contains(expected) && error.contains("large.bin`"),
            "{error}"
        );
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            0,
            "it is removed"
        );
    }
    // More than may be downloaded is not begun.
    options.limits.download_bytes = 1_000_000;
    let error = fetched(&url, &options).await.unwrap_err();
    assert!(matches!(error, SourceError::TooLarge { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_git_lfs_server_leads_nowhere_it_should_not() {
    let repositories = Repositories::default();
    repositories.create("app");
    let (oid, pointer) = add_object(&repositories, b"content");
    let attributes = "*.bin filter=lfs\n";
    repositories.commit(
        "app",
        &[(".gitattributes", attributes), ("a.bin", &pointer)],
    );
    let server = HttpGit::start(&repositories.root(), Some(("ci", TOKEN)));
    let elsewhere = HttpGit::start(&repositories.root(), None);
    let (_folder, mut options) = options();
    options.git_credentials.push(token("127.0.0.1"));
    options.git.lfs = true;

    // To another host: without our login, with what the server gave for it.
    let there = format!(
        "http://localhost:{}",
        elsewhere.address().split_once(':').unwrap().1
    );
    let link = json!({
        "href": format!("{there}/lfs-objects/{oid}"),
        "header": { "Authorization": "Bearer for-this-download", "X-Mine": "yes" },
    });
    server.answer_downloads_with(link);
    let workspace = fetched(&server.url("app"), &options).await.unwrap();
    assert_eq!(read(&workspace, "a.bin"), "content");
    let seen = elsewhere.requests();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].headers["authorization"], "Bearer for-this-download");
    assert_eq!(seen[0].headers["x-mine"], "yes");
    server.answer_downloads_with(json!({ "href": format!("{there}/lfs-objects/{oid}") }));
    fetched(&server.url("app"), &options).await.unwrap();
    let seen = elsewhere.requests();
    assert!(!seen[1].headers.contains_key("authorization"), "{seen:?}");

    for (href, expected) in [
        ("file:///etc/passwd", "come over https:// only"),
        ("ftp://example.com/x", "come over https:// only"),
        ("http://example.com/x", "neither encryption"),
        ("not a url", "is not a URL"),
        ("gopher://127.0.0.1/x", "come over https:// only"),
    ] {
        server.answer_downloads_with(json!({ "href": href }));
        let error = said(&fetched(&server.url("app"), &options).await.unwrap_err());
        assert!(
            error.contains(expected) || error.contains("names what is not a URL"),
            "{href}: {error}"
        );
    }
    // The repository itself names a server: by the same rules, without a login that is not its own.
    let name = |url: &str| {
        let config = format!("[lfs]\n\turl = {url}\n[include]\n\tpath = /etc/passwd\n");
        repositories.commit("app", &[(".lfsconfig", &config)]);
    };
    name(&format!("{there}/app.git/info/lfs"));
    let workspace = fetched(&server.url("app"), &options).await.unwrap();
    assert_eq!(read(&workspace, "a.bin"), "content");
    assert!(
        elsewhere
            .requests()
            .iter()
            .skip(2)
            .all(|seen| !seen.headers.contains_key("authorization"))
    );
    for url in [
        "file:///srv/lfs",
        "ssh://-oProxyCommand=x/lfs",
        "http://example.com/lfs",
        "--x",
    ] {
        name(url);
        let error = fetched(&server.url("app"), &options).await.unwrap_err();
        assert!(
            matches!(error, SourceError::Refused { .. } | SourceError::Lfs { .. }),
            "{url}: {error:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn git_lfs_of_a_repository_behind_ssh() {
    let repositories = Repositories::default();
    repositories.create("app");
    let (_, pointer) = add_object(&repositories, b"content");
    repositories.commit(
        "app",
        &[
            (".gitattributes", "*.bin filter=lfs\n"),
            ("a.bin", &pointer),
        ],
    );
    let Some(server) = SshGit::start(&repositories.root()) else {
        return;
    };
    let objects = HttpGit::start(&repositories.root(), Some(("ci", TOKEN)));
    let told = json!({
        "href": format!("{}/info/lfs", objects.url("app")),
        // ci:hunter2-the-token
        "header": { "Authorization": "Basic Y2k6aHVudGVyMi10aGUtdG9rZW4=" },
        "expires_in": 600,
    });
    std::fs::write(
        repositories.root().join("lfs-authenticate.json"),
        told.to_string(),
    )
    .unwrap();
    let (_folder, mut options) = options();
    let login = Secret::new(server.private_key() + &server.known_hosts());
    options
        .ssh_keys
        .extend(SshKey::from_login("127.0.0.1", &login));
    // For the objects themselves, which the server names without a login.
    options.git_credentials.push(token("127.0.0.1"));
    options.git.lfs = true;
    let workspace = fetched(&server.url("app"), &options).await.unwrap();
    assert_eq!(read(&workspace, "a.bin"), "content");
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
        "name: private\ncontext: {url}#main\nsubmodules: true\nregistry: {}\n",
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

/// Commits of one mebibyte each that cannot be compressed.
fn import_history(repositories: &Repositories, commits: u32) -> String {
    const SIZE: usize = 1 << 20;
    let bare = repositories.bare("big");
    let mut child = git_command(&bare)
        .args(["-c", "core.compression=0", "-c", "fastimport.unpackLimit=0"])
        .args(["fast-import", "--quiet", "--depth=0"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = std::io::BufWriter::new(child.stdin.take().unwrap());
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut block = vec![0u8; SIZE];
    for _ in 0..commits {
        for word in block.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        let head =
            "commit refs/heads/main\ncommitter A <a@example.com> 1767225600 +0000\ndata 1\nx\n";
        write!(input, "{head}M 100644 inline file\ndata {SIZE}\n").unwrap();
        input.write_all(&block).unwrap();
        writeln!(input).unwrap();
    }
    input.flush().unwrap();
    drop(input);
    assert!(child.wait().unwrap().success());
    git(&bare, &["rev-parse", "main~100"])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_history_stays_where_it_is() {
    const COMMITS: u32 = 300;
    let repositories = Repositories::default();
    repositories.create("big");
    let old = import_history(&repositories, COMMITS);
    let server = HttpGit::start(&repositories.root(), None);
    let url = format!("{}#main", server.url("big"));
    for commit in [None, Some(&old)] {
        let (_folder, mut options) = options();
        options.git.commit = commit.map(|commit| commit.parse().unwrap());
        let (begun, before) = (Instant::now(), server.sent());
        let workspace = fetched(&url, &options).await.unwrap();
        let (took, sent) = (begun.elapsed(), server.sent() - before);
        assert_eq!(
            std::fs::metadata(workspace.root.join("file"))
                .unwrap()
                .len(),
            1 << 20
        );
        assert!(sent < (2 << 20), "{sent} bytes were sent of {COMMITS} MiB");
        assert!(took < Duration::from_secs(30), "{took:?}");
        assert_eq!(git(&workspace.root, &["rev-list", "--count", "HEAD"]), "1");
    }
}
