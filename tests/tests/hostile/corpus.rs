//! Hostile contexts of runs, each with its expected outcome.

use acrtask_tests::git_server::{Repositories, Request, git};
use serde_json::{Value, json};

use crate::front::Answer;

#[path = "../../../crates/acrtask-source/src/archive/hostile.rs"]
mod archives;

/// Hostile context with its expected outcome.
pub(crate) struct Case {
    pub(crate) name: String,
    /// Context of a run in the form of the API.
    pub(crate) context: Value,
    /// `true` if the context may be fetched, so that its content is tried too.
    pub(crate) fetched: bool,
    /// Expected part of the error or log.
    pub(crate) expected: &'static str,
}

impl Case {
    fn expecting(self, expected: &'static str) -> Self {
        Self { expected, ..self }
    }
}

fn refused(name: impl Into<String>, url: &str) -> Case {
    new_case(name, json!({ "type": "url", "url": url }), false)
}

fn permitted(name: impl Into<String>, url: &str) -> Case {
    new_case(name, json!({ "type": "url", "url": url }), true)
}

fn new_case(name: impl Into<String>, context: Value, fetched: bool) -> Case {
    Case {
        name: name.into(),
        context,
        fetched,
        expected: "",
    }
}

/// Returns all cases. The file `mark` exists once a command of a context has been executed.
pub(crate) fn list_cases(mark: &str, repositories: &Repositories) -> Vec<Case> {
    let mut all = vec![
        permitted("a valid archive", "https://files.hosts.test/good.tar"),
        permitted("a valid repository", "https://git.hosts.test/app.git#main"),
    ];
    all.extend(arguments(mark));
    all.extend(hostile_repositories(mark, repositories));
    let escaping_archives = archives::escaping_archives().into_iter().enumerate();
    all.extend(escaping_archives.map(|(n, (name, _, expected))| {
        let url = format!("https://files.hosts.test/way-out/{n}.tar");
        refused(format!("archive: {name}"), &url).expecting(expected)
    }));
    all.extend(addresses());
    all
}

/// Names that git, ssh or a shell could interpret as an option or a command.
fn arguments(mark: &str) -> Vec<Case> {
    [
        format!("ext::sh -c touch% {mark}"),
        format!("ext::sh -c 'touch {mark}'"),
        "fd::7/app".into(),
        format!("--upload-pack=touch {mark}"),
        format!("--upload-pack=touch${{IFS}}{mark}"),
        format!("-cprotocol.ext.allow=always ext::touch {mark}"),
        format!("ssh://-oProxyCommand=touch%20{mark}/app.git"),
        format!("ssh://git@-oProxyCommand=touch%20{mark}/app.git"),
        format!("-oProxyCommand=touch {mark}:app.git"),
        format!("git@-oProxyCommand=touch${{IFS}}{mark}:app.git"),
        "ssh://git@git.hosts.test/app.git".into(),
        "git@git.hosts.test:app.git".into(),
        "git://git.hosts.test/app.git".into(),
        "http://git.hosts.test/app.git".into(),
        "file:///etc".into(),
        "file:///proc/self/cwd/app.git".into(),
        "/etc".into(),
        "../..".into(),
        format!("https://git.hosts.test/app.git#--upload-pack=touch${{IFS}}{mark}"),
        format!("https://git.hosts.test/app.git#--output={mark}"),
        "https://git.hosts.test/app.git#-f".into(),
        "https://git.hosts.test/app.git#main:../../etc".into(),
        "https://git.hosts.test/app.git#main:-x".into(),
        format!("https://git.hosts.test/app.git#$(touch${{IFS}}{mark})"),
        format!("https://git.hosts.test/app.git#`touch${{IFS}}{mark}`"),
        format!("https://git.hosts.test/app.git#main;touch${{IFS}}{mark}"),
        format!("https://git.hosts.test/app.git#main|touch${{IFS}}{mark}"),
        "https://git.hosts.test/app.git#+refs/heads/*:refs/heads/*".into(),
        "https://git.hosts.test/app.git#@{-1}".into(),
        format!("https://git.hosts.test/$(touch${{IFS}}{mark}).git"),
        "https://git.hosts.test/--upload-pack.git#main".into(),
        "https://git.hosts.test/app.git%0a--upload-pack=x#main".into(),
        "https://git.hosts.test/app.git\n--upload-pack=x".into(),
        "oci://-x/app".into(),
    ]
    .iter()
    .map(|url| refused(format!("{url:?}"), url))
    .collect()
}

