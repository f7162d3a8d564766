//! Supervisor of background tasks: restarts them after failures.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use acrtask_store::StoreError;
use futures::FutureExt as _;
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::App;

/// Pause before the first restart of a task. Doubles with each further failure.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause before a restart.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A task that ran for this time has recovered. Its next pause is [`FIRST_PAUSE`].
const RECOVERED: Duration = Duration::from_secs(10);

/// Background tasks that are restarted until the supervisor is stopped.
#[derive(Debug)]
pub(crate) struct Supervisor {
    app: Arc<App>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Supervisor {
    pub(crate) fn new(app: Arc<App>) -> Self {
        Self {
            app,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }
    }

    /// Runs `start` now, and again after each error or panic. A task that returns `Ok` is not
    /// restarted.
    pub(crate) fn spawn_restarting<F, T>(&self, name: &'static str, start: F)
    where
        F: Fn() -> T + Send + 'static,
        T: Future<Output = Result<(), StoreError>> + Send + 'static,
    {
        let (app, stop) = (self.app.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            let mut pause = FIRST_PAUSE;
            loop {
                let started = Instant::now();
                let outcome = tokio::select! {
                    () = stop.cancelled() => return,
                    outcome = AssertUnwindSafe(start()).catch_unwind() => outcome,
                };
                if started.elapsed() > RECOVERED {
                    pause = FIRST_PAUSE;
                }
                match outcome {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => tracing::error!(
                        task = name,
                        error = acrtask_model::error_chain(&error),
                        "restarting a failed background task"
                    ),
                    Err(_) => {
                        tracing::error!(task = name, "restarting a background task that panicked")
                    }
                }
                app.metrics.restarts.inc();
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        });
    }

    /// Waits until all tasks have completed. Returns `false` after `limit`.
    pub(crate) async fn wait_all(&self, limit: Duration) -> bool {
        self.tasks.close();
        tokio::time::timeout(limit, self.tasks.wait()).await.is_ok()
    }

    /// Cancels all tasks without waiting for them.
    pub(crate) fn cancel(&self) {
        self.stop.cancel();
    }

    /// Cancels all tasks and waits until they have ended.
    pub(crate) async fn stop(&self) {
        self.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use acrtask_store::Store;

    use super::*;
    use crate::{Config, blobs::Blobs, clock::Clock, vault::Vault};

    #[tokio::test]
    async fn failing_task_is_restarted_until_it_succeeds() {
        let folder = tempfile::tempdir().unwrap();
        let app = Arc::new(App::new(
            Config::default(),
            Store::open("sqlite::memory:").await.unwrap(),
            Blobs::open(&folder.path().join("blobs").display().to_string()).unwrap(),
            Vault::load_or_create(&folder.path().join("keys")).unwrap(),
            Clock::system(),
        ));
        let supervisor = Supervisor::new(app.clone());
        let starts = Arc::new(AtomicU32::new(0));
        let counted = starts.clone();
        supervisor.spawn_restarting("test", move || {
            let start = counted.fetch_add(1, Ordering::SeqCst);
            async move {
                match start {
                    0 => panic!("a bug"),
                    1 => Err(StoreError::NotFound {
                        what: "anything".into(),
                    }),
                    _ => Ok(()),
                }
            }
        });
        assert!(supervisor.wait_all(Duration::from_secs(10)).await);
        assert_eq!(starts.load(Ordering::SeqCst), 3);
        assert_eq!(app.metrics.restarts.get(), 2);
    }
}
