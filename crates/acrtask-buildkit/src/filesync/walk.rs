//! Walk of a folder in BuildKit's order, with descriptions of its entries like fsutil's.
//!
//! Invariants:
//! - Entries are ordered by their path components. A folder precedes its content, even if it is
//!   sent only because of its content.
//! - An excluded folder is not read unless an exception could match below it.
//! - Emitted entries are not stored, except for the first path of each hard-linked file.
//! - Owners are reset to 0, sockets become empty regular files, modes are Go's `os.FileMode`.
//!
//! Entries that vanish during the walk are omitted.
//! Left out: names that are not UTF-8, because the protocol does not support them. They are an
//! error unless excluded.

use std::collections::HashMap;
use std::fs::{self, FileType, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use bollard_buildkit_proto::fsutil::types::Stat;

use super::follow::{self, is_absent};
use super::gopath::BadPattern;
use super::pattern::{FolderMatch, PatternSet};

/// Bits of Go's `os.FileMode` in addition to the nine permissions.
pub(crate) mod mode {
    pub(crate) const DIR: u32 = 1 << 31;
    pub(crate) const SYMLINK: u32 = 1 << 27;
    pub(crate) const DEVICE: u32 = 1 << 26;
    pub(crate) const NAMED_PIPE: u32 = 1 << 25;
    pub(crate) const SOCKET: u32 = 1 << 24;
    pub(crate) const SETUID: u32 = 1 << 23;
    pub(crate) const SETGID: u32 = 1 << 22;
    pub(crate) const CHAR_DEVICE: u32 = 1 << 21;
    pub(crate) const STICKY: u32 = 1 << 20;
    pub(crate) const IRREGULAR: u32 = 1 << 19;
    /// Mask of all bits that mark a non-regular file.
    pub(crate) const TYPE: u32 =
        DIR | SYMLINK | NAMED_PIPE | SOCKET | DEVICE | CHAR_DEVICE | IRREGULAR;
}

/// Error of walking a context.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WalkError {
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("the name of {} is not UTF-8, which BuildKit's file transfer does not support; exclude it in .dockerignore or rename it", path.display())]
    NotUtf8 { path: PathBuf },
    #[error(transparent)]
    Pattern(#[from] BadPattern),
    /// The receiver of the entries is gone.
    #[error("the receiver is gone")]
    Stopped,
}

/// Filter for the entries of a folder.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    include: PatternSet,
    exclude: PatternSet,
    /// `true` if every include pattern concerns a plain folder. Other folders need not be read.
    plain_includes: bool,
    plain_exceptions: bool,
}

impl Filter {
    pub(crate) fn new(include: &[String], exclude: &[String]) -> Result<Self, BadPattern> {
        let include = PatternSet::new(include)?;
        let exclude = PatternSet::new(exclude)?;
        Ok(Self {
            plain_includes: include
                .patterns()
                .iter()
                .all(|p| p.exception || p.folder_is_plain()),
            plain_exceptions: exclude
                .patterns()
                .iter()
                .all(|p| !p.exception || p.folder_is_plain()),
            include,
            exclude,
        })
    }

    /// Creates a filter whose includes also contain `follow_paths`, resolved in `root`.
    pub(crate) fn with_follow_paths(
        root: &Path,
        include: &[String],
        exclude: &[String],
        follow_paths: &[String],
    ) -> Result<Self, WalkError> {
        let mut include = include.to_vec();
        if !follow_paths.is_empty()
            && let Some(targets) =
                follow::resolve_follow_paths(root, follow_paths).map_err(|source| {
                    WalkError::Io {
                        action: "follow links in",
                        path: root.to_owned(),
                        source,
                    }
                })?
        {
            include.extend(targets);
            include = follow::drop_nested(include).unwrap_or_default();
        }
        Ok(Self::new(&include, exclude)?)
    }

    /// Returns `true` if the filter includes the path, without the result of its folder.
    pub(crate) fn matches(&self, path: &str) -> bool {
        (self.include.is_empty() || self.include.matches(path)) && !self.exclude.matches(path)
    }

