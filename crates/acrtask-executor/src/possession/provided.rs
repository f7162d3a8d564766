//! Images and caches of registries whose content this program reads for a builder.
//!
//! A builder that requests content from a registry itself does not compare every digest. It
//! converts manifests of Docker's schema 1 and reads caches without a comparison. A registry could
//! therefore send other content to the builder than to this program. So the builder receives every
//! manifest, configuration and missing layer from this program, by digest.
//!
//! Invariants:
//! - Content that is provided has its digest.
//! - Every image of a provided index is proven, because a builder uses those in its store without a
//!   request.
//! - A digest is provided only if a manifest provided before names it.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::Write as _,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use acrtask_buildkit::{BlobSource, Client};
use acrtask_model::{Digest, ImageRef};
use acrtask_registry::{Descriptor, Index, Manifest, ManifestBody, Registry, manifest::sha256};
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture};
use tokio::sync::OnceCell;

use super::{
    Comparison, MAX_CONFIG, MAX_MANIFESTS, Missing, Platforms, Proof, Proofs, Purpose, new_proof,
    read_manifest,
};
use crate::{context::RunContext, error::error_chain, output::lock, workspace::Scratch};

/// Returns the content of `image`, a name with this digest, after the proof that the run may read
/// it.
///
/// If the image is an index with more platforms, the content is another index with its own digest.
/// That index has only the images for `platforms`.
///
/// # Errors
/// A sentence for the user: the registry does not send the content, or the index lacks the
/// platforms.
pub(crate) async fn provide_image(
    run: &RunContext,
    image: &ImageRef,
    digest: &Digest,
    platforms: &Platforms,
) -> Result<Arc<RegistryImage>, String> {
    // Everything in the provided part of an index is proven.
    let proof = new_proof(run, image, digest, Platforms::all(), Purpose::Builder).await?;
    let filtered = Proof {
        platforms: platforms.clone(),
        ..proof.clone()
    };
    let can_read = !run.builder.is_engine() || run.engine.facts.containerd_store;
    let store = can_read.then(|| run.builder.client.clone());
    let mut provided = RegistryImage::new(run, image, digest, Some(proof.clone()), store)?;
    let comparison = provided.comparison(&proof);
    let kept = [&proof, &filtered]
        .into_iter()
        .any(|proof| run.proofs.contains(proof));
    let manifest = read_manifest(&provided.registry, &run.proofs, image, digest, kept).await;
    let manifest = manifest.map_err(|why| comparison.refusal_message(&why))?;
    let ManifestBody::Index(index) = &manifest.body else {
        if !kept {
            let proven = comparison.compare_manifest(digest, &manifest, 0).await;
            proven.map_err(|why| comparison.refusal_message(&why))?;
        }
        provided.allow_proven(digest).await?;
        return Ok(Arc::new(provided));
    };
    let mut chosen = index.clone();
    chosen
        .manifests
        .retain(|entry| platforms.include(entry.platform.as_ref()));
    if chosen.manifests.is_empty() {
        let wanted = platforms.0.join(" or ");
        return Err(format!("{image} has no image for {wanted}"));
    }
    for entry in &chosen.manifests {
        entry
            .check_urls()
            .map_err(|why| comparison.refusal_message(&why))?;
        comparison.prove(&entry.digest).await?;
    }
    run.proofs.store_document(digest, &manifest.raw);
    run.proofs.add(filtered);
    if chosen.manifests.len() < index.manifests.len() {
        provided.root = provided.store_index(&chosen)?;
    } else {
        run.proofs.add(proof);
    }
    let root = provided.root.clone();
    provided.allow_proven(&root).await?;
    Ok(Arc::new(provided))
}

/// Returns the content of a sealed cache, a name with this digest. Its seal is the proof.
///
/// # Errors
/// A sentence for the user: the registry does not send the content.
pub(crate) async fn provide_cache(
    run: &RunContext,
    cache: &ImageRef,
    digest: &Digest,
) -> Result<Arc<RegistryImage>, String> {
    let provided = RegistryImage::new(run, cache, digest, None, None)?;
    provided.allow_proven(digest).await?;
    Ok(Arc::new(provided))
}

