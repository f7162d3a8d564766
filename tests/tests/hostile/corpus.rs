//! The hostile inputs: what each of them is, and whether its files may be fetched at all.

use acrtask_tests::git_server::{Repositories, Request, git};
use serde_json::{Value, json};

use crate::front::Answer;

#[path = "../../../crates/acrtask-source/src/archive/hostile.rs"]
mod archives;

/// One input.
pub(crate) struct Case {
    pub(crate) name: String,
    /// The context of a run, as the API has it.
    pub(crate) context: Value,
    /// Whether its files may come, so that what they hold is tried too.
    pub(crate) comes: bool,
    /// Words of why they do not.
    pub(crate) says: &'static str,
}

impl Case {
    fn saying(self, says: &'static str) -> Self {
        Self { says, ..self }
    }
}

fn refused(name: impl Into<String>, url: &str) -> Case {
    case(name, json!({ "from": "url", "url": url }), false)
}

fn comes(name: impl Into<String>, url: &str) -> Case {
    case(name, json!({ "from": "url", "url": url }), true)
}

fn case(name: impl Into<String>, context: Value, comes: bool) -> Case {
    Case {
        name: name.into(),
        context,
        comes,
        says: "",
    }
}

/// All of them. `mark` is a file that is there once somebody has run a command of theirs.
pub(crate) fn cases(mark: &str, repositories: &Repositories) -> Vec<Case> {
    let mut all = vec![
        comes(
            "an archive that is as it should be",
            "https://files.hosts.test/good.tar",
        ),
        comes(
            "a repository that is as it should be",
            "https://git.hosts.test/app.git#main",
        ),
    ];
    all.extend(arguments(mark));
    all.extend(hostile_repositories(mark, repositories));
    let ways_out = archives::ways_out().into_iter().enumerate();
    all.extend(ways_out.map(|(n, (name, _, says))| {
        let url = format!("https://files.hosts.test/way-out/{n}.tar");
        refused(format!("archive: {name}"), &url).saying(says)
    }));
    all.extend(addresses());
    all
}

/// What git, ssh or a shell could take for something else than a name.
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

/// Repositories whose files want something to happen.
fn hostile_repositories(mark: &str, repositories: &Repositories) -> Vec<Case> {
    repositories.create("app");
    let commit = repositories.commit("app", &[("src/file", "first\n")]);
    let bare = repositories.bare("app").display().to_string();
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
    for (name, url, may_come) in modules {
        let repository = format!("module-{name}");
        repositories.create(&repository);
        let path = if name == "up" { "../up" } else { "m" };
        let text = format!(
            "[submodule \"m\"]\n\tpath = {path}\n\turl = {url}\n\tupdate = !touch {mark}\n\
             [submodule \"hooks\"]\n\tpath = .git/hooks\n\turl = {url}\n"
        );
        let work = repositories.work(&repository);
        std::fs::write(work.join(".gitmodules"), text).unwrap();
        git(&work, &["add", "--all"]);
        let link = format!("160000,{commit},m");
        git(&work, &["update-index", "--add", "--cacheinfo", &link]);
        git(&work, &["commit", "--quiet", "--message", "module"]);
        git(&work, &["push", "--quiet", "origin", "HEAD"]);
        let url = format!("https://git.hosts.test/{repository}.git#main");
        let context = json!({ "from": "url", "url": url, "submodules": true });
        all.push(case(repository, context, may_come));
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
        let context = json!({ "from": "url", "url": url, "lfs": true });
        all.push(case(repository, context, false));
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
    all.push(comes(
        "hooks and filters",
        "https://git.hosts.test/hooks.git#main",
    ));
    repositories.create("links");
    let work = repositories.work("links");
    std::os::unix::fs::symlink("/etc/passwd", work.join("acr-task.yaml")).unwrap();
    std::os::unix::fs::symlink("/etc", work.join("folder")).unwrap();
    repositories.commit("links", &[]);
    all.push(comes(
        "a task file that is a link",
        "https://git.hosts.test/links.git#main",
    ));
    all.push(refused(
        "a folder that is a link",
        "https://git.hosts.test/links.git#main:folder",
    ));
    all
}

/// Where a name or a redirect leads to this machine or its network.
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
            let here = host == "localhost" && what == "archive at";
            let says = if here {
                "it is on this machine"
            } else {
                PRIVATE
            };
            all.push(refused(format!("{what} {host}"), &url).saying(says));
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
            .saying("cannot download https://files.hosts.test"),
        );
    }
    all.push(
        refused(
            "redirect in a circle",
            "https://files.hosts.test/to/https/files.hosts.test",
        )
        .saying("more than 5 redirects"),
    );
    all.push(
        refused(
            "repository that redirects",
            "https://moved.hosts.test/app.git#main",
        )
        .saying(PRIVATE),
    );
    all.push(
        refused(
            "artifact at a private name",
            "oci://private-0.hosts.test:5000/app:1",
        )
        .saying(PRIVATE),
    );
    all.push(refused("artifact at an address", "oci://169.254.169.254/app:1").saying(PRIVATE));
    // A name whose second answer is this machine: one connection is fine, and so is what git asks for after the check.
    all.push(comes(
        "archive at a name that flips",
        "https://flip-one.hosts.test/good.tar",
    ));
    all.push(comes(
        "repository at a name that flips",
        "https://flip-git.hosts.test/app.git#main",
    ));
    all.push(
        refused(
            "a name that flips between a redirect and its end",
            "https://flip-two.hosts.test/again",
        )
        .saying(PRIVATE),
    );
    all
}

/// What the servers of the internet answer.
pub(crate) fn site(git: std::net::SocketAddr) -> impl Fn(&str, &Request) -> Answer + Send + Sync {
    let ways_out: Vec<Vec<u8>> = archives::ways_out()
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
                    .and_then(|n| ways_out.get(n))
                    .map_or(Answer::Nothing, |bytes| Answer::Bytes(bytes.clone()))
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
