//! `followpaths`: paths that the builder will read. It receives them with all symbolic links on the
//! path.
//!
//! Invariants:
//! - Links are followed inside the root only. An absolute target, or one with `..`, stays below the
//!   root.
//! - A missing path is kept, so that the builder's own error names it.
//! - The results are those of fsutil's `FollowLinks`, except for endless chains of links, which no
//!   builder follows either.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use super::gopath;

/// Maximum number of links on one path, as in a builder.
const MAX_LINKS: usize = 255;

/// Returns the include patterns for the paths. `None` means everything, because a path leads to the
/// root.
pub(crate) fn resolve_follow_paths(
    root: &Path,
    paths: &[String],
) -> io::Result<Option<Vec<String>>> {
    let mut resolver = Resolver {
        root,
        resolved: BTreeSet::new(),
    };
    for path in paths {
        resolver.add_path(path, 0)?;
    }
    Ok(drop_nested(resolver.resolved.into_iter().collect()))
}

/// Drops paths below the previous path. `None` if one of them is the root.
pub(crate) fn drop_nested(paths: Vec<String>) -> Option<Vec<String>> {
    let mut kept: Vec<String> = Vec::with_capacity(paths.len());
    let mut last = String::new();
    for path in paths {
        if path == "." {
            return None;
        }
        if path
            .strip_prefix(last.as_str())
            .is_some_and(|rest| rest.starts_with('/'))
        {
            continue;
        }
        last.clone_from(&path);
        kept.push(path);
    }
    Some(kept)
}

struct Resolver<'a> {
    root: &'a Path,
    resolved: BTreeSet<String>,
}

impl Resolver<'_> {
    fn add_path(&mut self, path: &str, links: usize) -> io::Result<()> {
        if links > MAX_LINKS {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{path} is behind more than {MAX_LINKS} links"),
            ));
        }
        let mut rest = gopath::join(".", path);
        let mut current = String::from(".");
        loop {
            let (head, tail) = match rest.split_once('/') {
                Some((head, tail)) => (head.to_owned(), tail.to_owned()),
                None => (rest, String::new()),
            };
            current = gopath::join(&current, &head);
            let targets = self.link_targets(&current, true)?;
            rest = tail;
            if (rest.is_empty() || !targets.is_empty()) && self.resolved.contains(&current) {
                return Ok(());
            }
            if !targets.is_empty() {
                self.resolved.insert(current);
                for target in targets {
                    self.add_path(&gopath::join(&target, &rest), links + 1)?;
                }
                return Ok(());
            }
            if rest.is_empty() {
                self.resolved.insert(current);
                return Ok(());
            }
        }
    }

    /// Returns the targets of a path if its last element is a link, or a wildcard that matches
    /// links.
    fn link_targets(&self, path: &str, wildcard: bool) -> io::Result<Vec<String>> {
        let (folder, base) = path.rsplit_once('/').unwrap_or((".", path));
        if wildcard && gopath::has_wildcard(base) {
            let entries = match std::fs::read_dir(self.root.join(folder)) {
                Ok(entries) => entries,
                Err(e) if is_absent(&e) => return Ok(Vec::new()),
                Err(e) => return Err(e),
            };
            let mut found = Vec::new();
            for entry in entries {
                let name = entry?.file_name();
                let Some(name) = name.to_str() else { continue };
                if gopath::matches(base, name).unwrap_or(false) {
                    found.extend(self.link_targets(&gopath::join(folder, name), false)?);
                }
            }
            found.sort();
            return Ok(found);
        }
        if path == "." {
            return Ok(Vec::new());
        }
        let full = self.root.join(path);
        match std::fs::symlink_metadata(&full) {
            Ok(metadata) if metadata.is_symlink() => {}
            Ok(_) => return Ok(Vec::new()),
            Err(e) if is_absent(&e) => return Ok(Vec::new()),
            Err(e) => return Err(e),
        }
        let link = std::fs::read_link(&full)?;
        let Some(link) = link.to_str().map(gopath::clean) else {
            return Ok(Vec::new());
        };
        Ok(vec![if link.starts_with('/') {
            link
        } else {
            gopath::clean(&format!("/{folder}/{link}"))
        }])
    }
}

