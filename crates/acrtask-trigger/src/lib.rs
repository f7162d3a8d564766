//! Triggers of runs: parsed deliveries of forges and registries, decisions per task, and timers.
//!
//! - [`webhook`] verifies and parses deliveries of forges.
//! - [`registry`] does the same for pushed images.
//! - [`rules`] decides whether an event starts a run of a task, with a reason as a sentence.
//! - [`timer`] computes the firings of a timer and what is due.
//!
//! Invariants:
//! - No function does I/O or reads a clock: secrets and the time are parameters.
//! - No byte of a body is parsed before the proof of its sender is verified.
//! - No input causes a panic.
//! - If the changed files are unknown, a run starts.
//!
//! Left out: the server stores deliveries, ignores repeated ones and starts runs.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod json;
mod rejection;
mod signature;

pub mod event;
pub mod registry;
pub mod repository;
pub mod rules;
pub mod timer;
pub mod webhook;

pub use event::{Change, Commit, CommitId, Event, PullRequest, PullRequestAction, Push, TagPush};
pub use registry::{RegistryDelivery, RegistryEvent, RegistryPush, RegistrySource};
pub use rejection::{MAX_BODY, Rejection};
pub use repository::{Repository, RepositoryUrl};
pub use rules::{Decision, ImageRules, RefKey, TriggerRules, decide};
pub use timer::{Due, Missed, Schedule};
pub use webhook::{Delivery, Provider, verify_and_parse};
