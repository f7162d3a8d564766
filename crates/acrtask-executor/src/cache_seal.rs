//! Seals on build caches in registries.
//!
//! A builder uses a record of an imported cache as the layer of every later build with the same
//! input, in all trust domains. A client with push access to the repository could therefore write a
//! record that determines layers of other tasks. So a runner seals each cache that it exports. It
//! imports only caches with the seal of the run's domain, by digest.
//!
//! A seal is an index beside the cache, `IMAGE:TAG.seal`, that lists the cache's manifest. Its
//! annotation is an HMAC-SHA-256 of repository and digest. The lease contains the key, and no
//! container receives it.
//!
//! Left out: the user's own machine, and runners with `--allow cache-imports`. They import every
//! cache and seal none.

use std::collections::BTreeMap;

use acrtask_model::{CacheSealKey, Digest, ImageRef};
use acrtask_registry::{Descriptor, IndexEntry, Manifest, ManifestBody};
use hmac::{Hmac, Mac as _};
use sha2::Sha256;

use crate::{context::RunContext, error::error_chain};

/// Annotation with the code, in hexadecimal.
const ANNOTATION: &str = "io.acrtask.cache.seal";
const SUFFIX: &str = ".seal";
/// Maximum length of a tag, in characters.
const MAX_TAG: usize = 128;
/// Number of hash digits that replace the end of a tag that is too long.
const HASH_DIGITS: usize = 32;

/// Returns the newest sealed cache under the tag of `cache`, by digest. `None` without a seal of
/// the run's domain.
///
/// # Errors
/// A sentence for the user if the registry cannot be read.
pub(crate) async fn find_sealed(
    run: &RunContext,
    cache: &ImageRef,
) -> Result<Option<ImageRef>, String> {
    let manifest = match run.registry().manifest(&seal_name(cache)?).await {
        Ok(manifest) => manifest,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(error_chain(&error)),
    };
    let sealed = sealed_digest(&run.domain.cache_seal_key, &cache.name(), &manifest);
    Ok(sealed.map(|digest| cache.at(digest)))
}

/// Seals a cache that a build of this run has exported. `exported` is the builder's description of
/// its manifest.
///
/// # Errors
/// A sentence for the user if the registry does not store the seal.
pub(crate) async fn seal_cache(
    run: &RunContext,
    cache: &ImageRef,
    exported: Descriptor,
) -> Result<(), String> {
    let key = &run.domain.cache_seal_key;
    let code = seal_code(key, &cache.name(), &exported.digest).finalize();
    let code: String = code
        .into_bytes()
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let entry = IndexEntry {
        source: cache.at(exported.digest.clone()),
        descriptor: exported,
    };
    let annotations = BTreeMap::from([(ANNOTATION.to_owned(), code)]);
    let (registry, target) = (run.registry(), seal_name(cache)?);
    let entries = [entry];
    let stored = registry.put_index(&target, &entries, annotations);
    stored.await.map(drop).map_err(|error| error_chain(&error))
}

/// Returns the name of the seal of a cache.
fn seal_name(cache: &ImageRef) -> Result<ImageRef, String> {
    let seal = cache.with_tag(&seal_tag(cache.tag().unwrap_or("latest")));
    seal.map_err(|error| error_chain(&error))
}

fn seal_tag(tag: &str) -> String {
    if tag.len() + SUFFIX.len() <= MAX_TAG {
        return format!("{tag}{SUFFIX}");
    }
    let hash = acrtask_registry::manifest::sha256(tag.as_bytes());
    let hash = hash.as_str().trim_start_matches("sha256:");
    let kept = MAX_TAG - SUFFIX.len() - HASH_DIGITS;
    format!("{}{}{SUFFIX}", &tag[..kept], &hash[..HASH_DIGITS])
}

/// Returns the digest of the cache that a seal is for. `None` if the seal is not of this key and
/// repository.
fn sealed_digest(key: &CacheSealKey, repository: &str, seal: &Manifest) -> Option<Digest> {
    let ManifestBody::Index(index) = &seal.body else {
        return None;
    };
    let [cache] = index.manifests.as_slice() else {
        return None;
    };
    let digits = index.annotations.get(ANNOTATION)?;
    let pairs = digits.as_bytes().chunks(2);
    let bytes: Option<Vec<u8>> = pairs
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok())
        .collect();
    seal_code(key, repository, &cache.digest)
        .verify_slice(&bytes?)
        .ok()?;
    Some(cache.digest.clone())
}

fn seal_code(key: &CacheSealKey, repository: &str, digest: &Digest) -> Hmac<Sha256> {
    let code = Hmac::<Sha256>::new_from_slice(key.expose().as_bytes());
    code.expect("HMAC takes keys of any length")
        .chain_update(format!("acrtask cache seal 1\n{repository}\n{digest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seal_is_valid_for_one_key_repository_and_digest() {
        let digest = |letter: &str| format!("sha256:{}", letter.repeat(64));
        let key = |byte| CacheSealKey::from_bytes([byte; 32]);
        let parsed: Digest = digest("a").parse().unwrap();
        let code: String = seal_code(&key(1), "reg.io/app", &parsed)
            .finalize()
            .into_bytes()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let seal = |code: &str, letters: &[&str]| {
            let caches: Vec<_> = letters
                .iter()
                .map(|letter| serde_json::json!({"mediaType": "x", "digest": digest(letter), "size": 1}))
                .collect();
            let index = serde_json::json!({
                "schemaVersion": 2,
                "manifests": caches,
                "annotations": {ANNOTATION: code},
            });
            Manifest::parse(index.to_string().into(), None).unwrap()
        };
        let good = seal(&code, &["a"]);
        assert_eq!(sealed_digest(&key(1), "reg.io/app", &good), Some(parsed));
        for (key, repository, seal) in [
            (key(2), "reg.io/app", &good),
            (key(1), "reg.io/app2", &good),
            (key(1), "reg.io/app", &seal(&code, &["b"])),
            (key(1), "reg.io/app", &seal(&code, &["a", "b"])),
            (key(1), "reg.io/app", &seal(&code, &[])),
            (key(1), "reg.io/app", &seal("", &["a"])),
            (key(1), "reg.io/app", &seal(&code[1..], &["a"])),
            (key(1), "reg.io/app", &seal(&format!("{code}00"), &["a"])),
            (key(1), "reg.io/app", &seal("+1", &["a"])),
        ] {
            let found = sealed_digest(&key, repository, seal);
            assert_eq!(found, None, "{repository} {seal:?}");
        }
    }

    #[test]
    fn seal_tags_are_unique_and_short_enough() {
        assert_eq!(seal_tag("cache_app"), "cache_app.seal");
        let (long, other) = ("a".repeat(128), format!("{}b", "a".repeat(127)));
        assert_eq!(seal_tag(&long).len(), MAX_TAG);
        assert_ne!(seal_tag(&long), seal_tag(&other));
    }
}
