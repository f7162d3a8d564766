//! Kind of an archive entry, from its header alone.

use std::path::{Component, Path, PathBuf};

use tokio_tar::EntryType;

use super::Links;

/// Entry that may be unpacked, as far as its header shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Item {
    File,
    Folder,
    /// Symbolic link with this target.
    Symlink(PathBuf),
    /// Hard link to this path, relative to the root.
    HardLink(PathBuf),
}

/// Returns the path of an entry relative to the root, and its kind. An empty path is the root
/// itself.
///
/// # Errors
/// A sentence with the reason for the refusal.
pub(super) fn classify(
    kind: EntryType,
    name: &Path,
    link: &Path,
    links: Links,
) -> Result<(PathBuf, Item), String> {
    // The Azure CLI begins its archives with this folder.
    if kind == EntryType::Directory && name.as_os_str() == "/" {
        return Ok((PathBuf::new(), Item::Folder));
    }
    let path = clean_path(name).map_err(|reason| format!("its name {reason}"))?;
    let item = match kind {
        // The oldest archives mark a folder by a trailing slash.
        EntryType::Regular if name.as_os_str().as_encoded_bytes().ends_with(b"/") => Item::Folder,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Item::File,
        EntryType::Directory => Item::Folder,
        EntryType::Symlink => {
            check_symlink(&path, link, links)?;
            Item::Symlink(link.to_owned())
        }
        EntryType::Link => Item::HardLink(
            clean_path(link).map_err(|reason| format!("a hard link whose target {reason}"))?,
        ),
        EntryType::Char | EntryType::Block => return Err("a device".into()),
        EntryType::Fifo => return Err("a pipe".into()),
        other => {
            return Err(format!("of the unknown type {:#04x}", other.as_byte()));
        }
    };
    Ok((path, item))
}

/// Maximum length of a name, in bytes, as on Linux. A longer one could also contain more folders
/// than fit on a stack.
const MAX_NAME: usize = 4096;

/// Removes `.` and trailing slashes from a name.
fn clean_path(name: &Path) -> Result<PathBuf, &'static str> {
    if name.as_os_str().len() > MAX_NAME {
        return Err("is longer than 4096 bytes");
    }
    name.components()
        .filter(|part| *part != Component::CurDir)
        .map(|part| match part {
            Component::Normal(name) => Ok(name),
            Component::ParentDir => Err("contains `..`"),
            _ => Err("is absolute"),
        })
        .collect()
}

/// Checks the target of a symbolic link at `path`, as its text. Does not follow other links.
fn check_symlink(path: &Path, to: &Path, links: Links) -> Result<(), &'static str> {
    if to.as_os_str().is_empty() {
        return Err("a link without a target");
    }
    if links == Links::Anywhere {
        return Ok(());
    }
    if to.is_absolute() {
        return Err("a link to an absolute path");
    }
    let mut depth = path.components().count().saturating_sub(1);
    for part in to.components() {
        match part {
            Component::ParentDir if depth == 0 => {
                return Err("a link that leads out of the archive");
            }
            Component::ParentDir => depth -= 1,
            Component::Normal(_) => depth += 1,
            _ => {}
        }
    }
    Ok(())
}
