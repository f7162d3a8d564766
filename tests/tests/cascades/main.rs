//! A new base reaches everything that stands on it: a real registry, real builds, a git server, a control plane and a
//! runner as processes.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod bases;
mod commands;
#[path = "../common/mod.rs"]
mod common;
mod crashes;
mod fails;
mod fleet;
mod gates;
mod seen;
mod whole;
