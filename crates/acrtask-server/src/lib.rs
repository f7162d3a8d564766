//! The server: decides which runs to start, leases them to runners, and stores their reports.
//!
//! [`api`] serves people and programs over HTTP. [`runners`] serves runners over gRPC.
//! [`scheduler`] and [`reaper`] move the queue. [`app`] contains their shared state.
//!
//! Invariants:
//! * The database is the only queue. State in memory may be lost at any time.
//! * Nothing is acknowledged before it is committed.
//! * Hints only save time.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod api;
pub mod app;
mod arm;
pub mod auth;
pub mod bases;
pub mod blobs;
pub mod cascades;
pub mod clock;
pub mod floor;
mod hints;
pub mod identity;
pub mod logs;
pub mod metrics;
mod notifications;
pub mod oidc;
mod page;
mod probe;
pub mod reaper;
mod recorder;
mod registry_record;
pub mod retention;
pub mod run_factory;
pub mod runners;
pub mod scheduler;
pub mod serve;
pub mod timers;
pub mod validate;
pub mod vault;
pub mod webhooks;

pub use acrtask_arm::{ArmRegistry, TENANT as ARM_TENANT};
pub use app::{App, Config};
