//! Notifications of Quay: quay.io and own servers. They contain no digest.
//!
//! Source: Quay's documentation, "Repository Notifications". Old servers send an object instead of
//! the list of tags.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{ParsedDelivery, RegistryEvent, RegistryPush};
use crate::{Rejection, json::parse};

#[derive(Deserialize)]
struct Body {
    docker_url: String,
    #[serde(default)]
    updated_tags: Option<Tags>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Tags {
    List(Vec<String>),
    Images(Map<String, Value>),
}

pub(super) fn parse_delivery(body: &[u8]) -> ParsedDelivery {
    let body: Body = parse(body)?;
    let tags = match body.updated_tags {
        None => {
            return Ok((
                None,
                RegistryEvent::declined("the event contains no pushed tag"),
            ));
        }
        Some(Tags::List(tags)) => tags,
        Some(Tags::Images(images)) => images.into_iter().map(|(tag, _)| tag).collect(),
    };
    let name = RegistryPush::parse(&body.docker_url)?;
    let image = |tag: &String| RegistryPush::new(&name.registry, &name.repository, Some(tag), None);
    let images = tags.iter().map(image).collect::<Result<_, Rejection>>()?;
    Ok((
        None,
        RegistryEvent::pushed(images, "the event contains no pushed tag"),
    ))
}
