//! Names of the layer caches that the runs of a task share in a registry.

use sha2::{Digest as _, Sha256};

/// Longest part of a tag that the name of a shared cache may be.
pub(super) const MAX_CACHE_NAME: usize = 64;
/// Bytes of the digest in each name. 128 bits: an author who chooses a task's name finds no second one for a cache.
const DIGEST: usize = 16;

/// Returns the task's name as a part of a tag: its readable start, then a digest of all of it.
///
/// Every name gets the digest. A task whose name looks like the cache of another one gets a different cache.
pub(super) fn cache_name(task: &str) -> String {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let digest = Sha256::digest(task.as_bytes());
    let suffix: String = digest
        .iter()
        .take(DIGEST)
        .map(|b| format!("{b:02x}"))
        .collect();
    let start: String = task
        .chars()
        .take(MAX_CACHE_NAME - suffix.len() - 1)
        .map(|c| if good(c) { c } else { '-' })
        .collect();
    format!("{start}-{suffix}")
}
