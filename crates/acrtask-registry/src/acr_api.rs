//! API of Azure Container Registry (`/acr/v1`): times, locks, and untagged manifests.
//!
//! Source: REST reference of Azure Container Registry, "Tag" and "Manifests".

use acrtask_model::{Digest, ImageRef};
use bytes::Bytes;
use reqwest::Method;
use serde::{Deserialize, de::DeserializeOwned};
use url::Url;

use crate::{
    client::Registry,
    error::RegistryError,
    pages::Listing,
    transport::{Body, Call},
};

/// Number of entries to request per page, as the original program does.
const PAGE: u32 = 100;

/// Locks of a tag or a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AcrAttributes {
    /// `false` if the object is locked against deletion.
    pub delete_enabled: bool,
    /// `false` if the object is locked against changes.
    pub write_enabled: bool,
}

impl Default for AcrAttributes {
    fn default() -> Self {
        Self {
            delete_enabled: true,
            write_enabled: true,
        }
    }
}

impl AcrAttributes {
    /// Returns `true` if the object must stay.
    pub fn is_locked(self) -> bool {
        !(self.delete_enabled && self.write_enabled)
    }
}

/// Tag in the list of ACR.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AcrTag {
    /// Name of the tag.
    pub name: String,
    /// Digest of the tag's manifest.
    pub digest: Digest,
    /// Time of the last change, RFC 3339.
    #[serde(default)]
    pub last_update_time: Option<String>,
    /// Locks of the tag.
    #[serde(default)]
    pub changeable_attributes: AcrAttributes,
}

/// Manifest in the list of ACR.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AcrManifest {
    /// Digest of the manifest.
    pub digest: Digest,
    /// Media type of the manifest.
    #[serde(default)]
    pub media_type: Option<String>,
    /// Time of the last change, RFC 3339.
    #[serde(default)]
    pub last_update_time: Option<String>,
    /// Locks of the manifest.
    #[serde(default)]
    pub changeable_attributes: AcrAttributes,
}

#[derive(Debug, Deserialize)]
struct TagsResponse {
    tags: Option<Vec<AcrTag>>,
}

#[derive(Debug, Deserialize)]
struct ManifestsResponse {
    manifests: Option<Vec<AcrManifest>>,
}

