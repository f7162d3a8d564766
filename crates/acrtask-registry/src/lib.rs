//! Client for OCI registries: resolves tags, reads, writes and deletes manifests and blobs, copies
//! between repositories, and looks up credentials. Also the guarded HTTP client for build contexts.
//!
//! Invariants:
//! - The client checks all content with a digest against it before it returns the content.
//! - The client sends a password only to the registry that the user gave it for, or to the token
//!   server of that registry. It sends a password without TLS only over loopback or to a host that
//!   the operator declared insecure. It never sends a password to another host after a redirect
//!   ([`challenge`]).
//! - All content read into memory has a size limit. The error for an exceeded limit names the
//!   limit.
//! - A list has limits for all its pages together ([`Listing`]).
//! - An error names the attempt and its target. [`RegistryError::help`] advises the user.
//!
//! The client is built on `reqwest`, because the general client crates send a password to any token
//! server that a registry names, and ignore rate limits.
//!
//! Left out: chunked uploads (a blob is uploaded in one request).

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod acr_api;
pub mod attestation;
pub mod challenge;
mod client;
mod copy;
pub mod credentials;
mod deletion;
mod error;
mod head;
mod json_keys;
pub mod layers;
mod listing;
mod login;
pub mod manifest;
pub mod net;
mod pages;
mod range;
mod tags;
mod transport;

pub use acr_api::{AcrAttributes, AcrManifest, AcrTag};
pub use attestation::Attestation;
pub use client::{BlobStream, Registry, ResolvedManifest, Settings};
pub use copy::{BlobCopy, IndexEntry};
pub use credentials::{Credential, CredentialError, Credentials};
pub use error::RegistryError;
pub use head::{Allowance, HeadResponse, HeadResult};
pub use login::ProbeResult;
pub use manifest::{Descriptor, Image, Index, Manifest, ManifestBody, Platform};
pub use net::{AddressPolicy, install_crypto_provider};
pub use pages::Listing;
pub use range::BlobPart;
pub use tags::{NextTags, TagPage};
pub use transport::retry_after;
