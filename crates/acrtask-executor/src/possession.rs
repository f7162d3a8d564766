//! Proofs that a run may read an image whose content the engine already has.
//!
//! A digest is public: logs, tag pages and provenance show it. A registry that a task chooses can therefore claim to
//! have any image. An engine believes it, and takes manifests and layers with a known digest from its own store. So
//! before a runner's engine or builder uses an image for a run, the registry has to send its manifests and
//! configuration with the run's login, and random parts of each layer that the store has.
//!
//! Both store an unpacked layer by the `diff_ids` of the configuration, which its author writes. So each layer is
//! unpacked once and compared with them, before a builder sees the image.
//!
//! A builder does not compare everything that a registry sends with its digest. So it gets the content of an image from
//! this program ([`provided`]), which does, and asks no registry that a task chooses.
//!
//! Invariants: a proof is of one login, one repository and one digest, and lives as long as the process. A layer that an
//! engine does not have proves nothing yet: the engine then fetches it from that registry.
//! Left out: one's own machine, where every image of the engine belongs to its user.

mod layout;
mod platforms;
mod provided;

pub(crate) use layout::check_layout;
pub(crate) use platforms::Platforms;
pub(crate) use provided::{RegistryImage, provide, provide_cache};

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

use crate::{context::RunContext, error::chain, output::lock};

/// Layers that are compared at a time.
const PARALLEL: usize = 4;
/// Manifests of one image. Real images have tens.
const MAX_MANIFESTS: usize = 2_000;
/// Indexes inside indexes that are followed.
const MAX_DEPTH: usize = 8;
/// Biggest configuration of an image, in bytes.
const MAX_CONFIG: u64 = 8 << 20;
/// Length of a part of a layer that is compared, in bytes.
const PART: u64 = 4 << 10;
/// Random parts of a layer that are compared.
const PARTS: usize = 3;
/// Proofs that are kept. With more, all of them are dropped and made again.
const MAX_PROOFS: usize = 100_000;
/// Documents that are kept. With more, all of them are dropped and read again.
const MAX_DOCUMENTS: usize = 2_000;
/// Biggest document that is kept, in bytes.
const MAX_DOCUMENT: usize = 64 << 10;
/// The proofs of a process.
#[derive(Debug, Default)]
pub(crate) struct Proofs {
    images: Mutex<HashSet<Proof>>,
    /// Layers with the digests of their contents. They are true for every run.
    contents: Mutex<HashSet<Content>>,
    /// Manifests and configurations by digest. A run gets those whose proof it has.
    documents: Mutex<HashMap<Digest, Bytes>>,
}

/// A layer and the digest of its content.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Content {
    layer: Digest,
    /// Set if the layer's type says that it is compressed. Otherwise its content is what it is itself.
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
    /// `None`: without a login.
    login: Option<Digest>,
    repository: String,
    digest: Digest,
    platforms: Platforms,
    purpose: Purpose,
}

/// The use of a proof. One of them says nothing about another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Purpose {
    /// The engine may use the manifest.
    Engine,
    /// The registry has sent the index. Its entries are to be judged again, because the engine may have others by now.
    EngineIndex,
    /// A builder may get the manifest from this program.
    Builder,
}

impl Proof {
    /// Returns the proof of another manifest for the same login and repository.
    fn of(&self, digest: &Digest) -> Self {
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

    /// Returns a manifest or configuration that a run may have.
    fn document(&self, digest: &Digest) -> Option<Bytes> {
        lock(&self.documents).get(digest).cloned()
    }

    /// Keeps a manifest or configuration, unless it is unusually large.
    fn keep_document(&self, digest: &Digest, document: &Bytes) {
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

    /// Compares the content of a layer with the one that a configuration names.
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

/// Adds a proof. With [`MAX_PROOFS`] of them, drops the others.
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
    /// Leaves the layer unproven. The store fetches it and compares it with the configuration itself.
    Leave,
    /// Reads the whole layer from the registry.
    Read,
}

/// Result of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Proven {
    /// The content that the store has is proven. The rest is still to be fetched.
    Partly,
    Whole,
}

/// Proves that the run may read `image`, a name with a digest, in the engine. Sends no request for a proof that the process
/// has.
///
/// # Errors
/// A sentence for the user: the registry does not send the content.
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
    // An engine's content is read through its BuildKit.
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
    let login = login.map_err(|error| chain(&error))?;
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
    /// `None`: the store cannot be read, so everything is read from the registry.
    store: Option<Client>,
    /// Login, repository and platforms of all proofs of this comparison.
    proof: &'c Proof,
    missing: Missing,
    /// Keeps what is read of a layer. `None`: it is dropped.
    provided: Option<&'c RegistryImage>,
    /// Manifests that this comparison has read.
    manifests: Mutex<HashMap<Digest, Judged>>,
}

