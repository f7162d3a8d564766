//! Checks of images in an OCI layout folder, which a task may have written.
//!
//! A builder takes content that the folder lacks from its own store. So the folder must be
//! complete, and the configurations must name the contents of the layers.
//!
//! Source: OCI image specification 1.1, "Image Layout".

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
};

use acrtask_model::Digest;
use acrtask_registry::{
    Descriptor, Image, Manifest, ManifestBody,
    layers::{content_digest, diff_ids, file_digest},
    manifest::sha256,
};
use acrtask_source::paths::{file_inside, read_inside};
use tokio_util::io::ReaderStream;

use super::{MAX_CONFIG, MAX_MANIFESTS, Proofs};
use crate::{context::RunContext, error::error_chain};

/// Maximum size of an index or manifest, in bytes.
const MAX_MANIFEST: u64 = 4 << 20;

/// Checks all images of the folder, and the one with `digest`.
///
/// # Errors
/// A sentence for the user: the folder lacks content of an image, or a configuration is wrong.
pub(crate) async fn check_layout(
    run: &RunContext,
    folder: &Path,
    digest: Option<&str>,
) -> Result<(), String> {
    if run.options.own_machine {
        return Ok(());
    }
    let layout = Layout {
        proofs: &run.proofs,
        folder,
    };
    let checked = layout.check_images(digest).await;
    checked.map_err(|why| format!("--build-context: the OCI layout is not used: {why}"))
}

struct Layout<'l> {
    proofs: &'l Proofs,
    folder: &'l Path,
}

impl Layout<'_> {
    async fn check_images(&self, digest: Option<&str>) -> Result<(), String> {
        let index = self.read_file("index.json", MAX_MANIFEST)?;
        let index = Manifest::parse(index.into(), None)?;
        let ManifestBody::Index(index) = index.body else {
            return Err("its index.json is not an index".into());
        };
        let mut waiting: Vec<Digest> = index.manifests.into_iter().map(|one| one.digest).collect();
        if let Some(digest) = digest {
            waiting.push(
                digest
                    .parse()
                    .map_err(|_| format!("{digest:?} is not a digest"))?,
            );
        }
        let mut seen = HashSet::new();
        while let Some(digest) = waiting.pop() {
            if !seen.insert(digest.clone()) {
                continue;
            }
            if seen.len() > MAX_MANIFESTS {
                return Err(format!("it has more than {MAX_MANIFESTS} manifests"));
            }
            let raw = self.read_blob(&digest, MAX_MANIFEST)?;
            match Manifest::parse(raw.into(), None)?.body {
                ManifestBody::Index(index) => {
                    for entry in &index.manifests {
                        entry.check_urls()?;
                    }
                    waiting.extend(index.manifests.into_iter().map(|one| one.digest));
                }
                ManifestBody::Image(image) => self.check_image(&image).await?,
            }
        }
        Ok(())
    }

    async fn check_image(&self, image: &Image) -> Result<(), String> {
        for descriptor in image.layers.iter().chain([&image.config]) {
            descriptor.check_urls()?;
            descriptor.check_blob()?;
        }
        let contents = diff_ids(&self.read_blob(&image.config.digest, MAX_CONFIG)?)?;
        // A builder refuses an image whose configuration names no contents.
        if !contents.is_empty() && contents.len() != image.layers.len() {
            return Err(format!(
                "a configuration names {} layers, and its manifest {}",
                contents.len(),
                image.layers.len()
            ));
        }
        let mut contents = contents.into_iter();
        for layer in &image.layers {
            self.check_layer(layer, contents.next()).await?;
        }
        Ok(())
    }

    async fn check_layer(&self, layer: &Descriptor, content: Option<Digest>) -> Result<(), String> {
        let digest = &layer.digest;
        let path = self.file_path(&blob_name(digest))?;
        let open = async || {
            let file = tokio::fs::File::open(&path).await;
            file.map_err(|error| format!("the layer {digest}: {}", error_chain(&error)))
        };
        let found = file_digest(open().await?, digest).await;
        let found =
            found.map_err(|error| format!("the layer {digest}: {}", error_chain(&error)))?;
        if found != *digest {
            return Err(format!(
                "the file of the layer {digest} has the digest {found}"
            ));
        }
        let content = content.filter(|content| !self.proofs.contains_content(layer, content));
        if let Some(content) = content {
            let pieces = ReaderStream::new(open().await?);
            let found = content_digest(&layer.media_type, pieces, &content).await;
            self.proofs.compare_content(layer, content, found)?;
        }
        Ok(())
    }

    /// Reads a blob of at most `limit` bytes and checks its digest.
    fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, String> {
        let bytes = self.read_file(&blob_name(digest), limit)?;
        if sha256(&bytes) != *digest {
            return Err(format!("the file of {digest} has another digest"));
        }
        Ok(bytes)
    }

    fn read_file(&self, name: &str, limit: u64) -> Result<Vec<u8>, String> {
        let bytes = read_inside(self.folder, Path::new(name), limit);
        bytes.map_err(|error| file_error(name, &error))
    }

    fn file_path(&self, name: &str) -> Result<PathBuf, String> {
        let path = file_inside(self.folder, Path::new(name));
        path.map_err(|error| file_error(name, &error))
    }
}

/// Returns the sentence for a file of the layout that cannot be used.
fn file_error(name: &str, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => format!("it does not have {name}"),
        _ => format!("{name}: {}", error_chain(error)),
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}", digest.as_str().replacen(':', "/", 1))
}
