//! Images and caches of registries whose content this program reads for a builder.
//!
//! A builder that asks a registry itself converts manifests of Docker's schema 1 without comparing their digest, and reads
//! caches without it. A registry could therefore answer the builder with other content than this program. So the builder
//! gets every manifest, configuration and missing layer from here, by digest.
//!
//! Invariants: what is given out has its digest; every image of an index that is given out is proven, because a builder
//! uses those that it has without asking; a digest that no manifest before it names is not given out.

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
use crate::{context::RunContext, error::chain, output::lock, workspace::Scratch};

/// Returns the content of `image`, a name with this digest, after the proof that the run may read it. Of an index, the
/// content has the images for `platforms`: it is another index then, with its own digest.
///
/// # Errors
/// A sentence for the user: the registry does not send the content, or the index lacks the platforms.
pub(crate) async fn provide(
    run: &RunContext,
    image: &ImageRef,
    digest: &Digest,
    platforms: &Platforms,
) -> Result<Arc<RegistryImage>, String> {
    // What is given out of an index is proven with everything in it.
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
    let manifest = manifest.map_err(|why| comparison.refusal(&why))?;
    let ManifestBody::Index(index) = &manifest.body else {
        if !kept {
            let proven = comparison.judge(digest, &manifest, 0).await;
            proven.map_err(|why| comparison.refusal(&why))?;
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
        entry.check_urls().map_err(|why| comparison.refusal(&why))?;
        comparison.prove(&entry.digest).await?;
    }
    run.proofs.keep_document(digest, &manifest.raw);
    run.proofs.add(filtered);
    if chosen.manifests.len() < index.manifests.len() {
        provided.root = provided.keep_index(&chosen)?;
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
    /// The digest that the builder gets: that of the image, or of an index of some of its entries.
    pub(crate) root: Digest,
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
    /// With its size in bytes.
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
        let scratch = run.workspace.scratch().map_err(|error| chain(&error))?;
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
            manifests: Mutex::default(),
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

    /// Keeps an index that is not in the registry. Returns its digest.
    fn keep_index(&self, index: &Index) -> Result<Digest, String> {
        let raw = serde_json::to_vec(index).map_err(|error| chain(&error))?;
        let digest = sha256(&raw);
        let path = self.path(&digest);
        std::fs::write(&path, &raw)
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        let blob = Blob {
            kind: Kind::Manifest,
            file: Arc::new(OnceCell::new_with(Some(path))),
        };
        lock(&self.blobs).insert(digest.clone(), blob);
        for entry in &index.manifests {
            self.allow(&entry.digest, Kind::Manifest);
        }
        Ok(digest)
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.scratch.path().join(digest.as_str().replace(':', "-"))
    }

    /// Allows everything to be given out that the run has proven of a manifest. A builder that has a manifest does not ask
    /// for it, and asks for what it names.
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
            let blob = self.allow(&digest, Kind::Manifest);
            let raw = match blob.file.get() {
                Some(path) => tokio::fs::read(path)
                    .await
                    .map(Bytes::from)
                    .map_err(|error| chain(&error))?,
                None => self.manifest(&digest).await?.raw,
            };
            if let ManifestBody::Index(index) = Manifest::parse(raw, None)?.body {
                let entries = index.manifests.into_iter();
                let entries = entries.filter(|entry| self.proof.is_some() || entry.is_manifest());
                waiting.extend(entries.map(|entry| entry.digest));
            }
            // What is in memory makes no wait, and a run can be canceled.
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Opens a layer. Reads it from the registry the first time.
    ///
    /// # Errors
    /// A sentence for the user.
    pub(super) async fn layer(&self, layer: &Descriptor) -> Result<File, String> {
        let blob = self.allow(&layer.digest, Kind::Layer(layer.size));
        self.file(&layer.digest, &blob).await
    }

    async fn file(&self, digest: &Digest, blob: &Blob) -> Result<File, String> {
        let read = || self.read(digest, blob.kind);
        let path = blob.file.get_or_try_init(read).await?;
        File::open(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
    }

    /// Reads a blob into a file.
    async fn read(&self, digest: &Digest, kind: Kind) -> Result<PathBuf, String> {
        let path = self.path(digest);
        let failed = |error: std::io::Error| format!("cannot write {}: {error}", path.display());
        let document = match kind {
            Kind::Manifest => self.manifest(digest).await?.raw,
            Kind::Config => self.config(digest).await?,
            Kind::Layer(size) => {
                let pieces = self.registry.blob(&self.image, digest, size).await;
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
                    // A cache of an older form is an index of layers.
                    let is_manifest = self.proof.is_some() || entry.is_manifest();
                    let kind = if is_manifest {
                        Kind::Manifest
                    } else {
                        Kind::Layer(entry.size)
                    };
                    self.allow(&entry.digest, kind);
                }
            }
            ManifestBody::Image(image) => {
                image.config.check_urls()?;
                self.allow(&image.config.digest, Kind::Config);
                for layer in &image.layers {
                    layer.check_urls()?;
                    self.allow(&layer.digest, Kind::Layer(layer.size));
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
