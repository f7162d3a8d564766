//! OCI registries: resolve a tag, read and write manifests and blobs, copy between repositories,
//! credentials; and the HTTP client with a guard that contexts are fetched through as well.
//!
//! Invariants:
//! - Whatever is read by digest, or comes with one, is checked against it before it is given out.
//! - A password goes to the registry that it was given for, or to that registry's token server, and
//!   in clear only over loopback or to a host that the operator named insecure. A redirect never
//!   carries it to another host ([`challenge`]).
//! - Everything read into memory has a limit; a limit that is met is an error that names it.
//! - An error says what was attempted on what; [`RegistryError::help`] says what to do about it.
//!
//! One client on top of `reqwest` does all of it: the general client crates give a password to any
//! token server that is named to them and do not know rate limits.
//!
//! Left out: deleting, referrers, chunked uploads (blobs go up in one request).

pub mod attestation;
pub mod challenge;
mod client;
mod copy;
pub mod credentials;
mod error;
mod json_keys;
pub mod layers;
mod login;
mod look;
pub mod manifest;
pub mod net;
mod range;
mod tags;
mod transport;

pub use attestation::Attestation;
pub use client::{BlobStream, Registry, Resolved, Settings};
pub use copy::IndexEntry;
pub use credentials::{Credential, CredentialError, Credentials};
pub use error::RegistryError;
pub use login::Greeting;
pub use look::{Allowance, Look, Looked};
pub use manifest::{Descriptor, Image, Index, Manifest, ManifestBody, Platform};
pub use net::{AddressPolicy, install_crypto_provider};
pub use range::BlobPart;
pub use tags::{NextTags, TagPage};
pub use transport::retry_after;
