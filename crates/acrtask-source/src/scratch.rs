//! Folders for what is fetched.
//!
//! Each is held by a lock that the system gives back when its process ends, however it ends. A folder whose lock
//! is free belongs to nobody any more, and [`remove_leftovers`] removes it.

use std::{
    fs::File,
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

/// What their names begin with.
const PREFIX: &str = "acrtask-context-";

/// A folder of this process, removed with this value.
#[derive(Debug)]
pub struct Scratch {
    // Removed before the lock is given back.
    folder: TempDir,
    _lock: File,
}

impl Scratch {
    /// A new one in `parent`, which is made where it is missing.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(parent: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(parent)?;
        loop {
            let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
            // Before it is locked, another process may take it for one that was left.
            if let Some(lock) = lock(folder.path()) {
                return Ok(Self {
                    folder,
                    _lock: lock,
                });
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// The lock on a folder of this user's; nothing where a living process has it, or where there is no such folder.
fn lock(folder: &Path) -> Option<File> {
    let file = File::open(folder).ok()?;
    file.try_lock().ok()?;
    let (locked, there) = (file.metadata().ok()?, folder.symlink_metadata().ok()?);
    let is_it = there.is_dir() && (locked.dev(), locked.ino()) == (there.dev(), there.ino());
    (is_it && there.uid() == nix::unistd::geteuid().as_raw()).then_some(file)
}

/// Removes what processes that have ended left in `parent`; returns what was removed.
pub fn remove_leftovers(parent: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX))
        .map(|entry| entry.path())
        .filter(|folder| {
            let held = lock(folder);
            held.is_some() && std::fs::remove_dir_all(folder).is_ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_holds_is_removed() {
        let parent = tempfile::tempdir().unwrap();
        let held = Scratch::new(parent.path()).unwrap();
        let left = parent.path().join(format!("{PREFIX}left"));
        std::fs::create_dir_all(left.join("deep")).unwrap();
        let other = parent.path().join("other");
        std::fs::create_dir(&other).unwrap();
        let link = parent.path().join(format!("{PREFIX}link"));
        std::os::unix::fs::symlink(&other, &link).unwrap();
        assert_eq!(remove_leftovers(parent.path()), std::slice::from_ref(&left));
        assert!(held.path().is_dir() && other.is_dir() && !left.exists());
        assert!(link.is_symlink());
        let path = held.path().to_owned();
        drop(held);
        assert!(!path.exists());
    }
}
