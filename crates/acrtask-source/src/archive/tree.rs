//! Target folder of an archive.
//!
//! Unpacking writes nothing below a link or through one. It checks every folder on the path of an
//! entry, and removes an existing file or link in the entry's place. A checked folder stays a
//! folder.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use walkdir::WalkDir;

use super::Links;
use crate::paths;

/// Failure to write an entry.
#[derive(Debug, thiserror::Error)]
pub(super) enum EntryError {
    /// The entry is not permitted.
    #[error("{0}")]
    Refused(String),
    /// The operating system reported an error.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Maximum size of the remembered folder names, in bytes. A few bytes of an archive can name a
/// thousand folders, and each one is remembered.
const MAX_NAMES: usize = 256 << 20;

/// Target folder, with the work that remains at the end.
pub(super) struct Tree<'a> {
    root: &'a Path,
    /// Checked folders below the root.
    folders_seen: HashSet<PathBuf>,
    /// `true` if the entries include a symbolic or hard link.
    has_links: bool,
    links: Links,
    folders: Vec<(PathBuf, u32, u64)>,
    /// Size of all names in `folders_seen` and `folders`, in bytes.
    names: usize,
}

impl<'a> Tree<'a> {
    /// Creates a tree at `root`, an absolute path without links. The folder is empty, or contains
    /// the files of other archives.
    pub(super) fn new(root: &'a Path, links: Links) -> Self {
        Self {
            root,
            folders_seen: HashSet::new(),
            has_links: false,
            links,
            folders: Vec::new(),
            names: 0,
        }
    }

    /// Creates an empty file that only its owner may read. [`set_mode`] sets its final mode after
    /// the content.
    pub(super) fn create_file(&mut self, path: &Path) -> Result<File, EntryError> {
        let full = self.prepare_path(path)?;
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(full)?;
        Ok(file)
    }

    pub(super) fn add_folder(
        &mut self,
        path: &Path,
        mode: u32,
        modified: u64,
    ) -> Result<(), EntryError> {
        self.make_folder(path)?;
        self.count_name(path)?;
        self.folders
            .push((path.to_owned(), usable_mode(mode, 0o700), modified));
        Ok(())
    }

    pub(super) fn add_symlink(&mut self, path: &Path, to: &Path) -> Result<(), EntryError> {
        let full = self.prepare_path(path)?;
        symlink(to, full)?;
        self.has_links = true;
        Ok(())
    }

    pub(super) fn add_hard_link(&mut self, path: &Path, to: &Path) -> Result<(), EntryError> {
        if path == to {
            return Ok(());
        }
        if let Some(parent) = to.parent() {
            self.check_folder(parent)?;
        }
        let target = self.root.join(to);
        if target.symlink_metadata().is_err() {
            return Err(EntryError::Refused(format!(
                "a hard link to `{}`, which is not in the archive before it",
                to.display()
            )));
        }
        let full = self.prepare_path(path)?;
        // Does not follow a link in the last component.
        fs::hard_link(target, full)?;
        self.has_links = true;
        Ok(())
    }

    /// Checks that no link leads out, and sets the modes and times of the folders.
    ///
    /// A link may pass other links, so the check needs all of them. It includes the links of
    /// earlier archives, because a new link may change their targets. A hard link may also be a
    /// symbolic link in another folder.
    pub(super) fn finish(self) -> Result<(), (PathBuf, EntryError)> {
        if self.has_links && self.links == Links::Inside {
            check_links(self.root)?;
        }
        for (folder, mode, modified) in self.folders.into_iter().rev() {
            set_folder_metadata(&self.root.join(&folder), mode, modified)
                .map_err(|error| (folder, error.into()))?;
        }
        Ok(())
    }

    /// Creates the parents of `path`, and removes a file or link in its place. Returns the full
    /// path.
    fn prepare_path(&mut self, path: &Path) -> Result<PathBuf, EntryError> {
        if let Some(parent) = path.parent() {
            self.make_folder(parent)?;
        }
        let full = self.root.join(path);
        match fs::remove_file(&full) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(full),
        }
    }

    fn make_folder(&mut self, path: &Path) -> Result<(), EntryError> {
        self.walk_folders(path, true).map(drop)
    }

    /// Returns `true` if `path` is a folder, and `false` if it does not exist. Refuses other kinds
    /// of files on the path.
    fn check_folder(&mut self, path: &Path) -> Result<bool, EntryError> {
        self.walk_folders(path, false)
    }

    /// Checks every folder from the root to `path`. Creates missing folders if `make` is set.
    fn walk_folders(&mut self, path: &Path, make: bool) -> Result<bool, EntryError> {
        if path.as_os_str().is_empty() || self.folders_seen.contains(path) {
            return Ok(true);
        }
        let mut at = PathBuf::new();
        for part in path.components() {
            at.push(part);
            if self.folders_seen.contains(&at) {
                continue;
            }
            let full = self.root.join(&at);
            match full.symlink_metadata() {
                Ok(meta) if meta.is_dir() => {}
                Ok(meta) => {
                    let kind = if meta.is_symlink() { "link" } else { "file" };
                    return Err(EntryError::Refused(format!(
                        "`{}` on its way is a {kind}",
                        at.display()
                    )));
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                Err(_) if make => fs::create_dir(full)?,
                Err(_) => return Ok(false),
            }
            self.remember(&at)?;
        }
        Ok(true)
    }

    fn remember(&mut self, path: &Path) -> Result<(), EntryError> {
        self.count_name(path)?;
        self.folders_seen.insert(path.to_owned());
        Ok(())
    }

    fn count_name(&mut self, path: &Path) -> Result<(), EntryError> {
        // Includes the memory that a name costs in addition to its bytes.
        self.names += path.as_os_str().len() + size_of::<(PathBuf, u32, u64)>();
        if self.names > MAX_NAMES {
            return Err(EntryError::Refused(format!(
                "the folder names of the archive need more than {} MiB",
                MAX_NAMES >> 20
            )));
        }
        Ok(())
    }
}

/// Sets the mode of a written file. Writing to a file can clear its set-ID bits.
pub(super) fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(usable_mode(mode, 0o400)))
}

/// Returns a mode that lets this process use an entry. Adds the bits `needed`, unless the process
/// is root.
fn usable_mode(mode: u32, needed: u32) -> u32 {
    if nix::unistd::geteuid().is_root() {
        mode
    } else {
        mode | needed
    }
}

/// Sets the mode and the modification time of a folder.
fn set_folder_metadata(folder: &Path, mode: u32, modified: u64) -> io::Result<()> {
    fs::set_permissions(folder, Permissions::from_mode(mode))?;
    match SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(modified)) {
        Some(modified) => File::open(folder)?.set_modified(modified),
        None => Ok(()),
    }
}

/// Refuses a folder that contains a symbolic link to a target outside it.
fn check_links(root: &Path) -> Result<(), (PathBuf, EntryError)> {
    for entry in WalkDir::new(root).min_depth(1) {
        let entry = entry.map_err(|error| {
            let path = error.path().unwrap_or(root).to_owned();
            (path, EntryError::Io(error.into()))
        })?;
        if entry.path_is_symlink() {
            let link = entry.path().strip_prefix(root).unwrap_or(entry.path());
            paths::resolve_inside(root, link).map_err(|error| {
                (
                    link.to_owned(),
                    EntryError::Refused(format!("a link: {error}")),
                )
            })?;
        }
    }
    Ok(())
}
