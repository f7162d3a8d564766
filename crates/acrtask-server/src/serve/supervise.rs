//! Background tasks that are started again when they fail.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use acrtask_store::StoreError;
use futures::FutureExt as _;
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::App;

/// The pause before a task is started again; doubled while it keeps failing.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A task that ran for so long has recovered.
const RECOVERED: Duration = Duration::from_secs(10);

/// Keeps tasks running until it is stopped.
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

    /// Runs `start` now, and again after each error and each panic; one that ends well is over.
    pub(crate) fn keep<F, T>(&self, name: &'static str, start: F)
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
                        error = acrtask_model::chain(&error),
                        "a background task failed; it is started again"
                    ),
                    Err(_) => tracing::error!(
                        task = name,
                        "a background task panicked; it is started again"
                    ),
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

    /// Whether all tasks end by themselves within `limit`.
    pub(crate) async fn ended(&self, limit: Duration) -> bool {
        self.tasks.close();
        tokio::time::timeout(limit, self.tasks.wait()).await.is_ok()
    }

    /// Stops all tasks where they stand.
    pub(crate) fn cancel(&self) {
        self.stop.cancel();
    }

    /// Stops all tasks, and waits until they are gone.
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
    async fn a_task_that_fails_is_started_again_until_it_ends_well() {
        let folder = tempfile::tempdir().unwrap();
        let app = Arc::new(App::new(
            Config::default(),
            Store::open("sqlite::memory:").await.unwrap(),
            Blobs::open(&folder.path().join("blobs").display().to_string()).unwrap(),
            Vault::load_or_create(&folder.path().join("keys")).unwrap(),
            Clock::real(),
        ));
        let supervisor = Supervisor::new(app.clone());
        let starts = Arc::new(AtomicU32::new(0));
        let counted = starts.clone();
        supervisor.keep("test", move || {
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
        assert!(supervisor.ended(Duration::from_secs(10)).await);
        assert_eq!(starts.load(Ordering::SeqCst), 3);
        assert_eq!(app.metrics.restarts.get(), 2);
    }
}
