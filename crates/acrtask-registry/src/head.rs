//! Single conditional HEAD request for the manifest of a tag, and the rate limits of the registry.
//!
//! Pollers need a budget for their requests. A HEAD request therefore neither waits nor retries.

use std::time::Duration;

use acrtask_model::ImageRef;
use reqwest::{Method, StatusCode, header::HeaderMap};

use crate::{
    client::{Registry, ResolvedManifest, parse_head_response},
    error::RegistryError,
    transport::RequestOptions,
};

/// Response to a conditional HEAD request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadResponse {
    /// Result of the request.
    pub result: HeadResult,
    /// Requests that the registry allows from now on. `None` if the response names no limit.
    pub allowance: Option<Allowance>,
}

/// Result of a conditional HEAD request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeadResult {
    /// The tag still has the manifest that the caller's ETag names.
    Unchanged,
    /// The tag has this manifest.
    Found {
        /// Manifest of the tag.
        resolved: ResolvedManifest,
        /// ETag for the next request.
        etag: Option<String>,
    },
}

/// Rate limit of a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// Number of requests left.
    pub remaining: u64,
    /// Time in which these requests are allowed. `None` if the registry does not name it.
    pub window: Option<Duration>,
}

impl Allowance {
    /// Parses `RateLimit-Remaining: 76;w=21600` (Docker Hub), or `RateLimit-Remaining` with
    /// `RateLimit-Reset` in seconds. Accepts the older prefix `X-` for both.
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
            // A larger number is a point in time on the clock of the registry.
            .filter(|seconds| *seconds <= 7 * 24 * 3600)
            .map(Duration::from_secs);
        Some(Self {
            remaining: count,
            window,
        })
    }
}

impl Registry {
    /// Sends one HEAD request for the manifest of `reference`. `etag` comes from an earlier
    /// response.
    ///
    /// # Errors
    /// [`RegistryError`]. [`RegistryError::RateLimited`] at once, even if the requested wait is
    /// short.
    pub async fn head(
        &self,
        reference: &ImageRef,
        etag: Option<&str>,
    ) -> Result<HeadResponse, RegistryError> {
        let attempt = format!("check {reference}");
        let options = RequestOptions {
            tries: 1,
            etag,
            ..RequestOptions::default()
        };
        let response = match self
            .request_manifest_with(reference, Method::HEAD, attempt.clone(), options)
            .await
        {
            Ok(response) => response,
            // Some registries and some proxies support only GET.
            Err(RegistryError::Refused {
                status: 400 | 405 | 501,
                ..
            }) => {
                return Ok(HeadResponse {
                    result: HeadResult::Found {
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
            return Ok(HeadResponse {
                result: HeadResult::Unchanged,
                allowance,
            });
        }
        let etag = response
            .headers()
            .get("etag")
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let resolved = match parse_head_response(&response, &attempt, reference)? {
            Some(resolved) => resolved,
            None => self.resolve_by_get(reference).await?,
        };
        Ok(HeadResponse {
            result: HeadResult::Found { resolved, etag },
            allowance,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_limits_are_parsed_from_headers() {
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
