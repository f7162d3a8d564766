//! Nested submodules. Each one is a separate repository, checked out without `git submodule`, which
//! would take URLs and commands from files of the repository.
//!
//! Only the path, the URL and the commit of a submodule count. The URL must satisfy the policy of
//! the context. A submodule receives the passwords and keys of its own host only. The login in the
//! context's URL applies only to the same scheme, host and port.

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

/// Maximum number of submodules of one context, including nested ones.
const MAX_SUBMODULES: usize = 200;
/// Maximum nesting depth of submodules.
const MAX_DEPTH: usize = 8;

/// Checks out the submodules of the commit that `git` has checked out.
pub(super) async fn check_out(
    git: Git,
    scratch: &Path,
    usage: &mut lfs::Usage,
    options: &Options,
) -> Result<(), SourceError> {
    let mut todo = vec![(git, 0)];
    let mut count = 0;
    while let Some((parent, depth)) = todo.pop() {
        let modules = list_submodules(&parent).await?;
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
                    "use fewer submodules",
                ));
            }
            let commit: CommitId = id.parse().map_err(|_| {
                refused(
                    "its commit is not a full commit name".into(),
                    "commit it again",
                )
            })?;
            let address = address.ok_or_else(|| {
                refused(
                    "`.gitmodules` has no `url` for it".into(),
                    "write its `url`, or `update = none` where it is not needed",
                )
            })?;
            let url = resolve_url(&parent.url, &address).map_err(|(reason, help)| {
                refused(format!("its URL is refused: {reason}"), &help)
            })?;
            let tree = empty_folder(&parent.tree, &path).ok_or_else(|| {
                refused(
                    "the commit has no empty folder for it".into(),
                    "commit it again",
                )
            })?;
            let inside = |source| SourceError::InSubmodule {
                url: parent.url.url.clone(),
                path: path.clone(),
                source: Box::new(source),
            };
            let fetching = async {
                let (child, _) =
                    Git::fetch_into(&url, tree, scratch, Some(&commit), options).await?;
                if options.git.lfs {
                    lfs::check_out(&child, scratch, usage, options).await?;
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

/// Reports the submodules of the commit that are missing in `.gitmodules`, as `git submodule
/// status` does.
async fn report_unnamed(git: &Git, named: &[Module], options: &Options) {
    let args = ["ls-files", "--stage", "-z"];
    let listed = match git.run_checked("list the files of", &args).await {
        Ok(output) => output.stdout,
        Err(error) => {
            // The checkout is complete without this list.
            tracing::debug!(%error, "cannot list the submodules");
            return;
        }
    };
    let unnamed = find_unnamed(&String::from_utf8_lossy(&listed), named);
    if !unnamed.is_empty() {
        options.report(Progress::Started(format!(
            "warning: no submodule mapping found in .gitmodules of {} for {}, which stays empty; add its path and url \
             there, or remove it with `git rm --cached`",
            git.url.url,
            join_names(&unnamed)
        )));
    }
}

/// Returns the paths of submodules in the output of `git ls-files --stage -z` that are not in
/// `named`.
fn find_unnamed(listed: &str, named: &[Module]) -> Vec<String> {
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

/// Maximum number of names in a message.
const MAX_NAMES: usize = 5;

/// Reports the submodules that are not checked out.
pub(super) async fn report_left_out(git: &Git, options: &Options) -> Result<(), SourceError> {
    let mut left_out = Vec::new();
    let modules = list_submodules(git).await?;
    report_unnamed(git, &modules, options).await;
    let wanted = modules.into_iter().filter(|module| !module.is_skipped);
    for module in wanted.take(MAX_SUBMODULES) {
        if git.submodule_commit(&module.path).await?.is_some() {
            left_out.push(module.path);
        }
    }
    if !left_out.is_empty() {
        options.report(Progress::Started(format!(
            "warning: the submodules of {} are left out: {}; `--submodules`, or `submodules: true` in the task, checks \
             them out",
            git.url.url,
            join_names(&left_out)
        )));
    }
    Ok(())
}

/// Joins the first few names for a message.
pub(crate) fn join_names(all: &[String]) -> String {
    let shown = all.iter().take(MAX_NAMES).map(String::as_str);
    let shown = shown.collect::<Vec<_>>().join(", ");
    match all.len().saturating_sub(MAX_NAMES) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Submodule from the `.gitmodules` file of the commit.
#[derive(Debug, Default, PartialEq, Eq)]
struct Module {
    path: String,
    url: Option<String>,
    /// `true` for a submodule with `update = none`.
    is_skipped: bool,
}

/// Reads the submodules from `.gitmodules`.
async fn list_submodules(git: &Git) -> Result<Vec<Module>, SourceError> {
    let pairs = git
        .read_configuration(".gitmodules", r"^submodule\..+\.(path|url|update)$")
        .await?;
    Ok(parse_modules(pairs))
}

/// Parses the entries of `.gitmodules`. The last value of a key counts, as for git.
fn parse_modules(pairs: Vec<(String, String)>) -> Vec<Module> {
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

/// Returns the empty folder that git created for a submodule.
fn empty_folder(root: &Path, path: &str) -> Option<PathBuf> {
    let relative = Path::new(path);
    let harmless = relative.components().all(|part| match part {
        Component::Normal(name) => !name.eq_ignore_ascii_case(".git"),
        _ => false,
    });
    if !harmless {
        return None;
    }
    // The path to it contains no link.
    let found = paths::resolve_inside(root, relative).ok()?;
    let is_it = found == root.join(relative) && found.symlink_metadata().ok()?.is_dir();
    let empty = std::fs::read_dir(&found).ok()?.next().is_none();
    (is_it && empty).then_some(found)
}

/// Resolves the URL of a submodule in the repository `parent`.
fn resolve_url(parent: &GitUrl, text: &str) -> Result<GitUrl, (String, String)> {
    let relative = text.starts_with("./") || text.starts_with("../");
    let full = if relative {
        join_relative(&parent.url, text).ok_or_else(|| {
            (
                format!("`{text}` leads out of {}", parent.url),
                "write a URL that stays on the host, or a full one".to_owned(),
            )
        })?
    } else {
        text.to_owned()
    };
    let mut url = GitUrl::parse_remote_url(&full)?;
    if url.transport == GitTransport::File && !(relative && parent.transport == GitTransport::File)
    {
        return Err((
            "it is a path of this machine".into(),
            "write a full https:// or ssh:// URL, or one relative to the repository".into(),
        ));
    }
    if url.credential.is_none() && same_origin(&url, parent) {
        url.credential.clone_from(&parent.credential);
    }
    Ok(url)
}

fn same_origin(one: &GitUrl, other: &GitUrl) -> bool {
    match (Url::parse(&one.url), Url::parse(&other.url)) {
        (Ok(one), Ok(other)) => one.origin().is_tuple() && one.origin() == other.origin(),
        _ => false,
    }
}

/// Appends `relative` to `base`, as git does. `None` if the result is above the root of the host.
///
/// Source: gitmodules(5), git's `relative_url`.
fn join_relative(base: &str, relative: &str) -> Option<String> {
    // Offset of the path.
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
    fn resolve_url_keeps_relative_urls_on_the_host() {
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
                resolve_url(&at(parent), text).unwrap().url,
                expected,
                "{parent} {text}"
            );
        }
    }

    #[test]
    fn parse_modules_skips_update_none() {
        let pair = |key: &str, value: &str| (format!("submodule.{key}"), value.to_owned());
        let found = parse_modules(vec![
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
        assert_eq!(find_unnamed(&listed, &found), ["vendor/a b"]);
    }

    #[test]
    fn join_names_shortens_long_lists() {
        let all: Vec<String> = (1..=7).map(|n| format!("m{n}")).collect();
        assert_eq!(join_names(&all[..2]), "m1, m2");
        assert_eq!(join_names(&all), "m1, m2, m3, m4, m5 and 2 more");
    }

    /// Known attacks on submodules of git, and the hostile texts of contexts.
    #[test]
    fn resolve_url_refuses_hostile_urls() {
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
            let got = resolve_url(&https, text);
            assert!(got.is_err(), "{text:?} became {got:?}");
        }
        // A local repository may refer only to its neighbors.
        let file = at("file:///srv/a.git");
        assert!(resolve_url(&file, "file:///root/secret.git").is_err());
    }

    #[test]
    fn resolve_url_keeps_the_login_on_its_origin() {
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
                resolve_url(&parent, text).unwrap().credential.is_some(),
                gets,
                "{text}"
            );
        }
    }

    #[test]
    fn empty_folder_requires_an_empty_folder_without_links() {
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
            assert_eq!(empty_folder(&root, path).is_some(), good, "{path:?}");
        }
    }
}
