//! Selection of a folder's entries for packing, by its ignore file.
//!
//! A workspace on this machine receives all entries; ignored ones may be unreadable. An upload
//! skips ignored entries and `.git`, as `az acr build` does. It includes the files that define the
//! build.

use std::{
    io,
    path::{Path, PathBuf},
};

use acrtask_buildkit::{BadPattern, PatternSet};
use acrtask_source::paths::read_inside;

/// The ignore file of a context.
const IGNORE_FILE: &str = ".dockerignore";
/// Suffix of the ignore files of a context and of one Dockerfile.
const IGNORE_SUFFIX: &str = ".dockerignore";
/// Maximum size of an ignore file, in bytes.
const MAX_IGNORE_FILE: u64 = 1 << 20;
/// Git folders, in the context and below. A later pattern of the ignore file can include them
/// again.
const GIT: [&str; 1] = ["**/.git"];

/// The entries of a folder to pack. The default selects all.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    ignored: PatternSet,
    excludes_ignored: bool,
    /// Files that are packed although they are ignored.
    needed: Vec<PathBuf>,
}

impl Selection {
    /// Selects everything below `root`, except for ignored entries that cannot be read.
    pub(crate) fn for_workspace(root: &Path) -> Self {
        let text = read_ignore_file(root, Path::new(IGNORE_FILE)).unwrap_or_default();
        Self {
            // The build itself reports an invalid pattern.
            ignored: PatternSet::from_ignore_file(&text).unwrap_or_default(),
            ..Self::default()
        }
    }

    /// Selects the entries of the context `root` that a server needs for a build of `dockerfile` or
    /// for a task.
    ///
    /// `needed` are paths in the context that are always packed. `added` are files that are packed
    /// in addition to it.
    ///
    /// # Errors
    /// The ignore file cannot be read or has an invalid pattern.
    pub fn for_upload(
        root: &Path,
        dockerfile: Option<&str>,
        needed: impl IntoIterator<Item = PathBuf>,
        added: &[(PathBuf, Vec<u8>)],
    ) -> io::Result<Self> {
        // A Dockerfile's own ignore file replaces the context's.
        let own = dockerfile.map(|name| PathBuf::from(format!("{name}{IGNORE_SUFFIX}")));
        let given = added.iter().find(|(path, _)| Some(path) == own.as_ref());
        let path = own
            .filter(|path| given.is_some() || root.join(path).is_file())
            .unwrap_or_else(|| PathBuf::from(IGNORE_FILE));
        let text = match given {
            Some((_, bytes)) => decode_utf8(bytes.clone()),
            None => read_ignore_file(root, &path),
        };
        let text = match text {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(ignore_file_error(&path, &error)),
        };
        let invalid = |error: BadPattern| {
            ignore_file_error(&path, &io::Error::new(io::ErrorKind::InvalidData, error))
        };
        let ignored = PatternSet::from_ignore_file(&text).map_err(invalid)?;
        let mut needed: Vec<PathBuf> = needed.into_iter().map(normalized).collect();
        needed.extend(dockerfile.map(|name| normalized(PathBuf::from(name))));
        Ok(Self {
            ignored: ignored.with_preceding(GIT).map_err(invalid)?,
            excludes_ignored: true,
            needed,
        })
    }

    /// Returns `true` if an unreadable entry may be missing.
    pub(crate) fn may_be_unreadable(&self, path: &Path) -> bool {
        self.ignored.matches(&path.to_string_lossy()) && !self.is_needed(path)
    }

    /// Returns `true` if the entry is not packed. Entries of a folder are checked one by one.
    pub(crate) fn excludes(&self, path: &Path, is_folder: bool) -> bool {
        self.excludes_ignored
            && self.ignored.matches(&path.to_string_lossy())
            && (is_folder || !(self.is_needed(path) || is_build_file(path)))
    }

    /// Returns `true` if no entry in an excluded folder can be packed.
    pub(crate) fn can_skip_folder(&self, folder: &Path) -> bool {
        let is_needed = self.needed.iter().any(|path| path.starts_with(folder));
        !self.ignored.has_exceptions() && !is_needed
    }

    fn is_needed(&self, path: &Path) -> bool {
        self.needed.iter().any(|needed| needed == path)
    }
}

fn read_ignore_file(root: &Path, path: &Path) -> io::Result<String> {
    decode_utf8(read_inside(root, path, MAX_IGNORE_FILE)?)
}

fn decode_utf8(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Returns `true` if the name is that of a Dockerfile or an ignore file. Builds read them although
/// they are ignored.
fn is_build_file(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.to_lowercase();
    let is_of = |kind: &str| {
        name == kind || name.starts_with(&format!("{kind}.")) || name.ends_with(&format!(".{kind}"))
    };
    is_of("dockerfile") || is_of("containerfile") || name.ends_with(IGNORE_SUFFIX)
}

/// Returns the path without `.` and `./`.
fn normalized(path: PathBuf) -> PathBuf {
    path.components()
        .filter(|part| matches!(part, std::path::Component::Normal(_)))
        .collect()
}

fn ignore_file_error(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("cannot use the ignore file {}: {error}", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upload_excludes_ignored_entries() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(
            root.path().join(".dockerignore"),
            "\u{feff}# comment\nnode_modules\n/.env\n**/*.log\n",
        )
        .unwrap();
        let needed = [PathBuf::from("./node_modules/task.yaml")];
        let selection = Selection::for_upload(root.path(), None, needed, &[]).unwrap();
        for (path, excluded) in [
            ("src/main.rs", false),
            (".env", true),
            ("src/.env", false),
            ("a/b.log", true),
            (".git/HEAD", true),
            ("lib/.git", true),
            (".gitignore", false),
            ("node_modules/a.js", true),
            ("node_modules/task.yaml", false),
            ("node_modules/Dockerfile", false),
        ] {
            assert_eq!(
                selection.excludes(Path::new(path), false),
                excluded,
                "{path}"
            );
        }
        assert!(selection.excludes(Path::new("node_modules"), true));
        assert!(!selection.can_skip_folder(Path::new("node_modules")));
        assert!(selection.can_skip_folder(Path::new(".git")));
    }

    #[test]
    fn ignore_file_can_include_git_again() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join(".dockerignore"), "*\n!.git\n").unwrap();
        let selection = Selection::for_upload(root.path(), None, [], &[]).unwrap();
        assert!(!selection.excludes(Path::new(".git/HEAD"), false));
        assert!(selection.excludes(Path::new("a"), false));
    }

    #[test]
    fn dockerfile_specific_ignore_file_replaces_the_default() {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in [(".dockerignore", "a\n"), ("x.dockerignore", "b\n[\n")] {
            std::fs::write(root.path().join(name), text).unwrap();
        }
        let usual = Selection::for_upload(root.path(), Some("Dockerfile"), [], &[]).unwrap();
        assert!(usual.excludes(Path::new("a"), false));
        assert!(!usual.excludes(Path::new("b"), false));
        let error = Selection::for_upload(root.path(), Some("x"), [], &[]).unwrap_err();
        assert!(error.to_string().contains("x.dockerignore"), "{error}");
    }

    #[test]
    fn workspace_includes_readable_ignored_entries() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join(".dockerignore"), "data\n").unwrap();
        let selection = Selection::for_workspace(root.path());
        assert!(!selection.excludes(Path::new("data"), true));
        assert!(selection.may_be_unreadable(Path::new("data/db")));
        assert!(!selection.may_be_unreadable(Path::new("src")));
        assert!(!selection.may_be_unreadable(Path::new(".git")));
    }
}
