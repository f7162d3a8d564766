//! The check before a push that the run is still leased to this machine.
//!
//! Invariant: the check passes before each request that can put an image's name into a registry, or
//! remove it. These are each attempt of a push, each index that is stored, each solve that pushes,
//! and each deletion of `acr`. Layers of a cache are not images and need no check. Out of reach are
//! a container that logs in and pushes on its own, and one to which an operator gave the engine's
//! socket.

/// Permission of a run to push.
#[tonic::async_trait]
pub trait Fence: std::fmt::Debug + Send + Sync {
    /// Waits until the permission of the run to push now is confirmed.
    ///
    /// # Errors
    ///
    /// The reason why the run may not push, in one sentence. The step fails with it.
    async fn may_push(&self) -> Result<(), String>;
}
