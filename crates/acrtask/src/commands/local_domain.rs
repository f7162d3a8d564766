//! The trust domain of runs on the user's own machine.
//!
//! Invariant: the name of its build caches is random, one for each user, and only that user can read it.

use std::{
    fs::DirBuilder,
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::Path,
};

use acrtask_model::{CacheNamespace, CacheSealKey, RunDomain, TrustDomain};
use sha2::{Digest as _, Sha256};

use super::runner::state_dir;

/// The file with the namespace, in the folder for what outlives a process.
const FILE: &str = "build-namespace";

/// Returns the domain of the user's own runs; with the name of a context that was `fetched`, that of its runs alone. Where
/// the namespace cannot be kept, this process gets one of its own and builds without the caches of before.
pub(crate) fn local_domain(fetched: Option<&str>) -> RunDomain {
    let kept = match state_dir() {
        Ok(folder) => load_or_create(&folder).map_err(|error| error.to_string()),
        Err(error) => Err(format!("{error:?}")),
    };
    let cache_namespace = kept.unwrap_or_else(|error| {
        tracing::warn!(error, "cannot keep the namespace of build caches");
        CacheNamespace::from_bytes(rand::random())
    });
    // Runs of one's own machine seal nothing: its user's builds read every cache that they name.
    let cache_seal_key = CacheSealKey::from_bytes(rand::random());
    match fetched {
        None => RunDomain {
            trust: TrustDomain::Local,
            cache_namespace,
            cache_seal_key,
        },
        Some(context) => {
            let trust = TrustDomain::Local.contribution(context);
            RunDomain {
                cache_namespace: derive(&cache_namespace, &trust),
                cache_seal_key,
                trust,
            }
        }
    }
}

/// Returns a namespace that only the owner of `own` can compute.
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
    // A temporary file belongs to its owner alone.
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    let namespace = CacheNamespace::from_bytes(rand::random());
    file.write_all(namespace.expose().as_bytes())?;
    match file.persist_noclobber(&path) {
        Ok(_) => Ok(namespace),
        // Another process was first.
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
    fn each_fetched_context_has_a_namespace_of_its_own() {
        let own = CacheNamespace::from_bytes([1; 16]);
        let of = |context: &str| {
            let domain = TrustDomain::Local.contribution(context);
            derive(&own, &domain).expose().to_owned()
        };
        assert_eq!(of("https://a/x"), of("https://a/x"));
        assert_ne!(of("https://a/x"), of("https://a/y"));
        assert_ne!(of("https://a/x"), own.expose());
    }

    #[test]
    fn the_namespace_is_kept_for_its_owner_alone() {
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
