//! What an entry of an archive is, by its header alone.

use std::path::{Component, Path, PathBuf};

use tokio_tar::EntryType;

use super::Links;

/// An entry that may be unpacked, as far as its header tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Item {
    /// A file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link to this text.
    Symlink(PathBuf),
    /// A hard link to this path, relative to the root.
    HardLink(PathBuf),
}

/// Where an entry goes, relative to the root, and what it is. An empty path is the root itself.
///
/// # Errors
/// A sentence on why it is refused.
pub(super) fn classify(
    kind: EntryType,
    name: &Path,
    link: &Path,
    links: Links,
) -> Result<(PathBuf, Item), String> {
    let path = clean(name).map_err(|reason| format!("its name {reason}"))?;
    let item = match kind {
        // The oldest archives know a folder by its slash.
        EntryType::Regular if name.as_os_str().as_encoded_bytes().ends_with(b"/") => Item::Folder,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Item::File,
        EntryType::Directory => Item::Folder,
        EntryType::Symlink => {
            check_symlink(&path, link, links)?;
            Item::Symlink(link.to_owned())
        }
        EntryType::Link => Item::HardLink(
            clean(link).map_err(|reason| format!("a hard link whose target {reason}"))?,
        ),
        EntryType::Char | EntryType::Block => return Err("a device".into()),
        EntryType::Fifo => return Err("a pipe".into()),
        other => {
            return Err(format!(
                "of a type that is not known, {:#04x}",
                other.as_byte()
            ));
        }
    };
    Ok((path, item))
}

/// Longest name, in bytes: what Linux takes. A longer one could also have more folders in it than a stack has room for.
const MAX_NAME: usize = 4096;

/// A name without `.` and trailing slashes.
fn clean(name: &Path) -> Result<PathBuf, &'static str> {
    if name.as_os_str().len() > MAX_NAME {
        return Err("is longer than 4096 bytes");
    }
    name.components()
        .filter(|part| *part != Component::CurDir)
        .map(|part| match part {
            Component::Normal(name) => Ok(name),
            Component::ParentDir => Err("has `..` in it"),
            _ => Err("is absolute"),
        })
        .collect()
}

/// The target of a symbolic link at `path`, as it is written. Links that it passes are another matter.
fn check_symlink(path: &Path, to: &Path, links: Links) -> Result<(), &'static str> {
    if to.as_os_str().is_empty() {
        return Err("a link to nothing");
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
