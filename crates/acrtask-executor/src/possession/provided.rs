//! Images and caches of registries whose content this program reads for a builder.
//!
//! A builder that asks a registry itself converts manifests of Docker's schema 1 without comparing their digest, and reads
//! caches without it. A registry could therefore answer the builder with other content than this program. So the builder
//! gets every manifest, configuration and missing layer from here, by digest.
//!
//! Invariants: what is given out has its digest; a manifest of an image is given out after the proof that the run may read
//! it; a digest that no manifest before it names is not given out.

use std::{
    collections::HashMap,
    fs::File,
    io::Write as _,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use acrtask_buildkit::{BlobSource, Client};
use acrtask_model::{Digest, ImageRef};
use acrtask_registry::{Descriptor, Manifest, ManifestBody, Registry};
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture};
use tokio::sync::OnceCell;

use super::{Comparison, MAX_CONFIG, Missing, Platforms, Proof, Proofs, new_proof};
use crate::{context::RunContext, error::chain, output::lock, workspace::Scratch};

/// Returns the content of `image`, a name with this digest, after the proof that the run may read it.
///
/// # Errors
/// A sentence for the user: the registry does not send the content.
pub(crate) async fn provide(
    run: &RunContext,
    image: &ImageRef,
    digest: &Digest,
    platforms: Platforms,
) -> Result<Arc<RegistryImage>, String> {
    let proof = new_proof(run, image, digest, platforms).await?;
    let can_read = !run.builder.is_engine() || run.engine.facts.containerd_store;
    let store = can_read.then(|| run.builder.client.clone());
    let provided = RegistryImage::new(run, image, digest, Some(proof), store)?;
    provided.allow_proven(digest).await?;
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
    registry: Registry,
    image: ImageRef,
    proofs: Arc<Proofs>,
    /// `None` for a cache.
    proof: Option<Proof>,
    /// The builder's own store. `None`: it cannot be read.
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
    Layer,
}

impl RegistryImage {
    fn new(
        run: &RunContext,
        image: &ImageRef,
        digest: &Digest,
        proof: Option<Proof>,
        store: Option<Client>,
    ) -> Result<Self, String> {
        let scratch = run.workspace.scratch().map_err(|error| chain(&error))?;
        let provided = Self {
            registry: run.registry(),
            image: image.clone(),
            proofs: Arc::clone(&run.proofs),
            proof,
            store,
            blobs: Mutex::default(),
            scratch,
        };
        provided.allow(digest, Kind::Manifest);
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
        }
    }

    /// Allows a blob to be given out.
    fn allow(&self, digest: &Digest, kind: Kind) -> Blob {
        let mut blobs = lock(&self.blobs);
        let blob = blobs.entry(digest.clone()).or_insert_with(|| Blob {
            kind,
            file: Arc::default(),
        });
        blob.clone()
    }

    /// Allows everything to be given out that the run has proven of a manifest. A builder that has a manifest does not ask
    /// for it, and asks for what it names.
    fn allow_proven<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<(), String>> {
        async move {
            let manifest = self.manifest(digest).await?;
            let ManifestBody::Index(index) = &manifest.body else {
                return Ok(());
            };
            for entry in &index.manifests {
                let is_proven = match &self.proof {
                    Some(proof) => self.proofs.contains(&proof.of(&entry.digest)),
                    None => entry.is_manifest(),
                };
                if is_proven {
                    self.allow_proven(&entry.digest).await?;
                }
            }
            Ok(())
        }
        .boxed()
    }

    /// Opens a layer. Reads it from the registry the first time.
    ///
    /// # Errors
    /// A sentence for the user.
    pub(super) async fn layer(&self, layer: &Descriptor) -> Result<File, String> {
        let blob = self.allow(&layer.digest, Kind::Layer);
        self.file(&layer.digest, &blob).await
    }

    async fn file(&self, digest: &Digest, blob: &Blob) -> Result<File, String> {
        let read = || self.read(digest, blob.kind);
        let path = blob.file.get_or_try_init(read).await?;
        File::open(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
    }

    /// Reads a blob into a file.
    async fn read(&self, digest: &Digest, kind: Kind) -> Result<PathBuf, String> {
        let path = self.scratch.path().join(digest.as_str().replace(':', "-"));
        let failed = |error: std::io::Error| format!("cannot write {}: {error}", path.display());
        let document = match kind {
            Kind::Manifest => self.manifest(digest).await?.raw,
            Kind::Config => self.config(digest).await?,
            Kind::Layer => {
                let pieces = self.registry.blob(&self.image, digest, u64::MAX).await;
                let mut pieces = pieces.map_err(|error| chain(&error))?;
                let file = tempfile::NamedTempFile::new_in(self.scratch.path());
                let mut file = file.map_err(failed)?;
                // The stream ends with an error if the content does not have the digest.
                while let Some(piece) = pieces.next().await {
                    let piece = piece.map_err(|error| chain(&error))?;
                    file.write_all(&piece).map_err(failed)?;
                }
                file.persist(&path).map_err(|error| failed(error.error))?;
                return Ok(path);
            }
        };
        std::fs::write(&path, document).map_err(failed)?;
        Ok(path)
    }

    /// Returns a manifest, and allows what it names to be given out.
    async fn manifest(&self, digest: &Digest) -> Result<Manifest, String> {
        let kept = match &self.proof {
            None => None,
            Some(proof) => {
                self.comparison(proof).prove(digest).await?;
                self.proofs.document(digest)
            }
        };
        let manifest = match kept {
            Some(raw) => Manifest::parse(raw, None)?,
            None => {
                let reference = self.image.at(digest.clone());
                let manifest = self.registry.manifest(&reference).await;
                manifest.map_err(|error| chain(&error))?
            }
        };
        match &manifest.body {
            ManifestBody::Index(index) => {
                for entry in &index.manifests {
                    entry.check_urls()?;
                    // A cache of an older form is an index of layers.
                    let is_manifest = self.proof.is_some() || entry.is_manifest();
                    let kind = if is_manifest {
                        Kind::Manifest
                    } else {
                        Kind::Layer
                    };
                    self.allow(&entry.digest, kind);
                }
            }
            ManifestBody::Image(image) => {
                image.config.check_urls()?;
                self.allow(&image.config.digest, Kind::Config);
                for layer in &image.layers {
                    layer.check_urls()?;
                    self.allow(&layer.digest, Kind::Layer);
                }
            }
        }
        Ok(manifest)
    }

    async fn config(&self, digest: &Digest) -> Result<Bytes, String> {
        if let Some(kept) = self.proofs.document(digest) {
            return Ok(kept);
        }
        let config = self.registry.blob_bytes(&self.image, digest, MAX_CONFIG);
        config.await.map_err(|error| chain(&error))
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
                Some(blob) => self.file(&digest, &blob).await.map(Some),
                None => Ok(None),
            }
        }
        .boxed()
    }
}
