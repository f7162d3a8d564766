//! A cheap look at what a tag holds: one conditional HEAD, without patience, and what the registry says of its limits.
//!
//! For those who look often: nothing is waited for and nothing is tried again here, so that they can keep to a budget.

use std::time::Duration;

use acrtask_model::ImageRef;
use reqwest::{Method, StatusCode, header::HeaderMap};

use crate::{
    client::{Registry, Resolved, resolved},
    error::RegistryError,
    transport::How,
};

/// What a look came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// What was seen.
    pub seen: Looked,
    /// What the registry says it allows from now on.
    pub allowance: Option<Allowance>,
}

/// What was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Looked {
    /// What the caller has is what there is.
    Same,
    /// This is there.
    Found {
        /// What it is.
        resolved: Resolved,
        /// What the registry calls it, to be given next time.
        etag: Option<String>,
    },
}

/// Requests that a registry allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// So many are left.
    pub remaining: u64,
    /// Within this time.
    pub window: Option<Duration>,
}

impl Allowance {
    /// Reads `RateLimit-Remaining: 76;w=21600` (Docker Hub), and the same with `RateLimit-Reset` in seconds, each with an
    /// `X-` before it where it is an older one.
    pub(crate) fn read(headers: &HeaderMap) -> Option<Self> {
        let text = |name: &str| {
            let value = headers
                .get(name)
                .or_else(|| headers.get(format!("x-{name}")))?;
            value.to_str().ok()
        };
        let remaining = text("ratelimit-remaining")?;
        let mut parts = remaining.split([';', ',']).map(str::trim);
        let count = parts.next()?.parse().ok()?;
        let window = parts
            .find_map(|part| part.strip_prefix("w="))
            .or_else(|| text("ratelimit-reset"))
            .and_then(|seconds| seconds.trim().parse::<u64>().ok())
            // A greater number is a point in time on a clock that is not ours.
            .filter(|seconds| *seconds <= 7 * 24 * 3600)
            .map(Duration::from_secs);
        Some(Self {
            remaining: count,
            window,
        })
    }
}

impl Registry {
    /// Looks once at what `reference` stands for. `etag` is what an earlier look was given.
    ///
    /// # Errors
    /// [`RegistryError`]; [`RegistryError::RateLimited`] at once, however short the wait that is asked for.
    pub async fn look(
        &self,
        reference: &ImageRef,
        etag: Option<&str>,
    ) -> Result<Look, RegistryError> {
        let attempt = format!("look at {reference}");
        let how = How {
            tries: 1,
            etag,
            ..How::default()
        };
        let response = match self
            .manifest_call_so(reference, Method::HEAD, attempt.clone(), how)
            .await
        {
            Ok(response) => response,
            // Some registries, and some proxies before them, know GET only.
            Err(RegistryError::Refused {
                status: 400 | 405 | 501,
                ..
            }) => {
                return Ok(Look {
                    seen: Looked::Found {
                        resolved: self.resolve_by_get(reference).await?,
                        etag: None,
                    },
                    allowance: None,
                });
            }
            Err(error) => return Err(error),
        };
        let allowance = Allowance::read(response.headers());
        if response.status() == StatusCode::NOT_MODIFIED {
            return Ok(Look {
                seen: Looked::Same,
                allowance,
            });
        }
        let etag = response
            .headers()
            .get("etag")
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let resolved = match resolved(&response, &attempt, reference)? {
            Some(resolved) => resolved,
            None => self.resolve_by_get(reference).await?,
        };
        Ok(Look {
            seen: Looked::Found { resolved, etag },
            allowance,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_as_registries_write_them() {
        let read = |pairs: &[(&'static str, &'static str)]| {
            let headers = pairs
                .iter()
                .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                .collect();
            Allowance::read(&headers)
        };
        let allowance = |remaining, seconds: Option<u64>| {
            Some(Allowance {
                remaining,
                window: seconds.map(Duration::from_secs),
            })
        };
        assert_eq!(read(&[]), None);
        assert_eq!(
            read(&[("ratelimit-remaining", "76;w=21600")]),
            allowance(76, Some(21600))
        );
        assert_eq!(
            read(&[("ratelimit-remaining", "5"), ("ratelimit-reset", "30")]),
            allowance(5, Some(30))
        );
        assert_eq!(
            read(&[
                ("x-ratelimit-remaining", "0"),
                ("x-ratelimit-reset", "1790000000")
            ]),
            allowance(0, None)
        );
        assert_eq!(read(&[("ratelimit-remaining", "many")]), None);
    }
}
