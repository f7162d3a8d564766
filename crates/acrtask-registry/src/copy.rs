//! Write operations: tags, manifests, blobs, copies between repositories, and new indexes.
//!
//! A copy keeps every byte of every manifest, so its digests stay the same. Registries require
//! blobs before the manifests that refer to them. The client uploads only missing content. Inside
//! one registry, it mounts blobs from repository to repository.

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
    client::{Registry, pull_scope, push_scope},
    error::RegistryError,
    manifest::{
        DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, Index, Manifest, ManifestBody, OCI_INDEX, sha256,
    },
    transport::{Body, Call, RequestOptions, UploadProgress, UrlSource},
};

/// Number of concurrent blob copies.
const PARALLEL: usize = 4;
/// Maximum nesting depth of indexes. Real images have one level, at most two.
const MAX_DEPTH: usize = 8;
/// Maximum number of manifests of one copy. Real images have tens.
const MAX_MANIFESTS: usize = 2_000;

/// Entry of a new index: a descriptor, and the current place of the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexEntry {
    /// Current reference of the manifest, by digest.
    pub source: ImageRef,
    /// Descriptor for the new index. Callers may change its platform and annotations.
    pub descriptor: Descriptor,
}

/// Result of the copy of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobCopy {
    /// The repository had the blob.
    Existing,
    /// The registry mounted the blob from another repository.
    Mounted,
    /// The content was transferred.
    Copied,
}

impl Registry {
    /// Adds the tag `tag` to the manifest of `reference`, in the same repository.
    ///
    /// # Errors
    /// [`RegistryError`]. [`RegistryError::Invalid`] if `tag` is not a valid tag.
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

