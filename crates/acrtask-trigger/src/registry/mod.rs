//! Deliveries of registries: verification of the sender, and the pushed images.
//!
//! Most registries cannot sign. GitHub signs; the others send a shared token in a header:
//! `Authorization` (bare, as `Bearer` or as the password of `Basic`) or `X-Acrtask-Token`.
//! Registries without configurable headers have the token in the URL, as `?token=`. A report is
//! therefore only a hint: the server requests the digest from the registry before it acts.

mod azure;
mod distribution;
mod docker_hub;
mod ecr;
mod github;
mod harbor;
mod quay;

use std::fmt;

use acrtask_model::{Digest, ImageRef, Secret};
use http::HeaderMap;
use serde::{Deserialize, Serialize};

use crate::{MAX_BODY, Rejection, signature};

/// Kind of registry that reports pushes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RegistrySource {
    /// The CNCF's distribution and compatible registries: `notifications.endpoints` in its
    /// settings.
    Distribution,
    /// Harbor's webhooks, in Harbor's own form and as CloudEvents.
    Harbor,
    /// Docker Hub's webhooks. The token is in the URL, because their headers are fixed.
    DockerHub,
    /// Azure: webhooks of a container registry, and Event Grid, in its own form and as CloudEvents.
    Azure,
    /// GitHub packages: `registry_package`, with GitHub's signature.
    GitHub,
    /// Quay's notifications "Push to Repository" to a webhook. The token is in the URL.
    Quay,
    /// Amazon ECR, through a rule and an API destination of EventBridge.
    Ecr,
}

impl RegistrySource {
    /// All sources.
    pub const ALL: [Self; 7] = [
        Self::Distribution,
        Self::Harbor,
        Self::DockerHub,
        Self::Azure,
        Self::GitHub,
        Self::Quay,
        Self::Ecr,
    ];

    /// Returns the name of the source in URLs and settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Distribution => "distribution",
            Self::Harbor => "harbor",
            Self::DockerHub => "docker-hub",
            Self::Azure => "azure",
            Self::GitHub => "github-packages",
            Self::Quay => "quay",
            Self::Ecr => "ecr",
        }
    }
}

impl fmt::Display for RegistrySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for RegistrySource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|source| source.name() == text);
        found.ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|source| source.name()).collect();
            format!(
                "no registry is named `{text}`; write one of {}",
                names.join(", ")
            )
        })
    }
}

/// A parsed delivery of a verified registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryDelivery {
    /// The sender's id, or a digest of the body if the sender sends none. Repetitions of one
    /// delivery have the same id.
    pub id: String,
    /// Kind of registry that sent the delivery.
    pub source: RegistrySource,
    /// The event of the body.
    pub event: RegistryEvent,
}

/// Event of a registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum RegistryEvent {
    /// Pushed images.
    Pushed {
        /// At least one image.
        images: Vec<RegistryPush>,
    },
    /// The sender asks for permission to deliver.
    Handshake {
        /// The JSON of the response.
        answer: String,
    },
    /// The sender tests the connection.
    Ping,
    /// An event that is not an image push.
    Declined {
        /// The reason, as a sentence.
        reason: String,
    },
}

impl RegistryEvent {
    fn declined(reason: impl Into<String>) -> Self {
        Self::Declined {
            reason: reason.into(),
        }
    }

    /// Returns the images as an event, or declines with `otherwise` if there are none.
    fn pushed(images: Vec<RegistryPush>, otherwise: &str) -> Self {
        if images.is_empty() {
            return Self::declined(otherwise);
        }
        Self::Pushed { images }
    }
}

/// A pushed image.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RegistryPush {
    /// Host and port of the registry, as the sender names them; `docker.io` for Docker Hub.
    pub registry: String,
    /// The path in the registry.
    pub repository: String,
    /// The tag. `None` for a push by digest only.
    pub tag: Option<String>,
    /// The digest, if the sender sends it.
    pub digest: Option<Digest>,
}

