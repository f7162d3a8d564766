//! The server's record of a repository: when its tags were set, and which of its manifests images
//! of the server need. Purges keep these manifests.

use std::fmt;

use acrtask_model::Digest;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::forms::ContentDigest;

/// Need of the server for a manifest.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "camelCase")]
pub enum Need {
    /// A current image was built from the manifest.
    Base,
    /// The manifest is a staged image, which a promotion will tag.
    Staged,
    /// A rollback of a promotion would restore the manifest.
    Rollback,
    /// The manifest is the build cache of a task.
    Cache,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Base => "a current image was built from it",
            Self::Staged => "staged for a promotion",
            Self::Rollback => "a rollback would restore it",
            Self::Cache => "build cache of a task",
        })
    }
}

/// Time from which on a tag has had a digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TagRecord {
    /// Tag of the repository.
    pub tag: String,
    /// Digest of the tag.
    #[schema(value_type = ContentDigest)]
    pub digest: Digest,
    /// Time of the last push by a run of the server, or of the first poll that found the digest.
    #[schema(value_type = String)]
    pub since: Timestamp,
}

/// Manifest that images of the server need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NeededManifest {
    /// Digest of the manifest.
    #[schema(value_type = ContentDigest)]
    pub digest: Digest,
    /// Need of the server.
    pub need: Need,
}

/// Record of one repository.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RegistryRecord {
    /// Times of tags.
    pub tags: Vec<TagRecord>,
    /// Needed manifests.
    pub needed: Vec<NeededManifest>,
    /// Tags of build caches of tasks that push to the repository. `_` and a step, or `.` and a kind
    /// of object, may follow each.
    pub cache_tags: Vec<String>,
}
