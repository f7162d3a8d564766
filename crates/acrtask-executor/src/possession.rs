//! Proofs that a run may read an image whose content the engine already has.
//!
//! A digest is public: logs, tag pages and provenance show it. A registry that a task chooses can
//! therefore claim to have any image. An engine believes the claim, and uses manifests and layers
//! with a matching digest from its own store. So the registry has to prove it before a runner's
//! engine or builder uses an image for a run. It sends the manifests and the configuration for the
//! run's login, and random parts of each layer that the store has.
//!
//! Engine and builder store an unpacked layer by the `diff_ids` of the configuration, which its
//! author writes. So each layer is unpacked once and compared with them, before a builder uses the
//! image.
//!
//! A builder does not compare everything that a registry sends with its digest. This program does,
//! so it sends the content of an image to the builder ([`provided`]). The builder then sends no
//! requests to a registry that a task chooses.
//!
//! Invariants: a proof applies to one login, one repository and one digest, and lasts as long as
//! the process. A layer that an engine does not have proves nothing yet: the engine then fetches it
//! from that registry. Left out: the user's own machine, where every image of the engine belongs to
//! its user.

mod layout;
mod platforms;
mod provided;

pub(crate) use layout::check_layout;
pub(crate) use platforms::Platforms;
pub(crate) use provided::{RegistryImage, provide_cache, provide_image};

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    pin::Pin,
    sync::Mutex,
};

use acrtask_buildkit::Client;
use acrtask_model::{Digest, ImageRef};
use acrtask_registry::{
    BlobPart, Descriptor, Image, Index, Manifest, ManifestBody, Registry, layers,
};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use tokio_util::io::ReaderStream;

use crate::{context::RunContext, error::error_chain, output::lock};

/// Number of layers that are compared concurrently.
const PARALLEL: usize = 4;
/// Maximum number of manifests of one image. Real images have tens.
const MAX_MANIFESTS: usize = 2_000;
/// Maximum depth of nested indexes.
const MAX_DEPTH: usize = 8;
/// Maximum size of an image configuration, in bytes.
const MAX_CONFIG: u64 = 8 << 20;
/// Length of each compared part of a layer, in bytes.
const PART_LENGTH: u64 = 4 << 10;
/// Number of random parts of a layer that are compared.
const PART_COUNT: usize = 3;
/// Maximum number of stored proofs. At this limit all of them are dropped and built again.
const MAX_PROOFS: usize = 100_000;
/// Maximum number of stored documents. At this limit all of them are dropped and read again.
const MAX_DOCUMENTS: usize = 2_000;
/// Maximum size of a stored document, in bytes.
const MAX_DOCUMENT: usize = 64 << 10;
/// The proofs of a process.
#[derive(Debug, Default)]
pub(crate) struct Proofs {
    images: Mutex<HashSet<Proof>>,
    /// Layers with the digests of their contents. They apply to every run.
    contents: Mutex<HashSet<Content>>,
    /// Manifests and configurations by digest. A run may use those whose proof it has.
    documents: Mutex<HashMap<Digest, Bytes>>,
}

/// A layer and the digest of its content.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Content {
    layer: Digest,
    /// Set if the layer's media type is a compressed one. Otherwise the content is the layer
    /// itself.
    is_compressed: bool,
    content: Digest,
}

