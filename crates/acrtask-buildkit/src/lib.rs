//! BuildKit client: connects to a buildkitd or to the BuildKit inside a Docker Engine, queries its
//! capabilities, and runs builds. It serves files, credentials, secrets and SSH agents during a
//! build.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use acrtask_buildkit::{BuildContext, BuildRequest, Client, Endpoint, Export};
//!
//! let client = Client::connect(Endpoint::parse("docker://")?).await?;
//! let mut request = BuildRequest::new(BuildContext::Local { dir: ".".into() });
//! request.exports = vec![Export::Load { names: vec!["hello:1".into()], archive: None }];
//! let (events, mut received) = tokio::sync::mpsc::channel(64);
//! tokio::spawn(async move {
//!     while let Some(event) = received.recv().await { println!("{event:?}") }
//! });
//! let outcome = client.build(request, events, Default::default()).await?;
//! println!("{:?}", outcome.image_digest);
//! # Ok(())
//! # }
//! ```
//!
//! Modules: `endpoint` and `transport` connect. `capabilities` queries the endpoint. `frontend`
//! converts a request to BuildKit's attributes, and is pure. `session` serves the requests of the
//! builder; `filesync` is its largest part. `solve` runs a build. `status`, `error`, `provenance`
//! and `history` parse the responses.
//!
//! Invariants:
//! - A request that the endpoint does not support is refused by name before anything runs.
//! - Every event is delivered before the outcome.
//! - A canceled build is asked to stop before `build` returns.
//! - Secrets are only in types without a printable form.
//!
//! Left out: builds from a low-level graph (LLB), interactive containers.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod blob_source;
mod capabilities;
mod client;
mod content;
mod content_proto;
mod definition;
mod dockerfile;
mod endpoint;
mod error;
mod excerpt;
mod filesync;
mod frontend;
mod history;
mod provenance;
mod prune;
mod request;
mod session;
mod solve;
mod sources;
mod status;
mod transport;

pub use blob_source::{BlobSource, ProvidedImage};
pub use capabilities::{Capabilities, EndpointKind, Feature, Worker};
pub use client::{BuildOutcome, Client};
pub use content::ContentError;
pub use endpoint::{Endpoint, EndpointError, TlsFiles};
pub use error::{BuildError, BuildFailure, ConnectError};
pub use excerpt::SourceExcerpt;
pub use filesync::{BadPattern, PatternSet};
pub use frontend::{DEFAULT_SCANNER, familiar_name};
pub use provenance::{ProvenanceError, UsedSource, parse_provenance};
pub use prune::{CacheLimit, PruneError, PrunedCache};
pub use request::{
    BuildContext, BuildRequest, CacheNamespaces, CacheSpec, DockerfileSource, Export, Frontends,
    ImageExport, NamedContext, Network, NoCache, OFFICIAL_FRONTENDS, Provenance, Sink, SourcePin,
};
pub use session::{
    Anonymous, BuildSecret, Credentials, MAX_SECRET_BYTES, RegistryCredential, SecretError,
    SecretSource, SshSource, registry_key,
};
pub use sources::{AllowedImage, SourceAddresses, SourceFiles, SourceImages, VerifiedFile};
pub use status::{BuildEvent, Log, Progress, Vertex, Warning};

/// Returns a namespace that no other build uses, for a build that publishes its instructions.
#[allow(
    clippy::disallowed_methods,
    reason = "identifiers and secrets are random"
)]
pub fn single_use_namespace() -> acrtask_model::CacheNamespace {
    acrtask_model::CacheNamespace::from_bytes(rand::random())
}

/// Returns 25 unguessable characters in the alphabet of BuildKit's own ids.
#[allow(
    clippy::disallowed_methods,
    reason = "identifiers and secrets are random"
)]
fn random_id() -> String {
    const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    (0..25)
        .map(|_| char::from(ALPHABET[rand::random_range(0..ALPHABET.len())]))
        .collect()
}
