//! Parsing of JSON of other programs: errors name the missing field, and `null` means absent.

use serde::{Deserialize, Deserializer, de::DeserializeOwned};

use crate::Rejection;

/// Parses a body.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Rejection> {
    Ok(serde_json::from_slice(body)?)
}

/// Checks that a body is JSON, for events whose fields do not matter.
pub(crate) fn check_json(body: &[u8]) -> Result<(), Rejection> {
    parse::<serde::de::IgnoredAny>(body).map(drop)
}

/// Reads `null` as the default, for `#[serde(default, deserialize_with)]`.
///
/// Senders written in Go send `null` for an empty list.
pub(crate) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}
