//! Pushes of the engine's images to their registries, with a tag or by digest only.
//!
//! An engine pushes by names, and other runs can assign these names to other images. So the image
//! is read by its digest, from the content store of the engine's BuildKit. If that is not possible,
//! it is read as the OCI layout that `docker save` writes. The registry stores it blob by blob,
//! manifests last.
//!
//! Invariants:
//! - Every manifest keeps its bytes, so that the digest is the one that was built and tested.
//! - Content that the registry already has is not sent again.
//! - A layout is in a folder of the run and is removed with it.
//!
//! Parts that the engine lacks, such as other platforms of a pulled image, are copied from the
//! source of the pull. A runner copies all of a pulled image from there.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    pin::{Pin, pin},
};

use acrtask_model::{Digest, ImageRef};
use acrtask_registry::{Descriptor, Index, Manifest, ManifestBody, Registry, RegistryError};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};
use tokio_util::io::ReaderStream;

use crate::{
    context::StepContext,
    error::error_chain,
    images::{Origin, OwnImage},
    login_help::error_chain_with_help,
};

/// Number of concurrent blob uploads.
const PARALLEL: usize = 4;
/// Maximum size of a manifest, in bytes. The distribution specification lets a registry refuse
/// larger ones.
const MAX_MANIFEST: u64 = 4 << 20;
/// Maximum depth of nested indexes.
const MAX_DEPTH: usize = 8;
/// Size of the pieces in which a blob is read, in bytes.
const CHUNK: usize = 256 << 10;

/// Pushes an image of the engine, under the tag of `name` or by digest only. Returns its digest.
pub(crate) async fn push_image(
    ctx: &StepContext,
    name: &ImageRef,
    image: &OwnImage,
    tagged: bool,
) -> Result<Digest, String> {
    let run = &ctx.run;
    let registry = run.registry();
    let found = registry.manifest(&name.at(image.digest.clone())).await;
    match found {
        Ok(manifest) if tagged => {
            let put = registry.put_manifest(name, &manifest.media_type, manifest.raw);
            return put.await.map_err(|error| error_chain_with_help(&error));
        }
        Ok(manifest) => return Ok(manifest.digest),
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error_chain_with_help(&error)),
    }
    if let (Origin::Pulled(pinned), false) = (&image.origin, run.options.own_machine) {
        // The run has proven only one platform of it. The engine may have the others from another
        // run.
        let target = if tagged {
            name.clone()
        } else {
            name.at(image.digest.clone())
        };
        let copied = registry.copy(pinned, &target).await;
        return copied.map_err(|error| error_chain_with_help(&error));
    }
    // The layout's folder is removed after the push.
    let mut scratch = None;
    let (blobs, root) = if run.builder.is_engine() && run.engine.facts.containerd_store {
        (
            Blobs::Content(run.builder.client.clone()),
            image.digest.clone(),
        )
    } else {
        let folder = run
            .workspace
            .scratch()
            .map_err(|error| error_chain(&error))?;
        let path = scratch.insert(folder).path().join("image.tar");
        save_image_to(ctx, &image.in_engine(&run.engine), &path).await?;
        let wanted = image.digest.clone();
        let layout = tokio::task::spawn_blocking(move || Layout::open(path, &wanted))
            .await
            .map_err(|error| error_chain(&error))??;
        let root = layout.root.digest.clone();
        (Blobs::Layout(layout), root)
    };
    let upload = Upload {
        registry,
        target: name.untagged(),
        blobs,
        mounts: run.readable_repositories(name),
        source: match &image.origin {
            Origin::Pulled(pinned) => Some(pinned.clone()),
            Origin::Engine(_) | Origin::Builder { .. } => None,
        },
    };
    let tag = tagged.then_some(name);
    upload.put_manifest(&root, None, tag, 0).await?;
    Ok(root)
}

async fn save_image_to(ctx: &StepContext, name: &str, path: &Path) -> Result<(), String> {
    let disk = |error: io::Error| format!("cannot write {}: {error}", path.display());
    let mut file = tokio::fs::File::create(path).await.map_err(disk)?;
    let mut chunks = pin!(ctx.run.engine.save_image(name));
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| error_chain(&error))?;
        file.write_all(&chunk).await.map_err(disk)?;
    }
    file.flush().await.map_err(disk)
}

