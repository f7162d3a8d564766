//! Attacks of SECURITY.md against the program. None of them may reach resources of other owners.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod caches;
mod container_flags;
mod contexts;
mod fetched_files;
mod groups;
mod images;
mod imported_caches;
mod layouts;
mod lying_registry;
mod prefixes;
mod quotas;
mod requests;
mod runners;
mod shared_builder;
mod sources;
mod stored_task;
mod volumes;
