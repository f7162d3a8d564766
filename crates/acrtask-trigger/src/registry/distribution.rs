//! The CNCF's distribution: an envelope of events.
//!
//! Source: distribution's documentation, "Notifications". Events of blobs are skipped: only
//! manifests are images.

use serde::Deserialize;

use super::{ParsedDelivery, RegistryEvent, RegistryPush};
use crate::{
    Rejection,
    json::{or_default, parse},
};

#[derive(Deserialize)]
struct Envelope {
    events: Vec<EventBody>,
}

#[derive(Deserialize)]
pub(super) struct EventBody {
    #[serde(default)]
    pub(super) id: Option<String>,
    #[serde(default)]
    pub(super) action: String,
    #[serde(default)]
    target: Option<Target>,
    #[serde(default)]
    request: Option<Request>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Target {
    #[serde(default, deserialize_with = "or_default")]
    media_type: String,
    #[serde(default)]
    digest: Option<String>,
    #[serde(default)]
    repository: Option<String>,
    #[serde(default)]
    tag: Option<String>,
    #[serde(default)]
    url: Option<String>,
}

#[derive(Deserialize)]
struct Request {
    #[serde(default)]
    host: Option<String>,
}

impl EventBody {
    /// Returns the image if the event is an image push.
    pub(super) fn pushed(self) -> Result<Option<RegistryPush>, Rejection> {
        let Some(target) = self.target.filter(|_| self.action == "push") else {
            return Ok(None);
        };
        let tag = target.tag.as_deref().filter(|tag| !tag.is_empty());
        let kinds = [
            "application/vnd.oci.image.manifest.",
            "application/vnd.oci.image.index.",
            "application/vnd.docker.distribution.manifest.",
        ];
        if tag.is_none() && !kinds.iter().any(|kind| target.media_type.starts_with(kind)) {
            return Ok(None);
        }
        let repository = target
            .repository
            .ok_or_else(|| Rejection::not_understood("missing field `target.repository`"))?;
        let host = self
            .request
            .and_then(|request| request.host)
            .filter(|host| !host.is_empty());
        let of_url = || {
            let url = url::Url::parse(target.url.as_deref()?).ok()?;
            let host = url.host_str()?.to_owned();
            Some(
                url.port()
                    .map_or(host.clone(), |port| format!("{host}:{port}")),
            )
        };
        let host = host
            .or_else(of_url)
            .ok_or_else(|| Rejection::not_understood("missing field `request.host`"))?;
        RegistryPush::new(&host, &repository, tag, target.digest.as_deref()).map(Some)
    }
}

pub(super) fn parse_delivery(body: &[u8]) -> ParsedDelivery {
    let events = parse::<Envelope>(body)?.events;
    let id = match &events[..] {
        [only] => only.id.clone(),
        _ => None,
    };
    let images = events
        .into_iter()
        .filter_map(|event| event.pushed().transpose());
    let images = images.collect::<Result<_, _>>()?;
    Ok((
        id,
        RegistryEvent::pushed(images, "the delivery contains no image push"),
    ))
}
