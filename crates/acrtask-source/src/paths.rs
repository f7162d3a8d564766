//! Paths that must stay inside a folder.

use std::{
    collections::VecDeque,
    ffi::OsString,
    fs::File,
    io::{self, Read as _},
    path::{Component, Path, PathBuf},
};

/// Maximum number of links on one path, as on Linux.
const MAX_LINKS: usize = 40;

/// Failure to resolve a path inside a folder.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// The path, or a link on it, leads out.
    #[error("it leads out of the context")]
    Escapes,
    /// The links form a loop.
    #[error("it has more than {MAX_LINKS} links on its way")]
    Loop,
    /// A link is unreadable.
    #[error("it cannot be followed: {0}")]
    Io(#[from] std::io::Error),
}

/// Returns the path of a regular file in the folder `root`, without links. A task may have replaced
/// the file by a link that leads out, or to an endless device.
///
/// # Errors
/// The file does not exist, or is not a regular file of the folder.
pub fn file_inside(root: &Path, relative: &Path) -> io::Result<PathBuf> {
    let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
    let path = resolve_inside(&root.canonicalize()?, relative);
    let path = path.map_err(|error| invalid(error.to_string()))?;
    if path.metadata()?.is_file() {
        Ok(path)
    } else {
        Err(invalid("it is not a regular file".into()))
    }
}

/// Reads a regular file in the folder `root` of at most `limit` bytes.
///
/// # Errors
/// Same errors as [`file_inside`], or the file is larger.
pub fn read_inside(root: &Path, relative: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(file_inside(root, relative)?)?
        .take(limit + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        let reason = format!("it has more than {limit} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    Ok(bytes)
}

/// Resolves `relative` from `root`, including all links on the path and the last one. Keeps missing
/// components as written. An absolute path is an error. So is a `..` or a link that leads above
/// `root`, even if a later part leads back.
///
/// `root` must be absolute and without links. The result is valid until the folder changes.
///
/// # Errors
/// [`PathError`].
pub fn resolve_inside(root: &Path, relative: &Path) -> Result<PathBuf, PathError> {
    enum Step {
        Down(OsString),
        Up,
    }
    fn steps(path: &Path) -> Result<Vec<Step>, PathError> {
        path.components()
            .filter(|part| *part != Component::CurDir)
            .map(|part| match part {
                Component::Normal(name) => Ok(Step::Down(name.to_owned())),
                Component::ParentDir => Ok(Step::Up),
                _ => Err(PathError::Escapes),
            })
            .collect()
    }
    let mut todo: VecDeque<Step> = steps(relative)?.into();
    let mut depth = 0usize;
    let mut links = 0;
    let mut at = root.to_owned();
    while let Some(step) = todo.pop_front() {
        match step {
            Step::Up if depth == 0 => return Err(PathError::Escapes),
            Step::Up => {
                at.pop();
                depth -= 1;
            }
            Step::Down(name) => {
                let next = at.join(name);
                let is_link = next.symlink_metadata().is_ok_and(|meta| meta.is_symlink());
                if is_link {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(PathError::Loop);
                    }
                    for step in steps(&std::fs::read_link(&next)?)?.into_iter().rev() {
                        todo.push_front(step);
                    }
                } else {
                    at = next;
                    depth += 1;
                }
            }
        }
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn resolve_inside_follows_links_but_never_out() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        symlink("..", root.join("a/up")).unwrap();
        symlink("b", root.join("a/to-b")).unwrap();
        symlink("/etc", root.join("abs")).unwrap();
        symlink("../../x", root.join("a/out")).unwrap();
        symlink("up/../y", root.join("a/sly")).unwrap();
        symlink("loop2", root.join("loop1")).unwrap();
        symlink("loop1", root.join("loop2")).unwrap();
        for (path, expected) in [
            ("", Some("")),
            (".", Some("")),
            ("a/b/../b", Some("a/b")),
            ("a/to-b/new", Some("a/b/new")),
            ("a/up/a/b", Some("a/b")),
            ("a/up", Some("")),
            ("missing/../x", Some("x")),
            ("..", None),
            ("a/../..", None),
            ("a/up/..", None),
            ("/etc", None),
            ("abs", None),
            ("abs/passwd", None),
            ("a/out", None),
            ("a/sly", None),
            ("loop1", None),
        ] {
            let got = resolve_inside(&root, Path::new(path)).ok();
            let expected = expected.map(|path| {
                if path.is_empty() {
                    root.clone()
                } else {
                    root.join(path)
                }
            });
            assert_eq!(got, expected, "{path}");
        }
    }
}