    fn evaluate(&self, path: &str, is_dir: bool, folder: Option<&FolderState>) -> FilterDecision {
        let mut wanted = true;
        let mut state = FolderState::default();
        if !self.include.is_empty() {
            let (hit, matched) = self.include.matches_in(path, folder.map(|f| &f.include));
            state.include = matched;
            if !hit {
                if is_dir
                    && self.plain_includes
                    && !self.any_pattern_below(&self.include, false, path)
                {
                    return FilterDecision::Prune;
                }
                wanted = false;
            }
        }
        if !self.exclude.is_empty() {
            let (hit, matched) = self.exclude.matches_in(path, folder.map(|f| &f.exclude));
            state.exclude = matched;
            if hit {
                if is_dir
                    && self.plain_exceptions
                    && !(self.exclude.has_exceptions()
                        && self.any_pattern_below(&self.exclude, true, path))
                {
                    return FilterDecision::Prune;
                }
                wanted = false;
            }
        }
        FilterDecision::Enter { wanted, state }
    }

    /// Returns `true` if a pattern of this kind concerns entries below the folder.
    fn any_pattern_below(&self, set: &PatternSet, exceptions: bool, folder: &str) -> bool {
        set.patterns()
            .iter()
            .filter(|p| p.exception == exceptions)
            .any(|p| {
                let text = p.folder_text();
                text == folder
                    || text
                        .strip_prefix(folder)
                        .is_some_and(|rest| rest.starts_with('/'))
            })
    }
}

enum FilterDecision {
    /// The filter excludes the entry and its content.
    Prune,
    Enter {
        wanted: bool,
        state: FolderState,
    },
}

#[derive(Default)]
struct FolderState {
    include: FolderMatch,
    exclude: FolderMatch,
}

/// Receiver of the entries of a walk.
pub(crate) trait Visitor {
    /// Receives an entry in the folder with the absolute path `folder`. Called in order.
    fn visit(&mut self, folder: &Path, stat: Stat) -> Result<(), WalkError>;
}

/// Walks all entries below `root` that the filter includes. `root` must be a folder, or a link to
/// one.
pub(crate) fn walk(
    root: &Path,
    filter: &Filter,
    visitor: &mut dyn Visitor,
) -> Result<(), WalkError> {
    let root = root.canonicalize().map_err(|source| WalkError::Io {
        action: "resolve",
        path: root.to_owned(),
        source,
    })?;
    let mut walk = Walk {
        filter,
        visitor,
        links: HashMap::new(),
        pending: Vec::new(),
    };
    walk.walk_below(root)
}

struct Walk<'a> {
    filter: &'a Filter,
    visitor: &'a mut dyn Visitor,
    /// First emitted path of each file with several names.
    links: HashMap<(u64, u64), String>,
    /// Parents of the current folder that are not emitted yet: parent, relative path.
    pending: Vec<(PathBuf, String)>,
}

/// Folder on the current path of the walk. The walk uses a list of levels instead of recursion,
/// because a path may contain more folders than fit on a thread's stack.
struct Level {
    folder: PathBuf,
    relative: String,
    /// Result of the filter for the folder. `None` for the root.
    state: Option<FolderState>,
    entries: std::vec::IntoIter<(std::ffi::OsString, FileType)>,
    /// Number of pending folders including this one. `None` if the folder was emitted.
    pending: Option<usize>,
}

