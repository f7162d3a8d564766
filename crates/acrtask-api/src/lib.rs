//! Types of the HTTP API: requests, responses and run specifications. The server, the CLI and the
//! runner share them: a runner receives the [`spec::RunSpec`] of each run that it leases.
//!
//! Invariants: no type does I/O. The `Debug` output of a request contains no secret. Requests
//! reject unknown keys; responses may get new ones.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod admin;
pub mod cascade;
pub mod forms;
pub mod image;
pub mod outline;
pub mod probe;
pub mod quota;
pub mod registry_record;
pub mod run;
pub mod spec;
pub mod task;
pub mod task_keys;
pub mod timer;
pub mod webhook;

/// Path of the API, relative to the URL of the server.
pub const BASE: &str = "/api/v1";
