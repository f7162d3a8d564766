//! Builds on real endpoints.
//!
//! Each test runs on the Docker Engine of `ACRTASK_TEST_DOCKER_HOST` or `DOCKER_HOST`. Without an
//! engine it fails, unless `ACRTASK_TEST_SKIP_ENGINE=1`. It also runs on the buildkitd of
//! `ACRTASK_TEST_BUILDKITD`, with TLS files from the folder `ACRTASK_TEST_BUILDKITD_TLS`. Without
//! this variable it prints that it skips the buildkitd. Bases come from the registry
//! `ACRTASK_TEST_REGISTRY`.

#![allow(clippy::print_stdout, reason = "a skipped test prints the reason")]

mod builds;
mod failures;
mod harness;
mod results;
