//! Runs on a real engine with a real registry, one test for each property.
//!
//! The tests need the variables `DOCKER_HOST` and `ACRTASK_TEST_REGISTRY`, which `cargo xtask env`
//! prints. Without them the tests fail with a message, unless `ACRTASK_TEST_SKIP_ENGINE=1` is set.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "the helpers of tests are tests too"
)]

#[path = "engine/harness.rs"]
mod harness;

#[path = "engine/build_push.rs"]
mod build_push;
#[path = "engine/cleanup.rs"]
mod cleanup;
#[path = "engine/cmd.rs"]
mod cmd;
#[path = "engine/fence.rs"]
mod fence;
#[path = "engine/grammar.rs"]
mod grammar;
#[path = "engine/runner_requests.rs"]
mod runner_requests;
#[path = "engine/separate.rs"]
mod separate;
#[path = "engine/staging.rs"]
mod staging;
#[path = "engine/steps.rs"]
mod steps;
