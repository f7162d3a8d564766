//! The caches that a build imports and exports.

use std::collections::BTreeMap;

use acrtask_buildkit::{
    BuildOutcome, CacheNamespaces, CacheSpec, Feature, Provenance, ProvidedImage,
    single_use_namespace,
};
use acrtask_model::{ImageRef, ReferenceError, TrustDomain, events::Stream};
use acrtask_spec::build_line::BuildLine;

use super::{Base, Recipe};
use crate::{cache_seal, context::StepContext, error::error_chain, possession::provide_cache};

/// The type of a cache that is an image of a registry.
const REGISTRY_CACHE: &str = "registry";
/// The attribute with the name of that image.
const REFERENCE: &str = "ref";
/// The type of a cache that is a folder.
pub(in crate::steps::build) const LOCAL_CACHE: &str = "local";
/// The type of a cache that is inside of the image.
pub(crate) const INLINE_CACHE: &str = "inline";
/// The build argument with which `docker build` exports an inline cache.
const INLINE_CACHE_ARGUMENT: &str = "BUILDKIT_INLINE_CACHE";

/// The caches that a build imports.
#[derive(Debug, Default)]
pub(super) struct Imported {
    /// Caches that the builder reads itself.
    pub(super) caches: Vec<CacheSpec>,
    /// Sealed caches, which this program reads.
    pub(super) provided: Vec<ProvidedImage>,
}

/// Returns the caches of `--cache-from` that the build may import, and warns about the others.
pub(super) async fn imported_caches(
    ctx: &StepContext,
    line: &BuildLine,
    base: &Base,
) -> Result<Imported, String> {
    let caches = convert_caches(&line.cache_from, base)?;
    if imports_every_cache(ctx) {
        return Ok(Imported {
            caches,
            ..Imported::default()
        });
    }
    let mut imported = Imported::default();
    for cache in caches {
        let shown = cache
            .attrs
            .get(REFERENCE)
            .or_else(|| cache.attrs.get("src"));
        let shown = shown.cloned().unwrap_or_else(|| cache.kind.clone());
        let why = match admit_import(ctx, &cache).await {
            Ok(Some(cache)) => {
                imported.provided.push(cache);
                continue;
            }
            Ok(None) => "no run of this task has exported it with `--cache-to`".to_owned(),
            Err(why) => why,
        };
        let message = format!("the cache {shown} is not used: {why}");
        let help = "a cache that other clients can write determines layers of all builds; an operator who trusts this task allows \
                    every cache with `--allow cache-imports`";
        let events = &ctx.run.events;
        let warned = events.warn(Some(&ctx.step.id), message, Some(help.to_owned()));
        warned.await;
    }
    Ok(imported)
}

/// Returns the content of the cache that a run of the domain has sealed under this name. `None` if
/// it does not exist.
///
/// # Errors
/// A sentence for the user if the registry cannot be read.
async fn admit_import(
    ctx: &StepContext,
    cache: &CacheSpec,
) -> Result<Option<ProvidedImage>, String> {
    let Some(reference) = registry_reference(cache)? else {
        return Ok(None);
    };
    let sealed = cache_seal::find_sealed(&ctx.run, &reference).await?;
    let Some(digest) = sealed.as_ref().and_then(ImageRef::digest) else {
        return Ok(None);
    };
    Ok(Some(ProvidedImage {
        digest: digest.to_string(),
        blobs: provide_cache(&ctx.run, &reference, digest).await?,
    }))
}

/// Adds the shared cache of the step to the imports. It does not exist in the first run of a task.
pub(in crate::steps::build) async fn import_shared(
    ctx: &StepContext,
    recipe: &mut Recipe,
    cache: CacheSpec,
) {
    if imports_every_cache(ctx) {
        recipe.cache_imports.push(cache);
        return;
    }
    match admit_import(ctx, &cache).await {
        Ok(cache) => recipe.provided_caches.extend(cache),
        Err(why) => {
            let message = format!("the shared cache is not used: {why}");
            ctx.run.events.warn(Some(&ctx.step.id), message, None).await;
        }
    }
}

/// Seals the cache that a build has exported to a registry, if later runs need the seal. The
/// builder describes the cache only if it is the only export.
pub(in crate::steps::build) async fn seal_exported(
    ctx: &StepContext,
    exports: &[CacheSpec],
    outcome: &BuildOutcome,
) {
    let mut exported = exports.iter().filter(|cache| cache.kind == REGISTRY_CACHE);
    let (Some(cache), None) = (exported.next(), exported.next()) else {
        return;
    };
    if imports_every_cache(ctx) || !ctx.run.domain.trust.writes_shared_cache() {
        return;
    }
    let Some(descriptor) = outcome.metadata.get("cache.manifest") else {
        return;
    };
    let sealed = async {
        let descriptor = serde_json::from_str(descriptor).map_err(|error| error_chain(&error))?;
        let reference = registry_reference(cache)?.ok_or("it names no image")?;
        cache_seal::seal_cache(&ctx.run, &reference, descriptor).await
    };
    if let Err(why) = sealed.await {
        let message = format!("later runs will not use the exported cache: {why}");
        ctx.run.events.warn(Some(&ctx.step.id), message, None).await;
    }
}

