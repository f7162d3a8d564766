//! The last question before a push: whether the run still is this machine's to carry out.
//!
//! Invariant: it is asked, and answered, before each request that could put an image's name into a registry: each
//! attempt of a push, each index that is stored, each solve that pushes. Layers of a cache are no images of anybody's
//! and are not fenced. Out of reach are a container that logs in and pushes by itself, and one that an operator gave
//! the engine's socket.

/// Says whether a run may push.
#[tonic::async_trait]
pub trait Fence: std::fmt::Debug + Send + Sync {
    /// Waits until it is known whether the run may push now.
    ///
    /// # Errors
    ///
    /// Why it may not, in one sentence: the step fails with it.
    async fn may_push(&self) -> Result<(), String>;
}