/// An OCI layout in a tar archive.
#[derive(Debug)]
struct Layout {
    path: PathBuf,
    /// Position and length of each part, by its path in the layout.
    parts: HashMap<String, (u64, u64)>,
    /// The descriptor of the image.
    root: Descriptor,
}

impl Layout {
    /// Reads the positions of all parts. Blocks. Selects the image `wanted`, or the first one.
    fn open(path: PathBuf, wanted: &Digest) -> Result<Self, String> {
        let disk =
            |error: io::Error| format!("cannot read the image that the engine saved: {error}");
        let mut parts = HashMap::new();
        let mut archive = tar::Archive::new(File::open(&path).map_err(disk)?);
        for entry in archive.entries_with_seek().map_err(disk)? {
            let entry = entry.map_err(disk)?;
            if entry.header().entry_type().is_file() {
                let name = entry.path().map_err(disk)?.to_string_lossy().into_owned();
                parts.insert(name, (entry.raw_file_position(), entry.size()));
            }
        }
        let Some(&(at, size)) = parts.get("index.json") else {
            return Err(
                "this engine does not save images as an OCI layout, so its images cannot be pushed without a tag; use Docker 25 or later"
                    .into(),
            );
        };
        let index = read_part(&path, at, size).map_err(disk)?;
        let index: Index = serde_json::from_slice(&index)
            .map_err(|error| format!("the engine saved an invalid index: {error}"))?;
        let of_digest = index.manifests.iter().find(|entry| entry.digest == *wanted);
        let root = of_digest
            .or(index.manifests.first())
            .cloned()
            .ok_or("the engine saved no image")?;
        Ok(Self { path, parts, root })
    }

    fn find_part(&self, digest: &Digest) -> Option<(u64, u64)> {
        let path = format!("blobs/{}", digest.as_str().replacen(':', "/", 1));
        self.parts.get(&path).copied()
    }
}

/// Reads a part of a file. Its size is limited to that of a manifest.
fn read_part(path: &Path, at: u64, size: u64) -> io::Result<Vec<u8>> {
    if size > MAX_MANIFEST {
        return Err(io::Error::other(format!(
            "a manifest of {size} bytes is bigger than the limit of {MAX_MANIFEST}"
        )));
    }
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(at))?;
    let mut bytes = Vec::new();
    file.take(size).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The blobs of an image of the engine.
#[expect(clippy::large_enum_variant, reason = "there is one for each upload")]
enum Blobs {
    /// Blobs in the content store of the engine's BuildKit.
    Content(acrtask_buildkit::Client),
    /// Blobs in an OCI layout.
    Layout(Layout),
}

/// The content of a blob as a stream.
type BlobStream = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

impl Blobs {
    /// Opens a blob. `None` if it does not exist.
    async fn open(&self, digest: &Digest) -> io::Result<Option<BlobStream>> {
        match self {
            Self::Content(client) => {
                let blob = client.blob(digest.as_str()).await;
                let blob = blob.map_err(io::Error::other)?;
                Ok(blob.map(|blob| blob.map_err(io::Error::other).boxed()))
            }
            Self::Layout(layout) => {
                let Some((at, size)) = layout.find_part(digest) else {
                    return Ok(None);
                };
                let mut file = tokio::fs::File::open(&layout.path).await?;
                file.seek(SeekFrom::Start(at)).await?;
                Ok(Some(
                    ReaderStream::with_capacity(file.take(size), CHUNK).boxed(),
                ))
            }
        }
    }

    /// Reads a manifest. `None` if it does not exist.
    async fn read_manifest(&self, digest: &Digest) -> io::Result<Option<Bytes>> {
        let Some(mut pieces) = self.open(digest).await? else {
            return Ok(None);
        };
        let mut raw = Vec::new();
        while let Some(piece) = pieces.try_next().await? {
            raw.extend_from_slice(&piece);
            if raw.len() as u64 > MAX_MANIFEST {
                return Err(io::Error::other(format!(
                    "it is bigger than the limit of {MAX_MANIFEST} bytes"
                )));
            }
        }
        Ok(Some(raw.into()))
    }
}

