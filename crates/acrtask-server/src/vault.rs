//! Encrypts what is secret before the database sees it.
//!
//! XChaCha20-Poly1305 with keys from a file of the operator's: 32 bytes in base 64, one key a line, `#` begins a comment. The
//! first key seals, all of them open, so that a new first line rotates. What is sealed says which key it needs, and is
//! bound to what it belongs to (`aad`): moved to another name it does not open. Invariants: keys and opened values
//! cannot be printed; a file that others may read is refused.

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

/// The form of what is sealed: version, key id, nonce, ciphertext.
const VERSION: u8 = 1;
const KEY_ID: usize = 8;
const NONCE: usize = 24;

/// Why the vault cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The file of keys cannot be read or written.
    #[error("cannot {attempt} the key file {path}")]
    File {
        /// `read`, `create`.
        attempt: &'static str,
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Others may read the file of keys.
    #[error("the key file {path} can be read by others (mode {mode:o}); run `chmod 600 {path}`")]
    Permissions {
        /// The file.
        path: String,
        /// Its mode.
        mode: u32,
    },
    /// The file of keys holds something else.
    #[error(
        "line {line} of the key file {path} is no key; a key is 32 bytes in base 64: `openssl rand -base64 32`"
    )]
    NoKey {
        /// The file.
        path: String,
        /// From 1; 0 where the file holds no key at all.
        line: usize,
    },
    /// What is to be opened was sealed by a key that is not in the file.
    #[error(
        "it was encrypted with the key {id}, which is not in the key file; add that key as a line behind the first one"
    )]
    OtherKey {
        /// The key's id.
        id: String,
    },
    /// What is to be opened is damaged, or belongs to something else.
    #[error("it cannot be decrypted: it is damaged, or was stored for something else")]
    Damaged,
}

struct Key {
    id: [u8; KEY_ID],
    cipher: XChaCha20Poly1305,
    /// Keyed with a key of its own, which says nothing of the one that encrypts.
    namespaces: Hmac<Sha256>,
    /// Keyed with another key.
    cache_seals: Hmac<Sha256>,
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
            let derived = keyed(bytes).chain_update(purpose).finalize();
            keyed(&derived.into_bytes())
        };
        Self {
            id,
            namespaces: derived("acrtask cache namespaces"),
            cache_seals: derived("acrtask cache seals"),
            cipher: XChaCha20Poly1305::new(bytes.into()),
        }
    }
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    <Hmac<Sha256> as Mac>::new_from_slice(key).expect("HMAC takes keys of any length")
}

/// Seals and opens.
pub struct Vault {
    /// Never empty; the first one seals.
    keys: Vec<Key>,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<String> = self.keys.iter().map(|key| hex(&key.id)).collect();
        f.debug_struct("Vault").field("keys", &ids).finish()
    }
}

impl Vault {
    /// Reads the keys of `path`.
    ///
    /// # Errors
    /// When the file cannot be read, others may read it, or it holds no keys.
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

    /// The same, but makes a file with a new key where there is none. Only its owner may read it.
    ///
    /// # Errors
    /// As [`Self::load`], and when the file cannot be made.
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
        // Read again: another server that starts at the same time may have been first.
        Self::load(path)
    }

    /// The keys of a file's text, or the line that is wrong.
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

    /// Ids of the keys, which say nothing of the keys themselves. The first one seals.
    pub fn key_ids(&self) -> Vec<String> {
        self.keys.iter().map(|key| hex(&key.id)).collect()
    }

    /// Encrypts `value` for `aad`: what it belongs to, which has to be said again to open it.
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

    /// Returns the name of a domain's build caches: the same on all servers with this first key. A new first key leaves
    /// the caches of before behind.
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

    /// Returns the key of the seals on a domain's caches in registries. A contribution reads the caches of the domain
    /// that it was made to, so it has that key.
    pub fn cache_seal_key(&self, domain: &TrustDomain) -> CacheSealKey {
        let code = self.keys[0].cache_seals.clone();
        let code = code.chain_update(domain.owner().key()).finalize();
        CacheSealKey::from_bytes(code.into_bytes().into())
    }

    /// Decrypts what [`Self::seal`] gave for the same `aad`.
    ///
    /// # Errors
    /// [`VaultError::OtherKey`] or [`VaultError::Damaged`].
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

/// Writes a new file at once or not at all; one that is there by now is left alone.
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
        // A link, unlike a renaming, does not replace what another server has written meanwhile.
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