impl Registry {
    /// Returns `true` if the registry `host` has the API of ACR. A refused or malformed response
    /// counts as its absence, except from a host of Azure.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn has_acr_api(&self, host: &str) -> Result<bool, RegistryError> {
        #[derive(Deserialize)]
        struct Response {
            #[serde(rename = "repositories")]
            _repositories: Option<Vec<String>>,
        }
        if host.ends_with(".azurecr.io") {
            return Ok(true);
        }
        let attempt = format!("check {host} for the API of ACR");
        let mut url = self.host_url(host, "acr/v1/_catalog", &attempt)?;
        url.set_query(Some("n=1"));
        let scope = "registry:catalog:*".to_owned();
        match self
            .acr_get::<serde_json::Value>(host, url, scope, &attempt)
            .await
        {
            Ok(value) => Ok(value.get("repositories").is_some()
                && serde_json::from_value::<Response>(value).is_ok()),
            Err(
                error @ (RegistryError::Unreachable { .. }
                | RegistryError::RateLimited { .. }
                | RegistryError::Credentials { .. }),
            ) => Err(error),
            Err(_) => Ok(false),
        }
    }

    /// Lists the tags of a repository, the newest first. Empty if the repository does not exist.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn acr_tags(&self, reference: &ImageRef) -> Result<Vec<AcrTag>, RegistryError> {
        self.acr_list(
            reference,
            "tags",
            Listing::of_acr_tags,
            |page: TagsResponse| page.tags,
            |tag| tag.name.clone(),
        )
        .await
    }

    /// Lists the manifests of a repository, also untagged ones. Empty if the repository does not
    /// exist.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn acr_manifests(
        &self,
        reference: &ImageRef,
    ) -> Result<Vec<AcrManifest>, RegistryError> {
        self.acr_list(
            reference,
            "manifests",
            Listing::of_acr_manifests,
            |page: ManifestsResponse| page.manifests,
            |manifest| manifest.digest.to_string(),
        )
        .await
    }

    /// Requests all pages of a list. `key` returns the parameter that leads to the next page.
    async fn acr_list<P: DeserializeOwned, T>(
        &self,
        reference: &ImageRef,
        objects: &str,
        list: fn(&str, &str) -> Listing<T>,
        entries: impl Fn(P) -> Option<Vec<T>>,
        key: impl Fn(&T) -> String,
    ) -> Result<Vec<T>, RegistryError> {
        let attempt = format!("list the {objects} of {}", reference.name());
        let mut found = list(&attempt, reference.registry());
        let mut last: Option<String> = None;
        loop {
            let url = self.acr_url(reference, &format!("_{objects}"), last.as_deref(), &attempt)?;
            let page = self
                .acr_get(
                    reference.registry(),
                    url,
                    metadata_scope(reference),
                    &attempt,
                )
                .await;
            let page = match page {
                Ok(page) => entries(page).unwrap_or_default(),
                Err(error) if error.is_not_found() => return Ok(found.into_entries()),
                Err(error) => return Err(error),
            };
            if page.is_empty() {
                return Ok(found.into_entries());
            }
            last = page.last().map(&key);
            found.add(page, last.as_deref())?;
        }
    }

    /// Deletes one tag. Its manifest and other tags stay. A missing tag counts as deleted.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn delete_acr_tag(&self, reference: &ImageRef) -> Result<(), RegistryError> {
        let attempt = format!("delete the tag {reference}");
        let tag = reference.tag().unwrap_or("latest");
        let path = format!("acr/v1/{}/_tags/{tag}", reference.repository());
        let url = self.host_url(reference.registry(), &path, &attempt)?;
        self.send_deletion(reference, attempt, url).await
    }

    /// Removes the locks of a tag, or of a manifest if `reference` has a digest.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn unlock_acr(&self, reference: &ImageRef) -> Result<(), RegistryError> {
        let attempt = format!("unlock {reference}");
        let object = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => format!("_manifests/{digest}"),
            (None, tag) => format!("_tags/{}", tag.unwrap_or("latest")),
        };
        let path = format!("acr/v1/{}/{object}", reference.repository());
        let call = Call {
            host: reference.registry(),
            method: Method::PATCH,
            url: self.host_url(reference.registry(), &path, &attempt)?,
            attempt,
            scopes: vec![metadata_scope(reference)],
            accept: &["application/json"],
            body: Body::Bytes(
                "application/json",
                Bytes::from_static(br#"{"deleteEnabled":true,"writeEnabled":true}"#),
            ),
        };
        self.transport.send(call).await.map(drop)
    }

    fn acr_url(
        &self,
        reference: &ImageRef,
        object: &str,
        last: Option<&str>,
        attempt: &str,
    ) -> Result<Url, RegistryError> {
        let path = format!("acr/v1/{}/{object}", reference.repository());
        let mut url = self.host_url(reference.registry(), &path, attempt)?;
        {
            let mut query = url.query_pairs_mut();
            query.append_pair("n", &PAGE.to_string());
            if object == "_tags" {
                query.append_pair("orderby", "timedesc");
            }
            if let Some(last) = last {
                query.append_pair("last", last);
            }
        }
        Ok(url)
    }

    async fn acr_get<T: DeserializeOwned>(
        &self,
        host: &str,
        url: Url,
        scope: String,
        attempt: &str,
    ) -> Result<T, RegistryError> {
        let (_, body) = self
            .get_json(host, url, scope, &["application/json"], attempt)
            .await?;
        Ok(body)
    }
}

fn metadata_scope(reference: &ImageRef) -> String {
    format!(
        "repository:{}:pull,push,delete,metadata_read,metadata_write",
        reference.repository()
    )
}
