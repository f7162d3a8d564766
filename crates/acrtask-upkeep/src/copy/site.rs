//! Source or target of a copy: a repository at a registry, or a folder.

use std::collections::{BTreeMap, BTreeSet};

use acrtask_model::{Digest, ImageRef};
use acrtask_registry::{
    BlobCopy, Descriptor, Manifest, ManifestBody, Registry, RegistryError, manifest::platforms,
};
use tokio_util::io::ReaderStream;

use super::graph::{Attached, Graph, run};
use crate::{
    carry_out::with_tag,
    describe_error,
    layout::Layout,
    location::Location,
    referrers::{add_to_fallback, companion_tags, find_referrers},
};

/// Source or target of a copy.
pub(super) struct Site<'a> {
    pub(super) registry: &'a Registry,
    pub(super) location: &'a Location,
    /// Referrers by subject, if the location is a folder.
    subjects: BTreeMap<Digest, Vec<Digest>>,
    /// Tags with their manifests, if the location is a folder.
    tags: BTreeMap<String, Digest>,
}

impl<'a> Site<'a> {
    pub(super) async fn new(
        registry: &'a Registry,
        location: &'a Location,
    ) -> Result<Self, String> {
        let (mut subjects, mut tags) = (BTreeMap::new(), BTreeMap::new());
        if let Location::Layout { layout, .. } = location {
            subjects = layout.subjects().await?;
            let entries = layout.entries().await?.into_iter();
            tags = entries
                .filter_map(|entry| Some((entry.tag?, entry.digest)))
                .collect();
        }
        Ok(Self {
            registry,
            location,
            subjects,
            tags,
        })
    }

    pub(super) async fn read_root(&self, platform: Option<&str>) -> Result<Manifest, String> {
        let root = match self.location {
            Location::Registry(image) => {
                let read = self.registry.manifest(&image.clone().or_latest()).await;
                read.map_err(|error| describe_error(&error))?
            }
            Location::Layout {
                layout,
                tag,
                digest,
            } => {
                let digest = match (digest, tag) {
                    (Some(digest), _) => digest.clone(),
                    (None, Some(tag)) => self.tags.get(tag).cloned().ok_or_else(|| {
                        let available: Vec<&str> = self.tags.keys().map(String::as_str).collect();
                        format!(
                            "{} does not have the tag {tag}; it has {}",
                            layout.folder().display(),
                            available.join(", ")
                        )
                    })?,
                    (None, None) => self.find_only_image(layout).await?,
                };
                self.read_manifest(&digest).await?
            }
        };
        let Some(wanted) = platform else {
            return Ok(root);
        };
        let ManifestBody::Index(index) = &root.body else {
            return Ok(root);
        };
        let available = platforms(index);
        let exact = available
            .iter()
            .find(|(found, _)| found.to_string() == wanted);
        let found = exact.or_else(|| {
            let begins = |found: &acrtask_registry::Platform| {
                format!("{}/{}", found.os, found.architecture) == wanted
            };
            available.iter().find(|(found, _)| begins(found))
        });
        let Some((_, digest)) = found else {
            let available: Vec<String> = available.keys().map(ToString::to_string).collect();
            return Err(format!(
                "{} has no image for {wanted}; it has {}",
                self.location,
                available.join(", ")
            ));
        };
        self.read_manifest(digest).await
    }

    /// Returns the only image of a folder, without referrers and tags of cosign.
    async fn find_only_image(&self, layout: &Layout) -> Result<Digest, String> {
        let referrers: BTreeSet<&Digest> = self.subjects.values().flatten().collect();
        let found: BTreeSet<Digest> = layout
            .entries()
            .await?
            .into_iter()
            .filter(|entry| {
                let tag = entry.tag.as_deref().unwrap_or_default();
                crate::plan::companion_subject(tag).is_none() && !referrers.contains(&entry.digest)
            })
            .map(|entry| entry.digest)
            .collect();
        let mut found = found.into_iter();
        match (found.next(), found.next()) {
            (Some(digest), None) => Ok(digest),
            (None, _) => Err(format!("{} has no image", layout.folder().display())),
            (Some(_), Some(_)) => Err(format!(
                "{0} has several images; write oci:{0}:TAG",
                layout.folder().display()
            )),
        }
    }

