//! Removing records from an endpoint's cache.
//!
//! BuildKit does not record who made an entry: other users of the endpoint lose theirs too. It keeps what a build uses.

use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::PruneRequest;
use bollard_buildkit_proto::moby::buildkit::v1::control_client::ControlClient;
use tonic::Status;

use crate::client::Client;
use crate::transport::MAX_MESSAGE;

/// Cache entries to remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheLimit {
    /// Entries that no build used for this time.
    Unused(Duration),
    /// The entries unused for longest, until the cache takes at most this many bytes.
    Bytes(u64),
}

/// Removed cache entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PrunedCache {
    /// Number of entries.
    pub entries: u64,
    /// Their size in bytes.
    pub bytes: u64,
}

/// The endpoint did not remove cache entries.
#[derive(Debug, thiserror::Error)]
#[error("cannot remove entries of BuildKit's cache")]
pub struct PruneError(#[from] Status);

impl CacheLimit {
    fn request(self) -> PruneRequest {
        let request = PruneRequest {
            all: true,
            ..PruneRequest::default()
        };
        match self {
            Self::Unused(time) => PruneRequest {
                // 0 would be every entry.
                keep_duration: i64::try_from(time.as_nanos()).unwrap_or(i64::MAX).max(1),
                ..request
            },
            Self::Bytes(bytes) => {
                let bytes = i64::try_from(bytes).unwrap_or(i64::MAX).max(1);
                PruneRequest {
                    // Older versions know the first one alone, as the bytes to keep.
                    reserved_space: bytes,
                    max_used_space: bytes,
                    ..request
                }
            }
        }
    }
}

impl Client {
    /// Removes cache entries beyond `limit`, and returns what was removed.
    pub async fn prune_cache(&self, limit: CacheLimit) -> Result<PrunedCache, PruneError> {
        let mut control =
            ControlClient::new(self.inner.channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        let mut records = control.prune(limit.request()).await?.into_inner();
        let mut pruned = PrunedCache::default();
        while let Some(record) = records.message().await? {
            pruned.entries += 1;
            pruned.bytes += u64::try_from(record.size).unwrap_or_default();
        }
        Ok(pruned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_means_every_entry() {
        let limits = [
            CacheLimit::Unused(Duration::ZERO),
            CacheLimit::Unused(Duration::MAX),
            CacheLimit::Bytes(0),
            CacheLimit::Bytes(u64::MAX),
        ];
        for limit in limits {
            let request = limit.request();
            let is_unlimited = request.keep_duration == 0 && request.reserved_space == 0;
            assert!(!is_unlimited && request.filter.is_empty(), "{request:?}");
            assert!(
                request.keep_duration >= 0 && request.max_used_space >= 0,
                "{request:?}"
            );
        }
    }
}
