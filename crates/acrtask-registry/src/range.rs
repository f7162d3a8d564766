//! Parts of blobs, to compare a blob with a copy without a complete download.

use acrtask_model::{Digest, ImageRef};
use bytes::Bytes;
use futures::StreamExt as _;
use reqwest::StatusCode;

use crate::{
    client::{Registry, verify_stream},
    error::RegistryError,
    transport::{RequestOptions, read_limited},
};

/// Response to a request for a part of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlobPart {
    /// Requested bytes. The registry may have sent arbitrary bytes. The caller compares them.
    Bytes(Bytes),
    /// The registry sent the whole blob, and its digest is correct.
    WholeBlob,
}

impl Registry {
    /// Reads `length` bytes of a blob, from the offset `first`. A registry without range requests
    /// sends the whole blob. The client then checks its digest and drops the content.
    ///
    /// # Errors
    /// [`RegistryError`]. [`RegistryError::Invalid`] if the registry sends more or fewer bytes.
    pub async fn blob_part(
        &self,
        reference: &ImageRef,
        digest: &Digest,
        first: u64,
        length: u64,
    ) -> Result<BlobPart, RegistryError> {
        let attempt = format!("read a part of the blob {digest} of {}", reference.name());
        let call = self.blob_call(reference, digest, &attempt)?;
        let options = RequestOptions {
            range: Some((first, length)),
            ..RequestOptions::default()
        };
        let response = self.transport.send_with(call, options).await?;
        if response.status() != StatusCode::PARTIAL_CONTENT {
            let host = reference.registry().into();
            let mut whole = verify_stream(response, digest.clone(), u64::MAX, attempt, host);
            while let Some(piece) = whole.next().await {
                piece?;
            }
            return Ok(BlobPart::WholeBlob);
        }
        let bytes = read_limited(response, length, &attempt, reference.registry()).await?;
        if bytes.len() as u64 != length {
            return Err(RegistryError::Invalid {
                attempt,
                reason: format!("{} bytes arrived instead of {length}", bytes.len()),
            });
        }
        Ok(BlobPart::Bytes(bytes))
    }
}