/// Returns `true` if a build may import caches from any writer.
fn imports_every_cache(ctx: &StepContext) -> bool {
    ctx.run.domain.trust == TrustDomain::Local || ctx.run.options.allow.cache_imports
}

/// Returns the name of a cache in a registry. `None` for caches of other types.
fn registry_reference(cache: &CacheSpec) -> Result<Option<ImageRef>, String> {
    let name = cache.attrs.get(REFERENCE);
    let Some(name) = name.filter(|_| cache.kind == REGISTRY_CACHE) else {
        return Ok(None);
    };
    let name: ImageRef = name
        .parse()
        .map_err(|error: ReferenceError| error_chain(&error))?;
    Ok(Some(name.or_latest()))
}

/// Converts `--cache-from` and `--cache-to`. A folder to read is one of the workspace.
/// [`super::super::outputs::Outputs::redirect_caches`] sets a folder to write.
fn convert_caches(
    specs: &[acrtask_spec::build_line::CacheSpec],
    base: &Base,
) -> Result<Vec<CacheSpec>, String> {
    specs
        .iter()
        .map(|spec| {
            let mut attrs: BTreeMap<_, _> = spec.attrs.iter().cloned().collect();
            if spec.kind == LOCAL_CACHE {
                attrs.remove("dest");
                if let Some(src) = attrs.get_mut("src") {
                    *src = base.local_path(src)?.to_string_lossy().into_owned();
                }
            }
            Ok(CacheSpec {
                kind: spec.kind.clone(),
                attrs,
            })
        })
        .collect()
}

/// Returns the namespaces of the run's domain. A namespace that the image would publish is replaced
/// by one for a single use.
pub(super) fn cache_namespaces(ctx: &StepContext, provenance: &Provenance) -> CacheNamespaces {
    let capabilities = ctx.run.builder.client.capabilities();
    let attests = capabilities.missing(Feature::Attestations).is_none();
    let namespace = |published: bool| {
        if attests && published {
            single_use_namespace()
        } else {
            ctx.run.domain.cache_namespace.clone()
        }
    };
    CacheNamespaces {
        mounts: namespace(provenance.lists_instructions()),
        layers: namespace(provenance.lists_hosts()),
    }
}

/// Refuses a cache that the builder reaches with its machine's own credentials, except on the
/// user's own machine.
pub(super) fn check_cache(domain: &TrustDomain, kind: &str) -> Result<(), String> {
    match kind {
        REGISTRY_CACHE | INLINE_CACHE | LOCAL_CACHE => Ok(()),
        _ if *domain == TrustDomain::Local => Ok(()),
        other => Err(format!(
            "a cache of type {other} is reached with the credentials of the runner's machine; write \
             `type=registry,ref=IMAGE`, `type=inline` or `type=local`"
        )),
    }
}

/// Returns the caches that the build writes. A run with pushing disabled writes no caches that
/// other runs read, however they are requested. An untrusted build could otherwise change the next
/// image through the cache.
pub(super) async fn exported_caches(
    ctx: &StepContext,
    line: &BuildLine,
    build_args: &[(String, Option<String>)],
    base: &Base,
) -> Result<Vec<CacheSpec>, String> {
    let mut wanted = convert_caches(&line.cache_to, base)?;
    if requests_inline_cache(build_args) && !wanted.iter().any(|cache| cache.kind == INLINE_CACHE) {
        wanted.push(CacheSpec {
            kind: INLINE_CACHE.to_owned(),
            attrs: BTreeMap::new(),
        });
    }
    let all = wanted.len();
    if ctx.run.no_push {
        wanted.retain(|cache| matches!(cache.kind.as_str(), LOCAL_CACHE | INLINE_CACHE));
    }
    if wanted.len() < all {
        let text = "the cache is not exported, as --no-push asks";
        ctx.output.print_line(Stream::Stderr, text).await;
    }
    Ok(wanted)
}

/// Returns `true` if a build argument requests an inline cache, in any form that Go parses as true.
fn requests_inline_cache(build_args: &[(String, Option<String>)]) -> bool {
    let mut given = build_args
        .iter()
        .filter(|(name, _)| name == INLINE_CACHE_ARGUMENT);
    let last = given.next_back().and_then(|(_, value)| value.as_deref());
    matches!(last, Some("1" | "t" | "T" | "true" | "TRUE" | "True"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_argument_requests_an_inline_cache() {
        let args = |values: &[(&str, Option<&str>)]| -> Vec<(String, Option<String>)> {
            let owned = values.iter();
            owned
                .map(|(name, value)| ((*name).to_owned(), value.map(str::to_owned)))
                .collect()
        };
        for (values, expected) in [
            (&[(INLINE_CACHE_ARGUMENT, Some("1"))][..], true),
            (&[(INLINE_CACHE_ARGUMENT, Some("True"))], true),
            (&[(INLINE_CACHE_ARGUMENT, Some("0"))], false),
            (&[(INLINE_CACHE_ARGUMENT, Some("yes"))], false),
            (&[(INLINE_CACHE_ARGUMENT, None)], false),
            (&[("OTHER", Some("1"))], false),
            (
                &[
                    (INLINE_CACHE_ARGUMENT, Some("1")),
                    (INLINE_CACHE_ARGUMENT, Some("0")),
                ],
                false,
            ),
        ] {
            assert_eq!(requests_inline_cache(&args(values)), expected, "{values:?}");
        }
    }
}
