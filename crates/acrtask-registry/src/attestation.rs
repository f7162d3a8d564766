//! What BuildKit attested about an image: provenance, SBOM.
//!
//! Source: BuildKit, "Image attestation storage": an index has, beside each image, a manifest for `unknown/unknown`
//! whose annotations name the image, and whose layers are in-toto statements.

use acrtask_model::{Digest, ImageRef};

use crate::{client::Registry, error::RegistryError, manifest::ManifestBody};

/// Biggest statement that is read, in bytes.
const MAX_STATEMENT: u64 = 32 << 20;
/// Most bytes of all statements of one index that are kept.
const MAX_ALL: u64 = 64 << 20;
/// Most manifests of attestations of one index that are read, and statements that are kept.
const MAX_STATEMENTS: usize = 256;
/// Media type of a statement.
const IN_TOTO: &str = "application/vnd.in-toto+json";
/// Where a layer says what its statement is about.
const PREDICATE_TYPE: &str = "in-toto.io/predicate-type";

/// The predicate types of SLSA provenance begin with this.
pub const PROVENANCE: &str = "https://slsa.dev/provenance/";

/// One in-toto statement.
#[derive(Debug, Clone, PartialEq)]
pub struct Attestation {
    /// The image that it is about, as one of the index's manifests.
    pub image: Digest,
    /// The kind of its predicate: `https://slsa.dev/provenance/v1`.
    pub predicate_type: String,
    /// The whole statement.
    pub statement: serde_json::Value,
}

impl Registry {
    /// The statements about the images of the index `reference` whose predicate type begins with `predicate`
    /// ([`PROVENANCE`], or an empty text for all). A reference to something else than an index has none.
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
            .filter_map(|entry| Some((entry, entry.attests()?)));
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
