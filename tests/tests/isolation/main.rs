//! Attacks of SECURITY.md, carried out against the program: none of them reaches what belongs to others.

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
mod quotas;
mod requests;
mod runners;
mod sources;
mod stored;
mod volumes;
