//! Removal of what runs leave on the engine and the builder, by age and disk use.
//!
//! Pulled images and the remains of killed runs have names or labels of acrtask, and housekeeping
//! removes nothing else. Entries of BuildKit's cache have no such mark, so they are removed only if
//! the operator set a limit.

use std::{path::PathBuf, sync::Arc, time::Duration};

use acrtask_executor::{CacheLimit, Executor};
use tokio::time::Instant;

use crate::{config::AgentConfig, disk, error::chain};

/// Interval between two passes.
const INTERVAL: Duration = Duration::from_secs(3600);
/// Interval between two checks of the disk, and pause while a run prevents a removal.
const CHECK: Duration = Duration::from_secs(60);
/// Age from which images are removed on a nearly full disk.
const YOUNG: Duration = Duration::from_secs(3600);

/// Limits of what runs leave behind.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Age of pulled images.
    images: Duration,
    /// Maximum time without use of an entry of the build cache. `None`: no limit.
    cache_age: Option<Duration>,
    /// Maximum size of the build cache, in bytes. `None`: no limit.
    cache_bytes: Option<u64>,
    /// Free bytes below which the disk is nearly full.
    least_free: u64,
}

/// A removal that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Removal {
    Leftovers,
    Images(Duration),
    Cache(CacheLimit),
}

impl Limits {
    pub(crate) fn from_config(config: &AgentConfig) -> Self {
        Self {
            images: config.keep_images,
            cache_age: config.keep_build_cache,
            cache_bytes: config.build_cache_limit,
            least_free: config.min_free_disk,
        }
    }

    /// Returns the removals of one pass. On a nearly full disk the ages shrink to an hour.
    fn removals(&self, is_low: bool) -> Vec<Removal> {
        let age = |age: Duration| if is_low { age.min(YOUNG) } else { age };
        let has_cache_limit = self.cache_age.is_some() || self.cache_bytes.is_some();
        let cache_age = self
            .cache_age
            .or((is_low && has_cache_limit).then_some(YOUNG));
        let mut removals = vec![Removal::Leftovers, Removal::Images(age(self.images))];
        removals.extend(cache_age.map(|unused| Removal::Cache(CacheLimit::Unused(age(unused)))));
        removals.extend(
            self.cache_bytes
                .map(|bytes| Removal::Cache(CacheLimit::Bytes(bytes))),
        );
        removals
    }

    /// Returns the limits as text for people, which the server displays.
    pub(crate) fn describe(&self) -> String {
        let hours = |time: Duration| format!("{} h", time.as_secs().div_ceil(3600));
        let mut text = format!("pulled images after {}", hours(self.images));
        if let Some(unused) = self.cache_age {
            text += &format!(", build cache unused for {}", hours(unused));
        }
        if let Some(bytes) = self.cache_bytes {
            text += &format!(", build cache above {} MiB", bytes >> 20);
        }
        text
    }
}

/// Enforces the limits without end.
pub(crate) async fn enforce_limits(executor: Arc<Executor>, limits: Limits, folder: PathBuf) {
    let mut due = Instant::now();
    loop {
        let is_low = disk::free_bytes(&folder).is_some_and(|free| free < limits.least_free);
        if is_low || Instant::now() >= due {
            let mut is_done = true;
            for removal in limits.removals(is_low) {
                is_done &= carry_out(&executor, removal).await;
            }
            if is_done {
                due = Instant::now() + INTERVAL;
            }
        }
        tokio::time::sleep(CHECK).await;
    }
}

/// Executes a removal. Returns `false` if a run prevents it and it has to be retried soon.
async fn carry_out(executor: &Executor, removal: Removal) -> bool {
    match removal {
        Removal::Leftovers => {
            for removed in executor.remove_orphans().await {
                tracing::info!(removed, "removed what a killed run had left behind");
            }
        }
        Removal::Images(age) => match executor.remove_pulled_images(age).await {
            Ok(None) => return false,
            Ok(Some(0)) => {}
            Ok(Some(count)) => {
                tracing::info!(count, ?age, "removed old images that runs had pulled");
            }
            Err(error) => tracing::warn!(error = chain(&error), "cannot remove old images"),
        },
        Removal::Cache(limit) => match executor.prune_build_cache(limit).await {
            Ok(pruned) if pruned.entries == 0 => {}
            Ok(pruned) => tracing::info!(
                entries = pruned.entries,
                bytes = pruned.bytes,
                ?limit,
                "removed entries of the build cache"
            ),
            Err(error) => {
                tracing::warn!(
                    error = chain(&error),
                    "cannot remove entries of the build cache"
                );
            }
        },
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn limits(cache_age: Option<Duration>, cache_bytes: Option<u64>) -> Limits {
        Limits {
            images: 7 * DAY,
            cache_age,
            cache_bytes,
            least_free: 1 << 30,
        }
    }

    #[test]
    fn build_cache_stays_without_a_limit() {
        for is_low in [false, true] {
            let removals = limits(None, None).removals(is_low);
            assert!(
                !removals
                    .iter()
                    .any(|removal| matches!(removal, Removal::Cache(_)))
            );
            let images = Removal::Images(if is_low { YOUNG } else { 7 * DAY });
            assert_eq!(removals, [Removal::Leftovers, images]);
        }
    }

    #[test]
    fn full_disk_shortens_the_ages() {
        let unused = |time| Removal::Cache(CacheLimit::Unused(time));
        let bytes = Removal::Cache(CacheLimit::Bytes(5));
        let cache = |limits: &Limits, is_low| limits.removals(is_low)[2..].to_vec();
        let both = limits(Some(DAY), Some(5));
        assert_eq!(cache(&both, false), [unused(DAY), bytes]);
        assert_eq!(cache(&both, true), [unused(YOUNG), bytes]);
        let size = limits(None, Some(5));
        assert_eq!(cache(&size, false), [bytes]);
        assert_eq!(cache(&size, true), [unused(YOUNG), bytes]);
        let short = limits(Some(Duration::from_secs(60)), None);
        assert_eq!(cache(&short, true), [unused(Duration::from_secs(60))]);
    }

    #[test]
    fn limits_are_described() {
        let text = limits(Some(DAY), Some(10 << 30)).describe();
        assert_eq!(
            text,
            "pulled images after 168 h, build cache unused for 24 h, build cache above 10240 MiB"
        );
    }
}
