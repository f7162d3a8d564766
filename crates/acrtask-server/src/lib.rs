//! The control plane: what should run is decided here, handed to runners, and written down as they tell it.
//!
//! [`api`] answers people and programs over HTTP; [`runners`] answers runners over gRPC; [`scheduler`] and [`reaper`] move
//! the queue; [`app`] holds what they share. Invariants: the database is the only queue, and what is in memory here may
//! be lost at any time; nothing is acknowledged before it is committed; hints only save time.

pub mod api;
pub mod app;
pub mod auth;
pub mod bases;
pub mod blobs;
pub mod cascades;
pub mod clock;
pub mod floor;
mod forge;
mod hints;
pub mod identity;
pub mod logs;
pub mod metrics;
pub mod oidc;
mod probe;
pub mod reaper;
mod recorder;
pub mod retention;
pub mod runners;
pub mod scheduler;
pub mod serve;
pub mod submit;
pub mod timers;
pub mod vault;
pub mod webhooks;

pub use app::{App, Config};
