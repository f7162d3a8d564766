//! Deletion of manifests and tags.
//!
//! A registry deletes a manifest together with all tags that name it. Not every registry deletes a
//! single tag.

use acrtask_model::ImageRef;
use reqwest::Method;
use url::Url;

use crate::{
    client::Registry,
    error::RegistryError,
    transport::{Body, Call},
};

impl Registry {
    /// Deletes the manifest of `reference`, which has a digest, and all tags that name it. A
    /// missing manifest counts as deleted.
    ///
    /// # Errors
    /// [`RegistryError`]. [`RegistryError::Refused`] with status 405 if the registry deletes no
    /// manifests.
    pub async fn delete_manifest(&self, reference: &ImageRef) -> Result<(), RegistryError> {
        let attempt = format!("delete {reference}");
        let Some(digest) = reference.digest() else {
            return Err(RegistryError::Invalid {
                attempt,
                reason: "a manifest is deleted by its digest".into(),
            });
        };
        let url = self
            .transport
            .url(reference, &format!("manifests/{digest}"))?;
        self.send_deletion(reference, attempt, url).await
    }

    /// Deletes one tag. Its manifest and other tags stay. A missing tag counts as deleted.
    ///
    /// # Errors
    /// [`RegistryError`]. [`RegistryError::Refused`] with status 400 or 405 if the registry deletes
    /// no tags.
    pub async fn delete_tag(&self, reference: &ImageRef) -> Result<(), RegistryError> {
        let attempt = format!("delete the tag {reference}");
        let tag = reference.tag().unwrap_or("latest");
        let url = self.transport.url(reference, &format!("manifests/{tag}"))?;
        self.send_deletion(reference, attempt, url).await
    }

    /// Sends a DELETE request for an object of the repository of `reference`.
    pub(crate) async fn send_deletion(
        &self,
        reference: &ImageRef,
        attempt: String,
        url: Url,
    ) -> Result<(), RegistryError> {
        let call = Call {
            attempt,
            host: reference.registry(),
            method: Method::DELETE,
            url,
            scopes: vec![delete_scope(reference)],
            accept: &[],
            body: Body::None,
        };
        match self.transport.send(call).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Returns the scope that grants deletions in the repository.
pub(crate) fn delete_scope(reference: &ImageRef) -> String {
    format!("repository:{}:pull,push,delete", reference.repository())
}
