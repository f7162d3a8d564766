//! Encryption of secret values before they reach the database.
//!
//! The vault uses XChaCha20-Poly1305 with keys from a key file. The file has one key per line, 32
//! bytes in base 64. `#` begins a comment. The first key seals and all keys open: to rotate, add a
//! new first line. A sealed value contains the id of its key. It is bound to its owner (`aad`) and
//! does not open for another one.
//!
//! Invariants: keys and opened values have no `Debug` text. A key file that other users may read is
//! refused.

use std::{fmt, io::Write as _, path::Path};

use acrtask_model::{CacheNamespace, CacheSealKey, Secret, TrustDomain};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use hmac::{Hmac, Mac};
use rand::RngCore as _;
use sha2::{Digest as _, Sha256};

/// Format version. A sealed value is the version, key id, nonce and ciphertext.
const VERSION: u8 = 1;
const KEY_ID: usize = 8;
const NONCE: usize = 24;

/// Reasons why the vault cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The key file cannot be read or written.
    #[error("cannot {attempt} the key file {path}")]
    File {
        /// Failed operation: `read` or `create`.
        attempt: &'static str,
        /// Path of the key file.
        path: String,
        /// Cause of the failure.
        source: std::io::Error,
    },
    /// Other users may read the key file.
    #[error("the key file {path} can be read by others (mode {mode:o}); run `chmod 600 {path}`")]
    Permissions {
        /// Path of the key file.
        path: String,
        /// Permission bits of the key file.
        mode: u32,
    },
    /// A line of the key file is not a key.
    #[error(
        "line {line} of the key file {path} is not a key: write 32 bytes in base 64, as printed by: `openssl rand -base64 32`"
    )]
    NoKey {
        /// Path of the key file.
        path: String,
        /// Line number from 1. 0 if the file contains no key.
        line: usize,
    },
    /// The sealed value needs a key that is not in the key file.
    #[error(
        "the value was encrypted with the key {id}, which is not in the key file; add that key as a line below the first one"
    )]
    OtherKey {
        /// Id of the missing key.
        id: String,
    },
    /// The sealed value is damaged or belongs to another owner.
    #[error("the value cannot be decrypted: it is damaged, or was stored for another owner")]
    Damaged,
}

struct Key {
    id: [u8; KEY_ID],
    cipher: XChaCha20Poly1305,
    /// MAC for cache namespaces. Its derived key reveals nothing about the encryption key.
    namespaces: Hmac<Sha256>,
    /// MAC for cache seal keys, with another derived key.
    cache_seals: Hmac<Sha256>,
    /// MAC for links to blobs, with another derived key.
    links: Hmac<Sha256>,
}

impl Key {
    fn new(bytes: &[u8; 32]) -> Self {
        let digest = Sha256::new()
            .chain_update(b"acrtask key id")
            .chain_update(bytes)
            .finalize();
        let mut id = [0; KEY_ID];
        id.copy_from_slice(&digest[..KEY_ID]);
        let derived = |purpose: &str| {
            let derived = new_hmac(bytes).chain_update(purpose).finalize();
            new_hmac(&derived.into_bytes())
        };
        Self {
            id,
            namespaces: derived("acrtask cache namespaces"),
            cache_seals: derived("acrtask cache seals"),
            links: derived("acrtask links"),
            cipher: XChaCha20Poly1305::new(bytes.into()),
        }
    }
}

fn new_hmac(key: &[u8]) -> Hmac<Sha256> {
    <Hmac<Sha256> as Mac>::new_from_slice(key).expect("HMAC takes keys of any length")
}

/// Keys that seal and open secret values.
pub struct Vault {
    /// Keys of the file, at least one. The first one seals.
    keys: Vec<Key>,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<String> = self.keys.iter().map(|key| hex(&key.id)).collect();
        f.debug_struct("Vault").field("keys", &ids).finish()
    }
}

