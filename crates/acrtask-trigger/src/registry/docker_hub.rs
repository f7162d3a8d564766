//! Docker Hub's webhooks. They tell no digest.
//!
//! Source: Docker's documentation, "Webhooks".

use serde::Deserialize;

use super::{Read, RegistryEvent, RegistryPush};
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

pub(super) fn read(body: &[u8]) -> Read {
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
