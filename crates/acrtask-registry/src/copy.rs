//! Writing: tags, manifests, blobs, copies between repositories, and indexes built from what exists.
//!
//! A copy keeps every byte of every manifest, so that its digest stays. Blobs go first and manifests
//! last, as registries demand; what is already there is not sent again; inside one registry blobs are
//! mounted from repository to repository.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::atomic::{AtomicUsize, Ordering},
};

use acrtask_model::{Digest, ImageRef};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use reqwest::{Method, StatusCode, header};
use url::Url;

use crate::{
    client::{Registry, pull, push},
    error::RegistryError,
    manifest::{
        DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, Index, Manifest, ManifestBody, OCI_INDEX, sha256,
    },
    transport::{Body, Call, How, NamedBy, Pace},
};

/// Blobs that are copied at a time.
const PARALLEL: usize = 4;
/// Indexes inside indexes that are followed; real images have one level, two at most.
const MAX_DEPTH: usize = 8;
/// Manifests of one copy; real images have tens.
const MAX_MANIFESTS: usize = 2_000;

/// An entry for a new index: a descriptor, and where the manifest is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexEntry {
    /// Where the manifest is, by digest.
    pub source: ImageRef,
    /// What the index will say of it; platform and annotations may be changed.
    pub descriptor: Descriptor,
}

impl Registry {
    /// Gives what `reference` stands for the further tag `tag` in its repository.
    ///
    /// # Errors
    /// [`RegistryError`]; [`RegistryError::Invalid`] if `tag` cannot be one.
    pub async fn tag(&self, reference: &ImageRef, tag: &str) -> Result<Digest, RegistryError> {
        let target = reference
            .with_tag(tag)
            .map_err(|error| RegistryError::Invalid {
                attempt: format!("tag {reference}"),
                reason: error.to_string(),
            })?;
        let manifest = self.manifest(reference).await?;
        self.put_manifest(&target, &manifest.media_type, manifest.raw)
            .await
    }

