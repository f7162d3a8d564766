//! A BuildKit client: connects to a buildkitd or to the BuildKit inside a Docker Engine, asks what it can do, and
//! runs builds on it, serving files, credentials, secrets and SSH agents while they run.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use acrtask_buildkit::{BuildContext, BuildRequest, Client, Endpoint, Export};
//!
//! let client = Client::connect(Endpoint::parse("docker://")?).await?;
//! let mut request = BuildRequest::new(BuildContext::Local { dir: ".".into() });
//! request.exports = vec![Export::Load { names: vec!["hello:1".into()], archive: None }];
//! let (events, mut told) = tokio::sync::mpsc::channel(64);
//! tokio::spawn(async move { while let Some(event) = told.recv().await { println!("{event:?}") } });
//! let outcome = client.build(request, events, Default::default()).await?;
//! println!("{:?}", outcome.image_digest);
//! # Ok(())
//! # }
//! ```
//!
//! Where to look: `endpoint` and `transport` connect; `capabilities` asks; `frontend` turns a request into BuildKit's
//! attributes, and is pure; `session` is what the builder calls back, with `filesync` as its largest part; `solve`
//! runs a build; `status`, `error`, `provenance` and `history` read what comes back.
//!
//! Invariants: what an endpoint cannot do is refused by name before anything runs; every event is delivered before the outcome; a canceled
//! build has been told to stop before `build` returns; secrets are only in unprintable types.
//!
//! Left out: building from a low-level graph (LLB), interactive containers.

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
pub use frontend::{DEFAULT_SCANNER, familiar};
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

/// Returns a namespace that no other build has: for one that publishes how it was built.
pub fn one_time_namespace() -> acrtask_model::CacheNamespace {
    acrtask_model::CacheNamespace::from_bytes(rand::random())
}

/// 25 characters that nobody guesses, in the alphabet of BuildKit's own ids.
fn random_id() -> String {
    const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    (0..25)
        .map(|_| char::from(ALPHABET[rand::random_range(0..ALPHABET.len())]))
        .collect()
}
