//! Submodules, and theirs: each a repository of its own, checked out without `git submodule`, which would take URLs and
//! commands from files of the repository.
//!
//! Only the path, the URL and the commit of a submodule count. The URL is held to the rules of the context's own; of
//! passwords and keys it gets those of its own host. What was part of the context's URL goes on to the same scheme, host
//! and port alone.

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

use url::Url;

use super::Git;
use crate::{
    CommitId, Options, Progress,
    error::SourceError,
    lfs, paths,
    spec::{GitTransport, GitUrl},
};

/// Submodules of one context, all of them together.
const MAX_SUBMODULES: usize = 200;
/// Submodules inside of each other.
const MAX_DEPTH: usize = 8;

/// Checks out the submodules of what `git` has checked out.
pub(super) async fn check_out(
    git: Git,
    scratch: &Path,
    taken: &mut lfs::Taken,
    options: &Options,
) -> Result<(), SourceError> {
    let mut todo = vec![(git, 0)];
    let mut count = 0;
    while let Some((parent, depth)) = todo.pop() {
        let modules = modules(&parent).await?;
        report_unnamed(&parent, &modules, options).await;
        for module in modules {
            let Module {
                path,
                url: address,
                is_skipped,
            } = module;
            if is_skipped {
                continue;
            }
            let Some(id) = parent.submodule_commit(&path).await? else {
                continue;
            };
            count += 1;
            let refused = |reason: String, help: &str| SourceError::Submodule {
                url: parent.url.url.clone(),
                path: path.clone(),
                reason,
                help: help.into(),
            };
            if count > MAX_SUBMODULES || depth >= MAX_DEPTH {
                return Err(refused(
                    format!(
                        "there are more than {MAX_SUBMODULES} submodules, or more than {MAX_DEPTH} inside of each other"
                    ),
                    "take fewer submodules in",
                ));
            }
            let commit: CommitId = id
                .parse()
                .map_err(|_| refused("git does not name its commit".into(), "commit it again"))?;
            let address = address.ok_or_else(|| {
                refused(
                    "`.gitmodules` has no `url` for it".into(),
                    "write its `url`, or `update = none` where it is not needed",
                )
            })?;
            let url = url(&parent.url, &address).map_err(|(reason, help)| {
                refused(format!("its URL is refused: {reason}"), &help)
            })?;
            let tree = folder(&parent.tree, &path).ok_or_else(|| {
                refused("there is no empty folder for it".into(), "commit it again")
            })?;
            let inside = |source| SourceError::InSubmodule {
                url: parent.url.url.clone(),
                path: path.clone(),
                source: Box::new(source),
            };
            let fetching = async {
                let (child, _) = Git::fetched(&url, tree, scratch, Some(&commit), options).await?;
                if options.git.lfs {
                    lfs::check_out(&child, scratch, taken, options).await?;
                } else {
                    lfs::report_left_out(&child, options).await;
                }
                Ok(child)
            };
            let child = fetching.await.map_err(inside)?;
            todo.push((child, depth + 1));
        }
    }
    Ok(())
}

/// Reports the submodules of the commit that `.gitmodules` does not name, as `git submodule status` does.
async fn report_unnamed(git: &Git, named: &[Module], options: &Options) {
    let args = ["ls-files", "--stage", "-z"];
    let listed = match git.must("list the files of", &args).await {
        Ok(output) => output.stdout,
        Err(error) => {
            // The files are there without the list.
            tracing::debug!(%error, "cannot list the submodules");
            return;
        }
    };
    let unnamed = unnamed(&String::from_utf8_lossy(&listed), named);
    if !unnamed.is_empty() {
        options.report(Progress::Started(format!(
            "warning: no submodule mapping found in .gitmodules of {} for {}, which stays empty; add its path and url \
             there, or remove it with `git rm --cached`",
            git.url.url,
            names(&unnamed)
        )));
    }
}

/// Returns the paths of submodules in the output of `git ls-files --stage -z` that are not `named`.
fn unnamed(listed: &str, named: &[Module]) -> Vec<String> {
    let paths = listed.split('\0').filter_map(|line| {
        let (object, path) = line.split_once('\t')?;
        object.starts_with("160000 ").then_some(path)
    });
    let is_named = |path: &str| named.iter().any(|module| module.path == path);
    paths
        .filter(|path| !is_named(path))
        .map(str::to_owned)
        .collect()
}

/// Most names that a message has.
const MAX_NAMES: usize = 5;

/// Reports the submodules that are not checked out.
pub(super) async fn report_left_out(git: &Git, options: &Options) -> Result<(), SourceError> {
    let mut left_out = Vec::new();
    let modules = modules(git).await?;
    report_unnamed(git, &modules, options).await;
    let wanted = modules.into_iter().filter(|module| !module.is_skipped);
    for module in wanted.take(MAX_SUBMODULES) {
        if git.submodule_commit(&module.path).await?.is_some() {
            left_out.push(module.path);
        }
    }
    if !left_out.is_empty() {
        options.report(Progress::Started(format!(
            "warning: the submodules of {} are left out: {}; `--submodules`, or `submodules: true` in the task, takes \
             them in",
            git.url.url,
            names(&left_out)
        )));
    }
    Ok(())
}

