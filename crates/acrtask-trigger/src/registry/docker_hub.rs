//! Docker Hub's webhooks, which contain no digest.
//!
//! Source: Docker's documentation, "Webhooks".

use serde::Deserialize;

use super::{ParsedDelivery, RegistryEvent, RegistryPush};
use crate::json::parse;

#[derive(Deserialize)]
struct Body {
    push_data: PushData,
    repository: Repository,
}

#[derive(Deserialize)]
struct PushData {
    tag: String,
}

#[derive(Deserialize)]
struct Repository {
    repo_name: String,
}

pub(super) fn parse_delivery(body: &[u8]) -> ParsedDelivery {
    let body: Body = parse(body)?;
    let image = RegistryPush::new(
        "docker.io",
        &body.repository.repo_name,
        Some(&body.push_data.tag),
        None,
    )?;
    Ok((
        None,
        RegistryEvent::Pushed {
            images: vec![image],
        },
    ))
}
