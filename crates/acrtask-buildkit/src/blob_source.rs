//! Blobs that this program serves to a builder, instead of a registry.

use std::{fmt, fs::File, sync::Arc};

use futures::future::BoxFuture;

/// Source of blobs by digest: manifests, configurations and layers of one image or cache.
pub trait BlobSource: fmt::Debug + Send + Sync {
    /// Opens a blob. `None` if the source does not contain it. The builder compares the content
    /// with the digest.
    ///
    /// # Errors
    /// A sentence for the user.
    fn open<'a>(&'a self, digest: &'a str) -> BoxFuture<'a, Result<Option<File>, String>>;
}

/// Image or cache with blobs from this program.
#[derive(Debug, Clone)]
pub struct ProvidedImage {
    /// Digest of its manifest or index.
    pub digest: String,
    /// Blobs of the image or cache.
    pub blobs: Arc<dyn BlobSource>,
}