    /// Stores a manifest under the tag of `target`, or under its digest alone if `target` has no tag.
    ///
    /// # Errors
    /// [`RegistryError`]; [`RegistryError::Invalid`] if `target` has a digest and `raw` another.
    pub async fn put_manifest(
        &self,
        target: &ImageRef,
        media_type: &str,
        raw: Bytes,
    ) -> Result<Digest, RegistryError> {
        let attempt = format!("push the manifest {target}");
        let digest = sha256(&raw);
        let invalid = |reason: String| RegistryError::Invalid {
            attempt: attempt.clone(),
            reason,
        };
        let media_type: &'static str = [
            OCI_INDEX,
            crate::manifest::OCI_MANIFEST,
            DOCKER_INDEX,
            DOCKER_MANIFEST,
        ]
        .into_iter()
        .find(|known| *known == media_type)
        .ok_or_else(|| invalid(format!("`{media_type}` is no manifest's media type")))?;
        if let Some(wanted) = target.digest().filter(|wanted| **wanted != digest) {
            return Err(invalid(format!(
                "its digest should be {wanted} and is {digest}"
            )));
        }
        let name = target.tag().unwrap_or(digest.as_str());
        let response = self
            .transport
            .send(Call {
                attempt: attempt.clone(),
                host: target.registry(),
                method: Method::PUT,
                url: self.transport.url(target, &format!("manifests/{name}"))?,
                scopes: vec![push(target)],
                accept: &[],
                body: Body::Bytes(media_type, raw),
            })
            .await?;
        let stored = response
            .headers()
            .get("docker-content-digest")
            .and_then(|value| value.to_str().ok());
        match stored {
            Some(stored) if stored != digest.as_str() => Err(invalid(format!(
                "the registry stored it as {stored}, its digest is {digest}"
            ))),
            _ => Ok(digest),
        }
    }

    /// Stores a blob in the repository of `target`, unless it is there.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn put_blob(&self, target: &ImageRef, bytes: Bytes) -> Result<Digest, RegistryError> {
        let digest = sha256(&bytes);
        if self.has_blob(target, &digest).await? {
            return Ok(digest);
        }
        if let Some(location) = self.start_upload(target, &digest, None).await? {
            let body = Body::Bytes("application/octet-stream", bytes);
            self.finish_upload(target, &digest, location, body).await?;
        }
        Ok(digest)
    }

    /// Stores a blob of `size` bytes in the repository of `target`, unless it is there, as `open` gives it; the registry
    /// checks the digest. A blob that one of the repositories `mounts` has is taken from there, if the registry can.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn put_blob_stream<S, E>(
        &self,
        target: &ImageRef,
        digest: &Digest,
        size: u64,
        mounts: &[ImageRef],
        open: impl AsyncFnOnce() -> Result<S, RegistryError>,
    ) -> Result<(), RegistryError>
    where
        S: Stream<Item = Result<Bytes, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        if self.has_blob(target, digest).await? {
            return Ok(());
        }
        let mut mount = None;
        let elsewhere = |from: &&ImageRef| {
            from.registry() == target.registry() && from.repository() != target.repository()
        };
        for from in mounts.iter().filter(elsewhere) {
            // A repository that cannot be read is no reason against an upload.
            if self
                .blob_exists(from, digest, pull(from))
                .await
                .unwrap_or(false)
            {
                mount = Some(from);
                break;
            }
        }
        if let Some(location) = self.start_upload(target, digest, mount).await? {
            let body = paced(size, open().await?);
            self.finish_upload(target, digest, location, body).await?;
        }
        Ok(())
    }

    /// Copies `source` with all that it consists of to `target`: every platform, attestations too. `target` gets
    /// `latest` if it has neither tag nor digest.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn copy(
        &self,
        source: &ImageRef,
        target: &ImageRef,
    ) -> Result<Digest, RegistryError> {
        self.copy_at(source, target, 0, &AtomicUsize::new(0)).await
    }

    async fn copy_at(
        &self,
        source: &ImageRef,
        target: &ImageRef,
        depth: usize,
        copied: &AtomicUsize,
    ) -> Result<Digest, RegistryError> {
        if copied.fetch_add(1, Ordering::Relaxed) >= MAX_MANIFESTS {
            return Err(RegistryError::Invalid {
                attempt: format!("copy {source}"),
                reason: format!("its index leads to more than {MAX_MANIFESTS} manifests"),
            });
        }
        if depth > MAX_DEPTH {
            return Err(RegistryError::Invalid {
                attempt: format!("copy {source}"),
                reason: format!("it is an index inside more than {MAX_DEPTH} others"),
            });
        }
        let target = target.clone().or_latest();
        let manifest = self.manifest(source).await?;
        self.copy_parts(source, &target, &manifest, depth, copied)
            .await?;
        self.put_manifest(&target, &manifest.media_type, manifest.raw)
            .await
    }

    /// Copies what `manifest` points at.
    fn copy_parts<'a>(
        &'a self,
        source: &'a ImageRef,
        target: &'a ImageRef,
        manifest: &'a Manifest,
        depth: usize,
        copied: &'a AtomicUsize,
    ) -> Pin<Box<dyn Future<Output = Result<(), RegistryError>> + Send + 'a>> {
        Box::pin(async move {
            if source.name() == target.name() {
                return Ok(());
            }
            match &manifest.body {
                ManifestBody::Index(index) => {
                    for entry in &index.manifests {
                        let from = source.at(entry.digest.clone());
                        let to = target.at(entry.digest.clone());
                        self.copy_at(&from, &to, depth + 1, copied).await?;
                    }
                    Ok(())
                }
                ManifestBody::Image(image) => {
                    let blobs =
                        std::iter::once(&image.config)
                            .chain(&image.layers)
                            .filter(|blob| {
                                // Layers that stay where their publisher has them.
                                !blob.media_type.contains("nondistributable")
                                    && !blob.media_type.contains("foreign")
                            });
                    let copies: Vec<_> = blobs
                        .map(|blob| self.copy_blob(source, target, blob))
                        .collect();
                    futures::stream::iter(copies)
                        .buffer_unordered(PARALLEL)
                        .try_collect()
                        .await
                }
            }
        })
    }

    async fn copy_blob(
        &self,
        source: &ImageRef,
        target: &ImageRef,
        blob: &Descriptor,
    ) -> Result<(), RegistryError> {
        if self.has_blob(target, &blob.digest).await? {
            return Ok(());
        }
        let mount = (source.registry() == target.registry()).then_some(source);
        let started = match self.start_upload(target, &blob.digest, mount).await {
            // A registry that does not mount the blob, or not for this login, may still take it.
            Err(error)
                if mount.is_some()
                    && !matches!(
                        error,
                        RegistryError::Unreachable { .. } | RegistryError::RateLimited { .. }
                    ) =>
            {
                self.start_upload(target, &blob.digest, None).await?
            }
            started => started?,
        };
        let Some(location) = started else {
            return Ok(());
        };
        let stream = self.blob(source, &blob.digest, blob.size).await?;
        let body = paced(blob.size, stream);
        self.finish_upload(target, &blob.digest, location, body)
            .await
    }

    async fn has_blob(&self, target: &ImageRef, digest: &Digest) -> Result<bool, RegistryError> {
        self.blob_exists(target, digest, push(target)).await
    }

    async fn blob_exists(
        &self,
        target: &ImageRef,
        digest: &Digest,
        scope: String,
    ) -> Result<bool, RegistryError> {
        let call = Call {
            attempt: format!("look for the blob {digest} in {}", target.name()),
            host: target.registry(),
            method: Method::HEAD,
            url: self.transport.url(target, &format!("blobs/{digest}"))?,
            scopes: vec![scope],
            accept: &[],
            body: Body::None,
        };
        match self.transport.send(call).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Begins an upload; none if the registry could take the blob from `mount`'s repository.
    async fn start_upload(
        &self,
        target: &ImageRef,
        digest: &Digest,
        mount: Option<&ImageRef>,
    ) -> Result<Option<UploadLocation>, RegistryError> {
        let attempt = format!("push the blob {digest} to {}", target.name());
        let mut url = self.transport.url(target, "blobs/uploads/")?;
        let mut scopes = vec![push(target)];
        if let Some(from) = mount {
            url.query_pairs_mut()
                .append_pair("mount", digest.as_str())
                .append_pair("from", from.repository());
            scopes.push(pull(from));
        }
        let response = self
            .transport
            .send(Call {
                attempt: attempt.clone(),
                host: target.registry(),
                method: Method::POST,
                url: url.clone(),
                scopes,
                accept: &[],
                body: Body::None,
            })
            .await?;
        if response.status() == StatusCode::CREATED {
            return Ok(None);
        }
        let named_by = NamedBy::Server(response.remote_addr());
        let invalid = |reason: String| RegistryError::Invalid {
            attempt: attempt.clone(),
            reason: format!("{} {reason}", target.registry()),
        };
        let location = response
            .headers()
            .get(header::LOCATION)
            .and_then(|value| url.join(value.to_str().ok()?).ok())
            .ok_or_else(|| invalid("does not say where to upload".into()))?;
        match location.scheme() {
            "https" => {}
            "http" if url.scheme() == "http" => {}
            scheme => {
                return Err(invalid(format!(
                    "names an upload location with `{scheme}:`, which must be `{}:`",
                    url.scheme()
                )));
            }
        }
        Ok(Some(UploadLocation {
            url: location,
            named_by,
        }))
    }

    async fn finish_upload(
        &self,
        target: &ImageRef,
        digest: &Digest,
        mut location: UploadLocation,
        body: Body,
    ) -> Result<(), RegistryError> {
        location
            .url
            .query_pairs_mut()
            .append_pair("digest", digest.as_str());
        let call = Call {
            attempt: format!("push the blob {digest} to {}", target.name()),
            host: target.registry(),
            method: Method::PUT,
            url: location.url,
            scopes: vec![push(target)],
            accept: &[],
            body,
        };
        let how = How {
            named_by: location.named_by,
            ..How::default()
        };
        self.transport.send_so(call, how).await.map(drop)
    }

    /// What a new index would take over from `source`: all entries of an index, attestations too, or the one image
    /// with the platform that its configuration names.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn entries(&self, source: &ImageRef) -> Result<Vec<IndexEntry>, RegistryError> {
        let manifest = self.manifest(source).await?;
        let entry = |descriptor: Descriptor| IndexEntry {
            source: source.at(descriptor.digest.clone()),
            descriptor,
        };
        match &manifest.body {
            ManifestBody::Index(index) => Ok(index.manifests.iter().cloned().map(entry).collect()),
            ManifestBody::Image(image) => {
                let mut descriptor = manifest.descriptor();
                descriptor.platform = self.config_platform(source, &image.config.digest).await?;
                Ok(vec![entry(descriptor)])
            }
        }
    }

    /// Stores an index of `entries` as `target`, copying first what is not in its repository.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn put_index(
        &self,
        target: &ImageRef,
        entries: &[IndexEntry],
        annotations: BTreeMap<String, String>,
    ) -> Result<Digest, RegistryError> {
        let target = target.clone().or_latest();
        self.put_index_at(&target, entries, annotations).await
    }

    /// The same, but by its digest alone: the tag of `target` stays as it is.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn put_index_untagged(
        &self,
        target: &ImageRef,
        entries: &[IndexEntry],
        annotations: BTreeMap<String, String>,
    ) -> Result<Digest, RegistryError> {
        self.put_index_at(&target.untagged(), entries, annotations)
            .await
    }

    async fn put_index_at(
        &self,
        target: &ImageRef,
        entries: &[IndexEntry],
        annotations: BTreeMap<String, String>,
    ) -> Result<Digest, RegistryError> {
        for entry in entries
            .iter()
            .filter(|entry| entry.source.name() != target.name())
        {
            self.copy(&entry.source, &target.at(entry.descriptor.digest.clone()))
                .await?;
        }
        let index = build_index(entries, annotations);
        let media_type = index.media_type.clone().unwrap_or_default();
        let raw = serde_json::to_vec(&index).map_err(|error| RegistryError::Invalid {
            attempt: format!("push the manifest {target}"),
            reason: error.to_string(),
        })?;
        self.put_manifest(target, &media_type, raw.into()).await
    }
}

