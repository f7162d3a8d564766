//! Context from an artifact in a registry, as ORAS and `az acr` store one.
//!
//! An artifact with one layer is an archive or a file. With several layers, a layer is unpacked if
//! it has the annotation `io.deis.oras.content.unpack`, or no title. Other layers are files named
//! by their title. Every layer is checked against its digest.

use std::{io, path::Path};

use acrtask_model::ImageRef;
use acrtask_registry::credentials::canonical_host;
use acrtask_registry::{AddressPolicy, Descriptor, ManifestBody, Registry, Settings};
use futures::TryStreamExt as _;
use tokio::io::{AsyncRead, AsyncWriteExt as _};
use tokio_util::io::StreamReader;

use crate::{Options, Progress, archive, error::SourceError, paths};

/// Annotation with the file name of a layer.
///
/// Source: OCI image specification, "Pre-Defined Annotation Keys".
const TITLE: &str = "org.opencontainers.image.title";
/// Annotation that ORAS sets to "true" for a packed folder.
const UNPACK: &str = "io.deis.oras.content.unpack";

/// Downloads the artifact `reference` into `target`.
pub(crate) async fn download(
    reference: &ImageRef,
    target: &Path,
    options: &Options,
) -> Result<(), SourceError> {
    let context = format!("oci://{reference}");
    let failed = |source| SourceError::Registry {
        context: context.clone(),
        source: Box::new(source),
    };
    let broken = |reason: &str| SourceError::Archive {
        context: context.clone(),
        entry: None,
        reason: reason.into(),
    };
    let settings = Settings {
        insecure: options.insecure_registries.clone(),
        addresses: if is_operator_registry(reference.registry(), options) {
            AddressPolicy::Any
        } else {
            options.address_policy()
        },
    };
    let registry = Registry::new(options.credentials.clone(), settings).map_err(failed)?;
    let manifest = registry.manifest(reference).await.map_err(failed)?;
    let image = match manifest.body {
        ManifestBody::Image(image) => image,
        ManifestBody::Index(_) => {
            return Err(broken(
                "it is an index of images, but a context is one artifact",
            ));
        }
    };
    let total: u64 = image
        .layers
        .iter()
        .map(|layer| layer.size)
        .fold(0, u64::saturating_add);
    if total > options.limits.download_bytes {
        return Err(SourceError::TooLarge {
            context,
            limit: options.limits.download_bytes,
            unit: "bytes to download",
        });
    }
    if image.layers.is_empty() {
        return Err(broken("it has no layers"));
    }
    let source = reference.at(manifest.digest);
    let single = image.layers.len() == 1;
    let mut received = 0;
    for layer in &image.layers {
        let stream = registry
            .blob(&source, &layer.digest, layer.size)
            .await
            .map_err(failed)?;
        let stream = stream.map_err(io::Error::other).inspect_ok(|chunk| {
            received += chunk.len() as u64;
            options.report(Progress::Received {
                bytes: received,
                total: Some(total),
            });
        });
        store_layer(
            StreamReader::new(stream),
            layer,
            single,
            target,
            &context,
            options,
        )
        .await?;
    }
    Ok(())
}

/// Returns `true` if the operator named this registry, not only a task file. A credential for the
/// registry proves nothing, because a task file may contain one.
fn is_operator_registry(host: &str, options: &Options) -> bool {
    [&options.operator_registries, &options.insecure_registries]
        .into_iter()
        .flatten()
        .any(|name| canonical_host(name) == host)
}

async fn store_layer(
    mut content: impl AsyncRead + Unpin + Send,
    layer: &Descriptor,
    single: bool,
    target: &Path,
    context: &str,
    options: &Options,
) -> Result<(), SourceError> {
    let title = layer.annotations.get(TITLE);
    let marked = layer
        .annotations
        .get(UNPACK)
        .is_some_and(|value| value == "true");
    let Some(title) = title.filter(|_| !marked) else {
        return archive::unpack(&mut content, target, context, &options.limits)
            .await
            .map(drop);
    };
    let broken = |reason: String| SourceError::Archive {
        context: context.into(),
        entry: Some(title.clone()),
        reason,
    };
    let (start, mut content) = archive::peek(content)
        .await
        .map_err(|error| broken(error.to_string()))?;
    if single && archive::is_archive(&start) {
        return archive::unpack(&mut content, target, context, &options.limits)
            .await
            .map(drop);
    }
    let root = std::fs::canonicalize(target).map_err(|source| SourceError::Io {
        attempt: format!("find the folder {}", target.display()),
        source,
    })?;
    let path = paths::resolve_inside(&root, Path::new(title))
        .map_err(|error| broken(error.to_string()))?;
    if path == root {
        return Err(broken("its title is not a file name".into()));
    }
    let written = async {
        if let Some(parent) = path.parent() {
            tokio::fs::create_dir_all(parent).await?;
        }
        let mut file = tokio::fs::File::create_new(&path).await?;
        tokio::io::copy(&mut content, &mut file).await?;
        file.flush().await
    };
    written
        .await
        .map_err(|error: io::Error| broken(error.to_string()))
}