    pub(super) async fn read_manifest(&self, digest: &Digest) -> Result<Manifest, String> {
        match self.location {
            Location::Registry(image) => {
                let read = self.registry.manifest(&image.at(digest.clone())).await;
                read.map_err(|error| describe_error(&error))
            }
            Location::Layout { layout, .. } => layout
                .manifest(digest)
                .await?
                .ok_or_else(|| format!("{} does not have {digest}", layout.folder().display())),
        }
    }

    /// Finds the referrers of a manifest, and its tags of cosign.
    pub(super) async fn read_attached(&self, subject: Digest) -> Result<Attached, String> {
        let mut companions = Vec::new();
        let referrers = match self.location {
            Location::Registry(image) => {
                let found = find_referrers(self.registry, image, &subject).await?;
                for tag in companion_tags(&subject) {
                    let tagged = with_tag(image, &tag)?;
                    match self.registry.resolve(&tagged).await {
                        Ok(found) => companions.push((tag, found.digest)),
                        Err(error) if error.is_not_found() => {}
                        Err(error) => return Err(describe_error(&error)),
                    }
                }
                let all = found.listed.into_iter().flatten().chain(found.fallback);
                all.map(|one| one.digest).collect()
            }
            Location::Layout { .. } => {
                let tags = companion_tags(&subject);
                companions.extend(tags.filter_map(|tag| {
                    let digest = self.tags.get(&tag)?.clone();
                    Some((tag, digest))
                }));
                let found = self.subjects.get(&subject);
                found.into_iter().flatten().cloned().collect()
            }
        };
        Ok(Attached {
            subject,
            referrers,
            companions,
        })
    }

    /// Returns the manifests of the graph that this location has.
    pub(super) async fn find_existing(&self, graph: &Graph) -> Result<BTreeSet<Digest>, String> {
        let checks: Vec<_> = graph
            .nodes
            .values()
            .map(|node| async move {
                let digest = &node.manifest.digest;
                let has = match self.location {
                    Location::Registry(image) => {
                        match self.registry.resolve(&image.at(digest.clone())).await {
                            Ok(_) => true,
                            Err(RegistryError::NotFound { .. }) => false,
                            Err(error) => return Err(describe_error(&error)),
                        }
                    }
                    Location::Layout { layout, .. } => {
                        layout
                            .has_blob(digest, node.manifest.raw.len() as u64)
                            .await
                    }
                };
                Ok(has.then(|| digest.clone()))
            })
            .collect();
        Ok(run(checks).await?.into_iter().flatten().collect())
    }

    pub(super) async fn put_manifest(&self, manifest: &Manifest) -> Result<(), String> {
        match self.location {
            Location::Registry(image) => {
                let target = image.at(manifest.digest.clone());
                let raw = manifest.raw.clone();
                let put = self
                    .registry
                    .put_manifest(&target, &manifest.media_type, raw);
                put.await.map(drop).map_err(|error| describe_error(&error))
            }
            Location::Layout { layout, .. } => layout.put_manifest(manifest).await,
        }
    }

