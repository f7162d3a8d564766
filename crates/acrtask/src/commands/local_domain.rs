//! Trust domain of runs on the user's own machine.
//!
//! Invariant: the namespace of the build caches is random per user, and only that user can read it.

use std::{
    fs::DirBuilder,
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::Path,
};

use acrtask_model::{CacheNamespace, CacheSealKey, ContributionSource, RunDomain, TrustDomain};
use sha2::{Digest as _, Sha256};

use super::runner::state_dir;

/// File with the namespace, in the folder for persistent state.
const FILE: &str = "build-namespace";

/// Returns the trust domain of the user's own runs, or the domain for the context that was
/// `fetched`. If the namespace cannot be stored, this process uses a new one and builds without
/// earlier caches.
pub(crate) fn local_domain(fetched: Option<&str>) -> RunDomain {
    let kept = match state_dir() {
        Ok(folder) => load_or_create(&folder).map_err(|error| error.to_string()),
        Err(error) => Err(format!("{error:?}")),
    };
    let cache_namespace = kept.unwrap_or_else(|error| {
        tracing::warn!(error, "cannot store the namespace of build caches");
        CacheNamespace::from_bytes(rand::random())
    });
    // Local runs seal no caches: builds of this user may read every cache that they name.
    let cache_seal_key = CacheSealKey::from_bytes(rand::random());
    match fetched {
        None => RunDomain {
            trust: TrustDomain::Local,
            cache_namespace,
            cache_seal_key,
        },
        Some(context) => {
            let url = context.to_owned();
            let trust = TrustDomain::Local.contribution(ContributionSource::Context { url });
            RunDomain {
                cache_namespace: derive(&cache_namespace, &trust),
                cache_seal_key,
                trust,
            }
        }
    }
}

/// Derives a namespace that only the owner of `own` can compute.
fn derive(own: &CacheNamespace, domain: &TrustDomain) -> CacheNamespace {
    let digest = Sha256::new()
        .chain_update(own.expose())
        .chain_update(domain.key())
        .finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    CacheNamespace::from_bytes(bytes)
}

fn load_or_create(folder: &Path) -> io::Result<CacheNamespace> {
    let path = folder.join(FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) => return parse(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    // Only its owner can read a temporary file.
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    let namespace = CacheNamespace::from_bytes(rand::random());
    file.write_all(namespace.expose().as_bytes())?;
    match file.persist_noclobber(&path) {
        Ok(_) => Ok(namespace),
        // Another process created the file first.
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
            parse(&std::fs::read_to_string(&path)?)
        }
        Err(error) => Err(error.error),
    }
}

fn parse(text: &str) -> io::Result<CacheNamespace> {
    CacheNamespace::new(text.trim()).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn each_fetched_context_has_its_own_namespace() {
        let own = CacheNamespace::from_bytes([1; 16]);
        let namespace = |context: &str| {
            let url = context.to_owned();
            let domain = TrustDomain::Local.contribution(ContributionSource::Context { url });
            derive(&own, &domain).expose().to_owned()
        };
        assert_eq!(namespace("https://a/x"), namespace("https://a/x"));
        assert_ne!(namespace("https://a/x"), namespace("https://a/y"));
        assert_ne!(namespace("https://a/x"), own.expose());
    }

    #[test]
    fn namespace_file_is_readable_by_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("state");
        let first = load_or_create(&folder).unwrap();
        let again = load_or_create(&folder).unwrap();
        assert_eq!(first.expose(), again.expose());
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder.join(FILE)), 0o600);
        assert_eq!(mode(&folder), 0o700);
        std::fs::write(folder.join(FILE), "short").unwrap();
        assert!(load_or_create(&folder).is_err());
    }
}
