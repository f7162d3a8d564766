//! Folders for fetched contexts.
//!
//! Each folder has a lock that the operating system releases at the end of the process. A folder
//! with a free lock has no owner, and [`remove_orphans`] removes it.

use std::{
    fs::File,
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

/// Prefix of the folder names.
const PREFIX: &str = "acrtask-context-";

/// Folder of this process, removed with this value.
#[derive(Debug)]
pub struct Scratch {
    // Removed before the release of the lock.
    folder: TempDir,
    _lock: File,
}

impl Scratch {
    /// Creates a folder in `parent`. Creates `parent` if it is missing.
    ///
    /// # Errors
    /// The error of the operating system.
    pub fn new(parent: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(parent)?;
        loop {
            let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
            // Until the lock exists, another process may remove the folder as an orphan.
            if let Some(lock) = lock_folder(folder.path()) {
                return Ok(Self {
                    folder,
                    _lock: lock,
                });
            }
        }
    }

    /// Returns the path of the folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Locks a folder of this user. `None` if a running process has the lock, or if the folder does not
/// exist.
fn lock_folder(folder: &Path) -> Option<File> {
    let file = File::open(folder).ok()?;
    file.try_lock().ok()?;
    let (locked, there) = (file.metadata().ok()?, folder.symlink_metadata().ok()?);
    let is_it = there.is_dir() && (locked.dev(), locked.ino()) == (there.dev(), there.ino());
    (is_it && there.uid() == nix::unistd::geteuid().as_raw()).then_some(file)
}

/// Removes the folders of ended processes in `parent`. Returns their paths.
pub fn remove_orphans(parent: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX))
        .map(|entry| entry.path())
        .filter(|folder| {
            let lock = lock_folder(folder);
            lock.is_some() && std::fs::remove_dir_all(folder).is_ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remove_orphans_keeps_locked_folders() {
        let parent = tempfile::tempdir().unwrap();
        let active = Scratch::new(parent.path()).unwrap();
        let left = parent.path().join(format!("{PREFIX}left"));
        std::fs::create_dir_all(left.join("deep")).unwrap();
        let other = parent.path().join("other");
        std::fs::create_dir(&other).unwrap();
        let link = parent.path().join(format!("{PREFIX}link"));
        std::os::unix::fs::symlink(&other, &link).unwrap();
        assert_eq!(remove_orphans(parent.path()), std::slice::from_ref(&left));
        assert!(active.path().is_dir() && other.is_dir() && !left.exists());
        assert!(link.is_symlink());
        let path = active.path().to_owned();
        drop(active);
        assert!(!path.exists());
    }
}
