//! Lists of the manifests of a repository, and of the referrers of an image.

use std::collections::{BTreeMap, BTreeSet};

use acrtask_model::{Digest, ImageRef};
use acrtask_registry::{Manifest, ManifestBody, Registry, RegistryError};
use futures::{StreamExt as _, TryStreamExt as _};
use serde::Serialize;

use crate::{
    carry_out::with_tag,
    describe_error,
    inventory::{Reader, RegistryKind},
    referrers::{companion_tags, find_referrers},
};

/// Number of concurrent requests.
const READS: usize = 8;
/// Maximum number of listed manifests.
const MAX_MANIFESTS: usize = 200_000;
/// Maximum number of entries of all listed indexes.
const MAX_CHILDREN: usize = 1_000_000;

/// Kind of a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ManifestKind {
    /// List of manifests.
    Index,
    /// Image for one platform.
    Image,
    /// Signature, SBOM or another artifact.
    Artifact,
}

/// Manifest of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedManifest {
    /// Digest of the manifest.
    pub digest: Digest,
    /// Media type of the manifest.
    pub media_type: String,
    /// Kind of the manifest.
    pub kind: ManifestKind,
    /// Type of the artifact. `None` for an image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Platform in the index that contains the manifest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Tags of the manifest.
    pub tags: Vec<String>,
    /// Indexes that contain the manifest.
    pub indexes: Vec<Digest>,
    /// Manifest that this one refers to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<Digest>,
    /// Size of the configuration and the layers, in bytes.
    pub size: u64,
}

/// Source that names a referrer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Via {
    /// Referrers API of the registry.
    Api,
    /// Index of the fallback tag `sha256-HEX`.
    FallbackTag,
    /// Tag of cosign.
    Tag,
}

/// Referrer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedReferrer {
    /// Digest of the referrer.
    pub digest: Digest,
    /// Type of the artifact. `None` if no source states it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Manifest that it belongs to.
    pub subject: Digest,
    /// Platform of the subject in the index of the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Source that names the referrer.
    pub via: Via,
    /// Tag of the referrer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
}

/// Lists the manifests of a repository: those with a tag, their parts, and their referrers. Untagged
/// manifests only where the registry's own API lists them.
///
/// # Errors
/// The registry cannot be read.
pub async fn list_manifests(
    reader: &Reader<'_>,
    image: &ImageRef,
) -> Result<Vec<ListedManifest>, String> {
    let describe = |error: RegistryError| describe_error(&error);
    let names = reader.list_tags(image).await.map_err(describe)?;
    let tags = reader.resolve_tags(image, names).await.map_err(describe)?;
    let mut tags_of: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
    for (tag, digest) in tags {
        tags_of.entry(digest).or_default().push(tag);
    }
    let mut wanted: BTreeSet<Digest> = tags_of.keys().cloned().collect();
    if reader.kind == RegistryKind::Acr {
        let listed = reader.registry.acr_manifests(image).await;
        wanted.extend(listed.map_err(describe)?.into_iter().map(|one| one.digest));
    }
    let mut found: BTreeMap<Digest, ListedManifest> = BTreeMap::new();
    let mut parents: BTreeMap<Digest, Vec<(Digest, Option<String>)>> = BTreeMap::new();
    let mut children = 0;
    while !wanted.is_empty() {
        let reads: Vec<_> = wanted
            .into_iter()
            .map(|digest| read_one(reader.registry, image, digest))
            .collect();
        let mut reads = futures::stream::iter(reads).buffered(READS);
        let mut next = BTreeSet::new();
        while let Some(read) = reads.try_next().await? {
            let Some((manifest, referrers)) = read else {
                continue;
            };
            next.extend(referrers);
            if let ManifestBody::Index(index) = &manifest.body {
                children += index.manifests.len();
                for entry in index.manifests.iter().filter(|entry| entry.is_manifest()) {
                    next.insert(entry.digest.clone());
                    let platform = entry.platform.as_ref().map(ToString::to_string);
                    let parent = (manifest.digest.clone(), platform);
                    parents
                        .entry(entry.digest.clone())
                        .or_default()
                        .push(parent);
                }
            }
            let tags = tags_of.remove(&manifest.digest).unwrap_or_default();
            found.insert(manifest.digest.clone(), describe_manifest(&manifest, tags));
            if found.len().max(next.len()) > MAX_MANIFESTS || children > MAX_CHILDREN {
                return Err(format!(
                    "{} has more than {MAX_MANIFESTS} manifests, or more than {MAX_CHILDREN} in its indexes",
                    image.name()
                ));
            }
        }
        next.retain(|digest| !found.contains_key(digest));
        wanted = next;
    }
    for (digest, parents) in parents {
        if let Some(one) = found.get_mut(&digest) {
            one.platform = parents.iter().find_map(|(_, platform)| platform.clone());
            one.indexes = parents.into_iter().map(|(index, _)| index).collect();
        }
    }
    let mut listed: Vec<ListedManifest> = found.into_values().collect();
    listed.sort_by(|a, b| (a.tags.is_empty(), &a.tags).cmp(&(b.tags.is_empty(), &b.tags)));
    Ok(listed)
}

