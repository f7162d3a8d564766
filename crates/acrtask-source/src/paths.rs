//! Paths that must not leave a folder.

use std::{
    collections::VecDeque,
    ffi::OsString,
    fs::File,
    io::{self, Read as _},
    path::{Component, Path, PathBuf},
};

/// Links that are followed for one path, as Linux does.
const MAX_LINKS: usize = 40;

/// Why a path is not inside.
#[derive(Debug, thiserror::Error)]
pub enum Outside {
    /// It, or a link on its way, leads out.
    #[error("it leads out of the context")]
    Escapes,
    /// Links that lead to each other.
    #[error("it has more than {MAX_LINKS} links on its way")]
    Loop,
    /// A link that cannot be read.
    #[error("it cannot be followed: {0}")]
    Io(#[from] std::io::Error),
}

/// Returns the path of a regular file of the folder `root`, without links. A task may have made it a link that leads out,
/// or to a device without an end.
///
/// # Errors
/// The file is not there, or is not a regular file of the folder.
pub fn file_inside(root: &Path, relative: &Path) -> io::Result<PathBuf> {
    let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
    let path = inside(&root.canonicalize()?, relative);
    let path = path.map_err(|error| invalid(error.to_string()))?;
    if path.metadata()?.is_file() {
        Ok(path)
    } else {
        Err(invalid("it is not a regular file".into()))
    }
}

/// Reads a regular file of the folder `root`, of at most `limit` bytes.
///
/// # Errors
/// As [`file_inside`]; the file has more bytes.
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

/// Where `relative` leads to from `root`, with the links on its way followed, the last one too. What does
/// not exist is taken as it is written. An absolute path, or a `..` or link that leads above `root`
/// on the way, is an error even if a later part would lead back in.
///
/// `root` has to be absolute and without links. The answer holds as long as nobody changes the folder.
///
/// # Errors
/// [`Outside`].
pub fn inside(root: &Path, relative: &Path) -> Result<PathBuf, Outside> {
    enum Step {
        Down(OsString),
        Up,
    }
    fn steps(path: &Path) -> Result<Vec<Step>, Outside> {
        path.components()
            .filter(|part| *part != Component::CurDir)
            .map(|part| match part {
                Component::Normal(name) => Ok(Step::Down(name.to_owned())),
                Component::ParentDir => Ok(Step::Up),
                _ => Err(Outside::Escapes),
            })
            .collect()
    }
    let mut todo: VecDeque<Step> = steps(relative)?.into();
    let mut depth = 0usize;
    let mut links = 0;
    let mut at = root.to_owned();
    while let Some(step) = todo.pop_front() {
        match step {
            Step::Up if depth == 0 => return Err(Outside::Escapes),
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
                        return Err(Outside::Loop);
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
    fn follows_links_and_never_out() {
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
            let got = inside(&root, Path::new(path)).ok();
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
