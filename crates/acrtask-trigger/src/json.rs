//! Reading JSON of others: what is missing is told by name, and `null` stands for nothing.

use serde::{Deserialize, Deserializer, de::DeserializeOwned};

use crate::Rejection;

/// Reads a body.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Rejection> {
    Ok(serde_json::from_slice(body)?)
}

/// Checks that a body whose fields do not matter is JSON.
pub(crate) fn check(body: &[u8]) -> Result<(), Rejection> {
    parse::<serde::de::IgnoredAny>(body).map(drop)
}

/// For `#[serde(default, deserialize_with)]`: senders written in Go say `null` for an empty list.
pub(crate) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}
