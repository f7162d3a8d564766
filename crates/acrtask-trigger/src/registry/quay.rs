//! Quay's notifications, of quay.io and of servers of one's own. They tell no digest.
//!
//! Source: Quay's documentation, "Repository Notifications". Old servers have an object in place of the list of tags.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Read, RegistryEvent, RegistryPush};
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

pub(super) fn read(body: &[u8]) -> Read {
    let body: Body = parse(body)?;
    let tags = match body.updated_tags {
        None => {
            return Ok((
                None,
                RegistryEvent::declined("it names no tag that was pushed"),
            ));
        }
        Some(Tags::List(tags)) => tags,
        Some(Tags::Images(images)) => images.into_iter().map(|(tag, _)| tag).collect(),
    };
    let name = RegistryPush::of(&body.docker_url)?;
    let image = |tag: &String| RegistryPush::new(&name.registry, &name.repository, Some(tag), None);
    let images = tags.iter().map(image).collect::<Result<_, Rejection>>()?;
    Ok((
        None,
        RegistryEvent::pushed(images, "it names no tag that was pushed"),
    ))
}