impl Content {
    fn new(layer: &Descriptor, content: Digest) -> Self {
        Self {
            layer: layer.digest.clone(),
            is_compressed: layers::is_compressed(&layer.media_type),
            content,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Proof {
    /// Fingerprint of the login. `None` if the run has no login for the registry.
    login: Option<Digest>,
    repository: String,
    digest: Digest,
    platforms: Platforms,
    purpose: Purpose,
}

/// The use of a proof. A proof for one use does not imply another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Purpose {
    /// The engine may use the manifest.
    Engine,
    /// The registry has sent the index. Its entries are judged again on each use, because the store
    /// of the engine may have changed.
    EngineIndex,
    /// A builder may receive the manifest from this program.
    Builder,
}

impl Proof {
    /// Returns the proof of another manifest for the same login and repository.
    fn for_digest(&self, digest: &Digest) -> Self {
        Self {
            digest: digest.clone(),
            ..self.clone()
        }
    }
}

impl Proofs {
    fn contains(&self, proof: &Proof) -> bool {
        lock(&self.images).contains(proof)
    }

    fn add(&self, proof: Proof) {
        insert_limited(&self.images, proof);
    }

    /// Returns a manifest or configuration that a run may use.
    fn stored_document(&self, digest: &Digest) -> Option<Bytes> {
        lock(&self.documents).get(digest).cloned()
    }

    /// Stores a manifest or configuration of at most [`MAX_DOCUMENT`] bytes.
    fn store_document(&self, digest: &Digest, document: &Bytes) {
        let mut documents = lock(&self.documents);
        if documents.len() >= MAX_DOCUMENTS {
            documents.clear();
        }
        if document.len() <= MAX_DOCUMENT {
            documents.insert(digest.clone(), document.clone());
        }
    }

    fn contains_content(&self, layer: &Descriptor, content: &Digest) -> bool {
        lock(&self.contents).contains(&Content::new(layer, content.clone()))
    }

    /// Compares the content of a layer with the digest that a configuration names.
    fn compare_content(
        &self,
        layer: &Descriptor,
        named: Digest,
        found: Result<Digest, String>,
    ) -> Result<(), String> {
        let digest = &layer.digest;
        let found = found.map_err(|why| format!("{why} (the layer {digest})"))?;
        if found != named {
            return Err(format!(
                "its configuration says that the layer {digest} contains {named}, and it contains {found}"
            ));
        }
        insert_limited(&self.contents, Content::new(layer, named));
        Ok(())
    }
}

/// Adds a proof. Drops all others at the limit of [`MAX_PROOFS`].
fn insert_limited<T: Eq + Hash>(proofs: &Mutex<HashSet<T>>, proof: T) {
    let mut proofs = lock(proofs);
    if proofs.len() >= MAX_PROOFS {
        proofs.clear();
    }
    proofs.insert(proof);
}

/// Handling of layers that the store does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Leaves the layer unproven. The store fetches it and compares it with the configuration
    /// itself.
    Leave,
    /// Reads the whole layer from the registry.
    Read,
}

/// Result of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Proven {
    /// The content in the store is proven. The rest has to be fetched.
    Partly,
    Whole,
}

/// Proves that the run may read `image`, a name with a digest, in the engine. Sends no request if
/// the process already has the proof.
///
/// # Errors
/// A sentence for the user if the registry does not send the content.
pub(crate) async fn prove(
    run: &RunContext,
    image: &ImageRef,
    platforms: Platforms,
    missing: Missing,
) -> Result<Proven, String> {
    let Some(digest) = image.digest().filter(|_| !run.options.own_machine) else {
        return Ok(Proven::Whole);
    };
    let proof = new_proof(run, image, digest, platforms, Purpose::Engine).await?;
    // The content of an engine is only readable through its BuildKit.
    let can_read = run.builder.is_engine() && run.engine.facts.containerd_store;
    let comparison = Comparison {
        proofs: &run.proofs,
        registry: run.registry(),
        image,
        store: can_read.then(|| run.builder.client.clone()),
        proof: &proof,
        missing,
        provided: None,
        manifests: Mutex::default(),
    };
    comparison.prove(digest).await
}

/// Returns the proof that a run needs for an image.
async fn new_proof(
    run: &RunContext,
    image: &ImageRef,
    digest: &Digest,
    platforms: Platforms,
    purpose: Purpose,
) -> Result<Proof, String> {
    let login = run.credentials().for_host(image.registry()).await;
    let login = login.map_err(|error| error_chain(&error))?;
    Ok(Proof {
        login: login.map(|login| login.fingerprint()),
        repository: image.name(),
        digest: digest.clone(),
        platforms,
        purpose,
    })
}

