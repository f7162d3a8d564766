//! Pushes without tags: an image of the engine goes to its registry by its digest alone.
//!
//! An engine pushes tags and nothing else. So the image is taken out of it as an OCI layout, as `docker save` writes it,
//! and stored in the registry blob by blob, manifests last. Invariants: every manifest keeps its bytes, so that the digest
//! is the one that was built and tested; what the registry has is not sent again; the layout lies in a folder of the run
//! and is removed with it. Left out: parts of an image that the engine does not have, such as other platforms of one that
//! was pulled, unless the registry has them.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    pin::{Pin, pin},
};

use acrtask_model::{Digest, ImageRef};
use acrtask_registry::{Descriptor, Index, Manifest, ManifestBody, Registry, RegistryError};
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};
use tokio_util::io::ReaderStream;

use crate::{context::StepContext, error::chain, images::Built};

/// Blobs that are sent at a time.
const PARALLEL: usize = 4;
/// Biggest manifest that is read, in bytes: what the distribution specification lets a registry refuse.
const MAX_MANIFEST: u64 = 4 << 20;
/// Indexes inside indexes that are followed.
const MAX_DEPTH: usize = 8;
/// How much of a blob is read at a time, in bytes.
const CHUNK: usize = 256 << 10;

/// Pushes an image that the engine has; returns its digest.
pub(crate) async fn push(
    ctx: &StepContext,
    image: &ImageRef,
    built: Option<&Built>,
) -> Result<Digest, String> {
    // By its digest, so that nobody can have given the name to another image.
    let name = built.map_or_else(|| image.to_string(), |built| built.digest.to_string());
    let scratch = ctx.run.workspace.scratch().map_err(|error| chain(&error))?;
    let path = scratch.path().join("image.tar");
    save(ctx, &name, &path).await?;
    let wanted = built.map(|built| built.digest.clone());
    let layout = tokio::task::spawn_blocking(move || Layout::open(path, wanted.as_ref()))
        .await
        .map_err(|error| chain(&error))??;
    let upload = Upload {
        registry: ctx.run.registry(),
        target: image.untagged(),
        layout,
    };
    let root = upload.layout.root.clone();
    upload.put(&root, 0).await?;
    Ok(root.digest)
}

async fn save(ctx: &StepContext, name: &str, path: &Path) -> Result<(), String> {
    let disk = |error: io::Error| format!("cannot write {}: {error}", path.display());
    let mut file = tokio::fs::File::create(path).await.map_err(disk)?;
    let mut chunks = pin!(ctx.run.engine.save_image(name));
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| chain(&error))?;
        file.write_all(&chunk).await.map_err(disk)?;
    }
    file.flush().await.map_err(disk)
}

/// An OCI layout in a tar.
#[derive(Debug)]
struct Layout {
    path: PathBuf,
    /// By path in the layout: where it begins, and its length.
    parts: HashMap<String, (u64, u64)>,
    /// The image.
    root: Descriptor,
}

impl Layout {
    /// Reads what is where. Blocks. The image is `wanted`, or the only one.
    fn open(path: PathBuf, wanted: Option<&Digest>) -> Result<Self, String> {
        let disk = |error: io::Error| format!("cannot read what the engine gave: {error}");
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
                "this engine gives no OCI layout, so its images cannot be pushed without a tag; Docker 25 and later do"
                    .into(),
            );
        };
        let index = read(&path, at, size).map_err(disk)?;
        let index: Index = serde_json::from_slice(&index)
            .map_err(|error| format!("the engine gave an index that is not valid: {error}"))?;
        let of_digest = index
            .manifests
            .iter()
            .find(|entry| Some(&entry.digest) == wanted);
        let root = of_digest
            .or(index.manifests.first())
            .cloned()
            .ok_or("the engine gave no image")?;
        Ok(Self { path, parts, root })
    }

    fn part(&self, digest: &Digest) -> Option<(u64, u64)> {
        let path = format!("blobs/{}", digest.as_str().replacen(':', "/", 1));
        self.parts.get(&path).copied()
    }
}

/// Part of a file, which is a manifest at most.
fn read(path: &Path, at: u64, size: u64) -> io::Result<Vec<u8>> {
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

/// A layout on its way into a repository.
struct Upload {
    registry: Registry,
    /// The repository.
    target: ImageRef,
    layout: Layout,
}

impl Upload {
    /// Stores what a descriptor points at, and before it what that consists of.
    fn put<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        depth: usize,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>> {
        Box::pin(async move {
            let digest = &descriptor.digest;
            let target = self.target.at(digest.clone());
            if depth > MAX_DEPTH {
                return Err(format!(
                    "{target} is an index inside more than {MAX_DEPTH} others"
                ));
            }
            let Some((at, size)) = self.layout.part(digest) else {
                return match self.registry.resolve(&target).await {
                    Ok(_) => Ok(()),
                    Err(error) if error.is_not_found() => Err(missing(&target)),
                    Err(error) => Err(chain(&error)),
                };
            };
            let path = self.layout.path.clone();
            let raw = tokio::task::spawn_blocking(move || read(&path, at, size))
                .await
                .map_err(|error| chain(&error))?
                .map_err(|error| format!("cannot read the manifest {digest}: {error}"))?;
            let manifest = Manifest::parse(raw.into(), Some(&descriptor.media_type))?;
            match &manifest.body {
                ManifestBody::Index(index) => {
                    for entry in &index.manifests {
                        self.put(entry, depth + 1).await?;
                    }
                }
                ManifestBody::Image(image) => {
                    let blobs = std::iter::once(&image.config)
                        .chain(&image.layers)
                        // Layers that stay where their publisher has them.
                        .filter(|blob| {
                            !blob.media_type.contains("nondistributable")
                                && !blob.media_type.contains("foreign")
                        });
                    let blobs: Vec<_> = blobs.map(|blob| self.blob(blob)).collect();
                    futures::stream::iter(blobs)
                        .buffer_unordered(PARALLEL)
                        .try_collect::<()>()
                        .await?;
                }
            }
            self.registry
                .put_manifest(&target, &manifest.media_type, manifest.raw)
                .await
                .map(drop)
                .map_err(|error| chain(&error))
        })
    }

    async fn blob(&self, blob: &Descriptor) -> Result<(), String> {
        let part = self.layout.part(&blob.digest);
        let opened = async || {
            let attempt = || format!("push the blob {} to {}", blob.digest, self.target);
            let Some((at, size)) = part else {
                return Err(RegistryError::Invalid {
                    attempt: attempt(),
                    reason: missing(&self.target.at(blob.digest.clone())),
                });
            };
            let open = async {
                let mut file = tokio::fs::File::open(&self.layout.path).await?;
                file.seek(SeekFrom::Start(at)).await?;
                Ok::<_, io::Error>(ReaderStream::with_capacity(file.take(size), CHUNK))
            };
            open.await.map_err(|error| RegistryError::Invalid {
                attempt: attempt(),
                reason: error.to_string(),
            })
        };
        self.registry
            .put_blob_stream(&self.target, &blob.digest, blob.size, opened)
            .await
            .map_err(|error| chain(&error))
    }
}

fn missing(what: &ImageRef) -> String {
    format!(
        "neither the engine nor the registry has {what}; an image of which the engine has a part alone cannot be pushed \
         without its tag: `docker buildx imagetools create` copies it from registry to registry"
    )
}
