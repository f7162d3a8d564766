//! Cascades: a new base reaches everything built from it. The tests use a real registry, real
//! builds, a git server, and a server and runner as processes.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod bases;
mod commands;
#[path = "../common/mod.rs"]
mod common;
mod crashes;
mod detection;
mod failures;
mod fleet;
mod full_rebuild;
mod promotion;
