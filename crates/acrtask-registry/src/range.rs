//! Parts of blobs: enough of one to compare it with a copy, without a whole download.

use acrtask_model::{Digest, ImageRef};
use bytes::Bytes;
use futures::StreamExt as _;
use reqwest::StatusCode;

use crate::{
    client::{Registry, verified},
    error::RegistryError,
    transport::{How, read_limited},
};

/// Response to a request for a part of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlobPart {
    /// The requested bytes. The registry may have sent any: the caller compares them.
    Bytes(Bytes),
    /// The registry sent the whole blob instead, and it has its digest.
    WholeBlob,
}

impl Registry {
    /// Reads `length` bytes of a blob from `first` on. A registry without ranges sends the whole blob, which is
    /// checked against its digest and dropped.
    ///
    /// # Errors
    /// [`RegistryError`]; [`RegistryError::Invalid`] if the registry sends more or fewer bytes.
    pub async fn blob_part(
        &self,
        reference: &ImageRef,
        digest: &Digest,
        first: u64,
        length: u64,
    ) -> Result<BlobPart, RegistryError> {
        let attempt = format!("read a part of the blob {digest} of {}", reference.name());
        let call = self.blob_call(reference, digest, &attempt)?;
        let how = How {
            range: Some((first, length)),
            ..How::default()
        };
        let response = self.transport.send_so(call, how).await?;
        if response.status() != StatusCode::PARTIAL_CONTENT {
            let host = reference.registry().into();
            let mut whole = verified(response, digest.clone(), u64::MAX, attempt, host);
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
