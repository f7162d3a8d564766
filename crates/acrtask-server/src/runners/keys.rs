//! What runners prove who they are with: one-use registration tokens `acrr_<id>_<secret>` and keys `acrk_<id>_<secret>`.
//!
//! The id finds the row; the SHA-256 of all of it is what is stored and compared, in constant time.

use acrtask_model::Secret;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::RngCore as _;
use sha2::{Digest as _, Sha256};

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Registers one runner.
    Registration,
    /// A runner's own.
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

/// A new id: 13 characters.
pub(crate) fn new_id(letter: char) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut bytes = [0; 12];
    rand::rng().fill_bytes(&mut bytes);
    let tail = bytes.map(|byte| char::from(ALPHABET[usize::from(byte & 31)]));
    std::iter::once(letter).chain(tail).collect()
}

/// A new proof for `id`, and what it is checked by.
pub(crate) fn new(kind: Kind, id: &str) -> (Secret, Vec<u8>) {
    let mut bytes = [0; 32];
    rand::rng().fill_bytes(&mut bytes);
    let text = format!("{}{id}_{}", kind.prefix(), URL_SAFE_NO_PAD.encode(bytes));
    let hash = hash(&text);
    (Secret::new(text), hash)
}

/// The id in a proof; nothing where it has another form.
pub(crate) fn id(kind: Kind, text: &str) -> Option<&str> {
    let (id, secret) = text.strip_prefix(kind.prefix())?.split_once('_')?;
    (!id.is_empty() && !secret.is_empty()).then_some(id)
}

/// Whether `text` is what `hash` was made of, in constant time.
pub(crate) fn fits(text: &str, stored: &[u8]) -> bool {
    let given = hash(text);
    given.len() == stored.len()
        && given
            .iter()
            .zip(stored)
            .fold(0, |difference, (a, b)| difference | (a ^ b))
            == 0
}

/// Returns what a key is stored as. `None`: the text has not the form of a key.
pub(crate) fn key_hash(text: &str) -> Option<Vec<u8>> {
    id(Kind::Key, text).map(|_| hash(text))
}

pub(super) fn hash(text: &str) -> Vec<u8> {
    Sha256::digest(text.as_bytes()).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_recognized_and_no_other() {
        let (key, stored) = new(Kind::Key, "n234");
        let key = key.expose();
        assert_eq!(id(Kind::Key, key), Some("n234"));
        assert_eq!(id(Kind::Registration, key), None);
        assert!(fits(key, &stored));
        assert!(!fits(&key[..key.len() - 1], &stored));
        assert!(!fits(key, &stored[1..]));
        assert!(!fits(key, &[]));
        for wrong in ["", "acrk_", "acrk_a", "acrk_a_", "acrk__b", "xcrk_a_b"] {
            assert_eq!(id(Kind::Key, wrong), None, "{wrong}");
        }
    }
}
