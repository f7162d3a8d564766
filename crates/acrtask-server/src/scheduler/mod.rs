//! Hands queued runs to runners.
