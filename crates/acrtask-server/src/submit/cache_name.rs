//! Names of the layer caches that the runs of a task share in a registry.

use sha2::{Digest as _, Sha256};

/// Longest part of a tag that the name of a shared cache may be.
pub(super) const MAX_CACHE_NAME: usize = 64;

/// A task's name as a part of a tag. Two names never become the same.
pub(super) fn cache_name(task: &str) -> String {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if task.len() <= MAX_CACHE_NAME && task.chars().all(good) {
        return task.to_owned();
    }
    let digest = Sha256::digest(task.as_bytes());
    let suffix: String = digest.iter().take(6).map(|b| format!("{b:02x}")).collect();
    let start: String = task
        .chars()
        .take(MAX_CACHE_NAME - 13)
        .map(|c| if good(c) { c } else { '-' })
        .collect();
    format!("{start}-{suffix}")
}
