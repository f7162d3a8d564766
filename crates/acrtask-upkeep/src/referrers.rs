//! Referrers of a manifest: signatures, SBOMs and other artifacts whose subject is the manifest.
//!
//! A registry lists them in its referrers API. Where it has none, programs write an index with the
//! tag `sha256-HEX`, the fallback tag. cosign writes tags `sha256-HEX.sig`, `.att` and `.sbom`.
//!
//! Invariant: an entry of a fallback index counts only if the manifest itself names the subject.
//! Some registries respond to a fallback tag with the image.

use acrtask_model::{Digest, ImageRef};
use acrtask_registry::{
    Descriptor, Index, ManifestBody, Registry, RegistryError, manifest::OCI_INDEX,
};

use crate::{carry_out::with_tag, describe_error};

/// Endings of the tags that cosign writes.
const COMPANION_ENDINGS: [&str; 3] = ["sig", "att", "sbom"];
/// Number of attempts to change a fallback index that another program changes too.
const ATTEMPTS: usize = 5;

/// Referrers of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Referrers {
    /// Referrers that the API lists. `None` if the registry does not have the API.
    pub listed: Option<Vec<Descriptor>>,
    /// Referrers in the index of the fallback tag.
    pub fallback: Vec<Descriptor>,
}

/// Returns the fallback tag of a manifest: `sha256-HEX`.
pub fn fallback_tag(digest: &Digest) -> String {
    digest.as_str().replace(':', "-")
}

/// Returns the tags that cosign writes for a manifest: `sha256-HEX.sig` and others.
pub fn companion_tags(digest: &Digest) -> impl Iterator<Item = String> {
    let tag = fallback_tag(digest);
    COMPANION_ENDINGS
        .into_iter()
        .map(move |ending| format!("{tag}.{ending}"))
}

/// Finds the referrers of the manifest `digest` in the repository of `image`.
///
/// # Errors
/// The registry cannot be read.
pub async fn find_referrers(
    registry: &Registry,
    image: &ImageRef,
    digest: &Digest,
) -> Result<Referrers, String> {
    let describe = |error: RegistryError| describe_error(&error);
    let listed = registry.referrers(&image.at(digest.clone())).await;
    let mut fallback = Vec::new();
    let tag = with_tag(image, &fallback_tag(digest))?;
    for entry in read_fallback(registry, &tag).await.map_err(describe)? {
        match registry.manifest(&image.at(entry.digest.clone())).await {
            Ok(manifest) if manifest.subject().ok().flatten().as_ref() == Some(digest) => {
                fallback.push(entry);
            }
            Ok(_) | Err(RegistryError::Invalid { .. } | RegistryError::NotFound { .. }) => {}
            Err(error) => return Err(describe(error)),
        }
    }
    Ok(Referrers {
        listed: listed.map_err(describe)?,
        fallback,
    })
}

/// Returns the entries of the index of a fallback tag. Empty if the tag does not name an index.
async fn read_fallback(
    registry: &Registry,
    tag: &ImageRef,
) -> Result<Vec<Descriptor>, RegistryError> {
    match registry.manifest(tag).await {
        Ok(manifest) => Ok(match manifest.body {
            ManifestBody::Index(index) => index.manifests,
            ManifestBody::Image(_) => Vec::new(),
        }),
        Err(RegistryError::Invalid { .. } | RegistryError::NotFound { .. }) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Adds referrers of `subject` to the index of its fallback tag. Registries offer no conditional
/// change, so the result is read again and the change repeated.
///
/// # Errors
/// The registry refuses the index, or another program keeps on changing it.
pub(crate) async fn add_to_fallback(
    registry: &Registry,
    image: &ImageRef,
    subject: &Digest,
    referrers: &[Descriptor],
) -> Result<(), String> {
    let tag = with_tag(image, &fallback_tag(subject))?;
    for _ in 0..ATTEMPTS {
        let read = read_fallback(registry, &tag).await;
        let mut manifests = read.map_err(|error| describe_error(&error))?;
        let missing: Vec<Descriptor> = referrers
            .iter()
            .filter(|one| manifests.iter().all(|have| have.digest != one.digest))
            .cloned()
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        manifests.extend(missing);
        let index = Index {
            schema_version: 2,
            media_type: Some(OCI_INDEX.into()),
            manifests,
            annotations: Default::default(),
        };
        let raw = serde_json::to_vec(&index)
            .map_err(|error| format!("cannot write the index {tag}: {error}"))?;
        let put = registry.put_manifest(&tag, OCI_INDEX, raw.into()).await;
        put.map_err(|error| describe_error(&error))?;
    }
    Err(format!(
        "another program keeps on changing {tag}; run the copy again"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::companion_subject;

    #[test]
    fn companion_tags_name_their_subject() {
        let digest: Digest = format!("sha256:{}", "a1".repeat(32)).parse().unwrap();
        let tags: Vec<String> = companion_tags(&digest).collect();
        assert_eq!(tags.len(), 3);
        for tag in tags.iter().chain([&fallback_tag(&digest)]) {
            assert_eq!(companion_subject(tag).as_ref(), Some(&digest), "{tag}");
        }
    }
}
