//! Runs on a real engine with a real registry, one test for each property.
//!
//! `cargo xtask env` prints the variables that name them: `DOCKER_HOST`, `ACRTASK_TEST_REGISTRY`. Without them the
//! tests fail and say so, unless `ACRTASK_TEST_SKIP_ENGINE=1`.

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
#[path = "engine/hold.rs"]
mod hold;
#[path = "engine/of_a_runner.rs"]
mod of_a_runner;
#[path = "engine/separate.rs"]
mod separate;
#[path = "engine/steps.rs"]
mod steps;