/// The upload of an image to a repository.
struct Upload {
    registry: Registry,
    /// The repository.
    target: ImageRef,
    blobs: Blobs,
    /// Repositories of the registry that may have blobs of the image.
    mounts: Vec<ImageRef>,
    /// Name and digest of the image that the run pulled. `None` if it built the image.
    source: Option<ImageRef>,
}

impl Upload {
    /// Stores the manifest `digest` after the blobs and manifests that it names.
    fn put_manifest<'a>(
        &'a self,
        digest: &'a Digest,
        media_type: Option<&'a str>,
        tag: Option<&'a ImageRef>,
        depth: usize,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>> {
        Box::pin(async move {
            let target = self.target.at(digest.clone());
            if depth > MAX_DEPTH {
                return Err(format!(
                    "{target} is an index inside more than {MAX_DEPTH} others"
                ));
            }
            let raw = self.blobs.read_manifest(digest).await;
            let raw = raw.map_err(|error| format!("cannot read the manifest {digest}: {error}"))?;
            let Some(raw) = raw else {
                return self.copy_manifest(&target).await;
            };
            let manifest = Manifest::parse(raw, media_type)?;
            if manifest.digest != *digest {
                return Err(format!(
                    "the engine has {} for the digest {digest}",
                    manifest.digest
                ));
            }
            match &manifest.body {
                ManifestBody::Index(index) => {
                    for entry in &index.manifests {
                        let media_type = Some(entry.media_type.as_str());
                        self.put_manifest(&entry.digest, media_type, None, depth + 1)
                            .await?;
                    }
                }
                ManifestBody::Image(image) => {
                    let blobs = std::iter::once(&image.config)
                        .chain(&image.layers)
                        // These layers stay in the registry of their publisher.
                        .filter(|blob| {
                            !blob.media_type.contains("nondistributable")
                                && !blob.media_type.contains("foreign")
                        });
                    let blobs: Vec<_> = blobs.map(|blob| self.put_blob(blob)).collect();
                    futures::stream::iter(blobs)
                        .buffer_unordered(PARALLEL)
                        .try_collect::<()>()
                        .await?;
                }
            }
            self.registry
                .put_manifest(tag.unwrap_or(&target), &manifest.media_type, manifest.raw)
                .await
                .map(drop)
                .map_err(|error| error_chain_with_help(&error))
        })
    }

    /// Copies content that the engine lacks from the source of the pull, unless the registry has
    /// it.
    async fn copy_manifest(&self, target: &ImageRef) -> Result<(), String> {
        match (self.registry.resolve(target).await, &self.source) {
            (Ok(_), _) => Ok(()),
            (Err(error), Some(source)) if error.is_not_found() => {
                let part = target.digest().map(|digest| source.at(digest.clone()));
                let copied = self.registry.copy(part.as_ref().unwrap_or(source), target);
                copied
                    .await
                    .map(drop)
                    .map_err(|error| error_chain_with_help(&error))
            }
            (Err(error), None) if error.is_not_found() => Err(missing_message(target)),
            (Err(error), _) => Err(error_chain_with_help(&error)),
        }
    }

    async fn put_blob(&self, blob: &Descriptor) -> Result<(), String> {
        let opened = async || {
            let invalid = |reason: String| RegistryError::Invalid {
                attempt: format!("push the blob {} to {}", blob.digest, self.target),
                reason,
            };
            match self.blobs.open(&blob.digest).await {
                Ok(Some(pieces)) => Ok(pieces),
                Ok(None) => Err(invalid(missing_message(
                    &self.target.at(blob.digest.clone()),
                ))),
                Err(error) => Err(invalid(error_chain(&error))),
            }
        };
        let (digest, size) = (&blob.digest, blob.size);
        self.registry
            .put_blob_stream(&self.target, digest, size, &self.mounts, opened)
            .await
            .map_err(|error| error_chain_with_help(&error))
    }
}

fn missing_message(what: &ImageRef) -> String {
    format!(
        "neither the engine nor the registry has {what}, so the image cannot be pushed as a whole; `docker buildx \
         imagetools create` copies an image from registry to registry"
    )
}