/// Where a registry wants a blob.
struct UploadLocation {
    url: Url,
    named_by: NamedBy,
}

/// A body of `size` bytes that is sent as it comes.
fn paced<S, E>(size: u64, stream: S) -> Body
where
    S: Stream<Item = Result<Bytes, E>> + Send + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
{
    let pace = Pace::new();
    let body = reqwest::Body::wrap_stream(pace.watch(stream));
    Body::Stream(size, body, pace)
}

/// The index of `entries`, each digest once. It is a Docker manifest list only if there is nothing of OCI in
/// it, since only an OCI index has annotations.
fn build_index(entries: &[IndexEntry], annotations: BTreeMap<String, String>) -> Index {
    let mut manifests: Vec<Descriptor> = Vec::with_capacity(entries.len());
    for entry in entries {
        if !manifests
            .iter()
            .any(|have| have.digest == entry.descriptor.digest)
        {
            manifests.push(entry.descriptor.clone());
        }
    }
    let docker = annotations.is_empty()
        && !manifests.is_empty()
        && manifests
            .iter()
            .all(|entry| entry.media_type == DOCKER_MANIFEST && entry.annotations.is_empty());
    Index {
        schema_version: 2,
        media_type: Some(if docker { DOCKER_INDEX } else { OCI_INDEX }.into()),
        manifests,
        annotations,
    }
}
