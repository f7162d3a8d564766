//! Harbor's webhooks, in Harbor's own form and as CloudEvents.
//!
//! Source: Harbor's documentation, "Configure Webhook Notifications".

use serde::Deserialize;

use super::{ParsedDelivery, RegistryEvent, RegistryPush};
use crate::{Rejection, json::parse};

#[derive(Deserialize)]
struct Body {
    r#type: String,
    /// Only in CloudEvents.
    #[serde(default)]
    id: Option<String>,
    #[serde(alias = "data", default)]
    event_data: Option<Data>,
}

#[derive(Deserialize)]
struct Data {
    #[serde(default)]
    resources: Vec<Resource>,
}

#[derive(Deserialize)]
struct Resource {
    #[serde(default)]
    digest: Option<String>,
    #[serde(default)]
    tag: Option<String>,
    resource_url: String,
}

impl Resource {
    fn pushed(&self) -> Result<RegistryPush, Rejection> {
        // Without a tag the URL ends in the digest.
        let mut push = RegistryPush::parse(&self.resource_url)?;
        // A push by digest has the digest in place of the tag.
        let tag = self
            .tag
            .as_deref()
            .filter(|tag| !tag.is_empty() && !tag.contains(':'));
        let digest = self.digest.as_deref();
        let checked = RegistryPush::new(&push.registry, &push.repository, tag, digest)?;
        push.tag = checked.tag.or(push.tag);
        push.digest = checked.digest.or(push.digest);
        Ok(push)
    }
}

pub(super) fn parse_delivery(body: &[u8]) -> ParsedDelivery {
    let body: Body = parse(body)?;
    if !matches!(
        body.r#type.as_str(),
        "PUSH_ARTIFACT" | "pushImage" | "harbor.artifact.pushed"
    ) {
        let shown: String = body.r#type.chars().take(60).collect();
        let reason = format!("`{}` is not an image push", shown.escape_debug());
        return Ok((body.id, RegistryEvent::declined(reason)));
    }
    let data = body
        .event_data
        .ok_or_else(|| Rejection::not_understood("missing field `event_data`"))?;
    let images = data
        .resources
        .iter()
        .map(Resource::pushed)
        .collect::<Result<_, _>>()?;
    Ok((
        body.id,
        RegistryEvent::pushed(images, "the event contains no image"),
    ))
}
