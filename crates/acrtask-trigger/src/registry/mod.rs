//! Deliveries of registries: who sent one, and which images were pushed.
//!
//! Most registries cannot sign. What each can do is all that is asked of it: GitHub signs; the others send a token
//! that both sides know, in a header (`Authorization` as it is, as `Bearer` or as the password of `Basic`; or
//! `X-Acrtask-Token`), and those that send no headers of ours have it in the URL, as `?token=`. What is told is
//! therefore a hint: whoever acts on it asks the registry itself for the digest.

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

use crate::{MAX_BODY, Rejection, proof};

/// Which registry tells of pushes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RegistrySource {
    /// The CNCF's distribution, and what speaks like it: `notifications.endpoints` in its configuration.
    Distribution,
    /// Harbor's webhooks, in its own form and as CloudEvents.
    Harbor,
    /// Docker Hub's webhooks. It sends no headers of ours: the token is in the URL.
    DockerHub,
    /// Azure: webhooks of a container registry, and Event Grid, in its own form and as CloudEvents.
    Azure,
    /// GitHub packages: `registry_package`, with GitHub's signature.
    GitHub,
    /// Quay's notifications "Push to Repository" to a webhook. The token is in the URL.
    Quay,
    /// Amazon's ECR, through a rule and an API destination of EventBridge.
    Ecr,
}

impl RegistrySource {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Distribution,
        Self::Harbor,
        Self::DockerHub,
        Self::Azure,
        Self::GitHub,
        Self::Quay,
        Self::Ecr,
    ];

    /// Its name in URLs and settings.
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
                "no registry is called `{text}`; there are {}",
                names.join(", ")
            )
        })
    }
}

/// A delivery of a registry that has proved itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryDelivery {
    /// The sender's id of it; where there is none, a digest of its body. The same id: the same delivery once more.
    pub id: String,
    /// Who sent it.
    pub source: RegistrySource,
    /// What it says.
    pub event: RegistryEvent,
}

/// What a registry says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum RegistryEvent {
    /// Images were pushed; at least one.
    Pushed {
        /// Which.
        images: Vec<RegistryPush>,
    },
    /// The sender asks whether its deliveries are wanted.
    Handshake {
        /// The JSON to answer with.
        answer: String,
    },
    /// The sender only tries whether it is heard.
    Ping,
    /// Something that is no push of an image.
    Declined {
        /// Why, as a sentence.
        reason: String,
    },
}

impl RegistryEvent {
    fn declined(reason: impl Into<String>) -> Self {
        Self::Declined {
            reason: reason.into(),
        }
    }

    /// The images; where there are none, `otherwise` says why.
    fn pushed(images: Vec<RegistryPush>, otherwise: &str) -> Self {
        if images.is_empty() {
            return Self::declined(otherwise);
        }
        Self::Pushed { images }
    }
}

/// An image that was pushed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RegistryPush {
    /// Host and port of the registry, as the sender knows it; `docker.io` for Docker Hub.
    pub registry: String,
    /// The path inside the registry.
    pub repository: String,
    /// The tag; nothing for a push by digest alone.
    pub tag: Option<String>,
    /// The digest, where the sender tells it.
    pub digest: Option<Digest>,
}

impl RegistryPush {
    /// Checks the parts after the grammar of references.
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
        let mut push = Self::of(&text)?;
        let digest = digest.filter(|digest| !digest.is_empty());
        if let Some(digest) = digest {
            push.digest = Some(digest.parse().map_err(not_understood)?);
        }
        Ok(push)
    }

    /// Reads a whole reference.
    fn of(text: &str) -> Result<Self, Rejection> {
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

/// Checks who sent a delivery and reads it. `token` is that of the URL, if it has one; any of `secrets` suffices.
///
/// # Errors
/// [`Rejection`], which knows the HTTP status to answer with.
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
    let secrets = proof::usable(secrets)?;
    if source == RegistrySource::GitHub {
        github::verify(headers, body, &secrets)?;
    } else {
        verify_token(headers, token, &secrets)?;
    }
    read_proved(source, headers, body)
}

/// Reads a delivery whose sender proved itself when it came, and that was kept since.
///
/// # Errors
/// [`Rejection`], where the body is not what it was when it was taken.
pub fn read_proved(
    source: RegistrySource,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<RegistryDelivery, Rejection> {
    let (id, event) = match source {
        RegistrySource::Distribution => distribution::read(body),
        RegistrySource::Harbor => harbor::read(body),
        RegistrySource::DockerHub => docker_hub::read(body),
        RegistrySource::Azure => azure::read(body),
        RegistrySource::GitHub => github::read(headers, body),
        RegistrySource::Quay => quay::read(body),
        RegistrySource::Ecr => ecr::read(body),
    }?;
    let id =
        id.filter(|id| (1..=200).contains(&id.len()) && id.bytes().all(|c| c.is_ascii_graphic()));
    let id = id.unwrap_or_else(|| {
        format!(
            "sha256:{}",
            proof::digest_of(&[source.name().as_bytes(), body])
        )
    });
    Ok(RegistryDelivery { id, source, event })
}

fn verify_token(
    headers: &HeaderMap,
    token: Option<&str>,
    secrets: &[&Secret],
) -> Result<(), Rejection> {
    let authorization = proof::header(headers, "authorization");
    let password = authorization.and_then(proof::basic_password);
    let given = [
        authorization,
        authorization.and_then(proof::bearer),
        password.as_deref(),
        proof::header(headers, "x-acrtask-token"),
        token.filter(|token| !token.is_empty()),
    ];
    let mut given = given.into_iter().flatten().peekable();
    if given.peek().is_none() {
        return Err(Rejection::MissingProof {
            missing: "a token",
            help: "send it as `Authorization: Bearer TOKEN`, or put `?token=TOKEN` behind the URL where the registry sends no headers of yours",
        });
    }
    if given.any(|given| proof::is_token(secrets, given)) {
        return Ok(());
    }
    Err(Rejection::WrongProof { what: "the token" })
}

/// What a reader finds: the sender's id of the delivery, and what it says.
type Read = Result<(Option<String>, RegistryEvent), Rejection>;