/// The first few of several names.
pub(crate) fn names(all: &[String]) -> String {
    let shown = all.iter().take(MAX_NAMES).map(String::as_str);
    let shown = shown.collect::<Vec<_>>().join(", ");
    match all.len().saturating_sub(MAX_NAMES) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// A submodule, as `.gitmodules` of the commit has it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Module {
    path: String,
    url: Option<String>,
    /// Submodule with `update = none`.
    is_skipped: bool,
}

/// Reads the submodules that `.gitmodules` names.
async fn modules(git: &Git) -> Result<Vec<Module>, SourceError> {
    let pairs = git
        .configuration(".gitmodules", r"^submodule\..+\.(path|url|update)$")
        .await?;
    Ok(modules_of(pairs))
}

/// Reads the entries of `.gitmodules`. The last value of a key counts, as for git.
fn modules_of(pairs: Vec<(String, String)>) -> Vec<Module> {
    let mut found: BTreeMap<String, Module> = BTreeMap::new();
    for (key, value) in pairs {
        let Some((name, what)) = key.rsplit_once('.') else {
            continue;
        };
        let module = found.entry(name.to_owned()).or_default();
        match what {
            "path" => module.path = value,
            "update" => module.is_skipped = value == "none",
            _ => module.url = Some(value),
        }
    }
    let found = found.into_values();
    found.filter(|module| !module.path.is_empty()).collect()
}

/// The empty folder that git made for a submodule.
fn folder(root: &Path, path: &str) -> Option<PathBuf> {
    let relative = Path::new(path);
    let harmless = relative.components().all(|part| match part {
        Component::Normal(name) => !name.eq_ignore_ascii_case(".git"),
        _ => false,
    });
    if !harmless {
        return None;
    }
    // No link is on the way to it.
    let found = paths::inside(root, relative).ok()?;
    let is_it = found == root.join(relative) && found.symlink_metadata().ok()?.is_dir();
    let empty = std::fs::read_dir(&found).ok()?.next().is_none();
    (is_it && empty).then_some(found)
}

/// What a submodule's URL means in a repository that is at `parent`.
fn url(parent: &GitUrl, text: &str) -> Result<GitUrl, (String, String)> {
    let relative = text.starts_with("./") || text.starts_with("../");
    let full = if relative {
        resolved(&parent.url, text).ok_or_else(|| {
            (
                format!("`{text}` leads out of {}", parent.url),
                "write a URL that stays on the host, or a full one".to_owned(),
            )
        })?
    } else {
        text.to_owned()
    };
    let mut url = GitUrl::of_remote(&full)?;
    if url.transport == GitTransport::File && !(relative && parent.transport == GitTransport::File)
    {
        return Err((
            "it is a path of this machine".into(),
            "write a full https:// or ssh:// URL, or one relative to the repository".into(),
        ));
    }
    if url.credential.is_none() && same_place(&url, parent) {
        url.credential.clone_from(&parent.credential);
    }
    Ok(url)
}

fn same_place(one: &GitUrl, other: &GitUrl) -> bool {
    match (Url::parse(&one.url), Url::parse(&other.url)) {
        (Ok(one), Ok(other)) => one.origin().is_tuple() && one.origin() == other.origin(),
        _ => false,
    }
}