/// The content of an image or a cache of a registry.
#[derive(Debug)]
pub(crate) struct RegistryImage {
    /// The digest that the builder receives: that of the image, or of an index of some of its
    /// entries.
    pub(crate) root: Digest,
    registry: Registry,
    image: ImageRef,
    proofs: Arc<Proofs>,
    /// `None` for a cache.
    proof: Option<Proof>,
    /// The builder's own store. `None` if it cannot be read.
    store: Option<Client>,
    blobs: Mutex<HashMap<Digest, Blob>>,
    scratch: Scratch,
}

/// A blob that a manifest names.
#[derive(Debug, Clone)]
struct Blob {
    kind: Kind,
    file: Arc<OnceCell<PathBuf>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Manifest,
    Config,
    /// Size in bytes.
    Layer(u64),
}

impl RegistryImage {
    fn new(
        run: &RunContext,
        image: &ImageRef,
        digest: &Digest,
        proof: Option<Proof>,
        store: Option<Client>,
    ) -> Result<Self, String> {
        let scratch = run
            .workspace
            .scratch()
            .map_err(|error| error_chain(&error))?;
        let provided = Self {
            root: digest.clone(),
            registry: run.registry(),
            image: image.clone(),
            proofs: Arc::clone(&run.proofs),
            proof,
            store,
            blobs: Mutex::default(),
            scratch,
        };
        provided.allow_blob(digest, Kind::Manifest);
        Ok(provided)
    }

    fn comparison<'c>(&'c self, proof: &'c Proof) -> Comparison<'c> {
        Comparison {
            proofs: &self.proofs,
            registry: self.registry.clone(),
            image: &self.image,
            store: self.store.clone(),
            proof,
            missing: Missing::Read,
            provided: Some(self),
            manifests: Mutex::default(),
        }
    }

    /// Allows providing a blob.
    fn allow_blob(&self, digest: &Digest, kind: Kind) -> Blob {
        let mut blobs = lock(&self.blobs);
        let blob = blobs.entry(digest.clone()).or_insert_with(|| Blob {
            kind,
            file: Arc::default(),
        });
        blob.clone()
    }

    /// Stores an index that is not in the registry. Returns its digest.
    fn store_index(&self, index: &Index) -> Result<Digest, String> {
        let raw = serde_json::to_vec(index).map_err(|error| error_chain(&error))?;
        let digest = sha256(&raw);
        let path = self.blob_path(&digest);
        std::fs::write(&path, &raw)
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        let blob = Blob {
            kind: Kind::Manifest,
            file: Arc::new(OnceCell::new_with(Some(path))),
        };
        lock(&self.blobs).insert(digest.clone(), blob);
        for entry in &index.manifests {
            self.allow_blob(&entry.digest, Kind::Manifest);
        }
        Ok(digest)
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.scratch.path().join(digest.as_str().replace(':', "-"))
    }

