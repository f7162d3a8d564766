//! The folder that an archive is written into.
//!
//! Nothing is written below a link, or through one: every folder on the way to an entry is looked at, and what
//! stands in an entry's place is removed first. A folder, once seen, stays a folder.

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

/// Why an entry could not be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// It may not be.
    #[error("{0}")]
    Refused(String),
    /// The system says no.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Bytes of the names of folders that are remembered. Each folder on the way to an entry is, so that a few bytes of an
/// archive can name a thousand.
const MAX_NAMES: usize = 256 << 20;

/// The folder, and what has still to be done when all is there.
pub(super) struct Tree<'a> {
    root: &'a Path,
    /// Folders below the root that are known to be folders.
    known: HashSet<PathBuf>,
    /// Whether there is a link of either kind among the entries.
    has_links: bool,
    links: Links,
    folders: Vec<(PathBuf, u32, u64)>,
    /// Bytes of all names in `known` and `folders`.
    names: usize,
}

impl<'a> Tree<'a> {
    /// `root` has to be absolute and without links. It holds nothing, or what other archives left there.
    pub(super) fn new(root: &'a Path, links: Links) -> Self {
        Self {
            root,
            known: HashSet::new(),
            has_links: false,
            links,
            folders: Vec::new(),
            names: 0,
        }
    }

    /// Creates an empty file that only its owner may read. [`set_mode`] gives it its own mode once it is written.
    pub(super) fn file(&mut self, path: &Path) -> Result<File, Trouble> {
        let full = self.make_room(path)?;
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(full)?;
        Ok(file)
    }

    pub(super) fn folder(&mut self, path: &Path, mode: u32, modified: u64) -> Result<(), Trouble> {
        self.make_folder(path)?;
        self.count(path)?;
        self.folders
            .push((path.to_owned(), usable(mode, 0o700), modified));
        Ok(())
    }

    pub(super) fn symlink(&mut self, path: &Path, to: &Path) -> Result<(), Trouble> {
        let full = self.make_room(path)?;
        symlink(to, full)?;
        self.has_links = true;
        Ok(())
    }

    pub(super) fn hard_link(&mut self, path: &Path, to: &Path) -> Result<(), Trouble> {
        if path == to {
            return Ok(());
        }
        if let Some(parent) = to.parent() {
            self.check_folder(parent)?;
        }
        let target = self.root.join(to);
        if target.symlink_metadata().is_err() {
            return Err(Trouble::Refused(format!(
                "a hard link to `{}`, which is not in the archive before it",
                to.display()
            )));
        }
        let full = self.make_room(path)?;
        // Does not follow a link at its end.
        fs::hard_link(target, full)?;
        self.has_links = true;
        Ok(())
    }

    /// No link may lead out, whatever the links are that it passes: only when all are there can that be said. All links
    /// of the folder are looked at, because a hard link is a symbolic one in another place, and because a link
    /// may change where those of an earlier archive lead. Then the folders get their modes and times.
    pub(super) fn finish(self) -> Result<(), (PathBuf, Trouble)> {
        if self.has_links && self.links == Links::Inside {
            check_links(self.root)?;
        }
        for (folder, mode, modified) in self.folders.into_iter().rev() {
            dress(&self.root.join(&folder), mode, modified)
                .map_err(|error| (folder, error.into()))?;
        }
        Ok(())
    }

    /// Makes what is above `path`, and removes a file or link in its place. Gives the full path.
    fn make_room(&mut self, path: &Path) -> Result<PathBuf, Trouble> {
        if let Some(parent) = path.parent() {
            self.make_folder(parent)?;
        }
        let full = self.root.join(path);
        match fs::remove_file(&full) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(full),
        }
    }

    fn make_folder(&mut self, path: &Path) -> Result<(), Trouble> {
        self.go(path, true).map(drop)
    }

    /// Whether `path` is a folder; false if there is nothing yet. Refused if it, or what is above it, is anything else.
    fn check_folder(&mut self, path: &Path) -> Result<bool, Trouble> {
        self.go(path, false)
    }

    /// Looks at every folder from the root to `path`, and makes what is missing if `make` says so.
    fn go(&mut self, path: &Path, make: bool) -> Result<bool, Trouble> {
        if path.as_os_str().is_empty() || self.known.contains(path) {
            return Ok(true);
        }
        let mut at = PathBuf::new();
        for part in path.components() {
            at.push(part);
            if self.known.contains(&at) {
                continue;
            }
            let full = self.root.join(&at);
            match full.symlink_metadata() {
                Ok(meta) if meta.is_dir() => {}
                Ok(meta) => {
                    let what = if meta.is_symlink() { "link" } else { "file" };
                    return Err(Trouble::Refused(format!(
                        "`{}` on its way is a {what}",
                        at.display()
                    )));
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                Err(_) if make => fs::create_dir(full)?,
                Err(_) => return Ok(false),
            }
            self.know(&at)?;
        }
        Ok(true)
    }

    fn know(&mut self, path: &Path) -> Result<(), Trouble> {
        self.count(path)?;
        self.known.insert(path.to_owned());
        Ok(())
    }

    fn count(&mut self, path: &Path) -> Result<(), Trouble> {
        // With what a name costs beside its bytes.
        self.names += path.as_os_str().len() + size_of::<(PathBuf, u32, u64)>();
        if self.names > MAX_NAMES {
            return Err(Trouble::Refused(format!(
                "the names of the folders of the archive take more than {} MiB",
                MAX_NAMES >> 20
            )));
        }
        Ok(())
    }
}

/// Gives a written file its mode. Writing to a file can clear the bits for its user and group.
pub(super) fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(usable(mode, 0o400)))
}

/// Returns the mode with which this process can use an entry: with `needed` bits, unless it is root, which needs none.
fn usable(mode: u32, needed: u32) -> u32 {
    if nix::unistd::geteuid().is_root() {
        mode
    } else {
        mode | needed
    }
}

/// Gives a folder its mode, and the time at which it was last changed.
fn dress(folder: &Path, mode: u32, modified: u64) -> io::Result<()> {
    fs::set_permissions(folder, Permissions::from_mode(mode))?;
    match SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(modified)) {
        Some(modified) => File::open(folder)?.set_modified(modified),
        None => Ok(()),
    }
}

/// Refuses a folder in which a symbolic link leads out of it.
fn check_links(root: &Path) -> Result<(), (PathBuf, Trouble)> {
    for entry in WalkDir::new(root).min_depth(1) {
        let entry = entry.map_err(|error| {
            let path = error.path().unwrap_or(root).to_owned();
            (path, Trouble::Io(error.into()))
        })?;
        if entry.path_is_symlink() {
            let link = entry.path().strip_prefix(root).unwrap_or(entry.path());
            paths::inside(root, link).map_err(|error| {
                (
                    link.to_owned(),
                    Trouble::Refused(format!("a link: {error}")),
                )
            })?;
        }
    }
    Ok(())
}
