//! The runners that are connected to this control plane.

/// Runners by id.
#[derive(Debug, Default)]
pub struct Hub {}