/// Result of the comparison of a manifest.
#[derive(Debug, Clone, Copy)]
struct Judged {
    proven: Proven,
    /// Number of ways to manifests in it. Engines go all of them.
    ways: usize,
    /// Set if entries of the index were left out.
    skipped: bool,
}

/// Returns a manifest of the repository of `image`: with `kept` from memory, if it is there, else from the registry.
async fn read_manifest(
    registry: &Registry,
    proofs: &Proofs,
    image: &ImageRef,
    digest: &Digest,
    kept: bool,
) -> Result<Manifest, String> {
    match proofs.document(digest).filter(|_| kept) {
        Some(raw) => Manifest::parse(raw, None),
        None => {
            let manifest = registry.manifest(&image.at(digest.clone())).await;
            manifest.map_err(|error| chain(&error))
        }
    }
}

impl Comparison<'_> {
    /// Proves that the run may read a manifest of the repository and everything in it, unless the process has the proof.
    async fn prove(&self, digest: &Digest) -> Result<Proven, String> {
        let proven = self.manifest(digest, 0).await;
        proven.map_err(|why| self.refusal(&why))
    }

    /// Returns the sentence for the user with the reason why a proof is missing.
    fn refusal(&self, why: &str) -> String {
        format!(
            "{} is not used, because {} has not proven that this run may read it: {why}",
            self.image,
            self.image.registry()
        )
    }

    /// Reads a manifest from the registry, and compares what it consists of.
    fn manifest<'a>(
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
            if self.proofs.contains(&self.proof.of(digest)) {
                return Ok(Proven::Whole);
            }
            let (result, results) = {
                let manifests = lock(&self.manifests);
                (manifests.get(digest).copied(), manifests.len())
            };
            if let Some(judged) = result {
                return Ok(judged.proven);
            }
            if results >= MAX_MANIFESTS {
                return Err(format!("it has more than {MAX_MANIFESTS} manifests"));
            }
            let was_read = self.proofs.contains(&self.index_proof(digest));
            let read = read_manifest(&self.registry, self.proofs, self.image, digest, was_read);
            self.judge(digest, &read.await?, depth).await
        })
    }

    /// Compares what a manifest consists of.
    async fn judge(
        &self,
        digest: &Digest,
        manifest: &Manifest,
        depth: usize,
    ) -> Result<Proven, String> {
        let judged = match &manifest.body {
            ManifestBody::Index(index) => self.index(index, depth).await?,
            ManifestBody::Image(image) => Judged {
                proven: self.image(image).await?,
                ways: 1,
                skipped: false,
            },
        };
        lock(&self.manifests).insert(digest.clone(), judged);
        if judged.proven == Proven::Whole {
            self.proofs.keep_document(digest, &manifest.raw);
            self.proofs.add(if judged.skipped {
                self.index_proof(digest)
            } else {
                self.proof.of(digest)
            });
        }
        Ok(judged.proven)
    }

    /// Returns the proof that the registry has sent an index.
    fn index_proof(&self, digest: &Digest) -> Proof {
        Proof {
            purpose: Purpose::EngineIndex,
            ..self.proof.of(digest)
        }
    }

    async fn index(&self, index: &Index, depth: usize) -> Result<Judged, String> {
        let mut judged = Judged {
            proven: Proven::Whole,
            ways: 1,
            skipped: false,
        };
        let mut is_empty = true;
        for entry in &index.manifests {
            entry.check_urls()?;
            // An engine looks into an index, whatever its platform says.
            let is_used = !entry.is_image_manifest()
                || self.proof.platforms.include(entry.platform.as_ref())
                || self.size(&entry.digest).await?.is_some();
            if !is_used {
                judged.skipped = true;
                continue;
            }
            is_empty = false;
            let proven = self.manifest(&entry.digest, depth + 1).await?;
            judged.proven = judged.proven.min(proven);
            let inside = lock(&self.manifests).get(&entry.digest).copied();
            judged.ways += inside.map_or(1, |inside| inside.ways);
            if judged.ways > MAX_MANIFESTS {
                return Err(format!("it has more than {MAX_MANIFESTS} manifests"));
            }
        }
        if is_empty {
            let wanted = self.proof.platforms.0.join(" or ");
            return Err(format!("it has no image for {wanted}"));
        }
        Ok(judged)
    }

    /// Reads the configuration of an image from the registry, and compares its layers.
    async fn image(&self, image: &Image) -> Result<Proven, String> {
        for descriptor in image.layers.iter().chain([&image.config]) {
            descriptor.check_urls()?;
            descriptor.check_blob()?;
        }
        let digest = &image.config.digest;
        let config = self.registry.blob_bytes(self.image, digest, MAX_CONFIG);
        let config = config.await.map_err(|error| chain(&error))?;
        self.proofs.keep_document(digest, &config);
        let contents = layers::diff_ids(&config)?;
        let mut contents: Vec<_> = contents.into_iter().map(Some).collect();
        // Engines and builders use no image whose configuration names no contents.
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
            .map(|(layer, content)| self.layer(layer, content))
            .collect();
        futures::stream::iter(compared)
            .buffer_unordered(PARALLEL)
            .try_fold(Proven::Whole, async |all, one| Ok(all.min(one)))
            .await
    }

    /// Returns the size of a blob in the store. `None` if the store does not have it, or cannot be read.
    async fn size(&self, digest: &Digest) -> Result<Option<u64>, String> {
        let Some(store) = &self.store else {
            return Ok(None);
        };
        match store.blob_size(digest.as_str()).await {
            Ok(size) => Ok(size),
            Err(error) if error.is_unsupported() => Ok(None),
            Err(error) => Err(chain(&error)),
        }
    }

    /// Compares a layer of the store with the registry's, and with the digest of its content.
    async fn layer(&self, layer: &Descriptor, content: Option<Digest>) -> Result<Proven, String> {
        let digest = &layer.digest;
        let content = content.filter(|content| !self.proofs.contains_content(layer, content));
        match (self.size(digest).await?, &self.store) {
            // The size that the manifest names may be wrong.
            (Some(size), Some(store)) if size > PART * PARTS as u64 => {
                let proven = self.parts(digest, size, store).await?;
                if let Some(content) = content {
                    let pieces = store.blob(digest.as_str()).await;
                    match pieces.map_err(|error| chain(&error))? {
                        Some(pieces) => self.content(layer, content, pieces).await?,
                        // The store has dropped it meanwhile.
                        None => return self.whole(layer, Some(content)).await,
                    }
                }
                Ok(proven)
            }
            (None, Some(_)) if self.missing == Missing::Leave => Ok(Proven::Partly),
            _ => self.whole(layer, content).await,
        }
    }

    /// Compares the content of a layer with its digest.
    async fn content<E: std::error::Error + Send + Sync + 'static>(
        &self,
        layer: &Descriptor,
        content: Digest,
        pieces: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<(), String> {
        let found = layers::content_digest(&layer.media_type, pieces, &content).await;
        self.proofs.compare_content(layer, content, found)
    }

    async fn parts(&self, digest: &Digest, size: u64, store: &Client) -> Result<Proven, String> {
        for _ in 0..PARTS {
            let first = rand::random_range(0..=size - PART);
            let part = self.registry.blob_part(self.image, digest, first, PART);
            let theirs = match part.await.map_err(|error| chain(&error))? {
                BlobPart::Bytes(bytes) => bytes,
                BlobPart::WholeBlob => return Ok(Proven::Whole),
            };
            let ours = store.blob_part(digest.as_str(), first, PART).await;
            if ours.map_err(|error| chain(&error))? != theirs {
                return Err(format!("it sends other bytes for the layer {digest}"));
            }
        }
        Ok(Proven::Whole)
    }

    /// Reads a layer from the registry to its end, which checks its digest, and compares its content.
    async fn whole(&self, layer: &Descriptor, content: Option<Digest>) -> Result<Proven, String> {
        if let Some(provided) = self.provided {
            let file = provided.layer(layer).await?;
            if let Some(content) = content {
                let pieces = ReaderStream::new(tokio::fs::File::from_std(file));
                self.content(layer, content, pieces).await?;
            }
            return Ok(Proven::Whole);
        }
        let pieces = self.registry.blob(self.image, &layer.digest, u64::MAX);
        let mut pieces = pieces.await.map_err(|error| chain(&error))?;
        if let Some(content) = content {
            self.content(layer, content, pieces).await?;
        } else {
            while let Some(piece) = pieces.next().await {
                piece.map_err(|error| chain(&error))?;
            }
        }
        Ok(Proven::Whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_of_a_layer_is_of_its_type_as_well() {
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