impl Walk<'_> {
    /// Walks all entries below `root`.
    fn walk_below(&mut self, root: PathBuf) -> Result<(), WalkError> {
        let entries = read_sorted(&root).map_err(|source| read_error(&root, source))?;
        let mut levels = vec![Level {
            folder: root,
            relative: String::new(),
            state: None,
            entries: entries.into_iter(),
            pending: None,
        }];
        while let Some(level) = levels.last_mut() {
            let Some((name, kind)) = level.entries.next() else {
                self.leave_folder(level.pending);
                levels.pop();
                continue;
            };
            let full = level.folder.join(&name);
            let lossy = name.to_string_lossy();
            let path = if level.relative.is_empty() {
                lossy.clone().into_owned()
            } else {
                format!("{}/{lossy}", level.relative)
            };
            let is_dir = kind.is_dir();
            let decision = self.filter.evaluate(&path, is_dir, level.state.as_ref());
            let FilterDecision::Enter { wanted, state } = decision else {
                continue;
            };
            if wanted {
                if name.to_str().is_none() {
                    return Err(WalkError::NotUtf8 { path: full });
                }
                if !self.emit(&level.folder, &full, &path)? {
                    continue;
                }
            }
            if !is_dir {
                continue;
            }
            let entries = match read_sorted(&full) {
                Ok(entries) => entries,
                Err(e) if is_absent(&e) => continue,
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied && !wanted => continue,
                Err(source) => return Err(read_error(&full, source)),
            };
            let pending = (!wanted).then(|| {
                self.pending.push((level.folder.clone(), path.clone()));
                self.pending.len()
            });
            levels.push(Level {
                folder: full,
                relative: path,
                state: Some(state),
                entries: entries.into_iter(),
                pending,
            });
        }
        Ok(())
    }

    /// Removes a walked folder from the pending ones if it has no included content.
    fn leave_folder(&mut self, pending: Option<usize>) {
        if pending == Some(self.pending.len()) {
            self.pending.pop();
        }
    }

    /// Emits the entry, after the pending folders above it. Returns `false` if it vanished.
    fn emit(&mut self, folder: &Path, full: &Path, path: &str) -> Result<bool, WalkError> {
        let Some(stat) = self.stat_entry(full, path)? else {
            return Ok(false);
        };
        for (above, relative) in std::mem::take(&mut self.pending) {
            let name = relative.rsplit('/').next().unwrap_or(&relative);
            if let Some(stat) = self.stat_entry(&above.join(name), &relative)? {
                self.visitor.visit(&above, stat)?;
            }
        }
        self.visitor.visit(folder, stat)?;
        Ok(true)
    }

    fn stat_entry(&mut self, full: &Path, path: &str) -> Result<Option<Stat>, WalkError> {
        let described =
            fs::symlink_metadata(full).and_then(|metadata| self.build_stat(full, path, &metadata));
        match described {
            Ok(stat) => Ok(Some(stat)),
            Err(e) if is_absent(&e) => Ok(None),
            Err(source) => Err(WalkError::Io {
                action: "read the metadata of",
                path: full.to_owned(),
                source,
            }),
        }
    }

    fn build_stat(&mut self, full: &Path, path: &str, metadata: &Metadata) -> io::Result<Stat> {
        let kind = metadata.file_type();
        let mut stat = Stat {
            path: path.to_owned(),
            mode: go_mode(metadata) & !mode::SOCKET,
            mod_time: metadata
                .mtime()
                .wrapping_mul(1_000_000_000)
                .wrapping_add(metadata.mtime_nsec()),
            ..Stat::default()
        };
        if !kind.is_dir() {
            stat.size = i64::try_from(metadata.size()).unwrap_or(i64::MAX);
            if kind.is_block_device() || kind.is_char_device() {
                (stat.devmajor, stat.devminor) = device_numbers(metadata.rdev());
            }
            if kind.is_symlink() {
                let target = fs::read_link(full)?;
                stat.linkname = target.into_os_string().into_string().map_err(|_| {
                    io::Error::new(io::ErrorKind::InvalidData, "the link's target is not UTF-8")
                })?;
            } else if metadata.nlink() > 1 {
                match self.links.entry((metadata.dev(), metadata.ino())) {
                    std::collections::hash_map::Entry::Occupied(first) => {
                        stat.linkname.clone_from(first.get())
                    }
                    std::collections::hash_map::Entry::Vacant(slot) => {
                        slot.insert(path.to_owned());
                    }
                }
            }
        }
        for name in list_xattrs(full)? {
            if !name.starts_with("com.apple.")
                && let Ok(Some(value)) = xattr::get(full, &name)
            {
                stat.xattrs.insert(name, value);
            }
        }
        Ok(stat)
    }
}

fn read_error(folder: &Path, source: io::Error) -> WalkError {
    WalkError::Io {
        action: "read the folder",
        path: folder.to_owned(),
        source,
    }
}

