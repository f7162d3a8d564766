//! Answers runners over gRPC.

pub mod hub;
