//! How long an answer is waited for while a body goes out: it cannot come before the body has gone, which may take as
//! long as it takes, as long as it goes on.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{Stream, StreamExt as _};
use tokio::time::Instant;

/// Longest wait for the next piece of the body to be taken, and after the last one for the answer: a registry moves a blob
/// to its place before it answers.
const SILENCE: Duration = Duration::from_secs(300);

/// When the last piece of a body was taken. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Pace(Arc<Mutex<Instant>>);

/// Nothing moved for [`SILENCE`].
#[derive(Debug, thiserror::Error)]
#[error("nothing was taken or answered for {} s", SILENCE.as_secs())]
pub(crate) struct Stalled;

impl Pace {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    /// The body, watched.
    pub(crate) fn watch<S: Stream>(&self, body: S) -> impl Stream<Item = S::Item> + use<S> {
        let pace = self.clone();
        body.inspect(move |_| *pace.last() = Instant::now())
    }

    /// What the request comes to, unless it stalls.
    ///
    /// # Errors
    /// [`Stalled`].
    pub(crate) async fn follow<T>(&self, request: impl Future<Output = T>) -> Result<T, Stalled> {
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
    async fn what_goes_on_may_take_long() {
        let pace = Pace::new();
        let pieces = futures::stream::iter(0..20).then(|piece| async move {
            tokio::time::sleep(SILENCE / 2).await;
            piece
        });
        let sent = pace.follow(pace.watch(pieces).count()).await;
        assert_eq!(sent.unwrap(), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn what_stands_still_does_not() {
        let pace = Pace::new();
        let began = Instant::now();
        let pieces = futures::stream::iter([1]).chain(futures::stream::pending());
        assert!(pace.follow(pace.watch(pieces).count()).await.is_err());
        assert!(began.elapsed() <= 2 * SILENCE);
    }
}