/// Reads a manifest and its referrers. `None` if it does not exist.
async fn read_one(
    registry: &Registry,
    image: &ImageRef,
    digest: Digest,
) -> Result<Option<(Manifest, Vec<Digest>)>, String> {
    let manifest = match registry.manifest(&image.at(digest.clone())).await {
        Ok(manifest) => manifest,
        Err(RegistryError::NotFound { .. } | RegistryError::Invalid { .. }) => return Ok(None),
        Err(error) => return Err(describe_error(&error)),
    };
    let found = find_referrers(registry, image, &digest).await?;
    let all = found.listed.into_iter().flatten().chain(found.fallback);
    Ok(Some((manifest, all.map(|one| one.digest).collect())))
}

fn describe_manifest(manifest: &Manifest, tags: Vec<String>) -> ListedManifest {
    let subject = manifest.subject().ok().flatten();
    let (kind, artifact_type, size) = match &manifest.body {
        ManifestBody::Index(_) => (ManifestKind::Index, None, 0),
        ManifestBody::Image(image) => {
            let parts = std::iter::once(&image.config).chain(&image.layers);
            let size = parts.fold(0_u64, |sum, part| sum.saturating_add(part.size));
            match image.artifact_type.is_some() || subject.is_some() {
                true => {
                    let kind = manifest.referrer_descriptor().artifact_type;
                    (ManifestKind::Artifact, kind, size)
                }
                false => (ManifestKind::Image, None, size),
            }
        }
    };
    ListedManifest {
        digest: manifest.digest.clone(),
        media_type: manifest.media_type.clone(),
        kind,
        artifact_type,
        platform: None,
        tags,
        indexes: Vec::new(),
        subject,
        size,
    }
}

/// Lists the referrers of an image and of its parts.
///
/// # Errors
/// The registry cannot be read.
pub async fn list_referrers(
    registry: &Registry,
    image: &ImageRef,
) -> Result<Vec<ListedReferrer>, String> {
    let root = registry.manifest(image).await;
    let root = root.map_err(|error| describe_error(&error))?;
    let mut subjects = vec![(root.digest.clone(), None)];
    if let ManifestBody::Index(index) = &root.body {
        let entries = index.manifests.iter().filter(|entry| entry.is_manifest());
        subjects.extend(entries.map(|entry| {
            let platform = entry.platform.as_ref().map(ToString::to_string);
            (entry.digest.clone(), platform)
        }));
    }
    let reads: Vec<_> = subjects
        .into_iter()
        .map(|(subject, platform)| read_referrers(registry, image, subject, platform))
        .collect();
    let found: Vec<Vec<ListedReferrer>> = futures::stream::iter(reads)
        .buffered(READS)
        .try_collect()
        .await?;
    Ok(found.into_iter().flatten().collect())
}

async fn read_referrers(
    registry: &Registry,
    image: &ImageRef,
    subject: Digest,
    platform: Option<String>,
) -> Result<Vec<ListedReferrer>, String> {
    let found = find_referrers(registry, image, &subject).await?;
    let row = |digest: Digest, artifact_type: Option<String>, via: Via| ListedReferrer {
        digest,
        artifact_type,
        subject: subject.clone(),
        platform: platform.clone(),
        via,
        tag: None,
    };
    let mut rows: Vec<ListedReferrer> = Vec::new();
    let listed = found
        .listed
        .into_iter()
        .flatten()
        .map(|one| (one, Via::Api));
    let fallback = found
        .fallback
        .into_iter()
        .map(|one| (one, Via::FallbackTag));
    for (one, via) in listed.chain(fallback) {
        if rows.iter().all(|row| row.digest != one.digest) {
            rows.push(row(one.digest, one.artifact_type, via));
        }
    }
    for tag in companion_tags(&subject) {
        match registry.resolve(&with_tag(image, &tag)?).await {
            Ok(found) => rows.push(ListedReferrer {
                tag: Some(tag),
                ..row(found.digest, None, Via::Tag)
            }),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(describe_error(&error)),
        }
    }
    Ok(rows)
}
