//! Blobs that this program gives to a builder, in place of a registry that the builder would ask itself.

use std::{fmt, fs::File, sync::Arc};

use futures::future::BoxFuture;

/// Blobs by digest: manifests, configurations and layers of one image or cache.
pub trait BlobSource: fmt::Debug + Send + Sync {
    /// Opens a blob. `None` if the source does not have it. The builder compares the content with the digest.
    ///
    /// # Errors
    /// A sentence for the user.
    fn open<'a>(&'a self, digest: &'a str) -> BoxFuture<'a, Result<Option<File>, String>>;
}

/// An image or a cache whose blobs come from this program.
#[derive(Debug, Clone)]
pub struct ProvidedImage {
    /// The digest of its manifest or index.
    pub digest: String,
    /// Blobs of the image or cache.
    pub blobs: Arc<dyn BlobSource>,
}
