//! Words that every part of acrtask shares: ids, image references and digests, secrets and their
//! masking, the states of runs and steps, and the events that a run emits.
//!
//! Invariants: nothing here does I/O or reads a clock; a [`Digest`] and a tag are different types;
//! a secret is a [`Secret`], which cannot be printed; a final state holds its own reason.

pub mod count;
pub mod error;
pub mod events;
pub mod ids;
pub mod mask;
pub mod printable;
pub mod reference;
pub mod secret;
pub mod state;
pub mod trust;

pub use count::count;
pub use error::chain;
pub use events::{Event, EventKind};
pub use ids::{RunId, StepId};
pub use mask::Masker;
pub use reference::{Digest, ImageRef, ReferenceError};
pub use secret::Secret;
pub use state::{Outcome, RunState, SkipReason, StepState};
pub use trust::{
    CacheNamespace, CacheSealKey, Principal, RunDomain, TaskPattern, TrustDomain, TrustPolicy,
};
