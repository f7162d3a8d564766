//! How much room there is.

use std::path::Path;

/// Bytes that are free for this user where `path` is; nothing where the system does not tell.
pub(crate) fn free(path: &Path) -> Option<u64> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    Some(stat.blocks_available() * stat.fragment_size())
}