    /// Makes the referrers available, and sets the tags. Returns the tags.
    pub(super) async fn set_tags(
        &self,
        graph: &Graph,
        root: &Digest,
        tag: Option<&str>,
    ) -> Result<Vec<String>, String> {
        let mut tags: Vec<(String, Digest)> = graph
            .companions
            .iter()
            .map(|(tag, digest)| (tag.clone(), digest.clone()))
            .collect();
        tags.extend(tag.map(|tag| (tag.to_owned(), root.clone())));
        let descriptor = |digest: &Digest| {
            let node = graph.nodes.get(digest);
            node.map(|node| node.manifest.referrer_descriptor())
        };
        match self.location {
            Location::Registry(image) => {
                for (subject, referrers) in &graph.referrers {
                    let listed = self.registry.referrers(&image.at(subject.clone())).await;
                    if listed.map_err(|error| describe_error(&error))?.is_none() {
                        let referrers: Vec<Descriptor> =
                            referrers.iter().filter_map(descriptor).collect();
                        add_to_fallback(self.registry, image, subject, &referrers).await?;
                    }
                }
                for (tag, digest) in &tags {
                    let Some(node) = graph.nodes.get(digest) else {
                        continue;
                    };
                    self.set_tag(image, tag, &node.manifest).await?;
                }
            }
            Location::Layout { layout, .. } => {
                let mut entries = Vec::new();
                for digest in graph.referrers.values().flatten() {
                    entries.extend(descriptor(digest).map(|found| (found, None)));
                }
                if tag.is_none() {
                    let node = graph.nodes.get(root);
                    entries.extend(node.map(|node| (node.manifest.descriptor(), None)));
                }
                for (tag, digest) in &tags {
                    let node = graph.nodes.get(digest);
                    entries
                        .extend(node.map(|node| (node.manifest.descriptor(), Some(tag.clone()))));
                }
                layout.add_entries(&entries).await?;
            }
        }
        Ok(tags.into_iter().map(|(tag, _)| tag).collect())
    }

    /// Sets a tag unless it has this manifest.
    async fn set_tag(
        &self,
        image: &ImageRef,
        tag: &str,
        manifest: &Manifest,
    ) -> Result<(), String> {
        let tagged = with_tag(image, tag)?;
        match self.registry.resolve(&tagged).await {
            Ok(found) if found.digest == manifest.digest => return Ok(()),
            Ok(_) | Err(RegistryError::NotFound { .. }) => {}
            Err(error) => return Err(describe_error(&error)),
        }
        let raw = manifest.raw.clone();
        let put = self
            .registry
            .put_manifest(&tagged, &manifest.media_type, raw);
        put.await.map(drop).map_err(|error| describe_error(&error))
    }
}

/// Copies one blob. Returns it with the way of its copy.
pub(super) async fn copy_blob(
    source: &Site<'_>,
    target: &Site<'_>,
    blob: Descriptor,
) -> Result<(Descriptor, BlobCopy), String> {
    let registry = target.registry;
    let describe = |error: RegistryError| describe_error(&error);
    let way = match (source.location, target.location) {
        (Location::Registry(from), Location::Registry(to)) => registry
            .copy_blob(from, to, &blob)
            .await
            .map_err(describe)?,
        (Location::Layout { layout, .. }, Location::Registry(to)) => {
            if registry
                .has_blob(to, &blob.digest)
                .await
                .map_err(describe)?
            {
                BlobCopy::Existing
            } else {
                let file = layout.open_blob(&blob.digest).await?;
                let open = async || Ok(ReaderStream::new(file));
                registry
                    .put_blob_stream(to, &blob.digest, blob.size, &[], open)
                    .await
                    .map_err(describe)?;
                BlobCopy::Copied
            }
        }
        (_, Location::Layout { layout, .. }) if layout.has_blob(&blob.digest, blob.size).await => {
            BlobCopy::Existing
        }
        (Location::Registry(from), Location::Layout { layout, .. }) => {
            let stream = registry.blob(from, &blob.digest, blob.size).await;
            layout
                .put_stream(&blob.digest, stream.map_err(describe)?)
                .await?;
            BlobCopy::Copied
        }
        (Location::Layout { layout: from, .. }, Location::Layout { layout: to, .. }) => {
            let file = from.open_blob(&blob.digest).await?;
            to.put_stream(&blob.digest, ReaderStream::new(file)).await?;
            BlobCopy::Copied
        }
    };
    Ok((blob, way))
}