impl Vault {
    /// Loads the keys of the file `path`.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read, contains no keys or other users may read it.
    pub fn load(path: &Path) -> Result<Self, VaultError> {
        let shown = path.display().to_string();
        let failed = |source| VaultError::File {
            attempt: "read",
            path: shown.clone(),
            source,
        };
        let file = std::fs::File::open(path).map_err(failed)?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                return Err(VaultError::Permissions { path: shown, mode });
            }
        }
        let text = std::io::read_to_string(file).map_err(failed)?;
        Self::parse(&text).map_err(|line| VaultError::NoKey { path: shown, line })
    }

    /// Loads the keys of `path`. Creates the file with a new key if it does not exist. Only the
    /// owner may read the new file.
    ///
    /// # Errors
    /// As [`Self::load`], and if the file cannot be created.
    #[allow(
        clippy::disallowed_methods,
        reason = "identifiers and secrets are random"
    )]
    pub fn load_or_create(path: &Path) -> Result<Self, VaultError> {
        match Self::load(path) {
            Err(VaultError::File { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound => {}
            loaded => return loaded,
        }
        let mut key = [0; 32];
        rand::rng().fill_bytes(&mut key);
        create(path, &STANDARD.encode(key)).map_err(|source| VaultError::File {
            attempt: "create",
            path: path.display().to_string(),
            source,
        })?;
        // Load the file again: another server may have created it first.
        Self::load(path)
    }

    /// Parses the text of a key file. The error is the number of the invalid line, 0 if there are
    /// no keys.
    fn parse(text: &str) -> Result<Self, usize> {
        let mut keys = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let bytes: [u8; 32] = STANDARD
                .decode(line)
                .ok()
                .and_then(|bytes| bytes.try_into().ok())
                .ok_or(index + 1)?;
            keys.push(Key::new(&bytes));
        }
        if keys.is_empty() {
            return Err(0);
        }
        Ok(Self { keys })
    }

    /// Returns the ids of the keys, the sealing key first. An id reveals nothing about its key.
    pub fn key_ids(&self) -> Vec<String> {
        self.keys.iter().map(|key| hex(&key.id)).collect()
    }

    /// Encrypts `value` for the owner `aad`. [`Self::open`] needs the same `aad`.
    #[allow(
        clippy::disallowed_methods,
        reason = "identifiers and secrets are random"
    )]
    pub fn seal(&self, aad: &str, value: &[u8]) -> Vec<u8> {
        let key = &self.keys[0];
        let mut nonce = [0; NONCE];
        rand::rng().fill_bytes(&mut nonce);
        let sealed = key
            .cipher
            .encrypt(
                XNonce::from_slice(&nonce),
                Payload {
                    msg: value,
                    aad: aad.as_bytes(),
                },
            )
            .expect("only a value of 256 GiB cannot be encrypted");
        let mut out = Vec::with_capacity(1 + KEY_ID + NONCE + sealed.len());
        out.push(VERSION);
        out.extend_from_slice(&key.id);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&sealed);
        out
    }

    /// Returns the name of a domain's build caches. It is the same on all servers with this first
    /// key. After a rotation, the domain no longer uses its previous caches.
    pub fn cache_namespace(&self, domain: &TrustDomain) -> CacheNamespace {
        let code = self.keys[0]
            .namespaces
            .clone()
            .chain_update(domain.key())
            .finalize()
            .into_bytes();
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&code[..16]);
        CacheNamespace::from_bytes(bytes)
    }

    /// Returns the key that seals a domain's caches in registries. A contribution gets the key of
    /// the domain that it contributes to, because it reads the caches of that domain.
    pub fn cache_seal_key(&self, domain: &TrustDomain) -> CacheSealKey {
        let code = self.keys[0].cache_seals.clone();
        let code = code.chain_update(domain.owner().key()).finalize();
        CacheSealKey::from_bytes(code.into_bytes().into())
    }

    /// Returns the signature of a link.
    pub fn sign_link(&self, link: &str) -> Vec<u8> {
        let code = self.keys[0].links.clone().chain_update(link).finalize();
        code.into_bytes().to_vec()
    }

    /// Returns `true` if `signature` is an output of [`Self::sign_link`] for `link`, with any key of
    /// the file. Compares in constant time.
    pub fn verify_link(&self, link: &str, signature: &[u8]) -> bool {
        self.keys.iter().any(|key| {
            let code = key.links.clone().chain_update(link);
            code.verify_slice(signature).is_ok()
        })
    }

    /// Decrypts an output of [`Self::seal`] for the same `aad`.
    ///
    /// # Errors
    /// Returns [`VaultError::OtherKey`] or [`VaultError::Damaged`].
    pub fn open(&self, aad: &str, sealed: &[u8]) -> Result<Secret, VaultError> {
        let rest = sealed.strip_prefix(&[VERSION]).ok_or(VaultError::Damaged)?;
        let (id, rest) = rest.split_at_checked(KEY_ID).ok_or(VaultError::Damaged)?;
        let (nonce, ciphertext) = rest.split_at_checked(NONCE).ok_or(VaultError::Damaged)?;
        let key = self
            .keys
            .iter()
            .find(|key| key.id == id)
            .ok_or_else(|| VaultError::OtherKey { id: hex(id) })?;
        let opened = key
            .cipher
            .decrypt(
                XNonce::from_slice(nonce),
                Payload {
                    msg: ciphertext,
                    aad: aad.as_bytes(),
                },
            )
            .map_err(|_| VaultError::Damaged)?;
        let text = String::from_utf8(opened).map_err(|_| VaultError::Damaged)?;
        Ok(Secret::new(text))
    }
}

/// Creates the key file atomically. Leaves an existing file unchanged.
#[allow(
    clippy::disallowed_methods,
    reason = "identifiers and secrets are random"
)]
fn create(path: &Path, key: &str) -> std::io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(folder)?;
    let mut suffix = [0; 8];
    rand::rng().fill_bytes(&mut suffix);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.{}", hex(&suffix)));
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = (|| {
        let mut file = options.open(&temporary)?;
        writeln!(
            file,
            "# Encrypts the secrets of acrtask's database. Keep a copy: without it they are lost.\n{key}"
        )?;
        file.sync_all()?;
        // Unlike a rename, a hard link does not replace the file that another server has created.
        match std::fs::hard_link(&temporary, path) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        }
    })();
    let _ = std::fs::remove_file(&temporary);
    written?;
    std::fs::File::open(folder)?.sync_all()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
#[path = "vault_tests.rs"]
mod tests;
