//! Detection of stalled uploads. A response cannot arrive before the body is sent, which may take
//! any time while the upload makes progress.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{Stream, StreamExt as _};
use tokio::time::Instant;

/// Maximum wait for the client to send the next piece, and for the response after the last piece. A
/// registry stores a blob before it responds.
const SILENCE: Duration = Duration::from_secs(300);

/// Time at which the connection took the last piece of a body. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct UploadProgress(Arc<Mutex<Instant>>);

/// Error of an upload without progress for [`SILENCE`].
#[derive(Debug, thiserror::Error)]
#[error("the upload made no progress for {} s", SILENCE.as_secs())]
pub(crate) struct Stalled;

impl UploadProgress {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    /// Returns the body with a record of its progress.
    pub(crate) fn watch<S: Stream>(&self, body: S) -> impl Stream<Item = S::Item> + use<S> {
        let progress = self.clone();
        body.inspect(move |_| *progress.last() = Instant::now())
    }

    /// Waits for the response to a request, unless the upload stalls.
    ///
    /// # Errors
    /// [`Stalled`].
    pub(crate) async fn await_response<T>(
        &self,
        request: impl Future<Output = T>,
    ) -> Result<T, Stalled> {
        let mut request = std::pin::pin!(request);
        *self.last() = Instant::now();
        loop {
            let until = *self.last() + SILENCE;
            tokio::select! {
                answer = &mut request => return Ok(answer),
                () = tokio::time::sleep_until(until) => {}
            }
            if *self.last() + SILENCE <= Instant::now() {
                return Err(Stalled);
            }
        }
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn upload_with_progress_may_exceed_the_limit() {
        let progress = UploadProgress::new();
        let pieces = futures::stream::iter(0..20).then(|piece| async move {
            tokio::time::sleep(SILENCE / 2).await;
            piece
        });
        let sent = progress
            .await_response(progress.watch(pieces).count())
            .await;
        assert_eq!(sent.unwrap(), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn upload_without_progress_fails() {
        let progress = UploadProgress::new();
        let began = Instant::now();
        let pieces = futures::stream::iter([1]).chain(futures::stream::pending());
        assert!(
            progress
                .await_response(progress.watch(pieces).count())
                .await
                .is_err()
        );
        assert!(began.elapsed() <= 2 * SILENCE);
    }
}
