//! Names of the shared layer caches of tasks in registries.

use sha2::{Digest as _, Sha256};

/// Longest name of a shared cache. It is a part of a tag.
pub(super) const MAX_CACHE_NAME: usize = 64;
/// Bytes of the digest in each name. 128 bits prevent an author from finding a second task name for
/// a cache.
const DIGEST: usize = 16;

/// Returns the cache name of a task as a part of a tag: the readable start of the task name, then a
/// digest of all of it.
///
/// Every name gets the digest. A task named like the cache of another task therefore gets a
/// different cache.
pub(crate) fn cache_name(task: &str) -> String {
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