    /// Allows providing everything that the run has proven about a manifest. A builder that already
    /// has a manifest does not request it, but requests the content that it names.
    async fn allow_proven(&self, root: &Digest) -> Result<(), String> {
        let mut waiting = vec![root.clone()];
        let mut seen = HashSet::new();
        while let Some(digest) = waiting.pop() {
            if !seen.insert(digest.clone()) {
                continue;
            }
            if seen.len() > MAX_MANIFESTS {
                return Err(format!(
                    "{} has more than {MAX_MANIFESTS} manifests",
                    self.image
                ));
            }
            let blob = self.allow_blob(&digest, Kind::Manifest);
            let raw = match blob.file.get() {
                Some(path) => tokio::fs::read(path)
                    .await
                    .map(Bytes::from)
                    .map_err(|error| error_chain(&error))?,
                None => self.fetch_manifest(&digest).await?.raw,
            };
            if let ManifestBody::Index(index) = Manifest::parse(raw, None)?.body {
                let entries = index.manifests.into_iter();
                let entries = entries.filter(|entry| self.proof.is_some() || entry.is_manifest());
                waiting.extend(entries.map(|entry| entry.digest));
            }
            // Manifests in memory never wait, so this yields to let a cancellation take effect.
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Opens a layer. Reads it from the registry the first time.
    ///
    /// # Errors
    /// A sentence for the user.
    pub(super) async fn open_layer(&self, layer: &Descriptor) -> Result<File, String> {
        let blob = self.allow_blob(&layer.digest, Kind::Layer(layer.size));
        self.open_file(&layer.digest, &blob).await
    }

    async fn open_file(&self, digest: &Digest, blob: &Blob) -> Result<File, String> {
        let read = || self.read_blob(digest, blob.kind);
        let path = blob.file.get_or_try_init(read).await?;
        File::open(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
    }

    /// Reads a blob into a file.
    async fn read_blob(&self, digest: &Digest, kind: Kind) -> Result<PathBuf, String> {
        let path = self.blob_path(digest);
        let failed = |error: std::io::Error| format!("cannot write {}: {error}", path.display());
        let document = match kind {
            Kind::Manifest => self.fetch_manifest(digest).await?.raw,
            Kind::Config => self.fetch_config(digest).await?,
            Kind::Layer(size) => {
                let pieces = self.registry.blob(&self.image, digest, size).await;
                let mut pieces = pieces.map_err(|error| error_chain(&error))?;
                let file = tempfile::NamedTempFile::new_in(self.scratch.path());
                let mut file = file.map_err(failed)?;
                // The stream ends with an error if the content does not match the digest.
                while let Some(piece) = pieces.next().await {
                    let piece = piece.map_err(|error| error_chain(&error))?;
                    file.write_all(&piece).map_err(failed)?;
                }
                file.persist(&path).map_err(|error| failed(error.error))?;
                return Ok(path);
            }
        };
        std::fs::write(&path, document).map_err(failed)?;
        Ok(path)
    }

    /// Returns a manifest, and allows providing the content that it names.
    async fn fetch_manifest(&self, digest: &Digest) -> Result<Manifest, String> {
        if let Some(proof) = &self.proof {
            self.comparison(proof).prove(digest).await?;
        }
        let kept = self.proof.is_some();
        let read = read_manifest(&self.registry, &self.proofs, &self.image, digest, kept);
        let manifest = read.await?;
        match &manifest.body {
            ManifestBody::Index(index) => {
                for entry in &index.manifests {
                    entry.check_urls()?;
                    // A cache in the older format is an index of layers.
                    let is_manifest = self.proof.is_some() || entry.is_manifest();
                    let kind = if is_manifest {
                        Kind::Manifest
                    } else {
                        Kind::Layer(entry.size)
                    };
                    self.allow_blob(&entry.digest, kind);
                }
            }
            ManifestBody::Image(image) => {
                image.config.check_urls()?;
                self.allow_blob(&image.config.digest, Kind::Config);
                for layer in &image.layers {
                    layer.check_urls()?;
                    self.allow_blob(&layer.digest, Kind::Layer(layer.size));
                }
            }
        }
        Ok(manifest)
    }

    async fn fetch_config(&self, digest: &Digest) -> Result<Bytes, String> {
        if let Some(kept) = self.proofs.stored_document(digest) {
            return Ok(kept);
        }
        let config = self.registry.blob_bytes(&self.image, digest, MAX_CONFIG);
        config.await.map_err(|error| error_chain(&error))
    }
}

impl BlobSource for RegistryImage {
    fn open<'a>(&'a self, digest: &'a str) -> BoxFuture<'a, Result<Option<File>, String>> {
        async move {
            let Ok(digest) = digest.parse::<Digest>() else {
                return Ok(None);
            };
            let blob = lock(&self.blobs).get(&digest).cloned();
            match blob {
                Some(blob) => self.open_file(&digest, &blob).await.map(Some),
                None => Ok(None),
            }
        }
        .boxed()
    }
}
