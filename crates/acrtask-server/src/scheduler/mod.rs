//! Hands queued runs to runners.

pub mod place;
