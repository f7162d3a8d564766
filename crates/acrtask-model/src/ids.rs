//! Types of ids, one for each kind, so that they cannot be confused.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, de};

/// Maximum length of a text in an [`IdError`], in bytes. The rest is cut.
const MAX_SHOWN: usize = 200;

/// An error for a text that is not a valid id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {kind}: {reason}")]
pub struct IdError {
    kind: &'static str,
    text: String,
    reason: &'static str,
}

impl IdError {
    fn new(kind: &'static str, mut text: String, reason: &'static str) -> Self {
        text.truncate(text.floor_char_boundary(MAX_SHOWN));
        Self { kind, text, reason }
    }
}

/// Id of a run. Its containers, networks and volumes have labels with this id.
///
/// An id consists of lower-case letters, digits and `-`, at most 40 characters. It is valid in a
/// container name, a DNS label and an image tag.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunId(String);

impl RunId {
    /// Maximum length of a run id, in characters.
    pub const MAX_LEN: usize = 40;

    /// Checks that `text` is a valid id.
    pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
        let text = text.into();
        let reason = if text.is_empty() {
            "it is empty"
        } else if text.len() > Self::MAX_LEN {
            "it is longer than 40 characters"
        } else if !text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        {
            "only lower-case letters, digits and `-` may be used"
        } else if text.starts_with('-') || text.ends_with('-') {
            "it must start and end with a letter or a digit"
        } else {
            return Ok(Self(text));
        };
        Err(IdError::new("run id", text, reason))
    }

    /// Returns an id from 64 random bits: `r` and 12 characters of base 32.
    pub fn from_random(bits: u64) -> Self {
        const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        let tail: String = (0..12)
            .map(|i| char::from(ALPHABET[(bits >> (5 * i)) as usize & 31]))
            .collect();
        Self(format!("r{tail}"))
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for RunId {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        Self::new(text)
    }
}

impl From<RunId> for String {
    fn from(id: RunId) -> Self {
        id.0
    }
}

/// Id of a step, unique in its task. It is also the step's DNS name on the run's network.
///
/// Each line of a log shows the id, so its length is limited. Deserializing cuts a longer id, so
/// that logs and results of earlier versions stay readable.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(into = "String")]
pub struct StepId(String);

impl StepId {
    /// Maximum length of a step id, in bytes.
    pub const MAX_LEN: usize = 128;

    /// Checks that `text` is a valid id: not empty, without white space, at most
    /// [`StepId::MAX_LEN`] bytes, and not `acb_root`, which the reference executor reserves.
    pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
        let text = text.into();
        match Self::check(&text) {
            Ok(()) => Ok(Self(text)),
            Err(reason) => Err(IdError::new("step id", text, reason)),
        }
    }

    fn check(text: &str) -> Result<(), &'static str> {
        if text.is_empty() {
            Err("it is empty")
        } else if text.len() > Self::MAX_LEN {
            Err("it is longer than 128 bytes")
        } else if text.contains(char::is_whitespace) {
            Err("it contains white space")
        } else if text == "acb_root" {
            Err("this name is reserved")
        } else {
            Ok(())
        }
    }

    /// Returns `true` if `text` is a valid id.
    pub fn is_valid(text: &str) -> bool {
        Self::check(text).is_ok()
    }

    /// Returns the default id of the step at `position` (from 0): `acb_step_N`.
    pub fn default_at(position: usize) -> Self {
        Self(format!("acb_step_{position}"))
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StepId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for StepId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut text = String::deserialize(deserializer)?;
        text.truncate(text.floor_char_boundary(Self::MAX_LEN));
        Self::new(text).map_err(de::Error::custom)
    }
}

impl TryFrom<String> for StepId {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        Self::new(text)
    }
}

impl From<StepId> for String {
    fn from(id: StepId) -> Self {
        id.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_id_accepts_only_valid_texts() {
        for good in ["ca7", "r2026-11", "a"] {
            assert_eq!(RunId::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "A", "a b", "-a", "a-", "a/b", &"x".repeat(41)] {
            assert!(RunId::new(bad).is_err(), "{bad:?}");
        }
        assert_eq!(RunId::from_random(0).as_str(), "raaaaaaaaaaaa");
        assert!(RunId::new(RunId::from_random(u64::MAX).to_string()).is_ok());
    }

    #[test]
    fn step_id_accepts_only_valid_texts() {
        assert!(StepId::new("build-web").is_ok());
        assert!(StepId::new("acb_root").is_err());
        assert!(StepId::new("a b").is_err());
        assert_eq!(StepId::default_at(3).as_str(), "acb_step_3");
        assert!(StepId::new("x".repeat(StepId::MAX_LEN)).is_ok());
        let error = StepId::new("x".repeat(100_000)).unwrap_err().to_string();
        assert!(error.len() < 300, "{error}");
    }

    #[test]
    fn stored_step_id_is_cut() {
        let long = "\u{e9}".repeat(100_000);
        let json = serde_json::Value::String(format!("x{long}"));
        let id: StepId = serde_json::from_value(json).unwrap();
        assert_eq!(id.as_str().len(), StepId::MAX_LEN - 1);
        assert!(serde_json::from_str::<StepId>("\"a b\"").is_err());
    }
}
