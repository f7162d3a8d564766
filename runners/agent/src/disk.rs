//! Free disk space.

use std::path::Path;

/// Returns the bytes that are free for this user at `path`. `None` if the system does not report
/// it.
pub(crate) fn free_bytes(path: &Path) -> Option<u64> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    Some(stat.blocks_available() * stat.fragment_size())
}
