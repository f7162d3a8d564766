//! What starts runs: from a delivery of a forge or a registry to what it means, and from a timer to its ticks.
//!
//! Four rooms, each understood alone:
//! [`webhook`] checks who sent a delivery and reads what happened to a repository; [`registry`] does the same for
//! images that were pushed; [`rules`] decides whether a task runs for what happened, with a reason in words;
//! [`timer`] says when a timer ticks, and what is due.
//!
//! Invariants: nothing here does I/O or reads a clock, secrets and the time come in as parameters. No byte of a body
//! is looked at before the sender has proved itself. Nothing panics, whatever was sent. Where it is not known what
//! changed, a run starts rather than not.
//!
//! Left out: storing deliveries, refusing those that were seen before, and starting runs. That is the server's.

mod json;
mod proof;
mod rejection;

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
pub use rules::{Decision, ImageRules, Lane, TriggerRules, decide};
pub use timer::{Due, Missed, Schedule};
pub use webhook::{Delivery, Provider, verify_and_parse};
