//! The entries of a folder that are packed, by its ignore file.
//!
//! A workspace on this machine gets everything; what is ignored may be unreadable. An upload leaves out what is ignored,
//! and `.git`, as `az acr build` does, except for the files that say how to build.

use std::{
    io,
    path::{Path, PathBuf},
};

use acrtask_buildkit::{BadPattern, PatternSet};
use acrtask_source::paths::read_inside;

/// The ignore file of a context.
const IGNORE_FILE: &str = ".dockerignore";
/// The end of the name of an ignore file: of a context's, and of one Dockerfile's.
const IGNORE_SUFFIX: &str = ".dockerignore";
/// Biggest ignore file, in bytes.
const MAX_IGNORE_FILE: u64 = 1 << 20;
/// Folders of git, in the context and in what it contains. A later pattern of the ignore file can include them again.
const GIT: [&str; 1] = ["**/.git"];

/// The entries of a folder that are packed. The default: all.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    ignored: PatternSet,
    leaves_out: bool,
    /// Files that are packed although they are ignored.
    needed: Vec<PathBuf>,
}

impl Selection {
    /// Selects everything below `root`, except for what is ignored and cannot be read.
    pub(crate) fn of_workspace(root: &Path) -> Self {
        let text = read_ignore_file(root, Path::new(IGNORE_FILE)).unwrap_or_default();
        Self {
            // The build itself reports a pattern that cannot be used.
            ignored: PatternSet::from_ignore_file(&text).unwrap_or_default(),
            ..Self::default()
        }
    }

    /// Selects what a server needs of the context `root`: a build of `dockerfile`, or a task. `needed` are paths in the
    /// context that are packed in any case, and `added` are files that are packed beside it.
    ///
    /// # Errors
    /// The ignore file cannot be read, or has a pattern that cannot be used.
    pub fn of_upload(
        root: &Path,
        dockerfile: Option<&str>,
        needed: impl IntoIterator<Item = PathBuf>,
        added: &[(PathBuf, Vec<u8>)],
    ) -> io::Result<Self> {
        // A Dockerfile's own ignore file takes the place of the context's.
        let own = dockerfile.map(|name| PathBuf::from(format!("{name}{IGNORE_SUFFIX}")));
        let given = added.iter().find(|(path, _)| Some(path) == own.as_ref());
        let path = own
            .filter(|path| given.is_some() || root.join(path).is_file())
            .unwrap_or_else(|| PathBuf::from(IGNORE_FILE));
        let text = match given {
            Some((_, bytes)) => text(bytes.clone()),
            None => read_ignore_file(root, &path),
        };
        let text = match text {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(about(&path, &error)),
        };
        let invalid =
            |error: BadPattern| about(&path, &io::Error::new(io::ErrorKind::InvalidData, error));
        let ignored = PatternSet::from_ignore_file(&text).map_err(invalid)?;
        let mut needed: Vec<PathBuf> = needed.into_iter().map(normal).collect();
        needed.extend(dockerfile.map(|name| normal(PathBuf::from(name))));
        Ok(Self {
            ignored: ignored.after(GIT).map_err(invalid)?,
            leaves_out: true,
            needed,
        })
    }

    /// Returns `true` if an entry that cannot be read may be missing.
    pub(crate) fn may_be_unreadable(&self, path: &Path) -> bool {
        self.ignored.matches(&path.to_string_lossy()) && !self.is_needed(path)
    }

    /// Returns `true` if the entry is not packed. Entries of a folder are asked for one by one.
    pub(crate) fn leaves_out(&self, path: &Path, is_folder: bool) -> bool {
        self.leaves_out
            && self.ignored.matches(&path.to_string_lossy())
            && (is_folder || !(self.is_needed(path) || names_a_build(path)))
    }

    /// Returns `true` if nothing in a folder that is left out can be packed.
    pub(crate) fn prunes(&self, folder: &Path) -> bool {
        let is_needed = self.needed.iter().any(|path| path.starts_with(folder));
        !self.ignored.has_exceptions() && !is_needed
    }

    fn is_needed(&self, path: &Path) -> bool {
        self.needed.iter().any(|needed| needed == path)
    }
}

fn read_ignore_file(root: &Path, path: &Path) -> io::Result<String> {
    text(read_inside(root, path, MAX_IGNORE_FILE)?)
}

fn text(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Returns `true` for a Dockerfile or an ignore file by its name: builds read them although they are ignored.
fn names_a_build(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.to_lowercase();
    let is_of = |kind: &str| {
        name == kind || name.starts_with(&format!("{kind}.")) || name.ends_with(&format!(".{kind}"))
    };
    is_of("dockerfile") || is_of("containerfile") || name.ends_with(IGNORE_SUFFIX)
}

/// Returns the path without `.` and `./`.
fn normal(path: PathBuf) -> PathBuf {
    path.components()
        .filter(|part| matches!(part, std::path::Component::Normal(_)))
        .collect()
}

fn about(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("cannot use the ignore file {}: {error}", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_leaves_out_what_is_ignored() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(
            root.path().join(".dockerignore"),
            "\u{feff}# comment\nnode_modules\n/.env\n**/*.log\n",
        )
        .unwrap();
        let needed = [PathBuf::from("./node_modules/task.yaml")];
        let selection = Selection::of_upload(root.path(), None, needed, &[]).unwrap();
        for (path, left_out) in [
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
                selection.leaves_out(Path::new(path), false),
                left_out,
                "{path}"
            );
        }
        assert!(selection.leaves_out(Path::new("node_modules"), true));
        assert!(!selection.prunes(Path::new("node_modules")));
        assert!(selection.prunes(Path::new(".git")));
    }

    #[test]
    fn an_ignore_file_can_include_git_again() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join(".dockerignore"), "*\n!.git\n").unwrap();
        let selection = Selection::of_upload(root.path(), None, [], &[]).unwrap();
        assert!(!selection.leaves_out(Path::new(".git/HEAD"), false));
        assert!(selection.leaves_out(Path::new("a"), false));
    }

    #[test]
    fn a_dockerfile_has_an_ignore_file_of_its_own() {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in [(".dockerignore", "a\n"), ("x.dockerignore", "b\n[\n")] {
            std::fs::write(root.path().join(name), text).unwrap();
        }
        let usual = Selection::of_upload(root.path(), Some("Dockerfile"), [], &[]).unwrap();
        assert!(usual.leaves_out(Path::new("a"), false));
        assert!(!usual.leaves_out(Path::new("b"), false));
        let error = Selection::of_upload(root.path(), Some("x"), [], &[]).unwrap_err();
        assert!(error.to_string().contains("x.dockerignore"), "{error}");
    }

    #[test]
    fn a_workspace_gets_what_is_ignored_and_can_be_read() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join(".dockerignore"), "data\n").unwrap();
        let selection = Selection::of_workspace(root.path());
        assert!(!selection.leaves_out(Path::new("data"), true));
        assert!(selection.may_be_unreadable(Path::new("data/db")));
        assert!(!selection.may_be_unreadable(Path::new("src")));
        assert!(!selection.may_be_unreadable(Path::new(".git")));
    }
}
