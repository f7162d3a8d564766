//! Credentials of runners: one-use registration tokens `acrr_<id>_<secret>` and keys
//! `acrk_<id>_<secret>`.
//!
//! The id selects the row. The server stores the SHA-256 of the whole text and compares it in
//! constant time.

use acrtask_model::Secret;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::RngCore as _;
use sha2::{Digest as _, Sha256};

/// Kind of credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Token that registers one runner.
    Registration,
    /// Key of one runner.
    Key,
}

impl Kind {
    fn prefix(self) -> &'static str {
        match self {
            Self::Registration => "acrr_",
            Self::Key => "acrk_",
        }
    }
}

/// Returns a new id of 13 characters.
#[allow(
    clippy::disallowed_methods,
    reason = "identifiers and secrets are random"
)]
pub(crate) fn new_id(letter: char) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut bytes = [0; 12];
    rand::rng().fill_bytes(&mut bytes);
    let tail = bytes.map(|byte| char::from(ALPHABET[usize::from(byte & 31)]));
    std::iter::once(letter).chain(tail).collect()
}

/// Creates a credential for `id`. Returns it with its hash.
#[allow(
    clippy::disallowed_methods,
    reason = "identifiers and secrets are random"
)]
pub(crate) fn create(kind: Kind, id: &str) -> (Secret, Vec<u8>) {
    let mut bytes = [0; 32];
    rand::rng().fill_bytes(&mut bytes);
    let text = format!("{}{id}_{}", kind.prefix(), URL_SAFE_NO_PAD.encode(bytes));
    let hash = hash_text(&text);
    (Secret::new(text), hash)
}

/// Returns the id in a credential. `None` if the text has another form.
pub(crate) fn parse_id(kind: Kind, text: &str) -> Option<&str> {
    let (id, secret) = text.strip_prefix(kind.prefix())?.split_once('_')?;
    (!id.is_empty() && !secret.is_empty()).then_some(id)
}

/// Returns `true` if `stored` is the hash of `text`. The comparison takes constant time.
pub(crate) fn matches_hash(text: &str, stored: &[u8]) -> bool {
    let given = hash_text(text);
    given.len() == stored.len()
        && given
            .iter()
            .zip(stored)
            .fold(0, |difference, (a, b)| difference | (a ^ b))
            == 0
}

/// Returns the stored hash of a key. `None` if the text does not have the form of a key.
pub(crate) fn hash_key(text: &str) -> Option<Vec<u8>> {
    parse_id(Kind::Key, text).map(|_| hash_text(text))
}

pub(super) fn hash_text(text: &str) -> Vec<u8> {
    Sha256::digest(text.as_bytes()).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credential_matches_only_its_own_hash() {
        let (key, stored) = create(Kind::Key, "n234");
        let key = key.expose();
        assert_eq!(parse_id(Kind::Key, key), Some("n234"));
        assert_eq!(parse_id(Kind::Registration, key), None);
        assert!(matches_hash(key, &stored));
        assert!(!matches_hash(&key[..key.len() - 1], &stored));
        assert!(!matches_hash(key, &stored[1..]));
        assert!(!matches_hash(key, &[]));
        for wrong in ["", "acrk_", "acrk_a", "acrk_a_", "acrk__b", "xcrk_a_b"] {
            assert_eq!(parse_id(Kind::Key, wrong), None, "{wrong}");
        }
    }
}