/// Repositories with files that try to execute a command or to reach an address.
fn hostile_repositories(mark: &str, repositories: &Repositories) -> Vec<Case> {
    repositories.create("app");
    let commit = repositories.commit("app", &[("src/file", "first\n")]);
    let bare = repositories.bare_path("app").display().to_string();
    let mut all = Vec::new();
    let modules = [
        ("ext", format!("ext::sh -c \"touch {mark}\""), false),
        ("file", format!("file://{bare}"), false),
        ("path", bare, false),
        ("option", format!("--upload-pack=touch {mark}"), false),
        (
            "ssh",
            format!("ssh://-oProxyCommand=touch%20{mark}/app.git"),
            false,
        ),
        ("metadata", "http://169.254.169.254/app.git".into(), false),
        (
            "private",
            "https://private-0.hosts.test/app.git".into(),
            false,
        ),
        (
            "flip",
            "https://flip-module.hosts.test/app.git".into(),
            true,
        ),
    ];
    for (name, url, permitted) in modules {
        let repository = format!("module-{name}");
        repositories.create(&repository);
        let path = if name == "up" { "../up" } else { "m" };
        let text = format!(
            "[submodule \"m\"]\n\tpath = {path}\n\turl = {url}\n\tupdate = !touch {mark}\n\
             [submodule \"hooks\"]\n\tpath = .git/hooks\n\turl = {url}\n"
        );
        let work = repositories.work_path(&repository);
        std::fs::write(work.join(".gitmodules"), text).unwrap();
        git(&work, &["add", "--all"]);
        let link = format!("160000,{commit},m");
        git(&work, &["update-index", "--add", "--cacheinfo", &link]);
        git(&work, &["commit", "--quiet", "--message", "module"]);
        git(&work, &["push", "--quiet", "origin", "HEAD"]);
        let url = format!("https://git.hosts.test/{repository}.git#main");
        let context = json!({ "type": "url", "url": url, "submodules": true });
        all.push(new_case(repository, context, permitted));
    }
    for (name, url) in [
        ("private", "https://private-1.hosts.test/lfs"),
        ("here", "http://127.0.0.1/lfs"),
        ("file", "file:///etc"),
        ("ssh", "ssh://-oProxyCommand=x/lfs"),
    ] {
        let repository = format!("lfs-{name}");
        repositories.create(&repository);
        let pointer = format!(
            "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 5\n",
            "0".repeat(64)
        );
        repositories.commit(
            &repository,
            &[
                (".lfsconfig", &format!("[lfs]\n\turl = {url}\n")),
                (
                    ".gitattributes",
                    "large filter=lfs diff=lfs merge=lfs -text\n",
                ),
                ("large", &pointer),
            ],
        );
        let url = format!("https://git.hosts.test/{repository}.git#main");
        let context = json!({ "type": "url", "url": url, "lfs": true });
        all.push(new_case(repository, context, false));
    }
    repositories.create("hooks");
    let command = format!("#!/bin/sh\ntouch {mark}\n");
    repositories.commit(
        "hooks",
        &[
            (".gitattributes", "* filter=evil diff=evil merge=evil\n"),
            (
                ".gitconfig",
                &format!("[filter \"evil\"]\n\tsmudge = touch {mark}\n"),
            ),
            ("hooks/post-checkout", &command),
            (".githooks/post-checkout", &command),
        ],
    );
    all.push(permitted(
        "hooks and filters",
        "https://git.hosts.test/hooks.git#main",
    ));
    repositories.create("links");
    let work = repositories.work_path("links");
    std::os::unix::fs::symlink("/etc/passwd", work.join("acr-task.yaml")).unwrap();
    std::os::unix::fs::symlink("/etc", work.join("folder")).unwrap();
    repositories.commit("links", &[]);
    all.push(permitted(
        "a task file that is a link",
        "https://git.hosts.test/links.git#main",
    ));
    all.push(refused(
        "a folder that is a link",
        "https://git.hosts.test/links.git#main:folder",
    ));
    all
}