    /// Stores a manifest under the tag of `target`, or only under its digest if `target` has no
    /// tag.
    ///
    /// # Errors
    /// [`RegistryError`]. [`RegistryError::Invalid`] if `target` has another digest than `raw`.
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
        .find(|supported| *supported == media_type)
        .ok_or_else(|| invalid(format!("`{media_type}` is not a media type of a manifest")))?;
        if let Some(wanted) = target.digest().filter(|wanted| **wanted != digest) {
            return Err(invalid(format!(
                "its digest should be {wanted}, but it is {digest}"
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
                scopes: vec![push_scope(target)],
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
                "the registry stored it as {stored}, but its digest is {digest}"
            ))),
            _ => Ok(digest),
        }
    }

    /// Stores a blob in the repository of `target`, unless the repository has it.
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

    /// Stores a blob of `size` bytes in the repository of `target`, unless the repository has it.
    /// `open` opens the content. The registry checks the digest. If one of the repositories
    /// `mounts` has the blob, the client asks the registry to mount it from there.
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
            // A repository that cannot be read does not prevent the upload.
            if self
                .blob_exists(from, digest, pull_scope(from))
                .await
                .unwrap_or(false)
            {
                mount = Some(from);
                break;
            }
        }
        if let Some(location) = self.start_upload(target, digest, mount).await? {
            let body = upload_body(size, open().await?);
            self.finish_upload(target, digest, location, body).await?;
        }
        Ok(())
    }

    /// Copies `source` and all its content to `target`: every platform and all attestations. The
    /// tag is `latest` if `target` has neither tag nor digest.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn copy(
        &self,
        source: &ImageRef,
        target: &ImageRef,
    ) -> Result<Digest, RegistryError> {
        self.copy_nested(source, target, 0, &AtomicUsize::new(0))
            .await
    }

    async fn copy_nested(
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

    /// Copies the content that `manifest` refers to.
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
                        self.copy_nested(&from, &to, depth + 1, copied).await?;
                    }
                    Ok(())
                }
                ManifestBody::Image(image) => {
                    let copies: Vec<_> = image
                        .distributable_blobs()
                        .map(|blob| self.copy_blob(source, target, blob))
                        .collect();
                    futures::stream::iter(copies)
                        .buffer_unordered(PARALLEL)
                        .try_for_each(|_| std::future::ready(Ok(())))
                        .await
                }
            }
        })
    }

    /// Copies a blob to the repository of `target`, unless the repository has it. Inside one
    /// registry, the registry mounts it.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn copy_blob(
        &self,
        source: &ImageRef,
        target: &ImageRef,
        blob: &Descriptor,
    ) -> Result<BlobCopy, RegistryError> {
        if self.has_blob(target, &blob.digest).await? {
            return Ok(BlobCopy::Existing);
        }
        let mount = (source.registry() == target.registry()).then_some(source);
        let started = match self.start_upload(target, &blob.digest, mount).await {
            // A registry may accept an upload although it refuses to mount the blob.
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
            return Ok(BlobCopy::Mounted);
        };
        let stream = self.blob(source, &blob.digest, blob.size).await?;
        let body = upload_body(blob.size, stream);
        self.finish_upload(target, &blob.digest, location, body)
            .await?;
        Ok(BlobCopy::Copied)
    }

    /// Returns `true` if the repository of `target` has the blob.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn has_blob(
        &self,
        target: &ImageRef,
        digest: &Digest,
    ) -> Result<bool, RegistryError> {
        self.blob_exists(target, digest, push_scope(target)).await
    }

    async fn blob_exists(
        &self,
        target: &ImageRef,
        digest: &Digest,
        scope: String,
    ) -> Result<bool, RegistryError> {
        let call = Call {
            attempt: format!("check for the blob {digest} in {}", target.name()),
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

    /// Starts an upload. `None` if the registry mounted the blob from the repository of `mount`.
    async fn start_upload(
        &self,
        target: &ImageRef,
        digest: &Digest,
        mount: Option<&ImageRef>,
    ) -> Result<Option<UploadLocation>, RegistryError> {
        let attempt = format!("push the blob {digest} to {}", target.name());
        let mut url = self.transport.url(target, "blobs/uploads/")?;
        let mut scopes = vec![push_scope(target)];
        if let Some(from) = mount {
            url.query_pairs_mut()
                .append_pair("mount", digest.as_str())
                .append_pair("from", from.repository());
            scopes.push(pull_scope(from));
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
        let url_source = UrlSource::Server(response.remote_addr());
        let invalid = |reason: String| RegistryError::Invalid {
            attempt: attempt.clone(),
            reason: format!("{} {reason}", target.registry()),
        };
        let location = response
            .headers()
            .get(header::LOCATION)
            .and_then(|value| url.join(value.to_str().ok()?).ok())
            .ok_or_else(|| invalid("named no upload location".into()))?;
        match location.scheme() {
            "https" => {}
            "http" if url.scheme() == "http" => {}
            scheme => {
                return Err(invalid(format!(
                    "named an upload location with `{scheme}:` instead of `{}:`",
                    url.scheme()
                )));
            }
        }
        Ok(Some(UploadLocation {
            url: location,
            url_source,
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
            scopes: vec![push_scope(target)],
            accept: &[],
            body,
        };
        let options = RequestOptions {
            url_source: location.url_source,
            ..RequestOptions::default()
        };
        self.transport.send_with(call, options).await.map(drop)
    }

    /// Returns the entries that a new index takes over from `source`. An index gives all its
    /// entries, with attestations. An image gives one entry with the platform of its configuration.
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

    /// Stores an index of `entries` as `target`. Copies missing content to its repository first.
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

    /// Stores an index of `entries` only under its digest. The tag of `target` does not change.
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

/// Upload location that a registry named.
struct UploadLocation {
    url: Url,
    url_source: UrlSource,
}

/// Creates a streamed request body of `size` bytes, and the progress of its upload.
fn upload_body<S, E>(size: u64, stream: S) -> Body
where
    S: Stream<Item = Result<Bytes, E>> + Send + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
{
    let progress = UploadProgress::new();
    let body = reqwest::Body::wrap_stream(progress.watch(stream));
    Body::Stream(size, body, progress)
}

/// Builds an index of `entries`, with each digest once. Only an OCI index has annotations.
/// Therefore, the result is a Docker manifest list only if all entries are Docker manifests without
/// annotations, and `annotations` is empty.
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
