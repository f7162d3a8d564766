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
//! Invariants: a proof is of one login, one repository and one digest, and lives as long as the process. A layer that an
//! engine does not have proves nothing yet: the engine then fetches it from that registry.
//! Left out: one's own machine, where every image of the engine belongs to its user.

mod layout;

pub(crate) use layout::check_layout;

use std::{collections::HashSet, hash::Hash, pin::Pin, sync::Mutex};

use acrtask_buildkit::Client;
use acrtask_model::{Digest, ImageRef};
use acrtask_registry::{BlobPart, Descriptor, Image, ManifestBody, Platform, Registry, layers};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _};

use crate::{context::RunContext, error::chain, output::lock};

/// Layers that are compared at a time.
const PARALLEL: usize = 4;
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

/// The proofs of a process.
#[derive(Debug, Default)]
pub(crate) struct Proofs {
    images: Mutex<HashSet<Proof>>,
    /// Layers with the digests of their contents. They are true for every run.
    contents: Mutex<HashSet<(Digest, Digest)>>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Proof {
    /// `None`: without a login.
    login: Option<Digest>,
    repository: String,
    digest: Digest,
    platforms: Platforms,
}

impl Proofs {
    fn contains(&self, proof: &Proof) -> bool {
        lock(&self.images).contains(proof)
    }

    fn add(&self, proof: Proof) {
        insert_limited(&self.images, proof);
    }

    fn contains_content(&self, layer: &Digest, content: &Digest) -> bool {
        lock(&self.contents).contains(&(layer.clone(), content.clone()))
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
        insert_limited(&self.contents, (digest.clone(), named));
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

/// The images of an index that may be used.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Platforms {
    All,
    /// Images for these platforms (`linux/arm64/v8`), and images whose manifest the store has.
    Only(Vec<String>),
}

impl Platforms {
    /// Returns `true` if an image for `platform` may be used. An engine for `amd64` also runs `386`.
    fn include(&self, platform: Option<&Platform>) -> bool {
        let (Self::Only(wanted), Some(platform)) = (self, platform) else {
            return true;
        };
        let family = |architecture: &str| match architecture {
            "386" | "amd64" | "x86_64" => "x86",
            "arm" | "arm64" | "aarch64" => "arm",
            _ => "",
        };
        wanted.iter().any(|wanted| {
            let mut parts = wanted.split('/');
            let (os, architecture) = (parts.next(), parts.next().unwrap_or_default());
            let same_family = !family(architecture).is_empty()
                && family(architecture) == family(&platform.architecture);
            os.is_some_and(|os| os.eq_ignore_ascii_case(&platform.os))
                && (same_family || architecture == platform.architecture)
        })
    }
}

/// The store that may give an image to a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    Engine,
    Builder,
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

/// Proves that the run may read `image`, a name with a digest. Sends no request for a proof that the process has.
///
/// # Errors
/// A sentence for the user: the registry does not send the content.
pub(crate) async fn prove(
    run: &RunContext,
    image: &ImageRef,
    platforms: Platforms,
    store: Store,
    missing: Missing,
) -> Result<Proven, String> {
    let Some(digest) = image.digest().filter(|_| !run.options.own_machine) else {
        return Ok(Proven::Whole);
    };
    let login = run.credentials().for_host(image.registry()).await;
    let login = login.map_err(|error| chain(&error))?;
    let proof = Proof {
        login: login.map(|login| login.fingerprint()),
        repository: image.name(),
        digest: digest.clone(),
        platforms,
    };
    if run.proofs.contains(&proof) {
        return Ok(Proven::Whole);
    }
    let comparison = Comparison {
        proofs: &run.proofs,
        registry: run.registry(),
        image,
        store: readable(run, store),
        platforms: &proof.platforms,
        missing,
    };
    if store == Store::Engine
        && missing == Missing::Leave
        && comparison.store.is_some()
        && comparison.size(digest).await?.is_none()
    {
        return Ok(Proven::Partly);
    }
    let proven = comparison.manifest(digest, 0).await.map_err(|why| {
        format!(
            "{image} is not used, because {} has not proven that this run may read it: {why}",
            image.registry()
        )
    })?;
    if proven == Proven::Whole {
        run.proofs.add(proof);
    }
    Ok(proven)
}

/// Returns the client of a store whose content can be read. That of an engine is its BuildKit's.
fn readable(run: &RunContext, store: Store) -> Option<Client> {
    let is_engine = run.builder.is_engine();
    let can_read = match store {
        Store::Engine => is_engine && run.engine.facts.containerd_store,
        Store::Builder => !is_engine || run.engine.facts.containerd_store,
    };
    can_read.then(|| run.builder.client.clone())
}

struct Comparison<'c> {
    proofs: &'c Proofs,
    registry: Registry,
    image: &'c ImageRef,
    /// `None`: the store cannot be read, so everything is read from the registry.
    store: Option<Client>,
    platforms: &'c Platforms,
    missing: Missing,
}

impl Comparison<'_> {
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
            let reference = self.image.at(digest.clone());
            let manifest = self.registry.manifest(&reference).await;
            let manifest = manifest.map_err(|error| chain(&error))?;
            match &manifest.body {
                ManifestBody::Index(index) => {
                    let mut proven = Proven::Whole;
                    for entry in &index.manifests {
                        if self.platforms.include(entry.platform.as_ref())
                            || self.size(&entry.digest).await?.is_some()
                        {
                            proven = proven.min(self.manifest(&entry.digest, depth + 1).await?);
                        }
                    }
                    Ok(proven)
                }
                ManifestBody::Image(image) => self.image(image).await,
            }
        })
    }

    /// Reads the configuration of an image from the registry, and compares its layers.
    async fn image(&self, image: &Image) -> Result<Proven, String> {
        let config = &image.config.digest;
        let config = self.registry.blob_bytes(self.image, config, MAX_CONFIG);
        let config = config.await.map_err(|error| chain(&error))?;
        let contents = layers::diff_ids(&config)?;
        let mut contents: Vec<_> = contents.into_iter().map(Some).collect();
        // Engines and builders use no image whose configuration names no contents.
        if contents.is_empty() {
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
        let content = content.filter(|content| !self.proofs.contains_content(digest, content));
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
    fn platforms_include_all_that_an_engine_may_choose() {
        let platform = |text: &str| {
            let (os, architecture) = text.split_once('/').unwrap();
            Platform {
                os: os.into(),
                architecture: architecture.into(),
                variant: None,
                os_version: None,
                os_features: Vec::new(),
            }
        };
        let only = |text: &str| Platforms::Only(vec![text.to_owned()]);
        for (wanted, offered, expected) in [
            ("linux/amd64", "linux/amd64", true),
            ("linux/amd64/v2", "linux/386", true),
            ("linux/arm64/v8", "linux/arm", true),
            ("linux/s390x", "linux/s390x", true),
            ("linux/amd64", "linux/arm64", false),
            ("linux/amd64", "windows/amd64", false),
            ("linux/s390x", "linux/riscv64", false),
        ] {
            let included = only(wanted).include(Some(&platform(offered)));
            assert_eq!(included, expected, "{wanted} {offered}");
        }
        assert!(only("linux/amd64").include(None));
        assert!(Platforms::All.include(Some(&platform("windows/amd64"))));
    }
}
