//! Tests of complete deliveries: fixtures and GitHub's published examples, genuine and forged.
//!
//! `tests/fixtures/PROVIDER/*.json` and `tests/fixtures/registries/SOURCE/*.json` are small
//! deliveries with headers and body, written after the senders' documentation. The tests add the
//! proof of the sender. The published examples are those of the npm package
//! `@octokit/webhooks-examples`, in the folder named by `ACRTASK_TEST_GITHUB_EXAMPLES`.

#![allow(clippy::unwrap_used)]

mod deliveries;
mod forged;
mod github_examples;
mod registries;
mod support;