/// Returns the entries of a folder in byte order of their names.
fn read_sorted(folder: &Path) -> io::Result<Vec<(std::ffi::OsString, FileType)>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        match entry.file_type() {
            Ok(kind) => entries.push((entry.file_name(), kind)),
            Err(e) if is_absent(&e) => {}
            Err(e) => return Err(e),
        }
    }
    entries.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok(entries)
}

/// Returns the names of an entry's extended attributes. Empty if the file system does not support
/// them.
fn list_xattrs(path: &Path) -> io::Result<Vec<String>> {
    match xattr::list(path) {
        Ok(names) => Ok(names.filter_map(|name| name.into_string().ok()).collect()),
        Err(e) if e.kind() == io::ErrorKind::Unsupported => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// Returns the mode as Go's `os.FileMode`.
pub(crate) fn go_mode(metadata: &Metadata) -> u32 {
    let unix = metadata.mode();
    let kind = metadata.file_type();
    let mut go = unix & 0o777;
    for (bit, flag) in [
        (0o4000, mode::SETUID),
        (0o2000, mode::SETGID),
        (0o1000, mode::STICKY),
    ] {
        if unix & bit != 0 {
            go |= flag;
        }
    }
    go | if kind.is_dir() {
        mode::DIR
    } else if kind.is_symlink() {
        mode::SYMLINK
    } else if kind.is_fifo() {
        mode::NAMED_PIPE
    } else if kind.is_socket() {
        mode::SOCKET
    } else if kind.is_block_device() {
        mode::DEVICE
    } else if kind.is_char_device() {
        mode::DEVICE | mode::CHAR_DEVICE
    } else {
        0
    }
}

/// Returns the major and minor number, split like in fsutil.
fn device_numbers(device: u64) -> (i64, i64) {
    let major = (device >> 8) & 0xfff;
    let minor = (device & 0xff) | ((device >> 12) & 0xf_ff00);
    // Both have at most 20 bits.
    (major as i64, minor as i64)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use tempfile::TempDir;

    use super::*;

    #[derive(Default)]
    struct Collect(Vec<Stat>);

    impl Visitor for Collect {
        fn visit(&mut self, _: &Path, stat: Stat) -> Result<(), WalkError> {
            self.0.push(stat);
            Ok(())
        }
    }

    fn tree(files: &[&str]) -> TempDir {
        let root = TempDir::new().unwrap();
        for file in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        root
    }

    fn paths(root: &TempDir, include: &[&str], exclude: &[&str]) -> Vec<String> {
        let owned = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let filter = Filter::new(&owned(include), &owned(exclude)).unwrap();
        let mut seen = Collect::default();
        walk(root.path(), &filter, &mut seen).unwrap();
        seen.0.into_iter().map(|stat| stat.path).collect()
    }

    #[test]
    fn walk_orders_by_path_components() {
        let root = tree(&["a/x", "a-b", "a.txt", "b", "a/b/c"]);
        assert_eq!(
            paths(&root, &[], &[]),
            ["a", "a/b", "a/b/c", "a/x", "a-b", "a.txt", "b"]
        );
    }

    #[test]
    fn walk_supports_the_deepest_path() {
        let root = TempDir::new().unwrap();
        let depth = (4000 - root.path().as_os_str().len()) / 2;
        fs::create_dir_all(root.path().join("a/".repeat(depth))).unwrap();
        // Uses a thread with the stack of a runtime's threads.
        let small = std::thread::Builder::new().stack_size(2 << 20);
        let path = root.path().to_owned();
        let walking = small.spawn(move || {
            let mut seen = Collect::default();
            walk(&path, &Filter::default(), &mut seen).map(|()| seen.0.len())
        });
        assert_eq!(walking.unwrap().join().unwrap().unwrap(), depth);
    }

    #[test]
    fn walk_applies_includes_and_excludes() {
        let root = tree(&[
            "bar",
            "bar2",
            "foo/a.txt",
            "foo/b.log",
            "foo/sub/c.txt",
            "node_modules/x/y",
            "docs/README.md",
            "docs/z",
        ]);
        for (include, exclude, want) in [
            (&["bar"][..], &[][..], &["bar"][..]),
            (&["foo/sub"], &[], &["foo", "foo/sub", "foo/sub/c.txt"]),
            (&["foo/*.txt"], &[], &["foo", "foo/a.txt"]),
            (&["**/*.txt"], &["foo/sub"], &["foo", "foo/a.txt"]),
            (&[], &["foo", "node_modules", "docs"], &["bar", "bar2"]),
            (&[], &["**", "!docs/README.md"], &["docs", "docs/README.md"]),
            (
                &[],
                &["*", "!foo/**/*.txt"],
                &["foo", "foo/a.txt", "foo/sub", "foo/sub/c.txt"],
            ),
            (&["docs"], &["docs/*", "!docs/z"], &["docs", "docs/z"]),
            (&["absent"], &[], &[]),
        ] {
            assert_eq!(
                paths(&root, include, exclude),
                want,
                "include {include:?} exclude {exclude:?}"
            );
        }
    }

    #[test]
    fn walk_reports_kinds_and_modes() {
        let root = tree(&["plain", "dir/f"]);
        let at = |name: &str| root.path().join(name);
        fs::set_permissions(at("plain"), fs::Permissions::from_mode(0o4755)).unwrap();
        fs::set_permissions(at("dir"), fs::Permissions::from_mode(0o1777)).unwrap();
        symlink("plain", at("link")).unwrap();
        fs::hard_link(at("plain"), at("same")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("sock")).unwrap();
        let mut seen = Collect::default();
        walk(root.path(), &Filter::default(), &mut seen).unwrap();
        let by_path: HashMap<_, _> = seen
            .0
            .into_iter()
            .map(|stat| (stat.path.clone(), stat))
            .collect();
        assert_eq!(by_path["plain"].mode, mode::SETUID | 0o755);
        assert_eq!(by_path["plain"].linkname, "");
        assert_eq!(by_path["same"].linkname, "plain");
        assert_eq!(by_path["dir"].mode, mode::DIR | mode::STICKY | 0o777);
        assert_eq!(by_path["dir"].size, 0);
        assert_eq!(by_path["link"].linkname, "plain");
        assert_eq!(by_path["link"].mode & mode::TYPE, mode::SYMLINK);
        assert_eq!(by_path["sock"].mode & mode::TYPE, 0);
        assert!(by_path.values().all(|stat| stat.uid == 0 && stat.gid == 0));
    }

    #[test]
    fn hard_link_with_an_excluded_first_name_is_a_file() {
        let root = tree(&["a"]);
        fs::hard_link(root.path().join("a"), root.path().join("b")).unwrap();
        fs::hard_link(root.path().join("a"), root.path().join("c")).unwrap();
        let filter = Filter::new(&[], &["a".to_owned()]).unwrap();
        let mut seen = Collect::default();
        walk(root.path(), &filter, &mut seen).unwrap();
        let links: Vec<_> = seen
            .0
            .iter()
            .map(|stat| (stat.path.as_str(), stat.linkname.as_str()))
            .collect();
        assert_eq!(links, [("b", ""), ("c", "b")]);
    }

    #[test]
    fn walk_reports_extended_attributes() {
        let root = tree(&["f"]);
        let path = root.path().join("f");
        if xattr::set(&path, "user.note", b"kept").is_err() {
            return; // The file system of the temporary folder does not support them.
        }
        let mut seen = Collect::default();
        walk(root.path(), &Filter::default(), &mut seen).unwrap();
        assert_eq!(seen.0[0].xattrs["user.note"], b"kept");
    }

    #[test]
    fn walk_refuses_names_that_are_not_utf8() {
        use std::os::unix::ffi::OsStrExt;
        let root = tree(&["ok"]);
        fs::write(
            root.path().join(std::ffi::OsStr::from_bytes(b"bad\xff")),
            "",
        )
        .unwrap();
        let error = walk(root.path(), &Filter::default(), &mut Collect::default()).unwrap_err();
        assert!(matches!(error, WalkError::NotUtf8 { .. }), "{error}");
        let filter = Filter::new(&[], &["bad*".to_owned()]).unwrap();
        walk(root.path(), &filter, &mut Collect::default()).unwrap();
    }
}
