//! Key file and blob store that a database belongs to.
//!
//! Servers of one database share both. With another key file, secrets fail on one of them. With
//! another blob store, logs are truncated. The database therefore records the id of the sealing key
//! and the id of the blob store. A blob of the store contains the store's id. A server with other
//! ids does not start.
//!
//! Left out: an unreachable blob store does not prevent a start.

use std::sync::OnceLock;

use acrtask_store::{Store, StoreError};

use crate::{
    auth::random_id,
    blobs::{BlobError, Blobs},
    vault::Vault,
};

/// Name of the recorded key.
const KEY: &str = "key";
/// Name of the recorded blob store.
const BLOBS: &str = "blobs";
/// Key of the blob that holds the id of the blob store.
const MARKER: &str = "store-id";
/// Largest id, in bytes.
const MAX_ID: u64 = 100;
/// Prefix of a recorded id whose blob may not be written yet.
const PENDING: &str = "pending:";

/// Reasons why a server does not belong to its database.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The database was used with another key.
    #[error(
        "the database belongs to servers whose key file has the key {recorded}, which this key file lacks (it has \
         {own}): secrets could not be read; give the key file of the other servers with --key-file, add the missing key \
         as a line, or start once with --adopt-storage where that key is lost"
    )]
    Key {
        /// Id of the recorded key.
        recorded: String,
        /// Ids of the keys of this server.
        own: String,
    },
    /// The database was used with another blob store.
    #[error(
        "the database belongs to servers with other blobs ({recorded}, and these are {own}): logs and contexts would be \
         missing; give the blobs of the other servers with --blobs, or start once with --adopt-storage where they are lost"
    )]
    Blobs {
        /// Id of the recorded blob store.
        recorded: String,
        /// Id of the blob store of this server, or `new`.
        own: String,
    },
    /// The database cannot be used.
    #[error("cannot use the database")]
    Store(#[from] StoreError),
}

/// Recorded ids of the key and the blob store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Id of the sealing key.
    pub key: String,
    /// Id of the blob store. `None` if it was unreachable at the start.
    pub blobs: Option<String>,
}

/// Identity of a server. Empty until the server has started.
pub type Cell = OnceLock<Identity>;

/// Compares a server's key file and blob store with the recorded ones. Records them if the database
/// has none. With `adopt`, records those of this server in any case.
///
/// # Errors
/// Returns [`IdentityError`] if they differ.
pub async fn check(
    store: &Store,
    blobs: &Blobs,
    vault: &Vault,
    adopt: bool,
) -> Result<Identity, IdentityError> {
    let keys = vault.key_ids();
    let first = keys.first().cloned().unwrap_or_default();
    let recorded = store.claim_identity(KEY, &first).await?;
    if recorded != first {
        if !adopt && !keys.contains(&recorded) {
            return Err(IdentityError::Key {
                recorded,
                own: keys.join(", "),
            });
        }
        // A new first line of the key file rotates the key.
        store.set_identity(KEY, &first).await?;
    }
    Ok(Identity {
        key: first,
        blobs: check_blobs(store, blobs, adopt).await?,
    })
}