struct Comparison<'c> {
    proofs: &'c Proofs,
    registry: Registry,
    image: &'c ImageRef,
    /// `None` if the store cannot be read. Everything is then read from the registry.
    store: Option<Client>,
    /// Login, repository and platforms of all proofs of this comparison.
    proof: &'c Proof,
    missing: Missing,
    /// Stores the layers that are read. `None`: they are dropped.
    provided: Option<&'c RegistryImage>,
    /// Manifests that this comparison has read.
    manifests: Mutex<HashMap<Digest, ManifestResult>>,
}

/// Result of the comparison of a manifest.
#[derive(Debug, Clone, Copy)]
struct ManifestResult {
    proven: Proven,
    /// Number of paths to manifests in it. Engines follow all of them.
    paths: usize,
    /// Set if entries of the index were skipped.
    skipped: bool,
}

/// Returns a manifest of the repository of `image`. With `use_stored`, memory is preferred over the
/// registry.
async fn read_manifest(
    registry: &Registry,
    proofs: &Proofs,
    image: &ImageRef,
    digest: &Digest,
    use_stored: bool,
) -> Result<Manifest, String> {
    match proofs.stored_document(digest).filter(|_| use_stored) {
        Some(raw) => Manifest::parse(raw, None),
        None => {
            let manifest = registry.manifest(&image.at(digest.clone())).await;
            manifest.map_err(|error| error_chain(&error))
        }
    }
}

