//! Builds on real endpoints.
//!
//! Each test runs on the Docker Engine that `ACRTASK_TEST_DOCKER_HOST` or `DOCKER_HOST` names (absent: it fails, unless
//! `ACRTASK_TEST_SKIP_ENGINE=1`), and on the buildkitd that `ACRTASK_TEST_BUILDKITD` names (absent: said and skipped), with
//! TLS files from the folder `ACRTASK_TEST_BUILDKITD_TLS`. Bases come from the registry `ACRTASK_TEST_REGISTRY`.

#![allow(clippy::print_stdout, reason = "a skipped test says so")]

mod builds;
mod failures;
mod harness;
mod results;
