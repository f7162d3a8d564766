//! The words of the HTTP API: what requests and answers hold. The server answers with them, the program asks with
//! them, and a runner is handed the [`spec::RunSpec`] of its runs.
//!
//! Invariants: nothing here does I/O; a secret that stands in a request cannot be printed; requests refuse keys that
//! they do not know, answers may grow.

pub mod admin;
pub mod cascade;
pub mod forms;
pub mod image;
pub mod probe;
pub mod quota;
pub mod run;
pub mod spec;
pub mod task;
pub mod task_keys;
pub mod timer;
pub mod webhook;

/// Where the API is, below the server's address.
pub const BASE: &str = "/api/v1";
