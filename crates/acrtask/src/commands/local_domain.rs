//! The trust domain of runs on the user's own machine.
//!
//! Invariant: the name of its build caches is random, one for each user, and only that user can read it.

use std::{
    fs::DirBuilder,
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::Path,
};

use acrtask_model::{CacheNamespace, RunDomain, TrustDomain};

use super::runner::state_dir;

/// The file with the namespace, in the folder for what outlives a process.
const FILE: &str = "build-namespace";

/// Returns the domain of the user's own runs. Where the namespace cannot be kept, this process gets one of its own and
/// builds without the caches of before.
pub(crate) fn local_domain() -> RunDomain {
    let kept = match state_dir() {
        Ok(folder) => load_or_create(&folder).map_err(|error| error.to_string()),
        Err(error) => Err(format!("{error:?}")),
    };
    let cache_namespace = kept.unwrap_or_else(|error| {
        tracing::warn!(error, "cannot keep the namespace of build caches");
        CacheNamespace::from_bytes(rand::random())
    });
    RunDomain {
        trust: TrustDomain::Local,
        cache_namespace,
    }
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
