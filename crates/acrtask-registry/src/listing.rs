//! Repositories of a registry, and referrers of a manifest.
//!
//! Source: distribution specification, "Listing Referrers"; `_catalog` of the distribution registry.

use acrtask_model::ImageRef;
use reqwest::{Method, header::HeaderMap};
use serde::{Deserialize, de::DeserializeOwned};
use url::Url;

use crate::{
    client::{Registry, pull_scope},
    error::RegistryError,
    manifest::{Descriptor, OCI_INDEX},
    pages::Listing,
    tags::{NextTags, next_page},
    transport::{Body, Call, read_limited},
};

/// Number of repositories to request per page.
const PAGE: u32 = 1000;
/// Maximum size of a page, in bytes.
const MAX_PAGE: u64 = 4 << 20;

#[derive(Debug, Deserialize)]
struct CatalogResponse {
    /// `null` if the registry is empty.
    repositories: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct ReferrersResponse {
    manifests: Vec<Descriptor>,
}

impl Registry {
    /// Lists the names of all repositories of the registry `host`, as references name it.
    ///
    /// # Errors
    /// [`RegistryError`]. Several public registries refuse this list.
    pub async fn repositories(&self, host: &str) -> Result<Vec<String>, RegistryError> {
        let attempt = format!("list the repositories of {host}");
        let mut url = self.host_url(host, "v2/_catalog", &attempt)?;
        url.set_query(Some(&format!("n={PAGE}")));
        let mut found = Listing::of_repositories(&attempt, host);
        loop {
            let scope = "registry:catalog:*".to_owned();
            let accept = &["application/json"];
            let page = self.get_page::<CatalogResponse>(host, &url, scope, accept, &attempt);
            let (page, next) = page.await?;
            let names = page.repositories.unwrap_or_default();
            found.add(names, next.as_ref().map(NextTags::query))?;
            match next {
                None => return Ok(found.into_entries()),
                Some(next) => url.set_query(Some(next.query())),
            }
        }
    }

    /// Lists the manifests whose `subject` is the manifest of `reference`, which has a digest.
    /// `None` if the registry does not have this API.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn referrers(
        &self,
        reference: &ImageRef,
    ) -> Result<Option<Vec<Descriptor>>, RegistryError> {
        let attempt = format!("list the referrers of {reference}");
        let host = reference.registry();
        let digest = reference
            .digest()
            .ok_or_else(|| invalid(&attempt, host, "only a digest has referrers"))?;
        let mut url = self
            .transport
            .url(reference, &format!("referrers/{digest}"))?;
        let mut found = Listing::of_referrers(&attempt, host);
        loop {
            let scope = pull_scope(reference);
            let page =
                self.get_page::<ReferrersResponse>(host, &url, scope, &[OCI_INDEX], &attempt);
            let (page, next) = match page.await {
                Ok(page) => page,
                Err(RegistryError::NotFound { .. }) => return Ok(None),
                Err(RegistryError::Refused {
                    status: 400 | 405 | 501,
                    ..
                }) => return Ok(None),
                Err(error) => return Err(error),
            };
            found.add(page.manifests, next.as_ref().map(NextTags::query))?;
            match next {
                None => return Ok(Some(found.into_entries())),
                Some(next) => url.set_query(Some(next.query())),
            }
        }
    }

    /// Requests one page of a list. Returns it with the request for the next page.
    async fn get_page<T: DeserializeOwned>(
        &self,
        host: &str,
        url: &Url,
        scope: String,
        accept: &'static [&'static str],
        attempt: &str,
    ) -> Result<(T, Option<NextTags>), RegistryError> {
        let (headers, page) = self
            .get_json(host, url.clone(), scope, accept, attempt)
            .await?;
        let next = next_page(&headers, url).map_err(|reason| invalid(attempt, host, &reason))?;
        Ok((page, next))
    }

    /// Requests a JSON document of at most 4 MiB. Returns it with the headers of the response.
    pub(crate) async fn get_json<T: DeserializeOwned>(
        &self,
        host: &str,
        url: Url,
        scope: String,
        accept: &'static [&'static str],
        attempt: &str,
    ) -> Result<(HeaderMap, T), RegistryError> {
        let call = Call {
            attempt: attempt.to_owned(),
            host,
            method: Method::GET,
            url,
            scopes: vec![scope],
            accept,
            body: Body::None,
        };
        let response = self.transport.send(call).await?;
        let headers = response.headers().clone();
        let body = read_limited(response, MAX_PAGE, attempt, host).await?;
        let parsed = serde_json::from_slice(&body);
        Ok((
            headers,
            parsed.map_err(|error| invalid(attempt, host, &error.to_string()))?,
        ))
    }

    /// Returns the URL of `path` at the registry `host`.
    pub(crate) fn host_url(
        &self,
        host: &str,
        path: &str,
        attempt: &str,
    ) -> Result<Url, RegistryError> {
        Url::parse(&format!("{}{path}", self.transport.base_url(host)))
            .map_err(|error| invalid(attempt, host, &error.to_string()))
    }
}

/// Returns the error for an invalid response.
pub(crate) fn invalid(attempt: &str, host: &str, reason: &str) -> RegistryError {
    RegistryError::Invalid {
        attempt: attempt.to_owned(),
        reason: format!("{host}: {reason}"),
    }
}
