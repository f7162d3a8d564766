//! Removal of records from the cache of an endpoint.
//!
//! BuildKit does not record the owner of an entry, so pruning also removes entries of other users
//! of the endpoint. It keeps the entries of running builds.

use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::PruneRequest;
use bollard_buildkit_proto::moby::buildkit::v1::control_client::ControlClient;
use tonic::Status;

use crate::client::Client;
use crate::transport::MAX_MESSAGE;

/// Selection of the cache entries to remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheLimit {
    /// Entries that were unused for this time.
    Unused(Duration),
    /// Least recently used entries, until the cache takes at most this many bytes.
    Bytes(u64),
}

/// Removed cache entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PrunedCache {
    /// Number of entries.
    pub entries: u64,
    /// Size of the entries, in bytes.
    pub bytes: u64,
}

/// Error of removing cache entries.
#[derive(Debug, thiserror::Error)]
#[error("cannot remove entries of BuildKit's cache")]
pub struct PruneError(#[from] Status);

impl CacheLimit {
    fn to_request(self) -> PruneRequest {
        let request = PruneRequest {
            all: true,
            ..PruneRequest::default()
        };
        match self {
            Self::Unused(time) => PruneRequest {
                // 0 would select every entry.
                keep_duration: i64::try_from(time.as_nanos()).unwrap_or(i64::MAX).max(1),
                ..request
            },
            Self::Bytes(bytes) => {
                let bytes = i64::try_from(bytes).unwrap_or(i64::MAX).max(1);
                PruneRequest {
                    // Older versions support only this field, as the number of bytes to keep.
                    reserved_space: bytes,
                    max_used_space: bytes,
                    ..request
                }
            }
        }
    }
}

impl Client {
    /// Removes cache entries beyond `limit`. Returns their number and size.
    pub async fn prune_cache(&self, limit: CacheLimit) -> Result<PrunedCache, PruneError> {
        let mut control =
            ControlClient::new(self.inner.channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        let mut records = control.prune(limit.to_request()).await?.into_inner();
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
    fn to_request_never_selects_every_entry() {
        let limits = [
            CacheLimit::Unused(Duration::ZERO),
            CacheLimit::Unused(Duration::MAX),
            CacheLimit::Bytes(0),
            CacheLimit::Bytes(u64::MAX),
        ];
        for limit in limits {
            let request = limit.to_request();
            let is_unlimited = request.keep_duration == 0 && request.reserved_space == 0;
            assert!(!is_unlimited && request.filter.is_empty(), "{request:?}");
            assert!(
                request.keep_duration >= 0 && request.max_used_space >= 0,
                "{request:?}"
            );
        }
    }
}
