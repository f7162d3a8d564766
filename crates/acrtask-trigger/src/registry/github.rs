//! GitHub packages: `registry_package`, and its predecessor `package`.
//!
//! Source: GitHub's documentation, "Webhook events and payloads".

use acrtask_model::Secret;
use http::HeaderMap;
use serde::Deserialize;

use super::{ParsedDelivery, RegistryEvent, RegistryPush};
use crate::{Rejection, json::parse, signature, webhook::github};

pub(super) fn verify(
    headers: &HeaderMap,
    body: &[u8],
    secrets: &[&Secret],
) -> Result<(), Rejection> {
    github::verify(headers, body, secrets)
}

#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    action: String,
    #[serde(alias = "package")]
    registry_package: Package,
}

#[derive(Deserialize)]
struct Package {
    #[serde(default)]
    package_type: String,
    #[serde(default)]
    package_version: Option<Version>,
}

#[derive(Deserialize)]
struct Version {
    #[serde(default)]
    package_url: Option<String>,
    #[serde(default)]
    version: Option<String>,
    #[serde(default)]
    container_metadata: Option<Container>,
}

#[derive(Deserialize)]
struct Container {
    #[serde(default)]
    tag: Option<Tag>,
}

#[derive(Deserialize)]
struct Tag {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    digest: Option<String>,
}

pub(super) fn parse_delivery(headers: &HeaderMap, body: &[u8]) -> ParsedDelivery {
    let kind =
        signature::header_text(headers, "x-github-event").ok_or(Rejection::MissingHeader {
            header: "X-GitHub-Event",
        })?;
    let id = signature::header_text(headers, "x-github-delivery").map(str::to_owned);
    let event = match kind {
        "ping" => RegistryEvent::Ping,
        "registry_package" | "package" => {
            parse::<Body>(&github::json_payload(headers, body)?)?.into_event()?
        }
        _ => RegistryEvent::declined(format!("`{}` is not an image push", kind.escape_debug())),
    };
    Ok((id, event))
}

impl Body {
    fn into_event(self) -> Result<RegistryEvent, Rejection> {
        let package = self.registry_package;
        let is_container = package.package_type.eq_ignore_ascii_case("container");
        if !is_container || !matches!(self.action.as_str(), "published" | "updated") {
            return Ok(RegistryEvent::declined("the event is not an image push"));
        }
        let Some(version) = package.package_version else {
            return Ok(RegistryEvent::declined(
                "the event contains no version of the package",
            ));
        };
        let url = version.package_url.filter(|url| !url.is_empty());
        let url = url.ok_or_else(|| {
            Rejection::not_understood("missing field `package_version.package_url`")
        })?;
        // `ghcr.io/owner/name:tag`. Without a tag the URL ends in `:` or contains the digest.
        let bare = url.trim_end_matches(':');
        let named = RegistryPush::parse(bare.split_once("@").map_or(bare, |(name, _)| name))?;
        let tag = version
            .container_metadata
            .and_then(|container| container.tag);
        let (name, digest) = tag.map_or((None, None), |tag| (tag.name, tag.digest));
        let digest = digest.filter(|digest| !digest.is_empty()).or(version
            .version
            .filter(|version| version.starts_with("sha256:")));
        let tag = name.filter(|name| !name.is_empty()).or(named.tag);
        let image = RegistryPush::new(
            &named.registry,
            &named.repository,
            tag.as_deref(),
            digest.as_deref(),
        )?;
        Ok(RegistryEvent::Pushed {
            images: vec![image],
        })
    }
}
