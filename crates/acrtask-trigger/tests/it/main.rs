//! Deliveries as they come: those of the fixtures and those that GitHub publishes, honest and forged.
//!
//! `tests/fixtures/PROVIDER/*.json` and `tests/fixtures/registries/SOURCE/*.json` are small deliveries, each with its
//! headers and its body, written after the senders' documentation. The proof is added here, as the sender would make
//! it. The published ones are those of the npm package `@octokit/webhooks-examples`, in the folder that
//! `ACRTASK_TEST_GITHUB_EXAMPLES` names.

#![allow(clippy::unwrap_used)]

mod deliveries;
mod forged;
mod github_examples;
mod registries;
mod support;
