//! Types that all parts of acrtask share: ids, image references and digests, secrets and their
//! masking, the states of runs and steps, and the events of a run.
//!
//! Invariants: this crate does no I/O and reads no clock. A [`Digest`] and a tag are different
//! types. A secret is a [`Secret`], which cannot be printed. A final state contains its own reason.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod count;
pub mod error;
pub mod events;
pub mod ids;
pub mod mask;
pub mod printable;
pub mod reference;
pub mod scope;
pub mod secret;
pub mod state;
pub mod trust;

pub use count::count;
pub use error::error_chain;
pub use events::{Event, EventKind};
pub use ids::{RunId, StepId};
pub use mask::Masker;
pub use reference::{Digest, ImageRef, ReferenceError};
pub use scope::{ScopeChain, TaskScope};
pub use secret::Secret;
pub use state::{Outcome, RunState, SkipReason, StepState};
pub use trust::{
    CacheNamespace, CacheSealKey, ContributionSource, Principal, RunDomain, TaskPattern,
    TrustDomain, TrustPolicy,
};