impl Comparison<'_> {
    /// Proves that the run may read a manifest of the repository and everything in it, unless the
    /// process already has the proof.
    async fn prove(&self, digest: &Digest) -> Result<Proven, String> {
        let proven = self.prove_manifest(digest, 0).await;
        proven.map_err(|why| self.refusal_message(&why))
    }

    /// Returns the sentence for the user with the reason why a proof is missing.
    fn refusal_message(&self, why: &str) -> String {
        format!(
            "{} is not used, because {} has not proven that this run may read it: {why}",
            self.image,
            self.image.registry()
        )
    }

    /// Reads a manifest from the registry and compares its parts.
    fn prove_manifest<'a>(
        &'a self,
        digest: &'a Digest,
        depth: usize,
    ) -> Pin<Box<dyn Future<Output = Result<Proven, String>> + Send + 'a>> {
        Box::pin(async move {
            if depth > MAX_DEPTH {
                return Err(format!(
                    "it is an index inside more than {MAX_DEPTH} others"
                ));
            }
            if self.proofs.contains(&self.proof.for_digest(digest)) {
                return Ok(Proven::Whole);
            }
            let (result, results) = {
                let manifests = lock(&self.manifests);
                (manifests.get(digest).copied(), manifests.len())
            };
            if let Some(result) = result {
                return Ok(result.proven);
            }
            if results >= MAX_MANIFESTS {
                return Err(format!("it has more than {MAX_MANIFESTS} manifests"));
            }
            let was_read = self.proofs.contains(&self.index_proof(digest));
            let read = read_manifest(&self.registry, self.proofs, self.image, digest, was_read);
            self.compare_manifest(digest, &read.await?, depth).await
        })
    }

    /// Compares the parts of a manifest.
    async fn compare_manifest(
        &self,
        digest: &Digest,
        manifest: &Manifest,
        depth: usize,
    ) -> Result<Proven, String> {
        let result = match &manifest.body {
            ManifestBody::Index(index) => self.prove_index(index, depth).await?,
            ManifestBody::Image(image) => ManifestResult {
                proven: self.prove_image(image).await?,
                paths: 1,
                skipped: false,
            },
        };
        lock(&self.manifests).insert(digest.clone(), result);
        if result.proven == Proven::Whole {
            self.proofs.store_document(digest, &manifest.raw);
            self.proofs.add(if result.skipped {
                self.index_proof(digest)
            } else {
                self.proof.for_digest(digest)
            });
        }
        Ok(result.proven)
    }

    /// Returns the proof that the registry has sent an index.
    fn index_proof(&self, digest: &Digest) -> Proof {
        Proof {
            purpose: Purpose::EngineIndex,
            ..self.proof.for_digest(digest)
        }
    }

    async fn prove_index(&self, index: &Index, depth: usize) -> Result<ManifestResult, String> {
        let mut result = ManifestResult {
            proven: Proven::Whole,
            paths: 1,
            skipped: false,
        };
        let mut is_empty = true;
        for entry in &index.manifests {
            entry.check_urls()?;
            // An engine reads an index regardless of its platform.
            let is_used = !entry.is_image_manifest()
                || self.proof.platforms.include(entry.platform.as_ref())
                || self.stored_size(&entry.digest).await?.is_some();
            if !is_used {
                result.skipped = true;
                continue;
            }
            is_empty = false;
            let proven = self.prove_manifest(&entry.digest, depth + 1).await?;
            result.proven = result.proven.min(proven);
            let inside = lock(&self.manifests).get(&entry.digest).copied();
            result.paths += inside.map_or(1, |inside| inside.paths);
            if result.paths > MAX_MANIFESTS {
                return Err(format!("it has more than {MAX_MANIFESTS} manifests"));
            }
        }
        if is_empty {
            let wanted = self.proof.platforms.0.join(" or ");
            return Err(format!("it has no image for {wanted}"));
        }
        Ok(result)
    }

    /// Reads the configuration of an image from the registry and compares its layers.
    async fn prove_image(&self, image: &Image) -> Result<Proven, String> {
        for descriptor in image.layers.iter().chain([&image.config]) {
            descriptor.check_urls()?;
            descriptor.check_blob()?;
        }
        let digest = &image.config.digest;
        let config = self.registry.blob_bytes(self.image, digest, MAX_CONFIG);
        let config = config.await.map_err(|error| error_chain(&error))?;
        self.proofs.store_document(digest, &config);
        let contents = layers::diff_ids(&config)?;
        let mut contents: Vec<_> = contents.into_iter().map(Some).collect();
        // Engines and builders refuse an image whose configuration names no contents.
        if contents.is_empty() {
            if self.proof.purpose == Purpose::Engine && !image.layers.is_empty() {
                return Err("its configuration does not name the contents of its layers".into());
            }
            contents.resize(image.layers.len(), None);
        }
        if contents.len() != image.layers.len() {
            return Err(format!(
                "its configuration names {} layers, and its manifest {}",
                contents.len(),
                image.layers.len()
            ));
        }
        let compared: Vec<_> = std::iter::zip(&image.layers, contents)
            .map(|(layer, content)| self.prove_layer(layer, content))
            .collect();
        futures::stream::iter(compared)
            .buffer_unordered(PARALLEL)
            .try_fold(Proven::Whole, async |all, one| Ok(all.min(one)))
            .await
    }

    /// Returns the size of a blob in the store. `None` if the store does not have it or cannot be
    /// read.
    async fn stored_size(&self, digest: &Digest) -> Result<Option<u64>, String> {
        let Some(store) = &self.store else {
            return Ok(None);
        };
        match store.blob_size(digest.as_str()).await {
            Ok(size) => Ok(size),
            Err(error) if error.is_unsupported() => Ok(None),
            Err(error) => Err(error_chain(&error)),
        }
    }

    /// Compares a layer of the store with the registry's, and with the digest of its content.
    async fn prove_layer(
        &self,
        layer: &Descriptor,
        content: Option<Digest>,
    ) -> Result<Proven, String> {
        let digest = &layer.digest;
        let content = content.filter(|content| !self.proofs.contains_content(layer, content));
        match (self.stored_size(digest).await?, &self.store) {
            // The size that the manifest names may be wrong.
            (Some(size), Some(store)) if size > PART_LENGTH * PART_COUNT as u64 => {
                let proven = self.compare_random_parts(digest, size, store).await?;
                if let Some(content) = content {
                    let pieces = store.blob(digest.as_str()).await;
                    match pieces.map_err(|error| error_chain(&error))? {
                        Some(pieces) => self.compare_layer_content(layer, content, pieces).await?,
                        // The store has dropped it in the meantime.
                        None => return self.read_whole_layer(layer, Some(content)).await,
                    }
                }
                Ok(proven)
            }
            (None, Some(_)) if self.missing == Missing::Leave => Ok(Proven::Partly),
            _ => self.read_whole_layer(layer, content).await,
        }
    }

    /// Compares the content of a layer with its digest.
    async fn compare_layer_content<E: std::error::Error + Send + Sync + 'static>(
        &self,
        layer: &Descriptor,
        content: Digest,
        pieces: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<(), String> {
        let found = layers::content_digest(&layer.media_type, pieces, &content).await;
        self.proofs.compare_content(layer, content, found)
    }

    #[allow(
        clippy::disallowed_methods,
        reason = "the sampled part must be unpredictable"
    )]
    async fn compare_random_parts(
        &self,
        digest: &Digest,
        size: u64,
        store: &Client,
    ) -> Result<Proven, String> {
        for _ in 0..PART_COUNT {
            let first = rand::random_range(0..=size - PART_LENGTH);
            let part = self
                .registry
                .blob_part(self.image, digest, first, PART_LENGTH);
            let sent = match part.await.map_err(|error| error_chain(&error))? {
                BlobPart::Bytes(bytes) => bytes,
                BlobPart::WholeBlob => return Ok(Proven::Whole),
            };
            let stored = store.blob_part(digest.as_str(), first, PART_LENGTH).await;
            if stored.map_err(|error| error_chain(&error))? != sent {
                return Err(format!("it sends other bytes for the layer {digest}"));
            }
        }
        Ok(Proven::Whole)
    }

    /// Reads a whole layer from the registry, which checks its digest, and compares its content.
    async fn read_whole_layer(
        &self,
        layer: &Descriptor,
        content: Option<Digest>,
    ) -> Result<Proven, String> {
        if let Some(provided) = self.provided {
            let file = provided.open_layer(layer).await?;
            if let Some(content) = content {
                let pieces = ReaderStream::new(tokio::fs::File::from_std(file));
                self.compare_layer_content(layer, content, pieces).await?;
            }
            return Ok(Proven::Whole);
        }
        let pieces = self.registry.blob(self.image, &layer.digest, u64::MAX);
        let mut pieces = pieces.await.map_err(|error| error_chain(&error))?;
        if let Some(content) = content {
            self.compare_layer_content(layer, content, pieces).await?;
        } else {
            while let Some(piece) = pieces.next().await {
                piece.map_err(|error| error_chain(&error))?;
            }
        }
        Ok(Proven::Whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_content_proof_depends_on_the_media_type() {
        let layer = |media_type: &str| Descriptor {
            media_type: media_type.into(),
            digest: format!("sha256:{}", "a".repeat(64)).parse().unwrap(),
            size: 1,
            urls: Vec::new(),
            platform: None,
            annotations: Default::default(),
            artifact_type: None,
        };
        let content: Digest = format!("sha256:{}", "b".repeat(64)).parse().unwrap();
        let proofs = Proofs::default();
        let packed = layer("application/vnd.oci.image.layer.v1.tar+gzip");
        let compared = proofs.compare_content(&packed, content.clone(), Ok(content.clone()));
        assert_eq!(compared, Ok(()));
        assert!(proofs.contains_content(&packed, &content));
        for other in ["application/vnd.oci.image.layer.v1.tar", "text/plain"] {
            assert!(!proofs.contains_content(&layer(other), &content), "{other}");
        }
    }
}
