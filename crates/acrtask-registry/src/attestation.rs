//! Attestations that BuildKit stores with an image: provenance and SBOMs.
//!
//! Source: BuildKit, "Image attestation storage". Beside each image, an index has a manifest for
//! `unknown/unknown`. The annotations of the manifest name the image, and its layers are in-toto
//! statements.

use acrtask_model::{Digest, ImageRef};

use crate::{client::Registry, error::RegistryError, manifest::ManifestBody};

/// Maximum size of a statement, in bytes.
const MAX_STATEMENT: u64 = 32 << 20;
/// Maximum size of all statements of one index, in bytes.
const MAX_ALL: u64 = 64 << 20;
/// Maximum number of attestation manifests read from one index, and of statements returned.
const MAX_STATEMENTS: usize = 256;
/// Media type of an in-toto statement.
const IN_TOTO: &str = "application/vnd.in-toto+json";
/// Annotation of a layer that names the predicate type of its statement.
const PREDICATE_TYPE: &str = "in-toto.io/predicate-type";

/// Prefix of the predicate types of SLSA provenance.
pub const PROVENANCE: &str = "https://slsa.dev/provenance/";

/// In-toto statement about an image.
#[derive(Debug, Clone, PartialEq)]
pub struct Attestation {
    /// Image that the statement is about. The index contains its manifest.
    pub image: Digest,
    /// Predicate type: `https://slsa.dev/provenance/v1`.
    pub predicate_type: String,
    /// Complete statement.
    pub statement: serde_json::Value,
}

impl Registry {
    /// Returns the statements about the images of the index `reference`. The predicate type of each
    /// one begins with `predicate` ([`PROVENANCE`], or an empty text for all statements). Returns
    /// an empty list if `reference` is not an index.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn attestations(
        &self,
        reference: &ImageRef,
        predicate: &str,
    ) -> Result<Vec<Attestation>, RegistryError> {
        let ManifestBody::Index(index) = self.manifest(reference).await?.body else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        let mut left = MAX_ALL;
        let attesting = index
            .manifests
            .iter()
            .filter_map(|entry| Some((entry, entry.attested_image()?)));
        for (entry, image) in attesting.take(MAX_STATEMENTS) {
            let source = reference.at(entry.digest.clone());
            let ManifestBody::Image(manifest) = self.manifest(&source).await?.body else {
                continue;
            };
            for layer in manifest.layers {
                let Some(predicate_type) = layer.annotations.get(PREDICATE_TYPE) else {
                    continue;
                };
                if layer.media_type != IN_TOTO
                    || !predicate_type.starts_with(predicate)
                    || found.len() >= MAX_STATEMENTS
                {
                    continue;
                }
                let bytes = self
                    .blob_bytes(&source, &layer.digest, MAX_STATEMENT.min(left))
                    .await?;
                left = left.saturating_sub(bytes.len() as u64);
                let statement =
                    serde_json::from_slice(&bytes).map_err(|error| RegistryError::Invalid {
                        attempt: format!("read the attestation {} of {reference}", layer.digest),
                        reason: format!("it is not JSON: {error}"),
                    })?;
                found.push(Attestation {
                    image: image.clone(),
                    predicate_type: predicate_type.clone(),
                    statement,
                });
            }
        }
        Ok(found)
    }
}