impl RegistryPush {
    /// Checks the parts by the grammar of references.
    fn new(
        registry: &str,
        repository: &str,
        tag: Option<&str>,
        digest: Option<&str>,
    ) -> Result<Self, Rejection> {
        let mut text = format!("{registry}/{repository}");
        if let Some(tag) = tag.filter(|tag| !tag.is_empty()) {
            text = format!("{text}:{tag}");
        }
        let mut push = Self::parse(&text)?;
        let digest = digest.filter(|digest| !digest.is_empty());
        if let Some(digest) = digest {
            push.digest = Some(digest.parse().map_err(not_understood)?);
        }
        Ok(push)
    }

    /// Parses a full reference.
    fn parse(text: &str) -> Result<Self, Rejection> {
        let image: ImageRef = text.parse().map_err(not_understood)?;
        Ok(Self {
            registry: image.registry().to_owned(),
            repository: image.repository().to_owned(),
            tag: image.tag().map(str::to_owned),
            digest: image.digest().cloned(),
        })
    }
}

impl fmt::Display for RegistryPush {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

fn not_understood(error: impl fmt::Display) -> Rejection {
    Rejection::not_understood(error.to_string())
}

/// Verifies the sender of a delivery and parses its body.
///
/// `token` is the token of the URL, if present. Any one of `secrets` suffices.
///
/// # Errors
/// [`Rejection`], which contains the HTTP status of the response.
pub fn verify_and_parse(
    source: RegistrySource,
    headers: &HeaderMap,
    token: Option<&str>,
    body: &[u8],
    secrets: &[Secret],
) -> Result<RegistryDelivery, Rejection> {
    if body.len() > MAX_BODY {
        return Err(Rejection::TooLarge { size: body.len() });
    }
    let secrets = signature::usable_secrets(secrets)?;
    if source == RegistrySource::GitHub {
        github::verify(headers, body, &secrets)?;
    } else {
        verify_token(headers, token, &secrets)?;
    }
    parse_verified(source, headers, body)
}

/// Parses a stored delivery whose sender was verified when it arrived.
///
/// # Errors
/// [`Rejection`] if the body is not the one that was accepted.
pub fn parse_verified(
    source: RegistrySource,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<RegistryDelivery, Rejection> {
    let (id, event) = match source {
        RegistrySource::Distribution => distribution::parse_delivery(body),
        RegistrySource::Harbor => harbor::parse_delivery(body),
        RegistrySource::DockerHub => docker_hub::parse_delivery(body),
        RegistrySource::Azure => azure::parse_delivery(body),
        RegistrySource::GitHub => github::parse_delivery(headers, body),
        RegistrySource::Quay => quay::parse_delivery(body),
        RegistrySource::Ecr => ecr::parse_delivery(body),
    }?;
    let id =
        id.filter(|id| (1..=200).contains(&id.len()) && id.bytes().all(|c| c.is_ascii_graphic()));
    let id = id.unwrap_or_else(|| {
        format!(
            "sha256:{}",
            signature::digest_parts(&[source.name().as_bytes(), body])
        )
    });
    Ok(RegistryDelivery { id, source, event })
}

fn verify_token(
    headers: &HeaderMap,
    token: Option<&str>,
    secrets: &[&Secret],
) -> Result<(), Rejection> {
    let authorization = signature::header_text(headers, "authorization");
    let password = authorization.and_then(signature::basic_password);
    let given = [
        authorization,
        authorization.and_then(signature::bearer_token),
        password.as_deref(),
        signature::header_text(headers, "x-acrtask-token"),
        token.filter(|token| !token.is_empty()),
    ];
    let mut given = given.into_iter().flatten().peekable();
    if given.peek().is_none() {
        return Err(Rejection::MissingProof {
            missing: "a token",
            help: "send it as `Authorization: Bearer TOKEN`, or append `?token=TOKEN` to the URL if the headers of the registry are fixed",
        });
    }
    if given.any(|given| signature::matches_any_secret(secrets, given)) {
        return Ok(());
    }
    Err(Rejection::WrongProof { what: "the token" })
}

/// Result of parsing a delivery: the sender's id, and the event.
type ParsedDelivery = Result<(Option<String>, RegistryEvent), Rejection>;
