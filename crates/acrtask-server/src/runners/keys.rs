//! Credentials of runners: one-use registration tokens `acrr_<id>_<secret>` and keys
//! `acrk_<id>_<secret>`.
//!
//! The id selects the row. The server stores the SHA-256 of the whole text and compares it in
//! constant time.

use acrtask_model::Secret;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::auth;

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
pub(crate) fn new_id(letter: char) -> String {
    format!("{letter}{}", auth::random_characters::<12>())
}

/// Creates a credential for `id`. Returns it with its hash.
pub(crate) fn create(kind: Kind, id: &str) -> (Secret, Vec<u8>) {
    let text = format!("{}{id}_{}", kind.prefix(), auth::random_secret());
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
    hash_text(text).as_slice().ct_eq(stored).into()
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