/// Names and redirects that lead to this machine or its network.
fn addresses() -> Vec<Case> {
    const PRIVATE: &str = "is not a public address";
    let mut all = Vec::new();
    for host in [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "localhost",
        "10.1.2.3",
        "169.254.169.254",
        "[::ffff:169.254.169.254]",
        "private-0.hosts.test",
        "private-1.hosts.test",
        "private-2.hosts.test",
        "both.hosts.test",
    ] {
        for (what, url) in [
            ("archive at", format!("https://{host}/good.tar")),
            ("repository at", format!("https://{host}/app.git")),
            (
                "redirect to",
                format!("https://files.hosts.test/to/https/{host}"),
            ),
        ] {
            let is_local = host == "localhost" && what == "archive at";
            let expected = if is_local {
                "it is on this machine"
            } else {
                PRIVATE
            };
            all.push(refused(format!("{what} {host}"), &url).expecting(expected));
        }
    }
    for (n, to) in [
        "http/127.0.0.1",
        "http/169.254.169.254",
        "http/files.hosts.test",
        "file/",
        "ftp/files.hosts.test",
        "git/git.hosts.test",
    ]
    .into_iter()
    .enumerate()
    {
        all.push(
            refused(
                format!("redirect {n} to {to}"),
                &format!("https://files.hosts.test/to/{to}"),
            )
            .expecting("cannot download https://files.hosts.test"),
        );
    }
    all.push(
        refused(
            "redirect in a circle",
            "https://files.hosts.test/to/https/files.hosts.test",
        )
        .expecting("more than 5 redirects"),
    );
    all.push(
        refused(
            "repository that redirects",
            "https://moved.hosts.test/app.git#main",
        )
        .expecting(PRIVATE),
    );
    all.push(
        refused(
            "artifact at a private name",
            "oci://private-0.hosts.test:5000/app:1",
        )
        .expecting(PRIVATE),
    );
    all.push(refused("artifact at an address", "oci://169.254.169.254/app:1").expecting(PRIVATE));
    // A name whose second resolution is this machine. A single connection is fine, and so is what
    // git requests after the check.
    all.push(permitted(
        "archive at a name that flips",
        "https://flip-one.hosts.test/good.tar",
    ));
    all.push(permitted(
        "repository at a name that flips",
        "https://flip-git.hosts.test/app.git#main",
    ));
    all.push(
        refused(
            "a name that flips between a redirect and its end",
            "https://flip-two.hosts.test/again",
        )
        .expecting(PRIVATE),
    );
    all
}

/// Returns the responses of the servers on the simulated internet.
pub(crate) fn internet(
    git: std::net::SocketAddr,
) -> impl Fn(&str, &Request) -> Answer + Send + Sync {
    let escaping_archives: Vec<Vec<u8>> = archives::escaping_archives()
        .into_iter()
        .map(|(_, bytes, _)| bytes)
        .collect();
    move |host, request| {
        let host = host.split(':').next().unwrap_or_default();
        let parts: Vec<&str> = request.path.trim_matches('/').split('/').collect();
        match parts.as_slice() {
            _ if host == "moved.hosts.test" => Answer::Redirect(format!(
                "https://private-0.hosts.test{}?{}",
                request.path, request.query
            )),
            ["good.tar"] => {
                Answer::Bytes(archives::Tar::default().file("src/file", "first\n").end())
            }
            ["way-out", name] => {
                let n = name.trim_end_matches(".tar").parse::<usize>();
                n.ok()
                    .and_then(|n| escaping_archives.get(n))
                    .map_or(Answer::NotFound, |bytes| Answer::Bytes(bytes.clone()))
            }
            ["again"] => Answer::Redirect(format!("https://{host}/good.tar")),
            ["to", "file"] => Answer::Redirect("file:///etc/passwd".into()),
            ["to", "https", "files.hosts.test"] => {
                Answer::Redirect("https://files.hosts.test/to/https/files.hosts.test".into())
            }
            ["to", scheme, to] => Answer::Redirect(format!("{scheme}://{to}/good.tar")),
            _ => Answer::From(git),
        }
    }
}