async fn check_blobs(
    store: &Store,
    blobs: &Blobs,
    adopt: bool,
) -> Result<Option<String>, IdentityError> {
    let unreachable = |error: &BlobError| {
        tracing::warn!(%error, "cannot compare the blobs with those of the database");
    };
    let own = match blobs.get(MARKER, MAX_ID).await {
        Ok(id) => Some(String::from_utf8_lossy(&id).trim().to_owned()),
        Err(BlobError::NotFound(_)) => None,
        Err(error) => {
            unreachable(&error);
            return Ok(None);
        }
    };
    let wanted = match &own {
        Some(own) => own.clone(),
        None => format!("{PENDING}{}", random_id()),
    };
    let recorded = store.claim_identity(BLOBS, &wanted).await?;
    match (&own, recorded.strip_prefix(PENDING)) {
        (Some(own), None) if *own == recorded => return Ok(Some(own.clone())),
        (Some(own), Some(pending)) if own == pending => {
            store.set_identity(BLOBS, own).await?;
            return Ok(Some(own.clone()));
        }
        // This is the first server on the database, or one that was stopped before it wrote the
        // blob.
        (None, Some(id)) => {
            if let Err(error) = blobs.put(MARKER, id.to_owned().into()).await {
                unreachable(&error);
                return Ok(None);
            }
            store.set_identity(BLOBS, id).await?;
            return Ok(Some(id.to_owned()));
        }
        // Another server has written and recorded the blob in the meantime.
        (None, None) => {
            if let Ok(id) = blobs.get(MARKER, MAX_ID).await
                && id == recorded.as_bytes()
            {
                return Ok(Some(recorded.clone()));
            }
        }
        _ => {}
    }
    if !adopt {
        return Err(IdentityError::Blobs {
            recorded: recorded.trim_start_matches(PENDING).to_owned(),
            own: own.unwrap_or_else(|| "new".into()),
        });
    }
    let id = match own {
        Some(own) => own,
        None => {
            let id = random_id();
            if let Err(error) = blobs.put(MARKER, id.clone().into()).await {
                unreachable(&error);
                return Ok(None);
            }
            id
        }
    };
    store.set_identity(BLOBS, &id).await?;
    Ok(Some(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct TestStorage {
        folder: tempfile::TempDir,
        store: Store,
    }

    impl TestStorage {
        async fn new() -> Self {
            Self {
                folder: tempfile::tempdir().unwrap(),
                store: Store::open("sqlite::memory:").await.unwrap(),
            }
        }

        async fn check(
            &self,
            blobs: &str,
            key: &str,
            adopt: bool,
        ) -> Result<Identity, IdentityError> {
            let path = |name: &str| self.folder.path().join(name);
            let blobs = Blobs::open(&path(blobs).display().to_string()).unwrap();
            let vault = Vault::load_or_create(&path(key)).unwrap();
            check(&self.store, &blobs, &vault, adopt).await
        }
    }

    #[tokio::test]
    async fn server_with_another_key_or_other_blobs_is_refused() {
        let storage = TestStorage::new().await;
        let first = storage.check("blobs", "key", false).await.unwrap();
        assert_eq!(storage.check("blobs", "key", false).await.unwrap(), first);
        let error = storage.check("blobs", "other", false).await.unwrap_err();
        assert!(matches!(error, IdentityError::Key { .. }), "{error}");
        let error = storage.check("others", "key", false).await.unwrap_err();
        assert!(matches!(error, IdentityError::Blobs { .. }), "{error}");
        // Adopting replaces lost keys and blobs once.
        let adopted = storage.check("others", "other", true).await.unwrap();
        assert_ne!(adopted, first);
        assert_eq!(
            storage.check("others", "other", false).await.unwrap(),
            adopted
        );
        assert!(storage.check("blobs", "key", false).await.is_err());
    }

    #[tokio::test]
    async fn new_first_key_rotates() {
        let storage = TestStorage::new().await;
        let old = storage.check("blobs", "key", false).await.unwrap();
        storage.check("more", "new", true).await.unwrap();
        let read = |name: &str| std::fs::read_to_string(storage.folder.path().join(name)).unwrap();
        let both = format!("{}{}", read("new"), read("key"));
        let storage = TestStorage::new().await;
        let path = storage.folder.path().join("key");
        let write = |text: &str| {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        };
        let only_old = both.lines().last().unwrap().to_owned();
        write(&only_old);
        assert_eq!(
            storage.check("blobs", "key", false).await.unwrap().key,
            old.key
        );
        write(&both);
        let new = storage.check("blobs", "key", false).await.unwrap();
        assert_ne!(new.key, old.key);
        // A server without the new key could not read new secrets.
        write(&only_old);
        assert!(storage.check("blobs", "key", false).await.is_err());
    }
}
