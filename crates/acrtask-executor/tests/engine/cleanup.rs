//! See the harness.