/// Returns `true` if the path does not exist, or leads through something else than a folder.
pub(crate) fn is_absent(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    fn check(root: &TempDir, paths: &[&str], want: Option<&[&str]>) {
        let paths: Vec<String> = paths.iter().map(ToString::to_string).collect();
        let got = resolve_follow_paths(root.path(), &paths).unwrap();
        assert_eq!(
            got.as_deref()
                .map(|got| got.iter().map(String::as_str).collect::<Vec<_>>())
                .as_deref(),
            want,
            "{paths:?}"
        );
    }

    /// Creates files and links. Folders end with `/`; links are `(path, target)`.
    fn tree(files: &[&str], links: &[(&str, &str)]) -> TempDir {
        let root = TempDir::new().unwrap();
        for file in files {
            let path = root.path().join(file);
            if file.ends_with('/') {
                fs::create_dir_all(path).unwrap();
            } else {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, file).unwrap();
            }
        }
        for (path, target) in links {
            symlink(target, root.path().join(path)).unwrap();
        }
        root
    }

    #[test]
    fn chain_of_links_is_followed() {
        let root = tree(
            &["dir/foo", "bar", "baz"],
            &[("dir/l1", "foo"), ("l2", "dir/l1")],
        );
        check(
            &root,
            &["l2", "bar"],
            Some(&["bar", "dir/foo", "dir/l1", "l2"]),
        );
    }

    #[test]
    fn endless_chain_of_links_is_refused() {
        let root = TempDir::new().unwrap();
        for i in 0..20_000 {
            symlink(format!("l{}", i + 1), root.path().join(format!("l{i}"))).unwrap();
        }
        // Uses a thread with the stack of a runtime's threads.
        let small = std::thread::Builder::new().stack_size(2 << 20);
        let path = root.path().to_owned();
        let following = small.spawn(move || resolve_follow_paths(&path, &["l0".to_owned()]));
        let error = following.unwrap().join().unwrap().unwrap_err();
        assert!(error.to_string().contains("more than 255 links"), "{error}");
        assert!(resolve_follow_paths(root.path(), &["l19900".to_owned()]).is_ok());
    }

    #[test]
    fn loops_of_links_terminate() {
        let root = tree(&[], &[("l1", "l1"), ("l2", "l3"), ("l3", "l2")]);
        check(&root, &["l1", "l3"], Some(&["l1", "l2", "l3"]));
    }

    #[test]
    fn absolute_and_parent_links_stay_inside() {
        for up in ["../", "../../../"] {
            let root = tree(
                &["dir/", "foo/", "baz"],
                &[("dir/l1", "/foo/bar/baz"), ("foo/bar", up)],
            );
            check(&root, &["dir/l1"], Some(&["baz", "dir/l1", "foo/bar"]));
        }
    }

    #[test]
    fn missing_paths_are_kept() {
        let root = tree(&[], &[]);
        check(
            &root,
            &["foo/bar/baz", "bar/baz"],
            Some(&["bar/baz", "foo/bar/baz"]),
        );
        check(&root, &["."], None);
        check(&root, &["f*/foo/t*"], Some(&["f*/foo/t*"]));
    }

    #[test]
    fn nested_paths_are_dropped() {
        let root = tree(&["dir/", "foo/bar"], &[("dir/l1", "/foo"), ("dir/l2", "/")]);
        check(&root, &["foo/bar/baz", "foo/bar"], Some(&["foo/bar"]));
        check(&root, &["dir/l1", "foo/bar"], Some(&["dir/l1", "foo"]));
        check(&root, &["dir/l2", "foo", "foo/bar"], None);
    }

    #[test]
    fn wildcards_match_links() {
        let root = tree(
            &["foo/bar1", "foo/bar3", "baz", "dir/"],
            &[
                ("dir/l1", "/foo/bar1"),
                ("dir/l2", "/foo/bar2"),
                ("dir/anotherlink", "/foo/bar3"),
                ("foo/bar2", "../baz"),
            ],
        );
        check(
            &root,
            &["dir/l*"],
            Some(&["baz", "dir/l*", "foo/bar1", "foo/bar2"]),
        );
        check(&root, &["dir"], Some(&["dir"]));
        check(&root, &["dir", "dir/*link"], Some(&["dir", "foo/bar3"]));
    }
}