/// `relative`, from `base` on, as git resolves it; nothing where that leads above the host's root.
///
/// Source: gitmodules(5), git's `relative_url`.
fn resolved(base: &str, relative: &str) -> Option<String> {
    // Where the path begins.
    let (floor, scp) = match base.find("://") {
        Some(at) => (at + 3 + base[at + 3..].find('/')?, false),
        None => (base.find(':')? + 1, true),
    };
    let mut base = base.trim_end_matches('/');
    let mut rest = relative;
    loop {
        if let Some(after) = rest.strip_prefix("./") {
            rest = after;
        } else if let Some(after) = rest.strip_prefix("../") {
            rest = after;
            let path = base.get(floor..)?;
            base = match path.rfind('/') {
                Some(at) => &base[..floor + at],
                None if scp && !path.is_empty() => &base[..floor],
                None => return None,
            };
        } else {
            break;
        }
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return None;
    }
    Some(match scp && base.len() == floor {
        true => format!("{base}{rest}"),
        false => format!("{base}/{rest}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ContextSpec;

    fn at(text: &str) -> GitUrl {
        match ContextSpec::parse(text) {
            Ok(ContextSpec::Git(url)) => url,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn relative_urls_stay_on_the_host() {
        let (https, scp) = ("https://h.example/org/app.git", "git@h.example:org/app.git");
        for (parent, text, expected) in [
            (https, "../lib.git", "https://h.example/org/lib.git"),
            (https, "../lib", "https://h.example/org/lib"),
            (https, "./lib", "https://h.example/org/app.git/lib"),
            (https, "../../other/lib", "https://h.example/other/lib"),
            (https, "../lib.git/", "https://h.example/org/lib.git"),
            (https, "./lib/", "https://h.example/org/app.git/lib"),
            (scp, "../lib.git/", "git@h.example:org/lib.git"),
            (scp, "../lib.git", "git@h.example:org/lib.git"),
            (scp, "../../other/lib", "git@h.example:other/lib"),
            (
                "ssh://git@h.example:2222/o/a",
                "../b",
                "ssh://git@h.example:2222/o/b",
            ),
            ("file:///srv/a.git", "../b.git", "file:///srv/b.git"),
            (https, "https://x.example/lib", "https://x.example/lib"),
            (https, "git@x.example:lib", "git@x.example:lib"),
        ] {
            assert_eq!(
                url(&at(parent), text).unwrap().url,
                expected,
                "{parent} {text}"
            );
        }
    }

    #[test]
    fn modules_that_are_not_to_be_checked_out_are_skipped() {
        let pair = |key: &str, value: &str| (format!("submodule.{key}"), value.to_owned());
        let found = modules_of(vec![
            pair("lib.path", "sub/lib"),
            pair("lib.url", "../lib.git"),
            pair("docs.v2.path", "docs"),
            pair("docs.v2.url", "../docs.git"),
            pair("docs.v2.update", "none"),
            pair("bare.path", "bare"),
            pair("bare.update", "checkout"),
            pair("nowhere.url", "../x.git"),
            pair("again.path", "again"),
            pair("again.update", "none"),
            pair("again.update", "rebase"),
        ]);
        let read: Vec<_> = found
            .iter()
            .map(|module| {
                (
                    module.path.as_str(),
                    module.url.as_deref(),
                    module.is_skipped,
                )
            })
            .collect();
        assert_eq!(
            read,
            [
                ("again", None, false),
                ("bare", None, false),
                ("docs", Some("../docs.git"), true),
                ("sub/lib", Some("../lib.git"), false)
            ]
        );
        let id = "0".repeat(40);
        let listed = format!(
            "160000 {id} 0\tdocs\x00100644 {id} 0\tfile\x00160000 {id} 0\tvendor/a b\x00160000 {id} 0\tsub/lib\0"
        );
        assert_eq!(unnamed(&listed, &found), ["vendor/a b"]);
    }

    #[test]
    fn a_message_names_a_few() {
        let all: Vec<String> = (1..=7).map(|n| format!("m{n}")).collect();
        assert_eq!(names(&all[..2]), "m1, m2");
        assert_eq!(names(&all), "m1, m2, m3, m4, m5 and 2 more");
    }

    /// The attacks on submodules that git had to be changed for, and the hostile texts of contexts.
    #[test]
    fn hostile_urls_are_refused() {
        let https = at("https://h.example/org/app.git");
        for text in [
            "../../../x",
            "../../../../evil.example/x",
            "../lib/../../../../x",
            "./",
            "../",
            "../lib//",
            "../lib/../",
            "..//lib",
            "/etc",
            "lib",
            "file:///etc",
            "-u./payload",
            "--upload-pack=touch x",
            "ext::sh -c touch% x",
            "fd::17/x",
            "https::evil",
            "transport::https://example.com/a",
            "ssh://-oProxyCommand=touch/x",
            "git@-oProxyCommand=x:a",
            "-oProxyCommand=x@h:a",
            "https://h.example/a\nurl = x",
            "../a\n../b",
            "https://h.example/a.git#main",
            "https://h.example/a.git?x",
            "ftp://h.example/a",
            "http://",
            "$(touch x)",
            "",
        ] {
            let got = url(&https, text);
            assert!(got.is_err(), "{text:?} became {got:?}");
        }
        // Of a repository of this machine only what lies beside it.
        let file = at("file:///srv/a.git");
        assert!(url(&file, "file:///root/secret.git").is_err());
    }

    #[test]
    fn what_opened_the_context_goes_to_its_own_host_alone() {
        let parent = at("https://me:hunter2@h.example/org/app.git");
        for (text, gets) in [
            ("../lib.git", true),
            ("https://h.example/x/y", true),
            ("https://h.example:8443/x/y", false),
            ("http://h.example/x/y", false),
            ("https://evil.example/x/y", false),
            ("https://h.example.evil.example/x/y", false),
        ] {
            assert_eq!(
                url(&parent, text).unwrap().credential.is_some(),
                gets,
                "{text}"
            );
        }
    }

    #[test]
    fn a_submodule_has_an_empty_folder_of_its_own() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("a/empty")).unwrap();
        std::fs::create_dir(root.join(".git")).unwrap();
        std::os::unix::fs::symlink("a/empty", root.join("link")).unwrap();
        std::os::unix::fs::symlink("/tmp", root.join("out")).unwrap();
        for (path, good) in [
            ("a/empty", true),
            ("a", false),
            ("link", false),
            ("out", false),
            ("out/x", false),
            (".git", false),
            (".GIT", false),
            ("a/.git", false),
            ("../x", false),
            ("/tmp", false),
            ("none", false),
            ("", false),
        ] {
            assert_eq!(folder(&root, path).is_some(), good, "{path:?}");
        }
    }
}
