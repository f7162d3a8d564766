//! Creation times of images, from their configurations and annotations.
//!
//! Anyone with the right to push chooses the indexes of a repository. So each manifest is read
//! once, and the manifests of a tag are limited. A tag with more manifests has an unknown age, and stays.

use std::{
    collections::{BTreeMap, HashMap},
    pin::Pin,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use acrtask_model::{Digest, ImageRef};
use acrtask_registry::{ManifestBody, Registry, RegistryError};
use jiff::Timestamp;
use serde::Deserialize;

use crate::{carry_out::REPLACEMENT, inventory::parse_time};

/// Annotation with the creation time of an image.
const CREATED: &str = "org.opencontainers.image.created";
/// Maximum size of an image configuration, in bytes.
const MAX_CONFIG: u64 = 8 << 20;
/// Maximum number of manifests that are read for the age of one tag.
const MAX_MANIFESTS: usize = 2_000;
/// Maximum depth of indexes in indexes.
const MAX_DEPTH: usize = 1;
/// Creation times before this one are placeholders: 1981-01-01.
const FIRST_PLAUSIBLE: i64 = 347_155_200;

/// Reader of the creation times of one repository.
#[derive(Debug)]
pub(crate) struct Creations<'a> {
    registry: &'a Registry,
    /// Current time. Later creation times are not plausible.
    now: Timestamp,
    /// Times of manifests at a depth.
    found: Mutex<HashMap<(Digest, usize), Option<Timestamp>>>,
}

impl<'a> Creations<'a> {
    pub(crate) fn new(registry: &'a Registry, now: Timestamp) -> Self {
        Self {
            registry,
            now,
            found: Mutex::default(),
        }
    }

    /// Finds the creation time of the image with a digest. `None` if no plausible time is stated, or
    /// if its content cannot be read.
    pub(crate) async fn find(
        &self,
        image: &ImageRef,
        digest: Digest,
    ) -> Result<(Digest, Option<Timestamp>), RegistryError> {
        let read = AtomicUsize::new(0);
        let time = self.find_at(image, &digest, 0, &read).await?;
        let is_complete = read.load(Ordering::Relaxed) <= MAX_MANIFESTS;
        Ok((digest, time.filter(|_| is_complete)))
    }

    fn find_read(&self, digest: &Digest, depth: usize) -> Option<Option<Timestamp>> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.get(&(digest.clone(), depth)).copied()
    }

    /// Returns the creation time of a manifest. The time of an index is that of its newest image.
    /// `read` counts the manifests of the tag.
    fn find_at<'f>(
        &'f self,
        image: &'f ImageRef,
        digest: &'f Digest,
        depth: usize,
        read: &'f AtomicUsize,
    ) -> Pin<Box<dyn Future<Output = Result<Option<Timestamp>, RegistryError>> + Send + 'f>> {
        Box::pin(async move {
            if let Some(time) = self.find_read(digest, depth) {
                return Ok(time);
            }
            if read.fetch_add(1, Ordering::Relaxed) >= MAX_MANIFESTS {
                return Ok(None);
            }
            let time = self.read(image, digest, depth, read).await?;
            if read.load(Ordering::Relaxed) <= MAX_MANIFESTS {
                let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
                found.insert((digest.clone(), depth), time);
            }
            Ok(time)
        })
    }

    async fn read(
        &self,
        image: &ImageRef,
        digest: &Digest,
        depth: usize,
        read: &AtomicUsize,
    ) -> Result<Option<Timestamp>, RegistryError> {
        let manifest = match self.registry.manifest(&image.at(digest.clone())).await {
            Ok(manifest) => manifest,
            Err(
                RegistryError::NotFound { .. }
                | RegistryError::Invalid { .. }
                | RegistryError::TooLarge { .. },
            ) => return Ok(None),
            Err(error) => return Err(error),
        };
        let annotated = |annotations: &BTreeMap<String, String>| {
            self.plausible(annotations.get(CREATED).map(String::as_str))
        };
        match &manifest.body {
            // A purge that was killed left it behind.
            ManifestBody::Image(found) if found.artifact_type.as_deref() == Some(REPLACEMENT) => {
                Ok(Some(Timestamp::UNIX_EPOCH))
            }
            ManifestBody::Image(found) => {
                let created = self.read_config(image, &found.config.digest).await?;
                Ok(self
                    .plausible(created.as_deref())
                    .or_else(|| annotated(&found.annotations)))
            }
            ManifestBody::Index(index) => {
                let mut newest = annotated(&index.annotations);
                if newest.is_some() || depth > MAX_DEPTH {
                    return Ok(newest);
                }
                for entry in index.manifests.iter().filter(|entry| entry.is_image()) {
                    if read.load(Ordering::Relaxed) > MAX_MANIFESTS {
                        return Ok(None);
                    }
                    let time = self.find_at(image, &entry.digest, depth + 1, read).await?;
                    newest = newest.max(time);
                }
                Ok(newest)
            }
        }
    }

    /// Returns the time in the configuration of an image. `None` if it states none, or cannot be
    /// read.
    async fn read_config(
        &self,
        image: &ImageRef,
        digest: &Digest,
    ) -> Result<Option<String>, RegistryError> {
        #[derive(Deserialize)]
        struct Config {
            created: Option<String>,
        }
        let bytes = match self.registry.blob_bytes(image, digest, MAX_CONFIG).await {
            Ok(bytes) => bytes,
            Err(
                RegistryError::NotFound { .. }
                | RegistryError::Invalid { .. }
                | RegistryError::TooLarge { .. },
            ) => return Ok(None),
            Err(error) => return Err(error),
        };
        let parsed: Option<Config> = serde_json::from_slice(&bytes).ok();
        Ok(parsed.and_then(|config| config.created))
    }

    fn plausible(&self, text: Option<&str>) -> Option<Timestamp> {
        let time = parse_time(text)?;
        let last = self.now.as_second().saturating_add(24 * 3600);
        (FIRST_PLAUSIBLE..=last)
            .contains(&time.as_second())
            .then_some(time)
    }
}
